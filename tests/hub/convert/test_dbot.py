"""Official dBOT checkpoints through `convert_checkpoint`."""

from argparse import Namespace

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    BeitForImageClassification,
    BeitModel,
    ViTForImageClassification,
    ViTModel,
)

from hf_mim import (
    Beitv2ForImageClassification,
    Beitv2ForPreTraining,
    Beitv2ImageProcessorPil,
    DBotForImageClassification,
    DBotForPreTraining,
    DBotImageProcessorPil,
    DBotModel,
    convert_checkpoint,
)
from hf_mim.hub.convert.checkpoint import save_converted
from hf_mim.hub.convert.dbot import likeness_to_sincos
from hf_mim.modeling.layers import resize_position_table
from hf_mim.modeling.modeling_dbot import sincos_positions
from tests.testing.official_listings import (
    DBOT,
    assert_nothing_lost,
    dbot_checkpoint,
    dropped_from,
    ibot_checkpoints,
    weights_of,
    within,
)


MODELS = {
    "pretrain": DBotForPreTraining,
    "teacher": DBotModel,
    "finetune": DBotForImageClassification,
    "beit_pretrain": Beitv2ForPreTraining,
    "beit_finetune": Beitv2ForImageClassification,
}


class TestPublishedLayouts:
    @pytest.mark.parametrize("name", DBOT)
    def test_all_tensors_are_used(self, name):
        official = dbot_checkpoint(name)
        converted = convert_checkpoint({"model": official})
        assert_nothing_lost(official, converted)
        model, config = converted.model, converted.config
        kind = next(kind for kind in reversed(MODELS) if name.startswith(kind))
        size = name.split("_")[2 if kind.startswith("beit") else 1]
        assert type(model) is MODELS[kind]
        assert config.num_attention_heads == {"base": 12, "large": 16, "huge": 16}[size]
        assert config.image_size == 224 and config.patch_size == (14 if size == "huge" else 16)
        dropped = dropped_from(official, converted)
        if kind == "pretrain":
            assert dropped == {"pos_embed", "decoder_pos_embed"} and not config.trainable_position_embeddings
            assert (config.decoder_num_attention_heads, config.target_dim) == (16, config.hidden_size)
        elif kind == "teacher":
            assert dropped == {"pos_embed"} and not config.trainable_position_embeddings
        elif kind == "finetune":
            assert not dropped and config.trainable_position_embeddings
            assert config.use_mean_pooling == name.endswith("global_pool")
        elif kind == "beit_pretrain":
            assert config.regression_loss == "negcosine" and config.head_layers == 0
            assert config.target_dim == {"base": 512, "large": 768, "huge": 768}[size]
        processor = converted.image_processor
        assert isinstance(processor, Beitv2ImageProcessorPil if kind.startswith("beit") else DBotImageProcessorPil)
        assert processor.size["shortest_edge"] == 256 and processor.crop_size["height"] == 224
        assert list(processor.image_mean) == [0.485, 0.456, 0.406]

    def test_teacher_without_blocks(self):
        """What the published commands for ViT-L and ViT-H begin with."""
        official = dbot_checkpoint("teacher_huge")
        official = {key: tensor for key, tensor in official.items() if not key.startswith("blocks.")}
        assert len(official) == 6
        converted = convert_checkpoint(official)
        assert_nothing_lost(official, converted)
        assert type(converted.model) is DBotModel and converted.config.num_hidden_layers == 0

    @pytest.mark.parametrize(
        "name", ["pretrain_base", "teacher_base", "finetune_base_cls_token", "beit_finetune_base"]
    )
    def test_family_may_be_named(self, name):
        official = dbot_checkpoint(name)
        assert type(convert_checkpoint(official, "dbot").model) is type(convert_checkpoint(official).model)

    def test_unused_norm(self):
        """The original's classifier on the mean patch keeps the norm of pre-training, and does not use it."""
        official = dbot_checkpoint("finetune_base_global_pool")
        official |= {f"norm.{kind}": torch.empty(768, device="meta") for kind in ("weight", "bias")}
        converted = convert_checkpoint(official)
        assert_nothing_lost(official, converted)
        assert dropped_from(official, converted) == {"norm.weight", "norm.bias"}

    def test_larger_images(self):
        official = dbot_checkpoint("finetune_huge_global_pool")
        official["pos_embed"] = sincos_positions(1280, (32, 32))
        converted = convert_checkpoint(official)
        assert converted.config.image_size == 448
        assert converted.image_processor.size["shortest_edge"] == converted.image_processor.crop_size["width"] == 448

    def test_teacher_of_another_width(self):
        official = dbot_checkpoint("pretrain_base")
        official |= {
            "decoder_predp.weight": torch.empty(1280, 512, device="meta"),
            "decoder_predp.bias": torch.zeros(1280),
        }
        assert convert_checkpoint(official).config.target_dim == 1280


