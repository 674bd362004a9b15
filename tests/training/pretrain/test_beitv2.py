"""`hf-mim pretrain` of VQ-KD and BEiT v2, from images to a tokenizer to an encoder, trusted as iBOT's is."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, BeitModel

from hf_mim import Beitv2ForPreTraining, Beitv2Model, VQKDModel
from hf_mim.evaluation.evaluate_knn import evaluate_knn
from hf_mim.training.callbacks.stop_signals import EXIT_INTERRUPTED
from hf_mim.training.checkpoints import list_checkpoints
from hf_mim.training.trainer import MIMTrainer
from tests.testing.processes import launch
from tests.testing.resuming import copy_checkpoint
from tests.testing.tiny_training import BEITV2_SIZES, VQKD_SIZES, logged_losses, pretrain, tiny_beitv2, tiny_vqkd


EVERY_STEP = ("--save_strategy", "steps", "--save_steps", "1")


def full_model(run: Path):
    """What training goes on from: the tokenizer itself, or the student with its heads."""
    folder = run / "pretraining"
    return AutoModelForPreTraining.from_pretrained(folder if folder.exists() else run)


def assert_equal_weights(first: Path, second: Path):
    """Codebook and all, bit for bit."""
    expected, found = (full_model(run).state_dict() for run in (first, second))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def log_of(run: Path) -> list[dict]:
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


# What a run leaves


def test_a_tokenizer_and_what_it_tells_of_its_teacher(tokenizer, pictures):
    output, metrics = tokenizer
    model, processor = VQKDModel.from_pretrained(output), AutoImageProcessor.from_pretrained(output, backend="pil")
    assert (model.config.teacher, model.config.teacher_license) == ("tiny-vit", "cc-by-nc-4.0")
    assert model.config.target_dim == 24 and list(processor.image_mean) == [0.5] * 3
    assert not (output / "pretraining").exists()
    facts = json.loads((output / "metrics.json").read_text())
    images = [Image.open(path) for path in sorted((pictures / "test").rglob("*.png"))]
    codes = model.eval().encode(**processor(images, return_tensors="pt"))
    assert codes.shape == (8, 16)
    # The evaluation of the run sees the same images in the same way.
    assert facts["eval_codebook_usage"] == metrics["eval_codebook_usage"] == len(codes.unique()) / 16
    card = (output / "README.md").read_text()
    assert "| teacher | tiny-vit, normed features of 24 numbers |" in card and "tiny-vit: cc-by-nc-4.0 |" in card
    assert f"{100 * facts['eval_codebook_usage']:.1f} % of 16" in card
    for name in facts["pictures"]:
        assert f"({name})" in card
        with Image.open(output / name) as picture:
            picture.verify()
    assert {"curves.png", "codes.png", "usage.png"} == set(facts["pictures"])
    logged = [entry for entry in log_of(output) if "loss" in entry]
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["loss_feature"] + entry["loss_quantizer"], rel=1e-4)
        assert 0 < entry["codebook_usage"] <= 1 and 1 <= entry["perplexity"] <= 16
    assert str(Path(output).parent) not in (output / "config.json").read_text()


@pytest.fixture(scope="module")
def encoder(tokenizer, pictures, tmp_path_factory):
    """A finished run of BEiT v2 with k-NN and checkpoints after every epoch, and its metrics."""
    output = tmp_path_factory.mktemp("run") / "tiny-beitv2"
    options = ("--train_dir", pictures, "--eval_split", "test", "--eval_strategy", "epoch", "--eval_on_start", "true")
    options += ("--save_strategy", "epoch", "--raw_pixel_baseline", "true")
    return output, pretrain(*options, output=output, method=tiny_beitv2(tokenizer[0]))


def test_an_encoder_that_transformers_loads(encoder, tokenizer):
    output, metrics = encoder
    native, info = BeitModel.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    model = Beitv2ForPreTraining.from_pretrained(output / "pretraining").eval()
    assert model.config.vocab_size == 16
    pixel_values = torch.randn(2, 3, 16, 16)
    expected = model.beitv2(pixel_values)
    torch.testing.assert_close(native.eval()(pixel_values).last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(AutoModel.from_pretrained(output)(pixel_values).pooler_output, expected.pooler_output)
    facts = json.loads((output / "metrics.json").read_text())
    assert facts["eval_knn_3_top1"] == metrics["eval_knn_3_top1"] and "initial_knn_3_top1" in facts
    assert facts["tokenizer"] == "tiny-vqkd" and facts["teacher"] == "tiny-vit"
    card = (output / "README.md").read_text()
    assert "| tokenizer | tiny-vqkd, 16 codes, trained on the features of tiny-vit |" in card
    assert "| teacher of the tokenizer | tiny-vit: cc-by-nc-4.0 |" in card
    reference = json.loads((output / "pretraining" / "teacher" / "reference.json").read_text())
    assert reference["name"] == "tiny-vqkd"
    for entry in (entry for entry in log_of(output) if "loss" in entry):
        assert entry["loss"] == pytest.approx(entry["loss_mim"] + entry["loss_mim_cls"], rel=1e-4)
        assert 0 <= entry["accuracy_mim"] <= 1 and 0 < entry["majority_code"] <= 1


def test_a_tokenizer_that_lacks_weights_is_refused(tokenizer, pictures, tmp_path):
    shutil.copytree(tokenizer[0], tmp_path / "damaged")
    weights = load_file(tokenizer[0] / "model.safetensors")
    del weights["encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, tmp_path / "damaged" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"the checkpoint lacks 1 weights, such as encoder\.layers\.1\.mlp\.fc1\.weight"
    ):
        pretrain("--train_dir", pictures, output=tmp_path / "run", method=tiny_beitv2(tmp_path / "damaged"))


def test_the_license_of_a_teacher_can_be_told(pictures, vision_model, tmp_path):
    told = ("--config_overrides", VQKD_SIZES + ",teacher_license=mit", "--max_steps", 1, "--warmup_epochs", 0)
    pretrain("--train_dir", pictures, *told, output=tmp_path, method=tiny_vqkd(vision_model))
    assert "| the teacher | tiny-vit: mit |" in (tmp_path / "README.md").read_text()


def test_knn_on_the_mean_of_the_patches(encoder, tokenizer, pictures, tmp_path):
    """The figure that `hf-mim evaluate knn` gives for the encoder that the run leaves."""
    options = ("--train_dir", pictures, "--eval_split", "test", "--do_train", "false", "--knn_pooling", "mean")
    sizes = ("--config_overrides", "early_layers=2,head_layers=1")
    source = ("--model_name_or_path", encoder[0] / "pretraining")
    metrics = pretrain(*options, *sizes, *source, output=tmp_path, method=tiny_beitv2(tokenizer[0]))
    measured = evaluate_knn(encoder[0], pictures, ks=[3], pooling="mean", progress=False)
    assert metrics["eval_knn_3_top1"] == measured["knn_3_top1"]


def test_images_that_are_not_square_keep_our_own_model(tokenizer, pictures, vision_model, tmp_path):
    """transformers' BEiT reads their position table in the wrong order."""
    size = ("--train_dir", pictures, "--image_size", 16, 24, "--max_steps", 2, "--warmup_epochs", 0)
    pretrain(*size, output=tmp_path / "tokenizer", method=tiny_vqkd(vision_model))
    pretrain(*size, output=tmp_path / "run", method=tiny_beitv2(tmp_path / "tokenizer"))
    model = AutoModel.from_pretrained(tmp_path / "run").eval()
    assert isinstance(model, Beitv2Model)
    pixel_values = torch.randn(2, 3, 16, 24)
    full = Beitv2ForPreTraining.from_pretrained(tmp_path / "run" / "pretraining").eval()
    torch.testing.assert_close(model(pixel_values).pooler_output, full.beitv2(pixel_values).pooler_output)
    assert "import hf_mim" in (tmp_path / "run" / "README.md").read_text()


