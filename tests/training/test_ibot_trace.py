"""IBotTrainer against training traces of the original code: four steps in two epochs, in float32 and float64."""

import pytest
import torch

from hf_mim import IBotConfig, IBotForPreTraining
from hf_mim.training.ibot_trainer import IBotTrainer
from tests.testing.ibot_trace import CenterRecorder, TraceCollator, our_weights, trace_arguments


def run_trace(ibot_golden, tmp_path, name: str, double: bool):
    golden, description = ibot_golden(f"{name}_f64")
    if not double:
        overrides, description = ibot_golden(name)
        golden = golden | overrides
    hyper, backbone, head = description["hyper"], description["backbone_args"], description["head_args"]
    dtype = torch.float64 if double else torch.float32
    config = IBotConfig(
        hidden_size=backbone["embed_dim"],
        num_hidden_layers=backbone["depth"],
        num_attention_heads=backbone["num_heads"],
        image_size=backbone["img_size"],
        patch_size=backbone["patch_size"],
        drop_path_rate=0.0,
        out_dim=head["out_dim"],
        patch_out_dim=head["patch_out_dim"],
        head_hidden_size=head["hidden_dim"],
        head_bottleneck_size=head["bottleneck_dim"],
        shared_head=head["shared_head_student"],
        norm_last_layer=head["norm_last_layer_student"],
        cls_loss_weight=hyper["lambda1"],
        patch_loss_weight=hyper["lambda2"],
    )
    model = IBotForPreTraining(config).to(dtype)
    model.load_state_dict(our_weights(golden, "student_init/"))
    args = trace_arguments(tmp_path, hyper, head)
    recorder = CenterRecorder()
    trainer = IBotTrainer(
        model=model,
        args=args,
        data_collator=TraceCollator(golden, dtype),
        train_dataset=[{}] * hyper["batch"] * hyper["niter"],
        callbacks=[recorder],
    )
    recorder.trainer = trainer
    for key, value in our_weights(golden, "teacher_init/").items():
        torch.testing.assert_close(trainer.teacher.state_dict()[key], value.to(dtype), rtol=0, atol=0)
    trainer.train()
    return trainer, golden, description, recorder.steps


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["train_trace_shared", "train_trace_separate_student"])
def test_trace(ibot_golden, tmp_path, name, double):
    trainer, golden, description, recorded = run_trace(ibot_golden, tmp_path, name, double)
    logs = [entry for entry in trainer.state.log_history if "loss_cls" in entry]
    assert len(logs) == len(recorded) == len(description["steps"]) == 4
    loss_tolerance = 1e-7 if double else description["tolerance"]["losses rtol"]
    atol = 1e-7 if double else 2e-5
    for i, (log, seen, expected) in enumerate(zip(logs, recorded, description["steps"], strict=True)):
        # The logs are float32 in either case.
        assert log["loss_cls"] == pytest.approx(expected["cls"], rel=max(loss_tolerance, 2e-7))
        assert log["loss_patch"] == pytest.approx(expected["patch"], rel=max(loss_tolerance, 2e-7))
        assert log["loss"] == pytest.approx(expected["loss"], rel=max(loss_tolerance, 2e-7))
        assert log["agreement"] == expected["acc"]
        assert log["grad_norm"] == pytest.approx(expected["total_grad_norm_before_clip"], rel=1e-3)
        for name_ in ("lr", "wd", "momentum"):
            assert seen[name_] == pytest.approx(expected[name_], abs=1e-12)
        assert seen["no_decay"] == 0.0
        torch.testing.assert_close(seen["center"], golden[f"step{i}/center"][0], rtol=0, atol=atol)
        torch.testing.assert_close(seen["center2"], golden[f"step{i}/center2"][0, 0], rtol=0, atol=atol)

    for network, model in (("student", trainer.model), ("teacher", trainer.teacher)):
        weights = model.state_dict()
        for key, value in our_weights(golden, f"{network}_final/").items():
            # The gradient of the key bias is rounding noise, which AdamW blows up to the learning rate in float32.
            if double or "k_proj.bias" not in key:
                torch.testing.assert_close(
                    weights[key],
                    value.to(weights[key].dtype),
                    rtol=0,
                    atol=atol,
                    msg=lambda m, name=f"{network} {key}": f"{name}: {m}",
                )
