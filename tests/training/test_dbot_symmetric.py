"""The symmetric variant of dBOT: who sees what, the original's loss, and what `hf-mim pretrain` leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, BeitModel, ViTModel

from hf_mim import Beitv2Collator, Beitv2Config, Beitv2ForPreTraining, Beitv2ImageProcessorPil, Beitv2Model
from hf_mim.data.masking import BlockMaskGenerator
from hf_mim.data.sources import load_image_dataset
from hf_mim.data.views import CropViews
from hf_mim.evaluation.features import extract_features
from hf_mim.evaluation.knn import knn_accuracy
from hf_mim.hub.convert.beitv2 import rename_beitv2
from hf_mim.training import run_pretrain
from hf_mim.training.dbot_symmetric_arguments import DBotSymmetricTrainingArguments
from hf_mim.training.dbot_symmetric_trainer import DBotSymmetricTrainer
from tests.testing.resuming import copy_checkpoint
from tests.testing.tiny_training import (
    DBOT_SYMMETRIC_SIZES,
    logged_losses,
    pretrain,
    tiny_dbot_symmetric,
    tiny_teacher,
)


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def make_trainer(folder: Path, teacher, config: dict | None = None, **options) -> DBotSymmetricTrainer:
    """For images of 3x32x32 pixels in 2 x 2 patches; `config` and `options` override the defaults."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    sizes |= {"target_dim": 12, "head_layers": 0, "regression_loss": "negcosine"}
    data = {name: options.pop(name) for name in ("train_dataset", "data_collator") if name in options}
    args = DBotSymmetricTrainingArguments(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **options)
    torch.manual_seed(0)
    return DBotSymmetricTrainer(
        model=Beitv2ForPreTraining(Beitv2Config(**sizes | (config or {}))),
        args=args,
        teacher=teacher,
        processing_class=Beitv2ImageProcessorPil(),
        **data,
    )


# The trainer


@pytest.mark.parametrize("second", [True, False])
def test_each_network_sees_the_crop_as_it_wants_it(tmp_path, second):
    """The student normalized; the teacher, of patch size 4, all of it in 8x8 pixels, normalized in its own way."""
    teacher = tiny_teacher()
    trainer = make_trainer(tmp_path, teacher)
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    views = CropViews(32, (0.4, 1.0), 0.4, 8 if second else None)
    samples = [{"epoch": 0, "index": i} | views(image, np.random.default_rng(i)) for i in range(6)]
    batch = Beitv2Collator(BlockMaskGenerator((2, 2), 2, 1))(samples)
    inputs = trainer.prepare_batch(dict(batch))
    expected = (batch["pixel_values"] / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(inputs["pixel_values"], expected)
    images = batch["target_pixel_values" if second else "pixel_values"] / 255
    torch.testing.assert_close(inputs["target_pixel_values"], images)

    with torch.no_grad():
        (labels,) = trainer.compute_targets(inputs).values()
        if second:
            hidden = teacher.encoder((images - 0.5) / 0.5).last_hidden_state[:, 1:]
            torch.testing.assert_close(labels, teacher.norm(hidden))
        else:
            torch.testing.assert_close(labels, teacher(images))
    assert inputs.keys() == {"pixel_values", "bool_masked_pos", "mask_indices"}
    outputs = trainer.model.eval()(**inputs, labels=labels)
    cosines = torch.cosine_similarity(outputs.logits, labels[inputs["bool_masked_pos"]])
    assert outputs.loss.item() == pytest.approx(1 - cosines.mean().item(), abs=1e-6)

    with pytest.raises(ValueError, match="need target_pixel_values, in 0..1"):
        trainer.prepare_batch({name: batch[name].float() for name in ("pixel_values", "bool_masked_pos")})


class GivenFeatures(torch.nn.Module):
    """A teacher that has the golden file's features, whatever it sees."""

    name, grid = "given", (4, 4)

    def __init__(self, features: torch.Tensor):
        super().__init__()
        self.features, self.hidden_size = features, features.shape[2]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features


@pytest.mark.parametrize("loss", ["negcosine", "l2", "l1", "smooth_l1"])
def test_the_loss_is_the_originals(dbot_golden, tmp_path, loss):
    golden = dbot_golden("beit_branch_relpos")
    config = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8, "target_dim": 40}
    inputs = {"pixel_values": golden["images"], "target_pixel_values": golden["images"]}
    inputs["bool_masked_pos"] = golden["bool_masked_pos"].bool()
    trainer = make_trainer(
        tmp_path,
        GivenFeatures(golden["teacher_tokens"]),
        config | {"regression_loss": loss},
        train_dataset=[{}] * len(golden["images"]),
        data_collator=lambda samples: dict(inputs),
        per_device_train_batch_size=len(golden["images"]),
        max_steps=1,
        warmup_epochs=0,
        logging_steps=1,
        save_strategy="no",
    )
    weights = {name.removeprefix("model."): value for name, value in golden.items() if name.startswith("model.")}
    trainer.model.load_state_dict(rename_beitv2(weights), strict=True)
    trainer.train()
    expected = golden["loss." + loss.replace("smooth_l1", "smoothl1,2")].item()
    assert trainer.state.log_history[0]["loss_mim"] == pytest.approx(expected, abs=1e-5)


