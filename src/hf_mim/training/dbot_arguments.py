"""Training arguments of dBOT."""

from dataclasses import dataclass, field
from typing import Literal

from .arguments import MIMTrainingArguments


@dataclass
class DBotTrainingArguments(MIMTrainingArguments):
    r"""
    Arguments of [`DBotTrainer`]. The defaults are those of the published commands (`PRETRAIN.md` and
    `main_pretrain.py` of the original; clipping as for ViT-B), except for the number of epochs and the batch size,
    which are transformers'.

    > Parameters that control the stages

    Args:
        stage_epochs (`list[int]`, *optional*): Epochs of every stage, such as `800 800`; `num_train_epochs` becomes
            their sum. One stage of `num_train_epochs` when not given.
        stage_teacher_depth (`list[int]`, *optional*): Blocks of the teacher in every stage, 0 for none; as many as the
            student has when not given. Of a deeper teacher, the blocks that the student lacks are random. A teacher
            with a name has all its blocks, whatever stands here for the first stage.
        reset_optimizer_at_stage (`bool`, defaults to `False`): Drop Adam's moments and step counter where a stage
            begins; in the original they go on.

    > Parameters that control the teacher

        teacher_model_name_or_path (`str`, *optional*): Folder or Hub id of the vision model that teaches in the first
            stage; `hf-mim pretrain` loads it. The student as it is before its first step when not given.
        teacher_feature (`"raw"`, `"normed"`, `"projected"` or `"auto"`, defaults to `"raw"`): Which of its features,
            see [`FeatureTeacher`]. Students that have become teachers are normed with `"normed"`, raw otherwise.
        teacher_resize (`"input"` or `"features"`, defaults to `"input"`): How the grid of a teacher with a name
            becomes the student's, see [`FeatureTeacher`].

    > Parameters that control the views

        min_crop_scale (`float`, defaults to 0.2): Smallest share of the image's area that a crop covers.

    > Parameters that control the optimisation

        base_learning_rate (`float`, defaults to 1.5e-4): Peak learning rate for a total batch of 256.
        min_learning_rate (`float`, defaults to 0): Learning rate that the cosine runs towards in every stage.
        warmup_epochs (`float`, defaults to 40): Epochs of linear warm-up from 0, in every stage. `warmup_steps` wins
            when it is given.
        weight_decay (`float`, defaults to 0.05): None on biases and 1-dimensional tensors.
        grad_clip (`"per_tensor"` or `"global"`, defaults to `"global"`): What `max_grad_norm`, 3, limits. The
            original clips for ViT-B only.
        adam_beta2 (`float`, defaults to 0.95): The second β of AdamW.
    """

    stage_epochs: list[int] | None = field(
        default=None, metadata={"help": "Epochs of every stage; their sum becomes --num_train_epochs."}
    )
    stage_teacher_depth: list[int] | None = field(
        default=None, metadata={"help": "Blocks of the teacher in every stage; the student's number if not given."}
    )
    reset_optimizer_at_stage: bool = field(
        default=False, metadata={"help": "Drop Adam's moments and step counter where a stage begins."}
    )
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of the vision model that teaches in the first stage; the random student if not "
            "given."
        },
    )
    teacher_feature: Literal["raw", "normed", "projected", "auto"] = field(
        default="raw",
        metadata={
            "help": "Which feature of the teacher: before its final norm, after it, or after its projection; 'auto' "
            "is the last of these that it has."
        },
    )
    teacher_resize: Literal["input", "features"] = field(
        default="input",
        metadata={"help": "What is resized where the grids of teacher and student differ: its images or features."},
    )
    min_crop_scale: float = field(
        default=0.2, metadata={"help": "Smallest share of the image's area that a crop covers."}
    )

    base_learning_rate: float = field(
        default=1.5e-4, metadata={"help": "Peak learning rate for a total batch of 256 images."}
    )
    min_learning_rate: float = field(
        default=0.0, metadata={"help": "Learning rate that the cosine schedule runs towards in every stage."}
    )
    warmup_epochs: float = field(
        default=40.0, metadata={"help": "Epochs of linear warm-up in every stage; --warmup_steps wins when given."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay at the start of training."})
    grad_clip: Literal["per_tensor", "global"] = field(
        default="global", metadata={"help": "What --max_grad_norm limits: each tensor, or all together."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "The second beta of AdamW."})

    def __post_init__(self):
        if self.stage_epochs is not None:
            if not self.stage_epochs or min(self.stage_epochs) < 1:
                raise ValueError(f"stage_epochs must be whole epochs of at least 1, got {self.stage_epochs}")
            self.num_train_epochs = sum(self.stage_epochs)
        super().__post_init__()
        depths = self.stage_teacher_depth
        if depths is not None and (len(depths) != self.num_stages or min(depths) < 0):
            raise ValueError(
                f"stage_teacher_depth must be a number of blocks, 0 or more, for each of {self.num_stages} stages "
                f"(stage_epochs), got {depths}"
            )
        if self.num_stages > 1 and self.lr_scheduler_type != "cosine":
            raise ValueError(
                f"lr_scheduler_type must be 'cosine' with several stages, in which it starts anew, got "
                f"{self.lr_scheduler_type!r}"
            )
        if not 0 < self.min_crop_scale <= 1:
            raise ValueError(f"min_crop_scale must lie in (0, 1], got {self.min_crop_scale}")

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return 1 if self.stage_epochs is None else len(self.stage_epochs)
