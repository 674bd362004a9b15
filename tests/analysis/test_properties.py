"""Attention distances and singular values: the original's numbers, models of every kind, what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    BeitConfig,
    BertConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Data2VecVisionConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    ViTMAEConfig,
    ViTModel,
    YolosConfig,
)

from hf_mim import Beitv2Config, DBotConfig, IBotConfig, VQKDConfig
from hf_mim.analysis.encoders import find_blocks
from hf_mim.analysis.properties import (
    attention_distances,
    distance_matrix,
    even_attention_distance,
    singular_value_shares,
)
from tests.testing.paths import GOLDEN, SHARED


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.5,
}
# configuration, and how many tokens stand in front of the patches
ENCODERS = {
    "vit": (ViTConfig(**SIZES), 1),
    "vit_oblong": (ViTConfig(**{**SIZES, "patch_size": (4, 8)}), 1),
    "deit": (DeiTConfig(**SIZES), 2),
    "dinov2": (Dinov2Config(**SIZES), 1),
    "dinov2_with_registers": (Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4), 5),
    "dinov3_vit": (DINOv3ViTConfig(**SIZES, num_register_tokens=3), 4),
    "beit": (BeitConfig(**SIZES, use_relative_position_bias=True), 1),
    "clip": (CLIPVisionConfig(**SIZES), 1),
    "siglip": (SiglipVisionConfig(**SIZES), 0),
    "mae": (ViTMAEConfig(**SIZES, mask_ratio=0.0), 1),
    "ibot": (IBotConfig(**SIZES), 1),
    "beitv2": (Beitv2Config(**SIZES), 1),
    "beitv2_mean_pooling": (Beitv2Config(**SIZES, use_mean_pooling=True), 1),
    "vqkd": (VQKDConfig(**SIZES), 1),
    "dbot": (DBotConfig(**SIZES), 1),
    "dbot_mean_pooling": (DBotConfig(**SIZES, use_mean_pooling=True), 1),
}


def encoder_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModel.from_config(ENCODERS[kind][0])
    return (model.encoder if kind == "vqkd" else model).eval()


def random_images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def golden_vit(tensors: dict[str, torch.Tensor], layers: int) -> ViTModel:
    """
    The original's tiny ViT as transformers' own. Without its patch projection, images stand for the stored patch
    embeddings: the first pixel tells their number.
    """
    tokens, width = tensors["model.pos_embed"].shape[1:]
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        image_size=16 * math.isqrt(tokens - 1),
        patch_size=16,
        layer_norm_eps=1e-6,
    )
    model = ViTModel(config, add_pooling_layer=False)
    state = {
        "embeddings.cls_token": tensors["model.cls_token"],
        "embeddings.position_embeddings": tensors["model.pos_embed"],
    }
    if "model.patch_embed.proj.weight" in tensors:
        for part in ("weight", "bias"):
            state[f"embeddings.patch_embeddings.projection.{part}"] = tensors[f"model.patch_embed.proj.{part}"]
    else:
        stored = tensors["patch_embeddings"]
        model.embeddings.patch_embeddings.register_forward_hook(
            lambda module, arguments, output: stored[arguments[0][:, 0, 0, 0].long()]
        )
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    for layer in range(layers):
        for part in ("weight", "bias"):
            old, new = f"model.blocks.{layer}", f"layers.{layer}"
            for name, theirs in {**names, "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}.items():
                state[f"{new}.{theirs}.{part}"] = tensors[f"{old}.{name}.{part}"]
            for name, value in zip("qkv", tensors[f"{old}.attn.qkv.{part}"].chunk(3), strict=True):
                state[f"{new}.attention.{name}_proj.{part}"] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith(("layernorm.", "embeddings.patch_embeddings.")) for name in missing)
    return model


def check_golden(tensors: dict[str, torch.Tensor], layers: int, pixel_values: torch.Tensor):
    """The original takes batches of two images, and the mean of the means of the batches for the attention."""
    model = golden_vit(tensors, layers)
    distances = [attention_distances(model, batch).mean(dim=0) for batch in pixel_values.split(2)]
    expected = tensors["attention_distance"]
    torch.testing.assert_close(torch.stack(distances).mean(dim=0), expected, atol=1e-3, rtol=0)

    shares = torch.cat([singular_value_shares(model, batch) for batch in pixel_values.split(2)])
    torch.testing.assert_close(shares.mean(dim=0), tensors["svd_topk_ratio"], atol=1e-5, rtol=0)
    sums = singular_value_shares(model, pixel_values, top_k=8)
    first = torch.cat((sums[..., :1], sums.diff(dim=2)), dim=2)
    expected = tensors["svd_first8_normalised_per_image"].double()
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "layers"), [("analysis_a", 3), ("analysis_b_uneven_batches", 1)])
def test_the_numbers_of_the_original_from_its_patch_embeddings(name: str, layers: int):
    tensors = load_file(GOLDEN / "dbot" / f"{name}_embedded.safetensors")
    count, patches = tensors["patch_embeddings"].shape[:2]
    side = 16 * math.isqrt(patches)
    check_golden(tensors, layers, torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, side, side).float())


@pytest.mark.parametrize(("name", "layers"), [("analysis_a", 3), ("analysis_b_uneven_batches", 2)])
def test_the_numbers_of_the_original_from_its_images(name: str, layers: int):
    path = SHARED / "reference" / "dbot" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} of ../shared/reference/dbot is not on this machine")
    tensors = load_file(path)
    check_golden(tensors, layers, tensors["images"])
    side = tensors["images"].shape[-1] // 16
    torch.testing.assert_close(distance_matrix((side, side), (16, 16)), tensors["distance_matrix"], atol=1e-12, rtol=0)


def test_a_short_last_batch_counts_less_than_in_the_original():
    """With batches of equal size the mean over images is the original's number; with unequal ones it is not."""
    tensors = load_file(GOLDEN / "dbot" / "analysis_b_uneven_batches_embedded.safetensors")
    images = torch.arange(5).view(-1, 1, 1, 1).expand(-1, 3, 80, 80).float()
    per_image = attention_distances(golden_vit(tensors, 1), images)
    torch.testing.assert_close(
        per_image[[0, 1, 2, 3, 4, 4]].mean(dim=0), tensors["attention_distance"], atol=1e-3, rtol=0
    )
    assert (per_image.mean(dim=0) - tensors["attention_distance"]).abs().max() > 0.1


