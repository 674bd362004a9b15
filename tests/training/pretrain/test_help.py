"""The help of `hf-mim pretrain` and docs/options.md, both from the table of options."""

import dataclasses
import re

import pytest
from packaging.version import Version
from transformers import TrainingArguments, __version__

import hf_mim_cli as cli
from hf_mim.methods import METHOD_NAMES
from hf_mim.training.kept_arguments import KEPT
from hf_mim.training.pretrain.help import options_page
from hf_mim.training.pretrain.option_table import COMMON, GROUPS, OPTIONS, group_of
from hf_mim.training.pretrain.options import DataArguments, ModelArguments
from hf_mim.training.pretrain.recipe_files import list_recipes
from hf_mim.training.run_pretrain import run_class
from tests.testing.paths import REPOSITORY


def shown(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["pretrain", *argv])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_every_option_of_transformers_is_in_the_table():
    listed = [name for names in OPTIONS.values() for name in names]
    assert len(set(listed)) == len(listed) and not set(listed) & KEPT.keys()
    unlisted = {field.name for field in dataclasses.fields(TrainingArguments)} - {*listed, *KEPT}
    if Version(__version__) < Version("5.24"):
        assert not unlisted
    # Options of a newer transformers have a group of their own.
    assert {group_of(name) for name in unlisted} <= {"Other options of transformers"}


def test_the_page_is_that_of_the_table():
    message = "write it anew: python -m hf_mim.training.pretrain.help > docs/options.md"
    if Version(__version__) >= Version("5.24"):
        pytest.skip("transformers has other help texts than the version of constraints.txt")
    assert (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8") == options_page(), message


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_long_help_lists_every_option_once(capsys, method):
    text = shown(capsys, "--model_type", method, "--help", "all")
    types = (ModelArguments, DataArguments, run_class(method).arguments_class)
    names = {field.name for cls in types for field in dataclasses.fields(cls) if field.init} - KEPT.keys()
    listed = re.findall(r"^  --(\w+)", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(names)
    headings = [line.removesuffix(":") for line in text.splitlines() if line.removesuffix(":") in GROUPS]
    assert headings == [group for group in GROUPS if group in headings]


def test_short_help_fits_two_screens(capsys):
    text = shown(capsys, "--help")
    assert len(text.splitlines()) <= 110 and max(map(len, text.splitlines())) <= 115
    listed = re.findall(r"^  --(\w+)", text, flags=re.MULTILINE)
    assert COMMON <= set(listed) and len(listed) == len(set(listed)) < 65
    assert text.index("Method ibot:") < text.index("  --global_crops_number") < text.index("Model:")
    for recipe in list_recipes():
        assert re.search(rf"^  {recipe} +\S.+$", text, flags=re.MULTILINE)


def test_help_of_a_recipe_shows_its_method_and_defaults(capsys):
    text = shown(capsys, "dbot-vitb16", "-h")
    assert "Method dbot:" in text and "--stage_epochs " in text and "--local_crops_number" not in text
    assert re.search(r"^  --stage_epochs .*\(800 800\)$", text, flags=re.MULTILINE)
