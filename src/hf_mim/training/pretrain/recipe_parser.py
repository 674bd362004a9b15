"""Parse YAML recipes and options with `HfArgumentParser`: a recipe sets defaults, the command line overrides."""

import argparse
import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Literal, NoReturn, Union, get_type_hints

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ...utils.command_line import finite_number, unknown_argument
from ...utils.console import did_you_mean
from .recipe_files import load_recipe


def parse_recipe_args(
    dataclass_types: tuple[type, ...], argv: Sequence[str], without: Iterable[str] = ()
) -> tuple[Any, ...]:
    """
    Fill dataclasses from `[RECIPE] [--option value ...]`.

    The first argument is the recipe, unless it starts with `-`. Values of the recipe replace defaults of the
    dataclasses, options of the command line replace both. A recipe takes the values that the command line takes, and
    lists, mappings (for fields of type dict) and null as in YAML.

    Args:
        dataclass_types (`tuple[type]`): Dataclasses to fill. Every field with `init=True` is an option.
        argv (`Sequence[str]`): Arguments after the program name.
        without (`Iterable[str]`, defaults to `()`): Options of the recipe to ignore.

    Returns:
        One instance per dataclass, in the same order.

    Raises:
        FileNotFoundError: As for [`load_recipe`].
        ValueError: As for [`load_recipe`]; if no dataclass has an option (the message names the most similar one); if
            a value has the wrong type; or if an argument belongs to no option.
    """
    arguments = list(argv)
    parser = _RecipeParser(dataclass_types)
    if arguments and not arguments[0].startswith("-"):
        recipe = load_recipe(arguments[0])
        parser.set_recipe(arguments.pop(0), {name: recipe[name] for name in recipe if name not in without})
    # Checked first: the dataclasses would complain about the missing value instead of the misspelled option.
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ValueError(unknown_argument(unknown, parser.options, "; a recipe comes before all options"))
    return parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)


class _RecipeParser(HfArgumentParser):
    """`HfArgumentParser` with exact option names, and exceptions in place of exits."""

    def __init__(self, dataclass_types: Iterable[type]):
        # Declared type of every option. HfArgumentParser itself narrows unions to one type.
        self.options: dict[str, Any] = {}
        super().__init__(
            list[Any](dataclass_types),
            add_help=False,
            allow_abbrev=False,
        )
        for action in self._actions:
            if action.type is float:
                action.type = finite_number
            # transformers declares them as `IntervalStrategy | str`, and would name the class instead of the option.
            words = _words(self.options.get(action.dest))
            if words:
                action.choices = words

    def _add_dataclass_arguments(self, dtype: type) -> None:
        group = self.add_argument_group(dtype.__name__)
        hints = get_type_hints(dtype)
        for field in dataclasses.fields(dtype):
            if field.init:
                self.options[field.name] = field.type = hints[field.name]
                self._parse_dataclass_field(group, field)  # type: ignore[arg-type]  # groups work, too

    def set_recipe(self, source: str, recipe: dict[str, Any]) -> None:
        defaults = {}
        for name, value in recipe.items():
            if name not in self.options:
                raise ValueError(f"recipe {source}: unknown option '{name}'{did_you_mean(name, self.options)}")
            try:
                defaults[name] = _typed(value, self.options[name])
            except TypeError as error:
                raise ValueError(
                    f"recipe {source}: {name} must be {_described(self.options[name])}, got {reprlib.repr(value)}"
                ) from error
        self.set_defaults(**defaults)
        for action in self._actions:
            if action.dest in defaults:
                action.required = False

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _typed(value: Any, hint: Any) -> Any:
    """Convert a YAML value to the declared type. Raises `TypeError` if the command line would not take it either."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    words = _words(hint)
    if words:
        if value in words:
            return value
    elif origin in (Union, types.UnionType):
        # Exact matches first, so that "x" remains a string in `str | list[str]`.
        for member in sorted(members, key=lambda member: type(value) is not (typing.get_origin(member) or member)):
            try:
                return _typed(value, member)
            except TypeError:
                continue
    elif origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in members):
            return value
    elif origin is list:
        # One value is a list of one, as on the command line.
        if not isinstance(value, dict) and value is not None:
            return [_typed(item, members[0]) for item in (value if isinstance(value, list) else [value])]
    elif origin is dict:
        if isinstance(value, dict):
            return {key: _typed(item, members[1]) for key, item in value.items()}
    elif hint is float and isinstance(value, float):
        if math.isfinite(value):
            return value
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    elif hint is bool and isinstance(value, str):
        try:
            return string_to_bool(value)
        except argparse.ArgumentTypeError:
            pass
    elif hint in (int, float) and isinstance(value, int | str) and not isinstance(value, bool):
        # YAML reads 1e-3, without a decimal point, as text.
        try:
            return finite_number(str(value)) if hint is float else hint(value)
        except (ValueError, argparse.ArgumentTypeError):
            pass
    elif hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{reprlib.repr(value)} is not {hint}")


def _words(hint: Any) -> list[str]:
    """Return the words that an enumeration takes, perhaps declared beside text; nothing for any other option."""
    for member in (hint, *typing.get_args(hint)):
        if isinstance(member, type) and issubclass(member, Enum):
            return [entry.value for entry in member]
    return []


def _described(hint: Any) -> str:
    """Describe a declared type in words."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    words = _words(hint)
    if words:
        return f"one of {', '.join(words)}"
    if origin in (Union, types.UnionType):
        return " or ".join(_described(member) for member in members)
    if origin is Literal:
        return f"one of {', '.join(map(str, members))}"
    if origin is list:
        return f"a list, each entry {_described(members[0])}"
    if origin is dict or hint is dict:
        return "a mapping"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}.get(
        hint, str(hint)
    )
