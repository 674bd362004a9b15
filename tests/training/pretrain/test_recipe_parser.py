from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from hf_mim.training.pretrain import recipe_parser
from hf_mim.training.pretrain.recipe_parser import list_recipes, load_recipe, parse_recipe_args


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


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ibot-vits16", "dbot-vitb16"):
        (tmp_path / f"{name}.yaml").write_text(f"# costs nothing\ntrain_dir: {name}\n")
    (tmp_path / "notes.txt").write_text("not a recipe")
    monkeypatch.setattr(recipe_parser, "RECIPES", tmp_path)


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


def test_overrides_may_be_text(recipe):
    (model,) = parse_recipe_args((ModelArguments,), [recipe("config_overrides: hidden_size=128,depth=2")])
    assert model.config_overrides == "hidden_size=128,depth=2"
    (model,) = parse_recipe_args((ModelArguments,), ["--config_overrides", "hidden_size=64"])
    assert model.config_overrides == "hidden_size=64"


def test_training_arguments(recipe, tmp_path):
    path = recipe(
        f"output_dir: {tmp_path}\nlearning_rate: 1e-3\nbase_learning_rate: 5e-4\nmax_steps: 10\nuse_cpu: true\n"
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1.0e-6}\nreport_to: [tensorboard]\n"
        "eval_strategy: 'no'\nsave_total_limit: null\n"
    )
    (args,) = parse_recipe_args((PretrainArguments,), [path, "--max_steps", "20", "--report_to", "none"])
    assert type(args) is PretrainArguments
    assert (args.learning_rate, args.base_learning_rate, args.max_steps) == (1e-3, 5e-4, 20)
    assert args.lr_scheduler_type == "cosine_with_min_lr" and args.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert args.report_to == [] and args.save_total_limit is None and args.eval_strategy == "no"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("depth: four", "some.yaml: depth must be int, got 'four'"),
        ("depth: 4.5", "some.yaml: depth must be int, got 4.5"),
        ("depth: true", "some.yaml: depth must be int, got True$"),
        ("depth: null", "some.yaml: depth must be int, got None"),
        ("flip: 'yes'", "some.yaml: flip must be bool, got 'yes'"),
        ("column: no", r"some.yaml: column must be str \| None, got False; quote the word"),
        ("crop_scale: 0.4", r"some.yaml: crop_scale must be list\[float\], got 0.4"),
        ("crop_scale: [small, 1]", r"some.yaml: crop_scale must be list\[float\], got \['small', 1\]"),
        ("mode: stripes", r"some.yaml: mode must be Literal\['random', 'block'\], got 'stripes'"),
        ("norm: group", "some.yaml: norm must be Norm, got 'group'"),
        ("config_overrides: 3", r"some.yaml: config_overrides must be dict\[str, Any\] \| str \| None, got 3"),
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


def test_recipe_names(packaged, tmp_path):
    assert list_recipes() == ["dbot-vitb16", "ibot-vits16"]
    assert load_recipe("ibot-vits16") == {"train_dir": "ibot-vits16"}
    assert load_recipe(tmp_path / "dbot-vitb16.yaml") == {"train_dir": "dbot-vitb16"}
    (data,) = parse_recipe_args((DataArguments,), ["ibot-vits16"])
    assert data.train_dir == "ibot-vits16"

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


def test_help_lists_every_option_by_dataclass(capsys, recipe):
    with pytest.raises(SystemExit) as stop:
        parse_recipe_args((ModelArguments, DataArguments, PretrainArguments), [recipe("depth: 7"), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    sections = [text.index(f"\n{name}:\n") for name in ("ModelArguments", "DataArguments", "PretrainArguments")]
    assert sections == sorted(sections)
    assert sections[0] < text.index("100 % of them") < sections[1] < text.index("--crop_scale") < sections[2]
    assert "(default: 7)" in text[sections[0] : sections[1]]
    assert "--base_learning_rate" in text[sections[2] :]


@given(depth=st.integers(-(2**31), 2**31), scale=st.lists(st.floats(0, 1), min_size=1), flip=st.booleans())
def test_recipe_and_command_line_agree(depth, scale, flip, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "some.yaml"
    path.write_text(f"train_dir: x\ndepth: {depth}\ncrop_scale: {scale}\nflip: {str(flip).lower()}\n")
    options = [f"--depth={depth}", "--train_dir", "x", "--flip", str(flip), "--crop_scale", *map(str, scale)]
    types = (ModelArguments, DataArguments)
    assert parse_recipe_args(types, [str(path)]) == parse_recipe_args(types, options)
