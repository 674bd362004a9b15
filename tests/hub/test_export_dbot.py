"""The native export of dBOT: the numbers of ours in plain transformers, where this package is not imported."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BeitForImageClassification,
    BeitModel,
    ViTForImageClassification,
    ViTMAEModel,
    ViTModel,
)

from hf_mim import (
    DBotBackbone,
    DBotConfig,
    DBotForImageClassification,
    DBotForPreTraining,
    DBotModel,
)
from hf_mim.hub.export import export_native


def tiny(cls=DBotModel, **overrides):
    """A model in which no tensor has the value that its initialization gives it."""
    settings = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=8)
    settings |= dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
    torch.manual_seed(0)
    model = cls(DBotConfig(**settings | overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.rand_like(parameter) - 0.2)
    return model


def assert_close(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


VARIANTS = [
    {},
    {"trainable_position_embeddings": True, "layer_scale_init_value": 0.1},
    {"num_channels": 4, "hidden_act": "gelu_new", "intermediate_size": 40, "layer_norm_eps": 1e-3},
    {"qkv_bias": False, "layer_scale_init_value": 0.1},
]


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("overrides", VARIANTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_same_features(tmp_path, overrides, pooled, attention):
    encoder = tiny(**overrides, use_mean_pooling=pooled)
    native = export_native(encoder)
    assert type(native) is (BeitModel if pooled else ViTModel) and not native.training
    images = torch.randn(3, encoder.config.num_channels, 24, 24)
    native.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True, attn_implementation=attention)
    assert not any(report.values()), report
    assert type(loaded) is type(native)
    expected = encoder(images)
    for model in (native, loaded.eval()):
        output = model(images)
        assert_close(output.last_hidden_state, expected.last_hidden_state)
        assert_close(output.pooler_output, expected.pooler_output)


@pytest.mark.parametrize("trainable", [True, False])
@torch.no_grad()
def test_images_that_are_not_square(trainable):
    encoder = tiny(image_size=[16, 40], trainable_position_embeddings=trainable)
    images = torch.randn(2, 3, 16, 40)
    assert_close(export_native(encoder)(images).last_hidden_state, encoder(images).last_hidden_state)
    with pytest.raises(ValueError, match="position table of 2 x 5 patches for that of a square"):
        export_native(tiny(image_size=[16, 40], use_mean_pooling=True))


@torch.no_grad()
def test_the_encoder_of_a_pretraining_model():
    model, images = tiny(DBotForPreTraining), torch.randn(2, 3, 24, 24)
    native = export_native(model)
    assert type(native) is ViTModel
    assert_close(native(images).last_hidden_state, model.dbot(images).last_hidden_state)


@torch.no_grad()
def test_another_size_through_resizing():
    """A ViT would interpolate the table; the positions of the size that it is exported for are exact."""
    model = tiny()
    model.resize_position_tables(40)
    images = torch.randn(2, 3, 40, 40)
    assert_close(export_native(model)(images).last_hidden_state, model(images).last_hidden_state)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_classifier(tmp_path, pooled):
    labels = {0: "cat", 1: "dog", 2: "owl"}
    model = tiny(DBotForImageClassification, use_mean_pooling=pooled, id2label=labels)
    export_native(model).save_pretrained(tmp_path)
    native, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(native) is (BeitForImageClassification if pooled else ViTForImageClassification)
    assert native.config.id2label == labels
    images, targets = torch.randn(3, 3, 24, 24), torch.tensor([2, 0, 1])
    ours, theirs = model(images, labels=targets), native.eval()(images, labels=targets)
    assert_close(theirs.logits, ours.logits)
    assert_close(theirs.loss, ours.loss)


@pytest.mark.parametrize("pooled", [True, False])
def test_the_copy_is_independent(pooled):
    encoder = tiny(use_mean_pooling=pooled, trainable_position_embeddings=True)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    native = export_native(encoder)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.zero_()
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_type_of_the_weights(dtype):
    encoder = tiny().to(dtype)
    native = export_native(encoder)
    assert {parameter.dtype for parameter in native.parameters()} == {dtype}
    images = torch.randn(2, 3, 24, 24).to(dtype)
    torch.testing.assert_close(native(images).last_hidden_state, encoder(images).last_hidden_state)


@pytest.mark.parametrize("overrides", VARIANTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_as_vit_mae(tmp_path, overrides, attention):
    """The same tokens, mask and order for the same noise; all tokens without a mask."""
    model = tiny(DBotForPreTraining, **overrides, mask_ratio=0.6)
    encoder = model.dbot
    native = export_native(model, "vit_mae")
    assert type(native) is ViTMAEModel and not native.training
    native.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True, attn_implementation=attention)
    assert not any(report.values()), report
    images, noise = torch.randn(3, encoder.config.num_channels, 24, 24), torch.rand(3, 9)
    expected = encoder(images, noise=noise)
    assert expected.last_hidden_state.shape[1] == 1 + 3
    for model in (native, loaded.eval()):
        output = model(images, noise=noise)
        assert_close(output.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(output.mask.bool(), expected.mask)
        assert torch.equal(output.ids_restore, expected.ids_restore)
    loaded.config.mask_ratio = 0.0
    in_order = torch.arange(9.0).expand(3, -1)
    assert_close(loaded(images, noise=in_order).last_hidden_state, encoder(images).last_hidden_state)
    assert loaded.config.decoder_hidden_size == 16


def test_what_cannot_be_exported():
    with pytest.raises(ValueError, match="it has no classifier"):
        export_native(tiny(DBotForImageClassification), "vit_mae")
    with pytest.raises(ValueError, match="only dBOT's encoder can become a ViTMAE, got DBotBackbone"):
        export_native(tiny(DBotBackbone), "vit_mae")
    with pytest.raises(ValueError, match="has no counterpart in ViTMAEModel"):
        export_native(tiny(use_mean_pooling=True), "vit_mae")
    with pytest.raises(TypeError, match="got DBotBackbone"):
        export_native(tiny(DBotBackbone))