def options_for(kind: str) -> dict:
    """Arguments with which transformers' own forward takes another size, and hides no patches."""
    if kind == "mae":
        return {"noise": torch.arange(16.0).expand(2, -1)}
    return {"interpolate_pos_encoding": True} if kind in ("vit", "dinov2_with_registers", "clip") else {}


@pytest.mark.parametrize(
    ("kind", "size"),
    [(kind, (32, 32)) for kind in ENCODERS]
    + [(kind, (16, 40)) for kind in ("vit", "dinov2_with_registers", "dinov3_vit", "clip", "ibot", "beitv2", "dbot")],
)
@torch.no_grad()
def test_attention_distances_pair_by_pair(kind: str, size: tuple[int, int]):
    model, prefix = encoder_of(kind), ENCODERS[kind][1]
    pixel_values = random_images(2, 3, *size)
    found = attention_distances(model, pixel_values)

    model.set_attn_implementation("eager")
    attentions = model(pixel_values, output_attentions=True, **options_for(kind)).attentions
    assert len(attentions) == 3
    height = 4 if kind == "vit_oblong" else 8
    places = [(row, column) for row in range(0, size[0], height) for column in range(0, size[1], 8)]
    expected = torch.zeros(2, 3, 3, dtype=torch.float64)
    for layer, attention in enumerate(attentions):
        for i, one in enumerate(places):
            for j, other in enumerate(places):
                expected[:, layer] += attention[:, :, prefix + i, prefix + j] * math.dist(one, other) / len(places)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "size"), [*((kind, (32, 32)) for kind in ENCODERS), ("vit", (48, 64)), ("ibot", (48, 64))]
)
@torch.no_grad()
def test_singular_values_of_block_outputs(kind: str, size: tuple[int, int]):
    """
    The output of block k is that of a model which has only k blocks and no final norm. The larger size has more
    patches than the features have channels.
    """
    model, prefix = encoder_of(kind), ENCODERS[kind][1]
    pixel_values = random_images(2, 3, *size)
    found = singular_value_shares(model, pixel_values, top_k=4)

    norm = {"clip": None, "siglip": "post_layernorm", "dinov3_vit": "norm"}.get(kind, "layernorm")
    if norm is not None:
        setattr(model, norm, nn.Identity())
    blocks = find_blocks(model)
    for layer in (2, 1, 0):
        del blocks[layer + 1 :]
        states = model(pixel_values, **options_for(kind)).last_hidden_state[:, prefix:].double()
        values = torch.linalg.svdvals(states / states.norm(dim=2, keepdim=True))
        expected = torch.stack([values[:, : k + 1].sum(dim=1) / values.sum(dim=1) for k in range(4)], dim=1)
        torch.testing.assert_close(found[:, layer], expected, atol=1e-6, rtol=0)


