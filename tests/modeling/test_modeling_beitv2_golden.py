"""BEiT v2's models against numbers that the original code printed (tests/golden/beitv2)."""

import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_mim import Beitv2Config, Beitv2ForImageClassification, Beitv2ForPreTraining
from hf_mim.hub.convert.beitv2 import rename_beitv2
from hf_mim.modeling.relative_position_beitv2 import Beitv2RelativePositionBias
from tests.testing.paths import GOLDEN


TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
RELATIVE = {"use_shared_relative_position_bias": True}
PER_BLOCK = {"use_shared_relative_position_bias": False, "use_relative_position_bias": True}
ABSOLUTE = {"use_shared_relative_position_bias": False, "use_absolute_position_embeddings": True}
BOTH = {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True}
# Those in the repository have the parts that the others combine; the others are read where they are.
PRETRAINING = {
    "pretrain_relpos_clspt": RELATIVE | {"num_hidden_layers": 4, "vocab_size": 97, "early_layers": 3},
    "pretrain_abspos_clspt": ABSOLUTE | {"num_hidden_layers": 4, "vocab_size": 97, "early_layers": 2},
    "pretrain_relpos_abspos_unshared_head": BOTH | {"early_layers": 2, "head_layers": 1, "shared_lm_head": False},
    "pretrain_plain_nonsquare": RELATIVE | {"image_size": [32, 48], "head_layers": 0},
    "pretrain_plain_no_layerscale": ABSOLUTE | {"layer_scale_init_value": 0.0, "head_layers": 0},
}
FINE_TUNING = {
    "finetune_perlayer_meanpool": PER_BLOCK | {"num_hidden_layers": 4, "use_mean_pooling": True},
    "finetune_perlayer_clspool": PER_BLOCK | {"num_hidden_layers": 4},
    "finetune_shared_meanpool": RELATIVE | {"use_mean_pooling": True},
    "finetune_abspos_clspool": ABSOLUTE | {"layer_scale_init_value": 0.0},
    "finetune_nonsquare_noqkvbias": PER_BLOCK
    | {"image_size": [32, 48], "num_hidden_layers": 2, "use_mean_pooling": True, "qkv_bias": False},
}


