"""The native export of iBOT with a Swin Transformer: the same numbers in transformers' own, or a refusal."""

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, SwinConfig, SwinForImageClassification, SwinModel

from hf_mim import (
    IBotSwinConfig,
    IBotSwinForImageClassification,
    IBotSwinForPreTraining,
    IBotSwinModel,
)
from hf_mim.hub.export import export_native, other_sizes


def tiny(cls=IBotSwinModel, **overrides):
    """A model in which no tensor has the value that its initialization gives it; maps of 8 and 4 patches."""
    settings = dict(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=3, image_size=32)
    if cls is IBotSwinForPreTraining:
        settings |= dict(out_dim=16, head_hidden_size=24, head_bottleneck_size=8)
    torch.manual_seed(0)
    model = cls(IBotSwinConfig(**settings | overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images_of(model, size: int | None = None, count: int = 3) -> torch.Tensor:
    """The last one nearly of one color, where the epsilon of a norm shows."""
    config = model.config
    size = size or config.image_size
    images = torch.randn(count, config.num_channels, size, size, generator=torch.Generator().manual_seed(0))
    images[-1] = 0.5 + 1e-2 * images[-1]
    return images.to(model.dtype)


def assert_same_features(native: SwinModel, encoder: IBotSwinModel, images: torch.Tensor, atol: float = 1e-5):
    expected, actual = encoder(images), native(images)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state[:, 1:], rtol=0, atol=atol)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "overrides",
    [
        {},  # both maps padded, and their windows moved
        {"window_size": 4},  # the last map is one window
        {"image_size": 36, "qkv_bias": False},  # an odd map to be halved
        {"layer_norm_eps": 1e-5, "mlp_ratio": 1.5, "hidden_act": "gelu_new"},
        {"num_channels": 1, "depths": [1, 3, 2], "num_heads": [1, 2, 2], "image_size": 56, "window_size": 2},
    ],
)
@torch.no_grad()
def test_same_features(tmp_path, overrides):
    encoder = tiny(**overrides)
    native = export_native(encoder)
    assert type(native) is SwinModel and type(native.config) is SwinConfig and not native.training
    assert_same_features(native, encoder, images_of(encoder))
    native.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_same_features(loaded.eval(), encoder, images_of(encoder))


@torch.no_grad()
def test_the_published_swin_is_exact():
    """In double precision, and at the other sizes with as many patches in the last stage."""
    torch.manual_seed(0)
    encoder = IBotSwinModel(IBotSwinConfig(embed_dim=8, num_heads=[1, 2, 4, 8])).double().eval()
    native = export_native(encoder)
    assert native.dtype == torch.float64 and native.config.window_size == 7
    for size in (224, 212, 196):
        assert_same_features(native, encoder, images_of(encoder, size, count=2), atol=1e-11)
    # One patch more, and transformers moves the windows of the last stage, which here stay.
    native = export_native(encoder)
    images = images_of(encoder, 228, count=2)
    assert (native(images).pooler_output - encoder(images).pooler_output).abs().max() > 1e-4
    # One less, and it shrinks them, for which there are no relative positions.
    with pytest.raises(RuntimeError, match="must match the size"):
        native(images_of(encoder, 192, count=2))


@torch.no_grad()
def test_the_encoder_of_a_pretraining_model():
    model = tiny(IBotSwinForPreTraining)
    assert_same_features(export_native(model), model.ibot, images_of(model))


def test_a_classifier(tmp_path):
    labels = {0: "cat", 1: "dog", 2: "owl"}
    model = tiny(IBotSwinForImageClassification, id2label=labels, drop_path_rate=0.3)
    export_native(model).save_pretrained(tmp_path)
    native, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(native) is SwinForImageClassification and native.config.id2label == labels
    assert native.config.drop_path_rate == 0.3
    images, targets = images_of(model), torch.tensor([2, 0, 1])
    ours, theirs = model(images, labels=targets), native.eval()(images, labels=targets)
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.loss, ours.loss, rtol=0, atol=1e-5)


