"""
dBOT's Vision Transformer ([Liu et al., 2022](https://arxiv.org/abs/2209.03917)), with its classifier and backbone.

Shapes: B images, N patches, k kept patches, D channels.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_dbot import DBotConfig
from .layers import (
    MeanPatchPooler,
    PatchEmbeddings,
    SelfAttention,
    TransformerLayer,
    init_like_torch,
    resize_position_table,
)
from .modeling_common import VisionBackbone, VisionPreTrainedModel


@dataclass
class DBotModelOutput(BaseModelOutputWithPooling):
    """
    Output of [`DBotModel`].

    Args:
        last_hidden_state (`[B, 1+N, D]`, or `[B, 1+k, D]` when masked): CLS token and patches after the final norm
            (not normalized with `config.use_mean_pooling`). Kept patches are in the order of their noise.
        pooler_output (`[B, D]`): Normalized CLS token, or LayerNorm of the mean patch.
        hidden_states (`tuple`, *optional*): Hidden states, one per layer.
        attentions (`tuple`, *optional*): Attention weights, one per layer.
        mask (`bool [B, N]`, when masked): True where a patch was removed, in row-major order.
        ids_restore (`int64 [B, N]`, when masked): Rank of each patch in the order of the noise; patches with ranks
            below k are kept.
    """

    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None


def sincos_positions(width: int, grid: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """
    Return the fixed position embeddings `float32 [1, 1+N, width]` of a `grid` of rows and columns
    (`util/pos_embed.py`). The first half of the channels encodes the column of a patch, the second half its row; each
    half contains all sines and then all cosines. The CLS token's entry is zero.
    """
    # Double precision, as in the original; Apple's GPUs do not have it.
    where = "cpu" if device is not None and device.type == "mps" else device
    exponents = torch.arange(width // 4, dtype=torch.float64, device=where) / (width // 4)
    angles = torch.arange(max(grid), dtype=torch.float64, device=where)[:, None] * 10000.0**-exponents
    waves = torch.cat((angles.sin(), angles.cos()), dim=1).float().to(device)
    columns = waves[: grid[1]].expand(grid[0], -1, -1)
    rows = waves[: grid[0], None].expand(-1, grid[1], -1)
    table = torch.cat((columns, rows), dim=2).flatten(0, 1)
    return nn.functional.pad(table, (0, 0, 1, 0)).unsqueeze(0)


class DBotEmbeddings(nn.Module):
    """CLS token and patch embeddings plus position embeddings; can embed only some of the patches."""

    def __init__(self, config: DBotConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.grid_size = config.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = PatchEmbeddings(config)
        self.position_embeddings = None
        if config.trainable_position_embeddings:
            num_patches = self.grid_size[0] * self.grid_size[1]
            self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + num_patches, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return the position embeddings `[1, 1+N, D]` of a `grid` of patches."""
        if self.position_embeddings is not None:
            return resize_position_table(self.position_embeddings, self.grid_size, grid)
        return sincos_positions(self.cls_token.shape[2], grid, self.cls_token.device).to(self.cls_token.dtype)

    def forward(self, pixel_values: torch.Tensor, ids_keep: torch.Tensor | None = None) -> torch.Tensor:
        """`[B, C, H, W]` to `[B, 1+N, D]`, or to `[B, 1+k, D]` with the indices `ids_keep` `int64 [B, k]`."""
        embeddings = self.patch_embeddings(pixel_values)
        height, width = pixel_values.shape[-2:]
        positions = self.positions((height // self.patch_size, width // self.patch_size))
        embeddings = embeddings + positions[:, 1:]
        if ids_keep is not None:
            embeddings = embeddings.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, embeddings.shape[2]))
        cls_token = (self.cls_token + positions[:, :1]).expand(embeddings.shape[0], -1, -1).to(embeddings.dtype)
        return self.dropout(torch.cat((cls_token, embeddings), dim=1))

    @torch.no_grad()
    def resize(self, grid: tuple[int, int]):
        """Interpolate the trainable position table, if there is one, to the size of `grid`."""
        if self.position_embeddings is not None and grid != self.grid_size:
            table = resize_position_table(self.position_embeddings, self.grid_size, grid)
            self.position_embeddings = nn.Parameter(table, self.position_embeddings.requires_grad)
        self.grid_size = grid


