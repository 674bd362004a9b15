"""Training arguments of BEiT v2."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .block_masking_arguments import BlockMaskingArguments


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
