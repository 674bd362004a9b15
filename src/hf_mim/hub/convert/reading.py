"""Read checkpoint files of the original implementations without running code from pickles."""

import argparse
import io
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


# Keys of the network that the original implementation evaluates; the first one found is used.
NETWORK_ENTRIES = ("model", "module", "state_dict")
# Entries that are dropped, and why. Any other entry with tensors raises an error.
STATES = ("optimizer", "optimizers", "scheduler", "schedulers", "lr_scheduler", "scaler", "fp16_scaler")
LEFT_BEHIND = dict.fromkeys(STATES, "left behind, state of the training run") | {
    "model_ema": "left behind, moving average of the weights; the original code evaluates `model`"
}
# Prefixes of tensor names from wrapper modules. They occur in any order and repeatedly.
WRAPPERS = ("module.", "backbone.", "model.", "net.")


@dataclass
class OfficialCheckpoint:
    """
    The contents of an original checkpoint that this package uses.

    Attributes:
        name (`str`): File name, for messages.
        networks (`dict[str, dict[str, Tensor]]`): State dicts with the original tensor names, without wrapper prefixes
            and with the old names of weight norm (`weight_g`, `weight_v`): `"student"` and `"teacher"` for a full iBOT
            checkpoint, a single `"model"` otherwise. The tensors may be memory-mapped: copy them before use.
        centers (`dict[str, Tensor]`): `center` `[1, K]` and `center2` `[1, 1, P]` of a full iBOT checkpoint.
        args (`dict`): The options of the run that wrote the file, if it contains them.
        dropped (`list[str]`): Entries of the file that were dropped, each with the reason.
    """

    name: str
    networks: dict[str, dict[str, Tensor]]
    centers: dict[str, Tensor] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


class _Unneeded:
    """Placeholder for NumPy scalars in optimizer states. They are not used, so no NumPy code has to run."""

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


# Bytes per element of the storages of torch.
STORAGE_BYTES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage"), 1),
    "ComplexDoubleStorage": 16,
}

# Everything that a pickle may reference besides tensors and containers. Learning rates are NumPy scalars because the
# original schedules are NumPy arrays (`main_ibot.py`); NumPy 1 and 2 name the scalar constructor differently.
ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    (_Unneeded, "numpy.core.multiarray.scalar"),
    (_Unneeded, "numpy._core.multiarray.scalar"),
    (_Unneeded, "numpy.dtype"),
]


def read_official(source: str | Path | Mapping) -> OfficialCheckpoint:
    """
    Read a checkpoint of an original implementation.

    Args:
        source (`str`, `Path` or `Mapping`): A `.safetensors` file, a `torch.save` file of any version, or its
            content: a state dict, or a dict with state dicts under `student` and `teacher`, `model`, `module` or
            `state_dict`.

    Returns:
        [`OfficialCheckpoint`]: The networks and what belongs to them.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a checkpoint, or is damaged; if it references classes or functions that tensors
            do not need (no code in the file is ever run); if an unknown entry contains tensors; if `ibot_loss`
            contains anything but the two centers.
    """
    if isinstance(source, Mapping):
        return _unpacked(source, "the state dict")
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file")
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"{source} is a pipe or a device, which may never end: pass a regular file")
    if path.is_dir():
        raise ValueError(f"{source} is a folder: pass the checkpoint file (a folder of hf_mim needs no conversion)")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, not a checkpoint, which is a dict of tensors")
    checkpoint = _unpacked(content, path.name)
    for network in checkpoint.networks.values():
        for key, tensor in network.items():
            if tensor.is_meta:
                raise ValueError(f"{path.name}: {key} is without values (meta), plain tensors are wanted")
    return checkpoint


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or not a safetensors file ({error}): {_again(path)}") from error


def _again(path: Path) -> str:
    # An existing file is not downloaded again.
    return f"delete {path} and download it again"


def _read_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path.name} is empty: {_again(path)}")
    if start.lstrip().startswith((b"<", b"{")):
        raise ValueError(f"{path.name} is a text file or web page, not a checkpoint: the download failed")
    if start[8:9] == b"{":
        # A safetensors file with another suffix: eight bytes with the length of the header, then the JSON header.
        return _read_safetensors(path)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path.name} is a Git LFS pointer: download the file itself with `git lfs pull`")
    is_zip = zipfile.is_zipfile(path)
    if start.startswith(b"PK") and not is_zip:
        raise ValueError(f"{path.name} is truncated: {_again(path)}")
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            # Warnings about the pickle protocol and about TypedStorage are of no use here.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        if is_zip:
            _check_storages(path)
        return content
    except CutStorageError as error:
        raise ValueError(f"{path.name} is damaged: {error}: {_again(path)}") from error
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path.name} holds code: it references {named[1]}, which no checkpoint of these methods needs. None "
                f"of it was run. If you trust the file, save only its state dict and convert that"
            ) from error
        if is_zip and "Unsupported operand" in str(error):
            raise ValueError(
                f"{path.name} does not use pickle protocol 2, the default of torch.save and the only one that can be "
                f"read without running code"
            ) from error
        raise ValueError(f"{path.name} is not a checkpoint, or is damaged: torch.load cannot read it") from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise ValueError(f"{path.name} is not a checkpoint, or is damaged: torch.load cannot read it") from error


class CutStorageError(ValueError):
    """A tensor needs more bytes than its record in the file has."""


