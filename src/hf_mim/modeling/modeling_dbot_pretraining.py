"""
Pre-training of dBOT ([Liu et al., 2022](https://arxiv.org/abs/2209.03917)): the encoder processes a quarter of the
patches, and a decoder predicts a frozen teacher's features of the CLS token and of the other patches.

Shapes: B images, N patches, of which k are kept and M = N - k are removed, D channels, T channels of the target.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_dbot import DBotConfig
from .layers import TransformerLayer, at_least_float32
from .modeling_dbot import DBotModel, DBotPreTrainedModel, sincos_positions


@dataclass
class DBotForPreTrainingOutput(ModelOutput):
    """
    Output of [`DBotForPreTraining`].

    Args:
        loss (`[]`, with labels): Mean smooth-L1 loss of the B·(1+M) predicted tokens, or of the B·M patches among them
            if the labels have no CLS token.
        loss_cls (`[]`, with labels that have a CLS token): Mean loss of the CLS tokens.
        loss_patch (`[]`, with labels): Mean loss of the removed patches; 0 if there are none.
        prediction (`[B, 1+M, T]`): Features of the CLS token and of the removed patches, in row-major order.
        cls_tokens (`[B, D]`): CLS tokens of the encoder, after the final norm.
        mask (`bool [B, N]`): True where a patch was removed.
        ids_restore (`int64 [B, N]`): Rank of each patch in the order of the noise.
        hidden_states (`tuple`, *optional*): Hidden states of the encoder, one per layer.
        attentions (`tuple`, *optional*): Attention weights of the encoder, one per layer.
    """

    loss: torch.Tensor | None = None
    loss_cls: torch.Tensor | None = None
    loss_patch: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    cls_tokens: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def _decoder_config(config: DBotConfig) -> DBotConfig:
    """Return a copy of the configuration with the sizes of the decoder in the fields that its blocks read."""
    decoder_config = copy.deepcopy(config)
    decoder_config.hidden_size = config.decoder_hidden_size
    decoder_config.num_hidden_layers = config.decoder_num_hidden_layers
    decoder_config.num_attention_heads = config.decoder_num_attention_heads
    decoder_config.intermediate_size = config.decoder_intermediate_size
    if config.decoder_drop_path_rate is not None:
        decoder_config.drop_path_rate = config.decoder_drop_path_rate
    return decoder_config


class DBotDecoder(DBotPreTrainedModel):
    """Transformer that predicts features from the encoder's tokens and a mask token for each removed patch."""

    def __init__(self, config: DBotConfig):
        super().__init__(_decoder_config(config))
        assert config.target_dim is not None
        width, depth = self.config.hidden_size, self.config.num_hidden_layers
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        rates = [self.config.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList([TransformerLayer(self.config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.prediction = nn.Linear(width, config.target_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self:
            init.normal_(self.mask_token, std=self.config.initializer_range)

    def forward(
        self,
        hidden_states: torch.Tensor,
        ids_restore: torch.Tensor,
        grid: tuple[int, int],
        token_indices: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """
        Predict features.

        Args:
            hidden_states (`[B, 1+k, D]`): Output of the encoder.
            ids_restore (`int64 [B, N]`): Rank of each patch in the order of the noise; ranks below k are kept.
            grid (`tuple[int, int]`): Rows and columns of patches.
            token_indices (`int64 [R]`, *optional*): The only tokens to predict, as positions in the flattened
                `[B, 1+N]` sequences. The last block's MLP, the norm and the prediction are only computed for these.

        Returns:
            `[B, 1+N, T]` with the patches in row-major order, or `[R, 1, T]` with `token_indices`.
        """
        tokens = self.embed(hidden_states)
        batch_size, num_patches = ids_restore.shape
        removed = self.mask_token.expand(batch_size, 1 + num_patches - tokens.shape[1], -1).to(tokens.dtype)
        patches = torch.cat((tokens[:, 1:], removed), dim=1)
        patches = patches.gather(1, ids_restore.unsqueeze(-1).expand(-1, -1, patches.shape[2]))
        tokens = torch.cat((tokens[:, :1], patches), dim=1)
        tokens = tokens + sincos_positions(tokens.shape[2], grid, tokens.device).to(self.mask_token.dtype)
        for layer in self.layers[:-1]:
            tokens = layer(tokens, **kwargs)
        tokens = self.layers[-1](tokens, None, token_indices, **kwargs)
        return self.prediction(self.layernorm(tokens))


def normalize_targets(targets: torch.Tensor) -> torch.Tensor:
    """Normalize each token of `[..., T]` to mean 0 and (unbiased) variance 1 (`norm_feature_loss`)."""
    variance, mean = torch.var_mean(targets, dim=-1, keepdim=True)
    return (targets - mean) / (variance + 1e-6).sqrt()


class DBotForPreTraining(DBotPreTrainedModel):
    """
    Encoder and decoder; given the teacher's features, the forward pass returns the loss.

    Raises:
        ValueError: If `config.use_mean_pooling`, which is for fine-tuning, is set.
    """

    def __init__(self, config: DBotConfig):
        super().__init__(config)
        if config.use_mean_pooling:
            raise ValueError("use_mean_pooling is for fine-tuning: pre-training needs the final norm of every token")
        self.dbot = DBotModel(config)
        self.decoder = DBotDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DBotForPreTrainingOutput:
        r"""
        Predict the features of the CLS token and of the removed patches and, given labels, compute the losses.

        Args:
            pixel_values (`[B, C, H, W]`): Normalized images; H and W are any multiples of the patch size.
            noise (`[B, N]`, *optional*): One number per patch; the fraction 1 - `config.mask_ratio` with the lowest
                numbers is kept. Drawn uniformly from [0, 1) if there is no mask either.
            labels (`[B, 1+N, T]`, *optional*): The teacher's features of the CLS token and of all patches in row-major
                order, before normalization (`config.norm_targets`); `[B, N, T]` if the teacher has no CLS token.
            bool_masked_pos (`bool [B, N]`, *optional*): Patches to remove, instead of `noise`; see [`DBotModel`].

        Raises:
            ValueError: If the shape of images, noise, mask or labels does not fit the model.
        """
        batch_size = pixel_values.shape[0]
        grid = (pixel_values.shape[2] // self.config.patch_size, pixel_values.shape[3] // self.config.patch_size)
        num_patches = grid[0] * grid[1]
        shapes = [(batch_size, tokens, self.config.target_dim) for tokens in (1 + num_patches, num_patches)]
        if labels is not None and labels.shape not in shapes:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, expected {shapes[0]} (batch, CLS token and patches, "
                f"target_dim) or, without CLS tokens, {shapes[1]}"
            )
        if noise is None and bool_masked_pos is None:
            noise = torch.rand(batch_size, num_patches, device=pixel_values.device)
        outputs = self.dbot(pixel_values, noise, bool_masked_pos, **kwargs)

        num_removed = 1 + num_patches - outputs.last_hidden_state.shape[1]
        removed = outputs.mask.byte().argsort(dim=1, descending=True, stable=True)[:, :num_removed]
        wanted = nn.functional.pad(removed + 1, (1, 0))
        wanted = wanted + (1 + num_patches) * torch.arange(batch_size, device=wanted.device)[:, None]
        prediction = self.decoder(
            outputs.last_hidden_state, outputs.ids_restore, grid, token_indices=wanted.flatten(), **kwargs
        ).view(batch_size, 1 + num_removed, -1)

        loss = loss_cls = loss_patch = None
        if labels is not None:
            has_cls_tokens = labels.shape[1] > num_patches
            if not has_cls_tokens:
                labels = nn.functional.pad(labels, (0, 0, 1, 0))
            targets = at_least_float32(labels.flatten(0, 1)[wanted])
            if self.config.norm_targets:
                targets = normalize_targets(targets)
            predicted = at_least_float32(prediction)
            errors = nn.functional.smooth_l1_loss(predicted, targets, beta=2.0, reduction="none").mean(dim=2)
            loss = loss_patch = errors[:, 1:].sum() / max(batch_size * num_removed, 1)
            if has_cls_tokens:
                loss, loss_cls = errors.mean(), errors[:, 0].mean()
        return DBotForPreTrainingOutput(
            loss=loss,
            loss_cls=loss_cls,
            loss_patch=loss_patch,
            prediction=prediction,
            cls_tokens=outputs.last_hidden_state[:, 0],
            mask=outputs.mask,
            ids_restore=outputs.ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def reinitialize(self):
        """
        Initialize all weights again, in place, as the original does at the beginning of a stage (`main_pretrain.py`).
        Only the bias of the patch projection is kept. Random numbers come from the default generator.
        """
        kept = self.dbot.embeddings.patch_embeddings.projection.bias
        for parameter in self.parameters():
            # `initialization` does not change parameters with this mark.
            parameter._is_hf_initialized = parameter is kept  # type: ignore[attr-defined]  # set by transformers too
        # Blocks initialize some tensors of their submodules again, so the submodules come first.
        for module in reversed(list(self.modules())):
            owner = self.decoder if module is self.decoder else self
            owner._init_weights(module)
        for parameter in self.parameters():
            del parameter._is_hf_initialized  # type: ignore[attr-defined]  # set above


__all__ = ["DBotDecoder", "DBotForPreTraining", "DBotForPreTrainingOutput", "normalize_targets"]
