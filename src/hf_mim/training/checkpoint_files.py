"""Read the pickles of a checkpoint without running code in them, and check that they are what they should be."""

import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_pt_utils import safe_globals

from .manifest import LATEST


def load_plain(file: str | Path) -> Any:
    """
    Load a file of `torch.save` that holds tensors and plain values. Nothing in it is run.

    Raises:
        OSError: If it is damaged or holds anything else.
    """
    try:
        with safe_globals():
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise OSError(f"{file} is not read: it holds more than tensors and plain values.{LATEST}") from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, RecursionError) as error:
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
