"""dBOT models for tests."""

from hf_mim import DBotConfig


def tiny_config(**overrides) -> DBotConfig:
    settings = dict(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=24,
        patch_size=8,
        drop_path_rate=0.0,
        mask_ratio=0.6,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        target_dim=20,
    )
    return DBotConfig(**settings | overrides)
