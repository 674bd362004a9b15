"""Trainers and runs so small that a test can watch them for a few steps."""

import json
from pathlib import Path

import torch
from transformers import ViTConfig, ViTModel

from hf_mim import Beitv2ImageProcessorPil, IBotConfig, IBotForPreTraining, VQKDConfig, VQKDModel
from hf_mim.training import run_pretrain
from hf_mim.training.ibot_arguments import IBotTrainingArguments
from hf_mim.training.ibot_trainer import IBotTrainer
from hf_mim.training.teachers import FeatureTeacher
from hf_mim.training.vqkd_arguments import VQKDTrainingArguments
from hf_mim.training.vqkd_trainer import VQKDTrainer


# Options of `hf-mim pretrain`.
SHORT = ("--warmup_epochs", "0", "--warmup_teacher_temp_epochs", "0")
SIZES = (
    "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,out_dim=16,patch_out_dim=16,"
    "head_hidden_size=16,head_bottleneck_size=8"
)
COMMON = [
    *("--image_size", "16", "--patch_size", "4", "--resize_size", "16"),
    *("--per_device_train_batch_size", "4", "--num_train_epochs", "2", "--warmup_epochs", "0.5"),
    *("--learning_rate", "0.003", "--use_cpu", "--disable_tqdm", "true"),
    *("--knn_k", "3", "--save_strategy", "no", "--logging_steps", "1"),
]
TINY = [
    *COMMON,
    *("--config_overrides", SIZES, "--local_crops_number", "2", "--local_crop_size", "8"),
    *("--warmup_teacher_temp_epochs", "1"),
]
SWIN_SIZES = (
    "embed_dim=8,depths=[2,2],num_heads=[2,2],window_size=3,norm_last_layer=false,"
    "out_dim=16,head_hidden_size=16,head_bottleneck_size=8"
)
# Views of 8 and 5 patches a side, which give 4 and 3 regions.
TINY_SWIN = [
    *COMMON,
    *("--model_type", "ibot_swin", "--image_size", "32", "--config_overrides", SWIN_SIZES),
    *("--local_crops_number", "2", "--local_crop_size", "20", "--warmup_teacher_temp_epochs", "1"),
]
VQKD_SIZES = (
    "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,decoder_num_hidden_layers=1,codebook_size=16,"
    "codebook_dim=4"
)
BEITV2_SIZES = "hidden_size=16,num_hidden_layers=3,num_attention_heads=2,early_layers=2,head_layers=1"

DBOT_SYMMETRIC_SIZES = "hidden_size=16,num_hidden_layers=3,num_attention_heads=2,drop_path_rate=0.3"


DBOT_SIZES = (
    "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,decoder_hidden_size=8,decoder_num_hidden_layers=1,"
    "decoder_num_attention_heads=2,drop_path_rate=0.0"
)
TINY_DBOT = [*COMMON, "--model_type", "dbot", "--config_overrides", DBOT_SIZES, "--warmup_epochs", "0.5"]


def tiny_vqkd(teacher: Path) -> list[str]:
    """Options of a tokenizer that learns from `teacher`."""
    return [
        *COMMON,
        *("--model_type", "vqkd", "--teacher_model_name_or_path", str(teacher), "--config_overrides", VQKD_SIZES),
    ]


def tiny_beitv2(tokenizer: Path) -> list[str]:
    """Options of an encoder that learns from `tokenizer`."""
    return [
        *COMMON,
        *("--model_type", "beitv2", "--tokenizer_name_or_path", str(tokenizer), "--config_overrides", BEITV2_SIZES),
    ]


def tiny_dbot_symmetric(teacher: Path) -> list[str]:
    """Options of an encoder that learns the features of `teacher`."""
    return [
        *COMMON,
        *("--model_type", "dbot_symmetric", "--teacher_model_name_or_path", str(teacher)),
        *("--config_overrides", DBOT_SYMMETRIC_SIZES),
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


class Bytes(torch.utils.data.Dataset):
    """64 images of 3x8x8 random bytes, in the four patches of which the colors differ."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        colors = torch.randint(0, 256, (3, 2, 2), generator=generator)
        image = colors.repeat_interleave(4, 1).repeat_interleave(4, 2)
        return (image + torch.randint(-40, 41, (3, 8, 8), generator=generator)).clamp(0, 255).to(torch.uint8)


def tiny_teacher(seed: int = 0) -> FeatureTeacher:
    """A ViT with random weights that gives 12 numbers for each of 2 x 2 patches."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    vit = ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4, initializer_range=0.2), add_pooling_layer=False)
    return FeatureTeacher(vit, (2, 2), [0.5] * 3, [0.5] * 3, name=f"vit-{seed}")


def tiny_vqkd_trainer(folder: Path, config: dict | None = None, teacher=None, **options) -> VQKDTrainer:
    """A [`VQKDTrainer`] on `Bytes`, batches of 8, one log per step; `config` and `options` override the defaults."""
    kwargs = {name: options.pop(name) for name in ("eval_dataset", "callbacks") if name in options}
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "warmup_epochs": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = VQKDTrainingArguments(output_dir=str(folder), **defaults | options)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    sizes |= {"decoder_num_hidden_layers": 1, "codebook_size": 16, "codebook_dim": 4, "target_dim": 12}
    torch.manual_seed(0)
    return VQKDTrainer(
        model=VQKDModel(VQKDConfig(**sizes | (config or {}))),
        args=args,
        teacher=tiny_teacher() if teacher is None else teacher,
        processing_class=Beitv2ImageProcessorPil(
            size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        train_dataset=Bytes(),
        data_collator=lambda images: {"pixel_values": torch.stack(images)},
        **kwargs,
    )


def pretrain(*options, output, method=TINY):
    """`hf-mim pretrain` with the options of a method; gives its metrics."""
    return run_pretrain.main([*method, *map(str, options), "--output_dir", str(output)])


def logged_losses(folder) -> list[float]:
    """The losses in the log of a run, the oldest first."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]
