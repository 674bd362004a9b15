"""What happens to the gradients and to the weight decay of single tensors in the original code."""

import re
from collections import defaultdict

import torch
from torch import nn


# BEiT v2 and its tokenizer leave these out beside what iBOT does; mask token and relative positions *are* decayed.
BEITV2_WITHOUT_DECAY = (".cls_token", ".position_embeddings")


def decayed_parameter_names(model: nn.Module, exceptions: tuple[str, ...] = ()) -> list[str]:
    """
    Names of the trainable parameters with weight decay: all but biases and 1-dimensional tensors (iBOT's `utils.py`,
    `get_params_groups`, where CLS token, mask token, position table and prototypes *are* decayed), and but those whose
    name ends like one of the `exceptions` (BEiT's `optim_factory.py`).
    """
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim > 1 and not name.endswith((".bias", *exceptions))
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
