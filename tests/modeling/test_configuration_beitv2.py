"""Beitv2Config: derived fields, the round trip through JSON, and the errors."""

import json
import shutil

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, BeitConfig

from hf_mim import Beitv2Config
from tests.testing.paths import GOLDEN


def test_defaults_are_the_pretraining_of_vit_base():
    config = Beitv2Config()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert config.intermediate_size == 3072 and config.grid_size == (14, 14) and config.layer_norm_eps == 1e-6
    assert (config.vocab_size, config.early_layers, config.head_layers, config.shared_lm_head) == (8192, 9, 2, True)
    assert config.use_shared_relative_position_bias and not config.use_relative_position_bias
    assert not config.use_absolute_position_embeddings and not config.use_mean_pooling
    assert config.layer_scale_init_value == 0.1 and config.drop_path_rate == 0.0


def test_fields_have_the_names_of_transformers():
    own = {"early_layers", "head_layers", "shared_lm_head", "regression_loss", "target_dim", "qkv_bias"}
    own.add("apply_layernorm")
    assert set(Beitv2Config().to_dict()) - set(BeitConfig().to_dict()) == own


def test_derived_fields():
    assert Beitv2Config(hidden_size=48, num_attention_heads=4).intermediate_size == 192
    assert Beitv2Config(intermediate_size=100).intermediate_size == 100
    config = Beitv2Config(image_size=[32, 48], patch_size=8, num_hidden_layers=2)
    assert config.grid_size == (4, 6)
    assert config.stage_names == ["stem", "stage1", "stage2"]
    assert Beitv2Config().target_dim is None and Beitv2Config().prediction_dim == 8192
    config = Beitv2Config(hidden_size=48, num_attention_heads=4, regression_loss="l2")
    assert config.target_dim == config.prediction_dim == 48
    assert Beitv2Config(regression_loss="l2", vocab_size=24).prediction_dim == 24


def test_width_of_the_features_in_files_of_version_0_1(tmp_path):
    """They have no target_dim: with regression_loss, vocab_size was the width of the features."""
    shutil.copy(GOLDEN / "beitv2" / "config_regression_0.1.json", tmp_path / "config.json")
    for config in (Beitv2Config.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(config, Beitv2Config)
        assert (config.regression_loss, config.target_dim, config.prediction_dim) == ("negcosine", 24, 24)
    config.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["target_dim"] == 24


def test_stages_by_name_and_by_index():
    assert Beitv2Config(out_features=["stage2", "stage12"]).out_indices == [2, 12]
    assert Beitv2Config(out_indices=[0, 12]).out_features == ["stem", "stage12"]
    assert Beitv2Config().out_features == ["stage12"]
    with pytest.raises(ValueError, match="stage13"):
        Beitv2Config(out_features=["stage13"])


CHANGED = dict(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=100,
    hidden_act="relu",
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.2,
    initializer_range=0.05,
    layer_norm_eps=1e-5,
    image_size=[32, 48],
    patch_size=8,
    num_channels=4,
    qkv_bias=False,
    use_absolute_position_embeddings=True,
    use_relative_position_bias=True,
    use_shared_relative_position_bias=False,
    layer_scale_init_value=0,
    drop_path_rate=0.1,
    use_mean_pooling=True,
    vocab_size=64,
    early_layers=2,
    head_layers=0,
    shared_lm_head=False,
    regression_loss="negcosine",
    target_dim=96,
    apply_layernorm=False,
    reshape_hidden_states=False,
    out_features=["stage1", "stage3"],
)


def test_round_trip_with_every_field_changed(tmp_path):
    config = Beitv2Config(**CHANGED, num_labels=7)
    default = Beitv2Config()
    for name in CHANGED:
        assert getattr(config, name) != getattr(default, name), name
    fields = {name for name in Beitv2Config.__annotations__ if not name.startswith("_")} - {"model_type"}
    assert fields <= set(CHANGED)

    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for name, value in CHANGED.items():
        assert stored[name] == value, name
    for loaded in (Beitv2Config.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is Beitv2Config and loaded.num_labels == 7 and loaded.grid_size == (4, 6)
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert Beitv2Config(**json.loads(config.to_json_string())).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"num_attention_heads": 7}, r"hidden_size \(768\) must be a multiple of num_attention_heads \(7\)"),
        ({"image_size": 220}, r"image_size \(220\) must be a multiple of patch_size \(16\)"),
        ({"image_size": [32, 32, 32]}, r"one number or \(height, width\)"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\)"),
        ({"hidden_dropout_prob": -0.1}, r"hidden_dropout_prob must lie in \[0, 1\)"),
        ({"attention_probs_dropout_prob": 2}, r"attention_probs_dropout_prob must lie in \[0, 1\)"),
        ({"layer_scale_init_value": -1e-5}, "layer_scale_init_value must be 0"),
        ({"vocab_size": 1}, "vocab_size must be at least 2"),
        ({"target_dim": 0}, "target_dim must be at least 1"),
        ({"head_layers": -1}, "head_layers must be 0"),
        ({"early_layers": 0}, "early_layers must be at least 1"),
        ({"regression_loss": "huber"}, "regression_loss must be negcosine, l2, l1, smooth_l1 or none, got 'huber'"),
    ],
)
def test_values_that_make_no_sense(settings, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        Beitv2Config(**settings)


@pytest.mark.parametrize("settings", [{"vocab_size": "many"}, {"qkv_bias": 2}, {"layer_scale_init_value": None}])
def test_types(settings):
    with pytest.raises(StrictDataclassFieldValidationError):
        Beitv2Config(**settings)