def within(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def part_of(golden: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{part}/"): v for k, v in golden.items() if k.startswith(f"{part}/")}


def build(model_class, golden, **overrides):
    settings = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8)
    model = model_class(Beitv2Config(**settings | overrides)).eval()
    model.load_state_dict(rename_beitv2(part_of(golden, "weights")), strict=True)
    return model


def assert_gradients(model, golden):
    expected = rename_beitv2(part_of(golden, "grad"))
    assert expected
    for name, gradient in expected.items():
        within(model.get_parameter(name).grad, gradient)


@pytest.fixture(scope="module", params=PRETRAINING)
def pretraining(request, beitv2_golden):
    golden = beitv2_golden(request.param)
    settings = {"vocab_size": 50, "early_layers": 3} | PRETRAINING[request.param]
    return build(Beitv2ForPreTraining, golden, **settings), golden


class TestPreTraining:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_loss_and_gradients(self, pretraining, attention):
        model, golden = pretraining
        model.set_attn_implementation(attention)
        model.zero_grad()
        mask = golden["in/bool_masked_pos"]
        output = model(golden["in/pixel_values"], mask, labels=golden["in/codes"])
        within(output.logits, golden["out/logits_final_masked"])
        within(output.loss, golden["out/loss"])
        if model.config.head_layers > 0:
            within(output.logits_cls, golden["out/logits_early_masked"])
            within(output.loss_mim, golden["out/loss_1"])
            within(output.loss_mim_cls, golden["out/loss_2"])
            assert output.accuracy_mim.item() == pytest.approx(golden["out/mlm_acc_1"].item())
            assert output.accuracy_mim_cls.item() == pytest.approx(golden["out/mlm_acc_2"].item())
        else:
            assert output.logits_cls is None and output.loss_mim_cls is None and output.accuracy_mim_cls is None
            assert output.accuracy_mim.item() == pytest.approx(golden["out/mlm_acc"].item())
        output.loss.backward()
        assert_gradients(model, golden)

    @torch.no_grad()
    def test_blocks(self, pretraining):
        model, golden = pretraining
        images, mask = golden["in/pixel_values"], golden["in/bool_masked_pos"]
        outputs = model.beitv2(images, mask, output_hidden_states=True)
        for i, state in enumerate(outputs.hidden_states[1:]):
            within(state, golden[f"out/block_{i}"])
        within(outputs.last_hidden_state, golden["out/norm_final"])

        heads = []
        for layer in model.head_layers:
            layer.register_forward_hook(lambda module, args, output: heads.append(output))
        everything = torch.arange(mask.numel())
        model(images, mask, mask_indices=everything)
        for i, state in enumerate(heads):
            expected = golden[f"out/cls_pt_block_{i}"]
            last = i == len(model.head_layers) - 1
            within(state, expected[:, 1:].flatten(0, 1).unsqueeze(1) if last else expected)

    @torch.no_grad()
    def test_logits_of_every_patch(self, pretraining):
        model, golden = pretraining
        images, mask = golden["in/pixel_values"], golden["in/bool_masked_pos"]
        everything = torch.arange(mask.numel())
        for given, suffix in ((mask, ""), (None, "_nomask")):
            output = model(images, given, mask_indices=everything)
            within(output.logits, golden[f"out/logits_final_all{suffix}"].flatten(0, 1))
            if model.config.head_layers > 0:
                within(output.logits_cls, golden[f"out/logits_early_all{suffix}"].flatten(0, 1))


@pytest.fixture(scope="module", params=FINE_TUNING)
def fine_tuning(request, beitv2_golden):
    golden = beitv2_golden(request.param)
    settings = {"num_labels": 10} | FINE_TUNING[request.param]
    return build(Beitv2ForImageClassification, golden, **settings), golden


class TestFineTuning:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_loss_and_gradients(self, fine_tuning, attention):
        model, golden = fine_tuning
        model.set_attn_implementation(attention)
        model.zero_grad()
        labels = golden["in/labels"]
        output = model(golden["in/pixel_values"], labels=labels)
        within(output.logits, golden["out/logits"])
        within(output.loss, golden["out/loss_ce"])
        within(cross_entropy(output.logits, labels, label_smoothing=0.1), golden["out/loss_label_smoothing_0.1"])
        within(cross_entropy(output.logits, golden["in/soft_targets"]), golden["out/loss_soft_target"])
        output.loss.backward()
        assert_gradients(model, golden)

    @torch.no_grad()
    def test_blocks_and_features(self, fine_tuning):
        model, golden = fine_tuning
        outputs = model.beitv2(golden["in/pixel_values"], output_hidden_states=True)
        for i, state in enumerate(outputs.hidden_states[1:]):
            within(state, golden[f"out/block_{i}"])
        within(outputs.pooler_output, golden["out/pooled"])
        features = outputs.last_hidden_state
        if model.config.use_mean_pooling:
            features = model.beitv2.pooler.layernorm(features)
        within(features, golden["out/features_all"])
        for i, state in enumerate(model.beitv2.get_intermediate_layers(golden["in/pixel_values"], n=2)):
            within(state, golden[f"out/block_{model.config.num_hidden_layers - 2 + i}"])

    @torch.no_grad()
    def test_another_size_with_absolute_positions(self, beitv2_golden):
        golden = beitv2_golden("finetune_abspos_clspool")
        model = build(Beitv2ForImageClassification, golden, num_labels=10, **FINE_TUNING["finetune_abspos_clspool"])
        within(model(golden["in/pixel_values_other_size"]).logits, golden["out/logits_other_size"])


class TestRelativePositions:
    @pytest.mark.parametrize("window", ["1x1", "3x2", "4x6"])
    @torch.no_grad()
    def test_index(self, beitv2_golden, window):
        """A table that counts its own rows gives the original's index."""
        index = beitv2_golden("relpos_tables")[f"index/{window}"].float()
        grid = tuple(map(int, window.split("x")))
        config = Beitv2Config(hidden_size=4, num_attention_heads=2, patch_size=2, image_size=[2 * n for n in grid])
        bias = Beitv2RelativePositionBias(config)
        rows = torch.arange(float(len(bias.relative_position_bias_table)))
        bias.relative_position_bias_table.copy_(torch.stack((rows, -rows), dim=1))
        assert torch.equal(bias(grid), torch.stack((index, -index)).unsqueeze(0))

    @pytest.mark.parametrize("size", [10, 16, 24, 32])
    @torch.no_grad()
    def test_resizing(self, beitv2_golden, size):
        """On the fly, and for good; the golden tables are of independent heads and channels, of which two and one."""
        golden = part_of(beitv2_golden("relpos_tables"), f"interp/14to{size}")
        config = Beitv2Config(
            hidden_size=2 * golden["in_pos_embed"].shape[-1],
            num_attention_heads=golden["in_table"].shape[-1],
            num_hidden_layers=1,
            use_absolute_position_embeddings=True,
        )
        model = Beitv2ForImageClassification(config).beitv2
        table, bias = golden["out_table"], model.shared_position_bias
        bias.relative_position_bias_table.copy_(golden["in_table"])
        model.embeddings.position_embeddings.copy_(golden["in_pos_embed"].repeat(1, 1, 2))
        torch.testing.assert_close(bias.resized_table((size, size)), table, rtol=0, atol=2e-5)
        model.resize_position_tables(16 * size)
        assert config.image_size == 16 * size
        torch.testing.assert_close(bias.relative_position_bias_table.data, table, rtol=0, atol=2e-5)
        torch.testing.assert_close(
            model.embeddings.position_embeddings.data, golden["out_pos_embed"].repeat(1, 1, 2), rtol=0, atol=1e-5
        )


def named_statistics(case: str) -> dict:
    return json.loads((GOLDEN / "beitv2" / "init_stats.json").read_text())[case]


@pytest.mark.parametrize("case", ["pretrain_cls_pt_dim128_depth4", "finetune_dim128_depth4"])
def test_initialization(case):
    """Moments and range of every tensor of a new model."""
    settings = dict(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=64, patch_size=8)
    settings |= {"use_absolute_position_embeddings": True}
    torch.manual_seed(0)
    if case.startswith("pretrain"):
        model = Beitv2ForPreTraining(Beitv2Config(**settings, vocab_size=512, early_layers=3))
    else:
        settings |= PER_BLOCK | {"use_mean_pooling": True, "num_labels": 100}
        model = Beitv2ForImageClassification(Beitv2Config(**settings))
    ours, seen = model.state_dict(), set()
    for key, expected in named_statistics(case).items():
        converted = rename_beitv2({key: torch.zeros(expected["shape"])})
        seen |= set(converted)
        tensor = torch.cat([ours[name].flatten() for name in converted])
        assert tensor.numel() == math.prod(expected["shape"]), key
        count, std = tensor.numel(), expected["std"]
        # Eight standard errors of the difference of two draws.
        assert tensor.mean().item() == pytest.approx(expected["mean"], abs=1e-8 + 12 * std / count**0.5), key
        assert tensor.std().item() == pytest.approx(std, rel=0.02 + 8 / count**0.5, abs=1e-7), key
        # Bounded distributions show their bound; a normal one has no sharp largest value.
        bounded = expected["absmax"] < 2 * std
        if bounded:
            assert tensor.abs().max().item() == pytest.approx(expected["absmax"], rel=20 / count), key
        elif std > 0:
            assert tensor.abs().max().item() > 2.2 * std, key
    assert set(ours) == seen
