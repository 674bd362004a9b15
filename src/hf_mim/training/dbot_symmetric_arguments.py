"""Training arguments of the symmetric variant of dBOT."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .beitv2_arguments import BlockMaskingArguments


@dataclass
class DBotSymmetricTrainingArguments(BlockMaskingArguments):
    r"""
    Arguments of [`DBotSymmetricTrainer`]: those of [`BlockMaskingArguments`] and the following ones.

    The defaults are the original's (branch `beit`), except for the number of epochs and the batch size, which are
    transformers'. By default, 78 of 196 patches are masked (the number is rounded, and some images have a few less),
    and the peak learning rate is 3e-3, which is meant for 4096 images per step.

    > Parameters that control the teacher

    Args:
        teacher_model_name_or_path (`str`, *optional*): Folder or Hub id of the vision model whose features are
            predicted. Required and loaded by `hf-mim pretrain`.
        teacher_feature (`"auto"`, `"projected"`, `"normed"` or `"raw"`, defaults to `"auto"`): Feature of the teacher,
            see [`FeatureTeacher`]. `"auto"` is the original's choice for CLIP, projected.
        teacher_resize (`"input"` or `"features"`, defaults to `"input"`): How features of the teacher are fit to the
            student's grid, see [`FeatureTeacher`].

    > Parameters with another default

        min_crop_scale (`float`, defaults to 0.4): Smallest fraction of the image's area that a crop covers, in
            (0, 1].
        adam_epsilon (`float`, defaults to 1e-6): The ε of AdamW.
        knn_pooling (`"cls"` or `"mean"`, defaults to `"mean"`): Feature of the k-NN evaluation. The CLS token has no
            target, and fine-tuning uses the mean of the patches.
    """

    published_learning_rate: ClassVar[float] = 3e-3

    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the vision model whose features are predicted."}
    )
    teacher_feature: Literal["auto", "projected", "normed", "raw"] = field(
        default="auto",
        metadata={
            "help": "Feature of the teacher: after its projection, after its final norm, or before the norm. 'auto' "
            "is the first of these that it has."
        },
    )
    teacher_resize: Literal["input", "features"] = field(
        default="input",
        metadata={
            "help": "What is resized if the grids of teacher and student differ: the teacher's images or features."
        },
    )

    min_crop_scale: float = field(
        default=0.4, metadata={"help": "Smallest fraction of the image's area that a crop covers."}
    )
    adam_epsilon: float = field(default=1e-6, metadata={"help": "The epsilon of AdamW."})
    knn_pooling: Literal["cls", "mean"] = field(
        default="mean", metadata={"help": "Feature of the k-NN evaluation: CLS token, or mean of the patches."}
    )
