"""The help of `hf-mim pretrain`, and the options in docs/options.md, from the table of options."""

import dataclasses
import pkgutil
import re
import textwrap
from enum import Enum
from typing import Any

from ...methods import METHOD_NAMES, find_method
from ..arguments import MIMTrainingArguments
from ..kept_arguments import KEPT, Kept
from .option_table import COMMON, HELP, METHOD, options_of
from .options import DataArguments, ModelArguments
from .recipe_files import RECIPES, list_recipes


WIDTH = 100
USAGE = """usage: hf-mim pretrain [RECIPE] [--option value ...]

Pre-train a model on a folder of images, a dataset of the Hub or the built-in photo tiles:

  hf-mim pretrain quickstart
  hf-mim pretrain ibot-vits16 --train_dir images --output_dir runs/images
"""
ENDS = {
    False: "hf-mim pretrain --help all lists every option, hf-mim pretrain RECIPE --help those of a recipe's method.",
    True: "Options of transformers that are refused, with the reasons, are in docs/options.md.",
}


def help_text(method: str, types: tuple[type, ...], recipe: dict[str, Any], everything: bool) -> str:
    """
    Return the help of `hf-mim pretrain`.

    Args:
        method (`str`): Name of the method whose options come first.
        types (`tuple[type]`): Dataclasses of the options.
        recipe (`dict`): Options of a recipe, which replace defaults.
        everything (`bool`): List all options instead of the usual ones.
    """
    lines = [USAGE]
    if not recipe:
        lines += ["recipes (or the path of a YAML file):", *map(_recipe_line, list_recipes()), ""]
    for group, options in options_of(*types).items():
        shown = [field for name, field in options.items() if everything or group == METHOD or name in COMMON]
        if shown:
            lines.append(f"{f'Method {method}' if group == METHOD else group}:")
            lines += [line for field in shown for line in _option_lines(field, recipe, everything)] + [""]
    return "\n".join([*lines, ENDS[everything], ""])


def options_page() -> str:
    """Return the contents of docs/options.md."""
    lines = ["# Options of `hf-mim pretrain`", "", PAGE_START]
    common = {field.name for field in dataclasses.fields(MIMTrainingArguments)}
    for method in METHOD_NAMES:
        cls = pkgutil.resolve_name(find_method(method).run).arguments_class
        own = [field for field in dataclasses.fields(cls) if field.init and field.name not in common]
        lines += [f"## Method `{method}`", "", *_table(own)]
    for group, options in options_of(ModelArguments, DataArguments, MIMTrainingArguments).items():
        lines += [f"## {group}", "", *_table(list(options.values()))]
    lines += ["## Options of transformers that must keep their values", ""]
    lines += ["| option | value | reason |", "|---|---|---|"]
    lines += [f"| `{name}` | {_kept_value(kept)} | {kept.reason} |" for name, kept in KEPT.items()]
    return "\n".join(lines) + "\n"


PAGE_START = """This page is made by `python -m hf_mim.training.pretrain.help` from the table in
`option_table.py` beside it, and a test compares the two. Options without a default are unset. A recipe sets
other defaults, which `hf-mim pretrain RECIPE --help all` shows.
"""


def _kept_value(kept: Kept) -> str:
    if kept.value in (None, "", []):
        return "unset"
    return f"`{' '.join(kept.value) if isinstance(kept.value, list) else kept.value}`"


def _table(fields: list[dataclasses.Field]) -> list[str]:
    rows = [f"| `{field.name}` | {_default_cell(field)} | {_help_of(field)} |" for field in fields]
    return ["| option | default | |", "|---|---|---|", *rows, ""]


def _default_cell(field: dataclasses.Field) -> str:
    shown = _shown(default_of(field))
    return f"`{shown}`" if shown else ""


def _recipe_line(name: str) -> str:
    first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    return f"  {name:<19} {textwrap.shorten(first, WIDTH - 22, placeholder=' ...')}"


def _option_lines(field: dataclasses.Field, recipe: dict[str, Any], everything: bool) -> list[str]:
    value = recipe.get(field.name, default_of(field))
    text = _help_of(field)
    if not everything:
        text = re.split(r"(?<=[a-z)])\. ", text)[0].rstrip(".")
    shown = _shown(value)
    text += f" ({shown})" if shown else ""
    start = f"  --{field.name:<29} "
    if everything:
        return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * 34) or [start.rstrip()]
    return [start + textwrap.shorten(text, WIDTH - len(start) + 12, placeholder=" ...")]


def _help_of(field: dataclasses.Field) -> str:
    text = HELP.get(field.name, str(field.metadata.get("help", "")))
    # A bar would end the cell of a table.
    return " ".join(text.replace("%%", "%").replace("|", "or").split())


def default_of(field: dataclasses.Field) -> Any:
    """Return the default of a field; None for one without."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        value = value.value
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(options_page(), end="")
