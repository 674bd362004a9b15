"""Official BEiT v2 checkpoints through `convert_checkpoint`."""

from argparse import Namespace

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    BeitForImageClassification,
    BeitModel,
)

from hf_mim import (
    Beitv2ForImageClassification,
    Beitv2ForPreTraining,
    Beitv2ImageProcessorPil,
    Beitv2Model,
    convert_checkpoint,
)
from hf_mim.hub.convert.beitv2 import relative_position_index
from hf_mim.hub.convert.checkpoint import save_converted
from hf_mim.hub.convert.families import matching_families
from tests.testing.official_listings import (
    BEITV2,
    DBOT,
    VQKD,
    assert_nothing_lost,
    beitv2_checkpoint,
    dbot_checkpoint,
    dropped_from,
    ibot_checkpoints,
    ibot_swin_checkpoints,
    vqkd_checkpoint,
    weights_of,
    within,
)


def test_every_published_layout_is_of_one_family():
    """Fine-tuned models of dBOT's symmetric variant are those of BEiT v2."""
    checkpoints = {f"beitv2 {name}": beitv2_checkpoint(name) for name in BEITV2}
    checkpoints |= {
        f"vqkd {name} {teacher}": vqkd_checkpoint(name, teacher) for name in VQKD for teacher in ("clip", None)
    }
    checkpoints |= {f"ibot {name}": weights for name, weights in ibot_checkpoints().items()}
    checkpoints |= {f"ibot_swin {name}": weights for name, weights in ibot_swin_checkpoints().items()}
    for name in DBOT:
        family = "beitv2" if name.startswith("beit_finetune") else "dbot"
        checkpoints[f"{family} {name}"] = dbot_checkpoint(name)
    wrong = {
        name: found
        for name, weights in checkpoints.items()
        if (found := matching_families(weights)) != [name.split()[0]]
    }
    assert not wrong and len(checkpoints) == 11 + 6 + 5 + 2 + 18


class TestPublishedLayouts:
    @pytest.mark.parametrize("name", BEITV2)
    def test_all_tensors_are_used(self, name):
        official, listing = beitv2_checkpoint(name), BEITV2[name]
        converted = convert_checkpoint(official)
        assert_nothing_lost(official, converted)
        config, size = converted.config, name.split("_")[1]
        assert sum(p.numel() for p in converted.model.parameters()) == listing["num_params"]
        assert all(key.endswith("relative_position_index") for key in dropped_from(official, converted))
        assert type(converted.model) is (
            Beitv2ForPreTraining if name.startswith("pretrain") else Beitv2ForImageClassification
        )
        assert config.num_attention_heads == {"base": 12, "large": 16}[size]
        assert config.image_size == 224 and config.patch_size == 16 and config.regression_loss is None
        if name.startswith("pretrain"):
            expected = ({"base": 9, "large": 21}[size], 2) if "_cls_pt" in name and "no_" not in name else (None, 0)
            assert config.head_layers == expected[1]
            assert expected[0] is None or config.early_layers == expected[0]
            assert config.vocab_size == 8192 and config.shared_lm_head == ("unshared" not in name)
        else:
            assert config.num_labels == 1000 and config.use_mean_pooling == ("clspool" not in name)

    def test_encoder_alone(self):
        official = beitv2_checkpoint("pretrain_base_no_cls_pt")
        official = {key: tensor for key, tensor in official.items() if not key.startswith("lm_head.")}
        converted = convert_checkpoint({"module": {f"encoder.{key}": tensor for key, tensor in official.items()}})
        assert type(converted.model) is Beitv2Model and converted.model.embeddings.mask_token is not None
        del official["mask_token"]
        assert convert_checkpoint(official).model.embeddings.mask_token is None

    def test_image_processor(self):
        official = beitv2_checkpoint("finetune_base_rel_pos_per_layer")
        processor = convert_checkpoint(official).image_processor
        assert isinstance(processor, Beitv2ImageProcessorPil)
        assert processor.size["shortest_edge"] == 256 and processor.crop_size["height"] == 224
        assert list(processor.image_mean) == [0.485, 0.456, 0.406] and list(processor.image_std) == [
            0.229,
            0.224,
            0.225,
        ]
        for key in official:
            if key.endswith("index"):
                official[key] = relative_position_index((24, 24))
            elif key.endswith("table"):
                official[key] = torch.empty(47 * 47 + 3, 12, device="meta")
        larger = convert_checkpoint(official)
        assert larger.config.image_size == 384
        assert larger.image_processor.size["shortest_edge"] == larger.image_processor.crop_size["width"] == 384


