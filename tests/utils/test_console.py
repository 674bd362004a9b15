"""Which exceptions are mistakes, in one line, and which are defects with a traceback."""

import errno
import tarfile

import pyarrow
import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from PIL import Image
from safetensors import SafetensorError

from hf_mim.utils.console import mistake, run


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", "out/file")


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def of_worker(text: str) -> str:
    return f"Caught TypeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n{text}"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (FloatingPointError("loss is nan"), "loss is nan"),
        (full_disk(), "cannot write out/file: No space left on device"),
        (OSError(errno.EROFS, "x", "a"), "cannot write a: Read-only file system"),
        (FileNotFoundError("there is no a"), "there is no a"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "No space left",
        ),
        (
            SafetensorError("Error while deserializing header: header too large"),
            "a file is damaged or of another kind",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576"), "is the disk full?"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), "is the disk full?"),
        (pyarrow.lib.ArrowException("odd table"), "odd table"),
        (caused(DatasetGenerationError("no table"), full_disk()), "no table: cannot write out/file: No space left"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "--per_device_train_batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out of memory"),
        (MemoryError(), "out of memory (MemoryError)"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "was killed (SIGKILL), as the system",
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Segmentation fault. "), "crashed"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"), "ran out of shared memory"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "a data-loading process ended"),
        (
            RuntimeError("DataLoader timed out after 900 seconds"),
            "no images came from the data-loading processes for 900",
        ),
        (RuntimeError("unable to write to file </torch_7_8>: No space left"), "there is no shared memory left"),
        (TypeError(of_worker("TypeError: no number")), "a data-loading process failed: TypeError: no number"),
        (ValueError(of_worker("ValueError: a.png is odd")), "a.png is odd"),
        (Image.DecompressionBombError("image of 10 Gpixels"), "image of 10 Gpixels"),
        (tarfile.ReadError("unexpected end"), "a file is damaged or of another kind: unexpected end"),
        (EOFError(), "a file is damaged or of another kind: EOFError"),
        (ModuleNotFoundError("No module named 'wandb'", name="wandb"), "No module named 'wandb'"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    ],
)
def test_mistakes(error, line):
    message = mistake(error)
    assert message is not None and line in message and "\n" not in message


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        TypeError("an integer is required"),
        AssertionError(),
        KeyError("x"),
        ModuleNotFoundError("No module named 'hf_mim.nothing'", name="hf_mim.nothing"),
    ],
)
def test_defects_are_raised(error):
    def fail(argv):
        raise error

    assert mistake(error) is None
    with pytest.raises(type(error)):
        run(fail, [])


def test_an_interrupt_is_one_line(capsys):
    def fail(argv):
        raise KeyboardInterrupt

    assert run(fail, []) == 130
    assert capsys.readouterr().err == "hf-mim: interrupted\n"
