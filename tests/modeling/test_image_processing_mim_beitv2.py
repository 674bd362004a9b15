"""The BEiT v2 image processors: the transform of fine-tuning, and the pipelines that are fed by them."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, pipeline

import hf_mim
from hf_mim import (
    Beitv2Config,
    Beitv2ForImageClassification,
    Beitv2ForPreTraining,
    Beitv2ImageProcessorPil,
    Beitv2Model,
)
from tests.testing.image_processing import DEFAULT_BACKEND, by_hand, generated_image, has_torchvision


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK"])
def test_equals_pillow(mode):
    image = generated_image(400, 260, mode)
    values = Beitv2ImageProcessorPil()(image, return_tensors="np")["pixel_values"]
    assert values.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(values[0], by_hand(image), rtol=0, atol=1e-6)


def test_torchvision_equals_pillow():
    pytest.importorskip("torchvision", exc_type=ImportError)
    image = generated_image(251, 500)
    values = hf_mim.Beitv2ImageProcessor()(image, return_tensors="np")["pixel_values"][0]
    difference = np.abs(values - by_hand(image))
    assert difference.max() < 0.1 and difference.mean() < 1e-3


def test_the_torchvision_processor_is_only_offered_with_torchvision():
    assert hasattr(hf_mim, "Beitv2ImageProcessor") == has_torchvision()
    assert ("Beitv2ImageProcessor" in hf_mim.__all__) == has_torchvision()


def test_save_and_load(tmp_path):
    processor = Beitv2ImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["image_processor_type"] == "Beitv2ImageProcessor"
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(loaded) is Beitv2ImageProcessorPil and loaded.to_dict() == processor.to_dict()
    image = generated_image(100, 70)
    values = loaded(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(values, by_hand(image, resize=40, crop=32), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("mean_pooling", [False, True])
def test_pipelines(tmp_path, mean_pooling):
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    labels = {0: "cat", 1: "dog", 2: "owl"}
    config = Beitv2Config(**sizes, initializer_range=0.2, use_mean_pooling=mean_pooling, id2label=labels)
    processor = Beitv2ImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    torch.manual_seed(0)
    models = {"encoder": Beitv2Model(config), "classifier": Beitv2ForImageClassification(config)}
    if not mean_pooling:
        models["pretraining"] = Beitv2ForPreTraining(Beitv2Config(**sizes, vocab_size=8, early_layers=1))
    for name, model in models.items():
        torch.nn.init.normal_(getattr(model, "classifier", torch.nn.Linear(1, 1)).weight)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)

    processor = AutoImageProcessor.from_pretrained(tmp_path / "encoder", backend=DEFAULT_BACKEND)
    images = [generated_image(100, 70), generated_image(50, 90, "L")]
    pixel_values = processor(images, return_tensors="pt")["pixel_values"]
    for name in models.keys() - {"classifier"}:
        encoder = models[name].base_model.eval()
        extract = pipeline("image-feature-extraction", model=str(tmp_path / name))
        expected = encoder(pixel_values)
        tokens = torch.tensor(extract(images)).squeeze(1)
        torch.testing.assert_close(tokens, expected.last_hidden_state, rtol=0, atol=1e-5)
        pooled = torch.tensor(extract(images, pool=True)).squeeze(1)
        torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=1e-5)

    classify = pipeline("image-classification", model=str(tmp_path / "classifier"))
    scores = {entry["label"]: entry["score"] for entry in classify(images[0])}
    expected = models["classifier"].eval()(pixel_values[:1]).logits.softmax(-1)[0].tolist()
    assert scores == pytest.approx(dict(zip(labels.values(), expected, strict=True)), abs=1e-5)
