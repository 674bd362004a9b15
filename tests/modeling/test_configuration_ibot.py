"""IBotConfig: derived fields, the round trip through JSON, and the errors."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from hf_mim import IBotConfig
from hf_mim.modeling.configuration_ibot import IBotHeadConfig


def test_defaults_are_vit_base_with_the_released_head():
    config = IBotConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert config.intermediate_size == 3072 and config.grid_size == (14, 14)
    assert (config.out_dim, config.head_hidden_size, config.head_bottleneck_size) == (8192, 2048, 256)
    assert config.shared_head and config.norm_last_layer and config.layer_norm_eps == 1e-6


def test_derived_fields():
    assert IBotConfig(hidden_size=48, num_attention_heads=4).intermediate_size == 192
    assert IBotConfig(intermediate_size=100).intermediate_size == 100
    config = IBotConfig(image_size=[32, 48], patch_size=8, num_hidden_layers=2)
    assert config.grid_size == (4, 6)
    assert config.stage_names == ["stem", "stage1", "stage2"]


def test_stages_by_name_and_by_index():
    by_name = IBotConfig(out_features=["stage2", "stage12"])
    assert by_name.out_indices == [2, 12]
    by_index = IBotConfig(out_indices=[0, 12])
    assert by_index.out_features == ["stem", "stage12"]
    assert IBotConfig().out_features == ["stage12"]
    with pytest.raises(ValueError, match="stage13"):
        IBotConfig(out_features=["stage13"])


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
    drop_path_rate=0,
    layer_scale_init_value=0.1,
    use_mean_pooling=True,
    linear_init="xavier_uniform",
    out_dim=64,
    patch_out_dim=32,
    shared_head=False,
    norm_last_layer=False,
    head_norm="syncbn",
    head_act="relu",
    head_num_layers=2,
    head_hidden_size=20,
    head_bottleneck_size=0,
    student_temperature=0.2,
    cls_loss_weight=2,
    patch_loss_weight=0,
    apply_layernorm=False,
    reshape_hidden_states=False,
    out_features=["stage1", "stage3"],
)


def test_round_trip_with_every_field_changed(tmp_path):
    config = IBotConfig(**CHANGED, num_labels=7)
    default = IBotConfig()
    for name in CHANGED:
        assert getattr(config, name) != getattr(default, name), name
    names = {*IBotConfig.__annotations__, *IBotHeadConfig.__annotations__}
    fields = {name for name in names if not name.startswith("_")} - {"model_type"}
    assert fields <= set(CHANGED)

    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for name, value in CHANGED.items():
        assert stored[name] == value, name
    for loaded in (IBotConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is IBotConfig and loaded.num_labels == 7 and loaded.grid_size == (4, 6)
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert IBotConfig(**json.loads(config.to_json_string())).to_dict() == config.to_dict()


@given(
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 8),
    layers=st.integers(1, 5),
    patch=st.integers(1, 16),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    drop_path=st.one_of(st.just(0), st.floats(0, 1, exclude_max=True)),
)
def test_every_size_that_fits_is_accepted_and_kept(heads, head_dim, layers, patch, grid, drop_path):
    config = IBotConfig(
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        patch_size=patch,
        image_size=(grid[0] * patch, grid[1] * patch),
        drop_path_rate=drop_path,
    )
    again = IBotConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.grid_size == config.grid_size == grid
    assert again.drop_path_rate == drop_path and len(again.stage_names) == layers + 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_attention_heads": 7}, r"hidden_size \(768\) must be a multiple of num_attention_heads \(7\)"),
        ({"image_size": [224, 224, 3]}, r"one number or \(height, width\), got \[224, 224, 3\]"),
        ({"image_size": 220}, r"image_size \(220\) must be a multiple of patch_size \(16\)"),
        ({"image_size": [224, 100]}, r"image_size \(\[224, 100\]\) must be a multiple of patch_size \(16\)"),
        ({"image_size": 0}, "must be a multiple of patch_size"),
        ({"linear_init": "normal"}, r"linear_init must be one of \('trunc_normal', 'xavier_uniform'\), got 'normal'"),
        ({"head_norm": "gn"}, "head_norm must be one of .* got 'gn'"),
        ({"head_act": "tanh"}, "head_act must be one of .* got 'tanh'"),
        *(
            ({name: 0}, f"{name} must be at least 1, got 0")
            for name in (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "patch_size",
                "num_channels",
                "head_num_layers",
                "head_hidden_size",
            )
        ),
        ({"out_dim": 1}, "out_dim must be at least 2"),
        ({"patch_out_dim": 1}, "patch_out_dim must be at least 2"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\), got 1.0"),
        ({"hidden_dropout_prob": -0.1}, r"hidden_dropout_prob must lie in \[0, 1\), got -0.1"),
        ({"attention_probs_dropout_prob": 1}, r"attention_probs_dropout_prob must lie in \[0, 1\), got 1"),
        ({"student_temperature": 0}, "student_temperature must be positive, got 0"),
        ({"head_bottleneck_size": -1}, "head_bottleneck_size must be 0 .* got -1"),
    ],
)
def test_sizes_that_do_not_fit(fields, message):
    # The message of `@strict` names the validator on its first line and quotes ours below.
    with pytest.raises(StrictDataclassClassValidationError, match=message) as error:
        IBotConfig(**fields)
    assert isinstance(error.value.__cause__, ValueError)


@pytest.mark.parametrize(
    "fields", [{"hidden_size": "768"}, {"drop_path_rate": "0.1"}, {"shared_head": 1}, {"image_size": 224.0}]
)
def test_wrong_types(fields):
    (name,) = fields
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        IBotConfig(**fields)


def test_fields_of_other_methods_are_kept():
    """What transformers does for every configuration: a name it does not know becomes an attribute."""
    config = IBotConfig(something_else=3)
    assert config.something_else == 3 and config.to_dict()["something_else"] == 3
