"""`hf-mim pretrain` goes on from a converted official checkpoint, as the original code does from the checkpoint."""

import json

import pytest
import torch

import hf_mim_cli as cli
from hf_mim.training.pretrain import ibot as ibot_method
from tests.testing.ibot_trace import TraceCollator, our_weights
from tests.testing.official_ibot import full_checkpoint
from tests.testing.tiny_training import pretrain


class OneStep(TraceCollator):
    """The recorded views and masks of one step, whatever it is asked for and however often."""

    def __init__(self, golden: dict, step: int):
        super().__init__(golden, torch.float32)
        self.wanted = step

    def __call__(self, samples):
        self.step = self.wanted
        return super().__call__(samples)


def convert(checkpoint: dict, folder) -> str:
    torch.save(checkpoint, folder / "checkpoint.pth")
    output = folder / "converted"
    assert cli.main(["convert", str(folder / "checkpoint.pth"), str(output), "--num_attention_heads", "3"]) == 0
    return str(output)


def continued(source: str, pictures, golden: dict, step: int, hyper: dict, monkeypatch, output) -> dict:
    """What the first step on the recorded views and masks of a step logs."""
    monkeypatch.setattr(ibot_method, "IBotCollator", lambda *args: OneStep(golden, step))
    options = [
        *("--model_name_or_path", source, "--train_dir", pictures, "--eval_split", "test", "--knn_k", "3"),
        *("--per_device_train_batch_size", hyper["batch"], "--max_steps", "1", "--num_train_epochs", "2"),
        *("--local_crops_number", "2", "--local_crop_size", hyper["local"], "--warmup_epochs", "0"),
        *("--warmup_teacher_temp_epochs", "1", "--logging_steps", "1", "--use_cpu", "--disable_tqdm", "true"),
        *("--save_strategy", "no", "--learning_rate", "0"),
    ]
    for name in ("warmup_teacher_temp", "teacher_temp", "warmup_teacher_patch_temp", "teacher_patch_temp"):
        options += [f"--{name}", hyper[name]]
    pretrain(*options, output=output, method=[])
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return next(entry for entry in history if "loss_cls" in entry)


def test_the_first_loss_is_that_of_the_original(ibot_golden, pictures, tmp_path, monkeypatch):
    """
    The first step of the trace has learning rate 0: before the second, the weights are still those of the start, and
    only the centers have moved.
    """
    overrides, description = ibot_golden("train_trace_shared")
    golden = ibot_golden("train_trace_shared_f64")[0] | overrides
    source = convert(full_checkpoint(golden, "init", 0), tmp_path)
    log = continued(source, pictures, golden, 1, description["hyper"], monkeypatch, tmp_path / "run")
    expected, tolerance = description["steps"][1], description["tolerance"]["losses rtol"]
    assert log["loss_cls"] == pytest.approx(expected["cls"], rel=tolerance)
    assert log["loss_patch"] == pytest.approx(expected["patch"], rel=tolerance)
    assert log["loss"] == pytest.approx(expected["loss"], rel=tolerance)


def test_the_teacher_and_its_centers_are_used(ibot_golden, pictures, tmp_path, monkeypatch):
    """After the trace, student and teacher differ; the loss is that of the student against this teacher's targets."""
    overrides, description = ibot_golden("train_trace_shared")
    golden = ibot_golden("train_trace_shared_f64")[0] | overrides
    source = convert(full_checkpoint(golden, "final", 3), tmp_path)
    trained = {}
    build = ibot_method.IBotRun.build_trainer

    def remember(self, **common):
        trained["trainer"] = build(self, **common)
        return trained["trainer"]

    monkeypatch.setattr(ibot_method.IBotRun, "build_trainer", remember)
    log = continued(source, pictures, golden, 2, description["hyper"], monkeypatch, tmp_path / "run")
    trainer = trained["trainer"]
    student, teacher = (our_weights(golden, f"{network}_final/") for network in ("student", "teacher"))
    for name, tensor in student.items():
        assert torch.equal(trainer.model.state_dict()[name], tensor)
    # One step of the moving average with learning rate 0.
    for name, tensor in teacher.items():
        expected = tensor + (1 - 0.996) * (student[name] - tensor)
        torch.testing.assert_close(trainer.teacher.state_dict()[name], expected, rtol=1e-5, atol=1e-6)

    inputs = OneStep(golden, 2)(None)
    trainer.teacher.load_state_dict(teacher, strict=False)
    indices = inputs["bool_masked_pos"].flatten().nonzero().squeeze(1)
    taught = trainer.teacher.teach(inputs["pixel_values"], indices)
    centers = golden["step3/center"], golden["step3/center2"][0]
    targets = [
        ((logits - center) / 0.04).softmax(-1)
        for logits, center in zip((taught.cls_logits, taught.patch_logits), centers, strict=True)
    ]
    with torch.no_grad():
        loss = trainer.model(**inputs, target_cls=targets[0], target_patch=targets[1]).loss
        without = [(logits / 0.04).softmax(-1) for logits in (taught.cls_logits, taught.patch_logits)]
        other = trainer.model(**inputs, target_cls=without[0], target_patch=without[1]).loss
    assert log["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert abs(other.item() - loss.item()) > 1e-3
