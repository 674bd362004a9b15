"""The manifest of a checkpoint: which files it has, and the SHA-256 of each."""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
LATEST = " --resume_from_checkpoint latest takes the newest whole one"
# hashlib releases the interpreter's lock; more threads than that only wait for the disk.
MAX_THREADS = 4


def write_manifest(folder: Path, run: dict[str, Any]) -> None:
    """
    Write size and SHA-256 of each file in `folder`, and the facts of the run that wrote them.

    Args:
        folder (`Path`): The checkpoint, with all its files.
        run (`dict`): Facts of the run, as from [`~hf_mim.training.checkpoints.run_facts`].
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    digests = _digests([folder / name for name in names])
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, digests, strict=True)
    }
    (folder / MANIFEST_FILE).write_text(json.dumps({"run": run, "files": files}, indent=2) + "\n", encoding="utf-8")


def check_manifest(folder: Path, contents: bool = True, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """
    Check that all files of a manifest are there, with their sizes and contents.

    Manifests of 0.2 have sizes only, which is logged.

    Args:
        folder (`Path`): The checkpoint.
        contents (`bool`, defaults to `True`): Whether to read the files. One process of several is enough.
        required (`tuple[str, ...]`): Files, and folders of files, that the manifest must list.

    Returns:
        `dict`: Facts of the run that wrote the checkpoint.

    Raises:
        OSError: If there is no manifest, or a file is missing, cut off or altered. The message names it.
    """
    if (folder / MANIFEST_FILE).exists() and not (folder / MANIFEST_FILE).is_file():
        raise OSError(f"{folder / MANIFEST_FILE} is not a regular file.{LATEST}")
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        run, files = manifest["run"], manifest["files"]
        sizes = {name: entry if isinstance(entry, int) else int(entry["bytes"]) for name, entry in files.items()}
        known = {name: str(entry["sha256"]) for name, entry in files.items() if not isinstance(entry, int)}
        if not isinstance(run, dict) or not files:
            raise TypeError("the facts of the run are no mapping, or there are no files")
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} has no {MANIFEST_FILE}, so it cannot be checked.{LATEST}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise OSError(f"{folder / MANIFEST_FILE} is damaged.{LATEST}") from error
    for name in required:
        if name not in sizes and not any(listed.startswith(f"{name}/") for listed in sizes):
            raise OSError(f"{folder / MANIFEST_FILE} does not list {name}.{LATEST}")
    for name, size in sizes.items():
        path = folder / name
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise OSError(f"{folder / MANIFEST_FILE} is damaged: it lists {name}.{LATEST}")
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has lost {name}.{LATEST}")
        found = path.stat().st_size
        if found != size:
            raise OSError(f"{path} has {found} bytes instead of {size}.{LATEST}")
    if contents:
        if len(known) < len(sizes):
            logger.warning(f"{folder} was saved by an older version: only the sizes of its files can be checked")
        for name, digest in zip(known, _digests([folder / name for name in known]), strict=True):
            if digest != known[name]:
                raise OSError(f"{folder / name} has changed since it was saved (its SHA-256 is another).{LATEST}")
    return run


def _digests(files: list[Path]) -> list[str]:
    """Return the SHA-256 of files in hexadecimal, the largest first in work."""
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        order = sorted(range(len(files)), key=lambda index: -files[index].stat().st_size)
        futures = {index: pool.submit(_digest, files[index]) for index in order}
        return [futures[index].result() for index in range(len(files))]


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