def test_even_attention_over_197_tokens():
    sizes = {**SIZES, "image_size": 224, "patch_size": 16}
    for config, expected in ((ViTConfig(**sizes), 115.90), (SiglipVisionConfig(**sizes), 116.49)):
        model = AutoModel.from_config(config)
        for block in find_blocks(model):
            query = block.attention.q_proj if config.model_type == "vit" else block.self_attn.q_proj
            nn.init.zeros_(query.weight)
            nn.init.zeros_(query.bias)
        pixel_values = random_images(1, 3, 224, 224)
        distances = attention_distances(model, pixel_values)
        torch.testing.assert_close(distances, torch.full_like(distances, expected), atol=5e-3, rtol=0)
        even = even_attention_distance(model, pixel_values)
        torch.testing.assert_close(distances, torch.full_like(distances, even), atol=1e-3, rtol=0)


def test_distances_of_patches_that_are_not_square():
    expected = [
        [0, 3, 4, 5],
        [3, 0, 5, 4],
        [4, 5, 0, 3],
        [5, 4, 3, 0],
    ]
    assert distance_matrix((2, 2), (4, 3)).tolist() == expected
    assert distance_matrix((1, 3), (4, 3)).tolist() == [[0, 3, 6], [3, 0, 3], [6, 3, 0]]


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), height=st.integers(1, 32), width=st.integers(1, 32))
def test_distance_matrix_is_a_metric_with_a_unit(rows: int, columns: int, height: int, width: int):
    matrix = distance_matrix((rows, columns), (height, width))
    assert torch.equal(matrix, matrix.mT) and not matrix.diagonal().any()
    assert (matrix[:, None] <= matrix[:, :, None] + matrix[None] + 1e-9).all()
    torch.testing.assert_close(matrix[0, -1].item(), math.hypot((rows - 1) * height, (columns - 1) * width))
    torch.testing.assert_close(distance_matrix((rows, columns), (3 * height, 3 * width)), 3 * matrix)


@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 100))
@settings(max_examples=20, deadline=None)
def test_shares_grow_and_do_not_see_the_brightness_of_tokens(seed: int, scale: float):
    """Blocks that only add nothing leave the embeddings, whose lengths do not count."""
    model = encoder_of("ibot")
    for block in find_blocks(model):
        nn.init.zeros_(block.attention.o_proj.weight)
        nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(model.embeddings.position_embeddings)
    pixel_values = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(model.embeddings.patch_embeddings.projection.bias)
    shares = singular_value_shares(model, pixel_values, top_k=16)
    assert (shares.diff(dim=2) >= 0).all() and (shares[..., 0] >= 1 / 16).all()
    torch.testing.assert_close(shares[..., -1], torch.ones(1, 3, dtype=torch.float64))
    scaled = singular_value_shares(model, scale * pixel_values, top_k=16)
    torch.testing.assert_close(scaled, shares, atol=1e-5, rtol=0)