def part_of(golden: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return weights_of(golden, f"{part}.")


def with_positions(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The copies in this repository are without the fixed tables."""
    tables = {"pos_embed": sincos_positions(weights["cls_token"].shape[2], (4, 4))}
    if "mask_token" in weights:
        tables["decoder_pos_embed"] = sincos_positions(weights["mask_token"].shape[2], (4, 4))
    return tables | weights


class TestGoldenOutputs:
    @torch.no_grad()
    @pytest.mark.parametrize("name, decoder_heads, ratio", [("p8", 4, 0.75), ("p16", 8, 0.6)])
    def test_pretraining(self, dbot_golden, name, decoder_heads, ratio):
        golden = dbot_golden(f"pretrain_{name}")
        official = with_positions(part_of(golden, "student"))
        converted = convert_checkpoint(
            official, num_attention_heads=4, decoder_num_attention_heads=decoder_heads, mask_ratio=ratio
        )
        assert_nothing_lost(official, converted)
        labels = golden["target.depthN.tlayernorm0"]
        output = converted.model(golden["images"], golden["noise"], labels)
        within(output.prediction.flatten(0, 1), golden["pred"][golden["mask_with_cls"].bool()])
        expected = golden["loss.depthN.tlayernorm0.norm_feature_loss1"].item()
        assert output.loss.item() == pytest.approx(expected, abs=1e-5)
        encoder = converted.model.dbot
        within(encoder(golden["images"]).last_hidden_state, golden["student_as_teacher_ln1"])

    @torch.no_grad()
    @pytest.mark.parametrize("depth", ["depthN", "depth0"])
    def test_teacher(self, dbot_golden, depth):
        golden = dbot_golden("pretrain_p16")
        official = part_of(golden, "teacher")
        if depth == "depth0":
            official = {key: tensor for key, tensor in official.items() if not key.startswith("blocks.")}
        converted = convert_checkpoint(official, num_attention_heads=4)
        assert_nothing_lost(official, converted)
        assert not converted.config.trainable_position_embeddings
        within(converted.model.teach(golden["images"]), golden[f"target.{depth}.tlayernorm0"])
        within(converted.model(golden["images"]).last_hidden_state, golden[f"target.{depth}.tlayernorm1"])

    @torch.no_grad()
    @pytest.mark.parametrize("size, head", [("p8", "gp"), ("p16", "gp"), ("p16", "cls")])
    def test_fine_tuned(self, dbot_golden, size, head):
        golden = dbot_golden(f"finetune_{size}")
        official = part_of(golden, f"{head}.model")
        # The weights of the one with the CLS token are random ones, its positions too.
        converted = convert_checkpoint(official, "dbot", num_attention_heads=4)
        assert_nothing_lost(official, converted)
        assert type(converted.model) is DBotForImageClassification
        within(converted.model(golden["images"]).logits, golden[f"{head}.logits"])

    @torch.no_grad()
    @pytest.mark.parametrize("case", ["beit_branch_relpos", "beit_branch_abspos"])
    def test_symmetric(self, dbot_golden, case):
        golden = dbot_golden(case)
        official, mask = part_of(golden, "model"), golden["bool_masked_pos"].bool()
        converted = convert_checkpoint(official, "dbot", num_attention_heads=4)
        assert_nothing_lost(official, converted)
        output = converted.model(golden["images"], mask, labels=golden["teacher_tokens"])
        within(output.logits, golden["masked_tokens"])
        assert output.loss.item() == pytest.approx(golden["loss.negcosine"].item(), abs=1e-5)

        head = {key: tensor for key, tensor in part_of(golden, "finetune").items() if key != "logits"}
        official = {k: v for k, v in official.items() if not k.startswith(("norm.", "lm_head.", "mask_token"))} | head
        converted = convert_checkpoint(official, num_attention_heads=4)
        assert_nothing_lost(official, converted)
        within(converted.model(golden["images"]).logits, golden["finetune.logits"])

    @torch.no_grad()
    def test_training_trace(self, dbot_golden):
        golden = dbot_golden("trace")
        official = with_positions(part_of(golden, "initial"))
        model = convert_checkpoint(official, num_attention_heads=4, decoder_num_attention_heads=4).model
        encoder = {k: v for k, v in official.items() if not k.startswith(("decoder_", "mask_token", "blocks."))}
        teacher = convert_checkpoint(encoder, num_attention_heads=4).model
        images = golden["samples"][0]
        loss = model(images, golden["noise"][0], teacher.teach(images)).loss
        assert loss.item() == pytest.approx(golden["loss"][0].item(), abs=1e-5)


class TestFolders:
    @torch.no_grad()
    def test_pretraining(self, dbot_golden, tmp_path):
        golden = dbot_golden("pretrain_p8")
        args = Namespace(norm_feature_loss=False, sdpr=0.1)
        official = {"model": with_positions(part_of(golden, "student")), "args": args, "epoch": 799, "scaler": {}}
        torch.save(official, tmp_path / "official.pth")
        heads = {"num_attention_heads": 4, "decoder_num_attention_heads": 4}
        converted = convert_checkpoint(tmp_path / "official.pth", **heads)
        assert not converted.config.norm_targets and converted.config.drop_path_rate == 0.1
        save_converted(converted, tmp_path / "out")
        model = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
        assert type(model) is DBotForPreTraining
        output = model(golden["images"], golden["noise"], golden["target.depthN.tlayernorm0"])
        expected = golden["loss.depthN.tlayernorm0.norm_feature_loss0"].item()
        assert output.loss.item() == pytest.approx(expected, abs=1e-5)

        save_converted(converted, tmp_path / "native", native=True)
        encoder = AutoModel.from_pretrained(tmp_path / "native")
        assert type(encoder) is ViTModel
        within(encoder(golden["images"]).last_hidden_state, golden["student_as_teacher_ln1"])
        full = DBotForPreTraining.from_pretrained(tmp_path / "native" / "pretraining")
        within(full(golden["images"], golden["noise"]).prediction, output.prediction)

    @torch.no_grad()
    @pytest.mark.parametrize("depth", ["depthN", "depth0"])
    def test_teacher(self, dbot_golden, tmp_path, depth):
        golden = dbot_golden("pretrain_p16")
        official = part_of(golden, "teacher")
        if depth == "depth0":
            official = {key: tensor for key, tensor in official.items() if not key.startswith("blocks.")}
        save_converted(convert_checkpoint(official, num_attention_heads=4), tmp_path / "out", native=True)
        encoder = AutoModel.from_pretrained(tmp_path / "out")
        assert type(encoder) is ViTModel and not (tmp_path / "out" / "pretraining").exists()
        within(encoder(golden["images"]).last_hidden_state, golden[f"target.{depth}.tlayernorm1"])

    @torch.no_grad()
    @pytest.mark.parametrize("size, head", [("p8", "gp"), ("p16", "cls")])
    def test_classifiers(self, dbot_golden, tmp_path, size, head):
        golden = dbot_golden(f"finetune_{size}")
        converted = convert_checkpoint(part_of(golden, f"{head}.model"), "dbot", num_attention_heads=4)
        save_converted(converted, tmp_path / "ours")
        save_converted(converted, tmp_path / "native", native=True)
        native_class = BeitForImageClassification if head == "gp" else ViTForImageClassification
        for folder, model_class in (("ours", DBotForImageClassification), ("native", native_class)):
            model = AutoModelForImageClassification.from_pretrained(tmp_path / folder)
            assert type(model) is model_class
            within(model(golden["images"]).logits, golden[f"{head}.logits"])

    @torch.no_grad()
    def test_symmetric(self, dbot_golden, tmp_path):
        golden = dbot_golden("beit_branch_relpos")
        save_converted(convert_checkpoint(part_of(golden, "model"), "dbot"), tmp_path / "out", native=True)
        encoder = AutoModel.from_pretrained(tmp_path / "out")
        assert type(encoder) is BeitModel
        within(encoder(golden["images"]).last_hidden_state, golden["hidden_normed_unmasked"])
        full = AutoModelForPreTraining.from_pretrained(tmp_path / "out" / "pretraining")
        mask = golden["bool_masked_pos"].bool()
        within(full(golden["images"], mask).logits, golden["masked_tokens"])


class TestPositions:
    @pytest.fixture
    def student(self, dbot_golden):
        return with_positions(part_of(dbot_golden("pretrain_p8"), "student"))

    @torch.no_grad()
    def test_other_positions_are_trainable(self, student, dbot_golden):
        """A table that is not the fixed one is kept as it is."""
        golden = dbot_golden("pretrain_p8")
        fixed = convert_checkpoint(student, num_attention_heads=4, decoder_num_attention_heads=4)
        student["pos_embed"] = 1.01 * student["pos_embed"]
        moved = convert_checkpoint(student, num_attention_heads=4, decoder_num_attention_heads=4)
        assert moved.config.trainable_position_embeddings and len(moved.dropped) == 1
        assert torch.equal(moved.model.dbot.embeddings.position_embeddings, student["pos_embed"])
        outputs = [c.model.dbot(golden["images"]).last_hidden_state for c in (fixed, moved)]
        assert 1e-5 < (outputs[0] - outputs[1]).abs().max() < 0.1

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, student, dtype):
        student = {key: tensor.to(dtype) for key, tensor in student.items()}
        converted = convert_checkpoint(student, num_attention_heads=4, decoder_num_attention_heads=4)
        assert not converted.config.trainable_position_embeddings and converted.model.dtype == torch.float32

    def test_positions_of_the_decoder(self, student):
        student["decoder_pos_embed"] = student["decoder_pos_embed"].flip(2)
        with pytest.raises(ValueError, match="decoder_pos_embed is not the fixed table"):
            convert_checkpoint(student, num_attention_heads=4, decoder_num_attention_heads=4)

    def test_what_tells_from_ibot(self):
        """The table: the names of encoders and of classifiers on the CLS token are the same."""
        ibot = ibot_checkpoints()
        for name in ("teacher_encoder", "classifier"):
            assert likeness_to_sincos(ibot[name]["pos_embed"]) < 0.1
            assert convert_checkpoint(ibot[name]).config.model_type == "ibot"
        dbot = dbot_checkpoint("finetune_base_cls_token")
        assert 0.99 < likeness_to_sincos(dbot["pos_embed"]) < 0.999
        assert convert_checkpoint(dbot).config.model_type == "dbot"
        assert convert_checkpoint(dbot, "ibot").config.model_type == "ibot"
        dbot["pos_embed"] = resize_position_table(dbot["pos_embed"], (14, 14), (28, 28))
        assert convert_checkpoint(dbot).config.model_type == "dbot"
        dbot["pos_embed"] = 0.8 * torch.randn(dbot["pos_embed"].shape) + 0.6 * sincos_positions(768, (28, 28))
        with pytest.raises(ValueError, match="sines and cosines, but not closely: give the family, ibot or dbot"):
            convert_checkpoint(dbot)
        for family in ("ibot", "dbot"):
            assert convert_checkpoint(dbot, family).config.model_type == family


class TestMistakes:
    @pytest.fixture
    def student(self, dbot_golden):
        return with_positions(part_of(dbot_golden("pretrain_p8"), "student"))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"pos_embed": None}, "no tensor pos_embed"),
            ({"blocks.2.norm2.weight": None}, r"missing blocks\.2\.norm2\.weight"),
            ({"decoder_norm.bias": None}, r"missing decoder_norm\.bias"),
            ({"decoder_blocks.1.attn.qkv.bias": None}, r"missing decoder_blocks\.1\.attn\.qkv\.bias$"),
            ({"decoder_predp.weight": None}, r"no tensor decoder_predp\.weight"),
            (
                {"decoder_predp.bias": torch.zeros(47)},
                r"decoder_predp\.bias gives .* shape \[47\], \[48\] is wanted",
            ),
            ({"blocks.0.gamma_1": torch.zeros(48)}, r"not used blocks\.0\.gamma_1"),
            ({"head.weight": torch.zeros(10, 48)}, r"not used head\.weight"),
            ({"pos_embed": torch.zeros(17, 48)}, r"pos_embed has shape \[17, 48\], 3 dimensions are wanted"),
            ({"decoder_pos_embed": torch.zeros(())}, "decoder_pos_embed is not the fixed table"),
            ({"register_tokens": torch.zeros(48)}, "not used register_tokens"),
            ({"decoder_pred.weight": torch.zeros(192, 32)}, "predicts pixels .*MAE"),
        ],
    )
    def test_tensors(self, student, change, message):
        student = {key: tensor for key, tensor in (student | change).items() if tensor is not None}
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(student, num_attention_heads=4, decoder_num_attention_heads=4)

    def test_heads(self, student):
        with pytest.raises(ValueError, match="num_attention_heads must be given"):
            convert_checkpoint(student)
        with pytest.raises(ValueError, match="its decoder is 32 wide.*give decoder_num_attention_heads"):
            convert_checkpoint(student, num_attention_heads=4)

    def test_other_families(self, student):
        for family in ("beitv2", "vqkd"):
            with pytest.raises(ValueError, match=f"family dbot, not {family}"):
                convert_checkpoint(student, family)
        with pytest.raises(ValueError, match="not used .*decoder"):
            convert_checkpoint(student, "ibot", num_attention_heads=4)
        with pytest.raises(ValueError, match="family must be one of"):
            convert_checkpoint(student, "mae")

    def test_positions_that_are_no_square(self, student):
        student["pos_embed"] = student["pos_embed"][:, :13]
        with pytest.raises(ValueError, match=r"give image_size=\[height, width\]"):
            convert_checkpoint(student, num_attention_heads=4, decoder_num_attention_heads=4)
