from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from hf_mim.training.pretrain.recipe_parser import parse_recipe_args


class Norm(Enum):
    LAYER = "layer"
    BATCH = "batch"


@dataclass
class ModelArguments:
    model_type: str = field(default="ibot", metadata={"help": "Which method."})
    config_overrides: dict[str, Any] | str | None = field(default=None, metadata={"help": "Changes to the config."})
    depth: int = field(default=12, metadata={"help": "How many layers, 100 %% of them trained."})
    norm: Norm = field(default="layer", metadata={"help": "Which norm."})


@dataclass
class DataArguments:
    train_dir: str = field(metadata={"help": "The folder of images."})
    crop_scale: list[float] = field(default_factory=lambda: [0.4, 1.0], metadata={"help": "Least and largest area."})
    column: str | None = field(default="image", metadata={"help": "The image column."})
    flip: bool = field(default=True, metadata={"help": "Mirror half of the views."})
    mode: Literal["random", "block"] = field(default="block", metadata={"help": "How masks are drawn."})


@dataclass
class PretrainArguments(TrainingArguments):
    base_learning_rate: float | None = field(default=None, metadata={"help": "For a batch of 256."})


@pytest.fixture
def recipe(tmp_path: Path):
    """`recipe(text)` writes a YAML file and gives its path as text."""

    def write(text: str) -> str:
        path = tmp_path / "some.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_without_a_recipe_the_dataclasses_keep_their_defaults():
    model, data = parse_recipe_args((ModelArguments, DataArguments), ["--train_dir", "photos"])
    assert model == ModelArguments()
    assert data == DataArguments(train_dir="photos")


def test_recipe_sets_defaults_and_the_command_line_wins(recipe):
    path = recipe(
        "# costs: one minute\n# command: hf-mim pretrain some\n"
        "train_dir: photos\ndepth: 4\ncrop_scale: [0.25, 1]\ncolumn: null\nflip: false\nmode: random\nnorm: batch\n"
        "config_overrides:\n  hidden_size: 128\n  nested: {a: [1, 2]}\n"
    )
    model, data = parse_recipe_args(
        (ModelArguments, DataArguments), [path, "--depth", "6", "--crop_scale", "0.1", "0.9", "--flip"]
    )
    overrides = {"hidden_size": 128, "nested": {"a": [1, 2]}}
    assert model == ModelArguments(config_overrides=overrides, depth=6, norm="batch")
    assert data == DataArguments(train_dir="photos", crop_scale=[0.1, 0.9], column=None, flip=True, mode="random")

    _, data = parse_recipe_args((ModelArguments, DataArguments), [path])
    assert data.crop_scale == [0.25, 1.0] and data.flip is False


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("crop_scale: 0.4", "crop_scale", [0.4]),
        ("crop_scale: ['0.4', 1e-1]", "crop_scale", [0.4, 0.1]),
        ("column: no", "column", "no"),
        ("column: On", "column", "On"),
        ("column: 2024", "column", "2024"),
        ("flip: no", "flip", False),
        ("flip: 'yes'", "flip", True),
        ("flip: False", "flip", False),
    ],
)
def test_recipes_take_what_the_command_line_takes(recipe, line, field, value):
    (data,) = parse_recipe_args((DataArguments,), [recipe(f"train_dir: x\n{line}\n")])
    assert getattr(data, field) == value
    (data,) = parse_recipe_args((DataArguments,), [recipe(f"train_dir: x\n{line}\n"), "--column", "other"])
    assert data.column == "other"


def test_overrides_may_be_text(recipe):
    (model,) = parse_recipe_args((ModelArguments,), [recipe("config_overrides: hidden_size=128,depth=2")])
    assert model.config_overrides == "hidden_size=128,depth=2"
    (model,) = parse_recipe_args((ModelArguments,), ["--config_overrides", "hidden_size=64"])
    assert model.config_overrides == "hidden_size=64"