class _Storages(pickle.Unpickler):
    """Collects the storages that the pickle of a checkpoint refers to. Of its objects, nothing is built or run."""

    def __init__(self, file: Any):
        super().__init__(file)
        self.bytes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        if name in ("OrderedDict", "dict") and module in ("collections", "builtins", "__builtin__"):
            return OrderedDict
        return type(name, (_Unneeded,), {})

    def persistent_load(self, reference: Any) -> Any:
        _, kind, key, _, count = reference
        size = 1 if kind.__name__ == "UntypedStorage" else STORAGE_BYTES.get(kind.__name__, 1)
        self.bytes[str(key)] = max(self.bytes.get(str(key), 0), int(count) * size)
        return _Unneeded()


def _check_storages(path: Path) -> None:
    """
    Compare the storages that a file of `torch.save` refers to with its records, which `torch.load` does not do: it
    would read the bytes of the next record.

    Raises:
        CutStorageError: If a record is too short.
    """
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        pickled = next(name for name in sizes if name.endswith("/data.pkl") or name == "data.pkl")
        reader = _Storages(io.BytesIO(archive.read(pickled)))
        reader.load()
    folder = pickled.removesuffix("data.pkl")
    for key, wanted in reader.bytes.items():
        found = sizes.get(f"{folder}data/{key}", 0)
        if found < wanted:
            raise CutStorageError(f"the record data/{key} has {found} bytes, and its tensors need {wanted}")


def _unpacked(content: Mapping, name: str) -> OfficialCheckpoint:
    """Extract networks, centers and options from the nested dicts of a file."""
    args = content.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    args = dict(args) if isinstance(args, Mapping) else {}
    dropped = [f"{key}: {reason}" for key, reason in LEFT_BEHIND.items() if content.get(key) is not None]
    taken = {"args", "epoch", *LEFT_BEHIND}
    centers = {}
    if isinstance(content.get("student"), Mapping) and isinstance(content.get("teacher"), Mapping):
        networks = {"student": content["student"], "teacher": content["teacher"]}
        centers = _centers(content.get("ibot_loss"), name)
        taken |= {"student", "teacher", "ibot_loss"}
    else:
        entries = ("teacher", "student", *NETWORK_ENTRIES)
        entry = next((key for key in entries if isinstance(content.get(key), Mapping)), None)
        if entry is None:
            # The file is itself a state dict.
            return OfficialCheckpoint(name, {"model": _state_dict(content, name)})
        taken.add(entry)
        inner = content[entry]
        seen = {id(content)}
        while len(inner) == 1 and isinstance(next(iter(inner.values())), Mapping):
            if id(inner) in seen:
                raise ValueError(f"{name} holds a dict that contains itself, and no state dict")
            seen.add(id(inner))
            inner = next(iter(inner.values()))
        networks = {"model": inner}
    for key, value in content.items():
        if key not in taken and _holds_tensors(value):
            raise ValueError(
                f"{name} holds tensors in {key!r} besides {', '.join(networks)}, and their purpose is unknown"
            )
    networks = {network: _state_dict(weights, name) for network, weights in networks.items()}
    return OfficialCheckpoint(name, networks, centers, args, dropped)


def _centers(content: Any, name: str) -> dict[str, Tensor]:
    """Return the centers from the state dict of the original `iBOTLoss`."""
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{name}: ibot_loss is a {type(content).__name__}, not the state dict of the loss")
    for key, value in content.items():
        if key not in ("center", "center2") or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(
                f"{name}: ibot_loss holds a {kind} {key!r}; only the tensors center and center2 are expected"
            )
    return dict(content)


def _holds_tensors(value: Any) -> bool:
    # Without recursion: the containers of a file may be nested deeply, and contain themselves.
    stack, seen = [value], set()
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            return True
        if isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            stack += value.values() if isinstance(value, Mapping) else value
    return False


def _state_dict(weights: Mapping, name: str) -> dict[str, Tensor]:
    """Return the tensors by their names without wrapper prefixes."""
    if not weights:
        raise ValueError(f"{name} holds no tensors")
    for key, value in weights.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise ValueError(f"{name} is not a checkpoint of tensors: {key!r} is a {type(value).__name__}")
        if value.layout != torch.strided or value.is_quantized:
            kind = "quantized" if value.is_quantized else "sparse"
            raise ValueError(f"{name}: {key} is {kind}, plain tensors are wanted")
    bare = {key: _unwrapped(key, WRAPPERS) for key in weights}
    # A tokenizer has other parts besides its encoder, so the prefix is needed there.
    if not any(inner.startswith(("decoder.", "quantize.")) for inner in bare.values()):
        bare = {key: _unwrapped(key, (*WRAPPERS, "encoder.")) for key in weights}
    found: dict[str, str] = {}
    for key, inner in bare.items():
        if inner in found:
            raise ValueError(
                f"{name} holds {found[inner]} and {key}, which have the same name without wrapper prefixes"
            )
        found[inner] = key
    return {inner: weights[key].detach() for key, inner in bare.items()}


def _unwrapped(key: str, wrappers: tuple[str, ...]) -> str:
    """Strip the prefixes of wrappers and compiled modules from `key`, and use the old names of weight norm."""
    key = key.replace("_orig_mod.", "")
    while key.startswith(wrappers):
        key = key.split(".", 1)[1]
    key = key.replace(".parametrizations.weight.original0", ".weight_g")
    return key.replace(".parametrizations.weight.original1", ".weight_v")
