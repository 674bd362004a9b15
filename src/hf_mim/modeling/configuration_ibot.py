"""Configuration of the iBOT models with a Vision Transformer backbone."""

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .configuration_common import (
    SHARED_FIELDS,
    check_counts,
    check_heads,
    check_image_size,
    check_rates,
    fields_from_native,
    grid_of,
)


@strict
class IBotHeadConfig(PreTrainedConfig):
    """Fields of initialization, projection head and loss that [`IBotConfig`] and [`IBotSwinConfig`] share."""

    linear_init: str = "trunc_normal"

    out_dim: int = 8192
    patch_out_dim: int = 8192
    shared_head: bool = True
    norm_last_layer: bool = True
    head_norm: str | None = None
    head_act: str = "gelu"
    head_num_layers: int = 3
    head_hidden_size: int = 2048
    head_bottleneck_size: int = 256

    student_temperature: float | int = 0.1
    cls_loss_weight: float | int = 1.0
    patch_loss_weight: float | int = 1.0

    def check_head(self):
        """Raise `ValueError` for a head that cannot be built or a temperature that is not positive."""
        check_counts(self, "head_num_layers", "head_hidden_size")
        for name, allowed in (
            ("linear_init", ("trunc_normal", "xavier_uniform")),
            ("head_norm", (None, "bn", "syncbn", "ln")),
            ("head_act", ("gelu", "relu")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("out_dim", "patch_out_dim"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2: with one prototype there is nothing to predict")
        if self.student_temperature <= 0:
            raise ValueError(f"student_temperature must be positive, got {self.student_temperature}")
        if self.head_bottleneck_size < 0:
            raise ValueError(f"head_bottleneck_size must be 0 (none) or positive, got {self.head_bottleneck_size}")


@strict
class IBotConfig(BackboneConfigMixin, IBotHeadConfig):
    r"""
    Sizes, initialization, projection head and loss of an iBOT model ([Zhou et al., 2022](https://arxiv.org/abs/2111.07832)).

    The defaults are ViT-B/16 with the shared 8192-way head of the released models. ViT-S/16 is
    `IBotConfig(hidden_size=384, num_attention_heads=6, norm_last_layer=False)`, ViT-L/16 is
    `IBotConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)`.

    Args:
        > Encoder (`models/vision_transformer.py`)

        hidden_size (`int`, defaults to 768): Width of the tokens.
        num_hidden_layers (`int`, defaults to 12): Number of blocks.
        num_attention_heads (`int`, defaults to 12): Attention heads per block; must divide `hidden_size`.
        intermediate_size (`int`, *optional*): Width of the blocks' MLP; defaults to four times `hidden_size`.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the MLP (the exact, erf form of GELU).
        hidden_dropout_prob (`float`, defaults to 0.0): Dropout after the embeddings and after each branch, in [0, 1).
        attention_probs_dropout_prob (`float`, defaults to 0.0): Dropout on the attention weights, in [0, 1).
        initializer_range (`float`, defaults to 0.02): Standard deviation of the truncated normal initialization.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm.
        image_size (`int` or `(height, width)`, defaults to 224): Size in pixels for which the position table is
            created. Other sizes work as well; the table is then interpolated.
        patch_size (`int`, defaults to 16): Side of a patch in pixels; must divide the image size.
        num_channels (`int`, defaults to 3): Channels of the images.
        qkv_bias (`bool`, defaults to `True`): Add a bias to the query, key and value projections.
        drop_path_rate (`float`, defaults to 0.1): Stochastic depth rate of the last block, in [0, 1); it grows
            linearly from 0 at the first block. Only active in training mode, and never in the teacher.
        layer_scale_init_value (`float`, defaults to 0.0): Initial value of the learned scale per channel of each
            branch; 0 disables layer scale, as in all released models.
        use_mean_pooling (`bool`, defaults to `False`): Replace token 0 of the output by the LayerNorm of the mean
            patch token and do not normalize the patch tokens. For evaluation only.
        linear_init (`str`, defaults to `"trunc_normal"`): Initialization of the linear layers: `"trunc_normal"`, as in
            the original, or `"xavier_uniform"`, with which the loss leaves its initial plateau sooner in short runs.

        > Projection head (`models/head.py`)

        out_dim (`int`, defaults to 8192): Number K of prototypes for the CLS token.
        patch_out_dim (`int`, defaults to 8192): Number P of prototypes for the patches; ignored with
            `shared_head`.
        shared_head (`bool`, defaults to `True`): The CLS token and the patches share the last layer.
        norm_last_layer (`bool`, defaults to `True`): Keep the prototypes' magnitudes at 1 instead of learning them.
        head_norm (`str`, *optional*): Normalization after the hidden layers: `"bn"`, `"syncbn"`, `"ln"` or none.
        head_act (`str`, defaults to `"gelu"`): Activation of the hidden layers: `"gelu"` or `"relu"`.
        head_num_layers (`int`, defaults to 3): Linear layers before the last layer.
        head_hidden_size (`int`, defaults to 2048): Width of the hidden layers.
        head_bottleneck_size (`int`, defaults to 256): Width of the L2-normalized bottleneck; 0 removes the
            bottleneck, its normalization and the weight-normalized last layer.

        > Loss (`main_ibot.py`, `iBOTLoss`)

        student_temperature (`float`, defaults to 0.1): Temperature of the student's softmax.
        cls_loss_weight (`float`, defaults to 1.0): Factor λ₁ of the CLS loss.
        patch_loss_weight (`float`, defaults to 1.0): Factor λ₂ of the patch loss.

        > Backbone API

        apply_layernorm (`bool`, defaults to `True`): Apply the final norm to the feature maps of `IBotBackbone`.
        reshape_hidden_states (`bool`, defaults to `True`): Return feature maps as `[B, D, h, w]`, not `[B, 1+N, D]`.
        out_features (`list[str]`, *optional*): Stages that `IBotBackbone` returns, out of `stem, stage1, …`.
        out_indices (`list[int]`, *optional*): The same stages as numbers, 0 being `stem`.

    Raises:
        ValueError: If sizes do not fit together, or a value is outside its range.
    """

    model_type = "ibot"

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
    drop_path_rate: float | int = 0.1
    layer_scale_init_value: float | int = 0.0
    use_mean_pooling: bool = False

    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """Read the fields of a saved configuration, or translate those of a `ViTConfig` of transformers."""
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return fields_from_native(fields, cls, {ViTConfig: SHARED_FIELDS}), kwargs

    @property
    def token_stride(self) -> int:
        """Distance in pixels between neighboring tokens of the output: the side of a patch."""
        return self.patch_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches for which the position table is created."""
        return grid_of(self)

    def validate_architecture(self):
        """Raise `ValueError` for sizes that do not fit together; `@strict` calls this after every construction."""
        check_counts(
            self,
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "patch_size",
            "num_channels",
        )
        check_heads(self)
        check_image_size(self)
        check_rates(self, "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
        self.check_head()


__all__ = ["IBotConfig", "IBotHeadConfig"]
