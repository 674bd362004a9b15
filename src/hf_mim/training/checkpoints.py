"""Checkpoints that are whole or not there: what belongs to one, how it is written, which one to resume from."""

import json
import logging
import os
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.datasets import StreamedViewsDataset
from ..utils.files import failed_write, sync, sync_folder
from ..utils.manifest import LATEST, MANIFEST_FILE, check_manifest, write_manifest


logger = logging.getLogger(__name__)

STAGING_FOLDER = ".saving"
TRASH_FOLDER = ".removing"
WEIGHTS, FSDP_WEIGHTS, OPTIMIZER, FSDP_OPTIMIZER = (
    "model.safetensors",
    "pytorch_model_fsdp_0",
    "optimizer.pt",
    "optimizer_0",
)


def required_parts(trainer: Trainer, *others: str) -> tuple[str, ...]:
    """
    Return the files and folders that this process needs to resume. What is missing here, `Trainer` would replace by a
    fresh start without a message.

    Args:
        trainer (`Trainer`): The trainer that resumes.
        *others (`str`): Further parts.
    """
    args = trainer.args
    random_state = "rng_state.pth" if args.world_size == 1 else f"rng_state_{args.process_index}.pth"
    networks = (FSDP_WEIGHTS, FSDP_OPTIMIZER) if trainer.is_fsdp_enabled else (WEIGHTS, OPTIMIZER)
    scaler = () if trainer.accelerator.scaler is None else ("scaler.pt",)
    return *networks, "scheduler.pt", *scaler, random_state, TRAINER_STATE_NAME, *others


def run_facts(args: TrainingArguments, train_dataset) -> dict[str, Any]:
    """Return what must be the same for a resumed run to take the steps of the interrupted one."""
    facts = {
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "number of processes": args.world_size,
        "seed": args.seed,
        "data_seed": args.data_seed,
    }
    if not isinstance(train_dataset, IterableDataset):
        return facts | {"number of training images": None if train_dataset is None else len(train_dataset)}
    # Each worker reads its own shards of a stream, so the number of workers decides the order.
    facts["dataloader_num_workers"] = args.dataloader_num_workers
    return facts | (train_dataset.order if isinstance(train_dataset, StreamedViewsDataset) else {})


def saved_step(checkpoint: str) -> int:
    """Return the number of steps that the run of a checkpoint had taken."""
    return TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME)).global_step


@contextmanager
def staged_checkpoint(trainer: Trainer, limit: int | None) -> Iterator[Path]:
    """
    Write a checkpoint beside its place, and move it there when it is whole.

    In the block, `Trainer._save_checkpoint` writes into a staging folder, uploads nothing and removes nothing. All
    processes must enter the block.

    Args:
        trainer (`Trainer`): The trainer that saves.
        limit (`int`, *optional*): Number of checkpoints to keep.

    Yields:
        `Path`: Folder of the checkpoint within the staging folder, for further parts.

    Raises:
        OSError: If it cannot be written. The checkpoints before it stay.
    """
    args, state = trainer.args, trainer.state
    output_dir, name = Path(str(args.output_dir)), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    staging = output_dir / STAGING_FOLDER
    pushes = args.push_to_hub
    try:
        if args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        args.output_dir, args.push_to_hub = str(staging), False
        yield staging / name
        args.output_dir, args.push_to_hub = str(output_dir), pushes
        trainer.accelerator.wait_for_everyone()
        if args.should_save:
            torch.save(args, staging / name / TRAINING_ARGS_NAME)
            if state.best_global_step == state.global_step:
                state.best_model_checkpoint = str(output_dir / name)
                state.save_to_json(str(staging / name / TRAINER_STATE_NAME))
            write_manifest(staging / name, run_facts(args, trainer.train_dataset))
            put_in_place(staging / name, output_dir / name)
            remove_old_checkpoints(output_dir, limit, state.best_global_step)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = failed_write(error)
        if isinstance(error, RuntimeError) and reason is None:
            raise
        raise OSError(f"cannot save {output_dir / name}: {reason or error}. {describe_last(output_dir)}") from error
    finally:
        args.output_dir, args.push_to_hub = str(output_dir), pushes
        if args.should_save:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def saved_if_it_fails(trainer: Trainer) -> Iterator[None]:
    """
    Save the checkpoint of this step if the block, an evaluation, fails.

    Trainer evaluates before it saves: the steps since the last checkpoint would be lost.
    """
    try:
        yield
    except Exception:
        if trainer.control.should_save and trainer.is_in_train:
            assert isinstance(trainer.model, nn.Module)
            trainer._save_checkpoint(trainer.model, None)
        raise


def put_in_place(staging: Path, folder: Path):
    """Move a finished checkpoint to its place, and wait until it is on the disk."""
    sync_folder(staging)
    if folder.exists():
        remove_checkpoint(folder)
    os.rename(staging, folder)
    sync(folder.parent)


