"""Trainers and runs so small that a test can watch them for a few steps."""

import json
from pathlib import Path

import torch

from hf_mim import IBotConfig, IBotForPreTraining
from hf_mim.training import run_pretrain
from hf_mim.training.ibot_arguments import IBotTrainingArguments
from hf_mim.training.ibot_trainer import IBotTrainer


# Options of `hf-mim pretrain`.
SHORT = ("--warmup_epochs", "0", "--warmup_teacher_temp_epochs", "0")
SIZES = (
    "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,out_dim=16,patch_out_dim=16,"
    "head_hidden_size=16,head_bottleneck_size=8"
)
TINY = [
    *("--image_size", "16", "--patch_size", "4", "--config_overrides", SIZES),
    *("--local_crops_number", "2", "--local_crop_size", "8", "--resize_size", "16"),
    *("--per_device_train_batch_size", "4", "--num_train_epochs", "2", "--warmup_epochs", "0.5"),
    *("--warmup_teacher_temp_epochs", "1", "--learning_rate", "0.003", "--use_cpu", "--disable_tqdm", "true"),
    *("--knn_k", "3", "--save_strategy", "no", "--logging_steps", "1"),
]

# The configuration of `tiny_trainer`.
CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "drop_path_rate": 0.0,
    "out_dim": 16,
    "head_hidden_size": 16,
    "head_bottleneck_size": 8,
    "linear_init": "xavier_uniform",
}


class Noise(torch.utils.data.Dataset):
    """Images of 3x8x8 normal random numbers, times `contrast`; each is its own two views but for a little noise."""

    def __init__(self, length: int = 64, contrast: float = 1.0):
        self.length, self.contrast = length, contrast

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        image = self.contrast * torch.randn(3, 8, 8, generator=generator)
        return image + 0.1 * self.contrast * torch.randn(2, 3, 8, 8, generator=generator)


def collate(views: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first of the four patches is masked in every view."""
    mask = torch.zeros(len(views), 2, 4, dtype=torch.bool)
    mask[..., 0] = True
    return {"pixel_values": torch.stack(views), "bool_masked_pos": mask}


def tiny_trainer(
    folder: Path, dataset=None, config: dict | None = None, callbacks=(), collator=collate, **options
) -> IBotTrainer:
    """An [`IBotTrainer`] on `Noise`, batches of 8, one log per step; `config` and `options` override the defaults."""
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "warmup_epochs": 0,
        "warmup_teacher_temp_epochs": 0,
        "local_crops_number": 0,
        "freeze_last_layer": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = IBotTrainingArguments(output_dir=str(folder), **defaults | options)
    torch.manual_seed(0)
    return IBotTrainer(
        model=IBotForPreTraining(IBotConfig(**CONFIG | (config or {}))),
        args=args,
        train_dataset=Noise() if dataset is None else dataset,
        data_collator=collator,
        callbacks=list(callbacks),
    )


def pretrain(*options, output):
    """`hf-mim pretrain` with `TINY`; gives its metrics."""
    return run_pretrain.main([*TINY, *map(str, options), "--output_dir", str(output)])


def logged_losses(folder) -> list[float]:
    """The losses in the log of a run, the oldest first."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]
