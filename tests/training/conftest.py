"""Images and a finished run that the tests of training share; nothing changes them."""

import numpy as np
import pytest
from PIL import Image

from .tiny import pretrain


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two classes, `dark` and `light`: eight noisy pictures each to train on, four to evaluate."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name, level in (("dark", 60), ("light", 190)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(generator.normal(level, 30, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def finished(pictures, tmp_path_factory):
    """One finished run with k-NN, checkpoints after every epoch, and its metrics."""
    output = tmp_path_factory.mktemp("run") / "tiny-ibot"
    metrics = pretrain(
        *("--train_dir", pictures, "--eval_split", "test", "--eval_strategy", "epoch", "--eval_on_start", "true"),
        *("--raw_pixel_baseline", "true", "--save_strategy", "epoch"),
        output=output,
    )
    return output, metrics