def test_training_arguments(recipe, tmp_path):
    path = recipe(
        f"output_dir: {tmp_path}\nlearning_rate: 1e-3\nbase_learning_rate: 5e-4\nmax_steps: 10\nuse_cpu: true\n"
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1.0e-6}\nreport_to: [tensorboard]\n"
        "eval_strategy: no\nsave_total_limit: null\n"
    )
    (args,) = parse_recipe_args((PretrainArguments,), [path, "--max_steps", "20", "--report_to", "none"])
    assert type(args) is PretrainArguments
    assert (args.learning_rate, args.base_learning_rate, args.max_steps) == (1e-3, 5e-4, 20)
    assert args.lr_scheduler_type == "cosine_with_min_lr" and args.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert args.report_to == [] and args.save_total_limit is None and args.eval_strategy == "no"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("depth: four", "some.yaml: depth must be a whole number, got 'four'"),
        ("depth: 4.5", "some.yaml: depth must be a whole number, got 4.5"),
        ("depth: true", "some.yaml: depth must be a whole number, got True$"),
        ("depth: null", "some.yaml: depth must be a whole number, got None"),
        ("depth: [4]", r"some.yaml: depth must be a whole number, got \[4\]"),
        ("flip: perhaps", "some.yaml: flip must be true or false, got 'perhaps'"),
        ("flip: 1", "some.yaml: flip must be true or false, got 1"),
        ("column: 1.50", "some.yaml: column must be text or null, got 1.5"),
        ("column: false", "some.yaml: column must be text or null, got False"),
        ("crop_scale: small", "some.yaml: crop_scale must be a list, each entry a number, got 'small'"),
        ("crop_scale: [small, 1]", r"some.yaml: crop_scale must be a list, each entry a number, got \['small', 1\]"),
        ("crop_scale: [.nan, 1]", r"some.yaml: crop_scale must be a list, each entry a number, got \[nan, 1\]"),
        ("crop_scale: [0, .inf]", r"some.yaml: crop_scale must be a list, each entry a number, got \[0, inf\]"),
        ("mode: stripes", "some.yaml: mode must be one of random, block, got 'stripes'"),
        ("norm: group", "some.yaml: norm must be one of layer, batch, got 'group'"),
        ("config_overrides: 3.5", "some.yaml: config_overrides must be a mapping or text or null, got 3.5"),
        ("crop_scale: [" + 60 * "[1, 2, 3], " + "1]", r"crop_scale must be a list, .* got \[\[1, 2, 3\], .*\.\.\.\]$"),
        ("dpeth: 4", "some.yaml: unknown option 'dpeth', did you mean 'depth'?"),
        ("- depth", "some.yaml: a recipe is a mapping"),
        ("depth: [4", "some.yaml: not valid YAML: while parsing a flow sequence"),
        ("1: 2", "some.yaml: a recipe is a mapping"),
    ],
)
def test_bad_recipes(recipe, line, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_recipe_args((ModelArguments, DataArguments), [recipe(line), "--train_dir", "photos"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dpeth", "4"], "unknown option '--dpeth', did you mean '--depth'?"),
        (["--crop-scales=1"], "unknown option '--crop-scales', did you mean '--crop_scale'?"),
        (["--crop_scale", "nan"], "--crop-scale: must be a finite number, got nan"),
        (["--dep", "4"], "unknown option '--dep', did you mean '--depth'?"),
        (["--depth", "four"], "--depth: invalid int value: 'four'"),
        (["--mode", "stripes"], "--mode: invalid choice: 'stripes'"),
        (["--depth", "4", "ibot-vits16"], "unexpected argument 'ibot-vits16'; a recipe comes before all options"),
    ],
)
def test_bad_command_lines(argv, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe_args((ModelArguments, DataArguments), ["--train_dir", "photos", *argv])


def test_a_required_option_may_come_from_the_recipe_only(recipe):
    with pytest.raises(ValueError, match="required: --train_dir"):
        parse_recipe_args((DataArguments,), [])
    assert parse_recipe_args((DataArguments,), [recipe("train_dir: x")]) == (DataArguments(train_dir="x"),)


@given(depth=st.integers(-(2**31), 2**31), scale=st.lists(st.floats(0, 1), min_size=1), flip=st.booleans())
def test_recipe_and_command_line_agree(depth, scale, flip, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "some.yaml"
    path.write_text(f"train_dir: x\ndepth: {depth}\ncrop_scale: {scale}\nflip: {str(flip).lower()}\n")
    options = [f"--depth={depth}", "--train_dir", "x", "--flip", str(flip), "--crop_scale", *map(str, scale)]
    types = (ModelArguments, DataArguments)
    assert parse_recipe_args(types, [str(path)]) == parse_recipe_args(types, options)
