"""State dicts with the names and shapes of official checkpoints, which take no memory but where values count."""

import fnmatch
import json
import re

import torch

from hf_mim.hub.convert.beitv2 import relative_position_index
from hf_mim.modeling.modeling_dbot import sincos_positions
from tests.testing.official_ibot import part, released_shapes
from tests.testing.paths import GOLDEN


BEITV2 = json.loads((GOLDEN / "beitv2" / "keys_models.json").read_text())
VQKD = json.loads((GOLDEN / "beitv2" / "keys_vqkd.json").read_text())
VQKD_TEACHERS = json.loads((GOLDEN / "beitv2" / "keys_teachers.json").read_text())
DBOT = json.loads((GOLDEN / "dbot" / "keys_models.json").read_text())
SWIN = json.loads((GOLDEN / "ibot" / "keys_swin_tiny.json").read_text())


def with_all_blocks(keys: dict[str, list[int]], blocks: dict[str, int]) -> dict[str, list[int]]:
    """Names and shapes, where those of block 0 stand for as many as `blocks` says of each stack."""
    every = {}
    for key, shape in keys.items():
        stack = next((name for name in blocks if key.startswith(f"{name}.0.")), None)
        for i in range(1 if stack is None else blocks[stack]):
            every[key if stack is None else f"{stack}.{i}.{key.removeprefix(f'{stack}.0.')}"] = shape
    return every


def tensors(keys: dict[str, list[int]], fixed_positions: bool = False) -> dict[str, torch.Tensor]:
    """On the meta device, with real tables of positions, learned ones or sines and cosines, and real indices."""
    made = {}
    for key, shape in keys.items():
        if key.endswith("pos_embed") and fixed_positions:
            side = round((shape[1] - 1) ** 0.5)
            made[key] = sincos_positions(shape[2], (side, side))
        elif key.endswith("pos_embed"):
            made[key] = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        elif key.endswith("relative_position_index"):
            side = round((shape[0] - 1) ** 0.5)
            made[key] = relative_position_index((side, side))
        elif key.endswith("initted"):
            made[key] = torch.ones(shape)
        else:
            made[key] = torch.empty(shape, device="meta")
    return made


def beitv2_checkpoint(name: str) -> dict[str, torch.Tensor]:
    listing = BEITV2[name]
    blocks = {stack: listing[stack] for stack in ("blocks", "cls_pt_layers")}
    return tensors(with_all_blocks(listing["keys"], blocks))


def vqkd_checkpoint(name: str, teacher: str | None) -> dict[str, torch.Tensor]:
    """With all that `teacher` (`clip` or `dino`) leaves in the file of a training run, or without."""
    keys = dict(VQKD[name]["keys"])
    if teacher is not None:
        listing = VQKD_TEACHERS[teacher]
        stacks = {re.sub(r"\.0\..*", "", key) for key in listing["keys"] if re.search(r"blocks\.0\.", key)}
        teacher_keys = with_all_blocks(listing["keys"], dict.fromkeys(stacks, listing["blocks"]))
        assert len(teacher_keys) == listing["count"]
        keys |= teacher_keys | dict.fromkeys(("scaling_layer.shift", "scaling_layer.scale"), [1, 3, 1, 1])
    return tensors(keys)


def dbot_checkpoint(name: str) -> dict[str, torch.Tensor]:
    """Of a fine-tuned model the table of positions has moved a little from the fixed one."""
    listing = DBOT[name]
    blocks = {stack: listing[stack] for stack in ("blocks", "decoder_blocks") if listing[stack]}
    weights = tensors(with_all_blocks(listing["keys"], blocks), fixed_positions=True)
    if name.startswith("finetune"):
        noise = torch.randn(weights["pos_embed"].shape, generator=torch.Generator().manual_seed(0))
        weights["pos_embed"] = weights["pos_embed"] + 0.05 * noise
    return weights


def ibot_checkpoints() -> dict[str, dict[str, torch.Tensor]]:
    """Of ViT-S/16: both networks of a full one, both encoders, and a classifier."""
    full = {network: released_shapes("small", network) for network in ("student", "teacher")}
    full["student"] = part(full["student"], "module.")
    full = {name: {key.removeprefix("backbone."): shape for key, shape in keys.items()} for name, keys in full.items()}
    encoders = {
        f"{name}_encoder": {k: v for k, v in keys.items() if not k.startswith("head.")} for name, keys in full.items()
    }
    classifier = encoders["teacher_encoder"] | {"head.weight": [1000, 384], "head.bias": [1000]}
    return {name: tensors(keys) for name, keys in (full | encoders | {"classifier": classifier}).items()}


def ibot_swin_checkpoints() -> dict[str, dict[str, torch.Tensor]]:
    """Of Swin-T: the student of a full one, and its encoder."""
    student = {key.removeprefix("module.").removeprefix("backbone."): shape for key, shape in SWIN["student"].items()}
    encoder = {key: shape for key, shape in student.items() if not key.startswith("head.")}
    return {
        name: {key: torch.empty(shape, device="meta") for key, shape in keys.items()}
        for name, keys in (("student", student), ("encoder", encoder))
    }


def dropped_from(official: dict[str, torch.Tensor], converted) -> set[str]:
    """The tensors that `dropped` speaks of, one line for one tensor or for a pattern and how many fit it."""
    dropped = set()
    for line in converted.dropped:
        pattern, count = re.fullmatch(r"(\S+?)(?: \((\d+) tensors\))?: left behind, .+", line).groups()
        names = fnmatch.filter(official, pattern)
        assert len(names) == int(count or 1) and dropped.isdisjoint(names)
        dropped.update(names)
    return dropped


def assert_nothing_lost(official: dict[str, torch.Tensor], converted, new: int = 0):
    """Every number of a file is in the model, or `dropped` says of its tensor why not; `new` ones have come."""
    dropped = dropped_from(official, converted)
    used = sum(tensor.numel() for key, tensor in official.items() if key not in dropped)
    assert used + new == sum(tensor.numel() for tensor in converted.model.state_dict().values())


def within(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def weights_of(golden: dict[str, torch.Tensor], part: str = "weights/") -> dict[str, torch.Tensor]:
    return {key.removeprefix(part): tensor for key, tensor in golden.items() if key.startswith(part)}
