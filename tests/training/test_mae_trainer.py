"""A method without a target network: transformers' MAE in a few lines over `MIMTrainer`."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel, ViTMAEConfig, ViTMAEForPreTraining

from hf_mim import MIMTrainer, MIMTrainingArguments
from hf_mim.training.checkpoints import list_checkpoints
from tests.testing.tiny_training import Bytes


class MAE(ViTMAEForPreTraining):
    """With the names of its modules in a checkpoint: `Trainer` does not translate the older ones when it resumes."""

    def save_pretrained(self, *args, **kwargs):
        super().save_pretrained(*args, save_original_format=False, **kwargs)


class MAETrainer(MIMTrainer):
    """The model draws its masks and computes its loss; there is nothing to compare with but the images."""

    def normalize_inputs(self, inputs: dict):
        inputs["pixel_values"] = inputs["pixel_values"] / 127.5 - 1

    def deployable_encoder(self) -> PreTrainedModel:
        return self.whole_student().vit

    def record_batch(self, targets, outputs):
        super().record_batch(targets, outputs)
        self.step_logs.add("masked", outputs.mask.mean())


def mae_trainer(folder: Path) -> MAETrainer:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    torch.manual_seed(0)
    return MAETrainer(
        model=MAE(ViTMAEConfig(image_size=8, patch_size=2, mask_ratio=0.75, **sizes, **decoder)),
        args=MIMTrainingArguments(
            output_dir=str(folder),
            max_steps=4,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            warmup_epochs=0,
            logging_steps=1,
            save_strategy="steps",
            save_steps=1,
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Bytes(),
        data_collator=lambda images: {"pixel_values": torch.stack(images)},
    )


def test_it_trains_logs_and_resumes_to_the_bit(tmp_path):
    whole = mae_trainer(tmp_path / "whole")
    before = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.train()
    assert whole.teacher is None and whole.whole_target() is None
    logs = [entry for entry in whole.state.log_history if "loss" in entry]
    assert len(logs) == 4 and all(entry["masked"] == 0.75 and entry["grad_norm"] > 0 for entry in logs)
    weights = whole.model.state_dict()
    assert not torch.equal(weights["vit.embeddings.cls_token"], before["vit.embeddings.cls_token"])
    assert set(whole.deployable_encoder().state_dict()) == {
        name.removeprefix("vit.") for name in weights if name.startswith("vit.")
    }

    checkpoints = list_checkpoints(tmp_path / "whole")
    assert [path.name for path in checkpoints] == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    assert not (checkpoints[1] / "teacher").exists()
    files = json.loads((checkpoints[1] / "manifest.json").read_text())["files"]
    assert "model.safetensors" in files and not any(name.startswith("teacher") for name in files)

    resumed = mae_trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=str(checkpoints[1]))
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert [e["loss"] for e in resumed.state.log_history if "loss" in e] == [entry["loss"] for entry in logs]
