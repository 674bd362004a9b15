"""Parse YAML recipes and options with `HfArgumentParser`: a recipe sets defaults, the command line overrides."""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Sequence
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_type_hints

import yaml
from transformers import HfArgumentParser

from ...utils.console import did_you_mean


RECIPES = resources.files("hf_mim.training") / "recipes"


def list_recipes() -> list[str]:
    """Return the sorted names of the packaged recipes, without `.yaml`."""
    return sorted(file.name.removesuffix(".yaml") for file in RECIPES.iterdir() if file.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """
    Return the options and values in the YAML file of a recipe.

    Args:
        name_or_path (`str` or `Path`): Name of a packaged recipe (see [`list_recipes`]) or path of a YAML file.

    Raises:
        FileNotFoundError: If a path (with a folder, or ending in .yaml or .yml) does not exist.
        ValueError: If the name is unknown, or the file is not a YAML mapping of names to values.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in list_recipes():
        text = (RECIPES / f"{name}.yaml").read_bytes()
    elif path.is_file():
        text = path.read_bytes()
    elif path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise FileNotFoundError(f"{name}: no such recipe file")
    else:
        names = list_recipes()
        raise ValueError(f"unknown recipe '{name}'{did_you_mean(name, names)}; packaged recipes: {', '.join(names)}")
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if recipe is None:
        return {}
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise ValueError(f"{name}: a recipe is a mapping, one `option: value` per line")
    return recipe


def parse_recipe_args(
    dataclass_types: tuple[type, ...], argv: Sequence[str], without: Iterable[str] = ()
) -> tuple[Any, ...]:
    """
    Fill dataclasses from `[RECIPE] [--option value ...]`.

    The first argument is the recipe, unless it starts with `-`. Values of the recipe replace defaults of the
    dataclasses, options of the command line replace both. A value in a recipe must have the type of its field. Lists,
    mappings (for fields of type dict) and null are written as in YAML.

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
        SystemExit: After `--help` was printed.
    """
    arguments = list(argv)
    parser = _RecipeParser(dataclass_types)
    if arguments and not arguments[0].startswith("-"):
        recipe = load_recipe(arguments[0])
        parser.set_recipe(arguments.pop(0), {name: recipe[name] for name in recipe if name not in without})
    # Checked first: the dataclasses would complain about the missing value instead of the misspelled option.
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        option = next((text for text in unknown if text.startswith("--")), None)
        if option is None:
            raise ValueError(f"unexpected argument '{unknown[0]}'; a recipe comes before all options")
        option = option.split("=")[0]
        name = option.removeprefix("--").replace("-", "_")
        raise ValueError(f"unknown option '{option}'{did_you_mean(name, parser.options, '--')}")
    return parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)


class _RecipeParser(HfArgumentParser):
    """`HfArgumentParser` with one help section per dataclass, exact option names, and exceptions in place of exits."""

    def __init__(self, dataclass_types: Iterable[type]):
        # Declared type of every option. HfArgumentParser itself narrows unions to one type.
        self.options: dict[str, Any] = {}
        super().__init__(
            list[Any](dataclass_types),
            usage="hf-mim pretrain [RECIPE] [--option value ...]",
            epilog=f"RECIPE: {', '.join(list_recipes())}, or a path to a YAML file",
            allow_abbrev=False,
        )

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
            declared = self.options[name]
            try:
                defaults[name] = _typed(value, declared)
            except TypeError as error:
                wanted = declared.__name__ if isinstance(declared, type) else re.sub(r"\w+\.", "", str(declared))
                # YAML reads an unquoted no, off, yes or on as a boolean.
                quotes = "; quote the word if it is text" if isinstance(value, bool) and "str" in wanted else ""
                raise ValueError(f"recipe {source}: {name} must be {wanted}, got {value!r}{quotes}") from error
        self.set_defaults(**defaults)
        for action in self._actions:
            if action.dest in defaults:
                action.required = False

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _typed(value: Any, hint: Any) -> Any:
    """Convert a YAML value to the declared type. Raises `TypeError` if it does not fit."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        # Exact matches first, so that "x" remains a string in `str | list[str]`.
        for member in sorted(members, key=lambda member: type(value) is not (typing.get_origin(member) or member)):
            try:
                return _typed(value, member)
            except TypeError:
                continue
    elif origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in members):
            return value
    elif origin is list and isinstance(value, list):
        return [_typed(item, members[0]) for item in value]
    elif origin is dict and isinstance(value, dict):
        return {key: _typed(item, members[1]) for key, item in value.items()}
    elif hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        # YAML reads 1e-3, without a decimal point, as text.
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(hint, type) and issubclass(hint, Enum):
        if value in [member.value for member in hint]:
            return value
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} is not {hint}")
