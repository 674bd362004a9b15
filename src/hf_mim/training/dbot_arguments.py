"""Training arguments of dBOT."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from .arguments import MIMTrainingArguments


@dataclass
class DBotTrainingArguments(MIMTrainingArguments):
    r"""
    Arguments of [`DBotTrainer`].

    The defaults are those of the published commands (`PRETRAIN.md` and `main_pretrain.py` of the original, clipping as
    for ViT-B), except for the number of epochs and the batch size, which are transformers'.

    > Parameters that control the stages

    Args:
        stage_epochs (`list[int]`, *optional*): Number of epochs of every stage, such as `800 800`. Their sum replaces
            `num_train_epochs`. By default, there is one stage of `num_train_epochs`.
        stage_teacher_depth (`list[int]`, *optional*): Number of blocks of the teacher in every stage, 0 or more. By
            default, as many as the student has. If the teacher is deeper, the blocks that the student lacks are
            random. A pretrained teacher always has all of its blocks in the first stage.
        reset_optimizer_at_stage (`bool`, defaults to `False`): Reset Adam's moments and step counter at the beginning
            of a stage. The original keeps them.

    > Parameters that control the teacher

        teacher_model_name_or_path (`str`, *optional*): Folder or Hub id of a vision model as the teacher of the first
            stage, loaded by `hf-mim pretrain`. By default, the student before its first step.
        teacher_feature (`"raw"`, `"normed"`, `"projected"` or `"auto"`, defaults to `"raw"`): Feature of the teacher,
            see [`FeatureTeacher`]. In later stages, features are normed with `"normed"` and raw otherwise.
        teacher_resize (`"input"` or `"features"`, defaults to `"input"`): How features of a pretrained teacher are fit
            to the student's grid, see [`FeatureTeacher`].

    > Parameters that control the views

        min_crop_scale (`float`, defaults to 0.2): Smallest fraction of the image's area that a crop covers.

    > Parameters that control the optimization

        base_learning_rate (`float`, defaults to 1.5e-4): Peak learning rate for a total batch of 256.
        min_learning_rate (`float`, defaults to 0): Learning rate that the cosine approaches in every stage.
        warmup_epochs (`float`, defaults to 40): Number of epochs of linear warm-up from 0 in every stage. Overridden
            by `warmup_steps`.
        weight_decay (`float`, defaults to 0.05): Weight decay. Biases and 1-dimensional tensors have none.
        grad_clip (`"per_tensor"` or `"global"`, defaults to `"global"`): Whether `max_grad_norm` limits the norm of
            each gradient tensor, or the norm of all gradients together. The original clips for ViT-B only.
        adam_beta2 (`float`, defaults to 0.95): The second β of AdamW.
    """

    stage_epochs: list[int] | None = field(
        default=None, metadata={"help": "Number of epochs of every stage. Their sum replaces --num_train_epochs."}
    )
    stage_teacher_depth: list[int] | None = field(
        default=None, metadata={"help": "Number of blocks of the teacher in every stage. By default, the student's."}
    )
    reset_optimizer_at_stage: bool = field(
        default=False, metadata={"help": "Reset Adam's moments and step counter at the beginning of a stage."}
    )
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a vision model as the teacher of the first stage. By default, the student "
            "before its first step."
        },
    )
    teacher_feature: Literal["raw", "normed", "projected", "auto"] = field(
        default="raw",
        metadata={
            "help": "Feature of the teacher: before its final norm, after it, or after its projection. 'auto' "
            "is the last of these that it has."
        },
    )
    teacher_resize: Literal["input", "features"] = field(
        default="input",
        metadata={
            "help": "What is resized if the grids of teacher and student differ: the teacher's images or features."
        },
    )
    min_crop_scale: float = field(
        default=0.2, metadata={"help": "Smallest fraction of the image's area that a crop covers."}
    )

    base_learning_rate: float = field(
        default=1.5e-4, metadata={"help": "Peak learning rate for a total batch of 256 images."}
    )
    min_learning_rate: float = field(
        default=0.0, metadata={"help": "Learning rate that the cosine schedule approaches in every stage."}
    )
    warmup_epochs: float = field(
        default=40.0,
        metadata={"help": "Number of epochs of linear warm-up in every stage. Overridden by --warmup_steps."},
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay at the start of training."})
    grad_clip: Literal["per_tensor", "global"] = field(
        default="global",
        metadata={"help": "Whether --max_grad_norm limits each gradient tensor, or all gradients together."},
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "The second beta of AdamW."})

    def __post_init__(self):
        if self.stage_epochs is not None:
            if not self.stage_epochs or min(self.stage_epochs) < 1:
                raise ValueError(f"stage_epochs must be whole epochs of at least 1, got {self.stage_epochs}")
            epochs = sum(self.stage_epochs)
            if self.num_train_epochs not in (epochs, TrainingArguments.num_train_epochs):
                raise ValueError(
                    f"stage_epochs {self.stage_epochs} already give the {epochs} epochs of the run: leave out "
                    f"num_train_epochs ({self.num_train_epochs:g}), or change stage_epochs"
                )
            self.num_train_epochs = epochs
        super().__post_init__()
        depths = self.stage_teacher_depth
        if depths is not None and (len(depths) != self.num_stages or min(depths) < 0):
            raise ValueError(
                f"stage_teacher_depth must be a number of blocks, 0 or more, for each of {self.num_stages} stages "
                f"(stage_epochs), got {depths}"
            )
        if self.num_stages > 1 and self.lr_scheduler_type != "cosine":
            raise ValueError(
                f"lr_scheduler_type must be 'cosine' with several stages, each of which restarts it, got "
                f"{self.lr_scheduler_type!r}"
            )
        if not 0 < self.min_crop_scale <= 1:
            raise ValueError(f"min_crop_scale must lie in (0, 1], got {self.min_crop_scale}")

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return 1 if self.stage_epochs is None else len(self.stage_epochs)
