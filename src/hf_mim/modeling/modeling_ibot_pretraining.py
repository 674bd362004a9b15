"""
Pre-training of iBOT ([Zhou et al., 2022](https://arxiv.org/abs/2111.07832)): encoder, projection head and loss.

Shapes: B images, G global and L local views, N patches, D channels, K and P prototypes, M masked patches.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_ibot import IBotConfig
from .head_ibot import IBotHead
from .layers import at_least_float32, wanted_tokens
from .modeling_ibot import IBotModel, IBotPreTrainedModel


@dataclass
class IBotForPreTrainingOutput(ModelOutput):
    """
    Output of [`IBotForPreTraining`].

    Args:
        loss (`[]`, with targets): `loss_cls + loss_patch`.
        loss_cls (`[]`, with targets): CLS loss times `config.cls_loss_weight`.
        loss_patch (`[]`, with targets): Patch loss times `config.patch_loss_weight`.
        cls_logits (`[B, G, K]`): Logits of the CLS tokens of the (masked) global views.
        patch_logits (`[M, P]`): Logits of the masked patches, in the row-major order of `bool_masked_pos`.
        local_cls_logits (`[B, L, K]`, with local views): Logits of the CLS tokens of the local views.
        hidden_states (`tuple`, *optional*): Hidden states of the global views, one per layer.
        attentions (`tuple`, *optional*): Attention weights of the global views, one per layer.
    """

    loss: torch.Tensor | None = None
    loss_cls: torch.Tensor | None = None
    loss_patch: torch.Tensor | None = None
    cls_logits: torch.Tensor | None = None
    patch_logits: torch.Tensor | None = None
    local_cls_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class IBotTeachingOutput(ModelOutput):
    """
    Output of [`IBotForPreTraining.teach`].

    Args:
        cls_tokens (`[B, G, D]`): CLS tokens after the final norm.
        cls_logits (`[B, G, K]`): Logits of the CLS tokens.
        patch_logits (`[M, P]`): Logits of the patches at `mask_indices`.
        mean_patch_logit (`[P]`, *optional*): Mean logits of all patches.
    """

    cls_tokens: torch.Tensor | None = None
    cls_logits: torch.Tensor | None = None
    patch_logits: torch.Tensor | None = None
    mean_patch_logit: torch.Tensor | None = None


class IBotForPreTraining(IBotPreTrainedModel):
    """Encoder and projection head; given the teacher's targets, the forward pass returns the iBOT loss."""

    encoder_class: type[IBotPreTrainedModel] = IBotModel

    def __init__(self, config: IBotConfig):
        super().__init__(config)
        self.ibot = self.encoder_class(config)
        self.head = IBotHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        local_pixel_values: torch.Tensor | None = None,
        target_cls: torch.Tensor | None = None,
        target_patch: torch.Tensor | None = None,
        mask_indices: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> IBotForPreTrainingOutput:
        r"""
        Compute the student's logits and, given the targets, the losses.

        Args:
            pixel_values (`[B, G, C, H, W]`): Normalized global views.
            bool_masked_pos (`bool [B, G, N]`): Masked patches of the global views.
            local_pixel_values (`[B, L, C, h, w]`, *optional*): Normalized local views, never masked.
            target_cls (`[B, G, K]`, *optional*): Teacher probabilities of the global views' CLS tokens.
            target_patch (`[M, P]`, *optional*): Teacher probabilities of the masked patches, in the row-major order of
                `bool_masked_pos`.
            mask_indices (`int64 [M]`, *optional*): Positions of the true entries in the flattened `bool_masked_pos`.
                Computed when not given, which synchronizes a GPU with the host.

        Raises:
            ValueError: If `pixel_values` is not 5-dimensional, the channels or the size of the views do not fit the
                encoder, the shape of the mask does not match the tokens, or only one of the two targets is given.
        """
        if pixel_values.ndim != 5:
            raise ValueError(f"pixel_values must be [B, G, C, H, W], got shape {tuple(pixel_values.shape)}")
        # The Swin encoder also accepts coarser masks, but the losses do not.
        expected = (*pixel_values.shape[:2], self._num_patches(pixel_values))
        if bool_masked_pos.shape != expected:
            raise ValueError(
                f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}, expected {expected} (batch, views, tokens)"
            )
        if (target_cls is None) != (target_patch is None):
            raise ValueError("target_cls and target_patch must be given together")
        if mask_indices is None:
            mask_indices = bool_masked_pos.flatten().nonzero().squeeze(1)
        batch_size, num_views = pixel_values.shape[0], pixel_values.shape[:2].numel()

        wanted = [wanted_tokens(num_views, bool_masked_pos.shape[2], mask_indices)]
        outputs = self._encode(pixel_values, wanted[0], bool_masked_pos=bool_masked_pos.flatten(0, 1), **kwargs)
        tokens = [outputs.last_hidden_state]
        if local_pixel_values is not None:
            num_local = local_pixel_values.shape[:2].numel()
            wanted.append(wanted_tokens(num_local, self._num_patches(local_pixel_values), mask_indices[:0]))
            tokens.append(self._encode(local_pixel_values, wanted[1]).last_hidden_state)
        # All views in one call, so that the weights of the head are normalized and read once.
        logits, patch_logits = self.head(tokens, wanted, num_views)
        cls_logits = logits[:num_views].unflatten(0, (batch_size, -1))
        all_cls_logits, local_cls_logits = cls_logits, None
        if local_pixel_values is not None:
            local_cls_logits = logits[num_views:].unflatten(0, (batch_size, -1))
            all_cls_logits = torch.cat((cls_logits, local_cls_logits), dim=1)

        loss = loss_cls = loss_patch = None
        if target_cls is not None and target_patch is not None:
            temperature = self.config.student_temperature
            loss_cls = self.config.cls_loss_weight * cls_loss(all_cls_logits, target_cls, temperature)
            loss_patch = self.config.patch_loss_weight * patch_loss(
                patch_logits, target_patch, bool_masked_pos, temperature
            )
            loss = loss_cls + loss_patch
        return IBotForPreTrainingOutput(
            loss=loss,
            loss_cls=loss_cls,
            loss_patch=loss_patch,
            cls_logits=cls_logits,
            patch_logits=patch_logits,
            local_cls_logits=local_cls_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def teach(
        self, pixel_values: torch.Tensor, mask_indices: torch.Tensor, mean_patch_logit: bool = False
    ) -> IBotTeachingOutput:
        """
        Compute the teacher's outputs for the targets, from the unmasked views (paper section 3).

        Args:
            pixel_values (`[B, G, C, H, W]`): Normalized global views.
            mask_indices (`int64 [M]`): Patches that the student predicts, as positions in the flattened `[B, G, N]`
                grid.
            mean_patch_logit (`bool`, defaults to `False`): Also return the mean logits of all patches, predicted or
                not, with which the original updates the center of its targets.
        """
        views = pixel_values.shape[:2]
        wanted = wanted_tokens(views.numel(), self._num_patches(pixel_values), mask_indices)
        tokens = self._encode(pixel_values, wanted, mean_patch_logit).last_hidden_state
        assert tokens is not None
        cls_tokens = tokens[:, 0] if tokens.ndim == 3 else tokens[: views.numel()]
        if mean_patch_logit:
            cls_logits, patch_logits, mean = self.head.forward_with_mean(tokens, wanted)
        else:
            (cls_logits, patch_logits), mean = self.head([tokens], [wanted], views.numel()), None
        return IBotTeachingOutput(
            cls_tokens=cls_tokens.unflatten(0, views),
            cls_logits=cls_logits.unflatten(0, views),
            patch_logits=patch_logits,
            mean_patch_logit=mean,
        )

    def _num_patches(self, views: torch.Tensor) -> int:
        """Number of patch tokens that the encoder returns for each of the views `[B, V, C, H, W]`."""
        height, width = (math.ceil(side / self.config.token_stride) for side in views.shape[-2:])
        return height * width

    def _encode(
        self, views: torch.Tensor, wanted: torch.Tensor, all_tokens: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encode views `[B, V, C, H, W]` to the tokens at `wanted`, or to all if asked or needed by batch norm."""
        token_indices = None if all_tokens or self.head.has_batch_norm else wanted
        return self.ibot(views.flatten(0, 1), token_indices=token_indices, **kwargs)


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    # Under autocast, the logits are in half precision, which would cost the loss three digits.
    return nn.functional.log_softmax(at_least_float32(logits) / temperature, dim=-1)


def cls_loss(cls_logits: torch.Tensor, target_cls: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    Cross-entropy between the teacher's CLS distribution of each global view and the student's for every *other* view.

    Args:
        cls_logits (`[B, V, K]`): Student logits of all views, global views first.
        target_cls (`[B, G, K]`): Teacher probabilities of the global views.
        temperature (`float`): Temperature of the student's softmax.

    Returns:
        `[]`: the mean over the `G·(V−1)` pairs of views and over the batch.

    Raises:
        ValueError: If there is only one view, and therefore no pair.
    """
    num_views, num_globals = cls_logits.shape[1], target_cls.shape[1]
    if num_views < 2:
        raise ValueError("the CLS loss compares different views of an image: it needs at least two of them")
    log_probs = _log_softmax(cls_logits, temperature)
    # The sum over all pairs factorizes; the pairs of a view with itself are subtracted.
    all_pairs = (target_cls.sum(1) * log_probs.sum(1)).sum(-1)
    same_view = (target_cls * log_probs[:, :num_globals]).sum((1, 2))
    return -(all_pairs - same_view).mean() / (num_globals * (num_views - 1))


def patch_loss(
    patch_logits: torch.Tensor, target_patch: torch.Tensor, bool_masked_pos: torch.Tensor, temperature: float
) -> torch.Tensor:
    """
    Cross-entropy between teacher and student on the masked patches, averaged within each view first.

    A view without masked patches counts as 0 in the mean over views. With the standard masks, which leave half of the
    views unmasked, the loss is therefore about half of the mean over masked patches.

    Args:
        patch_logits (`[M, P]`): Student logits of the masked patches, in the row-major order of `bool_masked_pos`.
        target_patch (`[M, P]`): Teacher probabilities of the same patches.
        bool_masked_pos (`bool [B, G, N]`): Masked patches; M of them are true.
        temperature (`float`): Temperature of the student's softmax.

    Returns:
        `[]`; 0 if no patch is masked.
    """
    cross_entropy = -(target_patch * _log_softmax(patch_logits, temperature)).sum(-1)
    masked_per_view = bool_masked_pos.flatten(0, 1).sum(-1)
    weights = torch.repeat_interleave(
        masked_per_view.clamp(min=1).to(cross_entropy.dtype).reciprocal(),
        masked_per_view,
        output_size=cross_entropy.shape[0],
    )
    return (cross_entropy * weights).sum() / masked_per_view.shape[0]


__all__ = ["IBotForPreTraining", "IBotForPreTrainingOutput", "IBotTeachingOutput", "cls_loss", "patch_loss"]
