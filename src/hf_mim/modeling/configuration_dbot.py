"""Configuration of the dBOT models."""

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig, ViTMAEConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .configuration_common import (
    MAE_FIELDS,
    SHARED_FIELDS,
    check_counts,
    check_heads,
    check_image_size,
    check_rates,
    fields_from_native,
    grid_of,
)


@strict
class DBotConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Sizes, masking and decoder of a dBOT model ([Liu et al., 2022](https://arxiv.org/abs/2209.03917)).

    The defaults are ViT-B/16 as it is pre-trained. ViT-L/16 is `DBotConfig(hidden_size=1024, num_hidden_layers=24,
    num_attention_heads=16)`, ViT-H/14 is `DBotConfig(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16,
    patch_size=14, drop_path_rate=0.3)`.

    Args:
        > Encoder (`models_mae.py`, `models_vit.py`)

        hidden_size (`int`, defaults to 768): Width of the tokens, a multiple of 4 and of `num_attention_heads`.
        num_hidden_layers (`int`, defaults to 12): Number of blocks; with 0 the output is the patch embeddings with
            their positions, which is the first teacher of the published ViT-L and ViT-H.
        num_attention_heads (`int`, defaults to 12): Attention heads per block.
        intermediate_size (`int`, *optional*): Width of the blocks' MLP; defaults to four times `hidden_size`.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the MLP (the exact, erf form of GELU).
        hidden_dropout_prob (`float`, defaults to 0.0): Dropout after the embeddings and after each branch, in [0, 1).
        attention_probs_dropout_prob (`float`, defaults to 0.0): Dropout on the attention weights, in [0, 1).
        initializer_range (`float`, defaults to 0.02): Standard deviation of the initial CLS and mask tokens.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm.
        image_size (`int` or `(height, width)`, defaults to 224): Size in pixels for which a trainable position
            table is created. Other sizes work as well.
        patch_size (`int`, defaults to 16): Side of a patch in pixels; must divide the image size.
        num_channels (`int`, defaults to 3): Channels of the images.
        qkv_bias (`bool`, defaults to `True`): Add a bias to the query, key and value projections.
        drop_path_rate (`float`, defaults to 0.2): Stochastic depth rate of the last block, in [0, 1); it grows
            linearly from 0 at the first block. Only active in training mode.
        layer_scale_init_value (`float`, defaults to 0.0): Initial value of the learned scale per channel of each
            branch; 0 disables layer scale, as in all released models.
        trainable_position_embeddings (`bool`, defaults to `False`): The encoder's positions are a parameter,
            initialized with the sine-cosine table, as in fine-tuning; other image sizes interpolate it. Otherwise the
            positions are fixed and computed for the grid of each batch.
        use_mean_pooling (`bool`, defaults to `False`): `pooler_output` is the LayerNorm of the mean patch token, as in
            fine-tuning (`global_pool`), and the tokens themselves are not normalized; otherwise it is the
            normalized CLS token.

        > Pre-training (`models_mae.py`)

        mask_ratio (`float`, defaults to 0.75): Fraction of the patches that are removed before the encoder, in [0, 1).
        decoder_hidden_size (`int`, defaults to 512): Width of the decoder, a multiple of 4 and of
            `decoder_num_attention_heads`.
        decoder_num_hidden_layers (`int`, defaults to 8): Blocks of the decoder.
        decoder_num_attention_heads (`int`, defaults to 16): Attention heads per block of the decoder.
        decoder_intermediate_size (`int`, *optional*): Width of the decoder's MLP; defaults to four times
            `decoder_hidden_size`.
        decoder_drop_path_rate (`float`, *optional*): Stochastic depth rate of the decoder's last block, starting
            again from 0 at its first; defaults to `drop_path_rate`.
        target_dim (`int`, *optional*): Width of the features to predict, which is that of the teacher; defaults to
            `hidden_size`.
        norm_targets (`bool`, defaults to `True`): Normalize each target token to mean 0 and variance 1, as all
            published commands do (`norm_feature_loss`).

        > Backbone API

        apply_layernorm (`bool`, defaults to `True`): Apply the final norm to the feature maps of `DBotBackbone`.
        reshape_hidden_states (`bool`, defaults to `True`): Return feature maps as `[B, D, h, w]`, not `[B, 1+N, D]`.
        out_features (`list[str]`, *optional*): Stages that `DBotBackbone` returns, out of `stem, stage1, …`.
        out_indices (`list[int]`, *optional*): The same stages as numbers, 0 being `stem`.

    Raises:
        ValueError: If sizes do not fit together, or a value is outside its range.
    """

    model_type = "dbot"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    drop_path_rate: float | int = 0.2
    layer_scale_init_value: float | int = 0.0
    trainable_position_embeddings: bool = False
    use_mean_pooling: bool = False

    mask_ratio: float | int = 0.75
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int | None = None
    decoder_drop_path_rate: float | int | None = None
    target_dim: int | None = None
    norm_targets: bool = True

    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.decoder_intermediate_size is None:
            self.decoder_intermediate_size = 4 * self.decoder_hidden_size
        if self.target_dim is None:
            self.target_dim = self.hidden_size
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """
        Read the fields of a saved configuration, or translate those of a `ViTConfig` or `ViTMAEConfig` of
        transformers, with trainable position embeddings.
        """
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        translated = fields_from_native(fields, cls, {ViTConfig: SHARED_FIELDS, ViTMAEConfig: MAE_FIELDS})
        if translated is not fields:
            translated["trainable_position_embeddings"] = True
        return translated, kwargs

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches in an image of `image_size`."""
        return grid_of(self)

    def validate_architecture(self):
        """Raise `ValueError` for sizes that do not fit together; `@strict` calls this after every construction."""
        check_counts(
            self,
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "patch_size",
            "num_channels",
            "decoder_hidden_size",
            "decoder_num_hidden_layers",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
            "target_dim",
        )
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must be 0 (no blocks) or positive, got {self.num_hidden_layers}")
        for part in ("", "decoder_"):
            check_heads(self, part)
            width = getattr(self, f"{part}hidden_size")
            if width % 4:
                raise ValueError(
                    f"{part}hidden_size ({width}) must be a multiple of 4 for sines and cosines along two axes"
                )
        check_image_size(self)
        rates = ["mask_ratio", "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"]
        if self.decoder_drop_path_rate is not None:
            rates.append("decoder_drop_path_rate")
        check_rates(self, *rates)
        if self.layer_scale_init_value < 0:
            raise ValueError(f"layer_scale_init_value must be 0 (none) or positive, got {self.layer_scale_init_value}")
        if self.norm_targets and self.target_dim == 1:
            raise ValueError("target_dim must be at least 2 with norm_targets: one number has no variance")


__all__ = ["DBotConfig"]