# What neither names nor shapes tell of the tiny models.
HEADS = {"num_attention_heads": 4}
PRETRAINING = {
    "pretrain_relpos_clspt": {"early_layers": 3},
    "pretrain_abspos_clspt": HEADS | {"early_layers": 2},
    "pretrain_relpos_abspos_unshared_head": {"early_layers": 2},
    "pretrain_plain_nonsquare": {"family": "beitv2"},
    "pretrain_plain_no_layerscale": HEADS | {"family": "beitv2"},
}
FINE_TUNING = {
    "finetune_perlayer_meanpool": {},
    "finetune_perlayer_clspool": {},
    "finetune_shared_meanpool": {},
    "finetune_abspos_clspool": HEADS,
    "finetune_nonsquare_noqkvbias": {"image_size": [32, 48]},
}


class TestGoldenOutputs:
    @torch.no_grad()
    @pytest.mark.parametrize("name", PRETRAINING)
    def test_pretraining(self, beitv2_golden, name):
        golden = beitv2_golden(name)
        converted = convert_checkpoint(weights_of(golden), **PRETRAINING[name])
        assert_nothing_lost(weights_of(golden), converted)
        output = converted.model(golden["in/pixel_values"], golden["in/bool_masked_pos"], labels=golden["in/codes"])
        within(output.loss, golden["out/loss"])
        within(output.logits, golden["out/logits_final_masked"])
        if converted.config.head_layers:
            within(output.logits_cls, golden["out/logits_early_masked"])

    @torch.no_grad()
    @pytest.mark.parametrize("name", FINE_TUNING)
    def test_fine_tuning(self, beitv2_golden, name):
        golden = beitv2_golden(name)
        converted = convert_checkpoint({"model": weights_of(golden)}, **FINE_TUNING[name])
        assert_nothing_lost(weights_of(golden), converted)
        within(converted.model(golden["in/pixel_values"]).logits, golden["out/logits"])

    @torch.no_grad()
    def test_training_trace(self, beitv2_golden):
        golden = beitv2_golden("pretrain_train_trace")
        model = convert_checkpoint(weights_of(golden, "initial/"), early_layers=2).model
        mask, labels = golden["in/bool_masked_pos_0"], golden["in/codes_0"]
        loss = model(golden["in/pixel_values_0"], mask, labels=labels).loss
        assert loss.item() == pytest.approx(golden["out/loss"][0].item(), abs=5e-5)


