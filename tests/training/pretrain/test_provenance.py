"""Where a result comes from, as its card tells it."""

import json
import re
import shlex

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from hf_mim.hub.run_card import read_card_data
from hf_mim.training.pretrain import provenance
from hf_mim.training.pretrain.options import DataArguments, ModelArguments
from hf_mim.training.pretrain.provenance import (
    describe_data,
    describe_start,
    describe_time,
    shown_command,
    shown_recipe,
)
from tests.testing.tiny_training import SHORT, TINY_DBOT, pretrain


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("ibot-vits16 --train_dir /data/imagenet/train --bf16", "ibot-vits16 --train_dir train --bf16"),
        ("/home/me/my.yaml --output_dir=/home/me/runs/x", "my.yaml --output_dir=x"),
        ("--train_dir ~/images/ --validation_dir ../val", "--train_dir images --validation_dir val"),
        ("--train_dir '/data/tars/*.tar'", "--train_dir tars"),
        ("--train_dir 'C:\\Users\\me\\images'", "--train_dir images"),
        ("--model_name_or_path /runs/a/pretraining", "--model_name_or_path a/pretraining"),
        ("--resume_from_checkpoint ./runs/a/checkpoint-12", "--resume_from_checkpoint ./runs/a/checkpoint-12"),
        ("--output_dir runs/own_flat", "--output_dir runs/own_flat"),
        ("--train_dir ../images/cells", "--train_dir cells"),
        ("--dataset_name org/photos --token hf_secret --seed 1", "--dataset_name org/photos --seed 1"),
        ("--hub_token=hf_secret --push-to-hub-token hf_secret --token hf_secret", ""),
        ("--tokenizer_name_or_path org/tokenizer --pred_ratio 0 0.3", "--tokenizer_name_or_path org/tokenizer "
         "--pred_ratio 0 0.3"),
        ("--run_name 'two words'", "--run_name 'two words'"),
    ],
)  # fmt: skip
def test_command(typed, shown):
    assert shown_command(shlex.split(typed)) == f"hf-mim pretrain {shown}".rstrip()


def test_folders_that_are_here_stay_and_long_commands_are_broken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "images").mkdir(parents=True)
    assert shown_command(["--train_dir", "data/images"]) == "hf-mim pretrain --train_dir data/images"
    arguments = [word for number in range(12) for word in (f"--option_{number}", "some-value", "another")]
    lines = shown_command(["recipe", *arguments]).split("\n")
    assert len(lines) > 3 and max(map(len, lines)) <= 120
    assert all(line.endswith(" \\") for line in lines[:-1]) and all(line.startswith("    --") for line in lines[1:])
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == ["hf-mim", "pretrain", "recipe", *arguments]


def test_recipe():
    assert shown_recipe(["ibot-vits16", "--seed", "1"]) == "ibot-vits16"
    assert shown_recipe(["/home/me/my.yaml"]) == "my.yaml"
    assert shown_recipe(["--seed", "1"]) is None and shown_recipe([]) is None


def test_data(tmp_path, monkeypatch):
    def described(**options):
        facts = describe_data(DataArguments(**options))
        return facts["data"], facts["dataset_id"], facts["data_license"]

    folder = tmp_path / "photos"
    folder.mkdir()
    assert described(train_dir=str(folder)) == ("photos", None, None)
    assert described(train_dir=f"{folder}/*.tar") == ("photos", None, None)
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    assert described(dataset_name=str(folder)) == ("photos", None, "cc0-1.0")
    assert described(dataset_name=str(folder), data_license="mit") == ("photos", None, "mit")
    assert described(dataset_name="imagefolder", train_dir=str(folder)) == ("photos", None, "cc0-1.0")
    assert described(dataset_name="photo-tiles") == ("photo-tiles", None, None)
    # Of data on the Hub, the card lies in the cache.
    cached = {("org/photos", "README.md", "dataset"): str(folder / "README.md")}
    monkeypatch.setattr(provenance, "try_to_load_from_cache", lambda *args, repo_type: cached.get((*args, repo_type)))
    assert described(dataset_name="org/photos") == ("org/photos", "org/photos", "cc0-1.0")
    assert described(dataset_name="org/others") == ("org/others", "org/others", None)