class DBotPreTrainedModel(VisionPreTrainedModel):
    """Initialization, loading and resizing shared by all dBOT models."""

    config: DBotConfig
    base_model_prefix = "dbot"
    _no_split_modules = ["TransformerLayer"]
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_record_outputs = {"hidden_states": TransformerLayer, "attentions": SelfAttention}
    # Encoders and classifiers do not use the decoder of a pre-training checkpoint nor, with mean pooling, its final
    # norm, which fine-tuning replaces by a new one (`main_finetune.py`). The pooler of transformers' ViT is not used.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^(dbot\.)?layernorm\.", r"^(dbot\.)?pooler\.dense\."]
    # A trainable table is initialized with the fixed positions that the checkpoint was trained with.
    _keys_to_ignore_on_load_missing = [r"embeddings\.position_embeddings$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize as the original code does (`models_mae.py`)."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, SelfAttention):
            # The original initializes the three projections as one matrix with three times as many rows.
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                bound = (6 / (4 * projection.in_features)) ** 0.5
                init.uniform_(projection.weight, -bound, bound)
        elif isinstance(module, nn.Conv2d):
            init_like_torch(module.weight, module.bias)
            # As a linear layer on all pixels of a patch.
            bound = (6 / (module.weight[0].numel() + module.out_channels)) ** 0.5
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, DBotEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            if module.position_embeddings is not None:
                table = module.position_embeddings
                init.copy_(table, sincos_positions(table.shape[2], module.grid_size, table.device))
        elif isinstance(module, TransformerLayer):
            for scale in (module.lambda_1, module.lambda_2):
                if scale is not None:
                    init.constant_(scale, self.config.layer_scale_init_value)

    def resize_position_tables(self, image_size: int | tuple[int, int]):
        """
        Set the image size and resize a trainable position table bicubically to the new grid, as the original loader
        does before fine-tuning. Fixed positions need no change.

        The table is replaced by a new parameter, so create the optimizer afterwards.

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
            if isinstance(module, DBotEmbeddings):
                module.resize((sides[0] // patch_size, sides[1] // patch_size))
        self.config.image_size = image_size


def noise_of_mask(bool_masked_pos: torch.Tensor) -> tuple[torch.Tensor, int]:
    """
    Return a noise `[B, N]` whose order puts the unmasked patches first, in row-major order, and their number k.

    Raises:
        ValueError: If the number of masked patches is not the same for all images.
    """
    noise = bool_masked_pos.float()
    masked = noise.sum(dim=1)
    if (masked != masked[0]).any():
        raise ValueError(
            "bool_masked_pos must mask the same number of patches in every image, "
            f"got {int(masked.min())} to {int(masked.max())}"
        )
    return noise, noise.shape[1] - int(masked[0])


class DBotModel(DBotPreTrainedModel):
    """
    The encoder without a head. It processes all patches, or only those that a mask keeps. Without a mask,
    `last_hidden_state` `[B, 1+N, D]` contains the CLS token and then the patches in row-major order.
    """

    def __init__(self, config: DBotConfig):
        super().__init__(config)
        self.embeddings = DBotEmbeddings(config)
        steps = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            [TransformerLayer(config, config.drop_path_rate * i / steps) for i in range(config.num_hidden_layers)]
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
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DBotModelOutput:
        r"""
        Encode images.

        Args:
            pixel_values (`[B, C, H, W]`): Normalized images; H and W are any multiples of the patch size.
            noise (`[B, N]`, *optional*): One number per patch. The k = int(N·(1 - `config.mask_ratio`)) patches with
                the lowest numbers are kept, in ascending order, and the others are removed.
            bool_masked_pos (`bool [B, N]`, *optional*): Patches to remove, instead of `noise`: the same number in
                every image, whatever `config.mask_ratio` is. Counting them synchronizes a GPU with the host.

        Raises:
            ValueError: If the number of channels, the image size or the shape of the noise or mask does not fit the
                model, or both noise and mask are given.
        """
        if noise is not None and bool_masked_pos is not None:
            raise ValueError("noise and bool_masked_pos both select the patches to remove: give one of them")
        ids_keep = mask = ids_restore = None
        if noise is not None or bool_masked_pos is not None:
            height, width = (side // self.config.patch_size for side in pixel_values.shape[-2:])
            num_patches = height * width
            for name, given in (("noise", noise), ("bool_masked_pos", bool_masked_pos)):
                if given is not None and given.shape != (pixel_values.shape[0], num_patches):
                    raise ValueError(
                        f"{name} has shape {tuple(given.shape)}, "
                        f"expected {(pixel_values.shape[0], num_patches)} (batch, patches)"
                    )
            if bool_masked_pos is not None:
                noise, num_kept = noise_of_mask(bool_masked_pos)
            else:
                # Double precision, as in the original, where 20 · (1 - 0.9) is less than 2.
                num_kept = int(num_patches * (1 - self.config.mask_ratio))
            assert noise is not None
            ids_shuffle = noise.argsort(dim=1, stable=True)
            ids_keep, ids_restore = ids_shuffle[:, :num_kept], ids_shuffle.argsort(dim=1)
            mask = ids_restore >= num_kept

        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        hidden_states = self.embeddings(pixel_values, ids_keep)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return DBotModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=hidden_states[:, 0] if self.pooler is None else self.pooler(hidden_states),
            mask=mask,
            ids_restore=ids_restore,
        )

    @torch.no_grad()
    def teach(self, pixel_values: torch.Tensor, layernorm: bool = False) -> torch.Tensor:
        """
        Return the features `[B, 1+N, D]` of whole images, which the student learns to predict (paper section 3).

        Args:
            pixel_values (`[B, C, H, W]`): Normalized images, the same as the student's.
            layernorm (`bool`, defaults to `False`): Apply the final norm (`tlayernorm`); no published command does so.
        """
        hidden_states = self.embeddings(pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype))
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.layernorm(hidden_states) if layernorm else hidden_states


class DBotBackbone(VisionBackbone, DBotPreTrainedModel):
    """
    The encoder as a backbone; returns feature maps `[B, D, h, w]` of the stages in `config.out_features`.

    Raises:
        ValueError: If the encoder has no blocks.
    """

    def __init__(self, config: DBotConfig):
        super().__init__(config)
        if config.num_hidden_layers == 0:
            raise ValueError("a backbone needs blocks, but num_hidden_layers is 0")
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.dbot = DBotModel(config)
        self.post_init()


class DBotForImageClassification(DBotPreTrainedModel):
    """
    The fine-tuning model: encoder with a linear classifier on the normalized mean patch (`config.use_mean_pooling`, as
    published) or on the CLS token.

    Fine-tuning starts from a pre-training checkpoint as follows. The classifier and, with mean pooling, the norm
    before it are new:

    ```python
    model = DBotForImageClassification.from_pretrained(
        folder, use_mean_pooling=True, trainable_position_embeddings=True, drop_path_rate=0.1, num_labels=1000
    )
    model.resize_position_tables(448)  # for another image size than that of pre-training
    ```
    """

    def __init__(self, config: DBotConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.dbot = DBotModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels > 0 else nn.Identity()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self and isinstance(self.classifier, nn.Linear):
            init.trunc_normal_(self.classifier.weight, std=0.01)

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
        outputs = self.dbot(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "DBotBackbone",
    "DBotForImageClassification",
    "DBotModel",
    "DBotModelOutput",
    "DBotPreTrainedModel",
    "sincos_positions",
]
