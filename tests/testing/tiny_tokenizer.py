"""A tiny VQ-KD tokenizer and images for it."""

from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from hf_mim import Beitv2ImageProcessorPil, VQKDConfig, VQKDModel
from hf_mim.data.images import decode_image


HEIGHT, WIDTH, PATCH, CODES = 16, 24, 8, 12
PROCESSOR = Beitv2ImageProcessorPil(
    size={"height": HEIGHT, "width": WIDTH},
    crop_size={"height": HEIGHT, "width": WIDTH},
    image_mean=[0.5] * 3,
    image_std=[0.5] * 3,
)


def tiny_tokenizer() -> VQKDModel:
    """Width 24, two layers; k-means over noise has made its 12 codes, of which it uses most."""
    torch.manual_seed(0)
    config = VQKDConfig(
        hidden_size=24,
        num_hidden_layers=2,
        decoder_num_hidden_layers=1,
        num_attention_heads=3,
        image_size=(HEIGHT, WIDTH),
        patch_size=PATCH,
        codebook_size=CODES,
        codebook_dim=4,
        target_dim=6,
        initializer_range=0.3,
    )
    model = VQKDModel(config).train()
    model(torch.rand(16, 3, HEIGHT, WIDTH) * 2 - 1)
    return model.eval()


def write_noise(folder: Path) -> list[Path]:
    """Ten files of different sizes."""
    random, paths = np.random.default_rng(0), [folder / f"{number}.png" for number in range(10)]
    for number, path in enumerate(paths):
        size = (HEIGHT + number, WIDTH + 2 * number, 3)
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(path)
    return paths


def dataset_of(paths: list[Path]) -> datasets.Dataset:
    rows = {"image": [str(path) for path in paths]}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))


def codes_of(model: VQKDModel, paths: list[Path]) -> np.ndarray:
    """One image after the other: [images, h, w]."""
    pixels = [PROCESSOR(decode_image(path), return_tensors="pt")["pixel_values"] for path in paths]
    return np.stack([model.encode(one)[0].view(HEIGHT // PATCH, WIDTH // PATCH).numpy() for one in pixels])
