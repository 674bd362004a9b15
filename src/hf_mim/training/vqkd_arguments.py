"""Training arguments of VQ-KD."""

from dataclasses import dataclass, field
from typing import Literal

from .arguments import MIMTrainingArguments


@dataclass
class VQKDTrainingArguments(MIMTrainingArguments):
    r"""
    Arguments of [`VQKDTrainer`].

    The defaults are those of the released tokenizers (`TOKENIZER.md` and `run_vqkd_training.py` of the original),
    except for the number of epochs and the batch size, which are transformers'.

    > Parameters that control the teacher

    Args:
        teacher_model_name_or_path (`str`, *optional*): Folder or Hub id of the vision model whose features the
            tokenizer learns to predict. Required and loaded by `hf-mim pretrain`.
        teacher_feature (`"auto"`, `"projected"`, `"normed"` or `"raw"`, defaults to `"auto"`): Feature of the teacher,
            see [`FeatureTeacher`]. `"auto"` is the original's choice for CLIP (projected) and DINO (normed).

    > Parameters that control the views

        crop_scale (`list[float]`, defaults to `[0.08, 1.0]`): Smallest and largest fraction of the image's area that a
            crop covers.
        color_jitter (`float`, defaults to 0.0): Strength of the color jitter before the crop. 0 disables it.

    > Parameters that control the optimization

        base_learning_rate (`float`, defaults to 1e-4): Peak learning rate for a total batch of 256.
        min_learning_rate (`float`, defaults to 1e-5): Learning rate that the cosine approaches.
        weight_decay (`float`, defaults to 1e-4): Weight decay. Biases, 1-dimensional tensors, CLS tokens and position
            tables have none.
        max_grad_norm (`float`, defaults to 0): Gradients are not clipped.
        adam_beta2 (`float`, defaults to 0.99): The second β of AdamW.
    """

    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the vision model whose features the tokenizer predicts."}
    )
    teacher_feature: Literal["auto", "projected", "normed", "raw"] = field(
        default="auto",
        metadata={
            "help": "Feature of the teacher: after its projection, after its final norm, or before the norm. 'auto' "
            "is the first of these that it has."
        },
    )

    crop_scale: list[float] = field(
        default_factory=lambda: [0.08, 1.0],
        metadata={"help": "Smallest and largest fraction of the image's area that a crop covers."},
    )
    color_jitter: float = field(default=0.0, metadata={"help": "Strength of the color jitter. 0 disables it."})

    base_learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak learning rate for a total batch of 256 images."}
    )
    min_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate that the cosine schedule approaches."}
    )
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay at the start of training."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Maximum gradient norm. 0 disables clipping."})
    adam_beta2: float = field(default=0.99, metadata={"help": "The second beta of AdamW."})

    @property
    def evaluation_metrics(self) -> list[str]:
        return ["loss", "codebook_usage", "perplexity"]
