"""Stopped at any moment and started again, a run gives what it would have given in one go."""

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_mim.training.callbacks.stop_signals import EXIT_INTERRUPTED
from hf_mim.training.checkpoints import check_whole, list_checkpoints, remove_old_checkpoints
from hf_mim.training.ibot_trainer import IBotTrainer
from tests.testing.processes import launch, start
from tests.testing.resuming import EVERY_STEP, assert_equal_weights, copy_checkpoint, rewrite_manifest
from tests.testing.tiny_training import SIZES, TINY, logged_losses, pretrain


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_equals_an_uninterrupted_run(pictures, tmp_path, workers, accumulation):
    """Inside both epochs and between them; with stochastic depth."""
    options = ("--train_dir", pictures, "--dataloader_num_workers", workers)
    options += ("--gradient_accumulation_steps", accumulation, "--config_overrides", SIZES + ",drop_path_rate=0.3")
    pretrain(*options, *EVERY_STEP, output=tmp_path / "whole")
    for steps in (3, 4, 6):
        cut = tmp_path / str(steps)
        copy_checkpoint(tmp_path / "whole", cut, f"checkpoint-{steps // accumulation}")
        pretrain(*options, output=cut)
        assert logged_losses(cut) == logged_losses(tmp_path / "whole")
        assert_equal_weights(tmp_path / "whole", cut)


def test_resume_with_sinkhorn_targets(pictures, tmp_path):
    options = ("--train_dir", pictures, "--target", "sinkhorn", "--save_strategy", "epoch")
    pretrain(*options, output=tmp_path / "whole")
    copy_checkpoint(tmp_path / "whole", tmp_path / "cut")
    pretrain(*options, output=tmp_path / "cut")
    assert logged_losses(tmp_path / "cut") == logged_losses(tmp_path / "whole")
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_resume_of_a_compiled_run(pictures, tmp_path, backend):
    options = ("--train_dir", pictures, "--torch_compile", "--torch_compile_backend", backend)
    # Other sizes that were compiled in this process would make this one's dynamic.
    torch.compiler.reset()
    pretrain(*options, *EVERY_STEP, output=tmp_path / "whole")
    copy_checkpoint(tmp_path / "whole", tmp_path / "cut", "checkpoint-3")
    torch.compiler.reset()
    pretrain(*options, output=tmp_path / "cut")
    assert logged_losses(tmp_path / "cut") == logged_losses(tmp_path / "whole")
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_of_two_processes(pictures, tmp_path, workers, accumulation):
    options = ("--dataloader_num_workers", workers, "--gradient_accumulation_steps", accumulation)
    options += ("--config_overrides", SIZES + ",drop_path_rate=0.3", "--num_train_epochs", 4)
    launch(2, 2, pictures, tmp_path / "whole", *options, *EVERY_STEP)
    for steps in (6, 8):
        cut = tmp_path / str(steps)
        copy_checkpoint(tmp_path / "whole", cut, f"checkpoint-{steps // accumulation}")
        launch(2, 2, pictures, cut, *options)
        assert logged_losses(cut) == logged_losses(tmp_path / "whole")
        assert_equal_weights(tmp_path / "whole", cut)


@pytest.fixture(scope="module")
def streamed(pictures, tmp_path_factory):
    """A finished run over a stream with a checkpoint after every step, and its options."""
    options = ("--train_dir", pictures, "--streaming", "--max_steps", 6, "--warmup_steps", 1)
    output = tmp_path_factory.mktemp("streamed")
    pretrain(*options, *EVERY_STEP, output=output)
    return output, options


@pytest.mark.parametrize("step", [2, 5, 6])
def test_a_stream_resumes_within_its_first_pass_its_second_and_at_the_end(streamed, tmp_path, step):
    whole, options = streamed
    copy_checkpoint(whole, tmp_path / "cut", f"checkpoint-{step}")
    pretrain(*options, output=tmp_path / "cut")
    assert logged_losses(tmp_path / "cut") == logged_losses(whole)
    # The same images would come in another order.
    copy_checkpoint(whole, tmp_path / "other", f"checkpoint-{step}")
    for name, before, now in (("dataloader_num_workers", 0, 1), ("shuffle_buffer_size", 1000, 8)):
        with pytest.raises(ValueError, match=f"{name} {before}, this run has {now}"):
            pretrain(*options, f"--{name}", now, output=tmp_path / "other")


