"""Find the image files, tables and shards of a folder, its splits and its classes."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .images import HEIF_EXTENSIONS, HEIF_HINT, IMAGE_EXTENSIONS, can_read_heif


# Word in a folder or file name -> the split it stands for.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
METADATA_FILES = ("metadata.csv", "metadata.jsonl")


@dataclass
class Files:
    """
    What was found below a folder.

    Attributes:
        root (`str`): The folder.
        data (`dict[str, list[str]]`): Absolute paths by kind ("image", "parquet", "tar"), in the order of their names.
        metadata (`list[str]`): Absolute paths of the `metadata.csv` and `metadata.jsonl` files.
        others (`Counter`): Number of files with an extension that is not read, by extension.
        special (`list[str]`): Pipes, sockets and devices, which are not opened.
        repeated (`list[str]`): Links to folders that were read already.
        hidden (`list[str]`): Folders, images and shards whose names start with a dot.
        empty (`list[str]`): Folders without anything in them.
    """

    root: str
    data: dict[str, list[str]] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    special: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    _parts: dict[str, "Files"] = field(default_factory=dict)
    _top: dict[tuple[str, ...], tuple[list[str], list[str]]] = field(default_factory=dict)

    def add(self, path: str) -> None:
        """Add a regular file."""
        kind = kind_of(path)
        if kind is not None:
            self.data.setdefault(kind, []).append(path)
        elif os.path.basename(path) in METADATA_FILES:
            self.metadata.append(path)
        else:
            self.others[os.path.splitext(path)[1].lower()] += 1

    def inside(self, folder: str) -> "Files":
        """Return the files below a sub-folder. What is left out stays with the whole."""
        if folder in self._parts:
            return self._parts[folder]
        start = os.path.join(folder, "")
        found = {kind: [file for file in files if file.startswith(start)] for kind, files in self.data.items()}
        metadata = [file for file in self.metadata if file.startswith(start)]
        self._parts[folder] = Files(folder, {kind: files for kind, files in found.items() if files}, metadata)
        return self._parts[folder]

    def top(self, kinds: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return the sub-folders that hold files of some kinds, and the files of these kinds beside them."""
        key = tuple(kinds)
        if key not in self._top:
            start = len(os.path.join(self.root, ""))
            files = [file for kind in key for file in self.data.get(kind, ())]
            folders = {file[start : file.find(os.sep, start)] for file in files if file.find(os.sep, start) >= 0}
            self._top[key] = sorted(folders), [file for file in files if file.find(os.sep, start) < 0]
        return self._top[key]

    def left_out(self) -> list[str]:
        """Describe what is not read, one line for each reason."""
        lines = []
        heif = sum(count for extension, count in self.others.items() if extension in HEIF_EXTENSIONS)
        if heif:
            lines.append(f"left out: {heif} HEIC {_plural('image', heif)}; {HEIF_HINT}")
        others = {name: count for name, count in self.others.items() if name not in HEIF_EXTENSIONS}
        if others:
            counts = ", ".join(f"{name or 'no extension'} {count}" for name, count in sorted(others.items()))
            lines.append(f"left out: {sum(others.values())} files that are no images ({counts})")
        if self.special:
            lines.append(f"left out: {len(self.special)} pipes or devices, such as {ascii_path(self.special[0])}")
        for what, paths in (("empty folders", self.empty), ("files or folders with hidden names", self.hidden)):
            if paths:
                lines.append(f"left out: {len(paths)} {what}, such as {ascii_path(paths[0])}")
        if self.repeated:
            lines.append(
                f"left out: {len(self.repeated)} links to folders that are read anyway, such as "
                f"{ascii_path(self.repeated[0])}"
            )
        return lines


def find_files(root: str) -> Files:
    """
    Walk through a folder in the order of names. Links are followed; each real folder is read once.

    Only regular files are listed: a pipe or a device would never end.
    """
    found = Files(root)
    read: set[tuple[int, int]] = set()
    stack = [(root, True)]
    while stack:
        path, is_folder = stack.pop()
        if not is_folder:
            found.add(path)
            continue
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in read:
            found.repeated.append(path)
            continue
        read.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            # In reverse, so that the first one is on top of the stack.
            in_order = sorted(entries, key=lambda entry: entry.name, reverse=True)
            if not in_order and path != root:
                found.empty.append(path)
            for entry in in_order:
                if entry.name.startswith("."):
                    # macOS writes ._NAME beside every file of some disks.
                    if not entry.name.startswith("._") and (kind_of(entry.name) or entry.is_dir()):
                        found.hidden.append(entry.path)
                elif entry.is_dir():
                    stack.append((entry.path, True))
                elif entry.is_file() or not os.path.exists(entry.path):
                    # A broken link is an image that cannot be read, like a damaged file.
                    stack.append((entry.path, False))
                else:
                    found.special.append(entry.path)
    return found


