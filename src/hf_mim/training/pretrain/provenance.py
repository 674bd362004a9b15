"""Describe where a result comes from, for its card: command, data, weights, hardware, time and versions."""

import glob
import importlib.metadata
import os
import platform
import re
import shlex
from pathlib import Path

import torch
from huggingface_hub import DatasetCard, try_to_load_from_cache
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...data.sources import FOLDER_BUILDERS
from ...hub.run_card import read_card_data
from ...utils.layout import TEACHER_FOLDER
from ..teachers import source_name
from .options import DataArguments, ModelArguments


PACKAGES = ("hf_mim", "transformers", "torch", "datasets")
# Values of `--dataset_name` that are not datasets of the Hub.
NO_DATASETS = (*FOLDER_BUILDERS, "photo-tiles")
SECRET = re.compile(r"--([\w-]+[_-])?token(=.*)?")
LINE = 100


def shown_recipe(argv: list[str]) -> str | None:
    """Return the name of the recipe in the arguments of `hf-mim pretrain`. Files are named without their folder."""
    return Path(argv[0]).name if argv and not argv[0].startswith("-") else None


def without_tokens(argv: list[str]) -> list[str]:
    """Leave out access tokens and their options from the arguments of `hf-mim pretrain`."""
    words, skipping = [], False
    for argument in argv:
        if SECRET.fullmatch(argument):
            skipping = "=" not in argument
        elif skipping and not argument.startswith("--"):
            skipping = False
        else:
            words.append(argument)
            skipping = False
    return words


def shown_command(argv: list[str]) -> str:
    """
    Return the command of a run for its card.

    Absolute paths, and those that lead out of the working folder, are reduced to their last names because they mean
    nothing on other machines. Access tokens are left out, and long commands are broken into lines.
    """
    words = []
    for argument in without_tokens(argv):
        option, separator, value = argument.partition("=")
        if argument.startswith("--") and separator:
            words.append(f"{option}={shlex.quote(_without_folders(value))}")
        else:
            words.append(shlex.quote(_without_folders(argument)))
    lines = ["hf-mim pretrain"]
    for number, word in enumerate(words):
        # Keeps an option and its value on one line.
        following = "" if number + 1 == len(words) or words[number + 1].startswith("--") else words[number + 1]
        if word.startswith("--") and len(lines[-1]) + len(word) + len(following) > LINE:
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)


def _without_folders(value: str) -> str:
    # A relative path below the working folder works elsewhere, too.
    if value.startswith(("/", "~", "../", "file:")) or value == ".." or re.match(r"[A-Za-z]:[\\/]", value):
        return _last_name(value)
    return value


def _last_name(path: str) -> str:
    """
    Reduce a path to its last name.

    Parts of a run keep the name of the run, as in `run/pretraining`. Of a glob pattern, the name of the last folder
    without a wildcard remains.
    """
    parts = [part for part in re.split(r"[\\/]+", os.path.abspath(path) if path.strip("./") == "" else path) if part]
    named = [part for part in parts if not glob.has_magic(part)]
    if len(named) > 1 and is_part_of_run(named[-1]):
        return "/".join(named[-2:])
    return named[-1] if named else parts[-1]


def is_part_of_run(name: str) -> bool:
    """Return whether a folder of this name is part of a run, so that the card is in the folder above."""
    return name in ("pretraining", TEACHER_FOLDER) or name.startswith(PREFIX_CHECKPOINT_DIR)


def describe_data(args: DataArguments) -> dict[str, str | None]:
    """Return name, Hub id (if any) and license of the training data, and the split of the evaluation."""
    name = args.dataset_name
    on_hub = name is not None and not os.path.exists(name) and name not in NO_DATASETS
    if name is None or (name in NO_DATASETS and args.train_dir is not None):
        name = args.train_dir
    assert name is not None
    card: object = None
    if on_hub:
        # Loading the data has downloaded the card, if there is one.
        card = try_to_load_from_cache(name, "README.md", repo_type="dataset")
    elif Path(name, "README.md").is_file():
        card = Path(name, "README.md")
    stated = None
    if isinstance(card, str | Path):
        stated = DatasetCard.load(card, ignore_metadata_errors=True).data.license
    return {
        "data": name if on_hub else _last_name(name),
        "dataset_id": name if on_hub else None,
        "data_license": args.data_license or _joined(stated),
        "eval_split": args.eval_split,
    }


def describe_start(args: ModelArguments) -> dict[str, str | None]:
    """Return name, license and Hub id of the model that a run continues from, and the license of the result."""
    source = args.model_name_or_path
    if source is None:
        start = {"started_from": None, "started_from_license": None, "base_model": None}
        return start | {"model_license": args.model_license}
    local = Path(source).is_dir()
    name = source_name(source)
    if local and is_part_of_run(name):
        source = str(Path(source).resolve().parent)
        name = source_name(source)
    card = read_card_data(source, **({} if local else args.hub_options))
    license = _joined(card.license)
    base_model = card.base_model if local else name
    return {
        "started_from": name,
        "started_from_license": license,
        "base_model": base_model,  # type: ignore[dict-item]  # a model has one base
        "model_license": args.model_license or license,
    }


def _joined(license: str | list[str] | None) -> str | None:
    return ", ".join(license) if isinstance(license, list) else license


def describe_hardware(args: TrainingArguments) -> dict[str, str | int]:
    """Return device, number of processes and precision of a training."""
    if args.device.type == "cuda":
        device = torch.cuda.get_device_name(args.device)
    else:
        device = {"cpu": f"CPU ({platform.machine()})", "mps": "Apple GPU"}.get(args.device.type, args.device.type)
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
    return {"device": device, "processes": args.world_size, "precision": precision}


def describe_time(log_history: list[dict], steps: int, total_batch: int) -> dict[str, float | None]:
    """
    Compute time and throughput of a training from its log, which a resumed run continues.

    Evaluations and checkpoints are not counted. Steps after the last log entry are assumed to be as fast as the rest.

    Args:
        log_history (`list[dict]`): `trainer.state.log_history`.
        steps (`int`): Steps of the run.
        total_batch (`int`): Images per step.

    Returns:
        `training_seconds` and `images_per_second`. Both are None if there is no log.
    """
    last, images, seconds = 0, 0, 0.0
    for entry in log_history:
        if entry.get("images_per_second"):
            share = (entry["step"] - last) * total_batch
            images, seconds, last = images + share, seconds + share / entry["images_per_second"], entry["step"]
    if not images:
        return {"training_seconds": None, "images_per_second": None}
    speed = images / seconds
    return {"training_seconds": round(steps * total_batch / speed, 1), "images_per_second": round(speed, 2)}


def versions() -> dict[str, str]:
    """Return the versions of the software that a result depends on."""
    found = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"Python": platform.python_version()} | found
