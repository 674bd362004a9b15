"""Two processes (gloo, CPU) with half the batch each do what one process does; sharded too."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining, Trainer

from tests.testing.processes import CONFIGS, IBOT, SWIN, launch, start
from tests.testing.tiny_training import pretrain


def assert_same_run(one: list[dict], two: list[dict], first: Path, second: Path):
    """Logs and weights agree to rounding."""
    assert len(one) == len(two)
    compared = 0
    for entry, other in zip(one, two, strict=True):
        assert entry.keys() == other.keys()
        for name in ("loss", "loss_cls", "loss_patch", "target_entropy", "grad_norm", "agreement", "prototypes_used"):
            if name in entry:
                assert other[name] == pytest.approx(entry[name], rel=2e-4), name
                compared += 1
        for name in entry:
            if "knn" in name:
                assert entry[name] == other[name]
                compared += 1
    assert compared > 20
    for part in ("", "teacher"):
        weights = [
            AutoModelForPreTraining.from_pretrained(run / "pretraining", subfolder=part).state_dict()
            for run in (first, second)
        ]
        for name, value in weights[0].items():
            # The gradient of the key bias is rounding noise, of which AdamW makes steps of the learning rate.
            if "k_proj.bias" not in name:
                torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-4, msg=name)
    centers = [load_file(run / "pretraining/teacher/centers.safetensors") for run in (first, second)]
    for name, value in centers[0].items():
        torch.testing.assert_close(centers[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "target"), [(IBOT, "centering"), (IBOT, "sinkhorn"), (SWIN, "centering")])
def test_two_processes_equal_one(pictures, tmp_path, method, target):
    options = ("--target", target, "--eval_strategy", "epoch")
    one = launch(1, 8, pictures, tmp_path / "one", *options, method=method)
    two = launch(2, 4, pictures, tmp_path / "two", *options, method=method)
    assert_same_run(one, two, tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "half"), [(IBOT, ()), (IBOT, ("--bf16",)), (SWIN, ())])
def test_two_sharded_processes_equal_one(pictures, tmp_path, method, half):
    """
    Student and teacher are spread over both; resumed from a checkpoint, the weights are the same to the bit. In half
    precision the other run is one of two copies, whose matrices have the same shapes.
    """
    options = ("--eval_strategy", "epoch", "--save_strategy", "epoch", *half)
    processes, batch = (2, 4) if half else (1, 8)
    one = launch(processes, batch, pictures, tmp_path / "one", *options, method=method)
    two = launch(2, 4, pictures, tmp_path / "two", *options, method=method, sharded=True)
    assert_same_run(one, two, tmp_path / "one", tmp_path / "two")
    shutil.copytree(tmp_path / "two" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    launch(2, 4, pictures, tmp_path / "cut", *options, method=method, sharded=True)
    for part in ("", "teacher"):
        weights, resumed = (
            AutoModelForPreTraining.from_pretrained(tmp_path / run / "pretraining", subfolder=part).state_dict()
            for run in ("two", "cut")
        )
        for name, value in weights.items():
            assert torch.equal(resumed[name], value), name


@pytest.mark.slow
def test_whole_fsdp_checkpoints_are_refused(pictures, tmp_path):
    launcher = ("--fsdp_state_dict_type", "FULL_STATE_DICT")
    process = start(2, 4, pictures, tmp_path, sharded=True, launcher=launcher)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0 and "hf-mim: error: FSDP checkpoints must be sharded" in errors


@pytest.mark.parametrize("kind", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_deepspeed_and_the_first_fsdp_are_refused(pictures, tmp_path, monkeypatch, kind):
    prepare = Trainer.create_accelerator_and_postprocess

    def prepare_sharded(trainer):
        prepare(trainer)
        setattr(trainer, kind, True)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", prepare_sharded)
    with pytest.raises(ValueError, match="use FSDP 2 or DDP"):
        pretrain("--train_dir", pictures, output=tmp_path)


@pytest.mark.parametrize("name", ["one_gpu", "ddp", "ddp_multi_node", "fsdp2", "cpu"])
def test_packaged_configurations_are_valid(name):
    """accelerate refuses unknown entries itself."""
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.num_processes > 1) == (name != "one_gpu") and (config.num_machines > 1) == ("node" in name)
    # Each model says itself which blocks are sharded by themselves.
    assert "fsdp_transformer_layer_cls_to_wrap" not in config.fsdp_config
