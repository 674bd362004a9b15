"""iBOT models for tests: how they are configured and fed."""

import torch

from hf_mim import IBotConfig, IBotForPreTraining, IBotModel
from tests.testing.ibot_pretraining_checks import IBotPreTrainingChecks
from tests.testing.model_checks import ModelChecks


def tiny_config(**overrides) -> IBotConfig:
    """Weights far from zero, so that a wrong attention or a wrong position shows in every output."""
    settings = dict(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=24,
        patch_size=8,
        initializer_range=0.2,
        drop_path_rate=0.0,
        out_dim=20,
        patch_out_dim=12,
        head_hidden_size=24,
        head_bottleneck_size=10,
    )
    return IBotConfig(**settings | overrides)


def image_shape(config: IBotConfig) -> tuple[int, int, int]:
    return (config.num_channels, *(config.patch_size * side for side in config.grid_size))


def masks(shape: tuple[int, ...]) -> torch.Tensor:
    """About 40 % of the patches; in every row one that is masked and one that is not."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.4
    mask[..., 0], mask[..., 1] = True, False
    return mask


ENCODER_VARIANTS = (
    {},
    {"layer_scale_init_value": 0.1, "linear_init": "xavier_uniform"},
    {"use_mean_pooling": True},
    {"qkv_bias": False, "image_size": [16, 40], "num_channels": 1},
    {"num_channels": 4, "num_hidden_layers": 2},
)


HEAD_VARIANTS = (
    {"head_norm": "bn", "shared_head": False},
    {"head_norm": "ln", "norm_last_layer": False},
    {"head_norm": "syncbn", "linear_init": "xavier_uniform"},
    {"shared_head": False, "norm_last_layer": False, "head_act": "relu"},
    {"head_bottleneck_size": 0, "head_num_layers": 2},
    {"head_bottleneck_size": 0, "shared_head": False},
)


class IBotChecks(ModelChecks):
    variants = ENCODER_VARIANTS
    unused_in_training = {"ibot.embeddings.mask_token"}

    def make_config(self, **overrides):
        return tiny_config(**overrides)

    def inputs(self, config):
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(3, *image_shape(config), generator=generator)}


class IBotModelChecks(IBotChecks):
    model_class = IBotModel
    unused_in_training = set()

    def inputs(self, config):
        rows, columns = config.grid_size
        return super().inputs(config) | {"bool_masked_pos": masks((3, rows * columns))}


class IBotForPreTrainingChecks(IBotPreTrainingChecks, IBotChecks):
    model_class = IBotForPreTraining
    variants = (*ENCODER_VARIANTS, *HEAD_VARIANTS)
    head_variants = ({}, *HEAD_VARIANTS)
    unused_in_training = set()

    def inputs(self, config):
        generator = torch.Generator().manual_seed(0)
        channels, height, width = image_shape(config)
        rows, columns = config.grid_size
        local_size = (channels, height - config.patch_size, width)
        return {
            "pixel_values": torch.randn(3, 2, channels, height, width, generator=generator),
            "bool_masked_pos": masks((3, 2, rows * columns)),
            "local_pixel_values": torch.randn(3, 2, *local_size, generator=generator),
        }
