"""A new user's way: an official checkpoint in, two repositories out, features where this package is not installed."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import hf_mim
import hf_mim_cli as cli
from tests.testing.fresh_process import run_fresh
from tests.testing.image_processing import in_default_backend
from tests.testing.loopback import LoopbackHub
from tests.testing.loopback_store import TOKEN


def official_checkpoint(file: Path, width: int, depth: int, image_size: int, out_dim: int, hidden: int):
    """What `main_ibot.py` writes after an epoch, with random numbers: patches of 16 pixels, one head for both."""
    generator = torch.Generator().manual_seed(0)

    def linear(name: str, rows: int, columns: int) -> dict[str, Tensor]:
        weight = torch.randn(rows, columns, generator=generator).mul_(columns**-0.5)
        return {f"{name}.weight": weight, f"{name}.bias": torch.randn(rows, generator=generator).mul_(0.1)}

    def norm(name: str) -> dict[str, Tensor]:
        scale = torch.rand(width, generator=generator).add_(0.5)
        return {f"{name}.weight": scale, f"{name}.bias": torch.randn(width, generator=generator).mul_(0.1)}

    def network() -> dict[str, Tensor]:
        patches = (image_size // 16) ** 2
        weights = {
            "backbone.cls_token": torch.randn(1, 1, width, generator=generator),
            "backbone.pos_embed": torch.randn(1, 1 + patches, width, generator=generator),
        }
        projection = linear("backbone.patch_embed.proj", width, 3 * 16 * 16)
        projection["backbone.patch_embed.proj.weight"] = projection["backbone.patch_embed.proj.weight"].unflatten(
            1, (3, 16, 16)
        )
        weights |= projection
        for block in (f"backbone.blocks.{i}" for i in range(depth)):
            weights |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
            weights |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
            weights |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
        weights |= norm("backbone.norm")
        weights |= linear("head.mlp.0", hidden, width) | linear("head.mlp.2", hidden, hidden)
        weights |= linear("head.mlp.4", 256, hidden)
        prototypes = torch.randn(out_dim, 256, generator=generator)
        for layer in ("head.last_layer", "head.last_layer2"):
            weights |= {f"{layer}.weight_g": torch.ones(out_dim, 1), f"{layer}.weight_v": prototypes}
        return weights

    student = {f"module.{name}": tensor for name, tensor in network().items()}
    student["module.backbone.masked_embed"] = torch.randn(1, width, generator=generator)
    moments = [torch.zeros(()).expand(tensor.shape) for tensor in student.values()]
    optimizer = {
        "state": {i: {"step": 10, "exp_avg": moment, "exp_avg_sq": moment} for i, moment in enumerate(moments)},
        "param_groups": [{"lr": 5e-4, "weight_decay": 0.04, "params": list(range(len(moments)))}],
    }
    centers = {
        "center": torch.randn(1, out_dim, generator=generator),
        "center2": torch.randn(1, 1, out_dim, generator=generator),
    }
    args = argparse.Namespace(arch="vit", patch_size=16, out_dim=out_dim, shared_head=True, norm_last_layer=True)
    checkpoint = {"student": student, "teacher": network(), "optimizer": optimizer, "epoch": 1, "args": args}
    torch.save(checkpoint | {"fp16_scaler": None, "ibot_loss": centers}, file)


def in_this_process(*arguments: str | Path):
    assert cli.main([str(argument) for argument in arguments]) == 0


def in_a_process_of_its_own(*arguments: str | Path):
    run = subprocess.run([sys.executable, "-m", "hf_mim", *map(str, arguments)], capture_output=True, timeout=400)
    assert run.returncode == 0, run.stderr.decode()


WITHOUT_THE_PACKAGE = """
import shutil

import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForPreTraining, pipeline


def run_card(repo_id):
    "What the lines in the card of a repository give."
    scope = dict(image=image)
    with torch.no_grad():
        exec(ModelCard.load(repo_id).text.split("```python")[1].split("```")[0], scope)
    return scope


