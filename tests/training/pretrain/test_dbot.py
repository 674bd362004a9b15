"""`hf-mim pretrain` of dBOT, from images through stages to an encoder, trusted as iBOT's is."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTModel

from hf_mim import DBotForPreTraining, DBotModel
from tests.testing.processes import launch
from tests.testing.resuming import copy_checkpoint
from tests.testing.tiny_training import DBOT_SIZES, TINY_DBOT, logged_losses, pretrain


EVERY_STEP = ("--save_strategy", "steps", "--save_steps", "1")
STAGES = ("--stage_epochs", 1, 1)


def assert_equal_weights(first, second):
    """Student and the teacher of its last stage, bit for bit."""
    for load in (
        lambda run: DBotForPreTraining.from_pretrained(run / "pretraining"),
        lambda run: DBotModel.from_pretrained(run / "pretraining", subfolder="teacher"),
    ):
        expected, found = load(first).state_dict(), load(second).state_dict()
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name


@pytest.fixture(scope="module")
def staged(pictures, tmp_path_factory):
    """A finished run of two stages with k-NN after each, and its metrics."""
    output = tmp_path_factory.mktemp("run") / "tiny-dbot"
    options = ("--train_dir", pictures, "--eval_split", "test", "--eval_strategy", "epoch", "--eval_on_start", "true")
    return output, pretrain(*options, *STAGES, *EVERY_STEP, output=output, method=TINY_DBOT)


def test_what_the_stages_leave(staged, pictures):
    output, metrics = staged
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in history if "loss" in entry]
    assert [entry["stage"] for entry in logged] == [1, 1, 1, 1, 2, 2, 2, 2]
    # The learning rate begins anew with the second stage.
    rates = [entry["learning_rate"] for entry in logged]
    assert rates[4:] == pytest.approx(rates[:4])
    pixel_values = torch.randn(2, 3, 16, 16)
    teacher = DBotModel.from_pretrained(output / "pretraining", subfolder="teacher").eval()
    first, last = (ViTModel.from_pretrained(output / name).eval() for name in ("stage-1", "stage-2"))
    expected = teacher(pixel_values).last_hidden_state
    torch.testing.assert_close(first(pixel_values).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    native, info = ViTModel.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    for name, value in native.state_dict().items():
        assert torch.equal(value, last.state_dict()[name]), name
    evaluations = [entry["eval_knn_3_top1"] for entry in history if "eval_knn_3_top1" in entry]
    for number, accuracy in ((1, evaluations[1]), (2, evaluations[2])):
        facts = json.loads((output / f"stage-{number}" / "metrics.json").read_text())
        assert facts["eval_knn_3_top1"] == accuracy and facts["steps"] == 4 * number
    assert metrics["eval_knn_3_top1"] == evaluations[2]
    card = (output / "README.md").read_text()
    assert "| teacher | a random network, then the encoder of the stage before: 2 stages |" in card
    for name in ("curves.png", "attention.png"):
        with Image.open(output / name) as picture:
            picture.verify()


@pytest.mark.parametrize("step", [3, 4, 5, 7])
def test_a_run_resumes_on_either_side_of_a_boundary(staged, pictures, tmp_path, step):
    copy_checkpoint(staged[0], tmp_path, f"checkpoint-{step}")
    options = ("--train_dir", pictures, "--eval_split", "test", "--eval_strategy", "epoch")
    pretrain(*options, *STAGES, output=tmp_path, method=TINY_DBOT)
    assert logged_losses(tmp_path) == logged_losses(staged[0])
    assert_equal_weights(staged[0], tmp_path)


def test_a_teacher_from_elsewhere(pictures, vision_model, finished, tmp_path):
    """Of another width and patch size; a native encoder that this package left."""
    for name, teacher, width in (("vit", vision_model, 24), ("ibot", finished[0], 16)):
        options = ("--train_dir", pictures, "--teacher_model_name_or_path", teacher, *EVERY_STEP)
        whole, cut = tmp_path / name, tmp_path / f"{name}-cut"
        pretrain(*options, "--teacher_resize", "features", output=whole, method=TINY_DBOT)
        model = DBotForPreTraining.from_pretrained(whole / "pretraining")
        assert model.config.target_dim == width
        copy_checkpoint(whole, cut, "checkpoint-5")
        pretrain(*options, "--teacher_resize", "features", output=cut, method=TINY_DBOT)
        assert logged_losses(cut) == logged_losses(whole)
        reference = json.loads((whole / "pretraining" / "teacher" / "reference.json").read_text())
        assert reference["name"] == teacher.name
        assert f"| teacher | {teacher.name}" in (whole / "README.md").read_text()


def test_a_named_teacher_first_and_the_student_then(pictures, finished, tmp_path):
    options = ("--train_dir", pictures, "--teacher_model_name_or_path", finished[0], *STAGES, *EVERY_STEP)
    pretrain(*options, output=tmp_path / "whole", method=TINY_DBOT)
    for step in (4, 6):
        cut = tmp_path / str(step)
        copy_checkpoint(tmp_path / "whole", cut, f"checkpoint-{step}")
        pretrain(*options, output=cut, method=TINY_DBOT)
        assert logged_losses(cut) == logged_losses(tmp_path / "whole")
        assert_equal_weights(tmp_path / "whole", cut)


@pytest.mark.parametrize(
    "options",
    [
        ("--image_size", 16, 24),
        ("--config_overrides", DBOT_SIZES + ",num_channels=1"),
        ("--streaming", "--max_steps", 6, "--warmup_steps", 1),
        ("--stage_epochs", 1, 1, "--stage_teacher_depth", 0, 2, "--reset_optimizer_at_stage"),
        ("--stage_epochs", 1, 1, "--gradient_accumulation_steps", 2, "--dataloader_num_workers", 2),
        ("--bf16", "--activation_checkpointing", "--attn_implementation", "eager", "--teacher_feature", "normed"),
        ("--torch_compile", "--torch_compile_backend", "aot_eager"),
    ],
    ids=["non-square", "gray", "stream", "depths", "accumulation", "bf16", "compile"],
)
def test_options_train_and_export(pictures, tmp_path, options):
    metrics = pretrain("--train_dir", pictures, *options, output=tmp_path, method=TINY_DBOT)
    assert np.isfinite(metrics["train_loss"])
    encoder, info = ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and all(torch.isfinite(p).all() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stage_epochs", "0", "2"), "stage_epochs must be whole epochs of at least 1"),
        (("--stage_epochs", "1", "1", "--stage_teacher_depth", "2"), "stage_teacher_depth must be a number of blocks"),
        (("--stage_epochs", "1", "1", "--warmup_epochs", "1"), "warm-up takes 1 epochs, stage 1 only 1"),
        (("--teacher_feature", "projected"), "a student has no projection"),
        (("--teacher_model_name_or_path", "{teacher}", "--stage_epochs", "1", "1"), "train one stage only"),
        (("--model_name_or_path", "{teacher}"), "dbot continues from 'dbot'"),
        (("--config_overrides", DBOT_SIZES + ",use_mean_pooling=true"), "use_mean_pooling is for fine-tuning"),
        (("--config_overrides", DBOT_SIZES + ",mask_ratio=1.5"), "mask_ratio"),
    ],
)
def test_mistakes_are_refused(options, message, vision_model, pictures, tmp_path):
    options = [option.format(teacher=vision_model) for option in options]
    with pytest.raises(ValueError, match=message):
        pretrain("--train_dir", pictures, *options, output=tmp_path / "run", method=TINY_DBOT)
    assert not (tmp_path / "run" / "metrics.json").exists()


def same_logs(one: list[dict], two: list[dict]):
    compared = 0
    for entry, other in zip(one, two, strict=True):
        assert entry.keys() == other.keys()
        for name in ("loss", "loss_cls", "loss_patch", "grad_norm", "feature_std", "stage", "eval_knn_3_top1"):
            if name in entry:
                assert other[name] == pytest.approx(entry[name], rel=2e-3), name
                compared += 1
    assert compared > 20


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_equal_one_across_a_stage_and_resume(pictures, tmp_path, sharded):
    """The student begins its second stage with the same weights in both processes, and in one."""
    options = (*STAGES, "--eval_strategy", "epoch", *EVERY_STEP)
    one = launch(1, 8, pictures, tmp_path / "one", *options, method=TINY_DBOT)
    two = launch(2, 4, pictures, tmp_path / "two", *options, method=TINY_DBOT, sharded=sharded)
    same_logs(one, two)
    shutil.copytree(tmp_path / "two" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    launch(2, 4, pictures, tmp_path / "cut", *options, method=TINY_DBOT, sharded=sharded)
    assert logged_losses(tmp_path / "cut") == logged_losses(tmp_path / "two")
    assert_equal_weights(tmp_path / "two", tmp_path / "cut")