def ascii_path(path: str) -> str:
    """Return a path for a message of one line, with unprintable characters escaped."""
    return path if path.isprintable() else ascii(path)


def kind_of(path: str) -> str | None:
    """Return "image", "parquet" or "tar" by the extension of a file name; None for any other."""
    extension = path[path.rfind(".") :].lower()
    if extension in IMAGE_EXTENSIONS or (extension in HEIF_EXTENSIONS and can_read_heif()):
        return "image"
    return {".parquet": "parquet", ".tar": "tar"}.get(extension)


# --------------------------------------------------------------------------- splits


def split_folders(files: Files, split: str) -> tuple[dict[str, str], list[str]]:
    """
    Return the sub-folders that are splits, by the name of the split, and lines about what that leaves out.

    Sub-folders are splits if all of them that hold images or shards are named like one. `split` itself may have any
    other name.

    Raises:
        ValueError: If the names do not decide: several of them name splits, and others beside them do not; or two
            folders stand for the wanted split.
    """
    folders, beside = files.top(files.data)
    named = {name: SPLIT_WORDS.get(name.lower()) for name in folders}
    if split in folders and split.lower() not in SPLIT_WORDS:
        return {split: os.path.join(files.root, split)}, []
    words = [name for name in folders if named[name]]
    others = [name for name in folders if not named[name]]
    if not words:
        return {}, []
    if others:
        if len({named[name] for name in words}) > 1:
            raise ValueError(
                f"{files.root}: the sub-folders {', '.join(words)} name splits, but {_some(others)} beside them "
                f"{'does' if len(others) == 1 else 'do'} not: give the folder of one split, such as "
                f"{os.path.join(files.root, words[0])}, or, if all of them are classes, rename {', '.join(words)}"
            )
        return {}, [f"the sub-folder {words[0]} is no split, because {_some(others)} beside it names none"]
    found: dict[str, str] = {}
    for name in words:
        word = named[name]
        assert word is not None
        if word in found and SPLIT_WORDS.get(split.lower()) == word and split not in words:
            raise ValueError(
                f"{files.root} has two folders of the split {word}, {os.path.basename(found[word])} and {name}: "
                "give one of them"
            )
        if word not in found or name == split:
            found[word] = os.path.join(files.root, name)
    taken = found.get(SPLIT_WORDS.get(split.lower(), split))
    same = [name for name in words if named[name] == SPLIT_WORDS.get(split.lower())]
    lines = [
        f"left out: the sub-folder {name}, because {os.path.basename(taken)} is the split {split}"
        for name in same
        if taken is not None and name != os.path.basename(taken)
    ]
    if beside:
        lines.append(
            f"left out: {len(beside)} {_plural('file', len(beside))} beside the folders of splits, such as "
            f"{ascii_path(beside[0])}"
        )
    return found, lines


def group_by_split(files: list[str], split: str) -> dict[str, list[str]]:
    """
    Group shards by the split in their file names. If no shard names a split, all of them are "train".

    Raises:
        ValueError: If only some of them name a split.
    """
    groups: dict[str, list[str]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", Path(file).name.lower())
        named = [SPLIT_WORDS.get(word, word) for word in words if word in SPLIT_WORDS or word == split]
        groups.setdefault(named[0] if named else "", []).append(file)
    unnamed = groups.pop("", [])
    if unnamed and groups:
        raise ValueError(f"{unnamed[0]} names no split, but other files beside it do ({', '.join(sorted(groups))})")
    return groups or {"train": unnamed}


# --------------------------------------------------------------------------- classes


def class_folders(files: Files) -> list[str]:
    """
    Return the names of the sub-folders with images, which are their classes.

    Nothing if more images lie beside the sub-folders than in them: then these are not sorted into classes.
    """
    folders, beside = files.top(["image"])
    return [] if len(beside) > len(files.data.get("image", ())) / 2 else folders


def class_of(file: str, start: int) -> str | None:
    """Return the first folder in a path after its first `start` characters, or None if there is no folder."""
    end = file.find(os.sep, start)
    return file[start:end] if end >= 0 else None


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
