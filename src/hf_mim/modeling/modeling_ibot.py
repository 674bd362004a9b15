"""
iBOT with a Vision Transformer backbone ([Zhou et al., 2022](https://arxiv.org/abs/2111.07832)).

Shapes: B images, G global and L local views, N patches, D channels, K and P prototypes, M masked patches.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ibot import IBotConfig
from .head_ibot import IBotHead, IBotWeightNormLinear
from .layers import (
    PatchEmbeddings,
    SelfAttention,
    TransformerLayer,
    init_like_torch,
    interpolate_position_table,
    replace_masked_patches,
)
from .modeling_common import VisionBackbone, VisionPreTrainedModel


class IBotEmbeddings(nn.Module):
    """CLS token and patch embeddings, some of which the mask token replaces, plus position embeddings."""

    def __init__(self, config: IBotConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.grid_size = config.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = PatchEmbeddings(config)
        num_patches = self.grid_size[0] * self.grid_size[1]
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + num_patches, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def interpolate_position_embeddings(self, height: int, width: int) -> torch.Tensor:
        """Return the position embeddings `[1, 1+N, D]` for images of `height` x `width` pixels."""
        grid = (height // self.patch_size, width // self.patch_size)
        return interpolate_position_table(self.position_embeddings, self.grid_size, grid)

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        """`[B, C, H, W]`, and optionally a mask `[B, N]`, to `[B, 1+N, D]`."""
        height, width = pixel_values.shape[-2:]
        embeddings = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            embeddings = replace_masked_patches(embeddings, bool_masked_pos, self.mask_token)
        cls_token = self.cls_token.expand(embeddings.shape[0], -1, -1).to(embeddings.dtype)
        embeddings = torch.cat((cls_token, embeddings), dim=1)
        return self.dropout(embeddings + self.interpolate_position_embeddings(height, width))


class IBotPreTrainedModel(VisionPreTrainedModel):
    """Initialization and loading shared by all iBOT models."""

    config: IBotConfig
    base_model_prefix = "ibot"
    _no_split_modules = ["TransformerLayer"]
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_record_outputs = {"hidden_states": TransformerLayer, "attentions": SelfAttention}
    # Encoders and classifiers do not use the projection head of a pre-training checkpoint; no model uses the pooler of
    # transformers' ViT.
    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"^(ibot\.)?pooler\.dense\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize as the original code does; `config.linear_init` can select Xavier's rule for linear layers."""
        if isinstance(module, nn.Linear):
            if self.config.linear_init == "xavier_uniform":
                init.xavier_uniform_(module.weight)
            else:
                init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            # The original keeps PyTorch's initialization of the patch projection and of the head's last layers.
            init_like_torch(module.weight, module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d, nn.SyncBatchNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if not isinstance(module, nn.LayerNorm):
                assert module.running_mean is not None and module.running_var is not None
                assert module.num_batches_tracked is not None
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
        elif isinstance(module, IBotEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
            init.zeros_(module.mask_token)
        elif isinstance(module, TransformerLayer):
            for scale in (module.lambda_1, module.lambda_2):
                if scale is not None:
                    init.constant_(scale, self.config.layer_scale_init_value)
        elif isinstance(module, IBotWeightNormLinear):
            init_like_torch(module.direction, None)
            init.ones_(module.magnitude)
        elif isinstance(module, IBotHead) and module.patch_projection is not None:
            init_like_torch(module.patch_projection.weight, module.patch_projection.bias)


class IBotModel(IBotPreTrainedModel):
    """
    The encoder without a head. `last_hidden_state` `[B, 1+N, D]` contains the CLS token and then the patches in
    row-major order, after the final norm; `pooler_output` `[B, D]` is the CLS token. With `token_indices`,
    `last_hidden_state` `[T, D]` contains only these tokens and `pooler_output` is `None`.
    """

    def __init__(self, config: IBotConfig):
        super().__init__(config)
        self.embeddings = IBotEmbeddings(config)
        steps = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            [TransformerLayer(config, config.drop_path_rate * i / steps) for i in range(config.num_hidden_layers)]
        )
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm = nn.Identity() if config.use_mean_pooling else norm
        self.fc_norm = norm if config.use_mean_pooling else None
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
            pixel_values (`[B, C, H, W]`): Normalized images; H and W are any multiples of the patch size.
            bool_masked_pos (`bool [B, N]`, *optional*): True where the mask token replaces a patch, after the patch
                projection and before the position embeddings are added.
            token_indices (`int64 [T]`, *optional*): The only tokens to return, as positions in the flattened
                `[B, 1+N]` sequences. The last block's MLP and the final norm are not computed for the others.

        Raises:
            ValueError: If the number of channels, the image size or the shape of the mask does not fit the model.
        """
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        hidden_states = self.embeddings(pixel_values, bool_masked_pos)
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, **kwargs)
        # The mean patch and the recorded last hidden state need all tokens of the last block.
        needs_all = self.fc_norm is not None or kwargs.get("output_hidden_states", self.config.output_hidden_states)
        hidden_states = self.layers[-1](hidden_states, None, None if needs_all else token_indices, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        if self.fc_norm is not None:
            pooled = self.fc_norm(hidden_states[:, 1:].mean(dim=1, keepdim=True))
            hidden_states = torch.cat((pooled, hidden_states[:, 1:]), dim=1)
        if token_indices is None:
            return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])
        tokens = hidden_states.flatten(0, 1)
        return BaseModelOutputWithPooling(last_hidden_state=tokens[token_indices] if needs_all else tokens)

    def get_intermediate_layers(self, pixel_values: torch.Tensor, n: int = 1) -> tuple[torch.Tensor, ...]:
        """
        Return the outputs `[B, 1+N, D]` of the last `n` blocks in their order, each after the final norm.

        Raises:
            ValueError: If `n` is not between 1 and the number of layers.
        """
        if not 1 <= n <= len(self.layers):
            raise ValueError(f"n must lie in 1..{len(self.layers)} (the number of layers), got {n}")
        hidden_states = self(pixel_values, output_hidden_states=True).hidden_states
        return tuple(self.layernorm(state) for state in hidden_states[-n:])


class IBotBackbone(VisionBackbone, IBotPreTrainedModel):
    """The encoder as a backbone; returns feature maps `[B, D, h, w]` of the stages in `config.out_features`."""

    def __init__(self, config: IBotConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.ibot = IBotModel(config)
        self.post_init()


class IBotForImageClassification(IBotPreTrainedModel):
    """Encoder with a linear classifier on token 0: the CLS token, or the mean patch with `use_mean_pooling`."""

    encoder_class: type[IBotPreTrainedModel] = IBotModel

    def __init__(self, config: IBotConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.ibot = self.encoder_class(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels > 0 else nn.Identity()
        self.post_init()

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
        outputs = self.ibot(pixel_values, **kwargs)
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "IBotBackbone",
    "IBotForImageClassification",
    "IBotModel",
    "IBotPreTrainedModel",
]
