"""Recipes as files: which there are, and what is no recipe."""

import time
from pathlib import Path

import pytest

from hf_mim.training.pretrain import recipe_files
from hf_mim.training.pretrain.recipe_files import list_recipes, load_recipe


@pytest.fixture
def recipe(tmp_path: Path):
    """`recipe(text)` writes a YAML file and gives its path as text."""

    def write(text: str) -> str:
        path = tmp_path / "some.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ibot-vits16", "dbot-vitb16"):
        (tmp_path / f"{name}.yaml").write_text(f"# costs nothing\ntrain_dir: {name}\n")
    (tmp_path / "notes.txt").write_text("not a recipe")
    monkeypatch.setattr(recipe_files, "RECIPES", tmp_path)


def test_recipe_names(packaged, tmp_path):
    assert list_recipes() == ["dbot-vitb16", "ibot-vits16"]
    assert load_recipe("ibot-vits16") == {"train_dir": "ibot-vits16"}
    assert load_recipe(tmp_path / "dbot-vitb16.yaml") == {"train_dir": "dbot-vitb16"}
    message = "unknown recipe 'ibot-vit16', did you mean 'ibot-vits16'.; packaged recipes: dbot-vitb16, ibot-vits16"
    with pytest.raises(ValueError, match=message):
        load_recipe("ibot-vit16")
    with pytest.raises(FileNotFoundError, match="nowhere.yaml: no such recipe file"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(FileNotFoundError, match="recipes/ibot: no such recipe file"):
        load_recipe("recipes/ibot")


def test_a_recipe_of_comments_only_sets_nothing(recipe):
    assert load_recipe(recipe("# nothing\n")) == {}


def test_a_binary_file_is_named(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="image.jpg: not valid YAML"):
        load_recipe(path)


def test_words_that_are_booleans_in_older_yaml(recipe):
    text = "a: no\nb: off\nc: Yes\nd: on\ne: true\nf: False\ng: y\n"
    assert load_recipe(recipe(text)) == dict(a="no", b="off", c="Yes", d="on", e=True, f=False, g="y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth: 4\ndepth: 5\n", "'depth' is given twice"),
        ("overrides: {a: 1, a: 2}\n", "'a' is given twice"),
        ("a: &all [1]\nb: *all\n", r"aliases \(\*all\) are not allowed"),
        ("a: " + 3000 * "[" + 3000 * "]", "its values are nested too deeply"),
        ("a: " + 3000 * "{a: " + 3000 * "}", "its values are nested too deeply"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("# " + 1_000_000 * "x", "a recipe has at most 1,000,000 bytes, this file has 1,000,002"),
        ("date: 2026-13-45\n", "some.yaml: not valid YAML"),
    ],
)
def test_what_is_no_recipe(recipe, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(recipe(text))
    assert str(error.value).count("\n") == 0 and len(str(error.value)) < 300


def test_a_few_lines_that_stand_for_billions_of_values(recipe):
    lines = ["a0: &a0 [lol, lol]"] + [f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 12)]
    start = time.monotonic()
    with pytest.raises(ValueError, match="aliases"):
        load_recipe(recipe("\n".join(lines)))
    assert time.monotonic() - start < 5
