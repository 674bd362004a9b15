"""
BEiT v2's Vision Transformer ([Peng et al., 2022](https://arxiv.org/abs/2208.06366)), with its classifier and backbone.

Shapes: B images, N patches, D channels, h attention heads.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_beitv2 import Beitv2Config
from .layers import (
    MeanPatchPooler,
    PatchEmbeddings,
    SelfAttention,
    TransformerLayer,
    init_like_torch,
    interpolate_position_table,
    replace_masked_patches,
    resize_position_table,
)
from .modeling_common import VisionBackbone, VisionPreTrainedModel
from .relative_position_beitv2 import Beitv2RelativePositionBias


@dataclass
class Beitv2ModelOutput(BaseModelOutputWithPooling):
    """
    Output of [`Beitv2Model`].

    Args:
        last_hidden_state (`[B, 1+N, D]`, or `[T, D]` with `token_indices`): CLS token and patches, after the
            final norm (not normalized with `config.use_mean_pooling`).
        pooler_output (`[B, D]`, without `token_indices`): Normalized CLS token, or LayerNorm of the mean patch.
        hidden_states (`tuple`, *optional*): Hidden states, one per layer.
        attentions (`tuple`, *optional*): Attention weights, one per layer.
        aggregation_hidden_states (`[B, 1+N, D]`, *optional*): Input of the pre-training head branch: the CLS token of
            the last block and the patches of block `config.early_layers`, not normalized.
        position_bias (`[1, h, 1+N, 1+N]`, with `aggregation_hidden_states`): The shared relative position bias.
    """

    aggregation_hidden_states: torch.Tensor | None = None
    position_bias: torch.Tensor | None = None


class Beitv2Embeddings(nn.Module):
    """CLS token and patch embeddings, some of which the mask token replaces, plus position embeddings."""

    def __init__(self, config: Beitv2Config, use_mask_token: bool):
        super().__init__()
        self.patch_size = config.patch_size
        self.grid_size = config.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None
        self.patch_embeddings = PatchEmbeddings(config)
        self.position_embeddings = None
        if config.use_absolute_position_embeddings:
            num_patches = self.grid_size[0] * self.grid_size[1]
            self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + num_patches, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        """`[B, C, H, W]`, and optionally a mask `[B, N]`, to `[B, 1+N, D]`."""
        embeddings = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("bool_masked_pos needs a mask token, and this model has none")
            embeddings = replace_masked_patches(embeddings, bool_masked_pos, self.mask_token)
        cls_token = self.cls_token.expand(embeddings.shape[0], -1, -1).to(embeddings.dtype)
        embeddings = torch.cat((cls_token, embeddings), dim=1)
        if self.position_embeddings is not None:
            grid = (pixel_values.shape[2] // self.patch_size, pixel_values.shape[3] // self.patch_size)
            embeddings = embeddings + interpolate_position_table(self.position_embeddings, self.grid_size, grid)
        return self.dropout(embeddings)

    @torch.no_grad()
    def resize(self, grid: tuple[int, int]):
        """Interpolate the position table, if there is one, to the *size* of `grid`, as the original loader does."""
        if self.position_embeddings is not None and grid != self.grid_size:
            table = resize_position_table(self.position_embeddings, self.grid_size, grid)
            self.position_embeddings = nn.Parameter(table, self.position_embeddings.requires_grad)
        self.grid_size = grid


class Beitv2Layer(TransformerLayer):
    """
    Pre-norm block, with its own table of relative positions if `config.use_relative_position_bias`.

    `number` counts the blocks from 1. The deeper the block, the smaller are the initial weights of its output layers.
    """

    def __init__(self, config: Beitv2Config, drop_path_rate: float, number: int):
        super().__init__(config, drop_path_rate, key_bias=False)
        self.number = number
        self.relative_position_bias = Beitv2RelativePositionBias(config) if config.use_relative_position_bias else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None = None,
        token_indices: torch.Tensor | None = None,
        grid: tuple[int, int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """
        Apply attention and MLP.

        Args:
            hidden_states (`[B, 1+N, D]`): Tokens.
            position_bias (`[1, h, 1+N, 1+N]`, *optional*): The position bias that all blocks share.
            token_indices (`int64 [T]`, *optional*): As for [`TransformerLayer`].
            grid (`tuple[int, int]`, *optional*): Rows and columns of patches, needed for the block's own bias.

        Returns:
            `[B, 1+N, D]`, or `[T, 1, D]` with `token_indices`.
        """
        if self.relative_position_bias is not None:
            own_bias = self.relative_position_bias(grid)
            position_bias = own_bias if position_bias is None else position_bias + own_bias
        return super().forward(hidden_states, position_bias, token_indices, **kwargs)


class Beitv2PreTrainedModel(VisionPreTrainedModel):
    """Initialization, loading and resizing shared by all BEiT v2 models."""

    config: Beitv2Config
    base_model_prefix = "beitv2"
    _no_split_modules = ["Beitv2Layer"]
    # Neither of them supports a bias with a gradient that is added to the attention logits.
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_record_outputs = {"hidden_states": Beitv2Layer, "attentions": SelfAttention}
    # Encoders and classifiers do not use these parts of a pre-training checkpoint: the heads, the mask token and, with
    # mean pooling, the final norm, which fine-tuning replaces by a new one (`run_class_finetuning.py`).
    _keys_to_ignore_on_load_unexpected = [
        r"^lm_head\.",
        r"^head_layers\.",
        r"^head_layernorm\.",
        r"^head_lm_head\.",
        r"^(beitv2\.)?embeddings\.mask_token$",
        r"^(beitv2\.)?layernorm\.",
        # A buffer in older files of transformers' BEiT.
        r"relative_position_index$",
    ]
    # The original's pre-training class truncates the normal distribution at one standard deviation and applies it to
    # the patch projection too. Its fine-tuning class truncates at 2.0 and leaves that layer initialized by PyTorch.
    pretraining_init = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize as the original code does (`modeling_pretrain.py` and `modeling_finetune.py`)."""
        if isinstance(module, nn.Conv2d) and not self.pretraining_init:
            init_like_torch(module.weight, module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            self._init_normal(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Beitv2Embeddings):
            for table in (module.cls_token, module.mask_token, module.position_embeddings):
                if table is not None:
                    self._init_normal(table)
        elif isinstance(module, Beitv2RelativePositionBias):
            init.zeros_(module.relative_position_bias_table)
        elif isinstance(module, Beitv2Layer):
            for linear in (module.attention.o_proj, module.mlp.fc2):
                self._init_normal(linear.weight, scale=(2 * module.number) ** -0.5)
            for scale in (module.lambda_1, module.lambda_2):
                if scale is not None:
                    init.constant_(scale, self.config.layer_scale_init_value)

    def _init_normal(self, tensor: torch.Tensor, scale: float = 1.0):
        std = self.config.initializer_range * scale
        cut = std if self.pretraining_init else 2.0 * scale
        init.trunc_normal_(tensor, std=std, a=-cut, b=cut)

    def resize_position_tables(self, image_size: int | tuple[int, int]):
        """
        Interpolate all position tables for another image size, as the original loader does before fine-tuning:
        relative positions by a spline over a geometric sequence of offsets, absolute positions bicubically.

        The tables are replaced by new parameters, so create the optimizer afterwards.

        Args:
            image_size (`int` or `(height, width)`): New size in pixels, which is also set in the configuration.

        Raises:
            ValueError: If `image_size` is not a multiple of the patch size.
        """
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        patch_size = self.config.patch_size
        if len(sides) != 2 or any(side < patch_size or side % patch_size for side in sides):
            raise ValueError(f"image_size ({image_size}) must be a multiple of patch_size ({patch_size})")
        for module in self.modules():
            if isinstance(module, (Beitv2Embeddings, Beitv2RelativePositionBias)):
                module.resize((sides[0] // patch_size, sides[1] // patch_size))
        self.config.image_size = image_size

    def unshare_relative_position_bias(self):
        """
        Give every block its own copy of the shared table of relative positions, as the original loader does before
        fine-tuning. The outputs stay the same, and the configuration is updated.

        Raises:
            ValueError: If the model has no shared table, or if it is the encoder of a pre-training model whose head
                branch uses the table too.
        """
        encoder = self.base_model
        assert isinstance(encoder, Beitv2Model)
        if self is encoder and self.pretraining_init and self.config.head_layers > 0:
            raise ValueError(
                "the head branch of the pre-training model uses the shared table too: call this method on the whole "
                "model, or on an encoder loaded separately"
            )
        shared = encoder.shared_position_bias
        if shared is None:
            raise ValueError("the model has no shared table of relative positions (use_shared_relative_position_bias)")
        for layer in self.modules():
            if isinstance(layer, Beitv2Layer):
                own = copy.deepcopy(shared)
                if layer.relative_position_bias is not None:
                    own.relative_position_bias_table.data += layer.relative_position_bias.relative_position_bias_table
                layer.relative_position_bias = own
        encoder.shared_position_bias = None
        self.config.use_relative_position_bias, self.config.use_shared_relative_position_bias = True, False


class Beitv2Model(Beitv2PreTrainedModel):
    """
    The encoder without a head. `last_hidden_state` `[B, 1+N, D]` contains the CLS token and then the patches in
    row-major order.

    Args:
        config (`Beitv2Config`): Sizes.
        use_mask_token (`bool`, defaults to `True`): Create a mask token.
        pretraining_init (`bool`, defaults to `False`): Initialize as the original's pre-training class does, not as
            its fine-tuning class.
    """

    def __init__(self, config: Beitv2Config, use_mask_token: bool = True, pretraining_init: bool = False):
        super().__init__(config)
        self.pretraining_init = pretraining_init
        self.embeddings = Beitv2Embeddings(config, use_mask_token)
        self.shared_position_bias = (
            Beitv2RelativePositionBias(config) if config.use_shared_relative_position_bias else None
        )
        steps = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            [Beitv2Layer(config, config.drop_path_rate * i / steps, i + 1) for i in range(config.num_hidden_layers)]
        )
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm = nn.Identity() if config.use_mean_pooling else norm
        self.pooler = MeanPatchPooler(config) if config.use_mean_pooling else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        token_indices: torch.Tensor | None = None,
        patch_aggregation: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Beitv2ModelOutput:
        r"""
        Encode images.

        Args:
            pixel_values (`[B, C, H, W]`): Normalized images; H and W are any multiples of the patch size.
            bool_masked_pos (`bool [B, N]`, *optional*): True where the mask token replaces a patch, after the patch
                projection and before the position embeddings are added.
            token_indices (`int64 [T]`, *optional*): The only tokens to return, as positions in the flattened
                `[B, 1+N]` sequences. The last block's MLP and the final norm are not computed for the others. With
                `patch_aggregation`, the first B of them must be the CLS tokens.
            patch_aggregation (`bool`, defaults to `False`): Also return the input of the pre-training head branch.

        Raises:
            ValueError: If the number of channels, the image size or the shape of the mask does not fit the model.
        """
        config = self.config
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        grid = (pixel_values.shape[2] // config.patch_size, pixel_values.shape[3] // config.patch_size)
        hidden_states = self.embeddings(pixel_values, bool_masked_pos)
        position_bias = None if self.shared_position_bias is None else self.shared_position_bias(grid)

        # All tokens of the last block are needed for the mean patch, for the recorded last hidden state, and when the
        # head branch starts from the patches of this block.
        needs_all = (
            token_indices is None
            or self.pooler is not None
            or kwargs.get("output_hidden_states", config.output_hidden_states)
            or (patch_aggregation and config.early_layers == config.num_hidden_layers)
        )
        early = None
        for i, layer in enumerate(self.layers, start=1):
            chosen = None if needs_all or i < config.num_hidden_layers else token_indices
            hidden_states = layer(hidden_states, position_bias, chosen, grid=grid, **kwargs)
            if patch_aggregation and i == config.early_layers:
                early = hidden_states[:, 1:]
        aggregation = None
        if patch_aggregation:
            cls_tokens = hidden_states[:, :1] if needs_all else hidden_states[: pixel_values.shape[0]]
            assert early is not None, "early_layers must be at most num_hidden_layers"
            aggregation = torch.cat((cls_tokens, early), dim=1)

        if token_indices is not None:
            hidden_states = hidden_states.flatten(0, 1)
            hidden_states = hidden_states[token_indices] if needs_all else hidden_states
        hidden_states = self.layernorm(hidden_states)
        pooled = None
        if token_indices is None:
            pooled = hidden_states[:, 0] if self.pooler is None else self.pooler(hidden_states)
        return Beitv2ModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=pooled,
            aggregation_hidden_states=aggregation,
            position_bias=position_bias if patch_aggregation else None,
        )

    def get_intermediate_layers(self, pixel_values: torch.Tensor, n: int = 1) -> tuple[torch.Tensor, ...]:
        """
        Return the outputs `[B, 1+N, D]` of the last `n` blocks, not normalized, as the original's method of this name.

        Raises:
            ValueError: If `n` is not between 1 and the number of layers.
        """
        if not 1 <= n <= len(self.layers):
            raise ValueError(f"n must lie in 1..{len(self.layers)} (the number of layers), got {n}")
        return self(pixel_values, output_hidden_states=True).hidden_states[-n:]


class Beitv2Backbone(VisionBackbone, Beitv2PreTrainedModel):
    """The encoder as a backbone; returns feature maps `[B, D, h, w]` of the stages in `config.out_features`."""

    def __init__(self, config: Beitv2Config):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.beitv2 = Beitv2Model(config, use_mask_token=False)
        self.post_init()


class Beitv2ForImageClassification(Beitv2PreTrainedModel):
    """
    The fine-tuning model: encoder with a linear classifier on the normalized mean patch (`config.use_mean_pooling`, as
    published) or on the CLS token.

    Fine-tuning starts from a pre-training checkpoint as follows. The classifier and, with mean pooling, the norm
    before it are new:

    ```python
    model = Beitv2ForImageClassification.from_pretrained(folder, use_mean_pooling=True, num_labels=1000)
    model.unshare_relative_position_bias()
    model.resize_position_tables(384)  # for another image size than that of pre-training
    ```
    """

    def __init__(self, config: Beitv2Config):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.beitv2 = Beitv2Model(config, use_mask_token=False)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels > 0 else nn.Identity()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self and isinstance(self.classifier, nn.Linear):
            self._init_normal(self.classifier.weight, scale=0.001)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutput:
        r"""
        Compute the logits `[B, num_labels]` and, given labels, the loss.

        Args:
            pixel_values (`[B, C, H, W]`): Normalized images; H and W are any multiples of the patch size.
            labels (`int64 [B]`, or float `[B, num_labels]`, *optional*): Classes; regression or multi-label targets.
        """
        outputs = self.beitv2(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "Beitv2Backbone",
    "Beitv2ForImageClassification",
    "Beitv2Layer",
    "Beitv2Model",
    "Beitv2ModelOutput",
    "Beitv2PreTrainedModel",
]
