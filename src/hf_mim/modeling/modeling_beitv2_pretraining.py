"""
Pre-training of BEiT v2 ([Peng et al., 2022](https://arxiv.org/abs/2208.06366)): the model predicts the codes that a
visual tokenizer assigns to the masked patches, once from the encoder's output and once through the CLS token (patch
aggregation). Alternatively it predicts a teacher's features, as the symmetric variant of dBOT does ([Liu et al.,
2022](https://arxiv.org/abs/2209.03917), branch `beit`).

Shapes: B images, N patches, D channels, M masked patches, K codes (with `config.regression_loss`, K channels of a
feature).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_beitv2 import Beitv2Config
from .layers import at_least_float32, init_like_torch, wanted_tokens
from .modeling_beitv2 import Beitv2Layer, Beitv2Model, Beitv2ModelOutput, Beitv2PreTrainedModel


@dataclass
class Beitv2ForPreTrainingOutput(ModelOutput):
    """
    Output of [`Beitv2ForPreTraining`]. Masked patches stand in the row-major order of `bool_masked_pos`.

    Args:
        loss (`[]`, with labels): `loss_mim + loss_mim_cls`, or `loss_mim` alone without a head branch.
        loss_mim (`[]`, with labels): Mean cross-entropy of `logits`, or their `config.regression_loss`.
        loss_mim_cls (`[]`, with labels and a head branch): The same for `logits_cls`.
        accuracy_mim (`[]`, with codes as labels): Fraction of masked patches whose most likely code is the label.
        accuracy_mim_cls (`[]`, with codes as labels and a head branch): The same for `logits_cls`.
        logits (`[M, K]`): Logits of the codes (or features) of the masked patches, from the encoder's output.
        logits_cls (`[M, K]`, with a head branch): The same from the head branch.
        hidden_states (`tuple`, *optional*): Hidden states of the encoder, one per layer.
        attentions (`tuple`, *optional*): Attention weights of the encoder, one per layer.
    """

    loss: torch.Tensor | None = None
    loss_mim: torch.Tensor | None = None
    loss_mim_cls: torch.Tensor | None = None
    accuracy_mim: torch.Tensor | None = None
    accuracy_mim_cls: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    logits_cls: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class Beitv2ForPreTraining(Beitv2PreTrainedModel):
    """
    Encoder, head branch and linear prediction of codes; given the codes, the forward pass returns the loss.

    Raises:
        ValueError: If `config.early_layers` is larger than `num_hidden_layers`, or `use_mean_pooling`, which is for
            fine-tuning, is set.
    """

    pretraining_init = True

    def __init__(self, config: Beitv2Config):
        super().__init__(config)
        early, depth = config.early_layers, config.num_hidden_layers
        if config.head_layers > 0 and early > depth:
            raise ValueError(f"early_layers ({early}) must be at most num_hidden_layers ({depth})")
        if config.use_mean_pooling:
            raise ValueError("use_mean_pooling is for fine-tuning: pre-training needs the final norm of every token")
        self.beitv2 = Beitv2Model(config, pretraining_init=True)
        self.lm_head = nn.Linear(config.hidden_size, config.prediction_dim)
        # The blocks of the head branch are numbered from `early` on (`modeling_pretrain.py`).
        steps = max(depth, early + config.head_layers) - 1
        numbers = range(early + 1, early + config.head_layers + 1)
        self.head_layers = nn.ModuleList(
            [Beitv2Layer(config, config.drop_path_rate * (number - 1) / max(steps, 1), number) for number in numbers]
        )
        self.head_layernorm = self.head_lm_head = None
        if config.head_layers > 0 and not config.shared_lm_head:
            self.head_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.head_lm_head = nn.Linear(config.hidden_size, config.prediction_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        # The encoder initializes its own blocks. In the head branch, the original keeps PyTorch's initialization, with
        # smaller weights in the output layers.
        if isinstance(module, Beitv2Layer):
            attention, mlp, scale = module.attention, module.mlp, (2 * module.number) ** -0.5
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                init_like_torch(projection.weight, None)
            init_like_torch(attention.o_proj.weight, attention.o_proj.bias, scale)
            init_like_torch(mlp.fc1.weight, mlp.fc1.bias)
            init_like_torch(mlp.fc2.weight, mlp.fc2.bias, scale)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        mask_indices: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Beitv2ForPreTrainingOutput:
        r"""
        Compute the predictions for the masked patches and, given labels, the losses.

        Args:
            pixel_values (`[B, C, H, W]`): Normalized images.
            bool_masked_pos (`bool [B, N]`, *optional*): Masked patches, which are predicted. Without it, no patch is
                masked.
            labels (`int64 [B, N]`, *optional*): Code of each patch, in [0, K); only the masked patches are used. With
                `config.regression_loss`, the features `float [B, N, K]`.
            mask_indices (`int64 [M]`, *optional*): Positions of the true entries in the flattened `bool_masked_pos`.
                Computed when not given, which synchronizes a GPU with the host.

        Raises:
            ValueError: If there are labels but no mask, or the shape of the mask or of the labels does not match.
        """
        batch_size, num_patches = pixel_values.shape[0], self._num_patches(pixel_values)
        if labels is not None:
            if bool_masked_pos is None:
                raise ValueError("labels need bool_masked_pos: only masked patches are predicted")
            regression = self.config.regression_loss is not None
            expected = (batch_size, num_patches, self.config.prediction_dim)[: 3 if regression else 2]
            if labels.shape != expected:
                raise ValueError(
                    f"labels have shape {tuple(labels.shape)}, expected {expected} "
                    f"({'batch, patches, target_dim' if regression else 'batch, patches'})"
                )
        if mask_indices is None:
            if bool_masked_pos is None:
                mask_indices = torch.zeros(0, dtype=torch.int64, device=pixel_values.device)
            else:
                mask_indices = bool_masked_pos.flatten().nonzero().squeeze(1)

        wanted = wanted_tokens(batch_size, num_patches, mask_indices)
        outputs = self.beitv2(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            token_indices=wanted,
            patch_aggregation=len(self.head_layers) > 0,
            **kwargs,
        )
        logits, logits_cls = self.lm_head(outputs.last_hidden_state[batch_size:]), None
        if len(self.head_layers) > 0:
            logits_cls = self._head_branch(pixel_values, wanted[batch_size:], outputs, **kwargs)

        loss = loss_mim = loss_mim_cls = accuracy_mim = accuracy_mim_cls = None
        if labels is not None:
            wanted_labels = labels.flatten(0, 1)[mask_indices]
            loss_mim, accuracy_mim = self._loss_and_accuracy(logits, wanted_labels)
            loss = loss_mim
            if logits_cls is not None:
                loss_mim_cls, accuracy_mim_cls = self._loss_and_accuracy(logits_cls, wanted_labels)
                loss = loss_mim + loss_mim_cls
        return Beitv2ForPreTrainingOutput(
            loss=loss,
            loss_mim=loss_mim,
            loss_mim_cls=loss_mim_cls,
            accuracy_mim=accuracy_mim,
            accuracy_mim_cls=accuracy_mim_cls,
            logits=logits,
            logits_cls=logits_cls,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss_and_accuracy(
        self, logits: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.config.regression_loss is None:
            return code_loss(logits, labels)
        return feature_loss(logits, labels, self.config.regression_loss), None

    def _num_patches(self, pixel_values: torch.Tensor) -> int:
        height, width = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        return height * width

    def _head_branch(
        self, pixel_values: torch.Tensor, masked: torch.Tensor, outputs: Beitv2ModelOutput, **kwargs
    ) -> torch.Tensor:
        """Predict `[M, K]` for the tokens at `masked`, from the early patches and the last CLS token."""
        grid = tuple(side // self.config.patch_size for side in pixel_values.shape[-2:])
        hidden_states = outputs.aggregation_hidden_states
        for layer in self.head_layers[:-1]:
            hidden_states = layer(hidden_states, outputs.position_bias, grid=grid, **kwargs)
        hidden_states = self.head_layers[-1](hidden_states, outputs.position_bias, masked, grid=grid, **kwargs)
        norm = self.beitv2.layernorm if self.head_layernorm is None else self.head_layernorm
        lm_head = self.lm_head if self.head_lm_head is None else self.head_lm_head
        return lm_head(norm(hidden_states.squeeze(1)))


def code_loss(logits: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the mean cross-entropy and the accuracy, both 0 if no patch is masked.

    Args:
        logits (`[M, K]`): Logits of the masked patches.
        codes (`int64 [M]`): Codes of the same patches.
    """
    count = max(codes.shape[0], 1)
    loss = nn.functional.cross_entropy(at_least_float32(logits), codes, reduction="sum") / count
    return loss, (logits.detach().argmax(dim=-1) == codes).sum(dtype=loss.dtype) / count


def feature_loss(prediction: torch.Tensor, features: torch.Tensor, kind: str) -> torch.Tensor:
    """
    Return the mean regression loss, 0 if no patch is masked (`engine_for_pretraining.py`, dBOT's branch `beit`).

    Args:
        prediction (`[M, K]`): Predictions for the masked patches.
        features (`[M, K]`): The teacher's features of the same patches.
        kind (`str`): `"negcosine"`, one minus the cosine similarity of each row; or `"l2"`, `"l1"` or `"smooth_l1"`
            (β = 2), computed for each element.
    """
    prediction, features = at_least_float32(prediction), at_least_float32(features)
    if kind == "negcosine":
        errors = 1 - nn.functional.cosine_similarity(prediction, features, dim=1, eps=1e-6)
    elif kind == "l2":
        errors = nn.functional.mse_loss(prediction, features, reduction="none")
    elif kind == "l1":
        errors = nn.functional.l1_loss(prediction, features, reduction="none")
    else:
        errors = nn.functional.smooth_l1_loss(prediction, features, reduction="none", beta=2.0)
    return errors.sum() / max(errors.numel(), 1)


__all__ = ["Beitv2ForPreTraining", "Beitv2ForPreTrainingOutput", "code_loss"]
