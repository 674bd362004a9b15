"""The native export: same features in plain transformers, where this package is not imported."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BeitForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_mim import (
    IBotBackbone,
    IBotConfig,
    IBotForImageClassification,
    IBotForPreTraining,
    IBotImageProcessorPil,
    IBotModel,
)
from hf_mim.hub.export import export_native, native_image_processor, other_sizes


def tiny(cls=IBotModel, **overrides):
    """A model in which no tensor, the mask token included, has the value that its initialization gives it."""
    settings = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=8, initializer_range=0.2
    )
    if cls is IBotForPreTraining:
        settings |= dict(out_dim=16, head_hidden_size=24, head_bottleneck_size=8)
    torch.manual_seed(0)
    model = cls(IBotConfig(**settings | overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
    return model


def assert_same_features(native: ViTModel, encoder: IBotModel, images: torch.Tensor, atol: float = 1e-5):
    expected, actual = encoder(images), native(images)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, rtol=0, atol=atol)
    torch.testing.assert_close(actual.pooler_output, expected.last_hidden_state[:, 0], rtol=0, atol=atol)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"layer_scale_init_value": 0.1},
        {"qkv_bias": False, "hidden_act": "gelu_new", "intermediate_size": 40, "layer_norm_eps": 1e-3},
        {"image_size": [16, 40]},
        {"num_channels": 1},
        {"num_channels": 4, "num_hidden_layers": 1, "drop_path_rate": 0.5},
    ],
)
@torch.no_grad()
def test_same_features(tmp_path, overrides):
    encoder = tiny(**overrides)
    config = encoder.config
    native = export_native(encoder)
    assert type(native) is ViTModel and type(native.config) is ViTConfig and not native.training
    images = torch.randn(3, config.num_channels, *(8 * side for side in config.grid_size))
    assert_same_features(native, encoder, images)

    native.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_same_features(loaded.eval(), encoder, images)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "vit" and "auto_map" not in stored
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


@torch.no_grad()
def test_the_encoder_of_a_pretraining_model():
    model = tiny(IBotForPreTraining)
    assert_same_features(export_native(model), model.ibot, torch.randn(2, 3, 24, 24))


def test_gradients_of_a_folded_layer_scale():
    """The folding is exact for whoever goes on training: the input's gradient stays the same."""
    encoder = tiny(layer_scale_init_value=0.5)
    native = export_native(encoder)
    gradients = []
    for model in (encoder, native):
        images = torch.linspace(-1, 1, 2 * 3 * 24 * 24).reshape(2, 3, 24, 24).requires_grad_()
        model(images).pooler_output[:, :5].sum().backward()
        gradients.append(images.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_the_copy_is_independent_and_complete():
    encoder = tiny(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2)
    # What a Trainer leaves on every configuration.
    encoder.config.use_cache = False
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    native = export_native(encoder)
    assert (native.config.hidden_dropout_prob, native.config.attention_probs_dropout_prob) == (0.1, 0.2)
    assert "use_cache" not in native.config.to_dict()
    assert native.embeddings.mask_token is None
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.zero_()
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("overrides", [{}, {"layer_scale_init_value": 0.1, "qkv_bias": False, "hidden_act": "relu"}])
def test_a_classifier(tmp_path, pooled, overrides):
    labels = {0: "cat", 1: "dog", 2: "owl"}
    classes = {"cat": 0, "dog": 1, "owl": 2}
    overrides = overrides | {
        "use_mean_pooling": pooled,
        "id2label": labels,
        "label2id": classes,
        "drop_path_rate": 0.3,
    }
    model = tiny(IBotForImageClassification, **overrides)
    export_native(model).save_pretrained(tmp_path)
    native, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(native) is (BeitForImageClassification if pooled else ViTForImageClassification)
    assert native.config.id2label == labels and native.config.label2id == classes
    images, targets = torch.randn(3, 3, 24, 24), torch.tensor([2, 0, 1])
    ours, theirs = model(images, labels=targets), native.eval()(images, labels=targets)
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.loss, ours.loss, rtol=0, atol=1e-5)
    if pooled:
        assert native.config.drop_path_rate == 0.3


