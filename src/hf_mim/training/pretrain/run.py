"""Base class of the runs of `hf-mim pretrain`. Each method has a subclass, in a file named after the method."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ...hub.export import export_native, native_image_processor
from ..arguments import MIMTrainingArguments
from ..schedules import fit_or_refuse
from ..trainer import MIMTrainer
from .options import DataArguments, ModelArguments


class PretrainRun(ABC):
    """
    One run of a method: builds the trainer from the options, and saves what the trained model is deployed as.

    `hf-mim pretrain` calls each `build_...` method once, in the order in which they are defined below. They raise
    `ValueError` or `OSError` if the options contradict each other or the weights to continue from.

    Args:
        model_args (`ModelArguments`): Model options.
        data_args (`DataArguments`): Data options.
        args (`MIMTrainingArguments`): Training options, an instance of `arguments_class`.
    """

    arguments_class: type[MIMTrainingArguments]
    trainer_class: type[MIMTrainer]
    # Template of the card. If None, the template named after the model type of the encoder.
    card: str | None = None
    # Number of images that `save_pictures` gets.
    num_example_images = 4
    # Name of the recipe and the whole command, for the card.
    recipe: str | None = None
    command: str | None = None
    # Arguments of the command, without access tokens.
    argv: list[str] | None = None

    def __init__(self, model_args: ModelArguments, data_args: DataArguments, args: MIMTrainingArguments):
        self.model_args, self.data_args, self.args = model_args, data_args, args
        # What the user should know about how the command was read, logged at the start.
        self.notes: list[str] = []

    @property
    def keeps_full_model(self) -> bool:
        """Whether the full pre-training model is saved in `pretraining/`, beside the model that is deployed."""
        return self.trainer_class.keeps_full_model

    @property
    def deploys_native(self) -> bool:
        """Whether the deployed model is a plain transformers model, which loads without hf_mim."""
        return True

    def check_schedules(self, epochs: float, steps_per_epoch: int | None = None) -> None:
        """
        Shorten or refuse the schedules that are longer than the run, before anything is trained.

        Args:
            epochs (`float`): Number of epochs of the run.
            steps_per_epoch (`int`, *optional*): Unknown before the data are loaded.

        Raises:
            ValueError: If a schedule is too long for the run, without `fit_schedules`.
        """
        too_long = self.trainer_class.schedules_too_long(self.args, epochs, steps_per_epoch)
        fit_or_refuse(self.args, too_long, self.argv)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Configuration of the model to train. No weights are loaded for it, except those of a target network."""
        return self.build_config()

    @abstractmethod
    def build_config(self) -> PreTrainedConfig:
        """Build `config`. A target network that determines some of its fields is loaded here, before the data."""

    @abstractmethod
    def build_views(self) -> Callable:
        """Build the callable that makes the views of an image, for a [`~hf_mim.data.datasets.ViewsDataset`]."""

    @abstractmethod
    def build_processor(self) -> BaseImageProcessor:
        """Build the image processor for evaluation and inference."""

    @abstractmethod
    def build_collator(self, make_samples: Callable | None) -> Callable:
        """
        Build the collator.

        Args:
            make_samples (`Callable`, *optional*): Makes the samples of a batch from rows of a stream. None if the
                dataset yields samples.
        """

    @abstractmethod
    def build_model(self) -> PreTrainedModel:
        """Build a new model to train, or load the model to continue from."""

    @abstractmethod
    def build_trainer(self, **common: Any) -> MIMTrainer:
        """
        Build the trainer.

        Args:
            **common: Arguments that the trainers of all methods take.
        """

    def save_deployable(self, encoder: PreTrainedModel, processor: BaseImageProcessor, folder: Path) -> None:
        """Save the deployed model and its image processor in `folder`, as plain ones if `deploys_native`."""
        if self.deploys_native:
            encoder = export_native(encoder)
            processor = native_image_processor(processor)
        encoder.save_pretrained(folder)
        processor.save_pretrained(folder)

    def save_pictures(
        self, encoder: PreTrainedModel, processor: BaseImageProcessor, images: list[Image.Image], output: Path
    ) -> list[str]:
        """
        Draw pictures of what the trained model does with some images.

        Args:
            encoder (`PreTrainedModel`): Deployed model.
            processor (`BaseImageProcessor`): Its image processor.
            images (`list[PIL.Image.Image]`): Images to draw, up to `num_example_images`.
            output (`Path`): Folder to write to.

        Returns:
            File names of the pictures.
        """
        # Imported late because importing matplotlib would delay the first step.
        from ...analysis.attention import plot_attention

        plot_attention(encoder, images, processor, output / "attention.png")
        return ["attention.png"]

    def drawn_masks(self, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """Return which patches of a batch are masked: bool `[B, N]` or `[B, G, N]`. None if the method masks none."""
        return batch.get("bool_masked_pos")

    def card_facts(self) -> dict[str, Any]:
        """Return what `metrics.json` and the card contain for this method in addition to the facts of every run."""
        return {}

    def summary_lines(self, facts: dict[str, Any], output_dir: str) -> list[str]:
        """
        Return the lines that a finished run prints: what it learned, and how to load it.

        Args:
            facts (`dict`): Contents of `metrics.json`.
            output_dir (`str`): Folder of the run.
        """
        lines = [facts["verdict"]["text"], ""] if "verdict" in facts else []
        names = [
            key.removeprefix("eval_knn_") for key in facts if key.startswith("eval_knn_") and key.endswith("_top1")
        ]
        if names:
            name = "20_top1" if "20_top1" in names else names[-1]
            start = facts["started_from"] or "random initialization"
            rows = {
                "raw pixels": facts.get(f"raw_pixels_knn_{name}"),
                start: facts.get(f"initial_knn_{name}"),
                f"after {facts['steps']} steps": facts[f"eval_knn_{name}"],
            }
            lines += [
                f"{name.split('_')[0]}-NN accuracy on {facts['eval_images']} held-out images "
                f"({facts['bank_images']} neighbors to choose from)"
            ]
            lines += [f"  {label:<24}{value:5.1f} %" for label, value in rows.items() if value is not None]
            lines.append("")
        pictures: list[str] = facts["pictures"]
        *files, last = ["Encoder", "card", *pictures]
        return [
            *lines,
            f"{', '.join(files)} and {last} are in {output_dir}. "
            + (
                "Three lines load it, without hf_mim:"
                if facts.get("native", True)
                else "Four lines load it:\n  import hf_mim"
            ),
            "  from transformers import AutoImageProcessor, AutoModel",
            f'  processor = AutoImageProcessor.from_pretrained("{output_dir}")',
            f'  model = AutoModel.from_pretrained("{output_dir}")',
        ]


def scale_range(name: str, scale: list[float]) -> tuple[float, float]:
    """Return the smallest and largest fraction of the image's area that a crop covers. `name` is the option's name."""
    if len(scale) != 2:
        raise ValueError(f"{name} must be (smallest, largest) fraction of the area, got {scale}")
    return scale[0], scale[1]


def pixel_size(name: str, size: list[int], patch_size: int, patch: str = "the patch size") -> tuple[int, int]:
    """
    Return height and width from an option that holds one number or both.

    Args:
        name (`str`): Name of the option.
        size (`list[int]`): Its value in pixels.
        patch_size (`int`): Height and width must be multiples of this.
        patch (`str`, defaults to `"the patch size"`): What to call `patch_size` in the message.

    Raises:
        ValueError: If there are more than two numbers, or one is not a positive multiple of `patch_size`.
    """
    if len(size) not in (1, 2):
        raise ValueError(f"{name} must be one number, or height and width, got {size}")
    if any(side < patch_size or side % patch_size for side in size):
        raise ValueError(f"{name} {size} must be a multiple of {patch} {patch_size}")
    return size[0], size[-1]
