"""What happens to the gradients and to the weight decay of single tensors in the original code."""

import re
from collections import defaultdict

import torch
from torch import nn


def decayed_parameter_names(model: nn.Module) -> list[str]:
    """
    Names of the trainable parameters with weight decay: all but biases and 1-dimensional tensors (`utils.py`,
    `get_params_groups`). CLS token, mask token, position table and prototypes *are* decayed.
    """
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not (name.endswith(".bias") or parameter.ndim == 1)
    ]


@torch.no_grad()
def clip_gradients_per_tensor(model: nn.Module, max_norm: float) -> torch.Tensor:
    """
    Clip every gradient tensor by itself to the L2 norm `max_norm` (`utils.py`, `clip_gradients`).

    The original holds query, key and value of a block in one tensor, so their three gradients share one norm.

    Args:
        model (`nn.Module`): Model whose gradients are scaled in place, by `max_norm / (norm + 1e-6)` if that is < 1.
        max_norm (`float`): Largest norm that a tensor keeps.

    Returns:
        The L2 norm of all gradients together before clipping.
    """
    tensors = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            tensors[re.sub(r"\.[qkv]_proj\.", ".qkv.", name)].append(parameter.grad)
    if not tensors:
        return torch.zeros(())
    gradients = [gradient for group in tensors.values() for gradient in group]
    sizes = [len(group) for group in tensors.values()]
    norms = torch.stack(torch._foreach_norm(gradients)).split(sizes)
    norms = torch.stack([norm.norm() if len(norm) > 1 else norm[0] for norm in norms])
    scales = (max_norm / (norms + 1e-6)).clamp(max=1.0).unbind()
    torch._foreach_mul_(gradients, [scale for scale, size in zip(scales, sizes, strict=True) for _ in range(size)])
    return norms.norm()
