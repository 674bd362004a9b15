"""The native export of BEiT v2: the numbers of ours in plain transformers, where this package is not imported."""

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, BeitConfig, BeitForImageClassification, BeitModel

from hf_mim import (
    Beitv2Backbone,
    Beitv2Config,
    Beitv2ForImageClassification,
    Beitv2ForPreTraining,
    Beitv2Model,
)
from hf_mim.hub.export import export_native, other_sizes


def tiny(cls=Beitv2Model, **overrides):
    """A model in which no tensor has the value that its initialization gives it."""
    settings = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=8)
    settings |= dict(initializer_range=0.2, vocab_size=16, early_layers=2)
    torch.manual_seed(0)
    model = cls(Beitv2Config(**settings | overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
    return model


def assert_close(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


PER_BLOCK = {"use_relative_position_bias": True, "use_shared_relative_position_bias": False}
VARIANTS = [
    {},
    {"use_mean_pooling": True},
    PER_BLOCK | {"layer_scale_init_value": 0.0},
    {"use_relative_position_bias": True, "use_absolute_position_embeddings": True},
    {"use_shared_relative_position_bias": False, "use_absolute_position_embeddings": True, "qkv_bias": False},
    {"use_shared_relative_position_bias": False, "image_size": [16, 40]},
    {"num_channels": 1, "hidden_act": "gelu_new", "intermediate_size": 40, "layer_norm_eps": 1e-3},
]


@pytest.mark.parametrize("overrides", VARIANTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_same_features(tmp_path, overrides, attention):
    encoder = tiny(**overrides)
    config = encoder.config
    native = export_native(encoder)
    assert type(native) is BeitModel and not native.training and native.embeddings.mask_token is None
    images = torch.randn(3, config.num_channels, *(8 * side for side in config.grid_size))
    native.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True, attn_implementation=attention)
    assert not any(report.values()), report
    assert type(loaded) is BeitModel and type(loaded.config) is BeitConfig
    expected = encoder(images)
    for model in (native, loaded.eval()):
        output = model(images)
        assert_close(output.last_hidden_state, expected.last_hidden_state)
        assert_close(output.pooler_output, expected.pooler_output)


@torch.no_grad()
def test_the_encoder_of_a_pretraining_model():
    model, images = tiny(Beitv2ForPreTraining), torch.randn(2, 3, 24, 24)
    assert_close(export_native(model)(images).last_hidden_state, model.beitv2(images).last_hidden_state)


@pytest.mark.parametrize("mean_pooling", [True, False])
def test_a_classifier(tmp_path, mean_pooling):
    labels = {0: "cat", 1: "dog", 2: "owl"}
    model = tiny(Beitv2ForImageClassification, use_mean_pooling=mean_pooling, id2label=labels, **PER_BLOCK)
    export_native(model).save_pretrained(tmp_path)
    native, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(native) is BeitForImageClassification and native.config.id2label == labels
    images, targets = torch.randn(3, 3, 24, 24), torch.tensor([2, 0, 1])
    ours, theirs = model(images, labels=targets), native.eval()(images, labels=targets)
    assert_close(theirs.logits, ours.logits)
    assert_close(theirs.loss, ours.loss)


@torch.no_grad()
def test_after_resizing_and_unsharing():
    model = tiny(use_absolute_position_embeddings=True)
    model.unshare_relative_position_bias()
    model.resize_position_tables(40)
    images = torch.randn(2, 3, 40, 40)
    assert_close(export_native(model)(images).last_hidden_state, model(images).last_hidden_state)


@pytest.mark.parametrize(
    "overrides, exact, words",
    [
        ({}, False, "resizes the tables of relative positions bilinearly"),
        (PER_BLOCK, False, "resizes the tables of relative positions bilinearly"),
        (
            {"use_shared_relative_position_bias": False, "use_absolute_position_embeddings": True},
            False,
            "resizes the position table in another way",
        ),
        ({"use_shared_relative_position_bias": False}, True, "exact at every size"),
    ],
)
@torch.no_grad()
def test_where_the_numbers_differ(overrides, exact, words):
    """What `other_sizes` says of a model is so."""
    encoder = tiny(**overrides)
    native = export_native(encoder)
    assert words in other_sizes(native)
    images = torch.randn(2, 3, 40, 40)
    difference = (native(images).last_hidden_state - encoder(images).last_hidden_state).abs().max()
    assert difference < 1e-5 if exact else difference > 1e-3


def test_training_goes_on_with_the_same_stochastic_depth():
    native = export_native(tiny(drop_path_rate=0.2, hidden_dropout_prob=0.1))
    assert (native.config.drop_path_rate, native.config.hidden_dropout_prob) == (0.2, 0.1)


def test_the_copy_is_independent():
    encoder = tiny(qkv_bias=False)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    native = export_native(encoder)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.zero_()
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_type_of_the_weights():
    native = export_native(tiny().to(torch.bfloat16))
    assert {parameter.dtype for parameter in native.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "positions",
    [
        {},
        PER_BLOCK,
        {"use_shared_relative_position_bias": False, "use_absolute_position_embeddings": True},
    ],
)
def test_what_cannot_be_exported(positions):
    model = tiny(image_size=[16, 40], **positions)
    assert not model.config.has_native_beit
    with pytest.raises(ValueError, match="for 2 x 5 patches, and transformers' BEiT is wrong for images that are not"):
        export_native(model)
    with pytest.raises(TypeError, match="got Beitv2Backbone"):
        export_native(tiny(Beitv2Backbone))


@torch.no_grad()
def test_transformers_is_wrong_for_other_windows():
    """Why they are refused: this test fails as soon as it need not be so."""
    square, wide = tiny(), tiny(image_size=[16, 40])
    native = BeitModel(BeitConfig(**export_native(square).config.to_dict() | {"image_size": [16, 40]}))
    weights = wide.state_dict()
    del weights["embeddings.mask_token"]
    native.eval().load_state_dict(weights, strict=True)
    images = torch.randn(2, 3, 16, 40)
    assert (native(images).last_hidden_state - wide(images).last_hidden_state).abs().max() > 1e-3
