"""Configuration of the BEiT v2 models."""

from huggingface_hub.dataclasses import strict
from transformers import BeitConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .configuration_common import (
    SHARED_BEIT_FIELDS,
    check_counts,
    check_heads,
    check_image_size,
    check_rates,
    fields_from_native,
    grid_of,
)


@strict
class Beitv2Config(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Sizes, positions and pre-training heads of a BEiT v2 model ([Peng et al., 2022](https://arxiv.org/abs/2208.06366)).

    The defaults are ViT-B/16 as it is pre-trained: one table of relative positions for all blocks, layer scale, and
    patch aggregation from block 9. ViT-L/16 is `Beitv2Config(hidden_size=1024, num_hidden_layers=24,
    num_attention_heads=16, early_layers=21, layer_scale_init_value=1e-5)`.

    Args:
        > Encoder (`modeling_pretrain.py`, `modeling_finetune.py`)

        hidden_size (`int`, defaults to 768): Width of the tokens.
        num_hidden_layers (`int`, defaults to 12): Number of blocks.
        num_attention_heads (`int`, defaults to 12): Attention heads per block; must divide `hidden_size`.
        intermediate_size (`int`, *optional*): Width of the blocks' MLP; defaults to four times `hidden_size`.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the MLP (the exact, erf form of GELU).
        hidden_dropout_prob (`float`, defaults to 0.0): Dropout after the embeddings and after each branch, in [0, 1).
        attention_probs_dropout_prob (`float`, defaults to 0.0): Dropout on the attention weights, in [0, 1).
        initializer_range (`float`, defaults to 0.02): Standard deviation of the truncated normal initialization,
            which the pre-training model truncates at one standard deviation.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm.
        image_size (`int` or `(height, width)`, defaults to 224): Size in pixels for which the position tables are
            created. Other sizes work as well; the tables are then resized.
        patch_size (`int`, defaults to 16): Side of a patch in pixels; must divide the image size.
        num_channels (`int`, defaults to 3): Channels of the images.
        qkv_bias (`bool`, defaults to `True`): Add a bias to the query and value projections; keys never have one.
        use_absolute_position_embeddings (`bool`, defaults to `False`): Add a table of positions to the tokens.
        use_relative_position_bias (`bool`, defaults to `False`): Every block has its own table of relative positions,
            which is added to the attention logits, as in fine-tuning.
        use_shared_relative_position_bias (`bool`, defaults to `True`): All blocks share one such table, as in
            pre-training.
        layer_scale_init_value (`float`, defaults to 0.1): Initial value of the learned scale per channel of each
            branch; 0 disables layer scale.
        drop_path_rate (`float`, defaults to 0.0): Stochastic depth rate of the last block, in [0, 1); it grows
            linearly from 0 at the first block. Only active in training mode.
        use_mean_pooling (`bool`, defaults to `False`): `pooler_output` is the LayerNorm of the mean patch token, as in
            fine-tuning, and the tokens themselves are not normalized; otherwise it is the normalized CLS token.

        > Pre-training (`modeling_pretrain.py`)

        vocab_size (`int`, defaults to 8192): Number K of codes of the tokenizer.
        early_layers (`int`, defaults to 9): Block whose patches the head branch receives, counted from 1; at most
            `num_hidden_layers`.
        head_layers (`int`, defaults to 2): Blocks of the head branch, which receives these early patches and the CLS
            token of the last block (patch aggregation). 0 disables the branch.
        shared_lm_head (`bool`, defaults to `True`): The head branch uses the same norm and classifier as the
            encoder's output.
        regression_loss (`str`, *optional*): Predict a teacher's features instead of codes, as the symmetric variant of
            dBOT does (its branch `beit`): `"negcosine"`, `"l2"`, `"l1"` or `"smooth_l1"`.
        target_dim (`int`, *optional*): Width of the features to predict, which is that of the teacher. Used with
            `regression_loss` only. Defaults to a `vocab_size` other than 8192, as in version 0.1, and else to
            `hidden_size`.

        > Backbone API

        apply_layernorm (`bool`, defaults to `True`): Apply the final norm to the feature maps of `Beitv2Backbone`.
        reshape_hidden_states (`bool`, defaults to `True`): Return feature maps as `[B, D, h, w]`, not `[B, 1+N, D]`.
        out_features (`list[str]`, *optional*): Stages that `Beitv2Backbone` returns, out of `stem, stage1, …`.
        out_indices (`list[int]`, *optional*): The same stages as numbers, 0 being `stem`.

    Raises:
        ValueError: If sizes do not fit together, or a value is outside its range.
    """

    model_type = "beitv2"

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
    use_absolute_position_embeddings: bool = False
    use_relative_position_bias: bool = False
    use_shared_relative_position_bias: bool = True
    layer_scale_init_value: float | int = 0.1
    drop_path_rate: float | int = 0.0
    use_mean_pooling: bool = False

    vocab_size: int = 8192
    early_layers: int = 9
    head_layers: int = 2
    shared_lm_head: bool = True
    regression_loss: str | None = None
    target_dim: int | None = None

    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.regression_loss is not None and self.target_dim is None:
            # Before version 0.2, vocab_size was the width of the features.
            old_width = self.vocab_size if self.vocab_size != Beitv2Config.vocab_size else None
            self.target_dim = old_width or self.hidden_size
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """
        Read the fields of a saved configuration, or translate those of a `BeitConfig` of transformers.

        Raises:
            ValueError: If the model is a BEiT with position tables for non-square images, which transformers indexes
                incorrectly.
        """
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        translated = fields_from_native(
            fields, cls, {BeitConfig: (*SHARED_BEIT_FIELDS, "drop_path_rate", "vocab_size")}
        )
        if translated is not fields and not cls(**translated).has_native_beit:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a BEiT with position tables for images of "
                f"{translated['image_size']} pixels: transformers indexes the tables of non-square images "
                "incorrectly, so its outputs cannot be reproduced here"
            )
        return translated, kwargs

    @property
    def prediction_dim(self) -> int:
        """Width of the pre-training head: number of codes, or width of the features with `regression_loss`."""
        return self.vocab_size if self.regression_loss is None else self.target_dim or self.hidden_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches for which the position tables are created."""
        return grid_of(self)

    @property
    def has_native_beit(self) -> bool:
        """True if transformers' BEiT, which misindexes tables of non-square images, gives the same outputs."""
        has_tables = (
            self.use_absolute_position_embeddings
            or self.use_relative_position_bias
            or self.use_shared_relative_position_bias
        )
        return self.grid_size[0] == self.grid_size[1] or not has_tables

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
        if self.layer_scale_init_value < 0:
            raise ValueError(f"layer_scale_init_value must be 0 (none) or positive, got {self.layer_scale_init_value}")
        if self.regression_loss not in (None, "negcosine", "l2", "l1", "smooth_l1"):
            raise ValueError(
                f"regression_loss must be negcosine, l2, l1, smooth_l1 or none, got {self.regression_loss!r}"
            )
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, got {self.vocab_size}")
        if self.target_dim is not None and self.target_dim < 1:
            raise ValueError(f"target_dim must be at least 1, got {self.target_dim}")
        if self.head_layers < 0:
            raise ValueError(f"head_layers must be 0 (no patch aggregation) or positive, got {self.head_layers}")
        if self.early_layers < 1:
            raise ValueError(f"early_layers must be at least 1, got {self.early_layers}")


__all__ = ["Beitv2Config"]
