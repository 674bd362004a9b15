"""Configuration of the iBOT models with a Swin Transformer backbone."""

import math

from huggingface_hub.dataclasses import strict
from transformers import SwinConfig
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_common import (
    SHARED_SWIN_FIELDS,
    check_counts,
    check_image_size,
    check_rates,
    fields_from_native,
    grid_of,
)
from .configuration_ibot import IBotHeadConfig


# transformers' Swin uses this epsilon in patch embedding and patch merging, whatever its configuration contains.
NATIVE_EPS = 1e-5


@strict
class IBotSwinConfig(BackboneConfigMixin, IBotHeadConfig):
    r"""
    Sizes, initialization, projection head and loss of an iBOT model ([Zhou et al., 2022](https://arxiv.org/abs/2111.07832))
    with a Swin Transformer ([Liu et al., 2021](https://arxiv.org/abs/2103.14030)).

    The defaults are Swin-T with windows of 7 x 7 patches. The released Swin-T/14 is `IBotSwinConfig(window_size=14)`;
    Swin-S is `IBotSwinConfig(depths=[2, 2, 18, 2], drop_path_rate=0.2)`, Swin-B that with `embed_dim=128,
    num_heads=[4, 8, 16, 32]`, Swin-L with `embed_dim=192, num_heads=[6, 12, 24, 48]`. The fields are named as
    in transformers' `SwinConfig`.

    Args:
        > Encoder (`models/swin_transformer.py`)

        embed_dim (`int`, defaults to 96): Width of the first stage; it doubles with every stage.
        depths (`list[int]`, defaults to `(2, 2, 6, 2)`): Number of blocks in each stage.
        num_heads (`list[int]`, defaults to `(3, 6, 12, 24)`): Attention heads in each stage; must divide
            its width.
        window_size (`int`, defaults to 7): Side of the attention windows in patches. A stage whose feature map is
            not larger uses the whole map as its only window.
        mlp_ratio (`float`, defaults to 4.0): Width of the blocks' MLP relative to the width of the stage.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the MLP (the exact, erf form of GELU).
        hidden_dropout_prob (`float`, defaults to 0.0): Dropout after the embeddings and after each branch, in [0, 1).
        attention_probs_dropout_prob (`float`, defaults to 0.0): Dropout on the attention weights, in [0, 1).
        initializer_range (`float`, defaults to 0.02): Standard deviation of the truncated normal initialization.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm.
        image_size (`int`, defaults to 224): Side in pixels of the square images from which the windows are computed.
            Other sizes work as well and keep these windows.
        patch_size (`int`, defaults to 4): Side of a patch in pixels; must divide the image size.
        num_channels (`int`, defaults to 3): Channels of the images.
        qkv_bias (`bool`, defaults to `True`): Add a bias to the query, key and value projections.
        drop_path_rate (`float`, defaults to 0.1): Stochastic depth rate of the last block, in [0, 1); it grows
            linearly from 0 at the first block. The original uses 0.1 for Swin-T and 0.2 for the others. Only active in
            training mode, and never in the teacher.
        linear_init (`str`, defaults to `"trunc_normal"`): Initialization of the linear layers: `"trunc_normal"`, as in
            the original, or `"xavier_uniform"`, with which the loss leaves its initial plateau sooner in short runs.

        > Projection head and loss, described in [`IBotConfig`] and with the same defaults

        out_dim, patch_out_dim, shared_head, norm_last_layer, head_norm, head_act, head_num_layers, head_hidden_size,
        head_bottleneck_size, student_temperature, cls_loss_weight, patch_loss_weight.

        > Backbone API

        out_features (`list[str]`, *optional*): Stages that `IBotSwinBackbone` returns, out of `stem, stage1, …`.
        out_indices (`list[int]`, *optional*): The same stages as numbers, 0 being `stem`.

    Raises:
        ValueError: If sizes do not fit together, or a value is outside its range.
    """

    model_type = "ibot_swin"

    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 4
    num_channels: int = 3
    qkv_bias: bool = True
    drop_path_rate: float | int = 0.1

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, len(self.depths) + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """
        Read the fields of a saved configuration, or translate those of a `SwinConfig` of transformers.

        Raises:
            ValueError: If iBOT's Swin cannot reproduce the outputs of transformers' Swin, which is the case with
                absolute positions, with `layer_norm_eps` other than 1e-5, or with windows that are handled differently
                at its own image size.
        """
        stored, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        fields = fields_from_native(stored, cls, {SwinConfig: (*SHARED_SWIN_FIELDS, "drop_path_rate")})
        if fields is not stored:
            reason = cls(**fields).why_no_native_swin
            if stored.get("use_absolute_embeddings"):
                reason = "it has absolute position embeddings, and iBOT's Swin has none"
            elif fields["layer_norm_eps"] != NATIVE_EPS:
                reason = (
                    f"its norms have an epsilon of {fields['layer_norm_eps']:g}, but {NATIVE_EPS:g} in patch "
                    "embedding and merging; iBOT's Swin has a single epsilon"
                )
            if reason is not None:
                raise ValueError(f"the outputs of {pretrained_model_name_or_path} cannot be reproduced here: {reason}")
        return fields, kwargs

    @property
    def why_no_native_swin(self) -> str | None:
        """Why transformers' Swin computes something else at `image_size`; None if it computes the same."""
        rows, size = self.grid_size[0], self.window_size
        for stage, (window, shift) in enumerate(self.stage_windows):
            side = math.ceil(rows / 2**stage)
            described = f"stage {stage + 1} has {side} x {side} patches at image_size {rows * self.patch_size}"
            if window < size:
                return (
                    f"{described}, fewer than a window of {size} x {size}: transformers' Swin sizes the relative "
                    "position tables of all stages by the window, and cannot run a smaller stage"
                )
            if shift == 0 and side > size > 1:
                return (
                    f"{described}, an odd map halved and rounded up: transformers' Swin shifts the windows of "
                    f"{size} x {size} there, and the original does not"
                )
        return None

    @property
    def hidden_size(self) -> int:
        """Width of the last stage and of the output."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks in all stages."""
        return sum(self.depths)

    @property
    def token_stride(self) -> int:
        """Distance in pixels between neighboring tokens of the output."""
        return self.patch_size * 2 ** (len(self.depths) - 1)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches in an image of `image_size`."""
        return grid_of(self)

    @property
    def stage_windows(self) -> list[tuple[int, int]]:
        """Window size of each stage, and the number of patches by which every second block shifts its windows."""
        sides = [self.grid_size[0] // 2**stage for stage in range(len(self.depths))]
        whole = self.window_size, self.window_size // 2
        return [(side, 0) if side <= self.window_size else whole for side in sides]

    def validate_architecture(self):
        """Raise `ValueError` for sizes that do not fit together; `@strict` calls this after every construction."""
        check_counts(self, "embed_dim", "window_size", "patch_size", "num_channels")
        if len(self.depths) != len(self.num_heads) or not self.depths or min(*self.depths, *self.num_heads) < 1:
            raise ValueError(
                f"depths and num_heads must hold one positive number per stage, got {list(self.depths)} and "
                f"{list(self.num_heads)}"
            )
        for stage, heads in enumerate(self.num_heads):
            if self.embed_dim * 2**stage % heads:
                raise ValueError(
                    f"the width of stage {stage + 1} ({self.embed_dim * 2**stage}) must be a multiple of its "
                    f"num_heads ({heads})"
                )
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")
        check_image_size(self)
        rows, columns = self.grid_size
        if rows != columns:
            raise ValueError(f"image_size ({self.image_size}) must be square: Swin takes square images only")
        if rows < 2 ** (len(self.depths) - 1):
            raise ValueError(
                f"image_size ({self.image_size}) must be at least {self.token_stride}: {len(self.depths)} stages "
                f"halve the feature map {len(self.depths) - 1} times"
            )
        check_rates(self, "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
        self.check_head()


__all__ = ["NATIVE_EPS", "IBotSwinConfig"]
