"""Run commands so that mistakes end in one line, and word their messages."""

import difflib
import lzma
import os
import pickle
import sys
import tarfile
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from safetensors import SafetensorError

from .files import failed_write
from .processes import WORKER_ADVICE, dead_worker, kill_workers


MISTAKES = (ValueError, OSError, FloatingPointError)
# What damaged files raise. Their messages do not begin with a word about what was read.
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    pickle.UnpicklingError,
    EOFError,
    SafetensorError,
)
# Packages whose exceptions are about data, files or the network.
DATA_PACKAGES = ("datasets", "pyarrow", "PIL", "httpx", "httpcore", "huggingface_hub", "fsspec", "yaml")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def run(main: Callable[[list[str]], Any], argv: list[str]) -> int:
    """
    Run a command and return the exit code of the process.

    A mistake of the user, the data or the machine is reported in one line on stderr; see [`mistake`]. With
    `HF_MIM_DEBUG=1` in the environment it is raised. Any other exception is a defect and is raised, because its
    traceback is needed.

    Args:
        main (`Callable`): The command. An `int` that it returns is the exit code.
        argv (`list[str]`): Arguments of the command.

    Returns:
        `int`: 0 when the command finished, 2 after a mistake, 130 after an interrupt, or what `main` returned.

    Raises:
        SystemExit: If `main` raises it: with code 75 when a training was interrupted and saved.
    """
    try:
        code = main(argv)
    except KeyboardInterrupt:
        # While the exception lives, so do the iterators that would wait for their processes.
        kill_workers()
        print("hf-mim: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = mistake(error)
        if message is None or os.environ.get("HF_MIM_DEBUG") == "1":
            raise
        kill_workers()
        print(f"hf-mim: error: {message}", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


def mistake(error: BaseException) -> str | None:
    """
    Return the line that reports an exception if it is a mistake of the user, the data or the machine.

    Such are: `ValueError`, `OSError` and `FloatingPointError`; a file that cannot be written, whatever the library
    that wrote it raises; too little memory; a data-loading process that fails; a package that is not installed; and
    what libraries raise for damaged files and failed downloads. For other exceptions, return None.
    """
    text, packages = str(error), {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    reason = failed_write(error)
    if reason is not None:
        name = error.filename if isinstance(error, OSError) else None
        return f"cannot write{f' {name}' if name else ''}: {reason}"
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return (
            f"out of memory ({first_line(error) or 'MemoryError'}). Less is needed with smaller batches "
            "(--per_device_train_batch_size, --gradient_accumulation_steps; --batch_size), smaller images or model, "
            "and fewer data-loading processes"
        )
    if isinstance(error, RuntimeError) and "</torch_" in text:
        return f"there is no shared memory left (/dev/shm): {first_line(error)}. {WORKER_ADVICE}"
    if "DataLoader worker (pid" in text or "DataLoader timed out" in text:
        # The signal may stand in the exception that PyTorch was handling.
        return f"{dead_worker(f'{text} {error.__cause__}')}. {WORKER_ADVICE}"
    if _is_of_worker(text) and not isinstance(error, MISTAKES):
        return f"a data-loading process failed: {text.splitlines()[-1]} (HF_MIM_DEBUG=1 shows where)"
    if isinstance(error, MISTAKES):
        return one_line(error)
    if isinstance(error, DAMAGED):
        return f"a file is damaged or of another kind: {one_line(error)}"
    if packages & set(DATA_PACKAGES):
        cause = error.__cause__ or error.__context__
        behind = None if cause is None else mistake(cause) or one_line(cause)
        return one_line(error) + (f": {behind}" if behind and behind not in text else "")
    if isinstance(error, ImportError) and not (error.name or "").startswith("hf_mim"):
        return one_line(error)
    if isinstance(error, RecursionError):
        return "something is nested too deeply: a configuration, a pickle or a folder (HF_MIM_DEBUG=1 shows where)"
    return None


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line, without the traceback of a data-loading process."""
    message = str(error).strip()
    if _is_of_worker(message):
        return message.splitlines()[-1].split(": ", 1)[-1]
    return " ".join(message.split()) or traceback.format_exception_only(error)[-1].strip()


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, to quote messages of other libraries."""
    return str(error).strip().partition("\n")[0]


def did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message about an unknown `name`: `, did you mean 'NEAREST'?`, or `""` without `names`."""
    nearest = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
    return f", did you mean '{prefix}{nearest[0]}'?" if nearest else ""


def _is_of_worker(message: str) -> bool:
    return message.startswith("Caught ") and "\nOriginal Traceback" in message


def _is_out_of_memory(error: BaseException) -> bool:
    # The classes of CUDA, MPS and the CPU's allocator have nothing else in common.
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in OUT_OF_MEMORY)
