"""Residual connections with stochastic depth (`vision_transformer.py`, `DropPath`)."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs


class IBotDropPath(nn.Module):
    """
    Residual connection with stochastic depth: `x + branch(x)`, where whole samples drop the branch and the others
    divide it by the keep probability.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(
        self,
        hidden_states: torch.Tensor,
        branch: Callable[..., torch.Tensor],
        token_indices: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`[B, 1+N, D]`): Tokens of every sample.
            branch (`Callable`): Maps `[B, 1+N, D]` to the same; gets `kwargs`.
            token_indices (`int64 [T]`, *optional*): Tokens that go on, as positions in the flattened sequences, with a
                branch in which no token sees another. The same samples are dropped as without it.

        Returns:
            `[B, 1+N, D]`, or `[T, 1, D]` with `token_indices`.
        """
        batch_size, length, _ = hidden_states.shape
        if token_indices is not None:
            hidden_states = hidden_states.flatten(0, 1)[token_indices, None]
        if self.rate == 0.0 or not self.training:
            return hidden_states + branch(hidden_states, **kwargs)
        keep = 1.0 - self.rate
        # Drawn in float32 whatever the branch's type, so that the same seed drops the same samples under autocast.
        kept = torch.rand((batch_size, 1, 1), device=hidden_states.device) < keep
        if token_indices is not None:
            kept = kept[token_indices // length]
        if hidden_states.device.type != "cpu" or torch.compiler.is_compiling() or kwargs.get("output_attentions"):
            output = branch(hidden_states, **kwargs)
            return hidden_states + output * (kept / keep).to(output.dtype)
        # On the CPU a dropped sample costs nothing; elsewhere the host would have to wait for the number of kept ones.
        rows = kept.flatten().nonzero().squeeze(1)
        if len(rows) in (0, len(kept)):
            # An attention over no sample has no shape, and its weights need a gradient all the same.
            return hidden_states.add(branch(hidden_states, **kwargs), alpha=(len(rows) > 0) / keep)
        output = branch(hidden_states.index_select(0, rows), **kwargs).to(hidden_states.dtype)
        return hidden_states.index_add(0, rows, output, alpha=1 / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
