"""Official iBOT checkpoints for tests: of golden numbers, or with the names and shapes of the released ones."""

import json
from argparse import Namespace

import numpy as np
import torch
from torch import Tensor

from tests.testing.paths import GOLDEN


LISTINGS = json.loads((GOLDEN / "ibot" / "keys_vit.json").read_text())["models"]


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix`, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def released_shapes(size: str, network: str) -> dict[str, list[int]]:
    """Names and shapes in `checkpoint.pth` of the released ViT of a size (small, base, large)."""
    shapes = {}
    for name, shape in LISTINGS[size][network].items():
        for i in range(LISTINGS[size]["depth"]) if "blocks.N." in name else (0,):
            shapes[name.replace("blocks.N.", f"blocks.{i}.")] = shape
    return shapes


def released_weights(size: str, network: str) -> dict[str, Tensor]:
    """Tensors of these names and shapes, without memory except for magnitudes and positions, whose values decide."""
    weights = {}
    for name, shape in released_shapes(size, network).items():
        if name.endswith("weight_g"):
            weights[name] = torch.ones(shape)
        elif name.endswith("pos_embed"):
            weights[name] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        else:
            weights[name] = torch.empty(shape, device="meta")
    return weights


def full_checkpoint(golden: dict[str, Tensor], moment: str, step: int) -> dict:
    """What `main_ibot.py` saves, with the weights of a golden trace (init or final) and the centers after a step."""
    centers = {name: golden[f"step{step}/{name}"] for name in ("center", "center2")}
    return {
        "student": part(golden, f"student_{moment}/"),
        "teacher": part(golden, f"teacher_{moment}/"),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": np.float64(1e-4)}]},
        "epoch": 2,
        "args": Namespace(norm_last_layer=False, act_in_head="gelu", drop_path=0.0, pred_ratio=[0.3]),
        "ibot_loss": centers,
        "fp16_scaler": {"scale": 65536.0},
    }
