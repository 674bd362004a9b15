"""Parameter groups against those of the original code (tests/golden/beitv2/param_groups.json, exactly)."""

import json

import pytest
import torch

from hf_mim import (
    Beitv2Config,
    Beitv2ForImageClassification,
    Beitv2ForPreTraining,
    IBotSwinConfig,
    IBotSwinForImageClassification,
    VQKDConfig,
    VQKDModel,
)
from hf_mim.hub.convert.beitv2 import rename_beitv2
from hf_mim.hub.convert.vqkd import rename_vqkd
from hf_mim.training.optimization import BEITV2_WITHOUT_DECAY, decayed_parameter_names, layer_decay_groups
from tests.testing.paths import GOLDEN


CASES = json.loads((GOLDEN / "beitv2" / "param_groups.json").read_text())["cases"]
SIZES = dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=4, image_size=32, patch_size=8)
PER_BLOCK = {"use_relative_position_bias": True, "use_shared_relative_position_bias": False}
MODELS = {
    "finetune_perlayer_ld0.65": (PER_BLOCK | {"use_mean_pooling": True}, {"layer_decay": 0.65}),
    "finetune_perlayer_ld0.65_no_wd_on_relpos": (
        PER_BLOCK | {"use_mean_pooling": True},
        {"layer_decay": 0.65, "decay_relative_positions": False},
    ),
    "finetune_shared_relpos_abspos_ld0.8": (
        {"use_absolute_position_embeddings": True, "use_mean_pooling": True},
        {"layer_decay": 0.8},
    ),
    "finetune_clspool_no_layer_decay": (PER_BLOCK, {}),
}


def expected_settings(case: str) -> dict[str, list[float]]:
    """Learning rate scale and weight decay under our names."""
    settings = {}
    for key, values in CASES[case]["params"].items():
        tensor = {key: torch.zeros((3, 1) if key.endswith("qkv.weight") else (1,))}
        ours = rename_vqkd(tensor) if case == "vqkd" else rename_beitv2(tensor)
        settings |= dict.fromkeys(ours, values)
    return settings


@pytest.mark.parametrize("case", MODELS)
def test_fine_tuning(case):
    overrides, options = MODELS[case]
    model = Beitv2ForImageClassification(Beitv2Config(**SIZES, **overrides, num_labels=10))
    groups = layer_decay_groups(model, lr=5e-4, weight_decay=0.05, **options)
    assert len(groups) == CASES[case]["num_groups"]
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = {names[p]: [group["lr_scale"], group["weight_decay"]] for group in groups for p in group["params"]}
    assert settings == expected_settings(case)
    assert all(group["lr"] == 5e-4 * group["lr_scale"] for group in groups)


def test_blocks_of_a_swin_are_numbered_through_its_stages():
    config = IBotSwinConfig(embed_dim=8, depths=[2, 3], num_heads=[2, 2], window_size=4, image_size=32, num_labels=3)
    model = IBotSwinForImageClassification(config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = layer_decay_groups(model, lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    layers = {names[parameter]: group["layer"] for group in groups for parameter in group["params"]}
    for part, layer in (
        ("embeddings.patch_embeddings.projection", 0),
        ("embeddings.norm", 0),
        ("encoder.layers.0.blocks.0.mlp.fc1", 1),
        ("encoder.layers.0.blocks.1.mlp.fc1", 2),
        ("encoder.layers.0.downsample.norm", 2),
        ("encoder.layers.1.blocks.0.mlp.fc1", 3),
        ("encoder.layers.1.blocks.2.layernorm_after", 5),
        ("layernorm", 6),
    ):
        assert layers[f"ibot.{part}.weight"] == layer, part
    assert layers["classifier.bias"] == 6
    assert {group["layer"]: group["lr"] for group in groups} == {n: 1e-3 * 0.5 ** (6 - n) for n in range(7)}


def test_pretraining_and_tokenizer():
    config = Beitv2Config(**SIZES, use_absolute_position_embeddings=True, early_layers=3, vocab_size=20)
    tokenizer = VQKDConfig(**SIZES | {"num_hidden_layers": 1}, decoder_num_hidden_layers=1)
    for case, model in (("pretrain_clspt", Beitv2ForPreTraining(config)), ("vqkd", VQKDModel(tokenizer))):
        settings = expected_settings(case)
        assert set(settings) == {name for name, _ in model.named_parameters()}
        decayed = {name for name, (_, weight_decay) in settings.items() if weight_decay > 0}
        assert set(decayed_parameter_names(model, BEITV2_WITHOUT_DECAY)) == decayed


def test_an_optimizer_and_a_scheduler_keep_the_ratios():
    model = Beitv2ForImageClassification(Beitv2Config(**SIZES, use_mean_pooling=True))
    optimizer = torch.optim.AdamW(layer_decay_groups(model, lr=1e-3, weight_decay=0.05, layer_decay=0.5))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    scheduler.step()
    rates = {group["layer"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({layer: 0.5e-3 * 0.5 ** (5 - layer) for layer in range(6)})


def test_frozen_parameters_are_left_out():
    model = Beitv2ForImageClassification(Beitv2Config(**SIZES))
    model.beitv2.requires_grad_(False)
    groups = layer_decay_groups(model, lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    assert {p for group in groups for p in group["params"]} == set(model.classifier.parameters())


def test_clear_errors():
    model = Beitv2ForImageClassification(Beitv2Config(**SIZES))
    for factor in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"layer_decay must lie in \(0, 1\]"):
            layer_decay_groups(model, lr=1e-3, weight_decay=0.05, layer_decay=factor)
    with pytest.raises(ValueError, match="named layers.i"):
        layer_decay_groups(torch.nn.Linear(2, 2), lr=1e-3, weight_decay=0.05)
