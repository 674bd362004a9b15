"""Plain encoders and classifiers of transformers as a source of weights for the models of this package."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    PreTrainedModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from hf_mim import (
    Beitv2Backbone,
    Beitv2Config,
    Beitv2ForImageClassification,
    Beitv2ForPreTraining,
    Beitv2Model,
    DBotBackbone,
    DBotConfig,
    DBotForImageClassification,
    DBotForPreTraining,
    DBotModel,
    IBotBackbone,
    IBotConfig,
    IBotForImageClassification,
    IBotForPreTraining,
    IBotModel,
)
from hf_mim.hub.export import export_native


SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=24)
SIZES |= dict(patch_size=8, layer_norm_eps=1e-5, hidden_act="gelu_new")
IBOT_HEAD = dict(out_dim=16, head_hidden_size=24, head_bottleneck_size=8)
DBOT_DECODER = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
BEITV2_HEAD = dict(vocab_size=16, early_layers=1)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 24 * 24).sin().reshape(2, 3, 24, 24)
LABELS = {0: "cat", 1: "dog", 2: "owl"}


def random_model(model: PreTrainedModel) -> PreTrainedModel:
    """With no tensor at the value that its initialization gives it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.rand(parameter.shape, generator=generator) - 0.15)
    return model.eval()


def native(cls, folder, new_names: bool = False, **others) -> PreTrainedModel:
    """A native model, saved in the historic names of its tensors, or in those of the release."""
    config_class = cls.config_class
    model = random_model(cls(config_class(**SIZES | others)))
    model.save_pretrained(folder, save_original_format=not new_names)
    stored = load_file(folder / "model.safetensors")
    assert any("attention.q_proj" in name for name in stored) == new_names
    return model


def assert_equal(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def assert_saved_as_ours(model: PreTrainedModel, folder):
    """What was loaded from a native folder is saved as if it had never been there."""
    model.save_pretrained(folder)
    assert set(load_file(folder / "model.safetensors")) == set(model.state_dict())
    assert json.loads((folder / "config.json").read_text())["model_type"] == model.config.model_type
    again, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("new_names", [True, False])
@pytest.mark.parametrize(
    "native_class, ours, lacking",
    [
        (ViTModel, IBotModel, {"embeddings.mask_token"}),
        (ViTModel, DBotModel, set()),
        (BeitModel, Beitv2Model, {"embeddings.mask_token"}),
    ],
)
@torch.no_grad()
def test_encoders(tmp_path, native_class, ours, lacking, new_names):
    others = {"use_shared_relative_position_bias": True, "use_mean_pooling": False} if ours is Beitv2Model else {}
    expected = native(native_class, tmp_path / "native", new_names, **others)
    model, report = ours.from_pretrained(tmp_path / "native", output_loading_info=True)
    assert report["missing_keys"] == lacking and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert not model.training and model.config.layer_norm_eps == 1e-5
    assert_equal(model(IMAGES).last_hidden_state, expected(IMAGES).last_hidden_state)
    assert_equal(model(IMAGES).pooler_output, expected(IMAGES).last_hidden_state[:, 0])
    assert_saved_as_ours(model, tmp_path / "ours")
    assert type(AutoModel.from_pretrained(tmp_path / "native")) is native_class


@torch.no_grad()
def test_a_key_mapping_adds_to_the_names_of_plain_models(tmp_path):
    expected = native(ViTModel, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["final_norm.weight"] = weights.pop("layernorm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, report = IBotModel.from_pretrained(
        tmp_path, key_mapping={r"^final_norm\.": "layernorm."}, output_loading_info=True
    )
    assert report["missing_keys"] == {"embeddings.mask_token"} and not report["unexpected_keys"]
    assert_equal(model(IMAGES).last_hidden_state, expected(IMAGES).last_hidden_state)


def test_a_configuration_of_another_type_is_refused(tmp_path):
    expected = native(ViTModel, tmp_path)
    with pytest.raises(ValueError, match="IBotModel does not accept a ViTConfig: omit config, or pass"):
        IBotModel.from_pretrained(tmp_path, config=expected.config)


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"use_relative_position_bias": True, "layer_scale_init_value": 0.0},
        {"use_absolute_position_embeddings": True, "use_mean_pooling": True, "drop_path_rate": 0.3},
    ],
)
@torch.no_grad()
def test_every_kind_of_beit(tmp_path, others):
    expected = native(BeitModel, tmp_path, **others)
    model, report = Beitv2Model.from_pretrained(tmp_path, use_mask_token=False, output_loading_info=True)
    assert not any(report.values()), report
    assert_equal(model(IMAGES).last_hidden_state, expected(IMAGES).last_hidden_state)
    assert_equal(model(IMAGES).pooler_output, expected(IMAGES).pooler_output)
    assert model.config.drop_path_rate == expected.config.drop_path_rate