def test_the_copy_is_independent():
    encoder = tiny(layer_norm_eps=1e-5)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    native = export_native(encoder)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.zero_()
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"window_size": 14}, r"stage 4 has 7 x 7 patches at image_size 224, fewer than a window of 14 x 14"),
        ({"image_size": 192}, r"stage 4 has 6 x 6 patches at image_size 192, fewer than a window of 7 x 7"),
        ({"image_size": 236}, r"stage 4 has 8 x 8 patches at image_size 236, an odd map halved"),
    ],
)
def test_what_transformers_cannot_compute_is_refused(overrides, message):
    model = tiny(
        **dict(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=7, image_size=224) | overrides
    )
    with pytest.raises(ValueError, match=message):
        export_native(model)


@torch.no_grad()
def test_other_sizes():
    """What is said of them is so: the last stage has one window of 4 here, and 5 patches of windows of 4 there."""
    native = export_native(tiny(window_size=4))
    assert "with 4 x 4 patches in the last stage. With more, transformers' Swin moves" in other_sizes(native)
    encoder = tiny(window_size=4)
    assert_same_features(native, encoder, images_of(encoder, 28))
    native = export_native(encoder)
    assert (
        native(images_of(encoder, 36)).pooler_output - encoder(images_of(encoder, 36)).pooler_output
    ).abs().max() > 0.01

    encoder = tiny(window_size=4, image_size=40)
    native = export_native(encoder)
    assert "with more than 4 x 4 patches in the last stage. With as many, transformers'" in other_sizes(native)
    for size in (36, 44, 80):
        assert_same_features(native, encoder, images_of(encoder, size))
    images = images_of(encoder, 32)
    assert (native(images).pooler_output - encoder(images).pooler_output).abs().max() > 0.01


class TestTheOtherDirection:
    @torch.no_grad()
    @pytest.mark.parametrize("cls", [IBotSwinModel, IBotSwinForPreTraining])
    def test_an_exported_encoder(self, tmp_path, cls):
        encoder = tiny()
        export_native(encoder).save_pretrained(tmp_path)
        loaded, report = cls.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["unexpected_keys"] and not report["mismatched_keys"]
        prefix = "" if cls is IBotSwinModel else "ibot."
        missing = {name for name in report["missing_keys"] if not name.startswith("head.")}
        assert missing == {f"{prefix}embeddings.mask_token"}
        assert loaded.config.layer_norm_eps == 1e-5
        actual, expected = loaded.base_model.eval()(images_of(encoder)), encoder(images_of(encoder))
        torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)
        loaded.save_pretrained(tmp_path / "ours")
        again, report = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not any(report.values())
        assert torch.equal(again.eval().base_model(images_of(encoder)).pooler_output, actual.pooler_output)

    @torch.no_grad()
    def test_a_plain_classifier(self, tmp_path):
        torch.manual_seed(0)
        config = SwinConfig(
            embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=3, image_size=32, id2label={0: "cat", 1: "dog"}
        )
        native = SwinForImageClassification(config).eval()
        for parameter in native.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        native.save_pretrained(tmp_path)
        model, report = IBotSwinForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert set(report["missing_keys"]) == {"ibot.embeddings.mask_token"} and not report["unexpected_keys"]
        assert model.config.id2label == {0: "cat", 1: "dog"} and model.config.drop_path_rate == 0.1
        images = images_of(model)
        torch.testing.assert_close(model.eval()(images).logits, native(images).logits, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"layer_norm_eps": 1e-6}, "its norms have an epsilon of 1e-06, but 1e-05 in patch embedding and merging"),
            ({"use_absolute_embeddings": True}, "it has absolute position embeddings"),
            ({"window_size": 8}, r"stage 2 has 4 x 4 patches at image_size 32, fewer than a window of 8 x 8"),
        ],
    )
    def test_what_ours_cannot_compute_is_refused(self, tmp_path, fields, message):
        config = SwinConfig(
            **dict(embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=3, image_size=32) | fields
        )
        SwinModel(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"cannot be reproduced here: {message}"):
            IBotSwinModel.from_pretrained(tmp_path)