def test_what_decays_and_how_fast_it_learns(tmp_path):
    trainer = make_trainer(tmp_path, tiny_teacher(), per_device_train_batch_size=128)
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert "beitv2.embeddings.mask_token" in decayed and "beitv2.embeddings.cls_token" not in decayed
    assert trainer.deployable_encoder() is trainer.model.beitv2
    args = trainer.args
    assert (args.learning_rate, args.min_learning_rate, args.weight_decay) == (3e-3, 1e-5, 0.05)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.98, 1e-6)
    options = {"base_learning_rate": 1e-3, "per_device_train_batch_size": 128}
    assert make_trainer(tmp_path, tiny_teacher(), **options).args.learning_rate == pytest.approx(5e-4)


def test_a_teacher_that_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"features of 12 numbers on a grid of \(2, 2\), the model predicts 13"):
        make_trainer(tmp_path, tiny_teacher(), {"target_dim": 13})
    with pytest.raises(ValueError, match=r"predicts 12 \(target_dim\) on \(4, 4\)"):
        make_trainer(tmp_path, tiny_teacher(), {"patch_size": 8})
    with pytest.raises(ValueError, match="the model predicts codes: set regression_loss"):
        make_trainer(tmp_path, tiny_teacher(), {"regression_loss": None})


# Runs of `hf-mim pretrain`


@pytest.fixture(scope="module")
def encoder(pictures, vision_model, tmp_path_factory):
    """A finished run with k-NN and a checkpoint after every step, and its metrics."""
    output = tmp_path_factory.mktemp("run") / "tiny-dbot"
    options = ("--train_dir", pictures, "--eval_split", "test", "--eval_strategy", "epoch", "--eval_on_start", "true")
    options += ("--save_strategy", "steps", "--save_steps", "1")
    return output, pretrain(*options, output=output, method=tiny_dbot_symmetric(vision_model))


def test_an_encoder_that_transformers_loads(encoder, pictures):
    """The teacher is wider than the student, 24 and 16, and has patches of 8 pixels, not of 4."""
    output, metrics = encoder
    native, info = BeitModel.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    model = Beitv2ForPreTraining.from_pretrained(output / "pretraining").eval()
    config = model.config
    assert (config.target_dim, config.head_layers, config.regression_loss) == (24, 0, "negcosine")
    assert (config.drop_path_rate, config.layer_scale_init_value) == (0.3, 0.1)
    pixel_values = torch.randn(2, 3, 16, 16)
    expected = model.beitv2(pixel_values).last_hidden_state
    torch.testing.assert_close(native.eval()(pixel_values).last_hidden_state, expected)

    facts = json.loads((output / "metrics.json").read_text())
    assert (facts["teacher"], facts["teacher_feature"], facts["pictures"]) == (
        "tiny-vit",
        "normed",
        ["curves.png", "masks.png"],
    )
    processor, features = AutoImageProcessor.from_pretrained(output, backend="pil"), []
    for split in ("train", "test"):
        dataset = load_image_dataset(data_dir=pictures, split=split)
        features += extract_features(native, dataset, processor, pooling="mean", progress=False)
    assert metrics["eval_knn_3_top1"] == knn_accuracy(*features, k=[3])["knn_3_top1"]
    card = (output / "README.md").read_text()
    assert "symmetric variant of [dBOT]" in card and "BEiT v2" not in card and "attention.png" not in card
    assert "| teacher | tiny-vit, normed features of 24 numbers |" in card and "tiny-vit: cc-by-nc-4.0 |" in card
    assert "last_hidden_state[:, 1:].mean(dim=1)  # [1, 16]" in card and "- dbot_symmetric\n" in card
    reference = json.loads((output / "pretraining" / "teacher" / "reference.json").read_text())
    assert reference["name"] == "tiny-vit"
    assert all(0 < loss < 2 for loss in logged_losses(output))


@pytest.mark.parametrize("step", [3, 4])
def test_resume_equals_an_uninterrupted_run(encoder, pictures, vision_model, tmp_path, step):
    """With stochastic depth, in the middle of an epoch and at its end."""
    copy_checkpoint(encoder[0], tmp_path, f"checkpoint-{step}")
    options = ("--train_dir", pictures, "--eval_split", "test", "--eval_strategy", "epoch", "--eval_on_start", "true")
    pretrain(*options, output=tmp_path, method=tiny_dbot_symmetric(vision_model))
    assert logged_losses(tmp_path) == logged_losses(encoder[0])
    found, expected = (
        Beitv2ForPreTraining.from_pretrained(run / "pretraining").state_dict() for run in (tmp_path, encoder[0])
    )
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_resume_needs_the_same_teacher(encoder, pictures, vision_model, tmp_path):
    copy_checkpoint(encoder[0], tmp_path / "cut", "checkpoint-4")
    other = tmp_path / "other"
    ViTModel(ViTModel.config_class.from_pretrained(vision_model), add_pooling_layer=False).save_pretrained(other)
    AutoImageProcessor.from_pretrained(vision_model).save_pretrained(other)
    with pytest.raises(ValueError, match="was trained with the target network tiny-vit"):
        pretrain("--train_dir", pictures, output=tmp_path / "cut", method=tiny_dbot_symmetric(other))