def test_resume_from_the_last_checkpoint_trains_no_further(pictures, tmp_path):
    """As after a run that was stopped while it wrote its results, in the middle of an epoch."""
    options = ("--train_dir", pictures, "--max_steps", 6, "--save_strategy", "steps", "--save_steps", 6)
    pretrain(*options, output=tmp_path / "whole")
    copy_checkpoint(tmp_path / "whole", tmp_path / "again", "checkpoint-6")
    pretrain(*options, output=tmp_path / "again")
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["steps"] == 6
    assert_equal_weights(tmp_path / "whole", tmp_path / "again")


# What makes a checkpoint unfit


PARTS = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "manifest.json"]
PARTS += ["teacher", "teacher/model.safetensors", "teacher/config.json", "teacher/centers.safetensors"]


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(finished, pictures, tmp_path, part):
    target = copy_checkpoint(finished[0], tmp_path) / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(OSError, match=part):
        pretrain("--train_dir", pictures, output=tmp_path)


@pytest.mark.parametrize("part", [name for name in PARTS if "." in name])
def test_a_truncated_part_is_named(finished, pictures, tmp_path, part):
    target = copy_checkpoint(finished[0], tmp_path) / part
    os.truncate(target, target.stat().st_size // 2)
    with pytest.raises(OSError, match=part):
        pretrain("--train_dir", pictures, output=tmp_path)


def test_a_teacher_that_lacks_a_tensor_is_refused(finished, pictures, tmp_path):
    checkpoint = copy_checkpoint(finished[0], tmp_path)
    weights = load_file(checkpoint / "teacher" / "model.safetensors")
    del weights["ibot.layernorm.weight"]
    save_file(weights, checkpoint / "teacher" / "model.safetensors", metadata={"format": "pt"})
    rewrite_manifest(checkpoint)
    with pytest.raises(ValueError, match=r"lacks .*ibot\.layernorm\.weight"):
        pretrain("--train_dir", pictures, output=tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("optimizer.pt", lambda state: state["state"][0].update(exp_avg=torch.zeros(3)), "optimizer.pt is of another"),
        ("optimizer.pt", lambda state: state["param_groups"][0]["params"].pop(), "optimizer.pt is of another"),
        ("teacher/centers.safetensors", lambda state: state.update(cls_center=torch.zeros(3)), "centers.safetensors"),
        ("teacher/centers.safetensors", lambda state: state.pop("patch_center"), "centers.safetensors"),
    ],
)
def test_a_part_of_another_shape_is_named(finished, pictures, tmp_path, part, change, message):
    checkpoint = copy_checkpoint(finished[0], tmp_path)
    state = load_file(checkpoint / part) if part.endswith("safetensors") else torch.load(checkpoint / part)
    change(state)
    (save_file if part.endswith("safetensors") else torch.save)(state, checkpoint / part)
    rewrite_manifest(checkpoint)
    with pytest.raises(ValueError, match=message):
        pretrain("--train_dir", pictures, output=tmp_path)


@pytest.mark.parametrize("size", ["hidden_size", "out_dim"])
def test_other_sizes_are_refused(finished, pictures, tmp_path, size):
    copy_checkpoint(finished[0], tmp_path)
    overrides = re.sub(rf"\b{size}=16", f"{size}=32", SIZES)
    with pytest.raises(ValueError, match="of another model"):
        pretrain("--train_dir", pictures, "--config_overrides", overrides, output=tmp_path)


def test_another_model_is_refused(finished, pictures, tmp_path):
    copy_checkpoint(finished[0], tmp_path)
    with pytest.raises(ValueError, match=r"of another model: it lacks .*lambda_1"):
        pretrain("--train_dir", pictures, "--config_overrides", SIZES + ",layer_scale_init_value=0.1", output=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--per_device_train_batch_size", "8"), "per_device_train_batch_size 4, this run has 8"),
        (("--gradient_accumulation_steps", "2"), "gradient_accumulation_steps 1, this run has 2"),
        (("--seed", "1"), "seed 42, this run has 1"),
        (("--max_train_samples", "12"), "number of training images 16, this run has 12"),
    ],
)
def test_a_run_with_other_steps_is_refused(finished, pictures, tmp_path, options, message):
    copy_checkpoint(finished[0], tmp_path)
    with pytest.raises(ValueError, match=message):
        pretrain("--train_dir", pictures, *options, output=tmp_path)


def test_latest_falls_back_to_the_last_whole_checkpoint(finished, pictures, tmp_path, caplog):
    for name in ("checkpoint-4", "checkpoint-8"):
        copy_checkpoint(finished[0], tmp_path, name)
    os.truncate(tmp_path / "checkpoint-8" / "optimizer.pt", 10)
    with pytest.raises(OSError, match=r"optimizer\.pt has 10 bytes .* --resume_from_checkpoint latest"):
        pretrain("--train_dir", pictures, output=tmp_path)
    options = ("--eval_split", "test", "--eval_strategy", "epoch", "--resume_from_checkpoint", "latest")
    pretrain("--train_dir", pictures, *options, output=tmp_path)
    assert "looking for an older one" in caplog.text and "resuming from" in caplog.text
    assert logged_losses(tmp_path) == logged_losses(finished[0])
    assert_equal_weights(finished[0], tmp_path)


