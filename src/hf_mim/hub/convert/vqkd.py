"""
Official VQ-KD tokenizers (`beit2/modeling_vqkd.py` of microsoft/unilm) as models of this package.

They see images as `2·x - 1` of values x in 0..1 (`process_type` "default", that of all released ones): the image
processor beside them has mean and standard deviation 0.5.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...modeling.configuration_vqkd import VQKDConfig
from ...modeling.modeling_vqkd import VQKDModel
from .beitv2 import image_size_of, original_beitv2_name, rename_beitv2
from .renaming import checked_config, count_blocks, left_behind, load_strictly, needed, published_heads


QUANTIZER = {
    "quantize.embedding.weight": "quantizer.codebook",
    "quantize.cluster_size": "quantizer.usage",
    "quantize.embedding.initted": "quantizer.initialized",
}
# Beginnings of names, and why what has them stays behind.
DROPPED = {
    "teacher_model.": "left behind, it is the teacher",
    "scaling_layer.": "left behind, it normalises the images for the teacher",
    "loss": "left behind, it belongs to the training",
    "quantize.embedding.cluster_size": "left behind, they are counts of the first k-means that nothing reads",
    "quantize.embedding.embed_avg": "left behind, nothing reads it",
}


def is_vqkd(weights: Mapping[str, Tensor]) -> bool:
    """Whether tensors with official names are those of a VQ-KD tokenizer: the only ones with a codebook."""
    return any(key.startswith("quantize.") for key in weights)


def dropped_vqkd(weights: Mapping[str, Tensor]) -> list[str]:
    """What of a checkpoint stays behind, and why."""
    return [line for start, reason in DROPPED.items() for line in left_behind(weights, f"{start}*", reason)]


def rename_vqkd(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Official tensors under our names, without those that stay behind; unknown ones keep their names. Counters of idle
    codes, which the original does not have, begin with 0.
    """
    renamed = {}
    for part in ("encoder", "decoder"):
        weights = {k.removeprefix(f"{part}."): t for k, t in official.items() if k.startswith(f"{part}.")}
        # Without pooling, the norm of the mean patch becomes that of every patch.
        weights = {k.replace("fc_norm.", "norm."): t for k, t in weights.items()}
        renamed |= {f"{part}.{k}": t for k, t in rename_beitv2(weights, "").items()}
    for key, tensor in official.items():
        if key in QUANTIZER:
            renamed[QUANTIZER[key]] = tensor.bool().reshape(()) if key.endswith("initted") else tensor
        elif not key.startswith(("encoder.", "decoder.", *DROPPED)):
            renamed[key] = tensor
    if "quantizer.codebook" in renamed:
        codebook = renamed["quantizer.codebook"]
        renamed["quantizer.idle_steps"] = torch.zeros(len(codebook), dtype=torch.int64, device=codebook.device)
    return renamed


def original_vqkd_name(ours: str) -> str:
    """The official name of what [`rename_vqkd`] calls `ours`."""
    for official, name in QUANTIZER.items():
        if ours == name:
            return official
    part, _, inner = ours.partition(".")
    if part not in ("encoder", "decoder"):
        return ours
    inner = original_beitv2_name(inner)
    return f"{part}.fc_{inner}" if inner.startswith("norm.") else f"{part}.{inner}"


def convert_vqkd(
    weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
) -> VQKDModel:
    """
    The tokenizer of a checkpoint: encoder, codebook and decoder. What it holds of its teacher stays behind.

    Args:
        weights (`Mapping[str, Tensor]`): Tensors with official names.
        name (`str`): Where they come from, for messages.
        num_attention_heads (`int`, *optional*): Heads per block, where the width is not a published one.
        overrides (`Mapping`): Fields of [`VQKDConfig`] that no tensor tells, such as `teacher` and `teacher_license`.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape than the others ask for, or if there is no
            codebook yet.
    """
    if not needed(weights, "quantize.embedding.initted", 1, name).bool().all():
        raise ValueError(f"{name}: quantize.embedding.initted is 0, so that there is no codebook yet: train it first")
    width, channels, patch_size = needed(weights, "encoder.patch_embed.proj.weight", 4, name).shape[:3]
    positions = needed(weights, "encoder.pos_embed", 3, name)
    codes, code_dim = needed(weights, "quantize.embedding.weight", 2, name).shape
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": count_blocks(weights, "encoder.blocks", name),
        "decoder_num_hidden_layers": count_blocks(weights, "decoder.blocks", name),
        "num_attention_heads": published_heads(width, num_attention_heads),
        "intermediate_size": needed(weights, "encoder.blocks.0.mlp.fc1.weight", 2, name).shape[0],
        "image_size": image_size_of({"pos_embed": positions}, name, patch_size, overrides.get("image_size")),
        "patch_size": patch_size,
        "num_channels": channels,
        "codebook_size": codes,
        "codebook_dim": code_dim,
        "target_dim": needed(weights, "decode_task_layer.2.weight", 2, name).shape[0],
    }
    config = checked_config(VQKDConfig, sizes, overrides)
    return load_strictly(VQKDModel, config, rename_vqkd(weights), name, original_vqkd_name)