def test_continuing_from_what_a_run_left(encoder, pictures, vision_model, tmp_path):
    """From the full model with its head, from the native encoder with a new one; not from a model of codes."""
    options = ("--train_dir", pictures, "--max_steps", 1, "--warmup_epochs", 0, "--learning_rate", 0)
    method = tiny_dbot_symmetric(vision_model)
    first = Beitv2ForPreTraining.from_pretrained(encoder[0] / "pretraining")
    for name, source in (("full", encoder[0] / "pretraining"), ("native", encoder[0])):
        pretrain(*options, "--model_name_or_path", source, output=tmp_path / name, method=method)
        second = Beitv2ForPreTraining.from_pretrained(tmp_path / name / "pretraining")
        torch.testing.assert_close(first.beitv2.layers.state_dict(), second.beitv2.layers.state_dict())
        assert torch.equal(first.lm_head.weight, second.lm_head.weight) == (name == "full")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    Beitv2ForPreTraining(Beitv2Config(**sizes, early_layers=2, vocab_size=16)).save_pretrained(tmp_path / "codes")
    with pytest.raises(ValueError, match="predicts codes, not features"):
        pretrain(*options, "--model_name_or_path", tmp_path / "codes", output=tmp_path / "wrong", method=method)


def test_a_teacher_with_the_grid_that_it_was_made_for(pictures, vision_model, tmp_path):
    """It sees 32x32 pixels in 4x4 patches, the student 16x24 in 4x6; its features are resized."""
    options = ("--train_dir", pictures, "--image_size", 16, 24, "--output_dir", tmp_path)
    options = [*tiny_dbot_symmetric(vision_model), *options, "--teacher_resize", "features"]
    method = run_pretrain.parse_arguments(list(map(str, options)))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    views = method.build_views()(image, np.random.default_rng(0))
    assert views["view"].shape == (3, 16, 24) and views["second_view"].shape == (3, 32, 32)
    assert method.teacher(views["second_view"][None] / 255).shape == (1, 24, 24)


def test_gray_images_that_are_not_square(pictures, vision_model, tmp_path):
    options = ("--train_dir", pictures, "--image_size", 16, 24, "--max_steps", 2, "--warmup_epochs", 0, "--streaming")
    sizes = ("--config_overrides", DBOT_SYMMETRIC_SIZES + ",num_channels=1")
    pretrain(*options, *sizes, output=tmp_path / "run", method=tiny_dbot_symmetric(vision_model))
    model = AutoModel.from_pretrained(tmp_path / "run").eval()
    assert isinstance(model, Beitv2Model)
    pixel_values = torch.randn(2, 1, 16, 24)
    full = Beitv2ForPreTraining.from_pretrained(tmp_path / "run" / "pretraining").eval()
    expected = full.beitv2(pixel_values).last_hidden_state
    torch.testing.assert_close(model(pixel_values).last_hidden_state, expected)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "\nimport hf_mim\n" in card and "Loading it takes `hf_mim`" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--teacher_model_name_or_path", "{run}/nowhere"), "nowhere"),
        (("--teacher_feature", "projected"), "has no projection"),
        (("--tokenizer_name_or_path", "x"), "unknown option '--tokenizer_name_or_path'"),
        (("--num_masking_patches", "17"), "num_masking_patches must lie between 1 and the 16 patches"),
        (("--min_crop_scale", "0"), "min_crop_scale must lie in"),
        (("--model_name_or_path", "{teacher}"), "is a model of type 'vit'"),
        (("--teacher_model_name_or_path", "{run}/wide", "--model_name_or_path", "{full}"), "features of 24 numbers"),
        (("--config_overrides", DBOT_SYMMETRIC_SIZES + ",regression_loss=cosine"), "regression_loss must be"),
    ],
)
def test_mistakes_are_refused(options, message, encoder, vision_model, pictures, tmp_path):
    wide = tmp_path / "wide"
    ViTModel(
        ViTModel.config_class.from_pretrained(vision_model, hidden_size=20), add_pooling_layer=False
    ).save_pretrained(wide)
    AutoImageProcessor.from_pretrained(vision_model).save_pretrained(wide)
    options = [
        option.format(teacher=vision_model, run=tmp_path, full=encoder[0] / "pretraining") for option in options
    ]
    with pytest.raises((ValueError, OSError), match=message):
        pretrain("--train_dir", pictures, *options, output=tmp_path / "run", method=tiny_dbot_symmetric(vision_model))


def test_the_teacher_has_to_be_named(pictures, tmp_path):
    method = tiny_dbot_symmetric(Path("teacher"))
    place = method.index("--teacher_model_name_or_path")
    with pytest.raises(ValueError, match="give --teacher_model_name_or_path"):
        pretrain("--train_dir", pictures, output=tmp_path, method=method[:place] + method[place + 2 :])