@pytest.mark.parametrize(
    "native_class, ours",
    [
        (ViTForImageClassification, IBotForImageClassification),
        (ViTForImageClassification, DBotForImageClassification),
        (BeitForImageClassification, Beitv2ForImageClassification),
    ],
)
@torch.no_grad()
def test_classifiers(tmp_path, native_class, ours):
    names = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
    expected = native(native_class, tmp_path / "native", **names, problem_type="single_label_classification")
    model, report = ours.from_pretrained(tmp_path / "native", output_loading_info=True)
    lacking = {"ibot.embeddings.mask_token"} if ours is IBotForImageClassification else set()
    assert report["missing_keys"] == lacking and not report["unexpected_keys"]
    assert_equal(model(IMAGES).logits, expected(IMAGES).logits)
    assert model.config.id2label == LABELS and model.config.label2id["owl"] == 2
    assert model.config.problem_type == "single_label_classification"
    assert_saved_as_ours(model, tmp_path / "ours")
    # Other classes: the encoder stays, the classifier is new.
    other, report = ours.from_pretrained(
        tmp_path / "native", num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {name for name, *_ in report["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert other(IMAGES).logits.shape == (2, 5)


@pytest.mark.parametrize(
    "native_class, ours, new, others, options",
    [
        (ViTModel, IBotForPreTraining, ("head.", "ibot.embeddings.mask_token"), {}, IBOT_HEAD),
        (ViTForImageClassification, IBotForPreTraining, ("head.", "ibot.embeddings.mask_token"), {}, IBOT_HEAD),
        (ViTModel, DBotForPreTraining, ("decoder.",), {}, DBOT_DECODER),
        (
            BeitModel,
            Beitv2ForPreTraining,
            ("lm_head.", "head_", "beitv2.embeddings.mask_token"),
            {"use_mean_pooling": False},
            BEITV2_HEAD,
        ),
        (ViTModel, IBotBackbone, ("ibot.embeddings.mask_token",), {}, {}),
        (ViTModel, DBotBackbone, (), {}, {}),
        (BeitModel, Beitv2Backbone, (), {"use_mean_pooling": False, "use_relative_position_bias": True}, {}),
    ],
)
@torch.no_grad()
def test_models_that_add_something(tmp_path, native_class, ours, new, others, options):
    """The encoder is that of the file; the pre-training heads are new, and nothing else is."""
    expected = native(native_class, tmp_path / "native", **others)
    model, report = ours.from_pretrained(tmp_path / "native", output_loading_info=True, **options)
    assert all(name.startswith(new) for name in report["missing_keys"]), report["missing_keys"]
    assert all(any(name.startswith(part) for name in report["missing_keys"]) for part in new)
    assert report["unexpected_keys"] <= {"classifier.weight", "classifier.bias"}
    features = expected.base_model(IMAGES).last_hidden_state
    assert_equal(model.base_model(IMAGES).last_hidden_state, features)
    if "Backbone" in ours.__name__:
        maps = features[:, 1:].transpose(1, 2).unflatten(2, (3, 3))
        assert_equal(model(IMAGES).feature_maps[-1], maps)
    assert_saved_as_ours(model, tmp_path / "ours")


@torch.no_grad()
def test_vit_mae(tmp_path):
    """The encoder of a ViTMAE, from either of its classes; its decoder of pixels stays behind."""
    noise = torch.linspace(0, 50, 2 * 9).sin().reshape(2, 9)
    for cls in (ViTMAEModel, ViTMAEForPreTraining):
        folder = tmp_path / cls.__name__
        expected = native(cls, folder, mask_ratio=0.6, **DBOT_DECODER)
        model, report = DBotModel.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
        assert model.config.mask_ratio == 0.6 and model.config.decoder_hidden_size == 16
        ours, theirs = model(IMAGES, noise=noise), expected.base_model(IMAGES, noise=noise)
        assert_equal(ours.last_hidden_state, theirs.last_hidden_state)
        assert torch.equal(ours.ids_restore, theirs.ids_restore)
    model, report = DBotForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"decoder"}
    assert "decoder.layers.0.attention.q_proj.weight" in report["missing_keys"]
    assert_equal(model.dbot(IMAGES, noise=noise).last_hidden_state, theirs.last_hidden_state)


@torch.no_grad()
def test_fixed_positions_can_be_had_back(tmp_path):
    """A native model holds them as a table, which is what dBOT takes; without it, they are computed again."""
    model = random_model(DBotModel(DBotConfig(**SIZES)))
    export_native(model).save_pretrained(tmp_path)
    table = DBotModel.from_pretrained(tmp_path)
    assert table.config.trainable_position_embeddings
    fixed, report = DBotModel.from_pretrained(tmp_path, trainable_position_embeddings=False, output_loading_info=True)
    assert report["unexpected_keys"] == {"embeddings.position_embeddings"} and not report["missing_keys"]
    assert_equal(table(IMAGES).last_hidden_state, model(IMAGES).last_hidden_state)
    images = torch.randn(1, 3, 40, 16)
    assert_equal(fixed(images).last_hidden_state, model(images).last_hidden_state)


@torch.no_grad()
def test_models_for_masked_images(tmp_path):
    """Their own decoders and heads for pixels are left out and said to be; the mask token is taken over."""
    expected = native(ViTForMaskedImageModeling, tmp_path / "vit")
    model, report = IBotModel.from_pretrained(tmp_path / "vit", output_loading_info=True)
    assert not report["missing_keys"] and report["unexpected_keys"] == {"decoder.0.weight", "decoder.0.bias"}
    mask = torch.tensor([[True, False, True] * 3, [False] * 9])
    features = expected.vit(IMAGES, bool_masked_pos=mask).last_hidden_state
    assert_equal(model(IMAGES, bool_masked_pos=mask).last_hidden_state, features)

    # BEiT's own has its final norm behind the encoder, which calls this mean pooling.
    expected = native(BeitForMaskedImageModeling, tmp_path / "beit", use_mask_token=True, vocab_size=16)
    options = {"use_mean_pooling": False, "early_layers": 1}
    model, report = Beitv2ForPreTraining.from_pretrained(tmp_path / "beit", output_loading_info=True, **options)
    assert not report["unexpected_keys"] and all(name.startswith("head_") for name in report["missing_keys"])
    logits = expected(IMAGES, bool_masked_pos=mask).logits
    tokens = model.beitv2(IMAGES, bool_masked_pos=mask).last_hidden_state
    assert_equal(model.lm_head(tokens[:, 1:]), logits)


@torch.no_grad()
def test_types_and_devices_are_handled_as_ever(tmp_path):
    native(ViTModel, tmp_path, dtype=torch.float32).to(torch.bfloat16).save_pretrained(tmp_path)
    assert IBotModel.from_pretrained(tmp_path).dtype == torch.bfloat16
    model = IBotModel.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager", drop_path_rate=0.25)
    assert model.dtype == torch.float32 and model.config._attn_implementation == "eager"
    assert model.config.drop_path_rate == 0.25
    # A configuration that is given is the one that counts.
    model = IBotModel.from_pretrained(tmp_path, config=IBotConfig(**SIZES, drop_path_rate=0.5))
    assert model.config.drop_path_rate == 0.5
    assert torch.equal(model.layernorm.weight.float(), load_file(tmp_path / "model.safetensors")["layernorm.weight"])


def test_poolers(tmp_path, caplog):
    """One that does nothing, as our exports have it, is dropped in silence; another one with a word."""
    export_native(IBotModel(IBotConfig(**SIZES))).save_pretrained(tmp_path / "identity")
    with caplog.at_level("WARNING", logger="transformers"):
        IBotConfig.from_pretrained(tmp_path / "identity")
        assert not caplog.records
        native(ViTModel, tmp_path / "trained")
        IBotConfig.from_pretrained(tmp_path / "trained")
    assert "(a linear layer and tanh), if there is one, is dropped: pooler_output is the CLS token here" in caplog.text


def test_configurations(tmp_path):
    """What the file does not say is the native class's default, not ours."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 48, "patch_size": [8, 8]}))
    config = IBotConfig.from_pretrained(tmp_path, num_hidden_layers=3)
    assert (config.hidden_size, config.patch_size, config.layer_norm_eps) == (48, 8, 1e-12)
    assert (config.model_type, config.num_hidden_layers, config.out_dim) == ("ibot", 3, 8192)
    assert DBotConfig.from_pretrained(tmp_path).trainable_position_embeddings


@pytest.mark.parametrize(
    "config_class, stored, message",
    [
        (IBotConfig, {"model_type": "beit"}, "type 'beit' cannot be loaded as one of type 'ibot', only .* type 'vit'"),
        (DBotConfig, {"model_type": "clip"}, "type 'clip' .* only one of type 'vit' or 'vit_mae'"),
        (IBotConfig, {"model_type": "vit", "patch_size": [8, 16]}, "patches must be square, .* of \\[8, 16\\] pixels"),
        (
            Beitv2Config,
            {"model_type": "beit", "use_relative_position_bias": True, "image_size": [32, 64]},
            "position tables for images of \\[32, 64\\] pixels: transformers indexes the tables of non-square",
        ),
    ],
)
def test_what_is_refused(tmp_path, config_class, stored, message):
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=message):
        config_class.from_pretrained(tmp_path)


@given(
    layer_scale=st.sampled_from([0.0, 0.1]),
    qkv_bias=st.booleans(),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.sampled_from([1, 3]),
    layers=st.integers(1, 2),
    data=st.data(),
)
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_there_and_back(tmp_path_factory, layer_scale, qkv_bias, grid, channels, layers, data):
    """Exported and loaded again, the features are the same."""
    folder = tmp_path_factory.mktemp("round_trip")
    common = dict(hidden_size=16, num_attention_heads=2, num_hidden_layers=layers, patch_size=4, num_channels=channels)
    common |= dict(layer_scale_init_value=layer_scale, qkv_bias=qkv_bias, initializer_range=0.3)
    oblong = dict(image_size=(4 * grid[0], 4 * grid[1]))
    pooled = data.draw(st.booleans())
    tables = dict(
        zip(
            ("use_relative_position_bias", "use_shared_relative_position_bias", "use_absolute_position_embeddings"),
            data.draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
            strict=True,
        )
    )
    beit_size = dict(image_size=(4 * grid[0], 4 * grid[0])) if any(tables.values()) else oblong
    for model in (
        IBotModel(IBotConfig(**common, **oblong)),
        DBotModel(DBotConfig(**common, **oblong, trainable_position_embeddings=data.draw(st.booleans()))),
        Beitv2Model(Beitv2Config(**common, **beit_size, **tables, use_mean_pooling=pooled)),
    ):
        random_model(model)
        export_native(model).save_pretrained(folder)
        again = type(model).from_pretrained(folder)
        height, width = model.config.image_size
        images = torch.linspace(-2, 2, 2 * channels * height * width).sin().reshape(2, channels, height, width)
        assert_equal(again(images).last_hidden_state, model(images).last_hidden_state)
        assert_equal(again(images).pooler_output, model(images).pooler_output)
