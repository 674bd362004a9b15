"""VQKDTrainer against a training trace of the original code: three steps from a given codebook, in float32."""

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_mim import VQKDConfig, VQKDModel
from hf_mim.hub.convert.vqkd import rename_vqkd
from hf_mim.modeling.image_processing_pil_mim import Beitv2ImageProcessorPil
from hf_mim.training.vqkd_arguments import VQKDTrainingArguments
from hf_mim.training.vqkd_trainer import VQKDTrainer


LEARNING_RATES = (1e-3, 2e-3, 1.5e-3)


class RecordedTeacher(nn.Module):
    """Gives the recorded features of each step, and notes the images that it is shown."""

    name, grid, hidden_size = "recorded", (4, 4), 512

    def __init__(self, golden: dict[str, torch.Tensor]):
        super().__init__()
        self.golden, self.images = golden, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images.append(images)
        return self.golden[f"in/teacher_features_{len(self.images) - 1}"]


class Recorder(TrainerCallback):
    """Sets the recorded learning rates, which are on no schedule; notes the codebook after every step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATES[state.global_step]

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.steps.append((model.quantizer.codebook.clone(), model.quantizer.usage.clone()))
        self.decay = [group["weight_decay"] for group in optimizer.param_groups]


def test_trace(beitv2_golden, tmp_path):
    golden = beitv2_golden("vqkd_train_trace")
    official = {k.removeprefix("weights/"): v for k, v in golden.items() if k.startswith("weights/")}
    config = VQKDConfig(
        image_size=32,
        patch_size=8,
        hidden_size=48,
        num_hidden_layers=2,
        decoder_num_hidden_layers=1,
        num_attention_heads=4,
        codebook_size=40,
        codebook_dim=8,
    )
    model = VQKDModel(config)
    model.load_state_dict(rename_vqkd(official))
    batches = iter([{"pixel_values": 2 * golden[f"in/images_{step}"] - 1} for step in range(3)])
    teacher, recorder = RecordedTeacher(golden), Recorder()
    trainer = VQKDTrainer(
        model=model,
        args=VQKDTrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            per_device_train_batch_size=4,
            max_steps=3,
            warmup_epochs=0,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        ),
        teacher=teacher,
        processing_class=Beitv2ImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3),
        data_collator=lambda samples: next(batches),
        train_dataset=[{}] * 12,
        callbacks=[recorder],
    )
    trainer.train()

    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == len(recorder.steps) == 3
    for step, (log, (codebook, usage)) in enumerate(zip(logs, recorder.steps, strict=True)):
        torch.testing.assert_close(teacher.images[step], golden[f"in/images_{step}"], rtol=0, atol=1e-6)
        for name, expected in (("loss", "loss"), ("loss_feature", "rec_loss"), ("loss_quantizer", "quant_loss")):
            assert log[name] == pytest.approx(golden[f"out/{expected}"][step].item(), abs=2e-5)
        assert log["grad_norm"] == pytest.approx(golden["out/grad_norm"][step].item(), rel=1e-4)
        torch.testing.assert_close(codebook, golden[f"out/codebook_{step}"], rtol=0, atol=2e-5)
        torch.testing.assert_close(usage, golden[f"out/cluster_size_{step}"], rtol=0, atol=2e-5)
        counts = golden[f"out/codes_{step}"].flatten().bincount(minlength=40)
        assert log["dead_codes"] == (counts == 0).sum()
        assert log["codebook_usage"] == pytest.approx((counts > 0).float().mean().item())
    assert recorder.decay == [1e-4, 0.0]

    final = {k.removeprefix("final/"): v for k, v in golden.items() if k.startswith("final/")}
    weights = model.state_dict()
    for key, value in rename_vqkd(final).items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}")