def test_continuing_from_what_a_run_left(encoder, tokenizer, pictures, vision_model, tmp_path, caplog):
    """From the full model with its heads; from the native encoder with new ones; from a tokenizer."""
    options = ("--train_dir", pictures, "--max_steps", 1, "--warmup_epochs", 0, "--learning_rate", 0)
    sizes = ("--config_overrides", "early_layers=2,head_layers=1,drop_path_rate=0.2")
    method = tiny_beitv2(tokenizer[0])
    for name, source in (("full", encoder[0] / "pretraining"), ("native", encoder[0])):
        pretrain(*options, *sizes, "--model_name_or_path", source, output=tmp_path / name, method=method)
        first, second = (
            Beitv2ForPreTraining.from_pretrained(folder / "pretraining") for folder in (encoder[0], tmp_path / name)
        )
        torch.testing.assert_close(first.beitv2.layers.state_dict(), second.beitv2.layers.state_dict())
        assert torch.equal(first.lm_head.weight, second.lm_head.weight) == (name == "full")
    assert re.search(r"lm_head.weight +\| MISSING", caplog.text)
    again = ("--model_name_or_path", tokenizer[0], "--config_overrides", "codebook_decay=1.0")
    pretrain(*options, *again, output=tmp_path / "tokenizer", method=tiny_vqkd(vision_model))
    codebooks = [VQKDModel.from_pretrained(run).quantizer.codebook for run in (tokenizer[0], tmp_path / "tokenizer")]
    torch.testing.assert_close(*codebooks)


