"""Training arguments of iBOT."""

from dataclasses import dataclass, field
from typing import Literal

from .arguments import MIMTrainingArguments


@dataclass
class IBotTrainingArguments(MIMTrainingArguments):
    r"""
    Arguments of [`IBotTrainer`].

    The defaults are those of the released ViT-S/16 (`README.md` of the original), except for the number of epochs and
    the batch size, which are transformers'.

    > Parameters that control the views (`main_ibot.py`, `DataAugmentationiBOT`)

    Args:
        global_crops_number (`int`, defaults to 2): Number of global views per image.
        global_crop_size (`list[int]`, *optional*): Size of global views in pixels, one number or height and width. By
            default, the model's `image_size`.
        global_crops_scale (`list[float]`, defaults to `[0.25, 1.0]`): Smallest and largest fraction of the image's
            area that a global view covers.
        local_crops_number (`int`, defaults to 10): Number of local views per image, 0 or more.
        local_crop_size (`list[int]`, defaults to `[96]`): Size of local views in pixels, one number or height and
            width.
        local_crops_scale (`list[float]`, defaults to `[0.05, 0.25]`): Smallest and largest fraction of the image's
            area that a local view covers.
        color_augmentation (`bool`, defaults to `True`): Apply color jitter, grayscale, blur and solarization.
        blur_augmentation (`bool`, defaults to `True`): Include the blur. Its radii of up to 2 pixels are meant for
            views of 224 pixels.

    > Parameters that control the masks (`loader.py`, `ImageFolderMask`)

        pred_ratio (`list[float]`, defaults to `[0.0, 0.3]`): Fractions of masked patches. One is drawn per view.
        pred_ratio_var (`list[float]`, defaults to `[0.0, 0.2]`): Half-width of the interval around each fraction.
        pred_shape (`"block"` or `"rand"`, defaults to `"block"`): Whether to mask blocks, as in BEiT, or single
            patches.
        pred_start_epoch (`int`, defaults to 0): First epoch with masks.

    > Parameters that control the teacher

        momentum_teacher (`float`, defaults to 0.996): Initial momentum of the moving average. A cosine raises it to 1.
        shared_head_teacher (`bool`, defaults to `True`): Whether the teacher's CLS token and patches share the last
            layer of the head. If only the teacher shares it, its last layer is initialized with the student's patch
            layer and then follows the student's CLS layer, as in the original.
        target (`"centering"` or `"sinkhorn"`, defaults to `"centering"`): How targets are computed from the teacher's
            logits: centering and sharpening, or Sinkhorn-Knopp, which is better for short runs.
        sinkhorn_iterations (`int`, defaults to 3): Number of iterations of Sinkhorn-Knopp.
        center_momentum, patch_center_momentum (`float`, default to 0.9): Momenta of the two centers, which are updated
            once per optimizer step. Sinkhorn-Knopp, in contrast, balances each accumulated batch separately.
        warmup_teacher_temp (`float`, defaults to 0.04): Initial teacher temperature for the CLS token.
        teacher_temp (`float`, defaults to 0.07): Teacher temperature for the CLS token after the warm-up.
        warmup_teacher_patch_temp (`float`, defaults to 0.04): Initial teacher temperature for patches.
        teacher_patch_temp (`float`, defaults to 0.07): Teacher temperature for patches after the warm-up, which starts
            at `pred_start_epoch`.
        warmup_teacher_temp_epochs (`int`, defaults to 30): Number of epochs of both warm-ups.

    > Parameters that control the optimization

        freeze_last_layer (`int`, defaults to 1): Number of epochs in which the last layer of the head is frozen.
        weight_decay_end (`float`, defaults to 0.4): Weight decay that a cosine approaches.
    """

    global_crops_number: int = field(default=2, metadata={"help": "Number of global views per image."})
    global_crop_size: list[int] | None = field(
        default=None, metadata={"help": "Size of the global views: one number, or height and width."}
    )
    global_crops_scale: list[float] = field(
        default_factory=lambda: [0.25, 1.0],
        metadata={"help": "Smallest and largest fraction of the image's area that a global view covers."},
    )
    local_crops_number: int = field(default=10, metadata={"help": "Number of local views per image, 0 or more."})
    local_crop_size: list[int] = field(
        default_factory=lambda: [96], metadata={"help": "Size of the local views: one number, or height and width."}
    )
    local_crops_scale: list[float] = field(
        default_factory=lambda: [0.05, 0.25],
        metadata={"help": "Smallest and largest fraction of the image's area that a local view covers."},
    )
    color_augmentation: bool = field(
        default=True, metadata={"help": "Apply color jitter, grayscale, blur and solarization."}
    )
    blur_augmentation: bool = field(
        default=True,
        metadata={"help": "Include the blur, which is meant for views of 224 pixels, not for small ones."},
    )

    pred_ratio: list[float] = field(
        default_factory=lambda: [0.0, 0.3],
        metadata={"help": "Fractions of masked patches, one of which is drawn per view."},
    )
    pred_ratio_var: list[float] = field(
        default_factory=lambda: [0.0, 0.2], metadata={"help": "Half-width of the interval around each --pred_ratio."}
    )
    pred_shape: Literal["block", "rand"] = field(default="block", metadata={"help": "Shape of the masks."})
    pred_start_epoch: int = field(default=0, metadata={"help": "First epoch with masks."})

    momentum_teacher: float = field(
        default=0.996, metadata={"help": "Initial momentum of the teacher. It rises to 1."}
    )
    shared_head_teacher: bool = field(default=True, metadata={"help": "Whether the teacher's head is shared."})
    target: Literal["centering", "sinkhorn"] = field(
        default="centering", metadata={"help": "How targets are computed from the teacher's logits."}
    )
    sinkhorn_iterations: int = field(default=3, metadata={"help": "Number of iterations of Sinkhorn-Knopp."})
    center_momentum: float = field(default=0.9, metadata={"help": "Momentum of the CLS center."})
    patch_center_momentum: float = field(default=0.9, metadata={"help": "Momentum of the patch center."})
    warmup_teacher_temp: float = field(default=0.04, metadata={"help": "Initial teacher temperature (CLS)."})
    teacher_temp: float = field(default=0.07, metadata={"help": "Teacher temperature after the warm-up (CLS)."})
    warmup_teacher_patch_temp: float = field(default=0.04, metadata={"help": "Initial teacher temperature (patches)."})
    teacher_patch_temp: float = field(
        default=0.07, metadata={"help": "Teacher temperature after the warm-up (patches)."}
    )
    warmup_teacher_temp_epochs: int = field(
        default=30, metadata={"help": "Number of epochs of both temperature warm-ups."}
    )

    freeze_last_layer: int = field(
        default=1, metadata={"help": "Number of epochs in which the last layer of the head is frozen."}
    )
    weight_decay_end: float | None = field(default=0.4, metadata={"help": "Weight decay that a cosine approaches."})

    def __post_init__(self):
        super().__post_init__()
        for name in ("momentum_teacher", "center_momentum", "patch_center_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("warmup_teacher_temp", "teacher_temp", "warmup_teacher_patch_temp", "teacher_patch_temp"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("pred_start_epoch", "warmup_teacher_temp_epochs", "freeze_last_layer"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.target not in ("centering", "sinkhorn"):
            raise ValueError(f"target must be 'centering' or 'sinkhorn', got {self.target!r}")
        if self.sinkhorn_iterations < 1:
            raise ValueError(f"sinkhorn_iterations must be at least 1, got {self.sinkhorn_iterations}")
        if self.global_crops_number + self.local_crops_number < 2 or self.global_crops_number < 1:
            raise ValueError(
                "the CLS loss compares views: global_crops_number must be at least 1, and 2 together with "
                f"local_crops_number, got {self.global_crops_number} and {self.local_crops_number}"
            )
