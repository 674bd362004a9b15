"""Run commands so that mistakes end in one line, and word their messages."""

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any


def run(main: Callable[[list[str]], Any], argv: list[str]) -> int:
    """
    Run a command and return the exit code of the process.

    A `ValueError`, an `OSError` (a missing file, a full disk) or a `FloatingPointError` (a training that diverges) is
    a mistake of the user, the data or the machine: it is reported in one line on stderr. With `HF_MIM_DEBUG=1` in the
    environment it is raised. Any other exception is a defect and is raised, because its traceback is needed.

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
        print("hf-mim: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("HF_MIM_DEBUG") == "1":
            raise
        print(f"hf-mim: error: {one_line(error)}", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


def one_line(error: Exception) -> str:
    """Return the message of an exception in one line, without the traceback of a data-loading process."""
    message = str(error).strip()
    if message.startswith("Caught ") and "\nOriginal Traceback" in message:
        return message.splitlines()[-1].split(": ", 1)[-1]
    return " ".join(message.split()) or traceback.format_exception_only(error)[-1].strip()


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, to quote messages of other libraries."""
    return str(error).strip().partition("\n")[0]


def did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message about an unknown `name`: `, did you mean 'NEAREST'?`, or `""` without `names`."""
    nearest = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
    return f", did you mean '{prefix}{nearest[0]}'?" if nearest else ""