# Runs that are trusted


@pytest.mark.parametrize(("workers", "accumulation"), [(0, 1), (2, 2)])
def test_resume_equals_an_uninterrupted_run(method, pictures, tmp_path, workers, accumulation):
    options = ("--train_dir", pictures, "--dataloader_num_workers", workers)
    options += ("--gradient_accumulation_steps", accumulation)
    pretrain(*options, *EVERY_STEP, output=tmp_path / "whole", method=method)
    for steps in (3, 4, 6):
        cut = tmp_path / str(steps)
        copy_checkpoint(tmp_path / "whole", cut, f"checkpoint-{steps // accumulation}")
        pretrain(*options, output=cut, method=method)
        assert logged_losses(cut) == logged_losses(tmp_path / "whole")
        assert_equal_weights(tmp_path / "whole", cut)


def test_resume_with_revived_codes_and_stochastic_depth(pictures, vision_model, tokenizer, tmp_path):
    overrides = ("hidden_size=16,num_hidden_layers=2,num_attention_heads=2,codebook_size=64,codebook_dim=4",)
    overrides += ("revive_after_steps=2",)
    vqkd = (*tiny_vqkd(vision_model), "--config_overrides", ",".join(overrides))
    beitv2 = (*tiny_beitv2(tokenizer[0]), "--config_overrides", BEITV2_SIZES + ",drop_path_rate=0.3")
    for name, options in (("vqkd", vqkd), ("beitv2", beitv2)):
        whole, cut = tmp_path / name, tmp_path / f"{name}-cut"
        pretrain("--train_dir", pictures, *EVERY_STEP, output=whole, method=options)
        copy_checkpoint(whole, cut, "checkpoint-3")
        pretrain("--train_dir", pictures, output=cut, method=options)
        assert logged_losses(cut) == logged_losses(whole)
        assert_equal_weights(whole, cut)


def test_a_stream_resumes(method, pictures, tmp_path):
    options = ("--train_dir", pictures, "--streaming", "--max_steps", 6, "--warmup_steps", 1)
    pretrain(*options, *EVERY_STEP, output=tmp_path / "whole", method=method)
    copy_checkpoint(tmp_path / "whole", tmp_path / "cut", "checkpoint-5")
    pretrain(*options, output=tmp_path / "cut", method=method)
    assert logged_losses(tmp_path / "cut") == logged_losses(tmp_path / "whole")


