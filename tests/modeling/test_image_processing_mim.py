"""The iBOT image processors against Pillow, and the pipelines that are fed by them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, pipeline

import hf_mim
from hf_mim import IBotConfig, IBotForImageClassification, IBotForPreTraining, IBotImageProcessorPil, IBotModel
from tests.testing.image_processing import DEFAULT_BACKEND, by_hand, generated_image, has_torchvision


SIZES = [(300, 300), (400, 260), (251, 500), (97, 60), (256, 256), (640, 427)]


@pytest.mark.parametrize("size", SIZES)
def test_equals_pillow(size):
    image = generated_image(*size)
    values = IBotImageProcessorPil()(image, return_tensors="np")["pixel_values"]
    assert values.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(values[0], by_hand(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    image = generated_image(300, 280, mode)
    assert image.mode == mode
    values = IBotImageProcessorPil()([image, generated_image(260, 300)], return_tensors="pt")["pixel_values"]
    assert values.shape == (2, 3, 224, 224) and values.dtype == torch.float32
    np.testing.assert_allclose(values[0].numpy(), by_hand(image), rtol=0, atol=1e-6)
    np.testing.assert_allclose(values[1].numpy(), by_hand(generated_image(260, 300)), rtol=0, atol=1e-6)


def test_grayscale_models():
    processor = IBotImageProcessorPil(do_convert_rgb=False, image_mean=[0.5], image_std=[0.5])
    image = generated_image(300, 280, "L")
    values = processor(image, return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 1, 224, 224)
    np.testing.assert_allclose(values[0].numpy(), by_hand(image, "L", 0.5, 0.5), rtol=0, atol=1e-6)
    config = IBotConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_channels=1, image_size=224)
    assert IBotModel(config)(values).last_hidden_state.shape == (1, 197, 16)


def test_other_sizes():
    processor = IBotImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    image = generated_image(100, 70)
    values = processor(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(values, by_hand(image, resize=40, crop=32), rtol=0, atol=1e-6)


def test_save_and_load(tmp_path):
    processor = IBotImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    # Both backends write the same name, and whoever loads picks the one that is there.
    assert stored["image_processor_type"] == "IBotImageProcessor"
    image = generated_image(100, 70)
    expected = processor(image, return_tensors="np")["pixel_values"]
    loaded = [
        IBotImageProcessorPil.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path, backend="pil"),
    ]
    for again in loaded:
        assert type(again) is IBotImageProcessorPil
        assert again.to_dict() == processor.to_dict()
        np.testing.assert_array_equal(again(image, return_tensors="np")["pixel_values"], expected)
    default = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(default).__name__ == ("IBotImageProcessor" if has_torchvision() else "IBotImageProcessorPil")
    assert default.crop_size == processor.crop_size and default.size == processor.size


def test_the_torchvision_processor_is_only_offered_with_torchvision():
    assert hasattr(hf_mim, "IBotImageProcessor") == has_torchvision()
    assert ("IBotImageProcessor" in hf_mim.__all__) == has_torchvision()
    assert hf_mim.IBotImageProcessorPil is IBotImageProcessorPil


def test_a_torchvision_for_another_torch_is_named(tmp_path):
    """It fails with RuntimeError when transformers imports it, whose own message does not mention it."""
    (tmp_path / "torchvision").mkdir()
    error = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (tmp_path / "torchvision" / "__init__.py").write_text(error)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import hf_mim"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    last_line = run.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError: the installed torchvision does not match torch"), run.stderr


@pytest.mark.parametrize("size", SIZES)
def test_torchvision_equals_pillow(size):
    pytest.importorskip("torchvision", exc_type=ImportError)
    image = generated_image(*size)
    values = hf_mim.IBotImageProcessor()(image, return_tensors="np")["pixel_values"][0]
    difference = np.abs(values - by_hand(image))
    assert difference.max() < 0.1 and difference.mean() < 1e-3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An encoder, a pre-training model and a classifier saved with their processor."""
    config = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, out_dim=8)
    processor = IBotImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    torch.manual_seed(0)
    labels = {0: "cat", 1: "dog", 2: "owl"}
    models = {
        "encoder": IBotModel(IBotConfig(**config)),
        "pretraining": IBotForPreTraining(IBotConfig(**config, head_hidden_size=16, head_bottleneck_size=8)),
        "classifier": IBotForImageClassification(
            IBotConfig(**config, id2label=labels, label2id={name: i for i, name in labels.items()})
        ),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return root, {name: model.eval() for name, model in models.items()}, processor


@pytest.mark.parametrize("name", ["encoder", "pretraining"])
@pytest.mark.parametrize("as_object", [False, True])
@torch.no_grad()
def test_feature_extraction_pipeline(folders, name, as_object):
    root, models, processor = folders
    encoder = models[name] if name == "encoder" else models[name].ibot
    images = [generated_image(100, 70), generated_image(50, 90, "L")]
    if as_object:
        extract = pipeline("image-feature-extraction", model=encoder, image_processor=processor)
    else:
        extract = pipeline("image-feature-extraction", model=str(root / name))
        processor = AutoImageProcessor.from_pretrained(root / name, backend=DEFAULT_BACKEND)
    expected = encoder(processor(images, return_tensors="pt")["pixel_values"])
    tokens = torch.tensor(extract(images)).squeeze(1)
    torch.testing.assert_close(tokens, expected.last_hidden_state, rtol=0, atol=1e-5)
    pooled = torch.tensor(extract(images, pool=True)).squeeze(1)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("as_object", [False, True])
@torch.no_grad()
def test_classification_pipeline(folders, as_object):
    root, models, processor = folders
    model, image = models["classifier"], generated_image(100, 70)
    if as_object:
        classify = pipeline("image-classification", model=model, image_processor=processor)
    else:
        classify = pipeline("image-classification", model=str(root / "classifier"))
        processor = AutoImageProcessor.from_pretrained(root / "classifier", backend=DEFAULT_BACKEND)
    scores = {entry["label"]: entry["score"] for entry in classify(image)}
    expected = model(processor(image, return_tensors="pt")["pixel_values"]).logits.softmax(-1)[0]
    assert scores == pytest.approx(dict(zip(("cat", "dog", "owl"), expected.tolist(), strict=True)), abs=1e-5)
