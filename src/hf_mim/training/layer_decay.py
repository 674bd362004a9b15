"""Fine-tuning with a smaller learning rate for earlier layers (BEiT v2, `optim_factory.py` and SPEC 4.4)."""

import re

import torch
from torch import nn

from .gradients import BEITV2_WITHOUT_DECAY, decayed_parameter_names


def layer_decay_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    decay_relative_positions: bool = True,
) -> list[dict]:
    """
    Parameter groups for `torch.optim.AdamW`, per layer one with and one without weight decay.

    The learning rate is `lr * layer_decay ** (L + 1 - layer)` for a model of L blocks: layer 0 is the embeddings with
    their tokens and position table, layer i the i-th block, layer L + 1 everything else, which includes a table of
    relative positions that the blocks share. A scheduler of torch keeps these ratios.

    Args:
        model (`nn.Module`): A `Beitv2ForImageClassification`, or any model whose blocks are named `layers.i`.
        lr (`float`): Learning rate of the last layer.
        weight_decay (`float`): Weight decay of the decayed parameters: not of biases and other 1-dimensional tensors,
            CLS tokens and position tables.
        layer_decay (`float`, defaults to 1.0): Factor from one layer to the one before it, in (0, 1]; the published
            recipes have 0.6 to 0.8. With 1 all layers are one.
        decay_relative_positions (`bool`, defaults to `True`): Weight decay for the blocks' own tables of relative
            positions; `False` is the original's `--disable_weight_decay_on_rel_pos_bias`.

    Returns:
        Groups with the entries `params`, `lr`, `weight_decay`, and `layer` and `lr_scale` for whoever reads them.

    Raises:
        ValueError: If `layer_decay` is out of range, or the model has no blocks.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay}")
    blocks = [int(match[1]) for name, _ in model.named_parameters() if (match := _BLOCK.search(name))]
    if not blocks:
        raise ValueError("the model has no blocks: none of its parameters is named layers.i")
    last = max(blocks) + 2
    exceptions = BEITV2_WITHOUT_DECAY
    if not decay_relative_positions:
        exceptions += (".relative_position_bias.relative_position_bias_table",)
    decayed = set(decayed_parameter_names(model, exceptions))
    members: dict[tuple[int, bool], list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = _layer(name, last) if layer_decay < 1 else last
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


_BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def _layer(name: str, last: int) -> int:
    if re.search(r"(?:^|\.)embeddings\.", name):
        return 0
    match = _BLOCK.search(name)
    return int(match[1]) + 1 if match else last