def test_equal_patches_have_one_direction():
    model = encoder_of("vit")
    nn.init.zeros_(model.embeddings.position_embeddings)
    shares = singular_value_shares(model, torch.ones(1, 3, 32, 32))
    torch.testing.assert_close(shares, torch.ones_like(shares), atol=1e-5, rtol=0)


@torch.no_grad()
def test_half_precision_does_not_round_the_sums():
    pixel_values = random_images(2, 3, 32, 32)
    model = encoder_of("vit")
    exact = attention_distances(model, pixel_values), singular_value_shares(model, pixel_values)
    model.bfloat16()
    rounded = attention_distances(model, pixel_values), singular_value_shares(model, pixel_values)
    torch.testing.assert_close(rounded[0], exact[0], atol=0.3, rtol=0)
    torch.testing.assert_close(rounded[1], exact[1], atol=5e-3, rtol=0)
    weights = rounded[0].float()
    assert not torch.equal(weights, weights.bfloat16().float())


@pytest.mark.parametrize("measure", [attention_distances, singular_value_shares])
def test_the_model_is_left_as_it_was(measure):
    model = encoder_of("vit")
    model.train()
    model.layers[0].eval()
    model.set_attn_implementation("sdpa")
    measure(model, random_images(1, 3, 32, 32))
    with pytest.raises(ValueError):
        measure(model, random_images(1, 5, 32, 32))  # five channels
    assert model.config._attn_implementation == "sdpa"
    assert model.training and not model.layers[0].training and model.layers[1].training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("measure", [attention_distances, singular_value_shares, even_attention_distance])
def test_what_is_no_plain_vit_is_refused(measure):
    swin = SwinConfig(image_size=32, patch_size=4, embed_dim=12, depths=[1, 1, 1], num_heads=[1, 2, 3], window_size=2)
    convnext = ConvNextConfig(num_stages=2, depths=[1, 1], hidden_sizes=[8, 8])
    for config, message in (
        (swin, "SwinModel has (4|16) tokens for 8x8 patches"),
        (convnext, "ConvNextModel has no single stack of 2 blocks"),
        (DBotConfig(**{**SIZES, "num_hidden_layers": 0}), "DBotModel has no single stack of 0 blocks"),
        (BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3), "BertModel has no .* patch size"),
        (YolosConfig(**{**SIZES, "image_size": [32, 32]}), "YolosModel has 117 tokens for 4x4 patches"),
        (ViTMAEConfig(**SIZES), "ViTMAEModel has 5 tokens for 4x4 patches"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(AutoModel.from_config(config), random_images(1, 3, 32, 32))


def test_attention_that_is_not_returned_is_an_error():
    model = AutoModel.from_config(Data2VecVisionConfig(**SIZES))
    with pytest.raises(ValueError, match="Data2VecVisionModel gives no attention between all of its tokens"):
        attention_distances(model, random_images(1, 3, 32, 32))
    assert singular_value_shares(model, random_images(1, 3, 32, 32)).shape == (1, 3, 5)


@pytest.mark.parametrize("measure", [attention_distances, singular_value_shares])
def test_numbers_that_are_not_finite_are_an_error(measure):
    model = encoder_of("ibot")
    nn.init.constant_(model.layers[1].layernorm_before.weight, math.nan)
    with pytest.raises(ValueError, match="IBotModel gives values that are not finite"):
        measure(model, random_images(1, 3, 32, 32))


def test_more_singular_values_than_there_are():
    for top_k in (0, 17):
        with pytest.raises(ValueError, match=rf"top_k must lie in 1\.\.16 .*, not {top_k}"):
            singular_value_shares(encoder_of("ibot"), random_images(1, 3, 32, 32), top_k=top_k)
