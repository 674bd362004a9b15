"""IBotTrainer with a Swin Transformer against a training trace of the original code, in float64."""

import pytest
import torch

from hf_mim import IBotSwinForPreTraining, convert_checkpoint
from hf_mim.training.ibot_trainer import IBotTrainer
from tests.testing.ibot_trace import CenterRecorder, TraceCollator, trace_arguments


def converted(golden: dict[str, torch.Tensor], stage: str, network: str) -> IBotSwinForPreTraining:
    """Student or teacher at the start (`init`) or at the end (`final`) of the trace."""
    prefix = f"{network}_{stage}/"
    weights = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    return convert_checkpoint(weights, image_size=32, norm_last_layer=True, drop_path_rate=0.0).model


def test_trace(ibot_golden, tmp_path):
    golden, description = ibot_golden("train_trace_swin_f64")
    hyper, backbone, head = description["hyper"], description["backbone_args"], description["head_args"]
    model = converted(golden, "init", "student")
    config = model.config
    assert [config.embed_dim, config.depths, config.num_heads, config.window_size, config.image_size] == [
        backbone[name] for name in ("embed_dim", "depths", "num_heads", "window_size", "img_size")
    ]
    assert config.shared_head and config.out_dim == head["out_dim"]
    recorder = CenterRecorder()
    trainer = recorder.trainer = IBotTrainer(
        model=model.to(torch.float64),
        args=trace_arguments(tmp_path, hyper, head),
        data_collator=TraceCollator(golden, torch.float64),
        train_dataset=[{}] * hyper["batch"] * hyper["niter"],
        callbacks=[recorder],
    )
    groups = {True: set(), False: set()}
    for group in trainer.create_optimizer().param_groups:
        groups[group["weight_decay"] > 0] |= {id(parameter) for parameter in group["params"]}
    decayed = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in groups[True]}
    # The original decays the bias tables and the mask token as well; its joint qkv are three matrices here.
    assert len(decayed) == len(description["decayed"]) + 2 * sum(config.depths)
    assert "ibot.embeddings.mask_token" in decayed
    assert sum(name.endswith("relative_position_bias_table") for name in decayed) == sum(config.depths)

    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss_cls" in entry]
    assert len(logs) == len(recorder.steps) == len(description["steps"]) == 4
    for i, (log, seen, expected) in enumerate(zip(logs, recorder.steps, description["steps"], strict=True)):
        # The logs are float32.
        assert log["loss_cls"] == pytest.approx(expected["cls"], rel=2e-7)
        assert log["loss_patch"] == pytest.approx(expected["patch"], rel=2e-7)
        assert log["loss"] == pytest.approx(expected["loss"], rel=2e-7)
        assert log["agreement"] == expected["acc"]
        assert log["grad_norm"] == pytest.approx(expected["total_grad_norm_before_clip"], rel=1e-3)
        for name in ("lr", "wd", "momentum"):
            assert seen[name] == pytest.approx(expected[name], abs=1e-12)
        torch.testing.assert_close(seen["center"], golden[f"step{i}/center"][0], rtol=0, atol=1e-8)
        torch.testing.assert_close(seen["center2"], golden[f"step{i}/center2"][0, 0], rtol=0, atol=1e-8)

    for network, trained in (("student", trainer.model), ("teacher", trainer.teacher)):
        weights = trained.state_dict()
        final = converted(golden, "final", network).state_dict()
        if network == "teacher":
            del final["ibot.embeddings.mask_token"]
        for name, value in final.items():
            # The recorded weights are kept in float32.
            torch.testing.assert_close(
                weights[name].float(), value, rtol=1.2e-7, atol=2e-8, msg=lambda m, n=f"{network} {name}": f"{n}: {m}"
            )