def test_a_signal_ends_the_run_after_its_step(method, pictures, tmp_path):
    options = ["--train_dir", pictures, "--num_train_epochs", 10]
    cut = tmp_path / "cut"
    command = [sys.executable, "-m", "hf_mim.training.run_pretrain", *method, *options, "--output_dir", cut]
    command += ["--save_strategy", "steps", "--save_steps", "5"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list_checkpoints(cut) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, errors
    last = list_checkpoints(cut)[-1]
    assert f"The last checkpoint is {last}." in errors and "Traceback" not in errors
    pretrain(*options, output=cut, method=method)
    pretrain(*options, output=tmp_path / "whole", method=method)
    assert logged_losses(cut) == logged_losses(tmp_path / "whole")
    assert_equal_weights(tmp_path / "whole", cut)


def test_a_full_disk_leaves_the_checkpoint_before(method, pictures, tmp_path, monkeypatch):
    """Files that grow beyond a limit of the process fail as they do on a full disk."""
    save = MIMTrainer._save_optimizer_and_scheduler

    def save_on_a_full_disk(trainer, folder):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if trainer.state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            save(trainer, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    options = ("--train_dir", pictures, *EVERY_STEP, "--max_steps", 3, "--warmup_epochs", 0)
    with monkeypatch.context() as patch:
        patch.setattr(MIMTrainer, "_save_optimizer_and_scheduler", save_on_a_full_disk)
        with pytest.raises(OSError, match=r"cannot save .*checkpoint-2: .*The last checkpoint is .*checkpoint-1"):
            pretrain(*options, output=tmp_path / "cut", method=method)
    assert os.listdir(tmp_path / "cut") == ["checkpoint-1"]
    pretrain(*options, output=tmp_path / "cut", method=method)
    pretrain(*options, output=tmp_path / "whole", method=method)
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_resume_needs_the_same_frozen_network(encoder, pictures, vision_model, tmp_path):
    other = ("--train_dir", pictures, "--max_steps", 1, "--warmup_epochs", 0, "--seed", 1)
    pretrain(*other, output=tmp_path / "other", method=tiny_vqkd(vision_model))
    copy_checkpoint(encoder[0], tmp_path / "cut")
    with pytest.raises(ValueError, match="tiny-vqkd"):
        pretrain("--train_dir", pictures, output=tmp_path / "cut", method=tiny_beitv2(tmp_path / "other"))


def same_logs(one: list[dict], two: list[dict]):
    assert len(one) == len(two)
    compared = 0
    for entry, other in zip(one, two, strict=True):
        assert entry.keys() == other.keys()
        for name, value in entry.items():
            if name.startswith(("loss", "accuracy", "codebook", "perplexity", "majority", "grad_norm", "eval_")):
                if isinstance(value, float) and not name.endswith("runtime") and "second" not in name:
                    assert other[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name
                    compared += 1
    assert compared > 20


@pytest.mark.slow
def test_two_processes_equal_one(method, pictures, tmp_path):
    """K-means included, whose vectors come from both."""
    options = ("--eval_strategy", "epoch")
    one = launch(1, 8, pictures, tmp_path / "one", *options, method=method)
    two = launch(2, 4, pictures, tmp_path / "two", *options, method=method)
    same_logs(one, two)
    weights = [full_model(tmp_path / run).state_dict() for run in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-4, msg=name)


@pytest.mark.slow
def test_two_sharded_processes_equal_one_and_resume(method, pictures, tmp_path):
    options = ("--eval_strategy", "epoch", "--save_strategy", "epoch")
    one = launch(1, 8, pictures, tmp_path / "one", *options, method=method)
    two = launch(2, 4, pictures, tmp_path / "two", *options, method=method, sharded=True)
    same_logs(one, two)
    shutil.copytree(tmp_path / "two" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    launch(2, 4, pictures, tmp_path / "cut", *options, method=method, sharded=True)
    assert_equal_weights(tmp_path / "two", tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_resume(method, pictures, tmp_path):
    launch(2, 2, pictures, tmp_path / "whole", *EVERY_STEP, method=method)
    copy_checkpoint(tmp_path / "whole", tmp_path / "cut", "checkpoint-3")
    launch(2, 2, pictures, tmp_path / "cut", method=method)
    assert logged_losses(tmp_path / "cut") == logged_losses(tmp_path / "whole")
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_compiled_run(method, pictures, tmp_path):
    options = ("--train_dir", pictures)
    pretrain(*options, output=tmp_path / "eager", method=method)
    compiled = ("--torch_compile", "--torch_compile_backend", "aot_eager")
    pretrain(*options, *compiled, output=tmp_path / "compiled", method=method)
    assert logged_losses(tmp_path / "compiled") == pytest.approx(logged_losses(tmp_path / "eager"), rel=1e-4)


def test_half_precision_and_checkpointed_activations(method, pictures, tmp_path):
    options = ("--train_dir", pictures, "--bf16", "--activation_checkpointing", "--attn_implementation", "eager")
    pretrain(*options, output=tmp_path / "half", method=method)
    pretrain("--train_dir", pictures, output=tmp_path / "whole", method=method)
    half, whole = logged_losses(tmp_path / "half"), logged_losses(tmp_path / "whole")
    assert half != whole and half == pytest.approx(whole, rel=5e-3)
    weights = full_model(tmp_path / "half").state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}


# Mistakes


@pytest.mark.parametrize(
    ("method_name", "options", "message"),
    [
        (
            "vqkd",
            ("--teacher_model_name_or_path", "runs/old/nowhere"),
            "nowhere: there is no such folder; --teacher_model_name",
        ),
        ("vqkd", ("--teacher_feature", "projected"), "has no projection"),
        ("vqkd", ("--eval_on_start", "true"), "a new tokenizer has no codebook before its first step"),
        ("vqkd", ("--metric_for_best_model", "knn_3_top1"), "metric_for_best_model must be one of"),
        ("vqkd", ("--tokenizer_name_or_path", "x"), "unknown option '--tokenizer_name_or_path'"),
        ("vqkd", ("--model_name_or_path", "{teacher}"), "is a model of type 'vit'"),
        ("vqkd", ("--config_overrides", VQKD_SIZES + ",target_dim=99"), "features of the teacher tiny-vit have 24"),
        (
            "beitv2",
            ("--tokenizer_name_or_path", "runs/old/nowhere"),
            "nowhere: there is no such folder; --tokenizer_name_or",
        ),
        (
            "beitv2",
            ("--config_overrides", BEITV2_SIZES + ",num_channels=1"),
            "num_channels to the same number in both",
        ),
        ("beitv2", ("--tokenizer_name_or_path", "{teacher}"), "not a tokenizer ('vqkd')"),
        ("beitv2", ("--num_masking_patches", "17"), "num_masking_patches must lie between 1 and the 16 patches"),
        (
            "beitv2",
            ("--config_overrides", BEITV2_SIZES + ",vocab_size=8"),
            "one of 8 codes, the tokenizer has 16: set vocab",
        ),
        (
            "beitv2",
            ("--config_overrides", BEITV2_SIZES + ",use_mean_pooling=true"),
            "use_mean_pooling is for fine-tuning",
        ),
        (
            "beitv2",
            ("--config_overrides", BEITV2_SIZES + ",early_layers=4"),
            "early_layers (4) must be at most num_hidden_layers (3)",
        ),
    ],
)
def test_mistakes_are_refused(method_name, options, message, tokenizer, vision_model, pictures, tmp_path):
    options = [option.format(teacher=vision_model, run=tmp_path) for option in options]
    method = tiny_vqkd(vision_model) if method_name == "vqkd" else tiny_beitv2(tokenizer[0])
    with pytest.raises((ValueError, OSError), match=message.replace("(", r"\(").replace(")", r"\)")):
        pretrain("--train_dir", pictures, *options, output=tmp_path / "run", method=method)
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("name", ["teacher_model_name_or_path", "tokenizer_name_or_path"])
def test_the_frozen_network_has_to_be_named(name, method, pictures, tmp_path):
    if f"--{name}" not in method:
        pytest.skip("belongs to the other method")
    place = method.index(f"--{name}")
    with pytest.raises(ValueError, match=f"give --{name}"):
        pretrain("--train_dir", pictures, output=tmp_path, method=method[:place] + method[place + 2 :])


def test_unreadable_images_are_replaced(method, pictures, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(pictures / "train", images)
    (images / "dark" / "0.png").write_bytes(b"no image")
    options = ("--train_dir", images, "--max_unreadable_fraction", 0.1)
    pretrain(*options, output=tmp_path / "run", method=method)
    assert max(entry.get("data/unreadable", 0) for entry in log_of(tmp_path / "run")) == 1
