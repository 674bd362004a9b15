"""
Parts of a Vision Transformer that the methods share. Parameters are named as in transformers' ViT and BEiT.

Shapes: B images, N patches, D channels, h attention heads, d channels per head.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs


class PatchEmbeddings(nn.Module):
    """Splits images into patches and projects each of them to `width` channels, or to `config.hidden_size`."""

    def __init__(self, config: PreTrainedConfig, width: int | None = None):
        super().__init__()
        self.patch_size = config.patch_size
        self.num_channels = config.num_channels
        self.projection = nn.Conv2d(
            config.num_channels, width or config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` to `[B, N, D]`, patches in row-major order."""
        _, channels, height, width = pixel_values.shape
        if channels != self.num_channels:
            raise ValueError(f"pixel_values have {channels} channels, the model was built for {self.num_channels}")
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image size {height}x{width} is not a multiple of the patch size {self.patch_size}")
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


def replace_masked_patches(
    embeddings: torch.Tensor, bool_masked_pos: torch.Tensor, mask_token: torch.Tensor
) -> torch.Tensor:
    """
    Replace the embeddings `[B, N, D]` by `mask_token` `[1, 1, D]` where `bool_masked_pos` `[B, N]` is true.

    Raises:
        ValueError: If the shape of the mask does not match the embeddings.
    """
    if bool_masked_pos.shape != embeddings.shape[:2]:
        raise ValueError(
            f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}, "
            f"expected {tuple(embeddings.shape[:2])} (batch, patches)"
        )
    return torch.where(bool_masked_pos.bool().unsqueeze(-1), mask_token.to(embeddings.dtype), embeddings)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """
    Return half-precision values as float32, and all others as they are.

    Losses and interpolations need more digits than half precision has, and a float64 model computes in float64.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def interpolate_position_table(
    table: torch.Tensor, table_grid: tuple[int, int], grid: tuple[int, int]
) -> torch.Tensor:
    """
    Interpolate a position table `[1, 1+N, D]` from `table_grid` to `grid`, bicubic, keeping the first token's entry.

    The original code of DINO, iBOT and BEiT v2 interpolates by *scale factors* that include an extra 0.1 patches, and
    samples with exactly these factors. The result differs from interpolating to a size.
    """
    if grid == table_grid:
        return table
    patches = table[:, 1:].unflatten(1, table_grid).permute(0, 3, 1, 2)
    # In half precision, the bicubic weights would be less precise than the table.
    scale = ((grid[0] + 0.1) / table_grid[0], (grid[1] + 0.1) / table_grid[1])
    sampled = nn.functional.interpolate(
        at_least_float32(patches), scale_factor=scale, mode="bicubic", align_corners=False
    )
    return torch.cat((table[:, :1], sampled.to(table.dtype).flatten(2).transpose(1, 2)), dim=1)


def resize_position_table(table: torch.Tensor, table_grid: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """
    Interpolate a position table `[1, 1+N, D]` from `table_grid` to the *size* of `grid`, bicubic, keeping the first
    token's entry, as the original code of BEiT v2 and dBOT does when it loads a model for another image size.
    """
    if grid == table_grid:
        return table
    patches = table[:, 1:].unflatten(1, table_grid).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(at_least_float32(patches), size=grid, mode="bicubic", align_corners=False)
    return torch.cat((table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)


def relative_position_bias(table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    Expand a table of relative positions `[(2H-1)(2W-1), h]` to the bias `[h, N, N]`, query before key, for a `grid` of
    N = H·W patches. The table lists the offsets (query row - key row, query column - key column) in row-major order,
    starting at (1-H, 1-W).
    """
    height, width = grid
    offsets = table.unflatten(0, (2 * height - 1, 2 * width - 1))
    # Window s of `unfold` holds the offsets s, s+1, …, which belong to query row s and key rows in descending order.
    patches = offsets.unfold(0, height, 1).unfold(1, width, 1).flip(-2, -1)
    return patches.permute(2, 0, 1, 3, 4).flatten(3, 4).flatten(1, 2)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations, which also returns the weights: `[B, h, 1+N, d]` to `[B, 1+N, h, d]`."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens; the key projection has no bias unless `key_bias`."""

    def __init__(self, config: PreTrainedConfig, key_bias: bool):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        # Without this attribute, the sdpa interface uses causal attention.
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias and key_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Attend over all tokens.

        Args:
            hidden_states (`[B, 1+N, D]`): Tokens.
            attention_mask (`[1, h, 1+N, 1+N]`, *optional*): Added to the attention logits.

        Returns:
            `[B, 1+N, D]` and, with eager attention, the weights `[B, h, 1+N, 1+N]`.
        """
        input_shape = hidden_states.shape[:-1]
        query, key, value = (
            projection(hidden_states).view(*input_shape, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            # Under autocast, the projections have another dtype than the position table behind the mask.
            None if attention_mask is None else attention_mask.to(query.dtype),
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(*input_shape, -1)), weights


class MLP(nn.Module):
    """The two linear layers of a block, with an activation between them."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str):
        super().__init__()
        self.activation_fn = ACT2FN[hidden_act]
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., D]`."""
        hidden_states = self.fc1(hidden_states)
        if not (self.training and torch.is_grad_enabled()):
            return self._second_layer(hidden_states)
        # The activation's output is a quarter of what a block stores for the backward pass and cheap to recompute. The
        # recomputation stops as soon as that output is available, so fc2 itself runs once.
        return checkpoint(self._second_layer, hidden_states, use_reentrant=False, preserve_rng_state=False)

    def _second_layer(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(hidden_states))


class DropPathResidual(nn.Module):
    """
    Residual connection with stochastic depth: `x + branch(x)`, where the branch is dropped for whole samples and
    divided by the keep probability for the others.
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
        Add the output of a branch.

        Args:
            hidden_states (`[B, 1+N, D]`): Tokens of every sample.
            branch (`Callable`): Maps `[B, 1+N, D]` to `[B, 1+N, D]`; called with `kwargs`.
            token_indices (`int64 [T]`, *optional*): The only tokens to compute, as positions in the flattened
                sequences; for a branch that treats every token separately. The same samples are dropped as without it.

        Returns:
            `[B, 1+N, D]`, or `[T, 1, D]` with `token_indices`.
        """
        batch_size, length, _ = hidden_states.shape
        if token_indices is not None:
            hidden_states = hidden_states.flatten(0, 1)[token_indices, None]
        if self.rate == 0.0 or not self.training:
            return hidden_states + branch(hidden_states, **kwargs)
        keep = 1.0 - self.rate
        # Drawn in float32 whatever the dtype of the branch, so that a seed drops the same samples under autocast.
        kept = torch.rand((batch_size, 1, 1), device=hidden_states.device) < keep
        if token_indices is not None:
            kept = kept[token_indices // length]
        if hidden_states.device.type != "cpu" or torch.compiler.is_compiling() or kwargs.get("output_attentions"):
            output = branch(hidden_states, **kwargs)
            return hidden_states + output * (kept / keep).to(output.dtype)
        # On the CPU, dropped samples are not computed; other devices would have to synchronize to count the kept ones.
        rows = kept.flatten().nonzero().squeeze(1)
        if len(rows) in (0, len(kept)):
            # Attention fails on an empty batch, and its parameters need a gradient even if no sample is kept.
            return hidden_states.add(branch(hidden_states, **kwargs), alpha=(len(rows) > 0) / keep)
        output = branch(hidden_states.index_select(0, rows), **kwargs).to(hidden_states.dtype)
        return hidden_states.index_add(0, rows, output, alpha=1 / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class TransformerLayer(GradientCheckpointingLayer):
    """Pre-norm block: `x += drop_path(scale·attention(norm(x)))`, then the same with the MLP."""

    def __init__(self, config: PreTrainedConfig, drop_path_rate: float = 0.0, key_bias: bool = True):
        super().__init__()
        self.attention = SelfAttention(config, key_bias)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPathResidual(drop_path_rate)
        has_scale = config.layer_scale_init_value > 0
        self.lambda_1 = nn.Parameter(torch.zeros(config.hidden_size)) if has_scale else None
        self.lambda_2 = nn.Parameter(torch.zeros(config.hidden_size)) if has_scale else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_indices: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """
        Apply attention and MLP.

        Args:
            hidden_states (`[B, 1+N, D]`): Tokens.
            attention_mask (`[1, h, 1+N, 1+N]`, *optional*): Added to the attention logits.
            token_indices (`int64 [T]`, *optional*): The only tokens that pass through the MLP and are returned, as
                positions in the flattened `[B, 1+N]` sequences.

        Returns:
            `[B, 1+N, D]`, or `[T, 1, D]` with `token_indices`.
        """
        hidden_states = self.drop_path(hidden_states, self.attention_branch, attention_mask=attention_mask, **kwargs)
        return self.drop_path(hidden_states, self.mlp_branch, token_indices)

    def attention_branch(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """`[B, 1+N, D]` to `[B, 1+N, D]`."""
        branch, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        branch = self.dropout(branch)
        return branch if self.lambda_1 is None else self.lambda_1 * branch

    def mlp_branch(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., D]`."""
        branch = self.dropout(self.mlp(self.layernorm_after(hidden_states)))
        return branch if self.lambda_2 is None else self.lambda_2 * branch


def wanted_tokens(num_sequences: int, num_patches: int, mask_indices: torch.Tensor) -> torch.Tensor:
    """
    Return the positions of the tokens that a loss uses: the CLS token of every sequence, then the masked patches.

    Args:
        num_sequences (`int`): Number R of sequences, each of one CLS token and N patches.
        num_patches (`int`): Number N of patches.
        mask_indices (`int64 [M]`): Positions of the masked patches in the flattened `[R, N]` grid.

    Returns:
        `int64 [R+M]`: Positions in the flattened `[R, 1+N]` sequences.
    """
    cls = torch.arange(num_sequences, device=mask_indices.device) * (1 + num_patches)
    patches = mask_indices + torch.div(mask_indices, max(num_patches, 1), rounding_mode="floor") + 1
    return torch.cat((cls, patches))


class MeanPatchPooler(nn.Module):
    """LayerNorm of the mean patch token."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, 1+N, D]` to `[B, D]`."""
        return self.layernorm(hidden_states[:, 1:].mean(dim=1))


def init_like_torch(weight: torch.Tensor, bias: torch.Tensor | None, scale: float = 1.0):
    """Initialize a linear or convolutional layer as PyTorch does, with the weight multiplied by `scale`."""
    bound = 1 / math.sqrt(weight[0].numel())
    init.uniform_(weight, -bound * scale, bound * scale)
    if bias is not None:
        init.uniform_(bias, -bound, bound)


__all__ = [
    "DropPathResidual",
    "MLP",
    "MeanPatchPooler",
    "PatchEmbeddings",
    "SelfAttention",
    "TransformerLayer",
    "eager_attention_forward",
    "init_like_torch",
    "interpolate_position_table",
    "relative_position_bias",
    "replace_masked_patches",
    "resize_position_table",
    "wanted_tokens",
]
