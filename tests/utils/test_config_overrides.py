"""`--config_overrides`, as `hf-mim pretrain` and `hf-mim convert` read it."""

import pytest

from hf_mim import IBotConfig, IBotSwinConfig
from hf_mim.utils.config_overrides import check_overrides, parse_overrides


def test_values():
    text = "hidden_size=8,norm_last_layer=false,layer_norm_eps=1e-5,head_norm=null"
    parsed = check_overrides(parse_overrides(text), IBotConfig)
    assert parsed == {"hidden_size": 8, "norm_last_layer": False, "layer_norm_eps": 1e-5, "head_norm": None}
    assert parse_overrides(None) == {}
    assert parse_overrides("hidden_size=8,patch_size=4,hidden_size=16") == {"hidden_size": 16, "patch_size": 4}
    text = "depths=[2, 2],embed_dim=8, id2label={0: cat, 1: dog},num_heads=[1,2]"
    parsed = {"depths": [2, 2], "embed_dim": 8, "id2label": {0: "cat", 1: "dog"}, "num_heads": [1, 2]}
    assert check_overrides(parse_overrides(text), IBotSwinConfig) == parsed
    assert IBotSwinConfig(**parsed, num_labels=2).id2label == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden_size", "must be name=value,name=value, got 'hidden_size'"),
        ("=3", "must be name=value"),
        ("image_size=[224", "image_size must have a YAML value"),
        ("hidden_size=" + 3000 * "[" + 3000 * "]", r"hidden_size must have a YAML value, got '\[+\.\.\.\]+'"),
        ("hidden_size=[&a [1], *a]", "hidden_size must have a YAML value"),
        ("hiden_size=8", "IBotConfig has no 'hiden_size', did you mean 'hidden_size'"),
        ("model_type=vit", "IBotConfig has no 'model_type'"),
        ("architectures=[Foo]", "IBotConfig has no 'architectures'"),
        ("_out_features=[stage1]", "IBotConfig has no '_out_features'"),
        ("hidden_act=[gelu]", "hidden_act must be one of"),
        ("hidden_act=foo", "hidden_act must be one of .*gelu"),
    ],
)
def test_refused(text, message):
    with pytest.raises(ValueError, match=f"config_overrides:? .*{message}"):
        check_overrides(parse_overrides(text), IBotConfig)


@pytest.mark.parametrize(
    ("word", "value"), [("yes", True), ("On", True), ("true", True), ("no", False), ("off", False)]
)
def test_words_for_booleans(word, value):
    assert check_overrides(parse_overrides(f"qkv_bias={word}"), IBotConfig) == {"qkv_bias": value}
