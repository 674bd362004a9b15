"""Official iBOT checkpoints with a Swin Transformer through `convert_checkpoint`."""

import json
from argparse import Namespace

import pytest
import torch

from hf_mim import (
    IBotImageProcessorPil,
    IBotSwinForImageClassification,
    IBotSwinForPreTraining,
    IBotSwinModel,
    convert_checkpoint,
)
from hf_mim.hub.convert.beitv2 import relative_position_index
from hf_mim.hub.convert.checkpoint import save_converted
from tests.testing.official_listings import dropped_from
from tests.testing.paths import GOLDEN


LISTING = json.loads((GOLDEN / "ibot" / "keys_swin_tiny.json").read_text())


def official_student(window: int) -> dict[str, torch.Tensor]:
    """Zeros under the names and shapes of the released Swin-T, with real indices."""
    shapes = LISTING["student"] | (LISTING["window_14"] if window == 14 else {})
    weights = {}
    for key, shape in shapes.items():
        weights[key] = torch.zeros(shape)
        if key.endswith("relative_position_index"):
            side = round(shape[0] ** 0.5)
            weights[key] = relative_position_index((side, side))[1:, 1:].contiguous()
    return weights


def teacher_of(student: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("module."): value for key, value in student.items() if not key.endswith("masked_embed")}


@pytest.mark.parametrize("window", [7, 14])
def test_published_layouts(window):
    student = official_student(window)
    centers = {name: torch.ones(shape) for name, shape in LISTING["ibot_loss"].items()}
    options = Namespace(norm_last_layer=False, drop_path=0.3, patch_size=4, window_size=window)
    full = {"student": student, "teacher": teacher_of(student), "ibot_loss": centers, "args": options, "epoch": 300}
    converted = convert_checkpoint(full)
    counts = LISTING["parameter_counts"][str(window)]
    for model in (converted.model, converted.teacher):
        assert type(model) is IBotSwinForPreTraining
        assert sum(p.numel() for p in model.ibot.parameters()) == counts["backbone_student"]
        assert sum(p.numel() for p in model.head.parameters()) == counts["head_student"]
        assert not model.ibot.embeddings.mask_token.any()
        config = model.config
        assert (config.embed_dim, config.depths, config.num_heads) == (96, [2, 2, 6, 2], [3, 6, 12, 24])
        assert (config.window_size, config.image_size, config.patch_size) == (window, 224, 4)
        assert config.shared_head and not config.norm_last_layer and config.out_dim == 8192
    # The original does not hand on its option to a Swin Transformer.
    assert converted.config.drop_path_rate == 0.1 and converted.teacher.config.drop_path_rate == 0.0
    assert {name: tuple(center.shape) for name, center in converted.centers.items()} == {
        "cls_center": (8192,),
        "patch_center": (8192,),
    }
    bare = {key.removeprefix("module.").removeprefix("backbone."): value for key, value in student.items()}
    indices = {key for key in bare if key.endswith("relative_position_index")}
    assert len(indices) == 12 and dropped_from(bare, converted) == indices
    assert isinstance(converted.image_processor, IBotImageProcessorPil)
    assert dict(converted.image_processor.size) == {"shortest_edge": 256}

    encoder = {key: value for key, value in bare.items() if not key.startswith("head.") and key != "masked_embed"}
    converted = convert_checkpoint({"state_dict": encoder})
    assert type(converted.model) is IBotSwinModel and converted.teacher is None
    assert "mask token: not in the file, zero" in converted.dropped


@pytest.fixture
def weights(ibot_golden) -> dict[str, torch.Tensor]:
    """A student of two stages with windows of 2, from the training trace."""
    golden, _ = ibot_golden("train_trace_swin_f64")
    prefix = "student_init/module."
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


def test_folders(weights, tmp_path):
    full = {"student": weights, "teacher": teacher_of(weights)}
    full["ibot_loss"] = {"center": torch.ones(1, 40), "center2": torch.zeros(1, 1, 40)}
    converted = convert_checkpoint(full, image_size=32)
    written = save_converted(converted, tmp_path / "ours")
    assert {folder: type(model) for folder, model in written.items()} == {
        ".": IBotSwinForPreTraining,
        "teacher": IBotSwinForPreTraining,
    }
    model = IBotSwinForPreTraining.from_pretrained(tmp_path / "ours")
    tables = [key for key in weights if key.endswith("bias_table")]
    assert len(tables) == 4
    for key in tables:
        ours = key.replace("backbone.", "encoder.").replace("attn.", "attention.relative_position_bias.")
        assert torch.equal(model.ibot.state_dict()[ours], weights[key])
    written = save_converted(converted, tmp_path / "native", native=True)
    assert {folder: type(model).__name__ for folder, model in written.items()} == {
        ".": "SwinModel",
        "pretraining": "IBotSwinForPreTraining",
        "pretraining/teacher": "IBotSwinForPreTraining",
    }


def test_a_classifier(weights):
    encoder = {key: value for key, value in weights.items() if not key.startswith("head.")}
    head = {"head.weight": torch.randn(5, 32), "head.bias": torch.randn(5)}
    model = convert_checkpoint(encoder | head, image_size=32).model
    assert type(model) is IBotSwinForImageClassification and model.config.num_labels == 5
    assert torch.equal(model.classifier.weight, head["head.weight"])
    with pytest.raises(ValueError, match="takes 64 features, 2 times the width"):
        convert_checkpoint(encoder | {"head.weight": torch.randn(5, 64), "head.bias": torch.randn(5)}, image_size=32)


class TestMistakes:
    def refuse(self, weights, message, **options):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(weights, **{"image_size": 32} | options)

    def test_a_missing_tensor_is_named_as_in_the_file(self, weights):
        del weights["backbone.layers.1.blocks.0.attn.qkv.bias"]
        self.refuse(weights, r"missing layers\.1\.blocks\.0\.attn\.qkv\.bias")

    def test_a_tensor_too_many(self, weights):
        self.refuse(weights | {"backbone.layers.0.blocks.1.attn_mask": torch.zeros(2)}, r"not used .*attn_mask")

    def test_a_shape_that_does_not_fit(self, weights):
        key = "backbone.layers.0.downsample.reduction.weight"
        self.refuse(weights | {key: torch.zeros(8, 64)}, r"layers\.0\.downsample\.reduction\.weight")

    def test_an_index_of_another_window(self, weights):
        key = "backbone.layers.0.blocks.0.attn.relative_position_index"
        index = relative_position_index((2, 2))[1:, 1:]
        assert convert_checkpoint(weights | {key: index}, image_size=32).model is not None
        self.refuse(weights | {key: index.flip(0)}, "relative_position_index is not the index of a window of 2 x 2")

    def test_windows_that_do_not_fit_the_image_size(self, weights):
        self.refuse(weights, "relative_position_bias_table", image_size=8)

    def test_heads_are_told_by_the_file(self, weights):
        self.refuse(weights, "leave the number out", num_attention_heads=2)

    def test_half_a_file(self, weights):
        del weights["backbone.layers.1.blocks.0.attn.relative_position_bias_table"]
        self.refuse(weights, "has no tensor layers.1.blocks.0.attn.relative_position_bias_table")
