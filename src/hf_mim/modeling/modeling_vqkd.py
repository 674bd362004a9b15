"""
The VQ-KD tokenizer of BEiT v2 ([Peng et al., 2022](https://arxiv.org/abs/2208.06366), section 3.1).

Shapes: B images, N patches in a grid of h x w, D channels, K codes, C channels of a code, T channels of a target.
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
from .layers import at_least_float32
from .modeling_beitv2 import Beitv2Model
from .modeling_common import VisionPreTrainedModel
from .quantizer_vqkd import VQKDQuantizer


@dataclass
class VQKDOutput(ModelOutput):
    """
    Output of [`VQKDModel`].

    Args:
        loss (`[]`, with labels): `loss_feature + loss_quantizer`.
        loss_feature (`[]`, with labels): One minus the mean cosine similarity between features and labels.
        loss_quantizer (`[]`): Commitment loss, the distance between the encoder's output and its codes.
        codes (`int64 [B, N]`): Codes of the patches.
        features (`[B, N, T]`): Features that the decoder predicts from the codes.
        hidden_states (`tuple`, *optional*): Hidden states of the encoder, one per layer.
        attentions (`tuple`, *optional*): Attention weights of the encoder, one per layer.
    """

    loss: torch.Tensor | None = None
    loss_feature: torch.Tensor | None = None
    loss_quantizer: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    features: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def _transformer_config(config: VQKDConfig, **sizes) -> Beitv2Config:
    """Return the configuration of encoder and decoder: absolute positions only, no layer scale, a final norm."""
    sizes["attn_implementation"] = config._attn_implementation
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
        **sizes,
    )


class VQKDModel(VisionPreTrainedModel):
    """
    Encoder, codebook and decoder. The encoder assigns a code to each patch of an image with values in -1..1. The
    decoder predicts a teacher's features of all patches from the codes alone (`modeling_vqkd.py`).

    In training mode, a forward pass collects statistics for `update_codebook`, which must be called once per optimizer
    step. In eval mode, nothing changes.
    """

    config: VQKDConfig
    base_model_prefix = "vqkd"
    _no_split_modules = ["Beitv2Layer"]
    # Finding the nearest of 8,192 codes needs full precision, and in bfloat16 a moving average stops changing.
    _keep_in_fp32_modules_strict = ["encode_task_layer", "quantizer"]
    # Files without these counts are valid; counting then starts from 0.
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
        """Return the module that embeds the images."""
        return self.encoder.get_input_embeddings()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialize as the original code does; encoder and decoder initialize themselves."""
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
        Predict the teacher's features through the codes and, given labels, compute the loss.

        Args:
            pixel_values (`[B, C, H, W]`): Images with values in -1..1; H and W are any multiples of the patch size.
            labels (`[B, N, T]`, *optional*): The teacher's features of the patches.

        Raises:
            ValueError: If shapes do not fit, the pixels are integers, or there is no codebook yet in eval mode.
        """
        _check_scaled(pixel_values)
        # Encoder and decoder have their own configurations.
        kwargs.setdefault("output_hidden_states", self.config.output_hidden_states)
        kwargs.setdefault("output_attentions", self.config.output_attentions)
        outputs = self.encoder(pixel_values, **kwargs)
        quantized, codes, loss_quantizer = self.quantizer(self._to_codebook(outputs.last_hidden_state))
        features = self._decode(quantized, self._grid_of(pixel_values))
        loss = loss_feature = None
        if labels is not None:
            if labels.shape != features.shape:
                raise ValueError(
                    f"labels have shape {tuple(labels.shape)}, expected {tuple(features.shape)} (batch, patches, "
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
        Return the codes `int64 [B, N]`, in row-major order, of images `[B, C, H, W]` with values in -1..1.

        Raises:
            ValueError: If the image size does not fit, the pixels are integers, or there is no codebook yet.
        """
        _check_scaled(pixel_values)
        return self.quantizer.encode(self._to_codebook(self.encoder(pixel_values).last_hidden_state))

    def decode(self, codes: torch.Tensor, grid_size: tuple[int, int] | None = None) -> torch.Tensor:
        """
        Return the features `[B, N, T]` that the decoder predicts from codes.

        Args:
            codes (`int64 [B, N]`): Codes in row-major order.
            grid_size (`(h, w)`, *optional*): Rows and columns; defaults to those of `config.image_size`.

        Raises:
            ValueError: If the number of codes does not match the grid, a code is out of range (checked on the CPU
                only, because other devices would have to synchronize), or there is no codebook yet.
        """
        grid_size = self.config.grid_size if grid_size is None else grid_size
        if codes.ndim != 2 or codes.shape[1] != grid_size[0] * grid_size[1]:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} do not fill a grid of {grid_size[0]}x{grid_size[1]}: expected "
                "[batch, patches], with their rows and columns as grid_size"
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
        Update the codebook with the statistics of all forward passes in training mode since the last call. With
        several processes, all must call this method. See [`VQKDQuantizer`].

        Returns:
            How often each code was used, in all processes together: `int64 [K]`.
        """
        return self.quantizer.update_codebook()

    def _grid_of(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        height, width = pixel_values.shape[-2:]
        return height // self.config.patch_size, width // self.config.patch_size

    def _to_codebook(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project tokens `[B, 1+N, D]` to `[B, N, C]`, in the precision of the weights even under autocast."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.encode_task_layer(tokens[:, 1:].to(next(self.encode_task_layer.parameters()).dtype))

    def _decode(self, quantized: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """Decode vectors `[B, N, C]` to features `[B, N, T]`."""
        tokens = self.decoder(quantized.transpose(1, 2).unflatten(2, grid_size)).last_hidden_state
        return self.decode_task_layer(tokens[:, 1:])


def _check_scaled(pixel_values: torch.Tensor):
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values have dtype {str(pixel_values.dtype).removeprefix('torch.')}, expected floating-point "
            "values in -1..1: normalize the images with the image processor"
        )


def _cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return cosine similarities `[B, N]`, computed in at least float32 and, as in the original, without epsilon."""
    one, other = at_least_float32(one), at_least_float32(other)
    return (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))


__all__ = ["VQKDModel", "VQKDOutput"]