shutil.copyfile({image!r}, "image.jpg")  # which the cards open
image = Image.open("image.jpg")
encoder = run_card("org/ibot-vitb16")
outputs, inputs = encoder["outputs"], encoder["processor"](image, return_tensors="pt")
print(outputs.pooler_output[0, :4])
piped = pipeline("image-feature-extraction", model="org/ibot-vitb16")(image)

full = run_card("org/ibot-vitb16-pretrain")["model"]
teacher = AutoModelForPreTraining.from_pretrained(
    "org/ibot-vitb16-pretrain", subfolder="teacher", trust_remote_code=True
)
views = inputs["pixel_values"].repeat(1, 2, 1, 1, 1)
mask = (torch.arange((full.config.image_size // 16) ** 2) % 3 == 0).repeat(1, 2, 1)
with torch.no_grad():
    taught = teacher.teach(views, mask.flatten().nonzero().squeeze(1))
    logits = full(views, mask).patch_logits
tensors = dict(
    tokens=outputs.last_hidden_state,
    pooled=outputs.pooler_output.contiguous(),
    piped=torch.tensor(piped),
    mask=mask,
    pixel_values=inputs["pixel_values"],
    patch_logits=logits,
    teacher_logits=taught.patch_logits,
)
save_file(tensors, {result!r})
"""


@torch.no_grad()
def tell(folder: Path, hub: LoopbackHub, command: Callable[..., None], **sizes: int):
    official_checkpoint(folder / "checkpoint.pth", **sizes)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")

    command("convert", folder / "checkpoint.pth", folder / "ibot", "--native")
    command("publish", folder / "ibot", "org/ibot-vitb16", "--full", "--with_code")
    script = WITHOUT_THE_PACKAGE.format(image=str(folder / "image.png"), result=str(folder / "result.safetensors"))
    printed = run_fresh(script, hub.environment | {"HF_MODULES_CACHE": str(folder / "modules")}, timeout=300)

    assert not [name for name in hub.files("org/ibot-vitb16") if name.endswith(".py")]
    result = load_file(folder / "result.safetensors")
    converted = hf_mim.convert_checkpoint(folder / "checkpoint.pth")
    processor = in_default_backend(hf_mim.IBotImageProcessorPil.from_pretrained(folder / "ibot" / "pretraining"))
    pixel_values = processor(Image.open(folder / "image.png"), return_tensors="pt")["pixel_values"]
    assert torch.equal(result["pixel_values"], pixel_values)
    tokens = converted.teacher.ibot(pixel_values).last_hidden_state
    views, mask = pixel_values.repeat(1, 2, 1, 1, 1), result["mask"]
    expected = {
        "tokens": tokens,
        "pooled": tokens[:, 0],
        "piped": tokens,
        "patch_logits": converted.model(views, mask).patch_logits,
        "teacher_logits": converted.teacher.teach(views, mask.flatten().nonzero().squeeze(1)).patch_logits,
    }
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name], tensor, rtol=0, atol=1e-5, msg=lambda m, n=name: n + m)
    numbers = torch.tensor([float(number) for number in printed.split("[")[1].split("]")[0].split(",")])
    torch.testing.assert_close(numbers, tokens[0, 0, :4], rtol=0, atol=1e-3)


def test_of_a_small_model(tmp_path, loopback_hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", loopback_hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    tell(tmp_path, loopback_hub, in_this_process, width=192, depth=2, image_size=32, out_dim=32, hidden=48)


@pytest.mark.slow
def test_of_a_whole_vit_b(tmp_path, loopback_hub, monkeypatch):
    for name, value in loopback_hub.environment.items():
        monkeypatch.setenv(name, value)
    sizes = dict(width=768, depth=12, image_size=224, out_dim=8192, hidden=2048)
    tell(tmp_path, loopback_hub, in_a_process_of_its_own, **sizes)