def remove_checkpoint(folder: Path):
    """Delete a checkpoint. If the process is killed halfway, no damaged checkpoint is left under its name."""
    trash = folder.with_name(TRASH_FOLDER)
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(folder, trash)
    shutil.rmtree(trash)


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """List the checkpoints in `output_dir`, the oldest first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = {}
    if os.path.isdir(output_dir):
        for path in Path(output_dir).iterdir():
            match = pattern.fullmatch(path.name)
            if match and path.is_dir():
                found[int(match[1])] = path
    return [found[step] for step in sorted(found)]


def remove_old_checkpoints(output_dir: str | Path, limit: int | None, best_step: int | None):
    """Keep the `limit` newest checkpoints, among them always that of `best_step`; without a limit keep all."""
    if not limit or limit < 0:
        return
    checkpoints = list_checkpoints(output_dir)
    kept = [path for path in checkpoints if path.name == f"{PREFIX_CHECKPOINT_DIR}-{best_step}"]
    newest = [path for path in reversed(checkpoints) if path not in kept]
    # The newest stays even if the best fills the limit.
    kept += newest[: max(limit - len(kept), 1)]
    for path in checkpoints:
        if path not in kept:
            remove_checkpoint(path)


def check_whole(folder: str | Path, required: tuple[str, ...], contents: bool = True) -> dict[str, Any]:
    """
    Check that no part of a checkpoint is missing, cut off or altered.

    Args:
        folder (`str` or `Path`): The checkpoint.
        required (`tuple[str, ...]`): Files and folders that it must have.
        contents (`bool`, defaults to `True`): Whether to compare the contents of the files, too.

    Returns:
        `dict`: Facts of the run that wrote it, see [`run_facts`].

    Raises:
        OSError: If the checkpoint does not exist or is not whole. The message names the part.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint {folder}")
    for name in (MANIFEST_FILE, *required):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder} has no {name}, so it cannot be resumed from (was it saved by another number of "
                f"processes?).{LATEST}"
            )
    return check_manifest(folder, contents, required)


def check_same_run(folder: str | Path, before: dict[str, Any], now: dict[str, Any]):
    """Raise `ValueError` if the run that wrote a checkpoint would have taken other steps than the current one."""
    for name, value in now.items():
        if before.get(name) != value:
            raise ValueError(
                f"{folder} was saved with {name} {before.get(name)}, this run has {value}: it would not take the "
                "same steps. Restore the old value, or pass the folder as --model_name_or_path to a new --output_dir"
            )


def checkpoint_to_resume(trainer: Trainer, choice: str | bool | None, parts: tuple[str, ...]) -> str | None:
    """
    Find the checkpoint to resume from, see [`find_checkpoint`], and check it in every process.

    Args:
        trainer (`Trainer`): The trainer that resumes.
        choice (`str` or `bool`, *optional*): As for [`find_checkpoint`].
        parts (`tuple[str, ...]`): Parts that this trainer adds to those of `Trainer`.

    Raises:
        OSError: If it is not whole.
        ValueError: If it belongs to another run or another model.
    """
    args, required, checkpoint = trainer.args, required_parts(trainer, *parts), None
    if args.should_save:
        checkpoint = find_checkpoint(choice, str(args.output_dir), required, run_facts(args, trainer.train_dataset))
    if args.world_size > 1:
        # Over a shared file system, another process may not see yet what the first one sees.
        checkpoint = broadcast_object_list([checkpoint])[0]
        if checkpoint is not None:
            check_whole(checkpoint, required, contents=False)
    if checkpoint is not None:
        assert trainer.model is not None
        check_fits(checkpoint, trainer.model, None if trainer.is_fsdp_enabled else trainer.create_optimizer())
    return checkpoint


