"""Life of a target network in a run: loaded from a checkpoint, sharded, and stored beside the student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, TrainerCallback
from transformers.utils import cached_file

from ..utils.layout import TEACHER_FOLDER
from .fsdp import WholeCopies, shard


if TYPE_CHECKING:
    from .trainer import MIMTrainer


class TargetCallback(TrainerCallback):
    """
    Restores the target network of a resumed run, and shards it as FSDP 2 shards the student.

    Args:
        trainer (`MIMTrainer`): Owner of the target network, `trainer.teacher`.
    """

    def __init__(self, trainer: MIMTrainer):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self._trainer
        assert trainer.teacher is not None
        if trainer.resumed_from is not None:
            trainer.load_target(trainer.resumed_from)
        if trainer.is_fsdp_enabled and trainer.target_method is not None and trainer.target_copies is None:
            trainer.target_copies = WholeCopies(trainer.teacher)
            trainer.teacher = shard(trainer.teacher, trainer.accelerator, trainer.target_method)


def has_target(source: str, **hub_options) -> bool:
    """Return whether there is a target network beside the model at `source`, a folder or a Hub id."""
    config = cached_file(
        source,
        "config.json",
        subfolder=TEACHER_FOLDER,
        _raise_exceptions_for_missing_entries=False,
        **hub_options,
    )
    return config is not None


def load_target_weights(target: PreTrainedModel, source: str, **hub_options):
    """
    Load the weights of a target network, in place, from `teacher/` of `source`, a folder or a Hub id.

    Raises:
        ValueError: If tensors are missing, or of another model.
    """
    loaded: Any = type(target).from_pretrained(
        source, subfolder=TEACHER_FOLDER, dtype=target.dtype, output_loading_info=True, **hub_options
    )
    saved, info = loaded
    if info["missing_keys"]:
        raise ValueError(f"{source}/{TEACHER_FOLDER} lacks {sorted(info['missing_keys'])[:3]}")
    try:
        target.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{source}/{TEACHER_FOLDER} is of another model: {error}") from error
