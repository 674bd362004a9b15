"""
Convert official VQ-KD tokenizers (`beit2/modeling_vqkd.py` of microsoft/unilm).

Their input is `2·x - 1` for pixel values x in 0..1 (`process_type` "default", as in all released tokenizers), so that
their image processor has a mean and standard deviation of 0.5.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ...modeling.configuration_vqkd import VQKDConfig
from ...modeling.modeling_vqkd import VQKDModel
from .beitv2 import image_size_of, original_beitv2_name, rename_beitv2
from .renaming import checked_config, count_blocks, left_behind, load_strictly, needed, published_heads


QUANTIZER = {
    "quantize.embedding.weight": "quantizer.codebook",
    "quantize.cluster_size": "quantizer.usage",
    "quantize.embedding.initted": "quantizer.initialized",
}
# Prefixes of tensors that are left behind, with the reason.
DROPPED = {
    "teacher_model.": "left behind, it is the teacher",
    "scaling_layer.": "left behind, it normalizes the images for the teacher",
    "loss": "left behind, it belongs to the training",
    "quantize.embedding.cluster_size": "left behind, they are counts of the first k-means that nothing reads",
    "quantize.embedding.embed_avg": "left behind, nothing reads it",
}


def matches(weights: Mapping[str, Tensor]) -> bool:
    """Check whether tensors with official names are those of a VQ-KD tokenizer: only these have a codebook."""
    return any(key.startswith("quantize.") for key in weights)


def shares_names(weights: Mapping[str, Tensor]) -> bool:
    """Return False: no other family has models with these names."""
    return False


def options(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return an empty dictionary: the options of the original run determine no field of the configuration."""
    return {}


def dropped(networks: Mapping[str, Mapping[str, Tensor]], config: PreTrainedConfig) -> list[str]:
    """Describe what is left behind, one line for each kind of tensor."""
    weights = networks["model"]
    return [line for start, reason in DROPPED.items() for line in left_behind(weights, f"{start}*", reason)]


def rename_vqkd(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Rename official tensors and leave out those in `DROPPED`; unknown tensors keep their names. The counters of idle
    codes, which the original does not have, start at 0.
    """
    renamed: dict[str, Tensor] = {}
    for part in ("encoder", "decoder"):
        weights = {k.removeprefix(f"{part}."): t for k, t in official.items() if k.startswith(f"{part}.")}
        # Without pooling, the norm of the mean patch is applied to each patch.
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
    """Return the official name of the tensor that [`rename_vqkd`] calls `ours`."""
    for official, name in QUANTIZER.items():
        if ours == name:
            return official
    part, _, inner = ours.partition(".")
    if part not in ("encoder", "decoder"):
        return ours
    inner = original_beitv2_name(inner)
    return f"{part}.fc_{inner}" if inner.startswith("norm.") else f"{part}.{inner}"


def convert(
    weights: Mapping[str, Tensor], name: str, num_attention_heads: int | None, overrides: Mapping[str, Any]
) -> VQKDModel:
    """
    Build a tokenizer with its encoder, codebook and decoder. Tensors of its teacher are left behind.

    Args:
        weights (`Mapping[str, Tensor]`): Tensors with official names.
        name (`str`): File name, for messages.
        num_attention_heads (`int`, *optional*): Heads per block. Required if no published model has this width.
        overrides (`Mapping`): Fields of [`VQKDConfig`] that the tensors do not determine, such as `teacher` and
            `teacher_license`.

    Raises:
        ValueError: If a tensor is missing, unknown or has the wrong shape, or if the codebook is not initialized.
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
