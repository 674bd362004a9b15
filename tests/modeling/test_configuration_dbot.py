"""DBotConfig: derived fields, the round trip through JSON, and the errors."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError

from hf_mim import DBotConfig


def test_sizes_that_follow_from_others():
    config = DBotConfig(hidden_size=96, decoder_hidden_size=64, num_attention_heads=4)
    assert (config.intermediate_size, config.decoder_intermediate_size, config.target_dim) == (384, 256, 96)
    assert DBotConfig(image_size=[32, 64]).grid_size == (2, 4)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"num_hidden_layers": -1}, "num_hidden_layers must be 0"),
        ({"decoder_num_hidden_layers": 0}, "decoder_num_hidden_layers must be at least 1"),
        ({"hidden_size": 30, "num_attention_heads": 4}, r"hidden_size \(30\) must be a multiple of num_att"),
        ({"hidden_size": 30, "num_attention_heads": 3}, r"hidden_size \(30\) must be a multiple of 4"),
        ({"decoder_hidden_size": 40}, r"decoder_hidden_size \(40\) must be a multiple of decoder_num_attention"),
        ({"image_size": 100}, r"image_size \(100\) must be a multiple of patch_size \(16\)"),
        ({"image_size": [32, 32, 32]}, r"one number or \(height, width\)"),
        ({"mask_ratio": 1.0}, r"mask_ratio must lie in \[0, 1\), got 1.0"),
        ({"decoder_drop_path_rate": -0.1}, r"decoder_drop_path_rate must lie in \[0, 1\)"),
        ({"layer_scale_init_value": -1}, "layer_scale_init_value must be 0"),
        ({"target_dim": 1}, "target_dim must be at least 2 with norm_targets"),
        ({"target_dim": 0}, "target_dim must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(overrides, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        DBotConfig(**overrides)


def test_round_trip(tmp_path):
    config = DBotConfig(image_size=[32, 48], mask_ratio=0.5, target_dim=7, out_indices=[2])
    config.save_pretrained(tmp_path)
    assert DBotConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
