"""Reading official checkpoint files: of any age, without running what is in them, and clear about what is broken."""

import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hf_mim.hub.convert.reading import read_official


WEIGHTS = {"cls_token": torch.arange(3.0).view(1, 1, 3), "blocks.0.norm1.bias": torch.ones(3), "head.mlp.0.bias": None}
WEIGHTS["head.mlp.0.bias"] = torch.full((2,), 5.0)


def assert_weights(found: dict[str, torch.Tensor]):
    assert found.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("as_text", [True, False])
def test_files(tmp_path, suffix, as_text):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path)
    checkpoint = read_official(str(path) if as_text else path)
    assert checkpoint.name == path.name and list(checkpoint.networks) == ["model"]
    assert_weights(checkpoint.networks["model"])


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_scripts_leave_in_their_files(tmp_path, zipped):
    """Options, learning rates from NumPy arrays, counters, states of optimizers: of any age of torch.save."""
    rates = np.linspace(0, 1, 3)
    content = {
        "student": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()},
        "teacher": {f"backbone.{name}": torch.nn.Parameter(tensor) for name, tensor in WEIGHTS.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2), "step": 3}}, "param_groups": [{"lr": rates[1]}]},
        "epoch": np.int64(3),
        "args": argparse.Namespace(lr=0.5, global_crops_scale=(0.25, 1.0), seed=np.int64(3), name=None),
        "ibot_loss": {"center": torch.ones(1, 4)},
        "fp16_scaler": {"scale": 65536.0, "_growth_tracker": 3},
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_official(path)
    assert list(checkpoint.networks) == ["student", "teacher"]
    for weights in checkpoint.networks.values():
        assert_weights(weights)
        assert not any(tensor.requires_grad for tensor in weights.values())
    assert torch.equal(checkpoint.centers["center"], torch.ones(1, 4))
    assert checkpoint.args["lr"] == 0.5 and checkpoint.args["global_crops_scale"] == (0.25, 1.0)
    assert checkpoint.dropped == [
        f"{name}: left behind, state of the training run" for name in ("optimizer", "fp16_scaler")
    ]


@given(
    wrappers=st.lists(
        st.sampled_from(["module.", "_orig_mod.", "backbone.", "encoder.", "model.", "net."]), max_size=4
    ),
    nesting=st.lists(st.sampled_from(["state_dict", "model", "module", "student", "teacher"]), max_size=2),
)
def test_wrappers_and_nestings(wrappers, nesting):
    content = {"".join(wrappers) + name: tensor for name, tensor in WEIGHTS.items()}
    for entry in nesting:
        content = {entry: content}
    assert_weights(read_official(content).networks["model"])


def test_the_encoder_of_a_tokenizer_keeps_its_name():
    names = ["encoder.cls_token", "decoder.cls_token", "quantize.embedding.weight"]
    content = {"model": {f"module.{name}": torch.zeros(1) for name in names}}
    assert list(read_official(content).networks["model"]) == names


def test_the_network_that_the_original_evaluates_is_taken():
    """The scripts for fine-tuning keep a moving average beside the model, and evaluate the model."""
    content = {"model": WEIGHTS, "model_ema": {name: tensor + 1 for name, tensor in WEIGHTS.items()}, "epoch": 1}
    checkpoint = read_official(content)
    assert_weights(checkpoint.networks["model"])
    assert checkpoint.dropped == [
        "model_ema: left behind, moving average of the weights; the original code evaluates `model`"
    ]


def test_options_may_be_a_dict_and_states_empty():
    checkpoint = read_official({"model": WEIGHTS, "args": {"drop_path": 0.2}, "fp16_scaler": None})
    assert checkpoint.args == {"drop_path": 0.2} and checkpoint.dropped == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "ibot_loss is a int, not the state dict"),
        ({"center": 3, "center2": torch.zeros(1)}, "ibot_loss holds a int 'center'"),
        ({"center": torch.zeros(1), "queue": torch.zeros(1)}, "ibot_loss holds a Tensor 'queue'"),
    ],
)
def test_centers_that_are_none(content, message):
    with pytest.raises(ValueError, match=message):
        read_official({"student": WEIGHTS, "teacher": WEIGHTS, "ibot_loss": content})


def test_safetensors_under_another_name(tmp_path):
    save_file(dict(WEIGHTS), tmp_path / "weights.pth")
    assert_weights(read_official(tmp_path / "weights.pth").networks["model"])


