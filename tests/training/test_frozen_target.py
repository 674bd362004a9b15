"""A frozen target network is named in checkpoints; with another one they are not resumed."""

import hashlib
import json

import pytest
import torch
from torch import nn

from hf_mim.training.frozen_target import find_reference, fingerprint, save_reference


def network() -> nn.Module:
    module = nn.Linear(2, 1)
    module.register_buffer("steps", torch.tensor(3))
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0]]))
        module.bias.fill_(0.5)
    return module


def test_fingerprint_is_the_hash_of_names_and_bytes():
    digest = hashlib.sha256()
    for name, kind, shape, value in (
        ("bias", "float32", "[1]", torch.tensor([0.5])),
        ("steps", "int64", "[]", torch.tensor(3)),
        ("weight", "float32", "[1, 2]", torch.tensor([1.0, 2.0])),
    ):
        digest.update(f"{name} torch.{kind} {shape}\n".encode() + value.numpy().tobytes())
    assert fingerprint(network()) == digest.hexdigest()


@pytest.mark.parametrize("change", ["weight", "steps", "dtype", "name"])
def test_fingerprint_sees_every_change(change):
    other = network()
    if change == "weight":
        other.weight.data[0, 0] = 1.0000001
    elif change == "steps":
        other.steps += 1
    elif change == "dtype":
        other.to(torch.bfloat16)
    else:
        other.register_buffer("paces", other.steps)
        del other.steps
    assert fingerprint(other) != fingerprint(network())


def test_reference_round_trip(tmp_path):
    assert find_reference(str(tmp_path)) is None
    save_reference(tmp_path / "teacher", "dino", "ab12")
    assert find_reference(str(tmp_path)) == {"name": "dino", "sha256": "ab12"}


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"name": "dino"})])
def test_a_damaged_reference_is_named(tmp_path, text):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "reference.json").write_text(text)
    with pytest.raises(OSError, match=r"teacher/reference.json is damaged"):
        find_reference(str(tmp_path))