def check_fits(checkpoint: str, model: nn.Module, optimizer: torch.optim.Optimizer | None):
    """
    Compare names and shapes in a checkpoint with a model and its optimizer, without reading the tensors.

    Args:
        checkpoint (`str`): Folder of the checkpoint.
        model (`nn.Module`): Student, not yet sharded.
        optimizer (`Optimizer`, *optional*): None under FSDP, where the optimizer is stored by names of parameters.

    Raises:
        ValueError: If it is a checkpoint of another model.
        OSError: If a file is damaged.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if optimizer is None:
        stored = FileSystemReader(os.path.join(checkpoint, FSDP_WEIGHTS)).read_metadata().state_dict_metadata
        found = {
            name.removeprefix("model."): tuple(tensor.size)
            for name, tensor in stored.items()
            if isinstance(tensor, TensorStorageMetadata)
        }
    else:
        try:
            with safe_open(os.path.join(checkpoint, WEIGHTS), "pt") as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        except SafetensorError as error:
            raise OSError(f"{checkpoint}/{WEIGHTS} is damaged: {error}.{LATEST}") from error
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    for verb, names in (("lacks", missing), ("has also", unexpected)):
        if names:
            raise ValueError(f"{checkpoint} is of another model: it {verb} {', '.join(names[:5])}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{checkpoint} is of another model: {name} has the shape {list(found[name])} there, {list(shape)} here"
            )
    if optimizer is not None:
        try:
            _check_optimizer_fits(f"{checkpoint}/{OPTIMIZER}", optimizer)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise OSError(f"{checkpoint}/{OPTIMIZER} is not the state of an optimizer.{LATEST}") from error
    check_states(checkpoint)


def _check_optimizer_fits(file: str, optimizer: torch.optim.Optimizer):
    saved = load_plain(file)
    groups = [[len(group["params"]) for group in state["param_groups"]] for state in (saved, optimizer.state_dict())]
    if groups[0] != groups[1]:
        raise ValueError(f"{file} is of another model: it has groups of {groups[0]} parameters, this one {groups[1]}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        state = saved["state"].get(number, {})
        for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            moment = state.get(name)
            if moment is not None and moment.shape != parameter.shape:
                raise ValueError(
                    f"{file} is of another model: {name} of parameter {number} has the shape {list(moment.shape)} "
                    f"there, {list(parameter.shape)} here"
                )


def load_plain(file: str | Path) -> Any:
    """
    Load a file of `torch.save` that holds tensors and plain values. Nothing in it is run.

    Raises:
        OSError: If it is damaged or holds anything else.
    """
    try:
        with zipfile.ZipFile(file) as entries:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.infolist()):
                raise ValueError("its entries are compressed")
        with safe_globals():
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise OSError(f"{file} is not read: it holds more than tensors and plain values.{LATEST}") from error
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        RecursionError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise OSError(f"{file} is damaged: {reason}.{LATEST}") from error


def check_states(checkpoint: str) -> None:
    """
    Check the states of schedule, random number generators and Trainer, which are restored after the first batch is
    prepared.

    Args:
        checkpoint (`str`): Folder of the checkpoint.

    Raises:
        OSError: If one of them is damaged, or not what its name says.
    """
    state_file = os.path.join(checkpoint, TRAINER_STATE_NAME)
    try:
        step = TrainerState.load_from_json(state_file).global_step
        if not isinstance(step, int) or step < 0:
            raise TypeError(f"global_step is {step!r}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise OSError(f"{state_file} is damaged: {str(error).partition(chr(10))[0]}.{LATEST}") from error
    for path in sorted(Path(checkpoint).rglob("config.json")):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise OSError(f"{path} is damaged: {error}.{LATEST}") from error
        if not isinstance(config, dict):
            raise OSError(f"{path} is not a configuration.{LATEST}")
    for path in sorted(Path(checkpoint).glob("*.pt*")):
        if path.name == "optimizer.pt" or not path.is_file():
            continue
        state = load_plain(path)
        if not isinstance(state, dict):
            raise OSError(f"{path} holds {type(state).__name__}, not the state of anything.{LATEST}")
        if path.name.startswith("rng_state"):
            _check_random_state(path, state)
        elif path.name == "scheduler.pt" and not isinstance(state.get("last_epoch"), int):
            raise OSError(f"{path} is not the state of a schedule.{LATEST}")


def _check_random_state(path: Path, state: dict[str, Any]) -> None:
    try:
        # In generators of their own: those of the process stay as they are.
        random.Random().setstate(state["python"])
        np.random.RandomState().set_state(state["numpy"])
        torch.Generator().set_state(state["cpu"])
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise OSError(f"{path} is not the state of random number generators.{LATEST}") from error


def find_checkpoint(
    choice: str | bool | None, output_dir: str | Path, required: tuple[str, ...], run: dict[str, Any]
) -> str | None:
    """
    Find the checkpoint to resume from: it must be whole and belong to a run like this one.

    Args:
        choice (`str` or `bool`, *optional*): A folder; True for the newest checkpoint in `output_dir`; "latest" for
            the newest whole one, or a new start if there is no checkpoint at all; None or False for a new start.
        output_dir (`str` or `Path`): Folder of the run.
        required (`tuple[str, ...]`): Parts that the checkpoint must have, see [`required_parts`].
        run (`dict`): Facts of the current run, see [`run_facts`].

    Returns:
        `str`: Folder of the checkpoint; None for a new start.

    Raises:
        OSError: If the checkpoint, or with "latest" every checkpoint, is not whole.
        ValueError: If there is none in `output_dir`, or it belongs to another run.
    """
    if not choice:
        return None
    checkpoints = list_checkpoints(output_dir)
    if choice == "latest" and not checkpoints:
        logger.warning(f"there is no checkpoint in {output_dir}: starting from the beginning")
        return None
    if choice is True and not checkpoints:
        raise ValueError(f"there is no checkpoint in {output_dir} to resume from")
    if choice is True:
        candidates = checkpoints[-1:]
    else:
        candidates = checkpoints[::-1] if choice == "latest" else [Path(choice)]
    for checkpoint in candidates:
        try:
            before = check_whole(checkpoint, required)
        except OSError as error:
            if choice != "latest":
                raise
            logger.warning(f"{error}; looking for an older one")
            continue
        check_same_run(checkpoint, before, run)
        logger.warning(f"resuming from {checkpoint}")
        return str(checkpoint)
    raise OSError(f"none of the checkpoints in {output_dir} is whole: remove them for a new start")


def describe_last(output_dir: str | Path) -> str:
    """Return a sentence about the newest checkpoint, for messages."""
    checkpoints = list_checkpoints(output_dir)
    return f"The last checkpoint is {checkpoints[-1]}." if checkpoints else "There is no checkpoint yet."
