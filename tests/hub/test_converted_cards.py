"""Cards of converted checkpoints: those of the catalogue in `model_cards/`, and those beside converted files."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_mim import (
    Beitv2Config,
    Beitv2ForImageClassification,
    Beitv2ForPreTraining,
    DBotConfig,
    DBotForImageClassification,
    DBotModel,
    IBotConfig,
    IBotModel,
    IBotSwinConfig,
    export_native,
)
from hf_mim.hub import catalogue_cards
from hf_mim.hub.catalogue import load_catalogue
from hf_mim.hub.catalogue_cards import catalogue_card, loaded_class
from hf_mim.hub.convert.command import shown_command
from hf_mim.hub.converted_card import IMAGENET, build_converted_card
from hf_mim.hub.run_card import rename_card
from tests.testing.card_checks import assert_whole


CATALOGUE = load_catalogue()
FOLDER = Path(__file__).parents[2] / "model_cards"
HEADINGS = ["Use", "Results", "Origin", "License", "Limits", "Citation"]
CLASSES = {
    "ibot": ["IBotModel", "IBotForPreTraining", "IBotForImageClassification", "ViTModel", "ViTForImageClassification"],
    "ibot_swin": ["IBotSwinModel", "IBotSwinForPreTraining", "SwinModel", "SwinForImageClassification"],
    "beitv2": ["Beitv2Model", "Beitv2ForPreTraining", "Beitv2ForImageClassification", "BeitModel"],
    "vqkd": ["VQKDModel"],
    "dbot": [
        "DBotModel",
        "DBotForPreTraining",
        "DBotForImageClassification",
        "ViTModel",
        "BeitForImageClassification",
    ],
}


def test_cards_of_the_catalogue_are_those_in_the_repository(tmp_path):
    (tmp_path / "of-former-times.md").write_text("Gone.")
    catalogue_cards.main([str(tmp_path)])
    written = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    kept = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}
    assert written == kept, "python -m hf_mim.hub.catalogue_cards model_cards"
    assert set(kept) == {f"{name}.md" for name in CATALOGUE}


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_card_of_the_catalogue(entry):
    card = catalogue_card(entry)
    assert_whole(card, HEADINGS)
    data = ModelCard(card).data
    assert data.license == entry.license and data.model_name == entry.name
    assert (data.datasets == [IMAGENET]) == (entry.data == "ImageNet-1K")
    own = {key: entry.reported[key] for key in ("knn", "linear", "top1", "top5") if key in entry.reported}
    results = data.eval_results or []
    assert [result.metric_value for result in results] == list(own.values())
    assert all(result.source_name == "reported by the authors" for result in results)
    assert all(result.source_url == entry.page for result in results)
    for value in entry.reported.values():
        assert f" | {value:.1f} |" in card
    if entry.reported:
        assert "Reported by the authors" in card and "Here nothing was measured." in card
    assert f"hf-mim convert {entry.name}" in card and (entry.share or entry.url in card or entry.encoder_url in card)
    if entry.network == "student":
        assert "of the encoder of the student" in card and "--which student" in card
    if entry.teacher is not None:
        assert entry.teacher.page in card and entry.teacher.license in card
    if "import hf_mim" not in card:
        assert "--native" in card or entry.family == "vqkd"
    renamed = rename_card(card, f"org/{entry.name}")
    assert f'from_pretrained("org/{entry.name}")' in renamed and f"hf-mim convert {entry.name}" in renamed


def test_native_forms_are_those_of_the_export():
    """The classes that the cards of the catalogue name, from small models of the same make."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    finetuned = {"use_mean_pooling": True, "num_labels": 5}
    per_block = {"use_shared_relative_position_bias": False, "use_relative_position_bias": True}
    symmetric = {"early_layers": 1, "head_layers": 0, "regression_loss": "negcosine"}
    models = {
        "ibot-vitb16": IBotModel(IBotConfig(**sizes)),
        "beitv2-vitb16": Beitv2ForPreTraining(Beitv2Config(**sizes, early_layers=1)),
        "beitv2-vitb16-ft1k": Beitv2ForImageClassification(
            Beitv2Config(**sizes, **finetuned, **per_block, early_layers=1)
        ),
        "dbot-vitb16": DBotModel(DBotConfig(**sizes)),
        "dbot-vitb16-ft1k": DBotForImageClassification(DBotConfig(**sizes, **finetuned)),
        "dbot-vitb16-clip": Beitv2ForPreTraining(Beitv2Config(**sizes, **symmetric)),
    }
    for name, model in models.items():
        assert type(export_native(model)).__name__ == loaded_class(CATALOGUE[name]), name
    for window in (7, 14):
        native = IBotSwinConfig(window_size=window).why_no_native_swin is None
        assert (loaded_class(CATALOGUE[f"ibot-swint{window}"]) == "SwinModel") == native


@pytest.mark.parametrize(("family", "model_class"), [(f, c) for f, classes in CLASSES.items() for c in classes])
def test_card_of_a_file_of_unknown_origin(family, model_class):
    command = shown_command(["my.pth", "out", "--native", "--which", "teacher"])
    card = build_converted_card(
        "mine", family, model_class, 64, source="my.pth", network="teacher", command=command, versions={"hf_mim": "1"}
    )
    assert_whole(card, HEADINGS)
    ours = model_class.startswith(("IBot", "Beitv2", "DBot", "VQKD"))
    assert ("import hf_mim" in card) == ours and "from `my.pth`, a checkpoint" in card
    assert re.search(r"\nhf-mim convert my.pth OUT --which teacher --native\n", card)
    assert "does not say under which license" in card and ModelCard(card).data.license is None
    assert "authors" not in card.split("## Citation")[0]
    loader = {"ForPreTraining": "AutoModelForPreTraining", "ForImageClassification": "AutoModelForImageClassification"}
    expected = next((name for end, name in loader.items() if model_class.endswith(end)), "AutoModel")
    assert f'= {expected}.from_pretrained("mine")' in card
