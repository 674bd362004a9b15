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
            final norm (un-normalised with `config.use_mean_pooling`).
        pooler_output (`[B, D]`, without `token_indices`): Normalised CLS token, or normed mean patch.
        hidden_states, attentions: One per layer, when asked for.
        aggregation_hidden_states (`[B, 1+N, D]`, when asked for): What the pre-training head branch starts from: the
            CLS token of the last block and the patches after block `config.early_layers`, un-normalised.
        position_bias (`[1, h, 1+N, 1+N]`, with `aggregation_hidden_states`): The shared relative position bias.
    """

    aggregation_hidden_states: torch.FloatTensor | None = None
    position_bias: torch.FloatTensor | None = None


class Beitv2Embeddings(nn.Module):
    """CLS token, patch embeddings with the mask token, and positions: `[B, C, H, W]` to `[B, 1+N, D]`."""

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
        embeddings = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("bool_masked_pos needs a mask token, which this model does not have")
            embeddings = replace_masked_patches(embeddings, bool_masked_pos, self.mask_token)
        cls_token = self.cls_token.expand(embeddings.shape[0], -1, -1).to(embeddings.dtype)
        embeddings = torch.cat((cls_token, embeddings), dim=1)
        if self.position_embeddings is not None:
            grid = (pixel_values.shape[2] // self.patch_size, pixel_values.shape[3] // self.patch_size)
            embeddings = embeddings + interpolate_position_table(self.position_embeddings, self.grid_size, grid)
        return self.dropout(embeddings)

    @torch.no_grad()
    def resize(self, grid: tuple[int, int]):
        """Replaces the table, if there is one, as the original loader does: bicubic to the *size* of `grid`."""
        if self.position_embeddings is not None and grid != self.grid_size:
            table = resize_position_table(self.position_embeddings, self.grid_size, grid)
            self.position_embeddings = nn.Parameter(table, self.position_embeddings.requires_grad)
        self.grid_size = grid


class Beitv2Layer(TransformerLayer):
    """
    Pre-norm block, with a table of relative positions of its own if `config.use_relative_position_bias`.

    `number` counts the blocks from 1: the deeper the block, the smaller its output layers at initialisation.
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
        """As [`TransformerLayer`]; `position_bias` is that of all blocks, `grid` the rows and columns of patches."""
        if self.relative_position_bias is not None:
            own_bias = self.relative_position_bias(grid)
            position_bias = own_bias if position_bias is None else position_bias + own_bias
        return super().forward(hidden_states, position_bias, token_indices, **kwargs)