def test_latest_without_a_whole_checkpoint(finished, pictures, tmp_path, caplog):
    latest = ("--train_dir", pictures, "--resume_from_checkpoint", "latest")
    (copy_checkpoint(finished[0], tmp_path / "broken") / "scheduler.pt").unlink()
    with pytest.raises(OSError, match="none of the checkpoints"):
        pretrain(*latest, output=tmp_path / "broken")
    pretrain(*latest, "--max_steps", 1, "--warmup_epochs", 0, output=tmp_path / "new")
    assert "starting from the beginning" in caplog.text


def test_a_checkpoint_is_chosen_by_its_path(finished, pictures, tmp_path):
    options = ("--train_dir", pictures, "--resume_from_checkpoint")
    pretrain(*options, finished[0] / "checkpoint-4", output=tmp_path)
    assert logged_losses(tmp_path) == logged_losses(finished[0])
    with pytest.raises(ValueError, match="there is no folder .*checkpoint-5"):
        pretrain(*options, finished[0] / "checkpoint-5", output=tmp_path / "other")


# How a checkpoint comes and goes


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    for step in (2, 10, 4, 30):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "part").write_text("")
    remove_old_checkpoints(tmp_path, limit=None, best_step=None)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (2, 4, 10, 30)]
    remove_old_checkpoints(tmp_path, limit=3, best_step=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (2, 10, 30)]
    remove_old_checkpoints(tmp_path, limit=1, best_step=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (2, 30)]
    remove_old_checkpoints(tmp_path, limit=1, best_step=None)
    assert os.listdir(tmp_path) == ["checkpoint-30"]


