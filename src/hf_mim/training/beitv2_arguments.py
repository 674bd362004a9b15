"""Training arguments of BEiT v2."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .arguments import MIMTrainingArguments


@dataclass
class BlockMaskingArguments(MIMTrainingArguments):
    r"""
    Arguments of methods that mask blocks of patches of one crop per image.

    > Parameters that control the views

    Args:
        min_crop_scale (`float`, defaults to 0.2): Smallest share of the image's area that a crop covers, in (0, 1].
        color_jitter (`float`, defaults to 0.4): Strength of the colour jitter before the crop; 0 turns it off.

    > Parameters that control the masks

        num_masking_patches (`int`, *optional*): Masked patches of an image; the share of the method when not given.
        min_mask_patches_per_block (`int`, defaults to 16): Smallest area of a block, in patches.
        max_mask_patches_per_block (`int`, *optional*): Most patches that one block adds; no limit when not given.

    > Parameters that control the optimisation

        learning_rate (`float`, *optional*): Peak learning rate, whatever the batch; that of the original when
            `base_learning_rate` is not given either.
        base_learning_rate (`float`, *optional*): Peak learning rate for a total batch of 256 instead.
        min_learning_rate (`float`, defaults to 1e-5): Learning rate that the cosine runs towards.
        weight_decay (`float`, defaults to 0.05): None on biases, 1-dimensional tensors, CLS token and position table;
            mask token and relative positions are decayed.
        grad_clip (`"per_tensor"` or `"global"`, defaults to `"global"`): What `max_grad_norm`, 3, limits.
        adam_beta2 (`float`, defaults to 0.98): The second β of AdamW.
    """

    # Peak learning rate of the original.
    published_learning_rate: ClassVar[float]

    min_crop_scale: float = field(
        default=0.2, metadata={"help": "Smallest share of the image's area that a crop covers."}
    )
    color_jitter: float = field(default=0.4, metadata={"help": "Strength of the colour jitter; 0 turns it off."})

    num_masking_patches: int | None = field(
        default=None, metadata={"help": "Masked patches of an image; the method's share of them when not given."}
    )
    min_mask_patches_per_block: int = field(default=16, metadata={"help": "Smallest area of a block, in patches."})
    max_mask_patches_per_block: int | None = field(
        default=None, metadata={"help": "Most patches that one block adds; no limit when not given."}
    )

    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate, whatever the batch; the method's own when not given."}
    )
    base_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate for a total batch of 256 images instead."}
    )
    min_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate that the cosine schedule runs towards."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay at the start of training."})
    grad_clip: Literal["per_tensor", "global"] = field(
        default="global", metadata={"help": "What --max_grad_norm limits: each tensor, or all together."}
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
    `DataAugmentationForBEiT`), masks (`masking_generator.py`) and optimisation, and the following. The defaults are
    those of the released ViT-B/16 of 300 epochs (`run_beitv2_pretraining.py` and `PRETRAINING.md` of the original),
    except for the number of epochs and the batch size, which are transformers'. The runs of 1600 epochs take
    `adam_beta2=0.999` and a model with `drop_path_rate=0.1`.

    Without `num_masking_patches` 75 of 196 patches are masked, rounded. Without a learning rate the peak is 1.5e-3,
    which is meant for 2048 images per step.

    > Parameters that control the targets

    Args:
        tokenizer_name_or_path (`str`, *optional*): Folder or Hub id of the VQ-KD tokenizer whose codes are predicted;
            `hf-mim pretrain` needs it, and loads it.
        second_interpolation (`"bicubic"` or `"lanczos"`, defaults to `"bicubic"`): Filter of the tokenizer's
            rendering of the crop. The student's is bicubic.
    """

    published_learning_rate: ClassVar[float] = 1.5e-3

    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the VQ-KD tokenizer whose codes are predicted."}
    )
    second_interpolation: Literal["bicubic", "lanczos"] = field(
        default="bicubic", metadata={"help": "Filter of the tokenizer's rendering of the crop."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.second_interpolation not in ("bicubic", "lanczos"):
            raise ValueError(f"second_interpolation must be 'bicubic' or 'lanczos', got {self.second_interpolation!r}")