class Beitv2PreTrainedModel(VisionPreTrainedModel):
    """Initialisation, loading and resizing shared by all BEiT v2 models."""

    config: Beitv2Config
    base_model_prefix = "beitv2"
    _no_split_modules = ["Beitv2Layer"]
    # Neither of them can add a bias with a gradient to the logits.
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_record_outputs = {"hidden_states": Beitv2Layer, "attentions": SelfAttention}
    # What an encoder or a classifier leaves behind of a pre-training checkpoint: the heads, the mask token, and with
    # mean pooling the final norm, which fine-tuning replaces by a new one (`run_class_finetuning.py`).
    _keys_to_ignore_on_load_unexpected = [
        r"^lm_head\.",
        r"^head_layers\.",
        r"^head_layernorm\.",
        r"^head_lm_head\.",
        r"^(beitv2\.)?embeddings\.mask_token$",
        r"^(beitv2\.)?layernorm\.",
        # A buffer in older files of plain BEiTs.
        r"relative_position_index$",
    ]
    # The pre-training class cuts its normal distribution at one standard deviation and applies it to the patch
    # projection too; the fine-tuning class cuts far out and leaves that layer as PyTorch makes it.
    pretraining_init = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialisation of the original code (`modeling_pretrain.py` and `modeling_finetune.py`)."""
        if isinstance(module, nn.Linear):
            self._init_normal(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            if self.pretraining_init:
                self._init_normal(module.weight)
                init.zeros_(module.bias)
            else:
                init_like_torch(module.weight, module.bias)
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
            if module.lambda_1 is not None:
                init.constant_(module.lambda_1, self.config.layer_scale_init_value)
                init.constant_(module.lambda_2, self.config.layer_scale_init_value)

    def _init_normal(self, tensor: torch.Tensor, scale: float = 1.0):
        std = self.config.initializer_range * scale
        cut = std if self.pretraining_init else 2.0 * scale
        init.trunc_normal_(tensor, std=std, a=-cut, b=cut)

    def resize_position_tables(self, image_size: int | tuple[int, int]):
        """
        Rebuilds all position tables for another image size, as the original loader does before fine-tuning: relative
        ones by a spline over a geometric sequence of offsets, absolute ones bicubic to the size of the new grid.

        The parameters are new ones: an optimiser has to be made afterwards.

        Args:
            image_size (`int` or `(height, width)`): Size in pixels; the configuration is updated to it.

        Raises:
            ValueError: If the patch size does not divide it.
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
        Gives every block its own copy of the shared table of relative positions, as the original loader does before
        fine-tuning; outputs stay the same, and the configuration is updated.

        Raises:
            ValueError: If the model has no shared table, or if it is the encoder in a pre-training model, whose head
                branch takes part.
        """
        encoder = self.base_model
        if self is encoder and self.pretraining_init and self.config.head_layers > 0:
            raise ValueError(
                "the head branch of pre-training uses the shared table too: call this on the whole model, or on an "
                "encoder that is loaded by itself"
            )
        if encoder.shared_position_bias is None:
            raise ValueError("the model has no shared table of relative positions (use_shared_relative_position_bias)")
        shared = encoder.shared_position_bias
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
    The bare encoder. `last_hidden_state` `[B, 1+N, D]` holds the CLS token and then the patches in row-major order.

    Args:
        config (`Beitv2Config`): Sizes.
        use_mask_token (`bool`, defaults to `True`): Has a token for masked patches.
        pretraining_init (`bool`, defaults to `False`): New weights are those of the original's pre-training class
            instead of its fine-tuning class.
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
        if config.use_mean_pooling:
            self.layernorm, self.pooler = nn.Identity(), MeanPatchPooler(config)
        else:
            self.layernorm, self.pooler = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps), None
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
        Args:
            pixel_values (`[B, C, H, W]`): Normalised images; H and W are any multiples of the patch size.
            bool_masked_pos (`bool [B, N]`, *optional*): True where a patch is replaced by the mask token, after the
                patch projection and before the position embeddings are added.
            token_indices (`int64 [T]`, *optional*): Tokens that are wanted, as positions in the flattened `[B, 1+N]`
                sequences. The last block's MLP and the final norm are spared for the others. With `patch_aggregation`,
                the first B of them must be the CLS tokens.
            patch_aggregation (`bool`, defaults to `False`): Also give what the pre-training head branch starts from.

        Raises:
            ValueError: If the number of channels, the image size or the shape of the mask does not fit.
        """
        config = self.config
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        grid = (pixel_values.shape[2] // config.patch_size, pixel_values.shape[3] // config.patch_size)
        hidden_states = self.embeddings(pixel_values, bool_masked_pos)
        position_bias = None if self.shared_position_bias is None else self.shared_position_bias(grid)

        # These take all tokens of the last block: the mean patch, a recorded last state, its patches as early ones.
        takes_all = (
            token_indices is None
            or self.pooler is not None
            or kwargs.get("output_hidden_states", config.output_hidden_states)
            or (patch_aggregation and config.early_layers == config.num_hidden_layers)
        )
        early = None
        for i, layer in enumerate(self.layers, start=1):
            chosen = None if takes_all or i < config.num_hidden_layers else token_indices
            hidden_states = layer(hidden_states, position_bias, chosen, grid=grid, **kwargs)
            if patch_aggregation and i == config.early_layers:
                early = hidden_states[:, 1:]
        aggregation = None
        if patch_aggregation:
            cls_tokens = hidden_states[:, :1] if takes_all else hidden_states[: pixel_values.shape[0]]
            aggregation = torch.cat((cls_tokens, early), dim=1)

        if token_indices is not None:
            hidden_states = hidden_states.flatten(0, 1)
            hidden_states = hidden_states[token_indices] if takes_all else hidden_states
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
        Outputs `[B, 1+N, D]` of the last `n` blocks, un-normalised as in the original's method of the same name.

        Raises:
            ValueError: If `n` is not between 1 and the number of layers.
        """
        if not 1 <= n <= len(self.layers):
            raise ValueError(f"n must lie in 1..{len(self.layers)} (the number of layers), got {n}")
        return self(pixel_values, output_hidden_states=True).hidden_states[-n:]


class Beitv2Backbone(VisionBackbone, Beitv2PreTrainedModel):
    """The encoder as a backbone: feature maps `[B, D, h, w]` of the stages in `config.out_features`."""

    def __init__(self, config: Beitv2Config):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.beitv2 = Beitv2Model(config, use_mask_token=False)
        self.post_init()


class Beitv2ForImageClassification(Beitv2PreTrainedModel):
    """
    The fine-tuning model: encoder with a linear classifier on the normed mean patch (`config.use_mean_pooling`, the
    published choice) or on the CLS token.

    Fine-tuning starts from a pre-training checkpoint like this; what is new then is the classifier and, with mean
    pooling, the norm before it:

    ```python
    model = Beitv2ForImageClassification.from_pretrained(folder, use_mean_pooling=True, num_labels=1000)
    model.unshare_relative_position_bias()
    model.resize_position_tables(384)  # for another image size than that of pre-training
    ```
    """

    def __init__(self, config: Beitv2Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.beitv2 = Beitv2Model(config, use_mask_token=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self and self.num_labels > 0:
            self._init_normal(self.classifier.weight, scale=0.001)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values (`[B, C, H, W]`): Normalised images; H and W are any multiples of the patch size.
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
    "Beitv2Model",
    "Beitv2ModelOutput",
    "Beitv2PreTrainedModel",
]