def test_the_best_checkpoint_is_kept_under_its_own_name(pictures, tmp_path, monkeypatch):
    options = ("--train_dir", pictures, "--eval_split", "test", "--eval_strategy", "steps", "--eval_steps", 1)
    options += ("--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 2, "--max_steps", 4)
    options += ("--metric_for_best_model", "knn_3_top1", "--warmup_epochs", 0)
    # The first one is that of the start.
    accuracies = iter((5.0, 10.0, 30.0, 20.0, 25.0))
    monkeypatch.setattr(IBotTrainer, "evaluate", lambda trainer, **options: {"eval_knn_3_top1": next(accuracies, 0.0)})
    pretrain(*options, output=tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")


def test_a_full_disk_leaves_the_checkpoint_before(pictures, tmp_path, monkeypatch):
    """Files that grow beyond a limit of the process fail as they do on a full disk."""
    save_target = IBotTrainer.save_target

    def save_on_a_full_disk(trainer, folder, target):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if trainer.state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            save_target(trainer, folder, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    options = ("--train_dir", pictures, *EVERY_STEP, "--max_steps", 3, "--warmup_epochs", 0)
    with monkeypatch.context() as patch:
        patch.setattr(IBotTrainer, "save_target", save_on_a_full_disk)
        with pytest.raises(OSError, match=r"cannot save .*checkpoint-2: .*The last checkpoint is .*checkpoint-1"):
            pretrain(*options, output=tmp_path / "cut")
    assert os.listdir(tmp_path / "cut") == ["checkpoint-1"]
    pretrain(*options, output=tmp_path / "cut")
    pretrain(*options, output=tmp_path / "whole")
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.fixture(scope="module")
def uninterrupted(pictures, tmp_path_factory):
    """A finished run of 10 epochs, whose numbers do not depend on how many processes load its images."""
    output = tmp_path_factory.mktemp("uninterrupted")
    pretrain("--train_dir", pictures, "--num_train_epochs", 10, output=output)
    return output


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 2), (signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_a_signal_ends_the_run_after_its_step(uninterrupted, pictures, tmp_path, number, workers):
    """Sent to the whole group of processes, as a terminal or a scheduler does."""
    options = ["--train_dir", pictures, "--num_train_epochs", 10, "--dataloader_num_workers", workers]
    cut = tmp_path / "cut"
    command = [sys.executable, "-m", "hf_mim.training.run_pretrain", *TINY, *options, "--output_dir", cut]
    steps = ["--logging_strategy", "steps", "--save_strategy", "steps", "--save_steps", "5"]
    process = subprocess.Popen([*map(str, command), *steps], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list_checkpoints(cut) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, errors
    last = list_checkpoints(cut)[-1]
    step = int(last.name.partition("-")[2])
    assert f"stopped by {number.name} after step {step}. The last checkpoint is {last}." in errors
    assert "Traceback" not in errors and not (cut / "metrics.json").exists()
    assert 5 <= step < 40 and step == json.loads((last / "trainer_state.json").read_text())["global_step"]
    pretrain(*options, output=cut)
    assert logged_losses(cut) == logged_losses(uninterrupted)
    assert_equal_weights(uninterrupted, cut)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_ends_both(pictures, tmp_path):
    program = start(2, 4, pictures, tmp_path / "cut", "--num_train_epochs", 500, "--save_strategy", "epoch")
    while not list_checkpoints(tmp_path / "cut") and program.poll() is None:
        time.sleep(0.02)
    listing = subprocess.run(["pgrep", "-P", str(program.pid)], capture_output=True, text=True)
    children = [int(line) for line in listing.stdout.split()]
    assert len(children) == 2
    os.kill(children[1], signal.SIGTERM)
    _, errors = program.communicate(timeout=120)
    assert program.returncode != 0 and errors.count("stopped by SIGTERM") >= 1, errors[-3000:]
    assert not (tmp_path / "cut" / "metrics.json").exists()
    check_whole(list_checkpoints(tmp_path / "cut")[-1], ("rng_state_0.pth", "rng_state_1.pth"))


@pytest.mark.slow
def test_fifty_kills(pictures, tmp_path):
    """SIGKILL at random moments: the newest checkpoint is whole every time, and the result that of one run."""
    options = ("--train_dir", pictures, "--num_train_epochs", 75, *EVERY_STEP, "--save_total_limit", 2)
    draw = random.Random(0)
    kills = 0
    while not (tmp_path / "cut" / "metrics.json").exists():
        process = multiprocessing.get_context("fork").Process(
            target=pretrain, args=options, kwargs={"output": tmp_path / "cut"}
        )
        process.start()
        process.join(draw.uniform(0.3, 1.5) if kills < 50 else 600)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
        for checkpoint in list_checkpoints(tmp_path / "cut"):
            check_whole(checkpoint, ("optimizer.pt", "scheduler.pt", "rng_state.pth", "teacher"))
    assert kills == 50
    left = sorted(path.name for path in (tmp_path / "cut").iterdir() if path.name.startswith((".", "checkpoint")))
    assert left == ["checkpoint-299", "checkpoint-300"]
    pretrain("--train_dir", pictures, "--num_train_epochs", 75, output=tmp_path / "whole")
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_loss_that_is_not_finite_stops_at_its_step(pictures, tmp_path, monkeypatch):
    """The step is not taken, and what was saved before stays."""
    compute_targets, before = IBotTrainer.compute_targets, {}

    def compute_bad_targets(trainer, inputs):
        targets = compute_targets(trainer, inputs)
        if trainer.state.global_step == 2:
            targets["target_cls"] = targets["target_cls"] * torch.nan
            before.update((name, tensor.clone()) for name, tensor in trainer.model.state_dict().items())
            before["model"] = trainer.model
        return targets

    monkeypatch.setattr(IBotTrainer, "compute_targets", compute_bad_targets)
    message = r"not finite at step 3: loss nan, loss_cls nan, loss_patch \d.*, grad_norm nan\. .*checkpoint-2\."
    with pytest.raises(FloatingPointError, match=message):
        pretrain("--train_dir", pictures, *EVERY_STEP, output=tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    for name, tensor in before.pop("model").state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("saving", [EVERY_STEP, ()])
def test_weights_that_are_not_finite_are_not_saved(pictures, tmp_path, saving):
    """Neither as a checkpoint nor as the result of a run whose only step made them so."""
    options = ("--train_dir", pictures, "--learning_rate", 1e39, "--warmup_epochs", 0, "--max_steps", 1)
    with pytest.raises(FloatingPointError, match="weights are not finite after step 1. There is no checkpoint yet"):
        pretrain(*options, *saving, output=tmp_path)
    assert not list_checkpoints(tmp_path) and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("optimizer", ["adafactor", "sgd", "adamw_torch"])
def test_resume_with_another_optimizer(pictures, tmp_path, optimizer):
    options = ("--train_dir", pictures, "--optim", optimizer, "--max_steps", 3, "--warmup_epochs", 0)
    pretrain(*options, *EVERY_STEP, output=tmp_path / "whole")
    copy_checkpoint(tmp_path / "whole", tmp_path / "cut", "checkpoint-2")
    pretrain(*options, output=tmp_path / "cut")
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")