class TestFolders:
    @pytest.fixture
    def official_file(self, beitv2_golden, tmp_path):
        """As `run_beitv2_pretraining.py` writes it; the options of its run tell where the head branch begins."""
        weights = weights_of(beitv2_golden("pretrain_relpos_abspos_unshared_head"))
        content = {"model": weights, "optimizer": {"state": {}}, "epoch": 3, "args": Namespace(early_layers=2)}
        torch.save(content, tmp_path / "official.pth")
        return tmp_path / "official.pth"

    @torch.no_grad()
    def test_model_of_this_package(self, official_file, beitv2_golden, tmp_path):
        golden = beitv2_golden("pretrain_relpos_abspos_unshared_head")
        converted = convert_checkpoint(official_file)
        assert "optimizer: left behind, state of the training run" in converted.dropped
        save_converted(converted, tmp_path / "out")
        model = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
        assert type(model) is Beitv2ForPreTraining
        output = model(golden["in/pixel_values"], golden["in/bool_masked_pos"], labels=golden["in/codes"])
        within(output.loss, golden["out/loss"])
        processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
        assert processor.to_dict()["image_std"] == (0.229, 0.224, 0.225) and processor.crop_size["height"] == 32

    @torch.no_grad()
    def test_native(self, official_file, beitv2_golden, tmp_path):
        golden = beitv2_golden("pretrain_relpos_abspos_unshared_head")
        save_converted(convert_checkpoint(official_file), tmp_path / "out", native=True)
        model = AutoModel.from_pretrained(tmp_path / "out")
        assert type(model) is BeitModel
        full = Beitv2ForPreTraining.from_pretrained(tmp_path / "out" / "pretraining")
        images = golden["in/pixel_values"]
        within(model(images).last_hidden_state, full.beitv2(images).last_hidden_state)
        logits = full(images, golden["in/bool_masked_pos"]).logits
        within(logits, golden["out/logits_final_masked"])
        assert type(AutoImageProcessor.from_pretrained(tmp_path / "out")).__name__.startswith("ViTImageProcessor")

    @torch.no_grad()
    def test_native_classifier(self, beitv2_golden, tmp_path):
        golden = beitv2_golden("finetune_abspos_clspool")
        save_converted(convert_checkpoint(weights_of(golden), **HEADS), tmp_path / "out", native=True)
        model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
        assert type(model) is BeitForImageClassification and not (tmp_path / "out" / "pretraining").exists()
        within(model(golden["in/pixel_values"]).logits, golden["out/logits"])

    def test_not_native(self, beitv2_golden, tmp_path):
        name = "finetune_nonsquare_noqkvbias"
        converted = convert_checkpoint(weights_of(beitv2_golden(name)), **FINE_TUNING[name])
        with pytest.raises(ValueError, match="not square"):
            save_converted(converted, tmp_path / "out", native=True)
        assert not any(tmp_path.iterdir())

    def test_normalization_of_the_first_version(self, beitv2_golden):
        """BEiT's first version has the same names and 0.5 for mean and deviation, unless its run says otherwise."""
        weights = weights_of(beitv2_golden("finetune_abspos_clspool"))
        args = Namespace(imagenet_default_mean_and_std=False, crop_pct=None)
        processor = convert_checkpoint({"model": weights, "args": args}, **HEADS).image_processor
        assert processor.image_mean == processor.image_std == (0.5, 0.5, 0.5)


class TestWindows:
    """Rows and columns of patches, which for images that are not square the index alone tells."""

    @pytest.mark.parametrize("window", ["1x1", "3x2", "4x6"])
    def test_index(self, beitv2_golden, window):
        expected = beitv2_golden("relpos_tables")[f"index/{window}"]
        assert torch.equal(relative_position_index(tuple(map(int, window.split("x")))), expected)

    @pytest.fixture
    def weights(self, beitv2_golden):
        weights = weights_of(beitv2_golden("finetune_nonsquare_noqkvbias"))
        return {key: tensor for key, tensor in weights.items() if not key.endswith("index")}

    @pytest.mark.parametrize("window", [(4, 6), (6, 4)])
    def test_index_tells(self, weights, window):
        for i in range(2):
            weights[f"blocks.{i}.attn.relative_position_index"] = relative_position_index(window)
        converted = convert_checkpoint(weights)
        assert converted.config.image_size == [8 * window[0], 8 * window[1]]
        assert len(dropped_from(weights, converted)) == 2
        weights["blocks.1.attn.relative_position_index"] = relative_position_index(window[::-1])
        with pytest.raises(ValueError, match=r"blocks\.1\.attn\.relative_position_index is not the index"):
            convert_checkpoint(weights)

    def test_table_alone_does_not(self, weights):
        with pytest.raises(ValueError, match=r"give image_size=\[height, width\]"):
            convert_checkpoint(weights)
        with pytest.raises(ValueError, match="relative_position_bias_table gives .* the shape"):
            convert_checkpoint(weights, image_size=32)

    def test_table_and_positions_leave_two(self, weights):
        weights["pos_embed"] = torch.zeros(1, 25, 48)
        with pytest.raises(ValueError, match=r"give image_size=\[32, 48\] or \[48, 32\]"):
            convert_checkpoint(weights)
        assert convert_checkpoint(weights, image_size=[48, 32]).config.grid_size == (6, 4)
        weights["pos_embed"] = torch.zeros(1, 26, 48)
        with pytest.raises(ValueError, match="80 rows, which do not belong to the 25 patches of pos_embed"):
            convert_checkpoint(weights)

    def test_no_tables(self, weights):
        weights = {key: tensor for key, tensor in weights.items() if not key.endswith("table")}
        with pytest.raises(ValueError, match="give image_size"):
            convert_checkpoint(weights, num_attention_heads=4)


