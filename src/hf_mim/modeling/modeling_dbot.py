"""
dBOT's Vision Transformer ([Liu et al., 2022](https://arxiv.org/abs/2209.03917)), with its classifier and backbone.

Shapes: B images, N patches, k patches that are kept, D channels.
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
            (un-normalised with `config.use_mean_pooling`); kept patches stand in the order of their noise.
        pooler_output (`[B, D]`): Normalised CLS token, or normed mean patch.
        hidden_states, attentions: One per layer, when asked for.
        mask (`bool [B, N]`, when masked): True where a patch was removed, row-major over the grid.
        ids_restore (`int64 [B, N]`, when masked): Place of every patch in the order of the noise: the kept patches are
            those below k.
    """

    mask: torch.BoolTensor | None = None
    ids_restore: torch.LongTensor | None = None


def sincos_positions(width: int, grid: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """
    Fixed positions `float32 [1, 1+N, width]` of a `grid` of rows and columns (`util/pos_embed.py`): the first half of
    the channels tells a patch's column, the second half its row, each with all sines and then all cosines. The CLS
    token's entry is zero.
    """
    # In double precision as in the original, which Apple's devices do not have.
    where = "cpu" if device is not None and device.type == "mps" else device
    exponents = torch.arange(width // 4, dtype=torch.float64, device=where) / (width // 4)
    angles = torch.arange(max(grid), dtype=torch.float64, device=where)[:, None] * 10000.0**-exponents
    waves = torch.cat((angles.sin(), angles.cos()), dim=1).float().to(device)
    columns = waves[: grid[1]].expand(grid[0], -1, -1)
    rows = waves[: grid[0], None].expand(-1, grid[1], -1)
    table = torch.cat((columns, rows), dim=2).flatten(0, 1)
    return nn.functional.pad(table, (0, 0, 1, 0)).unsqueeze(0)


class DBotEmbeddings(nn.Module):
    """CLS token and patch embeddings with their positions: `[B, C, H, W]` to `[B, 1+N, D]`."""

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
        """Positions `[1, 1+N, D]` of a `grid` of patches."""
        if self.position_embeddings is not None:
            return resize_position_table(self.position_embeddings, self.grid_size, grid)
        return sincos_positions(self.cls_token.shape[2], grid, self.cls_token.device).to(self.cls_token.dtype)

    def forward(self, pixel_values: torch.Tensor, ids_keep: torch.Tensor | None = None) -> torch.Tensor:
        """With `ids_keep` (`int64 [B, k]`) only these patches, in their order: `[B, 1+k, D]`."""
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
        """Replaces the trainable table, if there is one, by the one for `grid`."""
        if self.position_embeddings is not None and grid != self.grid_size:
            table = resize_position_table(self.position_embeddings, self.grid_size, grid)
            self.position_embeddings = nn.Parameter(table, self.position_embeddings.requires_grad)
        self.grid_size = grid


class DBotPreTrainedModel(VisionPreTrainedModel):
    """Initialisation, loading and resizing shared by all dBOT models."""

    config: DBotConfig
    base_model_prefix = "dbot"
    _no_split_modules = ["TransformerLayer"]
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_record_outputs = {"hidden_states": TransformerLayer, "attentions": SelfAttention}
    # What an encoder or a classifier leaves behind of a pre-training checkpoint: the decoder, and with mean pooling
    # the final norm, which fine-tuning replaces by a new one (`main_finetune.py`); and the pooler of a plain ViT.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^(dbot\.)?layernorm\.", r"^(dbot\.)?pooler\.dense\."]
    # A trainable table starts with the fixed one that such a checkpoint was trained with.
    _keys_to_ignore_on_load_missing = [r"embeddings\.position_embeddings$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialisation of the original code (`models_mae.py`)."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, SelfAttention):
            # The original draws them as one matrix of three times as many rows.
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                bound = (6 / (4 * projection.in_features)) ** 0.5
                init.uniform_(projection.weight, -bound, bound)
        elif isinstance(module, nn.Conv2d):
            init_like_torch(module.weight, module.bias)
            # As a linear layer of all pixels of a patch.
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
        elif isinstance(module, TransformerLayer) and module.lambda_1 is not None:
            init.constant_(module.lambda_1, self.config.layer_scale_init_value)
            init.constant_(module.lambda_2, self.config.layer_scale_init_value)

    def resize_position_tables(self, image_size: int | tuple[int, int]):
        """
        Sets the image size, and rebuilds a trainable position table for it as the original loader does before
        fine-tuning: bicubic to the size of the new grid. The parameter is a new one: an optimiser has to be made
        afterwards. (Fixed positions fit every size as they are.)

        Args:
            image_size (`int` or `(height, width)`): Size in pixels; the configuration is updated to it.

        Raises:
            ValueError: If the patch size does not divide it.
        """
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        patch_size = self.config.patch_size
        if len(sides) != 2 or any(side < patch_size or side % patch_size for side in sides):
            raise ValueError(f"image_size ({image_size}) must be a multiple of patch_size ({patch_size})")
        self.base_model.embeddings.resize((sides[0] // patch_size, sides[1] // patch_size))
        self.config.image_size = image_size


def noise_of_mask(bool_masked_pos: torch.Tensor) -> tuple[torch.Tensor, int]:
    """
    A noise `[B, N]` that keeps the patches outside of `bool_masked_pos` in row-major order, and their number k.

    Raises:
        ValueError: If the images differ in the number of their masked patches.
    """
    noise = bool_masked_pos.float()
    masked = noise.sum(dim=1)
    if (masked != masked[0]).any():
        raise ValueError(
            "bool_masked_pos must mask equally many patches of every image, "
            f"got {int(masked.min())} to {int(masked.max())}"
        )
    return noise, noise.shape[1] - int(masked[0])


class DBotModel(DBotPreTrainedModel):
    """
    The bare encoder, which sees all patches, or only those that a mask leaves. Without a mask `last_hidden_state`
    `[B, 1+N, D]` holds the CLS token and then the patches in row-major order.
    """

    def __init__(self, config: DBotConfig):
        super().__init__(config)
        self.embeddings = DBotEmbeddings(config)
        steps = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            [TransformerLayer(config, config.drop_path_rate * i / steps) for i in range(config.num_hidden_layers)]
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
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DBotModelOutput:
        r"""
        Args:
            pixel_values (`[B, C, H, W]`): Normalised images; H and W are any multiples of the patch size.
            noise (`[B, N]`, *optional*): A number per patch. The k = int(N·(1 - `config.mask_ratio`)) patches with the
                lowest ones are kept, in that order, and the others are not seen.
            bool_masked_pos (`bool [B, N]`, *optional*): Patches to remove, in place of `noise`: equally many of every
                image, whatever `config.mask_ratio` says. Counting them makes a GPU wait for the host.

        Raises:
            ValueError: If the number of channels, the image size or the shape of noise or mask does not fit, or if
                both of them are given.
        """
        if noise is not None and bool_masked_pos is not None:
            raise ValueError("noise and bool_masked_pos both say which patches are removed: give one of them")
        ids_keep = mask = ids_restore = None
        if noise is not None or bool_masked_pos is not None:
            height, width = (side // self.config.patch_size for side in pixel_values.shape[-2:])
            num_patches = height * width
            for name, given in (("noise", noise), ("bool_masked_pos", bool_masked_pos)):
                if given is not None and given.shape != (pixel_values.shape[0], num_patches):
                    raise ValueError(
                        f"{name} has shape {tuple(given.shape)}, "
                        f"the images give {(pixel_values.shape[0], num_patches)} (batch, patches)"
                    )
            if bool_masked_pos is not None:
                noise, num_kept = noise_of_mask(bool_masked_pos)
            else:
                # In double precision as in the original, where 20 · (1 - 0.9) is less than 2.
                num_kept = int(num_patches * (1 - self.config.mask_ratio))
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
        What a student learns to predict of this model (paper section 3): features `[B, 1+N, D]` of the whole image.

        Args:
            pixel_values (`[B, C, H, W]`): Normalised images, the same that the student sees a part of.
            layernorm (`bool`, defaults to `False`): Apply the final norm, as no published command does (`tlayernorm`).
        """
        hidden_states = self.embeddings(pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype))
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.layernorm(hidden_states) if layernorm else hidden_states


class DBotBackbone(VisionBackbone, DBotPreTrainedModel):
    """
    The encoder as a backbone: feature maps `[B, D, h, w]` of the stages in `config.out_features`.

    Raises:
        ValueError: If the encoder has no blocks.
    """

    def __init__(self, config: DBotConfig):
        super().__init__(config)
        if config.num_hidden_layers == 0:
            raise ValueError("a backbone needs blocks, num_hidden_layers is 0")
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.dbot = DBotModel(config)
        self.post_init()


class DBotForImageClassification(DBotPreTrainedModel):
    """
    The fine-tuning model: encoder with a linear classifier on the normed mean patch (`config.use_mean_pooling`, the
    published choice) or on the CLS token.

    Fine-tuning starts from a pre-training checkpoint like this; what is new then is the classifier and, with mean
    pooling, the norm before it:

    ```python
    model = DBotForImageClassification.from_pretrained(
        folder, use_mean_pooling=True, trainable_position_embeddings=True, drop_path_rate=0.1, num_labels=1000
    )
    model.resize_position_tables(448)  # for another image size than that of pre-training
    ```
    """

    def __init__(self, config: DBotConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dbot = DBotModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self and self.num_labels > 0:
            init.trunc_normal_(self.classifier.weight, std=0.01)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values (`[B, C, H, W]`): Normalised images; H and W are any multiples of the patch size.
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
]
