"""Read recipes: YAML files with one option per line, packaged or the user's own."""

from importlib import resources
from pathlib import Path
from typing import Any

from ...utils.console import did_you_mean
from ...utils.strict_yaml import load_yaml


RECIPES = resources.files("hf_mim.training") / "recipes"
# The packaged recipes have 3 KB at most.
MAX_BYTES = 1_000_000


def list_recipes() -> list[str]:
    """Return the sorted names of the packaged recipes, without `.yaml`."""
    return sorted(file.name.removesuffix(".yaml") for file in RECIPES.iterdir() if file.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """
    Return the options and values in the YAML file of a recipe.

    Only `true` and `false` are booleans; `no`, `off`, `yes` and `on` are words, as on the command line.

    Args:
        name_or_path (`str` or `Path`): Name of a packaged recipe (see [`list_recipes`]) or path of a YAML file.

    Raises:
        FileNotFoundError: If a path (with a folder, or ending in .yaml or .yml) does not exist.
        ValueError: If the name is unknown, or the file is not a YAML mapping of names to values, each name once and
            without aliases.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in list_recipes():
        text = (RECIPES / f"{name}.yaml").read_bytes()
    elif path.is_file():
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(
                f"{name}: a recipe has at most {MAX_BYTES:,} bytes, this file has {path.stat().st_size:,}"
            )
        text = path.read_bytes()
    elif path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise FileNotFoundError(f"{name}: no such recipe file")
    else:
        names = list_recipes()
        raise ValueError(f"unknown recipe '{name}'{did_you_mean(name, names)}; packaged recipes: {', '.join(names)}")
    try:
        recipe = load_yaml(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if recipe is None:
        return {}
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise ValueError(f"{name}: a recipe is a mapping, one `option: value` per line")
    return recipe