class TestMistakes:
    @pytest.fixture
    def weights(self, beitv2_golden):
        return weights_of(beitv2_golden("pretrain_relpos_abspos_unshared_head"))

    def test_early_layers(self, weights):
        with pytest.raises(ValueError, match="3 blocks and a head branch of 1: give early_layers"):
            convert_checkpoint(weights)
        with pytest.raises(ValueError, match=r"early_layers \(9\) must be at most"):
            convert_checkpoint(weights, early_layers=9)

    def test_heads(self, weights):
        with pytest.raises(ValueError, match="is for 4 attention heads, not for 6"):
            convert_checkpoint(weights, num_attention_heads=6, early_layers=2)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"blocks.1.mlp.fc2.weight": None}, r"missing blocks\.1\.mlp\.fc2\.weight"),
            ({"cls_token": None}, "missing cls_token"),
            ({"blocks.2.attn.qkv.weight": None}, r"missing blocks\.2\.attn\.qkv\.weight$"),
            ({"blocks.2.attn.q_bias": None}, r"missing blocks\.2\.attn\.q_bias$"),
            ({"patch_embed.proj.weight": None}, r"no tensor patch_embed\.proj\.weight"),
            ({"cls_pt_norm.bias": None}, r"missing cls_pt_norm\.bias"),
            ({"blocks.1.attn.k_bias": 48}, r"not used blocks\.1\.attn\.k_bias"),
            ({"fc_norm.weight": 48}, "use_mean_pooling is for fine-tuning"),
            ({"head.weight": (10, 48)}, r"not used head\.weight"),
            ({"lm_head.weight": ()}, r"lm_head\.weight has shape \[\], 2 dimensions are wanted"),
            ({"pos_embed": (17, 48)}, r"pos_embed has shape \[17, 48\], 3 dimensions are wanted"),
            ({"pos_embed": (1, 0, 48)}, "52 rows, which do not belong to the -1 patches of pos_embed"),
            ({"rel_pos_bias.relative_position_bias_table": 52}, "table has shape .*, 2 dimensions are wanted"),
            ({"rel_pos_bias.relative_position_bias_table": (2, 4)}, "2 rows, which do not belong to the 16 patches"),
            ({"norm.weight": 47}, r"norm\.weight gives .* the shape \[47\], \[48\] is wanted"),
        ],
    )
    def test_tensors(self, weights, change, message):
        changed = {key: None if size is None else torch.zeros(size) for key, size in change.items()}
        weights = {key: tensor for key, tensor in (weights | changed).items() if tensor is not None}
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(weights, early_layers=2)

    def test_codes_or_features(self, beitv2_golden):
        """50 outputs per patch are neither the published tokenizer's codes nor CLIP's features."""
        weights = weights_of(beitv2_golden("pretrain_relpos_abspos_unshared_head"))
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("cls_pt_")}
        with pytest.raises(ValueError, match=r"has an lm_head of \[50, 48\]: give the family, beitv2 .* dbot"):
            convert_checkpoint(weights)
        assert convert_checkpoint(weights, "beitv2").config.regression_loss is None
        assert convert_checkpoint(weights, "dbot").config.regression_loss == "negcosine"

    def test_other_families(self, weights):
        for family in ("ibot", "vqkd"):
            with pytest.raises(ValueError, match=f"family beitv2, not {family}"):
                convert_checkpoint(weights, family)
        with pytest.raises(ValueError, match="cls_pt_layers"):
            convert_checkpoint(weights, "dbot")

    def test_segmentation(self, weights):
        weights |= {"fpn1.0.weight": torch.zeros(1), "decode_head.conv_seg.weight": torch.zeros(1)}
        with pytest.raises(ValueError, match="segmentation model of mmseg.*convert the pre-trained or fine-tuned"):
            convert_checkpoint({"state_dict": weights}, "beitv2")
