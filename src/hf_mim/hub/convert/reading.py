"""Reading the checkpoint files of the original codes: pickles without running code from them, wrappers taken off."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


# Where a checkpoint keeps the network that the original evaluates; the first one found counts.
NETWORK_ENTRIES = ("model", "module", "state_dict")
# What training runs keep beside the networks, and why it is left behind. Anything else that holds tensors is an error.
STATES = ("optimizer", "optimizers", "scheduler", "schedulers", "lr_scheduler", "scaler", "fp16_scaler")
LEFT_BEHIND = dict.fromkeys(STATES, "left behind, state of the training run") | {
    "model_ema": "left behind, moving average of the weights; `model` is what the original evaluates"
}
# Wrappers that stand before the names of tensors, in any order, also repeatedly.
WRAPPERS = ("module.", "backbone.", "model.", "net.")


@dataclass
class OfficialCheckpoint:
    """
    What a checkpoint of an original code holds, as far as it concerns this package.

    Attributes:
        name (`str`): File name, for messages.
        networks (`dict[str, dict[str, Tensor]]`): State dicts under official names, without the wrappers' prefixes and
            with weight norm in its old spelling (`weight_g`, `weight_v`): `"student"` and `"teacher"` of a full iBOT
            checkpoint, otherwise one `"model"`. The tensors may lie in a memory-mapped file: copy them before use.
        centers (`dict[str, Tensor]`): `center` `[1, K]` and `center2` `[1, 1, P]` of a full iBOT checkpoint.
        args (`dict`): The options of the run that wrote the file, if it holds them.
        dropped (`list[str]`): Entries of the file that are left behind, with the reason.
    """

    name: str
    networks: dict[str, dict[str, Tensor]]
    centers: dict[str, Tensor] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


class _Unneeded:
    """Takes the place of the NumPy scalars in optimizer states, which are not used: nothing of NumPy is called."""

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


# All that an official file may name beside tensors and containers. Learning rates are NumPy scalars there, because the
# schedules are NumPy arrays (`main_ibot.py`); NumPy 1 and 2 give the function that makes them two names.
ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    (_Unneeded, "numpy.core.multiarray.scalar"),
    (_Unneeded, "numpy._core.multiarray.scalar"),
    (_Unneeded, "numpy.dtype"),
]


def read_official(source: str | Path | Mapping) -> OfficialCheckpoint:
    """
    Read a checkpoint of an original code.

    Args:
        source (`str`, `Path` or `Mapping`): A `.safetensors` file, a file of `torch.save` of any age, or what it
            holds: a state dict, or a dict with one in `student` and `teacher`, `model`, `module` or `state_dict`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or damaged; if it names classes or functions that tensors do not need (no
            code of the file is ever run); if it holds tensors in an entry whose meaning is not known, or something
            else than the two centres in `ibot_loss`.
    """
    if isinstance(source, Mapping):
        return _unpacked(source, "the state dict")
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file")
    if path.is_dir():
        raise ValueError(f"{source} is a folder: give the checkpoint file (a folder of hf_mim needs no conversion)")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, not a checkpoint, which is a dict of tensors")
    return _unpacked(content, path.name)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged, or not a safetensors file ({error}): {_again(path)}") from error


def _again(path: Path) -> str:
    # A file that is there is not downloaded again.
    return f"remove {path}, and download it again"


def _read_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path.name} is empty: {_again(path)}")
    if start.lstrip().startswith((b"<", b"{")):
        raise ValueError(f"{path.name} is a text or web page, not a checkpoint: the download has failed")
    if start[8:9] == b"{":
        # Whatever its name is: the length of the header, and the header.
        return _read_safetensors(path)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path.name} is a Git LFS pointer: fetch the file itself with `git lfs pull`")
    is_zip = zipfile.is_zipfile(path)
    if start.startswith(b"PK") and not is_zip:
        raise ValueError(f"{path.name} is incomplete, its end is missing: {_again(path)}")
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            # What torch has to say of a pickle protocol or of the past of its storages helps nobody here.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path.name} holds code: it names {named[1]}, which no checkpoint of these methods needs. Nothing of "
                f"it was run. If you trust the file, save the state dict alone and convert that"
            ) from error
        if is_zip and "Unsupported operand" in str(error):
            raise ValueError(
                f"{path.name} is not written as torch.save does by default (pickle protocol 2), which is all that can "
                f"be read without running code"
            ) from error
        raise ValueError(f"{path.name} is not a checkpoint, or damaged: torch.load cannot read it") from error
    except Exception as error:  # whatever a damaged file makes of the unpickler
        raise ValueError(f"{path.name} is not a checkpoint, or damaged: torch.load cannot read it") from error


def _unpacked(content: Mapping, name: str) -> OfficialCheckpoint:
    """Networks, centres and options out of the nested dicts of a file."""
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
            # The file is the state dict.
            return OfficialCheckpoint(name, {"model": _state_dict(content, name)})
        taken.add(entry)
        inner = content[entry]
        while len(inner) == 1 and isinstance(next(iter(inner.values())), Mapping):
            inner = next(iter(inner.values()))
        networks = {"model": inner}
    for key, value in content.items():
        if key not in taken and _holds_tensors(value):
            raise ValueError(f"{name} holds tensors in {key!r} beside {', '.join(networks)}: their use is not known")
    networks = {network: _state_dict(weights, name) for network, weights in networks.items()}
    return OfficialCheckpoint(name, networks, centers, args, dropped)


def _centers(content: Any, name: str) -> dict[str, Tensor]:
    """The tensors of `iBOTLoss`."""
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{name}: ibot_loss is a {type(content).__name__}, not the state dict of the loss")
    for key, value in content.items():
        if key not in ("center", "center2") or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(f"{name}: ibot_loss holds a {kind} {key!r}; it has two tensors, center and center2")
    return dict(content)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)


def _state_dict(weights: Mapping, name: str) -> dict[str, Tensor]:
    """The tensors under their bare names."""
    if not weights:
        raise ValueError(f"{name} holds no tensors")
    for key, value in weights.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise ValueError(f"{name} is not a checkpoint of tensors: {key!r} is a {type(value).__name__}")
    bare = {key: _unwrapped(key, WRAPPERS) for key in weights}
    # In a tokenizer the encoder is one of several parts, and its name is needed.
    if not any(inner.startswith(("decoder.", "quantize.")) for inner in bare.values()):
        bare = {key: _unwrapped(key, (*WRAPPERS, "encoder.")) for key in weights}
    found: dict[str, str] = {}
    for key, inner in bare.items():
        if inner in found:
            raise ValueError(f"{name} holds {found[inner]} and {key}, which are the same tensor once unwrapped")
        found[inner] = key
    return {inner: weights[key].detach() for key, inner in bare.items()}


def _unwrapped(key: str, wrappers: tuple[str, ...]) -> str:
    """`key` without leading wrappers, without those of compiled blocks, and with weight norm in its old spelling."""
    key = key.replace("_orig_mod.", "")
    while key.startswith(wrappers):
        key = key.split(".", 1)[1]
    key = key.replace(".parametrizations.weight.original0", ".weight_g")
    return key.replace(".parametrizations.weight.original1", ".weight_v")
