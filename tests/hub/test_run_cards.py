"""Cards of runs, with all facts and with every one missing that can be."""

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_mim import Beitv2Config, DBotConfig, IBotConfig, IBotSwinConfig, VQKDConfig
from hf_mim.hub.run_card import build_card, build_eval_results, build_pretraining_card, rename_card
from hf_mim.training.beitv2_arguments import Beitv2TrainingArguments
from hf_mim.training.dbot_arguments import DBotTrainingArguments
from hf_mim.training.dbot_symmetric_arguments import DBotSymmetricTrainingArguments
from hf_mim.training.ibot_arguments import IBotTrainingArguments
from hf_mim.training.vqkd_arguments import VQKDTrainingArguments
from tests.testing import card_checks


FACTS = {
    "data": "photos",
    "dataset_id": "someone/photos",
    "data_license": "cc-by-4.0",
    "eval_split": "test",
    "train_images": 12_000,
    "bank_images": 2_000,
    "eval_images": 1_000,
    "started_from": "org/before",
    "started_from_license": "mit",
    "base_model": "org/before",
    "model_license": "apache-2.0",
    "recipe": "ibot-vits16",
    "command": "hf-mim pretrain ibot-vits16 --train_dir photos",
    "steps": 1_234,
    "epoch": 3.5,
    "device": "NVIDIA H200",
    "processes": 8,
    "precision": "bf16",
    "training_seconds": 11_520.0,
    "images_per_second": 4_321.2,
    "versions": {"Python": "3.11.9", "hf_mim": "0.1.0", "transformers": "5.23.0"},
    "final_loss": 6.25,
    "final_loss_cls": 3.25,
    "final_loss_patch": 3.0,
    "eval_knn_10_top1": 71.234,
    "eval_knn_20_top1": 70.5,
    "initial_knn_10_top1": 30.0,
    "initial_knn_20_top1": 31.0,
    "raw_pixels_knn_10_top1": 40.0,
    "raw_pixels_knn_20_top1": 41.0,
    "pictures": ["curves.png", "attention.png", "masks.png"],
    "verdict": {"outcome": "learned", "text": "The run learned."},
    "value_range": None,
}
MEASURED = [key for key in FACTS if "knn" in key]
# What may be missing, and what is then put into its place (None: nothing, the key is not there).
ABSENT = {
    "labels": dict.fromkeys([*MEASURED, "eval_images", "bank_images"]),
    "stream": {"train_images": None, "eval_split": None},
    "start": {"started_from": None, "started_from_license": None, "base_model": None},
    "recipe": {"recipe": None},
    "command": {"recipe": None, "command": None},
    "licenses": {"data_license": None, "model_license": None, "started_from_license": None},
    "hub data": {"dataset_id": None},
    "logs": {"training_seconds": None, "images_per_second": None, "final_loss": None, "pictures": ["attention.png"]},
    "parts of the loss": {"final_loss_cls": None, "final_loss_patch": None},
    "pictures": {"pictures": []},
    "first evaluation": dict.fromkeys(key for key in MEASURED if key.startswith(("initial", "raw"))),
}
# These may be None; others are not there when they are missing.
NULLABLE = {*("train_images", "eval_split", "started_from", "started_from_license", "base_model", "recipe", "command")}
NULLABLE |= {*("data_license", "model_license", "dataset_id", "training_seconds", "images_per_second")}
NULLABLE |= {*("eval_images", "bank_images")}
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEACHER = {"teacher": "org/teacher", "teacher_license": "cc-by-nc-4.0", "teacher_feature": "normed"}
METHODS = {
    "ibot": (IBotTrainingArguments, IBotConfig(**SIZES), {}),
    "ibot_swin": (IBotTrainingArguments, IBotSwinConfig(), {"native": True}),
    "beitv2": (
        Beitv2TrainingArguments,
        Beitv2Config(**SIZES, early_layers=1),
        {"tokenizer": "org/tokenizer", "native": True, "codebook_size": 8192} | TEACHER,
    ),
    "dbot": (DBotTrainingArguments, DBotConfig(**SIZES), {"stages": 2} | TEACHER),
    "dbot_symmetric": (
        DBotSymmetricTrainingArguments,
        Beitv2Config(**SIZES, early_layers=1, head_layers=0, regression_loss="negcosine"),
        {"teacher_width": 512, "native": True} | TEACHER,
    ),
    "vqkd": (
        VQKDTrainingArguments,
        VQKDConfig(**SIZES),
        {
            "native": False,
            "codebook_size": 8192,
            "eval_codebook_usage": 0.97,
            "eval_perplexity": 5000.0,
            "eval_loss_feature": 0.31,
        }
        | TEACHER,
    ),
}


@pytest.fixture(scope="module", params=METHODS)
def method(request, tmp_path_factory):
    arguments_class, config, facts = METHODS[request.param]
    return request.param, arguments_class(output_dir=str(tmp_path_factory.mktemp("run")), use_cpu=True), config, facts


def card_of(method, facts=FACTS, **changes):
    name, args, config, own = method
    if facts["eval_images"] is None:
        own = {key: value for key, value in own.items() if not key.startswith("eval_")}
    return build_card("my-run", "runs/my-run", facts | own | changes, args, config, name)