@torch.no_grad()
def test_where_the_numbers_differ():
    """What `other_sizes` says of a model is so: equal at its size, not at others."""
    encoder = tiny()
    native = export_native(encoder)
    assert other_sizes(native).startswith("The numbers are exact at 24 x 24 pixels. At other sizes, which need interp")
    images = torch.randn(2, 3, 40, 24)
    with pytest.raises(ValueError, match="doesn't match model"):
        native(images)
    difference = native(images, interpolate_pos_encoding=True).last_hidden_state - encoder(images).last_hidden_state
    assert difference.abs().max() > 1e-3
    wide = export_native(tiny(image_size=[16, 40]))
    assert other_sizes(wide).startswith("The numbers are exact at 16 x 40 pixels, and the model takes no other size")
    with pytest.raises(RuntimeError, match="shape"):
        wide(images, interpolate_pos_encoding=True)


@pytest.mark.parametrize("dtype, atol", [(torch.bfloat16, 0.0), (torch.float64, 1e-12)])
@torch.no_grad()
def test_type_of_the_weights(tmp_path, dtype, atol):
    encoder = tiny().to(dtype)
    native = export_native(encoder)
    assert {parameter.dtype for parameter in native.parameters()} == {dtype}
    # In eager mode transformers takes the softmax in float32; sdpa is the same code on both sides.
    assert_same_features(native, encoder, torch.randn(2, 3, 24, 24).to(dtype), atol=atol)
    native.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).dtype == dtype


def test_what_cannot_be_exported():
    with pytest.raises(ValueError, match="use_mean_pooling=True has no counterpart"):
        export_native(tiny(use_mean_pooling=True))
    with pytest.raises(ValueError, match="position table of 2 x 5 patches for that of a square"):
        export_native(tiny(IBotForImageClassification, use_mean_pooling=True, image_size=[16, 40]))
    with pytest.raises(ValueError, match="only dBOT's encoder can become a ViTMAE, got IBotModel"):
        export_native(tiny(), "vit_mae")
    with pytest.raises(ValueError, match="architecture must be 'vit_mae' or none.* got 'deit'"):
        export_native(tiny(), "deit")
    with pytest.raises(TypeError, match="got IBotBackbone"):
        export_native(tiny(IBotBackbone))


def image_of_mode(mode: str) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    "settings, mode",
    [
        ({}, "RGB"),
        ({"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 16}}, "L"),
        ({"size": {"height": 24, "width": 40}, "do_center_crop": False, "resample": 2}, "RGBA"),
        ({"do_convert_rgb": False, "image_mean": [0.5], "image_std": [0.25]}, "L"),
        ({"do_normalize": False, "do_rescale": False}, "CMYK"),
    ],
)
def test_image_processor(tmp_path, settings, mode):
    processor = IBotImageProcessorPil(**settings)
    native = native_image_processor(processor)
    assert type(native) is ViTImageProcessorPil
    image = image_of_mode(mode)
    expected = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(native(image, return_tensors="np")["pixel_values"], expected)
    native.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["image_processor_type"] == "ViTImageProcessor" and "auto_map" not in stored
    again = ViTImageProcessorPil.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(image, return_tensors="np")["pixel_values"], expected)


def test_image_processor_on_torchvision():
    pytest.importorskip("torchvision", exc_type=ImportError)
    from hf_mim import IBotImageProcessor

    processor = IBotImageProcessor(crop_size={"height": 200, "width": 200})
    native = native_image_processor(processor)
    assert type(native).__name__ == "ViTImageProcessor"
    image = image_of_mode("P")
    np.testing.assert_array_equal(native(image)["pixel_values"][0], processor(image)["pixel_values"][0])
