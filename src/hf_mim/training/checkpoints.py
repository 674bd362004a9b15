"""Checkpoints that are whole or not there: what belongs to one, how it gets its name, which one to resume from."""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..utils.files import sync, sync_folder


logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
LATEST = " --resume_from_checkpoint latest takes the newest whole one"
STAGING_FOLDER = ".saving"
TRASH_FOLDER = ".removing"


def write_manifest(folder: Path, run: dict[str, Any]):
    """List the files of `folder` with their sizes in bytes, and what the run that wrote them was like."""
    files = {
        file.relative_to(folder).as_posix(): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    (folder / MANIFEST_FILE).write_text(json.dumps({"run": run, "files": files}, indent=2) + "\n", encoding="utf-8")


def put_in_place(staging: Path, folder: Path):
    """Give a finished checkpoint its name; from then on it survives whatever happens."""
    sync_folder(staging)
    if folder.exists():
        remove_checkpoint(folder)
    os.rename(staging, folder)
    sync(folder.parent)


def remove_checkpoint(folder: Path):
    """Delete a checkpoint; killed halfway, it is gone from its name all the same."""
    trash = folder.with_name(TRASH_FOLDER)
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(folder, trash)
    shutil.rmtree(trash)


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoints in `output_dir`, the oldest first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = {}
    if os.path.isdir(output_dir):
        for path in Path(output_dir).iterdir():
            match = pattern.fullmatch(path.name)
            if match and path.is_dir():
                found[int(match[1])] = path
    return [found[step] for step in sorted(found)]


def remove_old_checkpoints(output_dir: str | Path, limit: int | None, best_step: int | None):
    """Keep the `limit` newest checkpoints, counting that of `best_step` among them; no limit keeps all."""
    if not limit or limit < 0:
        return
    checkpoints = list_checkpoints(output_dir)
    kept = [path for path in checkpoints if path.name == f"{PREFIX_CHECKPOINT_DIR}-{best_step}"]
    newest = [path for path in reversed(checkpoints) if path not in kept]
    # The newest stays even where the best is the only one within the limit.
    kept += newest[: max(limit - len(kept), 1)]
    for path in checkpoints:
        if path not in kept:
            remove_checkpoint(path)


def check_whole(folder: str | Path, required: tuple[str, ...]) -> dict[str, Any]:
    """
    Make sure that nothing of a checkpoint is missing or cut off.

    Args:
        folder (`str` or `Path`): The checkpoint.
        required (`tuple[str, ...]`): Files and folders that it must have.

    Returns:
        What the run that wrote it was like.

    Raises:
        OSError: If it is not there, or not whole; names the part.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint {folder}")
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        run, files = manifest["run"], manifest["files"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} has no {MANIFEST_FILE}, which says whether it is whole.{LATEST}") from None
    except (ValueError, KeyError) as error:
        raise OSError(f"{folder / MANIFEST_FILE} is damaged.{LATEST}") from error
    for name in required:
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder} has no {name}, so it cannot be resumed from (was it saved by another number of "
                f"processes?).{LATEST}"
            )
    for name, size in files.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has lost {name}.{LATEST}")
        found = (folder / name).stat().st_size
        if found != size:
            raise OSError(f"{folder / name} has {found} bytes instead of {size}.{LATEST}")
    return run


def check_same_run(folder: str | Path, before: dict[str, Any], now: dict[str, Any]):
    """Raise `ValueError` when the run that wrote a checkpoint would have taken other steps than the present one."""
    for name, value in now.items():
        if before.get(name) != value:
            raise ValueError(
                f"{folder} was saved with {name} {before.get(name)}, this run has {value}: it would not take the "
                "same steps. Set it back, or pass the checkpoint as --model_name_or_path to another --output_dir"
            )


def find_checkpoint(
    choice: str | bool | None, output_dir: str | Path, required: tuple[str, ...], run: dict[str, Any]
) -> str | None:
    """
    The checkpoint to resume from: one that is whole, and of a run like this one.

    Args:
        choice (`str` or `bool`, *optional*): A folder; True for the newest checkpoint in `output_dir`; "latest" for
            the newest whole one, or None when there is no checkpoint at all; nothing for None.
        output_dir, required, run: As for the other functions here; `run` is the present one.

    Raises:
        OSError: If the checkpoint, or with "latest" every one, is not whole.
        ValueError: If there is none in `output_dir`, or it is of another run.
    """
    if not choice:
        return None
    checkpoints = list_checkpoints(output_dir)
    if choice == "latest" and not checkpoints:
        logger.warning(f"there is no checkpoint in {output_dir}: starting from the beginning")
        return None
    if choice is True:
        if not checkpoints:
            raise ValueError(f"there is no checkpoint in {output_dir} to resume from")
        choice = checkpoints[-1]
    candidates = reversed(checkpoints) if choice == "latest" else [choice]
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
    """A sentence about the newest checkpoint, for messages."""
    checkpoints = list_checkpoints(output_dir)
    return f"The last checkpoint is {checkpoints[-1]}." if checkpoints else "There is no checkpoint yet."
