"""dBOT's models against numbers that the original code printed (tests/golden/dbot)."""

import json

import pytest
import torch

from hf_mim import (
    Beitv2Config,
    Beitv2ForImageClassification,
    Beitv2ForPreTraining,
    DBotConfig,
    DBotForImageClassification,
    DBotForPreTraining,
    DBotModel,
)
from hf_mim.hub.convert.beitv2 import rename_beitv2
from hf_mim.hub.convert.dbot import rename_dbot
from hf_mim.modeling.layers import resize_position_table
from hf_mim.modeling.modeling_dbot import sincos_positions
from hf_mim.modeling.modeling_dbot_pretraining import normalize_targets
from tests.testing.paths import GOLDEN


SIZES = {
    "p8": dict(hidden_size=48, image_size=32, patch_size=8, decoder_num_attention_heads=4),
    "p16": dict(hidden_size=64, image_size=64, patch_size=16, decoder_num_attention_heads=8, mask_ratio=0.6),
}
VARIANTS = [(depth, norm, scaled) for depth in ("depthN", "depth0") for norm in (0, 1) for scaled in (0, 1)]


def within(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def tiny_config(size: str, **overrides) -> DBotConfig:
    settings = dict(num_hidden_layers=3, num_attention_heads=4, decoder_hidden_size=32, decoder_num_hidden_layers=2)
    return DBotConfig(**settings | SIZES[size] | overrides)


def part_of(golden: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{part}."): v for k, v in golden.items() if k.startswith(f"{part}.")}


def encoder_only(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in official.items() if not k.startswith("decoder_") and k != "mask_token"}


@pytest.fixture(scope="module", params=SIZES)
def size(request):
    return request.param


@pytest.fixture(scope="module")
def golden(size, dbot_golden):
    return dbot_golden(f"pretrain_{size}")


def pretraining_model(size, golden, **overrides) -> DBotForPreTraining:
    model = DBotForPreTraining(tiny_config(size, **overrides)).eval()
    model.load_state_dict(rename_dbot(part_of(golden, "student")), strict=True)
    return model


class TestPreTraining:
    @torch.no_grad()
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_encoder(self, size, golden, attention):
        encoder = pretraining_model(size, golden).dbot
        encoder.set_attn_implementation(attention)
        images, noise = golden["images"], golden["noise"]
        output = encoder(images, noise, output_hidden_states=True)
        within(output.last_hidden_state, golden["latent"])
        for i, state in enumerate(output.hidden_states[1:]):
            within(state, golden[f"encoder_block_out.{i}"])
        assert torch.equal(output.ids_restore, golden["ids_restore"])
        assert torch.equal(output.mask.float(), golden["mask_with_cls"][:, 1:])
        kept = golden["ids_keep"].shape[1]
        assert torch.equal(output.ids_restore.argsort(dim=1)[:, :kept], golden["ids_keep"])
        within(encoder.embeddings.patch_embeddings(images), golden["patch_tokens"])

    @torch.no_grad()
    def test_encoder_that_keeps_all_patches(self, size, golden):
        encoder = pretraining_model(size, golden, mask_ratio=0).dbot
        within(encoder(golden["images"], golden["noise"]).last_hidden_state, golden["latent_ratio0"])

    @torch.no_grad()
    def test_student_as_teacher(self, size, golden):
        encoder = pretraining_model(size, golden).dbot
        within(encoder.teach(golden["images"]), golden["student_as_teacher_ln0"])
        within(encoder.teach(golden["images"], layernorm=True), golden["student_as_teacher_ln1"])
        within(encoder(golden["images"]).last_hidden_state, golden["student_as_teacher_ln1"])

    @torch.no_grad()
    def test_prediction(self, size, golden):
        """Of every token, and of those that carry loss alone."""
        model = pretraining_model(size, golden)
        within(model.decoder(golden["latent"], golden["ids_restore"], (4, 4)), golden["pred"])
        output = model(golden["images"], golden["noise"])
        with_loss = golden["mask_with_cls"].bool()
        within(output.prediction.flatten(0, 1), golden["pred"][with_loss])
        assert output.loss is None and output.loss_cls is None and output.loss_patch is None

    @torch.no_grad()
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("depth, norm, scaled", VARIANTS)
    def test_loss(self, size, golden, depth, norm, scaled, attention):
        model = pretraining_model(size, golden, norm_targets=bool(scaled))
        model.set_attn_implementation(attention)
        labels = golden[f"target.{depth}.tlayernorm{norm}"]
        output = model(golden["images"], golden["noise"], labels)
        expected = golden[f"loss.{depth}.tlayernorm{norm}.norm_feature_loss{scaled}"].item()
        assert output.loss.item() == pytest.approx(expected, abs=1e-5)

    @torch.no_grad()
    def test_loss_of_each_token(self, size, golden):
        labels = golden["target.depthN.tlayernorm0"]
        within(normalize_targets(labels), golden["target_normalised.depthN.tlayernorm0"])
        output = pretraining_model(size, golden)(golden["images"], golden["noise"], labels)
        errors = golden["loss_per_token.depthN.tlayernorm0.norm_feature_loss1"]
        within(output.loss_cls, errors[:, 0].mean())
        within(output.loss_patch, errors[:, 1:][output.mask].mean())

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_gradients(self, size, golden, attention):
        model = pretraining_model(size, golden)
        model.set_attn_implementation(attention)
        model(golden["images"], golden["noise"], golden["target.depthN.tlayernorm0"]).loss.backward()
        expected = rename_dbot(part_of(golden, "grad"))
        assert set(expected) == {name for name, _ in model.named_parameters()}
        for name, gradient in expected.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("depth", ["depthN", "depth0"])
    def test_teacher(self, dbot_golden, depth):
        """Of two blocks, and of none."""
        golden = dbot_golden("pretrain_p16")
        weights = part_of(golden, "teacher")
        if depth == "depth0":
            weights = {k: v for k, v in weights.items() if not k.startswith("blocks.")}
        teacher = DBotModel(tiny_config("p16", num_hidden_layers=2 if depth == "depthN" else 0)).eval()
        teacher.load_state_dict(rename_dbot(weights, encoder_prefix=""), strict=True)
        within(teacher.teach(golden["images"]), golden[f"target.{depth}.tlayernorm0"])
        within(teacher.teach(golden["images"], layernorm=True), golden[f"target.{depth}.tlayernorm1"])


class TestFineTuning:
    @pytest.fixture
    def fine_tuned(self, size, dbot_golden):
        return dbot_golden(f"finetune_{size}")

    @staticmethod
    def build(size, weights, **overrides) -> DBotForImageClassification:
        config = tiny_config(
            size,
            trainable_position_embeddings=True,
            use_mean_pooling="norm.weight" not in weights,
            num_labels=len(weights["head.bias"]),
            **overrides,
        )
        model = DBotForImageClassification(config).eval()
        model.load_state_dict(rename_dbot(weights, trainable_positions=True), strict=True)
        return model

    @torch.no_grad()
    @pytest.mark.parametrize("size, head", [("p8", "gp"), ("p16", "gp"), ("p16", "cls")], indirect=["size"])
    def test_independent_weights(self, size, fine_tuned, head):
        model = self.build(size, part_of(fine_tuned, f"{head}.model"))
        within(model(fine_tuned["images"]).logits, fine_tuned[f"{head}.logits"])
        within(model.dbot(fine_tuned["images"]).pooler_output, fine_tuned[f"{head}.features"])

    def starting_weights(self, golden, fine_tuned, head, case):
        """What the original has after it loaded a pre-training checkpoint."""
        weights = encoder_only(part_of(golden, "student"))
        if head == "gp":
            weights = {k: v for k, v in weights.items() if not k.startswith("norm.")}
        width = weights["cls_token"].shape[2]
        weights["pos_embed"] = sincos_positions(width, (4, 4))
        new = part_of(fine_tuned, f"{head}.{case}")
        return weights | {k: v for k, v in new.items() if k.startswith(("head.", "fc_norm."))}

    @torch.no_grad()
    @pytest.mark.parametrize("trainable", [True, False])
    @pytest.mark.parametrize("head", ["gp", "cls"])
    def test_from_pretraining(self, size, golden, fine_tuned, head, trainable):
        weights = self.starting_weights(golden, fine_tuned, head, "from_pretrain")
        model = self.build(size, weights)
        if not trainable:
            model.dbot.embeddings.position_embeddings = None
        within(model(fine_tuned["images"]).logits, fine_tuned[f"{head}.from_pretrain.logits"])
        features = model.dbot(fine_tuned["images"]).pooler_output
        within(features, fine_tuned[f"{head}.from_pretrain.features"])

    @torch.no_grad()
    @pytest.mark.parametrize("head", ["gp", "cls"])
    def test_larger_images(self, size, golden, fine_tuned, head):
        """With a table that is interpolated at every call, and with one that is resized for good."""
        model = self.build(size, self.starting_weights(golden, fine_tuned, head, "large"))
        images, expected = fine_tuned["images_large"], fine_tuned[f"{head}.large.logits"]
        within(model(images).logits, expected)
        model.resize_position_tables(images.shape[-1])
        assert model.config.image_size == images.shape[-1]
        table = model.dbot.embeddings.position_embeddings
        torch.testing.assert_close(table.data, fine_tuned[f"{head}.large.pos_embed"], rtol=0, atol=1e-5)
        within(model(images).logits, expected)


class TestPositions:
    @pytest.mark.parametrize("width, side", [(40, 6), (48, 4), (64, 3)])
    def test_tables(self, dbot_golden, width, side):
        expected = dbot_golden("pos_embed")[f"sincos.d{width}.g{side}.cls1"]
        torch.testing.assert_close(sincos_positions(width, (side, side))[0], expected, rtol=0, atol=1e-6)

    def test_large_tables(self):
        for name, expected in SIZES_JSON["position_tables"].items():
            width, side = (int(part[1:]) for part in name.split("_")[:2])
            table = sincos_positions(width, (side, side))[0].double()
            assert list(table.shape) == expected["shape"]
            assert table.sum().item() == pytest.approx(expected["sum"], rel=1e-9)
            assert table.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-9)
            assert table.square().sum().item() == pytest.approx(expected["sq_sum"], rel=1e-9)

    @pytest.mark.parametrize("width, old, new", [(48, 4, 7), (32, 14, 7), (32, 14, 20)])
    def test_interpolation(self, dbot_golden, width, old, new):
        golden = part_of(dbot_golden("pos_embed"), f"interp.random.d{width}.{old}to{new}")
        resized = resize_position_table(golden["in"], (old, old), (new, new))
        torch.testing.assert_close(resized, golden["out"], rtol=0, atol=1e-5)


SIZES_JSON = json.loads((GOLDEN / "dbot" / "sizes.json").read_text())


@torch.no_grad()
def test_number_of_kept_patches():
    settings = dict(hidden_size=4, num_attention_heads=1, num_hidden_layers=0, patch_size=1, num_channels=1)
    for patches, ratio, kept in SIZES_JSON["keep_lengths"]:
        encoder = DBotModel(DBotConfig(**settings, image_size=(1, patches), mask_ratio=ratio))
        output = encoder(torch.zeros(1, 1, 1, patches), torch.rand(1, patches))
        assert output.last_hidden_state.shape[1] == 1 + kept, (patches, ratio)
        assert (~output.mask).sum() == kept


BRANCH = {
    "beit_branch_relpos": dict(hidden_size=48, num_hidden_layers=3),
    "beit_branch_abspos": dict(
        hidden_size=64,
        num_hidden_layers=2,
        use_shared_relative_position_bias=False,
        use_absolute_position_embeddings=True,
        layer_scale_init_value=1e-5,
    ),
}


@pytest.mark.parametrize("case", BRANCH)
class TestSymmetricVariant:
    """The `beit` branch of the original code is a BEiT v2 model that predicts features."""

    @staticmethod
    def config(case, **overrides) -> Beitv2Config:
        settings = dict(num_attention_heads=4, image_size=32, patch_size=8, head_layers=0, target_dim=40)
        return Beitv2Config(**settings | BRANCH[case] | overrides)

    def build(self, golden, case, loss: str) -> Beitv2ForPreTraining:
        model = Beitv2ForPreTraining(self.config(case, regression_loss=loss)).eval()
        weights = rename_beitv2(part_of(golden, "model"))
        model.load_state_dict(weights, strict=True)
        return model

    @torch.no_grad()
    @pytest.mark.parametrize("loss", ["negcosine", "l2", "l1", "smooth_l1"])
    def test_losses(self, dbot_golden, case, loss):
        golden = dbot_golden(case)
        model = self.build(golden, case, loss)
        mask = golden["bool_masked_pos"].bool()
        output = model(golden["images"], mask, labels=golden["teacher_tokens"])
        within(output.logits, golden["masked_tokens"])
        expected = golden["loss." + loss.replace("smooth_l1", "smoothl1,2")].item()
        assert output.loss.item() == pytest.approx(expected, abs=1e-5)
        assert output.loss == output.loss_mim and output.accuracy_mim is None
        assert model(golden["images"], mask & False, labels=golden["teacher_tokens"]).loss == 0

    @torch.no_grad()
    def test_tokens(self, dbot_golden, case):
        golden = dbot_golden(case)
        model = self.build(golden, case, "negcosine")
        images, mask = golden["images"], golden["bool_masked_pos"].bool()
        within(model.beitv2(images, mask).last_hidden_state, golden["hidden_normed"])
        within(model.beitv2(images).last_hidden_state, golden["hidden_normed_unmasked"])
        everything = torch.arange(mask.numel())
        within(model(images, mask, mask_indices=everything).logits, golden["all_tokens"].flatten(0, 1))

    @torch.no_grad()
    def test_fine_tuning(self, dbot_golden, case):
        golden = dbot_golden(case)
        encoder = {
            k: v
            for k, v in part_of(golden, "model").items()
            if not k.startswith(("norm.", "lm_head.")) and k != "mask_token"
        }
        model = Beitv2ForImageClassification(self.config(case, use_mean_pooling=True, num_labels=10)).eval()
        head = {k: v for k, v in part_of(golden, "finetune").items() if k != "logits"}
        model.load_state_dict(rename_beitv2(encoder | head), strict=True)
        within(model(golden["images"]).logits, golden["finetune.logits"])
