"""Features: the right vector from each kind of model, and a model and random state left as they were."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BeitConfig,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    SegformerConfig,
    SegformerModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)
from transformers.models.beit.modeling_beit import BeitModel

from hf_mim import IBotConfig, IBotModel, IBotSwinConfig, IBotSwinModel
from hf_mim.evaluation.features import extract_features, raw_pixel_features


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
PROCESSOR = ViTImageProcessor(size={"height": 32, "width": 32})
LABELS = [2, 0, 1, 1, 0, 2, 2]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pixels() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (20 + 5 * i, 40, 3), dtype=np.uint8) for i in range(7)]


@pytest.fixture(scope="module")
def dataset(pixels: list[np.ndarray]) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    images = [{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(pixels)]
    return datasets.Dataset.from_dict({"image": images, "label": LABELS}, features=features)


@pytest.fixture(scope="module")
def pixel_values(pixels: list[np.ndarray]) -> torch.Tensor:
    return PROCESSOR([Image.fromarray(image) for image in pixels], return_tensors="pt")["pixel_values"]


def build(model_class, config):
    torch.manual_seed(0)
    return model_class(config).eval()


def features_of(model, dataset, **options) -> torch.Tensor:
    return extract_features(model, dataset, PROCESSOR, batch_size=3, progress=False, **options)[0]


# model, and how pooling="auto" must read its output
AUTO = [
    (ViTModel, ViTConfig(**SIZES), lambda output: output.last_hidden_state[:, 0]),
    (BeitModel, BeitConfig(**SIZES), lambda output: output.last_hidden_state[:, 0]),
    (IBotModel, IBotConfig(**SIZES), lambda output: output.last_hidden_state[:, 0]),
    (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(
            hidden_size=24, num_hidden_layers=1, num_attention_heads=3, image_size=32, patch_size=8
        ),
        lambda output: output.last_hidden_state[:, 0],
    ),
    (SiglipVisionModel, SiglipVisionConfig(**SIZES), lambda output: output.pooler_output),
    (
        SwinModel,
        SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
        lambda output: output.last_hidden_state.mean(dim=1),
    ),
    (
        ConvNextModel,
        ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
        lambda output: output.pooler_output,
    ),
    (
        ResNetModel,
        ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8),
        lambda output: output.last_hidden_state.mean(dim=(2, 3)),
    ),
    (
        SegformerModel,
        SegformerConfig(hidden_sizes=[8, 8, 8, 16], num_attention_heads=[1, 1, 1, 1], depths=[1, 1, 1, 1]),
        lambda output: output.last_hidden_state.mean(dim=(2, 3)),
    ),
]


@pytest.mark.parametrize(("model_class", "config", "expected"), AUTO, ids=[case[0].__name__ for case in AUTO])
@torch.no_grad()
def test_auto_pooling(model_class, config, expected, dataset, pixel_values):
    model = build(model_class, config)
    features, labels = extract_features(model, dataset, PROCESSOR, batch_size=3, progress=False)
    torch.testing.assert_close(features, expected(model(pixel_values)), atol=2e-5, rtol=1e-5)
    assert features.dtype == torch.float32
    assert labels.dtype == torch.int64 and labels.tolist() == LABELS


@torch.no_grad()
def test_each_pooling_by_name(dataset, pixel_values):
    vit = build(ViTModel, ViTConfig(**SIZES))
    output = vit(pixel_values)
    assert not torch.allclose(output.pooler_output, output.last_hidden_state[:, 0], atol=0.1)
    for pooling, expected in [
        ("cls", output.last_hidden_state[:, 0]),
        ("mean", output.last_hidden_state[:, 1:].mean(dim=1)),
        ("pooler", output.pooler_output),
    ]:
        torch.testing.assert_close(features_of(vit, dataset, pooling=pooling), expected, atol=2e-5, rtol=1e-5)

    siglip = build(SiglipVisionModel, SiglipVisionConfig(**SIZES))
    mean = siglip(pixel_values).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(features_of(siglip, dataset, pooling="mean"), mean, atol=2e-5, rtol=1e-5)

    # The mean patch stands where others have a CLS token.
    swin = build(IBotSwinModel, IBotSwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 1]))
    expected = swin(pixel_values).last_hidden_state[:, 0]
    for pooling in ("auto", "cls", "mean", "pooler"):
        torch.testing.assert_close(features_of(swin, dataset, pooling=pooling), expected, atol=2e-5, rtol=1e-5)


def test_poolings_that_the_model_does_not_allow(dataset):
    vit = build(ViTModel, ViTConfig(**SIZES))
    with pytest.raises(ValueError, match="pooling must be one of auto, cls, mean, pooler, not 'max'"):
        features_of(vit, dataset, pooling="max")
    swin = build(SwinModel, SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[1]))
    with pytest.raises(ValueError, match="SwinModel has no CLS token"):
        features_of(swin, dataset, pooling="cls")
    segformer = build(SegformerModel, SegformerConfig(hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1, 1, 1, 1]))
    with pytest.raises(ValueError, match="SegformerModel returns no pooler_output"):
        features_of(segformer, dataset, pooling="pooler")
    with pytest.raises(ValueError, match="ViTForImageClassification returns no last_hidden_state"):
        features_of(build(ViTForImageClassification, ViTConfig(**SIZES)), dataset)


def test_a_model_that_wants_text_is_refused(dataset):
    config = CLIPConfig(
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8},
        vision_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8},
    )
    with pytest.raises(ValueError, match="CLIPModel takes input_ids, not pixel_values"):
        features_of(build(CLIPModel, config), dataset)


def test_modes_and_random_state_are_left_alone(dataset):
    model = build(ViTModel, ViTConfig(**SIZES, hidden_dropout_prob=0.5))
    expected = features_of(model, dataset)
    model.train()
    model.layers[0].eval()
    state = torch.get_rng_state()
    for num_workers in (0, 2):
        assert torch.equal(features_of(model, dataset, num_workers=num_workers), expected)
        assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.layers[1].training and not model.layers[0].training
    with pytest.raises(ValueError):
        features_of(model, dataset, pooling="max")
    assert model.training


def test_batch_size_workers_and_streaming_do_not_matter(dataset):
    model = build(IBotModel, IBotConfig(**SIZES))
    whole, labels = extract_features(model, dataset, PROCESSOR, batch_size=64, progress=False)
    single, _ = extract_features(model, dataset, PROCESSOR, batch_size=1, progress=False)
    torch.testing.assert_close(single, whole, atol=2e-5, rtol=1e-5)
    for num_workers in (0, 1):
        streamed, streamed_labels = extract_features(
            model, dataset.to_iterable_dataset(), PROCESSOR, num_workers=num_workers, progress=False
        )
        torch.testing.assert_close(streamed, whole, atol=2e-5, rtol=1e-5)
        assert torch.equal(streamed_labels, labels)


def test_unreadable_images_may_be_left_out(dataset, caplog):
    model = build(IBotModel, IBotConfig(**SIZES))
    rows = dataset.to_list()
    for broken in (1, 3, 4, 5):
        rows[broken]["image"] = {"bytes": b"no image", "path": f"{broken}.png"}
    rows[5]["image"] = {"bytes": None, "path": "5.png"}  # a file that is gone
    damaged = datasets.Dataset.from_list(rows, features=dataset.features)
    with pytest.raises(ValueError, match="1.png"):
        features_of(model, damaged)
    features, labels = extract_features(model, damaged, PROCESSOR, batch_size=3, progress=False, skip_unreadable=True)
    readable = [i for i in range(len(rows)) if i not in (1, 3, 4, 5)]
    whole, whole_labels = extract_features(model, dataset, PROCESSOR, batch_size=3, progress=False)
    torch.testing.assert_close(features, whole[readable], atol=2e-5, rtol=1e-5)
    assert torch.equal(labels, whole_labels[readable])
    assert all(f"{broken}.png" in caplog.text for broken in (1, 3, 4, 5))
    pixels, _ = raw_pixel_features(damaged, PROCESSOR, progress=False, skip_unreadable=True)
    assert torch.equal(pixels, raw_pixel_features(dataset, PROCESSOR, progress=False)[0][readable])


def test_pictures_and_files_instead_of_bytes(dataset, pixels, tmp_path: Path):
    model = build(IBotModel, IBotConfig(**SIZES))
    expected = features_of(model, dataset)
    decoded = dataset.cast_column("image", datasets.Image())
    assert isinstance(decoded[0]["image"], Image.Image)
    assert torch.equal(features_of(model, decoded), expected)

    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    images = [{"bytes": None, "path": str(tmp_path / f"{i}.png")} for i in range(len(pixels))]
    files = datasets.Dataset.from_dict(
        {"image": images}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    features, labels = extract_features(model, files, PROCESSOR, progress=False)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-5)
    assert labels is None


def test_missing_labels_become_minus_one(dataset):
    rows = [{**row, "label": None if i == 1 else row["label"]} for i, row in enumerate(dataset)]
    some = datasets.Dataset.from_list(rows, features=dataset.features)
    _, labels = extract_features(build(IBotModel, IBotConfig(**SIZES)), some, PROCESSOR, progress=False)
    assert labels.tolist() == [2, -1, 1, 1, 0, 2, 2]


def test_images_are_decoded_to_the_channels_of_the_model(dataset, pixels):
    model = build(IBotModel, IBotConfig(**SIZES, num_channels=1))
    processor = ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5], image_std=[0.5], do_convert_rgb=False
    )
    features, _ = extract_features(model, dataset, processor, progress=False)
    grays = processor([Image.fromarray(image).convert("L") for image in pixels], return_tensors="pt")["pixel_values"]
    assert grays.shape == (7, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(features, model(grays).last_hidden_state[:, 0], atol=2e-5, rtol=1e-5)


def test_features_of_a_bfloat16_model_are_float32(dataset):
    model = build(IBotModel, IBotConfig(**SIZES)).to(torch.bfloat16)
    features = features_of(model, dataset)
    assert features.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float())


def test_raw_pixels_are_the_flattened_processor_output(dataset, pixel_values):
    features, labels = raw_pixel_features(dataset, PROCESSOR, batch_size=2, progress=False)
    assert torch.equal(features, pixel_values.flatten(1))
    assert labels.tolist() == LABELS
    grays, _ = raw_pixel_features(dataset, ViTImageProcessor(do_normalize=False), num_channels=1, progress=False)
    # Beyond 32 pixels a side, means of squares of 7 x 7.
    assert grays.shape == (7, 32 * 32)
    sizes = {"size": {"height": 64, "width": 32}, "do_normalize": False}
    large, _ = raw_pixel_features(dataset, ViTImageProcessor(**sizes), num_channels=1, progress=False)
    assert large.shape == (7, 32 * 32)


def test_empty_datasets_and_broken_images_are_named(dataset):
    model = build(IBotModel, IBotConfig(**SIZES))
    with pytest.raises(ValueError, match="dataset is empty"):
        features_of(model, dataset.select([]))
    broken = datasets.Dataset.from_list(
        [{"image": {"bytes": b"no image", "path": "holiday.png"}, "label": 0}], features=dataset.features
    )
    with pytest.raises(ValueError, match="holiday.png"):
        features_of(model, broken)