def test_start(tmp_path):
    run = tmp_path / "run-1"
    (run / "pretraining").mkdir(parents=True)
    expected = {"started_from": "run-1", "started_from_license": None, "base_model": None, "model_license": None}
    assert describe_start(ModelArguments(model_name_or_path=str(run / "pretraining"))) == expected
    (run / "README.md").write_text("---\nlicense: mit\nbase_model: org/first\n---\n")
    expected |= {"started_from_license": "mit", "base_model": "org/first", "model_license": "mit"}
    for folder in (run, run / "pretraining"):
        assert describe_start(ModelArguments(model_name_or_path=str(folder))) == expected
    given = describe_start(ModelArguments(model_name_or_path=str(run), model_license="apache-2.0"))
    assert given == expected | {"model_license": "apache-2.0"}
    assert describe_start(ModelArguments(model_license="mit"))["model_license"] == "mit"


def test_start_from_the_hub(monkeypatch, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit, apache-2.0]\nbase_model: org/first\n---\n")
    seen = []

    def card_data(name, **options):
        seen.append((name, options["revision"]))
        return read_card_data(str(tmp_path))

    monkeypatch.setattr(provenance, "read_card_data", card_data)
    facts = describe_start(ModelArguments(model_name_or_path="org/second", model_revision="v1"))
    assert (facts["started_from"], facts["base_model"]) == ("org/second", "org/second")
    assert facts["started_from_license"] == "mit, apache-2.0" and seen == [("org/second", "v1")]


def test_time():
    log = [{"step": 0, "eval_x": 1.0}, {"step": 10, "images_per_second": 100.0}, {"step": 10, "eval_x": 1.0}]
    log += [{"step": 30, "images_per_second": 400.0}]
    # 10 and 20 steps of 40 images in 4 and 2 seconds, and 10 more that no log tells of.
    expected = {"training_seconds": 8.0, "images_per_second": 200.0}
    assert describe_time(log, 40, 40) == expected
    assert set(describe_time(log[:1], 40, 40).values()) == {None}


def test_card_of_a_continued_run(pictures, finished, tmp_path):
    output = tmp_path / "second"
    options = ("--train_dir", pictures, "--model_name_or_path", finished[0] / "pretraining", "--max_steps", 1, *SHORT)
    pretrain(*options, "--data_license", "cc0-1.0", output=output)
    facts = json.loads((output / "metrics.json").read_text())
    assert facts["started_from"] == "tiny-ibot" and facts["data_license"] == "cc0-1.0"
    card = (output / "README.md").read_text()
    assert "--model_name_or_path tiny-ibot/pretraining" in card
    # Only the code that loads the model names the folder, until it is published.
    card = re.sub(r'from_pretrained\("[^"]*"\)', "", card)
    assert str(tmp_path) not in card
    assert "| started from | tiny-ibot |" in card and "cc0-1.0 |" in card
    for text in (card, (output / "metrics.json").read_text()):
        assert str(pictures.parent) not in text and str(finished[0].parent) not in text


def test_card_of_a_run_tells_what_it_was(finished):
    output, _ = finished
    card = (output / "README.md").read_text()
    assert "\n    --num_train_epochs 2 " in card and "--train_dir pictures" in card
    facts = json.loads((output / "metrics.json").read_text())
    assert facts["training_seconds"] == pytest.approx(32 / facts["images_per_second"], abs=0.06)
    assert ModelCard(card).data.eval_results[0].dataset_type == facts["data"]
    assert facts["device"] in card and f"torch {facts['versions']['torch']}" in card
    with Image.open(output / "masks.png") as picture:
        picture.verify()
    assert "(masks.png)" in card


def test_results_of_data_on_the_hub(pictures, tmp_path, monkeypatch):
    described = dict.fromkeys(("data", "dataset_id"), "org/photos") | {"data_license": None, "eval_split": "test"}
    monkeypatch.setattr("hf_mim.training.pretrain.outputs.describe_data", lambda args: described)
    options = ("--train_dir", pictures, "--eval_split", "test", "--max_steps", 1)
    metrics = pretrain(*options, "--warmup_epochs", 0, output=tmp_path, method=TINY_DBOT)
    results = yaml.safe_load((tmp_path / ".eval_results" / "knn.yaml").read_text())
    assert [entry["value"] for entry in results] == [round(metrics["eval_knn_3_top1"], 2)]
    assert results[0]["dataset"] == {"id": "org/photos", "task_id": "knn_3"} and results[0]["date"].endswith("+00:00")
