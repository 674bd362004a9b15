"""A target network that never changes: checkpoints record its name and fingerprint instead of a copy."""

import hashlib
import json
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from ..utils.layout import REFERENCE_FILE, TEACHER_FOLDER
from .arguments import MIMTrainingArguments
from .trainer import MIMTrainer


def fingerprint(module: nn.Module) -> str:
    """Return the hexadecimal SHA-256 of the names, types, shapes and bytes in the state dict of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_reference(folder: Path, name: str, sha256: str):
    """Write `reference.json` into `folder`, which is created if needed: the network's name and fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    reference = json.dumps({"name": name, "sha256": sha256}, indent=2) + "\n"
    (folder / REFERENCE_FILE).write_text(reference, encoding="utf-8")


def find_reference(source: str, **hub_options) -> dict[str, str] | None:
    """
    Read what `save_reference` wrote into `teacher/` of `source`, a folder or a Hub id.

    Returns:
        `dict`: `name` and `sha256`; None without such a file.

    Raises:
        OSError: If the file is damaged.
    """
    file = cached_file(
        source, REFERENCE_FILE, subfolder=TEACHER_FOLDER, _raise_exceptions_for_missing_entries=False, **hub_options
    )
    if file is None:
        return None
    try:
        reference = json.loads(Path(file).read_text(encoding="utf-8"))
        return {key: reference[key] for key in ("name", "sha256")}
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{source}/{TEACHER_FOLDER}/{REFERENCE_FILE} is damaged") from error


def check_reference(source: str, name: str, sha256: str, **hub_options):
    """
    Check that the checkpoint or model at `source` was trained with this target network.

    Args:
        source (`str`): Folder or Hub id.
        name (`str`): Name of this run's target network, for the message.
        sha256 (`str`): Its fingerprint.

    Raises:
        ValueError: If it was trained with another target network.
        OSError: If the file is missing or damaged.
    """
    reference = find_reference(source, **hub_options)
    if reference is None:
        raise FileNotFoundError(f"{source} has no {TEACHER_FOLDER}/{REFERENCE_FILE}, which names its target network")
    if reference["sha256"] != sha256:
        raise ValueError(
            f"{source} was trained with the target network {reference['name']}, and this run's, {name}, has other "
            "weights: give the one that it was trained with"
        )


class FrozenTargetTrainer(MIMTrainer):
    """
    [`MIMTrainer`] with a target network that is given and never changes. A checkpoint records its name and the
    fingerprint of its weights (`teacher/reference.json`). A run with another target network does not resume from it.

    Args:
        model (`PreTrainedModel`): Student.
        args (`MIMTrainingArguments`): All options.
        target (`nn.Module`): Target network. It is frozen, and stays in evaluation mode.
        target_name (`str`): Its name, for `reference.json` and messages.
        **kwargs: As for [`MIMTrainer`].
    """

    teacher: nn.Module

    def __init__(
        self, model: PreTrainedModel, args: MIMTrainingArguments, target: nn.Module, target_name: str, **kwargs
    ):
        self._target, self.target_name = target, target_name
        super().__init__(model=model, args=args, **kwargs)

    def build_target(self) -> nn.Module:
        return self._target.eval()

    @cached_property
    def target_fingerprint(self) -> str:
        """Fingerprint of this run's target network."""
        return fingerprint(self.teacher)

    def save_target(self, folder: Path, target: nn.Module):
        save_reference(folder, self.target_name, self.target_fingerprint)

    def load_target(self, source: str, **hub_options):
        check_reference(source, self.target_name, self.target_fingerprint, **hub_options)

    def continue_target(self, source: str, **hub_options):
        if find_reference(source, **hub_options) is not None:
            self.load_target(source, **hub_options)
