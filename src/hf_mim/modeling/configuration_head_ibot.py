"""What the configurations of iBOT models have in common, whatever their encoder."""

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .configuration_checks import check_counts


@strict
class IBotHeadConfig(PreTrainedConfig):
    """
    Initialisation, projection head and loss of [`IBotConfig`], which describes the fields, and of [`IBotSwinConfig`].
    """

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
        """Raises `ValueError` for a head that cannot be built, and for a loss without a positive temperature."""
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


__all__ = ["IBotHeadConfig"]
