"""Images and a finished run that the tests of training share; nothing changes them."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel, set_seed

from tests.testing.tiny_training import pretrain, tiny_beitv2, tiny_vqkd


def write_one_pixel(figure: Figure, path, **options):
    """In place of `Figure.savefig`."""
    Image.new("RGB", (1, 1)).save(path)


@pytest.fixture(autouse=True)
def unpainted_figures(monkeypatch: pytest.MonkeyPatch):
    """
    Figures are composed but not painted, which would take three quarters of the time of a tiny run. The runs of the
    session's and modules' fixtures paint theirs; the pictures themselves are tested in `tests/analysis`.
    """
    monkeypatch.setattr(Figure, "savefig", write_one_pixel)


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


@pytest.fixture(scope="session")
def vision_model(tmp_path_factory):
    """A random ViT in a folder, for tokenizers to learn from."""
    folder = tmp_path_factory.mktemp("teacher") / "tiny-vit"
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    set_seed(0)
    ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nA teacher.\n")
    return folder


@pytest.fixture(scope="session")
def tokenizer(pictures, vision_model, tmp_path_factory):
    """A finished run of VQ-KD with checkpoints after every epoch, and its metrics."""
    output = tmp_path_factory.mktemp("run") / "tiny-vqkd"
    options = ("--train_dir", pictures, "--eval_split", "test", "--eval_strategy", "epoch", "--save_strategy", "epoch")
    return output, pretrain(*options, output=output, method=tiny_vqkd(vision_model))


@pytest.fixture(scope="session", params=["vqkd", "beitv2"])
def method(request, vision_model):
    """Options of VQ-KD, and then of BEiT v2."""
    if request.param == "vqkd":
        return tiny_vqkd(vision_model)
    return tiny_beitv2(request.getfixturevalue("tokenizer")[0])
