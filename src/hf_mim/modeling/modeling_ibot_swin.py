"""
iBOT with a Swin Transformer backbone ([Zhou et al., 2022](https://arxiv.org/abs/2111.07832);
[Liu et al., 2021](https://arxiv.org/abs/2103.14030); `models/swin_transformer.py`).

Parameters are named as in transformers' Swin. The outputs can differ: as in the original, the windows are those of
`config.image_size`, whatever the size of the images, while transformers adapts them to each image.

Shapes: B images, S patches per side of a stage's map, C channels of the stage, W windows of w x w patches, h attention
heads; N patches and D channels of the output.
"""

import math
from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ibot_swin import IBotSwinConfig
from .layers import (
    MLP,
    DropPathResidual,
    PatchEmbeddings,
    replace_masked_patches,
)
from .modeling_ibot import IBotForImageClassification, IBotPreTrainedModel
from .modeling_ibot_pretraining import IBotForPreTraining
from .window_attention_ibot_swin import (
    IBotSwinAttention,
    IBotSwinRelativePositionBias,
    from_windows,
    shift_mask,
    to_windows,
)


class IBotSwinEmbeddings(nn.Module):
    """Normalized patch embeddings, some of which the mask token replaces."""

    def __init__(self, config: IBotSwinConfig):
        super().__init__()
        self.patch_embeddings = PatchEmbeddings(config, config.embed_dim)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        """`[B, C, H, W]`, and optionally a mask `[B, M]`, to `[B, S·S, C]`."""
        height, width = pixel_values.shape[-2:]
        if height != width:
            raise ValueError(f"image size {height}x{width} is not square: Swin takes square images only")
        embeddings = self.norm(self.patch_embeddings(pixel_values))
        if bool_masked_pos is not None:
            mask = repeat_mask(bool_masked_pos, math.isqrt(embeddings.shape[1]))
            embeddings = replace_masked_patches(embeddings, mask, self.mask_token)
        return self.dropout(embeddings)


def repeat_mask(bool_masked_pos: torch.Tensor, side: int) -> torch.Tensor:
    """
    Upsample a square mask `[B, M]` to `side` x `side` patches, `[B, side·side]`, by repeating each entry.

    Raises:
        ValueError: If the side of the mask does not divide `side`.
    """
    cells = math.isqrt(bool_masked_pos.shape[-1])
    if bool_masked_pos.ndim != 2 or cells == 0 or cells**2 != bool_masked_pos.shape[1] or side % cells:
        raise ValueError(
            f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}, but the images have {side}x{side} patches: "
            f"it must be [batch, n·n], where n divides {side}"
        )
    factor = side // cells
    mask = bool_masked_pos.unflatten(1, (cells, cells))
    return mask.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2).flatten(1)


