"""IBotSwinModel against numbers that the original code printed (tests/golden/ibot)."""

import json
import math

import pytest
import torch

from hf_mim import IBotSwinConfig, IBotSwinForPreTraining, convert_checkpoint
from tests.testing.paths import GOLDEN


SIZES = [24, 40, 56, 96]


@pytest.fixture(scope="module")
def backbone(ibot_golden):
    tensors, description = ibot_golden("swin_backbone")
    args = description["args"]
    weights = {k.removeprefix("sd/"): v for k, v in tensors.items() if k.startswith("sd/")}
    model = convert_checkpoint(weights, image_size=args["img_size"]).model
    assert [model.config.embed_dim, model.config.window_size] == [args["embed_dim"], args["window_size"]]
    assert [model.config.depths, model.config.num_heads] == [args["depths"], args["num_heads"]]
    windows = [[block.window, block.shift] for stage in model.encoder.layers for block in stage.blocks]
    assert windows == sum(description["effective_windows"], [])

    def within(actual: torch.Tensor, expected: torch.Tensor):
        torch.testing.assert_close(actual, expected, **description["tolerance"])

    return model, tensors, within


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_tokens(backbone, attention):
    model, golden, within = backbone
    model.set_attn_implementation(attention)
    within(model(golden["x"]).last_hidden_state, golden["tokens_nomask"])
    within(model(golden["x"]).pooler_output, golden["pooled_only"])
    within(model(golden["x"], golden["mask"].flatten(1)).last_hidden_state, golden["tokens_masked"])


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_other_sizes(backbone, size):
    model, golden, within = backbone
    within(model(golden[f"x_{size}"]).last_hidden_state, golden[f"tokens_{size}"])


@torch.no_grad()
def test_embeddings_attention_and_intermediate_layers(backbone):
    model, golden, within = backbone
    model.set_attn_implementation("eager")
    side = golden["patch_embed"].shape[-1]
    within(model.embeddings(golden["x"]).transpose(1, 2).unflatten(2, (side, side)), golden["patch_embed"])
    within(model(golden["x"], output_attentions=True).attentions[-1], golden["attn_last"])
    for i, layer in enumerate(model.get_intermediate_layers(golden["x"], n=3)):
        within(layer, golden[f"intermediate_last3_{i}"])


def test_initialization_statistics():
    """Moments of every kind of tensor at initialization, against the original Swin-T."""
    statistics = json.loads((GOLDEN / "ibot" / "init_statistics.json").read_text())["swin_tiny_w7"]
    torch.manual_seed(0)
    model = IBotSwinForPreTraining(IBotSwinConfig(depths=[1, 1, 1, 1], out_dim=64)).ibot.state_dict()
    pairs = [
        ("masked_embed", "embeddings.mask_token"),
        ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"),
        ("patch_embed.proj.bias", "embeddings.patch_embeddings.projection.bias"),
        ("patch_embed.norm.weight", "embeddings.norm.weight"),
        (
            "layers.0.blocks.0.attn.relative_position_bias_table",
            "encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table",
        ),
        ("layers.0.blocks.0.attn.qkv.weight", "encoder.layers.0.blocks.0.attention.k_proj.weight"),
        ("layers.0.blocks.0.attn.qkv.bias", "encoder.layers.0.blocks.0.attention.q_proj.bias"),
        ("layers.0.blocks.0.attn.proj.weight", "encoder.layers.0.blocks.0.attention.o_proj.weight"),
        ("layers.0.blocks.0.mlp.fc1.weight", "encoder.layers.0.blocks.0.mlp.fc1.weight"),
        ("layers.0.downsample.reduction.weight", "encoder.layers.0.downsample.reduction.weight"),
        ("norm.weight", "layernorm.weight"),
    ]
    for theirs, name in pairs:
        expected, tensor = statistics[theirs], model[name]
        count = tensor.numel()
        assert tensor.mean().item() == pytest.approx(expected["mean"], abs=1e-12 + 8 * expected["std"] / count**0.5)
        std = tensor.std().item()
        assert std == pytest.approx(expected["std"], rel=0.02 + 8 / math.sqrt(2 * count), abs=1e-12), name