def without(*absent: str) -> dict:
    changes = {key: value for part in absent for key, value in ABSENT[part].items()}
    facts = {key: value for key, value in (FACTS | changes).items() if key not in changes or value is not None}
    return facts | {key: None for key in changes if key in NULLABLE}


def assert_whole(card: str):
    card_checks.assert_whole(card, ["Use", "Results", "Training", "License", "Limits", "Citation"])


def test_card_with_everything(method):
    card = card_of(method)
    assert_whole(card)
    name = method[0]
    data = ModelCard(card).data
    assert (data.license, data.base_model, data.datasets) == ("apache-2.0", "org/before", ["someone/photos"])
    assert name in data.tags and data.model_name == "my-run"
    if name != "vqkd":
        first = data.eval_results[0]
        assert (first.metric_value, first.metric_name, first.metric_type) == (71.23, "10-NN top-1", "accuracy")
        assert (first.dataset_type, first.dataset_split) == ("someone/photos", "test")
        assert "\n| | 10-NN | 20-NN |\n" in card and "\n| after training | **71.2** | **70.5** |\n" in card
        assert "\n| raw pixels | 40.0 | 41.0 |\n| before training | 30.0 | 31.0 |\n" in card
        assert "1,000 held-out images by 2,000 labeled ones" in card
    assert "[someone/photos](https://huggingface.co/datasets/someone/photos), 12,000 images |" in card
    assert "| hardware | NVIDIA H200, 8 processes, bf16 |" in card
    assert "| time | 3 h 12 min of training, 4,321 images per second |" in card
    assert "| recipe | `ibot-vits16` of hf_mim |" in card and "| length | 1,234 steps of" in card
    assert "| software | Python 3.11.9, hf_mim 0.1.0, transformers 5.23.0 |" in card
    assert "```bash\nhf-mim pretrain ibot-vits16 --train_dir photos\n```" in card
    assert "![Training curves](curves.png)" in card and "(masks.png)" in card
    assert "Loss at the end: 6.250 (`loss_cls` 3.250, `loss_patch` 3.000)." in card
    assert "| started from | org/before: mit |" in card and "| this model | apache-2.0 |" in card
    if not name.startswith("ibot"):
        assert "| org/teacher: cc-by-nc-4.0 |" in card
    assert card_of(method, training_seconds=12.4).count("| 12 s of training") == 1


@pytest.mark.parametrize("absent", ABSENT)
def test_card_without(method, absent):
    card = card_of(method, without(absent))
    assert_whole(card)


def test_card_without_anything(method):
    card = card_of(method, without(*ABSENT))
    assert_whole(card)
    data = ModelCard(card).data
    assert data.license is None and data.base_model is None and data.datasets is None and not data.eval_results
    assert "| this model | not stated |" in card and "| training data | photos: not stated |" in card
    assert "random initialization" in card and "photos, as a stream |" in card


def test_teacher_of_unknown_license_and_no_teacher(method):
    name = method[0]
    if name.startswith("ibot"):
        pytest.skip("has no teacher from elsewhere")
    assert_whole(card := card_of(method, teacher_license=None))
    assert "org/teacher: not stated in its card |" in card
    if name in ("dbot", "beitv2"):
        assert_whole(card := card_of(method, teacher=None, teacher_license=None))
        assert "teacher:" not in card and "from the teacher" not in card
        assert ("a random network, then the encoder of the stage before: 2 stages" in card) == (name == "dbot")


def test_an_encoder_that_transformers_lacks(method):
    if method[0] not in ("ibot_swin", "beitv2", "dbot_symmetric"):
        pytest.skip("has one always, or never")
    assert_whole(card := card_of(method, **METHODS[method[0]][2] | {"native": False}))
    assert "\nimport hf_mim\n" in card and "Loading it takes `hf_mim`" in card


def test_card_file_loads_and_is_renamed(method, tmp_path):
    (tmp_path / "README.md").write_text(card_of(method), encoding="utf-8")
    loaded = ModelCard.load(tmp_path / "README.md")
    renamed = rename_card(str(loaded), "org/name")
    assert_whole(renamed)
    assert 'from_pretrained("org/name")' in renamed and "my-run" not in renamed
    assert ModelCard(renamed).data.model_name == "name"


@pytest.mark.parametrize("heading", ["License", "Licence"])  # codespell:ignore
def test_inherited_license_of_older_cards(heading):
    """Cards of version 0.1 spell the heading differently."""
    encoder_card = f"---\nlicense: mit\n---\n\n# name\n\n## {heading}\n\nSome terms.\n\n## Limits\n\nSome limits.\n"
    card = build_pretraining_card("org/name-pretrain", "org/name", IBotConfig(**SIZES), encoder_card, with_code=False)
    assert "\n## License\n\nSome terms.\n\n## Limits\n\nSome limits.\n" in card


def test_results_for_the_hub():
    entries = build_eval_results(FACTS, "2026-01-02T03:04:05+00:00")
    assert entries[0] == {
        "dataset": {"id": "someone/photos", "task_id": "knn_10"},
        "value": 71.23,
        "date": "2026-01-02T03:04:05+00:00",
        "notes": "top-1 accuracy in percent of frozen features, 2000 labeled reference images",
    }
    assert [entry["dataset"]["task_id"] for entry in yaml.safe_load(yaml.safe_dump(entries))] == ["knn_10", "knn_20"]
    assert build_eval_results(without("hub data"), "2026") == [] and build_eval_results(without("labels"), "") == []
