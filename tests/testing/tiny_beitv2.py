"""A `Beitv2Trainer` so small that a test can watch it."""

from pathlib import Path

import torch

from hf_mim import Beitv2Collator, Beitv2Config, Beitv2ForPreTraining, Beitv2ImageProcessorPil, VQKDConfig, VQKDModel
from hf_mim.data.masking import BlockMaskGenerator
from hf_mim.training.beitv2_arguments import Beitv2TrainingArguments
from hf_mim.training.beitv2_trainer import Beitv2Trainer


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


class Noise(torch.utils.data.Dataset):
    """32 images of 3x16x16 random bytes, and perhaps their second renderings of `second_size` pixels."""

    def __init__(self, second_size: int | None):
        self.second_size = second_size

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)

        def view(size: int) -> torch.Tensor:
            return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)

        sample = {"epoch": 0, "index": index, "view": view(16)}
        return sample if self.second_size is None else sample | {"second_view": view(self.second_size)}


def make_tokenizer(seed: int = 0, **config) -> VQKDModel:
    torch.manual_seed(seed)
    sizes = {"image_size": 16, "patch_size": 4, "codebook_size": 12, "codebook_dim": 4, "kmeans_init": False}
    return VQKDModel(VQKDConfig(**SIZES | sizes | config))


def make_trainer(
    folder: Path, tokenizer=None, second_size: int | None = None, config=None, **options
) -> Beitv2Trainer:
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "warmup_epochs": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    torch.manual_seed(1)
    sizes = {"image_size": 16, "patch_size": 4, "vocab_size": 12, "early_layers": 1, "head_layers": 1}
    return Beitv2Trainer(
        model=Beitv2ForPreTraining(Beitv2Config(**SIZES | sizes | (config or {}))),
        args=Beitv2TrainingArguments(output_dir=str(folder), **defaults | options),
        tokenizer=tokenizer,
        tokenizer_processor=Beitv2ImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3),
        processing_class=Beitv2ImageProcessorPil(),
        train_dataset=Noise(second_size),
        data_collator=Beitv2Collator(BlockMaskGenerator((4, 4), 6, 2)),
    )
