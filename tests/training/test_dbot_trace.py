"""DBotTrainer against training traces of the original code: several stages of four steps each, in float32."""

import pytest
import torch
from transformers import TrainerCallback

from hf_mim import DBotConfig, DBotForPreTraining
from hf_mim.hub.convert.dbot import rename_dbot
from hf_mim.training.dbot_arguments import DBotTrainingArguments
from hf_mim.training.dbot_trainer import DBotTrainer


TWO_STAGES = {"hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 96, "decoder_hidden_size": 32}
TWO_STAGES |= {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 64}
THREE_STAGES = {"hidden_size": 40, "num_hidden_layers": 2, "intermediate_size": 80, "decoder_hidden_size": 24}
THREE_STAGES |= {"decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 48}
CLIP = {"max_grad_norm": 0.05, "min_learning_rate": 1e-5, "stage_teacher_depth": [0, 3]}
TRACES = {
    # The third one, without what would take too much room here.
    "trace": (TWO_STAGES, CLIP),
    "trace_two_stage": (TWO_STAGES, {"max_grad_norm": 0.0}),
    "trace_two_stage_clip_depth0": (TWO_STAGES, CLIP),
    "trace_three_stage": (
        THREE_STAGES | {"norm_targets": False},
        {"max_grad_norm": 0.0, "teacher_feature": "normed", "stage_epochs": [2, 2, 2]},
    ),
}


def under(golden: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


def assert_weights(weights: dict[str, torch.Tensor], official: dict[str, torch.Tensor]):
    for name, value in rename_dbot(official).items():
        # The gradient of the key bias is rounding noise, of which Adam makes steps of the learning rate.
        tolerance = 2e-2 if name.endswith("k_proj.bias") else 2e-5
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=tolerance, msg=name)


class Recorder(TrainerCallback):
    """Notes the learning rate of every step, and Adam's state after each."""

    def __init__(self):
        self.rates, self.moments = [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, optimizer=None, model=None, **kwargs):
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.moments.append({names[p]: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()})


def assert_moments(moments: dict[str, dict[str, torch.Tensor]], official: dict[str, torch.Tensor], steps: int):
    compared = 0
    for key, value in official.items():
        name, moment = key.rsplit(".", 1)
        if "qkv" in name:
            continue
        (name,) = rename_dbot({name: value})
        state = moments[name]
        torch.testing.assert_close(state[moment], value, rtol=1e-3, atol=1e-6, msg=key)
        assert state["step"] == steps
        compared += 1
    assert compared == 8


@pytest.mark.parametrize("trace", TRACES)
def test_trace(dbot_golden, tmp_path, monkeypatch, trace):
    golden = dbot_golden(trace)
    sizes, options = TRACES[trace]
    model = DBotForPreTraining(
        DBotConfig(image_size=32, patch_size=8, num_attention_heads=4, drop_path_rate=0.0, **sizes)
    )
    model.load_state_dict(rename_dbot(under(golden, "initial.")))
    steps, batch_size = golden["noise"].shape[:2]
    batches = iter([{"pixel_values": golden["samples"][i], "noise": golden["noise"][i]} for i in range(steps)])
    switches = []

    def reinitialize(student):
        assert_weights(student.state_dict(), under(golden, f"stage_end{len(switches)}."))
        drawn = under(golden, f"reinit{len(switches)}.")
        bias = student.dbot.embeddings.patch_embeddings.projection.bias
        torch.testing.assert_close(bias, drawn["patch_embed.proj.bias"], rtol=1e-4, atol=2e-5)
        student.load_state_dict(rename_dbot(drawn))
        switches.append(trainer.state.global_step)

    monkeypatch.setattr(DBotForPreTraining, "reinitialize", reinitialize)
    recorder = Recorder()
    trainer = DBotTrainer(
        model=model,
        args=DBotTrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            per_device_train_batch_size=batch_size,
            learning_rate=0.002,
            warmup_epochs=1,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            **{"stage_epochs": [2, 2]} | options,
        ),
        data_collator=lambda samples: next(batches),
        train_dataset=[{}] * (2 * batch_size),
        callbacks=[recorder],
    )
    trainer.train()

    stages = steps // 4
    assert switches == list(range(4, steps, 4))
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for name, tolerance in (("loss", {"abs": 2e-5}), ("grad_norm", {"rel": 1e-4})):
        expected = golden[name].tolist()
        assert [log[name] for log in logs] == pytest.approx(expected, **tolerance)
    assert recorder.rates == pytest.approx(golden["lr"].tolist(), abs=1e-12)
    assert [log["stage"] for log in logs] == [1 + step // 4 for step in range(steps)]
    assert_weights(model.state_dict(), under(golden, "final."))
    for stage in range(stages - 1):
        assert_moments(recorder.moments[4 * stage + 3], under(golden, f"opt_at_switch{stage}."), 4 * stage + 4)
    assert_moments(recorder.moments[-1], under(golden, "opt_final."), steps)
