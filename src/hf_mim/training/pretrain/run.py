"""What `hf-mim pretrain` has to know of a method; `ibot_method.py` and others say it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ...hub.export import export_native, native_image_processor
from ..arguments import MIMTrainingArguments
from ..trainer import MIMTrainer
from .options import DataArguments, ModelArguments


class Method(ABC):
    """
    One run of a method: from its options to a trainer, and from the trainer to what the run leaves behind.

    Each part is asked for once, in the order of the methods below, and raises `ValueError` or `OSError` when the
    options do not fit together, or to the weights to continue from.

    Args:
        model_args, data_args, args: The options of the run.
    """

    arguments_class: type[MIMTrainingArguments]
    trainer_class: type[MIMTrainer]
    # Template of the card; the one with the name of the encoder's model type when None.
    card: str | None = None
    # Images from which the pictures are drawn.
    num_example_images = 4
    # As the card shows them: name of the recipe, and the whole command.
    recipe: str | None = None
    command: str | None = None

    def __init__(self, model_args: ModelArguments, data_args: DataArguments, args: MIMTrainingArguments):
        self.model_args, self.data_args, self.args = model_args, data_args, args

    @property
    def keeps_full_model(self) -> bool:
        """Whether the full model is more than what is deployed, and is kept beside it in `pretraining/`."""
        return self.trainer_class.keeps_full_model

    def check_epochs(self, epochs: int):
        """Check what counts in epochs against a run of so many."""
        args = self.args
        if args.lr_scheduler_type == "cosine" and not args.warmup_steps and args.warmup_epochs >= epochs:
            raise ValueError(
                f"the learning rate's warm-up (warmup_epochs {args.warmup_epochs:g}) is as long as the run of "
                f"{args.num_train_epochs:g} epochs, or longer"
            )

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration of the model to train; of a model to continue from, only its configuration is read."""
        return self.build_config()

    @abstractmethod
    def build_config(self) -> PreTrainedConfig:
        """Makes `config`. A target network that decides some of it is loaded here, before the data are."""

    @abstractmethod
    def build_views(self) -> Callable:
        """What makes the views of an image, for a `ViewsDataset`."""

    @abstractmethod
    def build_processor(self) -> BaseImageProcessor:
        """The transform for evaluation and inference."""

    @abstractmethod
    def build_collator(self, make_samples: Callable | None) -> Callable:
        """What puts samples together; `make_samples` makes them from the rows of a stream."""

    @abstractmethod
    def build_model(self) -> PreTrainedModel:
        """The model to train: a new one, or one to continue from."""

    @abstractmethod
    def build_trainer(self, **common) -> MIMTrainer:
        """The trainer, from the arguments that those of all methods take."""

    def save_deployable(self, encoder: PreTrainedModel, processor: BaseImageProcessor, folder: Path):
        """Write what is published into `folder`, with its image processor: as plain ones, unless `facts` deny it."""
        if self.facts().get("native", True):
            encoder, processor = export_native(encoder), native_image_processor(processor)
        encoder.save_pretrained(folder)
        processor.save_pretrained(folder)

    def draw(
        self, encoder: PreTrainedModel, processor: BaseImageProcessor, images: list[Image.Image], output: Path
    ) -> list[str]:
        """Draw pictures of what the result does with `images` into `output`; gives the names of the files."""
        # Only here, because a run should not wait for matplotlib before its first step.
        from ...analysis.attention import plot_attention

        plot_attention(encoder, images, processor, output / "attention.png")
        return ["attention.png"]

    def drawn_masks(self, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """What the masks of a batch of the collator hide: bool `[B, N]` or `[B, G, N]`; None without masks."""
        return batch.get("bool_masked_pos")

    def facts(self) -> dict:
        """What card and summary tell beside the figures of every run."""
        return {}

    def headline(self, facts: dict, output_dir: str) -> list[str]:
        """The lines in which a finished run says what it learned and how to load it, from its `metrics.json`."""
        lines = []
        names = [
            key.removeprefix("eval_knn_") for key in facts if key.startswith("eval_knn_") and key.endswith("_top1")
        ]
        if names:
            name = "20_top1" if "20_top1" in names else names[-1]
            start = facts["started_from"] or "random initialisation"
            rows = {
                "raw pixels": facts.get(f"raw_pixels_knn_{name}"),
                start: facts.get(f"initial_knn_{name}"),
                f"after {facts['steps']} steps": facts[f"eval_knn_{name}"],
            }
            lines += [
                f"{name.split('_')[0]}-NN accuracy on {facts['eval_images']} held-out images "
                f"({facts['bank_images']} neighbours to choose from)"
            ]
            lines += [f"  {label:<24}{value:5.1f} %" for label, value in rows.items() if value is not None]
            lines.append("")
        native = facts.get("native", True)
        *files, last = ["Encoder", "card", *facts["pictures"]]
        return [
            *lines,
            f"{', '.join(files)} and {last} are in {output_dir}. "
            + ("Three lines load it, without hf_mim:" if native else "Four lines load it:\n  import hf_mim"),
            "  from transformers import AutoImageProcessor, AutoModel",
            f'  processor = AutoImageProcessor.from_pretrained("{output_dir}")',
            f'  model = AutoModel.from_pretrained("{output_dir}")',
        ]


def pixel_size(name: str, size: list[int], patch_size: int, patch: str = "the patch size") -> tuple[int, int]:
    """
    Height and width from an option that is one number or both; `ValueError` unless they are whole patches, or what
    else `patch` says.
    """
    if len(size) not in (1, 2):
        raise ValueError(f"{name} must be one number, or height and width, got {size}")
    if any(side < patch_size or side % patch_size for side in size):
        raise ValueError(f"{name} {size} must be a multiple of {patch} {patch_size}")
    return size[0], size[-1]
