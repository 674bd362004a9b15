"""Gradient clipping, weight decay and layer decay of single tensors, as in the original code."""

import re
from collections import defaultdict

import torch
from torch import nn


# BEiT v2 and its tokenizer do not decay these either. Mask token and relative positions *are* decayed.
BEITV2_WITHOUT_DECAY: tuple[str, ...] = (".cls_token", ".position_embeddings")


def decayed_parameter_names(model: nn.Module, exceptions: tuple[str, ...] = ()) -> list[str]:
    """
    Return the names of the trainable parameters with weight decay.

    Biases and 1-dimensional tensors have none (iBOT's `utils.py`, `get_params_groups`; CLS token, mask token, position
    table and prototypes *are* decayed), nor have parameters whose name ends with one of the exceptions (BEiT's
    `optim_factory.py`).

    Args:
        model (`nn.Module`): Model with trainable parameters.
        exceptions (`tuple[str, ...]`): Ends of names.
    """
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim > 1 and not name.endswith((".bias", *exceptions))
    ]


@torch.no_grad()
def clip_gradients_per_tensor(model: nn.Module, max_norm: float) -> torch.Tensor:
    """
    Clip each gradient tensor separately to the L2 norm `max_norm` (`utils.py`, `clip_gradients`).

    The original stores query, key and value of a block in one tensor, so their three gradients share one norm.

    Args:
        model (`nn.Module`): Model whose gradients are scaled in place, by `max_norm / (norm + 1e-6)` if that is < 1.
        max_norm (`float`): Largest norm that a tensor keeps.

    Returns:
        `torch.Tensor`: L2 norm of all gradients together before clipping.
    """
    tensors = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            tensors[re.sub(r"\.[qkv]_proj\.", ".qkv.", name)].append(parameter.grad)
    if not tensors:
        return torch.zeros(())
    gradients = [gradient for group in tensors.values() for gradient in group]
    sizes = [len(group) for group in tensors.values()]
    groups = torch.stack(torch._foreach_norm(gradients)).split(sizes)
    norms = torch.stack([group.norm() if len(group) > 1 else group[0] for group in groups])
    scales = (max_norm / (norms + 1e-6)).clamp(max=1.0).unbind()
    torch._foreach_mul_(gradients, [scale for scale, size in zip(scales, sizes, strict=True) for _ in range(size)])
    return norms.norm()


def layer_decay_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    decay_relative_positions: bool = True,
) -> list[dict]:
    """
    Return parameter groups for `torch.optim.AdamW`: for each layer one with and one without weight decay.

    The learning rate is `lr * layer_decay ** (L + 1 - layer)` for a model of L blocks. Layer 0 is the embeddings with
    their tokens and position table, layer i the i-th block, and layer L + 1 everything else, including a table of
    relative positions that the blocks share. Schedulers of torch keep these ratios.

    Source: BEiT v2, `optim_factory.py`.

    Args:
        model (`nn.Module`): A `Beitv2ForImageClassification`, or any model whose blocks are named `layers.i` or, in
            the stages of a Swin, `layers.i.blocks.j`. Swin blocks are numbered through all stages, and the patch
            merging after a stage belongs to its last block.
        lr (`float`): Learning rate of the last layer.
        weight_decay (`float`): Weight decay. Biases and other 1-dimensional tensors, CLS tokens and position tables
            have none.
        layer_decay (`float`, defaults to 1.0): Factor from one layer to the one before it, in (0, 1]; the published
            recipes use 0.6 to 0.8. With 1, all layers share one group.
        decay_relative_positions (`bool`, defaults to `True`): Weight decay for the blocks' own tables of relative
            positions; `False` is the original's `--disable_weight_decay_on_rel_pos_bias`.

    Returns:
        `list[dict]`: Groups with the entries `params`, `lr`, `weight_decay`, `layer` and `lr_scale`.

    Raises:
        ValueError: If `layer_decay` is out of range, or the model has no blocks.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay}")
    layers = _layers(model)
    if not any(layers.values()):
        raise ValueError("the model has no blocks: none of its parameters is named layers.i")
    last = max(layers.values()) + 1
    exceptions = BEITV2_WITHOUT_DECAY
    if not decay_relative_positions:
        exceptions += (".relative_position_bias.relative_position_bias_table",)
    decayed = set(decayed_parameter_names(model, exceptions))
    members: dict[tuple[int, bool], list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = layers.get(name, last) if layer_decay < 1 else last
            members.setdefault((layer, name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * layer_decay ** (last - layer),
            "lr_scale": layer_decay ** (last - layer),
            "weight_decay": weight_decay if with_decay else 0.0,
            "layer": layer,
        }
        for (layer, with_decay), parameters in sorted(members.items())
    ]


_EMBEDDINGS = re.compile(r"(?:^|\.)embeddings\.")
_BLOCK = re.compile(r"(?:^|\.)layers\.\d+\.(?:blocks\.\d+\.|(downsample)\.)?")


def _layers(model: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter of the embeddings (0) and of the blocks (from 1 on)."""
    layers: dict[str, int] = {}
    blocks: list[str] = []
    for name, _ in model.named_parameters():
        if _EMBEDDINGS.search(name):
            layers[name] = 0
        elif match := _BLOCK.search(name):
            # A stage lists its blocks before its patch merging.
            if match[1] is None and match[0] not in blocks:
                blocks.append(match[0])
            layers[name] = len(blocks) if match[1] else blocks.index(match[0]) + 1
    return layers
