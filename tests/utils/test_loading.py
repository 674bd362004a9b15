"""One loader for every command: what it returns, and the one line that it reports when something is missing."""

import logging
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_mim.utils.loading import (
    check_complete,
    find_source,
    load_config,
    load_image_processor,
    load_model,
    load_model_and_processor,
)


CONFIG = ViTConfig(
    hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
)
PROCESSOR = ViTImageProcessor(size={"height": 24, "width": 16})


def save_without(model, folder: Path, *names: str) -> None:
    weights = model.state_dict()
    for name in names:
        del weights[name]
    model.save_pretrained(folder, state_dict=weights)


def test_a_path_must_be_a_folder(tmp_path: Path, monkeypatch):
    asked = []
    monkeypatch.setattr("hf_mim.utils.loading.check_on_hub", lambda *arguments: asked.append(arguments))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_source(tmp_path / "model") == find_source("~/model") == str(tmp_path / "model")
    assert find_source("org/name") == "org/name" and asked == [("org/name", "model", None)]
    with pytest.raises(ValueError, match="~/other: there is no such folder; MODEL is a folder or a model id of the"):
        find_source("~/other")
    with pytest.raises(ValueError, match=r"^\./model: there is no such folder; TOKENIZER is a folder"):
        find_source("./model", "TOKENIZER")


def test_model_and_processor_are_those_that_were_saved(tmp_path: Path):
    torch.manual_seed(0)
    classifier = ViTForImageClassification(CONFIG).to(torch.bfloat16)
    classifier.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    model, image_processor = load_model_and_processor(tmp_path, dtype=torch.float32)
    assert type(model) is ViTModel and model.dtype == torch.float32
    assert image_processor.size == {"height": 24, "width": 16}
    for name, value in classifier.vit.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.float())
    whole = load_model(tmp_path, AutoModelForImageClassification)
    assert type(whole) is ViTForImageClassification and whole.dtype == torch.bfloat16
    assert load_config(tmp_path).hidden_size == 8
    assert load_image_processor(str(tmp_path)).size == image_processor.size


def test_images_are_resized_by_pillow_unless_torchvision_is_asked_for(tmp_path: Path):
    PROCESSOR.save_pretrained(tmp_path)
    assert type(load_image_processor(tmp_path)) is ViTImageProcessorPil
    pytest.importorskip("torchvision", exc_type=ImportError)
    assert type(load_image_processor(tmp_path, backend="torchvision")) is ViTImageProcessor


def test_missing_weights_are_named_unless_they_are_unused(tmp_path: Path):
    model = ViTModel(CONFIG)
    save_without(model, tmp_path, "pooler.dense.weight", "pooler.dense.bias")
    assert torch.equal(load_model(tmp_path).layernorm.weight, model.layernorm.weight)
    with pytest.raises(ValueError, match=f"{tmp_path}: the checkpoint lacks 2 weights, such as pooler.dense.bias$"):
        load_model(tmp_path, unused=("mask_token",))
    save_without(model, tmp_path / "teacher", "layers.1.mlp.fc1.weight", "pooler.dense.weight")
    with pytest.raises(ValueError, match=r"/teacher: the checkpoint lacks 1 weights, such as layers\.1\.mlp\.fc1"):
        load_model(tmp_path, subfolder="teacher")


def test_check_complete():
    check_complete("here", [])
    check_complete("here", ["vit.embeddings.mask_token", "vit.pooler.dense.bias"])
    with pytest.raises(ValueError, match=r"^here: the checkpoint lacks 2 weights, such as a$"):
        check_complete("here", {"b", "mask_token", "a"})
    with pytest.raises(ValueError, match=r"^here: the checkpoint lacks 1 weights, such as mask_token$"):
        check_complete("here", ["mask_token"], unused=())


def test_what_is_not_there_is_reported_in_one_line(tmp_path: Path):
    for load in (load_config, load_model, load_model_and_processor):
        with pytest.raises(ValueError, match=f"^{tmp_path}: no model can be loaded \\([^\n]*\\)$"):
            load(tmp_path)
    CONFIG.save_pretrained(tmp_path)
    for load in (load_image_processor, load_model_and_processor):
        with pytest.raises(ValueError, match=f"^{tmp_path}: no image processor can be loaded \\([^\n]*\\)$"):
            load(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^{tmp_path}: no model can be loaded \\([^\n]*\\)$"):
        load_model_and_processor(tmp_path)


def test_loading_is_quiet(tmp_path: Path, caplog):
    logging.getLogger("transformers").propagate = True
    ViTModel(CONFIG, add_pooling_layer=False).save_pretrained(tmp_path)
    load_model(tmp_path)
    assert not caplog.records
    # Everyone else still sees the table.
    AutoModel.from_pretrained(tmp_path)
    assert "pooler" in caplog.text
