"""Parse the arguments of the commands: numbers within their range, and mistakes as `ValueError` with one line."""

import argparse
import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from .console import did_you_mean


# More processes than any machine has cores for.
MAX_WORKERS = 1024


class CommandParser(argparse.ArgumentParser):
    """`ArgumentParser` that takes no abbreviations and raises `ValueError` instead of ending the process."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments. Raises `ValueError` for any that belongs to no option, with the most similar name."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            names = [name.removeprefix("--") for name in self._option_string_actions if name.startswith("--")]
            raise ValueError(unknown_argument(unknown, names))
        return parsed, []

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def unknown_argument(unknown: Sequence[str], options: Iterable[str], hint: str = "") -> str:
    """
    Return the message about arguments that a parser has left over.

    Args:
        unknown (`Sequence[str]`): Those arguments.
        options (`Iterable[str]`): Names of the options that there are, without dashes.
        hint (`str`, defaults to `""`): End of the message if none of the arguments is an option.
    """
    option = next((text for text in unknown if text.startswith("-") and not _is_number(text)), None)
    if option is None:
        return f"unexpected argument '{unknown[0]}'{hint}"
    option = option.split("=")[0]
    return f"unknown option '{option}'{did_you_mean(option.lstrip('-').replace('-', '_'), options, '--')}"


def positive_count(text: str) -> int:
    """Parse a whole number of at least 1. To be used as the `type` of an option."""
    return _whole_number(text, 1)


def worker_count(text: str) -> int:
    """Parse a number of data-loading processes: 0 for none, or up to 1,024. To be used as the `type` of an option."""
    number = _whole_number(text, 0)
    if number > MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_WORKERS}, got {text}")
    return number


def finite_number(text: str) -> float:
    """Parse a number that is neither infinite nor NaN. To be used as the `type` of an option."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got '{text}'") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return number


def positive_number(text: str) -> float:
    """Parse a finite number above 0. To be used as the `type` of an option."""
    number = finite_number(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def _whole_number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got '{text}'") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
    return number


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
