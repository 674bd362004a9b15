"""Training arguments of iBOT."""

from dataclasses import dataclass, field
from typing import Literal

from .arguments import MIMTrainingArguments


@dataclass
class IBotTrainingArguments(MIMTrainingArguments):
    r"""
    Arguments of [`IBotTrainer`]. The defaults are those of the released ViT-S/16 (`README.md` of the original),
    except for the number of epochs and the batch size, which are transformers'.

    > Parameters that control the views (`main_ibot.py`, `DataAugmentationiBOT`)

    Args:
        global_crops_number (`int`, defaults to 2): Global views per image.
        global_crop_size (`list[int]`, *optional*): Their size in pixels, one number or height and width; the model's
            `image_size` when not given.
        global_crops_scale (`list[float]`, defaults to `[0.25, 1.0]`): Share of the image's area that they cover.
        local_crops_number (`int`, defaults to 10): Local views per image; 0 for none.
        local_crop_size (`list[int]`, defaults to `[96]`): Their size in pixels, one number or height and width.
        local_crops_scale (`list[float]`, defaults to `[0.05, 0.25]`): Share of the image's area that they cover.
        color_augmentation (`bool`, defaults to `True`): Colour jitter, greyscale, blur and solarisation.
        blur_augmentation (`bool`, defaults to `True`): The blur among them, whose radii of up to 2 pixels are made for
            views of 224 pixels.

    > Parameters that control the masks (`loader.py`, `ImageFolderMask`)

        pred_ratio (`list[float]`, defaults to `[0.0, 0.3]`): Share of masked patches; one is drawn per view.
        pred_ratio_var (`list[float]`, defaults to `[0.0, 0.2]`): Half-width around each ratio.
        pred_shape (`"block"` or `"rand"`, defaults to `"block"`): Blocks as in BEiT, or single patches.
        pred_start_epoch (`int`, defaults to 0): Epoch of the first masks.

    > Parameters that control the teacher

        momentum_teacher (`float`, defaults to 0.996): Momentum of the moving average at the start; a cosine takes it
            to 1.
        shared_head_teacher (`bool`, defaults to `True`): The teacher's CLS token and patches share the last layer. If
            the student's head is not shared, its patch layer initialises the teacher's only last layer, which then
            follows the student's CLS layer, as in the original.
        target (`"centering"` or `"sinkhorn"`, defaults to `"centering"`): How the teacher's logits become targets:
            centring and sharpening, or Sinkhorn–Knopp, which short runs need.
        sinkhorn_iterations (`int`, defaults to 3): Rounds of Sinkhorn–Knopp.
        center_momentum, patch_center_momentum (`float`, default to 0.9): Momenta of the two centres, which move once
            per step of the optimiser. Sinkhorn–Knopp, in contrast, balances every accumulated batch by itself.
        warmup_teacher_temp (`float`, defaults to 0.04), teacher_temp (`float`, defaults to 0.07): Teacher temperature
            for the CLS token, at first and after its warm-up.
        warmup_teacher_patch_temp (`float`, defaults to 0.04), teacher_patch_temp (`float`, defaults to 0.07): The same
            for patches; the warm-up starts at `pred_start_epoch`.
        warmup_teacher_temp_epochs (`int`, defaults to 30): Epochs of both warm-ups.

    > Parameters that control the optimisation

        freeze_last_layer (`int`, defaults to 1): Epochs in which the head's last layer does not learn.
        weight_decay_end (`float`, defaults to 0.4): Weight decay that a cosine runs towards.
    """

    global_crops_number: int = field(default=2, metadata={"help": "Global views per image."})
    global_crop_size: list[int] | None = field(
        default=None, metadata={"help": "Size of the global views: one number, or height and width."}
    )
    global_crops_scale: list[float] = field(
        default_factory=lambda: [0.25, 1.0], metadata={"help": "Share of the image's area that global views cover."}
    )
    local_crops_number: int = field(default=10, metadata={"help": "Local views per image; 0 for none."})
    local_crop_size: list[int] = field(
        default_factory=lambda: [96], metadata={"help": "Size of the local views: one number, or height and width."}
    )
    local_crops_scale: list[float] = field(
        default_factory=lambda: [0.05, 0.25], metadata={"help": "Share of the image's area that local views cover."}
    )
    color_augmentation: bool = field(
        default=True, metadata={"help": "Colour jitter, greyscale, blur and solarisation."}
    )
    blur_augmentation: bool = field(
        default=True, metadata={"help": "The blur among them, made for views of 224 pixels; off for small ones."}
    )

    pred_ratio: list[float] = field(
        default_factory=lambda: [0.0, 0.3], metadata={"help": "Share of masked patches; one is drawn per view."}
    )
    pred_ratio_var: list[float] = field(
        default_factory=lambda: [0.0, 0.2], metadata={"help": "Half-width around each --pred_ratio."}
    )
    pred_shape: Literal["block", "rand"] = field(default="block", metadata={"help": "Shape of the masks."})
    pred_start_epoch: int = field(default=0, metadata={"help": "Epoch of the first masks."})

    momentum_teacher: float = field(default=0.996, metadata={"help": "Teacher momentum at the start; ends at 1."})
    shared_head_teacher: bool = field(default=True, metadata={"help": "Whether the teacher's head is shared."})
    target: Literal["centering", "sinkhorn"] = field(
        default="centering", metadata={"help": "How the teacher's logits become targets."}
    )
    sinkhorn_iterations: int = field(default=3, metadata={"help": "Rounds of Sinkhorn-Knopp."})
    center_momentum: float = field(default=0.9, metadata={"help": "Momentum of the CLS centre."})
    patch_center_momentum: float = field(default=0.9, metadata={"help": "Momentum of the patch centre."})
    warmup_teacher_temp: float = field(default=0.04, metadata={"help": "First teacher temperature (CLS)."})
    teacher_temp: float = field(default=0.07, metadata={"help": "Teacher temperature after the warm-up (CLS)."})
    warmup_teacher_patch_temp: float = field(default=0.04, metadata={"help": "First teacher temperature (patches)."})
    teacher_patch_temp: float = field(
        default=0.07, metadata={"help": "Teacher temperature after the warm-up (patches)."}
    )
    warmup_teacher_temp_epochs: int = field(default=30, metadata={"help": "Epochs of both temperature warm-ups."})

    freeze_last_layer: int = field(
        default=1, metadata={"help": "Epochs in which the head's last layer does not learn."}
    )
    weight_decay_end: float | None = field(default=0.4, metadata={"help": "Weight decay that a cosine runs towards."})

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