def test_compiled_blocks_and_new_weight_norm():
    names = {
        "blocks.0._orig_mod.norm1.bias": "blocks.0.norm1.bias",
        "head.last_layer.parametrizations.weight.original0": "head.last_layer.weight_g",
        "head.last_layer.parametrizations.weight.original1": "head.last_layer.weight_v",
    }
    content = {name: torch.full((1,), float(i)) for i, name in enumerate(names)}
    found = read_official(content).networks["model"]
    assert {name: int(tensor) for name, tensor in found.items()} == {name: i for i, name in enumerate(names.values())}


class Command:
    """Its pickle asks for a command to be run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["state_dict", "args", "optimizer"])
def test_a_file_with_code_is_refused_and_nothing_of_it_is_run(tmp_path, zipped, where):
    content = {"state_dict": dict(WEIGHTS), "optimizer": {}, "args": argparse.Namespace()}
    hidden = Command(tmp_path / "ran")
    if where == "args":
        content["args"].hook = hidden
    else:
        content[where]["extra"] = hidden
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"evil.pth holds code: it references (posix|nt).system, .* None of it was run"
    ):
        read_official(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("function", ["builtins.eval", "numpy.load", "torch.hub.load", "argparse.FileType"])
def test_functions_beside_the_allowed_ones_are_refused(tmp_path, function):
    module, name = function.rsplit(".", 1)
    # The opcodes of a call, before which the reader stops.
    program = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X\x01\x00\x00\x00x\x85R."
    pickled = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + program
    (tmp_path / "evil.pth").write_bytes(pickled)
    with pytest.raises(ValueError, match="holds code"):
        read_official(tmp_path / "evil.pth")


def test_another_pickle_protocol(tmp_path):
    torch.save({"model": WEIGHTS, "name": "é"}, tmp_path / "new.pth", pickle_protocol=4)
    with pytest.raises(ValueError, match="new.pth does not use pickle protocol 2, the default of torch.save"):
        read_official(tmp_path / "new.pth")


def file_bytes(folder, content, zipped: bool = True) -> bytes:
    torch.save(content, folder / "whole.pth", _use_new_zipfile_serialization=zipped)
    return (folder / "whole.pth").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pth", b"", "empty.pth is empty: delete .*empty.pth and download it again"),
        ("page.pth", b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "text file or web page, not a checkpoint"),
        ("error.pth", b'{"error": "not found"}', "text file or web page, not a checkpoint"),
        ("pointer.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        ("image.pth", b"\x89PNG\r\n\x1a\n" + bytes(100), "not a checkpoint, or is damaged"),
        ("words.pth", b"so long as it is text", "not a checkpoint, or is damaged"),
        ("plain.pth", pickle.dumps({"a": 1}), "not a checkpoint, or is damaged"),
        ("weights.safetensors", b"\x10\x00", "damaged or not a safetensors file"),
        ("weights2.safetensors", b"PK" + bytes(100), "damaged or not a safetensors file"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{name} .*" if message.startswith(name) else f"^{name} .*{message}"):
        read_official(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_half_a_file(tmp_path, zipped, share):
    whole = file_bytes(tmp_path, WEIGHTS | {"large": torch.zeros(5000)}, zipped)
    (tmp_path / "half.pth").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="^half.pth is (truncated|not a checkpoint, or is damaged)"):
        read_official(tmp_path / "half.pth")


def test_damage_in_the_middle(tmp_path):
    whole = bytearray(file_bytes(tmp_path, WEIGHTS))
    whole[150:250] = bytes(100)
    (tmp_path / "hole.pth").write_bytes(whole)
    with pytest.raises(ValueError, match="^hole.pth is not a checkpoint, or is damaged"):
        read_official(tmp_path / "hole.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"model": {"a": torch.zeros(1), "b": 3}}, "'b' is a int"),
        ({"epoch": 3, "args": None}, "is not a checkpoint of tensors: 'epoch' is a int"),
        ({"model": WEIGHTS, "queue": [torch.zeros(1)]}, "holds tensors in 'queue' besides model"),
        ({"model": WEIGHTS, "state_dict": WEIGHTS}, "holds tensors in 'state_dict' besides model"),
        (
            {"module.a": torch.zeros(1), "a": torch.ones(1)},
            "module.a and a, which have the same name without wrapper prefixes",
        ),
    ],
)
def test_dicts_that_are_no_checkpoints(content, message):
    with pytest.raises(ValueError, match=message):
        read_official(content)


@pytest.mark.parametrize("content", [[torch.zeros(1)], torch.zeros(1), 3, "text"])
def test_files_without_a_dict(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a checkpoint, which is a dict of tensors"):
        read_official(tmp_path / "other.pth")


def test_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth: no such file"):
        read_official(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="is a folder: pass the checkpoint file"):
        read_official(tmp_path)
