"""Training arguments of BEiT v2, and of all methods that mask blocks of patches."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .arguments import MIMTrainingArguments


@dataclass
class BlockMaskingArguments(MIMTrainingArguments):
    r"""
    Arguments of the methods that take one crop per image and mask blocks of its patches.

    > Parameters that control the views

    Args:
        min_crop_scale (`float`, defaults to 0.2): Smallest fraction of the image's area that a crop covers, in
            (0, 1].
        color_jitter (`float`, defaults to 0.4): Strength of the color jitter before the crop. 0 disables it.

    > Parameters that control the masks

        num_masking_patches (`int`, *optional*): Number of masked patches of an image. By default, the original's
            fraction of all patches.
        min_mask_patches_per_block (`int`, defaults to 16): Minimum area of a block, in patches.
        max_mask_patches_per_block (`int`, *optional*): Maximum number of patches that a block adds. No limit by
            default.

    > Parameters that control the optimization

        learning_rate (`float`, *optional*): Peak learning rate, independent of the batch size. By default, the
            original's, unless `base_learning_rate` is given.
        base_learning_rate (`float`, *optional*): Peak learning rate for a total batch of 256.
        min_learning_rate (`float`, defaults to 1e-5): Learning rate that the cosine approaches.
        weight_decay (`float`, defaults to 0.05): Weight decay. Biases, 1-dimensional tensors, CLS token and position
            table have none, but mask token and relative positions do.
        grad_clip (`"per_tensor"` or `"global"`, defaults to `"global"`): Whether `max_grad_norm` limits the norm of
            each gradient tensor, or the norm of all gradients together.
        adam_beta2 (`float`, defaults to 0.98): The second β of AdamW.
    """

    # Peak learning rate of the original.
    published_learning_rate: ClassVar[float]

    min_crop_scale: float = field(
        default=0.2, metadata={"help": "Smallest fraction of the image's area that a crop covers."}
    )
    color_jitter: float = field(default=0.4, metadata={"help": "Strength of the color jitter. 0 disables it."})

    num_masking_patches: int | None = field(
        default=None,
        metadata={"help": "Number of masked patches of an image. By default, the original's fraction of all patches."},
    )
    min_mask_patches_per_block: int = field(default=16, metadata={"help": "Minimum area of a block, in patches."})
    max_mask_patches_per_block: int | None = field(
        default=None, metadata={"help": "Maximum number of patches that a block adds. No limit by default."}
    )

    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate, independent of the batch size. By default, the original's."},
    )
    base_learning_rate: float | None = field(  # type: ignore[assignment]  # only used if learning_rate is None
        default=None, metadata={"help": "Peak learning rate for a total batch of 256 images."}
    )
    min_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate that the cosine schedule approaches."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay at the start of training."})
    grad_clip: Literal["per_tensor", "global"] = field(
        default="global",
        metadata={"help": "Whether --max_grad_norm limits each gradient tensor, or all gradients together."},
    )
    adam_beta2: float = field(default=0.98, metadata={"help": "The second beta of AdamW."})

    def __post_init__(self):
        if self.learning_rate is None and self.base_learning_rate is None:
            self.learning_rate = self.published_learning_rate
        super().__post_init__()
        if not 0 < self.min_crop_scale <= 1:
            raise ValueError(f"min_crop_scale must lie in (0, 1], got {self.min_crop_scale}")


@dataclass
class Beitv2TrainingArguments(BlockMaskingArguments):
    r"""
    Arguments of [`Beitv2Trainer`]: those of [`BlockMaskingArguments`] for views (`datasets.py`,
    `DataAugmentationForBEiT`), masks (`masking_generator.py`) and optimization, and the following ones.

    The defaults are those of the released ViT-B/16 trained for 300 epochs (`run_beitv2_pretraining.py` and
    `PRETRAINING.md` of the original), except for the number of epochs and the batch size, which are transformers'. The
    runs of 1600 epochs use `adam_beta2=0.999` and a model with `drop_path_rate=0.1`.

    By default, 75 of 196 patches are masked (the number is rounded), and the peak learning rate is 1.5e-3, which is
    meant for 2048 images per step.

    > Parameters that control the targets

    Args:
        tokenizer_name_or_path (`str`, *optional*): Folder or Hub id of the VQ-KD tokenizer whose codes are predicted.
            Required and loaded by `hf-mim pretrain`.
        second_interpolation (`"bicubic"` or `"lanczos"`, defaults to `"bicubic"`): Resampling filter for the crop that
            the tokenizer sees. The student's filter is bicubic.
    """

    published_learning_rate: ClassVar[float] = 1.5e-3

    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the VQ-KD tokenizer whose codes are predicted."}
    )
    second_interpolation: Literal["bicubic", "lanczos"] = field(
        default="bicubic", metadata={"help": "Resampling filter for the crop that the tokenizer sees."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.second_interpolation not in ("bicubic", "lanczos"):
            raise ValueError(f"second_interpolation must be 'bicubic' or 'lanczos', got {self.second_interpolation!r}")
