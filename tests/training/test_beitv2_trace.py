"""Beitv2Trainer against a training trace of the original code: four steps, in float32."""

import pytest
import torch
from transformers import TrainerCallback

from hf_mim import Beitv2Config, Beitv2ForPreTraining, Beitv2ImageProcessorPil, VQKDConfig, VQKDModel
from hf_mim.hub.convert.beitv2 import rename_beitv2
from hf_mim.training.beitv2_arguments import Beitv2TrainingArguments
from hf_mim.training.beitv2_trainer import Beitv2Trainer


LEARNING_RATES = (5e-4, 1.5e-3, 1.5e-3, 7.5e-4)


def under(golden: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


class Recorder(TrainerCallback):
    """Sets the recorded learning rates, which are on no schedule."""

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATES[state.global_step]

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.decay = [group["weight_decay"] for group in optimizer.param_groups]


def test_trace(beitv2_golden, tmp_path):
    golden = beitv2_golden("pretrain_train_trace")
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_attention_heads": 4}
    model = Beitv2ForPreTraining(
        Beitv2Config(**sizes, num_hidden_layers=3, vocab_size=61, early_layers=2, head_layers=2)
    )
    model.load_state_dict(rename_beitv2(under(golden, "initial/")))
    tokenizer = VQKDModel(VQKDConfig(**sizes, num_hidden_layers=1, codebook_size=61, kmeans_init=False))
    codes = iter([golden[f"in/codes_{step}"] for step in range(4)])
    tokenizer.encode = lambda pixel_values: next(codes)
    # The tokenizer's answers are recorded, whatever it sees.
    batches = iter(
        {
            "pixel_values": golden[f"in/pixel_values_{step}"],
            "target_pixel_values": golden[f"in/pixel_values_{step}"],
            "bool_masked_pos": golden[f"in/bool_masked_pos_{step}"],
        }
        for step in range(4)
    )
    recorder = Recorder()
    trainer = Beitv2Trainer(
        model=model,
        args=Beitv2TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            per_device_train_batch_size=4,
            max_steps=4,
            warmup_epochs=0,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        ),
        tokenizer=tokenizer,
        tokenizer_processor=Beitv2ImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3),
        data_collator=lambda samples: next(batches),
        train_dataset=[{}] * 16,
        callbacks=[recorder],
    )
    trainer.train()

    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4
    for step, log in enumerate(logs):
        for name, expected in (("loss", "loss"), ("loss_mim", "loss_1"), ("loss_mim_cls", "loss_2")):
            assert log[name] == pytest.approx(golden[f"out/{expected}"][step].item(), abs=5e-5)
        for name, expected in (("accuracy_mim", "mlm_acc_1"), ("accuracy_mim_cls", "mlm_acc_2")):
            assert log[name] == pytest.approx(golden[f"out/{expected}"][step].item(), abs=1e-6)
        assert log["grad_norm"] == pytest.approx(golden["out/grad_norm"][step].item(), rel=1e-4)
        labels = golden[f"in/codes_{step}"][golden[f"in/bool_masked_pos_{step}"]]
        assert log["codes_used"] == pytest.approx(len(labels.unique()) / 61)
        assert log["majority_code"] == pytest.approx((labels == labels.mode().values).float().mean().item())
    assert recorder.decay == [0.05, 0.0]

    weights, differences = model.state_dict(), []
    for key, value in rename_beitv2(under(golden, "final/")).items():
        difference = (weights[key] - value).abs()
        assert difference.max() < 5e-4, key
        differences.append(difference.flatten())
    # AdamW makes large steps of gradients that are nothing but rounding.
    assert torch.cat(differences).median() < 1e-6