class IBotSwinLayer(GradientCheckpointingLayer):
    """
    Pre-norm block: `x += drop_path(attention(norm(x)))` within windows, which every second block shifts cyclically,
    then the same with the MLP.

    If the side of the feature map is not a multiple of the window, zeros are added after the norm. They take part in
    the attention; their keys and values are the biases of the projections.
    """

    def __init__(
        self, config: IBotSwinConfig, width: int, num_heads: int, window: int, shift: int, drop_path_rate: float
    ):
        super().__init__()
        self.window, self.shift = window, shift
        self.attention = IBotSwinAttention(config, width, num_heads, window)
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MLP(width, int(width * config.mlp_ratio), config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPathResidual(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """`[B, S·S, C]` to `[B, S·S, C]`."""
        hidden_states = self.drop_path(hidden_states, self.attention_branch, **kwargs)
        return self.drop_path(hidden_states, self.mlp_branch)

    def attention_branch(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """`[B, S·S, C]` to `[B, S·S, C]`."""
        side = math.isqrt(hidden_states.shape[1])
        missing = -side % self.window
        patches = self.layernorm_before(hidden_states).unflatten(1, (side, side))
        if missing:
            patches = nn.functional.pad(patches, (0, 0, 0, missing, 0, missing))
        mask = None
        if self.shift:
            patches = patches.roll((-self.shift, -self.shift), dims=(1, 2))
            mask = shift_mask(side + missing, self.window, self.shift, patches)
        output, _ = self.attention(to_windows(patches, self.window), mask, **kwargs)
        patches = from_windows(output, self.window)
        if self.shift:
            patches = patches.roll((self.shift, self.shift), dims=(1, 2))
        return self.dropout(patches[:, :side, :side].flatten(1, 2))

    def mlp_branch(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, S·S, C]` to `[B, S·S, C]`."""
        return self.dropout(self.mlp(self.layernorm_after(hidden_states)))


class IBotSwinPatchMerging(nn.Module):
    """Halves the sides of the feature map, after adding zeros to odd sides, and doubles its width."""

    def __init__(self, config: IBotSwinConfig, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=config.layer_norm_eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, S·S, C]` to `[B, ⌈S/2⌉², 2C]`."""
        side = math.isqrt(hidden_states.shape[1])
        patches = hidden_states.unflatten(1, (side, side))
        if side % 2:
            patches = nn.functional.pad(patches, (0, 0, 0, 1, 0, 1))
        # The four patches of a cell are concatenated column by column.
        cells = torch.cat([patches[:, row::2, column::2] for column in range(2) for row in range(2)], dim=-1)
        return self.reduction(self.norm(cells.flatten(1, 2)))


class IBotSwinStage(nn.Module):
    """The blocks at one resolution, followed by patch merging except in the last stage."""

    def __init__(self, config: IBotSwinConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        width, (window, shift) = config.embed_dim * 2**stage, config.stage_windows[stage]
        self.blocks = nn.ModuleList(
            [
                IBotSwinLayer(config, width, config.num_heads[stage], window, shift if i % 2 else 0, rate)
                for i, rate in enumerate(drop_path_rates)
            ]
        )
        is_last = stage == len(config.depths) - 1
        self.downsample = None if is_last else IBotSwinPatchMerging(config, width)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """`[B, S·S, C]` to `[B, ⌈S/2⌉², 2C]`, or to `[B, S·S, C]` in the last stage."""
        for block in self.blocks:
            hidden_states = block(hidden_states, **kwargs)
        return hidden_states if self.downsample is None else self.downsample(hidden_states)


class IBotSwinEncoder(nn.Module):
    """All stages."""

    def __init__(self, config: IBotSwinConfig):
        super().__init__()
        steps = max(config.num_hidden_layers - 1, 1)
        rates = [config.drop_path_rate * i / steps for i in range(config.num_hidden_layers)]
        ends = accumulate(config.depths)
        self.layers = nn.ModuleList(
            [
                IBotSwinStage(config, stage, rates[end - depth : end])
                for stage, (depth, end) in enumerate(zip(config.depths, ends, strict=True))
            ]
        )

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """`[B, S·S, C]` to `[B, N, D]`."""
        for stage in self.layers:
            hidden_states = stage(hidden_states, **kwargs)
        return hidden_states


class IBotSwinPreTrainedModel(IBotPreTrainedModel):
    """Initialization and loading shared by all iBOT models with a Swin Transformer."""

    config: IBotSwinConfig  # type: ignore[assignment]  # shares IBotPreTrainedModel's code, not its configuration
    _no_split_modules = ["IBotSwinLayer"]
    # Neither of them supports a bias that is added to the attention logits.
    _supports_flash_attn = False
    _supports_flex_attn = False
    # The indices into the position tables are buffers in older files of transformers' Swin.
    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"relative_position_index$"]
    _can_record_outputs = {"hidden_states": IBotSwinLayer, "attentions": IBotSwinAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize as the original code does; `config.linear_init` can select Xavier's rule for linear layers."""
        if isinstance(module, IBotSwinEmbeddings):
            init.zeros_(module.mask_token)
        elif isinstance(module, IBotSwinRelativePositionBias):
            init.trunc_normal_(module.relative_position_bias_table, std=self.config.initializer_range)
        else:
            super()._init_weights(module)


class IBotSwinModel(IBotSwinPreTrainedModel):
    """
    The encoder without a head. `last_hidden_state` `[B, 1+N, D]` starts with the mean patch in place of a CLS token,
    followed by the patches of the last stage in row-major order, after the final norm. The mean patch is also the
    `pooler_output` `[B, D]`. Each of the N patches is `config.token_stride` pixels wide.

    `hidden_states` contains the input of the first block and the output of every block, `[B, S·S, C]` with S and C of
    its stage; `attentions` contains the weights within the windows, `[B·W, h, w·w, w·w]`, one per block.
    """

    def __init__(self, config: IBotSwinConfig):
        super().__init__(config)
        self.embeddings = IBotSwinEmbeddings(config)
        self.encoder = IBotSwinEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        token_indices: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Encode images.

        Args:
            pixel_values (`[B, C, H, W]`): Normalized images; H = W is any multiple of the patch size.
            bool_masked_pos (`bool [B, M]`, *optional*): True where the mask token replaces patches, after their norm.
                The mask is square, and its side √M must divide that of the first stage's feature map; M = N, for
                example.
            token_indices (`int64 [T]`, *optional*): The only tokens to return, as positions in the flattened
                `[B, 1+N]` sequences; `last_hidden_state` is then `[T, D]`, and `pooler_output` is `None`.

        Raises:
            ValueError: If the images are not square, or their channels, size or mask do not fit the model.
        """
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        hidden_states = self.encoder(self.embeddings(pixel_values, bool_masked_pos), **kwargs)
        hidden_states = with_mean(self.layernorm(hidden_states))
        if token_indices is None:
            return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states.flatten(0, 1)[token_indices])

    def get_intermediate_layers(self, pixel_values: torch.Tensor, n: int = 1) -> tuple[torch.Tensor, ...]:
        """
        Return the outputs `[B, 1+S·S, C]` of the last `n` blocks of all stages in their order, each preceded by its
        mean. The final norm is applied to the outputs of the last stage only.

        Raises:
            ValueError: If `n` is not between 1 and the number of blocks in all stages.
        """
        if not 1 <= n <= self.config.num_hidden_layers:
            raise ValueError(
                f"n must lie in 1..{self.config.num_hidden_layers} (the number of blocks in all stages), got {n}"
            )
        states = self(pixel_values, output_hidden_states=True).hidden_states
        first_of_last_stage = len(states) - self.config.depths[-1]
        return tuple(
            with_mean(self.layernorm(states[i]) if i >= first_of_last_stage else states[i])
            for i in range(len(states) - n, len(states))
        )


def with_mean(tokens: torch.Tensor) -> torch.Tensor:
    """Prepend the mean token: `[B, N, D]` to `[B, 1+N, D]`."""
    return torch.cat((tokens.mean(dim=1, keepdim=True), tokens), dim=1)


class IBotSwinBackbone(BackboneMixin, IBotSwinPreTrainedModel):
    """
    The encoder as a backbone; returns feature maps `[B, C, S, S]` of the stages in `config.out_features`, before their
    patches are merged. The final norm is applied to that of the last stage.
    """

    def __init__(self, config: IBotSwinConfig):
        super().__init__(config)
        self.num_features = [config.embed_dim] + [config.embed_dim * 2**stage for stage in range(len(config.depths))]
        self.ibot = IBotSwinModel(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        Compute the feature maps of the stages in `config.out_features`.

        Args:
            pixel_values (`[B, C, H, W]`): Normalized images; H = W is any multiple of the patch size.

        Returns:
            Feature maps `[B, C, S, S]`.
        """
        kwargs["output_hidden_states"] = True
        outputs = self.ibot(pixel_values, **kwargs)
        return BackboneOutput(
            feature_maps=tuple(  # type: ignore[arg-type]  # transformers annotates a tuple of one map
                self._feature_maps(outputs.hidden_states)
            ),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _feature_maps(self, hidden_states: tuple[torch.Tensor, ...]) -> Iterator[torch.Tensor]:
        for stage, last_block in zip(self.stage_names, accumulate(self.config.depths, initial=0), strict=True):
            if stage in self.out_features:
                state = hidden_states[last_block]
                if stage == self.stage_names[-1]:
                    state = self.ibot.layernorm(state)
                side = math.isqrt(state.shape[1])
                yield state.transpose(1, 2).unflatten(2, (side, side)).contiguous()


class IBotSwinForImageClassification(IBotSwinPreTrainedModel, IBotForImageClassification):
    """Encoder with a linear classifier on the mean patch."""

    encoder_class = IBotSwinModel


class IBotSwinForPreTraining(IBotSwinPreTrainedModel, IBotForPreTraining):
    """
    [`IBotForPreTraining`] with a Swin Transformer: the same arguments, output and loss. The mean patch replaces the
    CLS token, and N is the number of patches in the last stage, so `bool_masked_pos` is `[B, 2, 49]` for views of 224
    pixels. The sides of global views must be multiples of `config.token_stride`.
    """

    encoder_class = IBotSwinModel


__all__ = [
    "IBotSwinBackbone",
    "IBotSwinForImageClassification",
    "IBotSwinForPreTraining",
    "IBotSwinModel",
    "IBotSwinPreTrainedModel",
    "repeat_mask",
]
