"""
The VQ-KD tokenizer of BEiT v2 ([Peng et al., 2022](https://arxiv.org/abs/2208.06366), section 3.1).

Shapes: B images, N patches in a grid of h x w, D channels, K codes, C channels of a code, T channels of the target.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_beitv2 import Beitv2Config
from .configuration_vqkd import VQKDConfig
from .modeling_beitv2 import Beitv2Model
from .modeling_common import VisionPreTrainedModel
from .quantizer_vqkd import VQKDQuantizer


@dataclass
class VQKDOutput(ModelOutput):
    """
    Output of [`VQKDModel`].

    Args:
        loss (`[]`, when labels are given): `loss_feature + loss_quantizer`.
        loss_feature (`[]`, when labels are given): Mean of 1 minus the cosine of a patch's feature and its label.
        loss_quantizer (`[]`): Commitment loss: how far the encoder's output is from its codes.
        codes (`int64 [B, N]`): The patches' codes.
        features (`[B, N, T]`): What the decoder makes of the codes.
        hidden_states, attentions: Of the encoder, one per layer, when asked for.
    """

    loss: torch.FloatTensor | None = None
    loss_feature: torch.FloatTensor | None = None
    loss_quantizer: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    features: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def _transformer_config(config: VQKDConfig, **sizes) -> Beitv2Config:
    """Encoder and decoder: absolute positions, none that are relative, no layer scale, the output normalised."""
    return Beitv2Config(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        hidden_act=config.hidden_act,
        initializer_range=config.initializer_range,
        layer_norm_eps=config.layer_norm_eps,
        use_absolute_position_embeddings=True,
        use_shared_relative_position_bias=False,
        layer_scale_init_value=0.0,
        attn_implementation=config._attn_implementation,
        **sizes,
    )


class VQKDModel(VisionPreTrainedModel):
    """
    Encoder, codebook and decoder. The encoder sees an image whose values lie in -1..1 and gives every patch a code;
    the decoder predicts a teacher's features of all patches from the codes alone (`modeling_vqkd.py`).

    In training mode a forward pass collects what `update_codebook` needs, once per step of the optimiser; nothing
    changes in eval mode.
    """

    config: VQKDConfig
    base_model_prefix = "vqkd"
    _no_split_modules = ["Beitv2Layer"]
    # The nearest code of 8,192 wants all digits, and in bfloat16 a moving average stands still.
    _keep_in_fp32_modules_strict = ["encode_task_layer", "quantizer"]
    # A codebook may come without: its idle codes are counted from then on.
    _keys_to_ignore_on_load_missing = [r"quantizer\.idle_steps"]

    def __init__(self, config: VQKDConfig):
        super().__init__(config)
        self.encoder = Beitv2Model(
            _transformer_config(
                config,
                num_hidden_layers=config.num_hidden_layers,
                image_size=config.image_size,
                patch_size=config.patch_size,
                num_channels=config.num_channels,
            ),
            use_mask_token=False,
        )
        self.encode_task_layer = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.Tanh(),
            nn.Linear(config.hidden_size, config.codebook_dim),
        )
        self.quantizer = VQKDQuantizer(config)
        self.decoder = Beitv2Model(
            _transformer_config(
                config,
                num_hidden_layers=config.decoder_num_hidden_layers,
                image_size=config.grid_size,
                patch_size=1,
                num_channels=config.codebook_dim,
            ),
            use_mask_token=False,
        )
        self.decode_task_layer = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.Tanh(),
            nn.Linear(config.hidden_size, config.target_dim),
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialisation of the original code; encoder and decoder initialise themselves."""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, VQKDQuantizer):
            if self.config.kmeans_init:
                init.zeros_(module.codebook)
            else:
                init.normal_(module.codebook)
                init.copy_(module.codebook, nn.functional.normalize(module.codebook, dim=1))
            init.zeros_(module.usage)
            init.constant_(module.initialized, not self.config.kmeans_init)
            init.zeros_(module.idle_steps)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> VQKDOutput:
        r"""
        Args:
            pixel_values (`[B, C, H, W]`): Images with values in -1..1; H and W are any multiples of the patch size.
            labels (`[B, N, T]`, *optional*): The teacher's features of the patches.

        Raises:
            ValueError: If shapes do not fit, for pixels of integers, or if there is no codebook yet in eval mode.
        """
        _check_scaled(pixel_values)
        for name in ("output_hidden_states", "output_attentions"):
            # Encoder and decoder have configurations of their own.
            kwargs.setdefault(name, getattr(self.config, name))
        outputs = self.encoder(pixel_values, **kwargs)
        quantized, codes, loss_quantizer = self.quantizer(self._to_codebook(outputs.last_hidden_state))
        features = self._decode(quantized, self._grid_of(pixel_values))
        loss = loss_feature = None
        if labels is not None:
            if labels.shape != features.shape:
                raise ValueError(
                    f"labels have shape {tuple(labels.shape)}, the features {tuple(features.shape)} (batch, patches, "
                    "target_dim)"
                )
            loss_feature = (1 - _cosine(features, labels)).mean()
            loss = loss_feature + loss_quantizer
        return VQKDOutput(
            loss=loss,
            loss_feature=loss_feature,
            loss_quantizer=loss_quantizer,
            codes=codes,
            features=features,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Codes `int64 [B, N]`, in row-major order, of images `[B, C, H, W]` with values in -1..1.

        Raises:
            ValueError: If the size of the images does not fit, for pixels of integers, or if there is no codebook yet.
        """
        _check_scaled(pixel_values)
        return self.quantizer.encode(self._to_codebook(self.encoder(pixel_values).last_hidden_state))

    def decode(self, codes: torch.Tensor, grid_size: tuple[int, int] | None = None) -> torch.Tensor:
        """
        Features `[B, N, T]` that the decoder makes of codes.

        Args:
            codes (`int64 [B, N]`): In the row-major order of the grid.
            grid_size (`(h, w)`, *optional*): Rows and columns; those of `config.image_size` when not given.

        Raises:
            ValueError: If the codes do not fill the grid, for a code that there is not (on the CPU; other devices do
                not wait for this check), or if there is no codebook yet.
        """
        grid_size = self.config.grid_size if grid_size is None else grid_size
        if codes.ndim != 2 or codes.shape[1] != grid_size[0] * grid_size[1]:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} do not fill a grid of {grid_size[0]}x{grid_size[1]}: give "
                "[batch, patches], and their rows and columns as grid_size"
            )
        self.quantizer.check_initialized()
        num_codes = self.config.codebook_size
        if codes.device.type == "cpu" and not torch.compiler.is_compiling() and codes.numel():
            lowest, highest = codes.aminmax()
            if lowest < 0 or highest >= num_codes:
                raise ValueError(f"codes must lie in 0..{num_codes - 1}, got {lowest} to {highest}")
        return self._decode(self.quantizer.codebook[codes], grid_size)

    def update_codebook(self) -> torch.Tensor:
        """
        Moves the codebook by what the forward passes in training mode since the last call have collected, in all
        processes, which must all call this; gives how often each code was used, `int64 [K]`. See [`VQKDQuantizer`].
        """
        return self.quantizer.update_codebook()

    def _grid_of(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        height, width = pixel_values.shape[-2:]
        return height // self.config.patch_size, width // self.config.patch_size

    def _to_codebook(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, 1+N, D]` to patches `[B, N, C]`, in the precision of the weights, under autocast as well."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.encode_task_layer(tokens[:, 1:].to(self.encode_task_layer[0].weight.dtype))

    def _decode(self, quantized: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """Vectors `[B, N, C]` to features `[B, N, T]`."""
        tokens = self.decoder(quantized.transpose(1, 2).unflatten(2, grid_size)).last_hidden_state
        return self.decode_task_layer(tokens[:, 1:])


def _check_scaled(pixel_values: torch.Tensor):
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values are {str(pixel_values.dtype).removeprefix('torch.')}, not numbers in -1..1: let the image "
            "processor normalise the images"
        )


def _cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cosines `[B, N]` along the channels, in float32 at least; as in the original, no epsilon guards the division."""
    dtype = torch.promote_types(one.dtype, torch.float32)
    one, other = one.to(dtype), other.to(dtype)
    return (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))


__all__ = ["VQKDModel", "VQKDOutput"]
