"""What a run needs of the machine, before any data are read: packages, shared memory."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..arguments import MIMTrainingArguments


SHARED_MEMORY = Path("/dev/shm")
# Module of each integration of transformers, and the name to install.
REPORTERS = {
    "azure_ml": ("azureml", "azureml-sdk"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}
# What an integration reads from the environment.
VARIABLES = {"kubeflow": "KUBEFLOW_TRAINER_SERVER_URL", "dagshub": "MLFLOW_TRACKING_URI"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def check_packages(args: MIMTrainingArguments) -> None:
    """
    Check that the packages of `--report_to` are installed.

    Raises:
        ValueError: For an unknown tracker, or a package that is missing. The message has the command that installs it.
    """
    for name in args.report_to or ():
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"report_to must be none or among {known}, got {name!r}")
        if name in VARIABLES and VARIABLES[name] not in os.environ:
            raise ValueError(f"--report_to {name} needs the environment variable {VARIABLES[name]}")
        module, package = REPORTERS.get(name, (None, None))
        if module is not None and importlib.util.find_spec(module) is None:
            raise ValueError(
                f"--report_to {name} needs the package {package}, which is not installed: pip install {package}"
            )


def batch_bytes(
    views: Callable[[Image.Image, np.random.Generator], dict[str, Any]], num_channels: int, batch_size: int
) -> int:
    """Return the bytes that the views of a batch take in shared memory."""
    sample = views(Image.new(MODES[num_channels], (64, 64)), np.random.default_rng(0))
    return batch_size * sum(value.nbytes for value in sample.values() if isinstance(value, torch.Tensor))


def evaluation_bytes(processor: BaseImageProcessor, num_channels: int, batch_size: int) -> int:
    """Return the bytes that a batch of an evaluation takes in shared memory."""
    image = processor(Image.new(MODES[num_channels], (64, 64)), return_tensors="pt")["pixel_values"]
    return batch_size * image.nbytes


def check_shared_memory(args: MIMTrainingArguments, train_bytes: int, eval_bytes: int) -> None:
    """
    Check that the batches that wait for the run fit into shared memory.

    A data-loading process that finds it full ends with a bus error, or waits for ever.

    Args:
        args (`MIMTrainingArguments`): Numbers of processes and of batches that they make in advance.
        train_bytes, eval_bytes (`int`): Bytes of a batch of the training and of an evaluation, 0 without one.

    Raises:
        ValueError: If they do not fit. The message has the largest number of processes that fits.
    """
    workers, ahead = args.dataloader_num_workers, args.dataloader_prefetch_factor or 2
    if not workers or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    runs = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def needed(workers: int) -> int:
        # Besides the batches in advance there is the one that the run works on.
        return runs * (workers * (ahead * train_bytes + 2 * eval_bytes) + train_bytes + eval_bytes)

    if needed(workers) <= free:
        return
    fitting = next((fewer for fewer in range(workers - 1, 0, -1) if needed(fewer) <= free), 0)
    raise ValueError(
        f"{workers} data-loading processes{f' of each of {runs} runs' if runs > 1 else ''} need up to "
        f"{needed(workers) / 2**20:.0f} MiB of shared memory for their batches, and {SHARED_MEMORY} has "
        f"{free / 2**20:.0f} MiB free: pass --dataloader_num_workers {fitting}, or give a container more "
        f"(docker run --shm-size {2 * needed(workers) / 2**30 + 0.5:.0f}g)"
    )
