"""What is stored is what was stored: altered, damaged and hostile checkpoints end in one line, and run nothing."""

import json
import os
import pickle
import random
import shutil

import pytest
import torch

from hf_mim.utils.manifest import check_manifest, write_manifest
from tests.testing.mistakes import refusal
from tests.testing.resuming import copy_checkpoint, rewrite_manifest
from tests.testing.tiny_training import TINY


FILES = [
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
    "teacher/model.safetensors",
    "teacher/config.json",
    "teacher/centers.safetensors",
]


def resume(capsys, pictures, output) -> str:
    return refusal(capsys, "pretrain", *TINY, "--train_dir", pictures, "--output_dir", output)


@pytest.mark.parametrize("part", FILES)
def test_a_changed_byte_is_noticed(finished, pictures, tmp_path, capsys, part):
    target = copy_checkpoint(finished[0], tmp_path) / part
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    assert f"{target} has changed since it was saved (its SHA-256 is another)" in resume(capsys, pictures, tmp_path)


class Code:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("part", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize(
    "content",
    [
        "code",
        "pickle with code",
        "list",
        "empty dictionary",
        "garbage",
        "cyclic",
        "cut off",
        "text for tensors",
    ],
)
def test_hostile_states(finished, pictures, tmp_path, capsys, part, content):
    file = copy_checkpoint(finished[0], tmp_path) / part
    trap = tmp_path / "trap"
    if content == "code":
        torch.save({"state": Code(trap)}, file)
    elif content == "pickle with code":
        file.write_bytes(pickle.dumps(Code(trap)))
    elif content == "list":
        torch.save([1, 2], file)
    elif content == "empty dictionary":
        torch.save({}, file)
    elif content == "garbage":
        file.write_bytes(random.Random(0).randbytes(1000))
    elif content == "cyclic":
        state: dict = {}
        state["state"] = state["param_groups"] = state
        torch.save(state, file)
    elif content == "cut off":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        torch.save({"state": "none", "param_groups": "none", "python": "none", "last_epoch": "none"}, file)
    rewrite_manifest(file.parent)
    if part == "scheduler.pt" and content in ("empty dictionary", "cyclic", "text for tensors"):
        message = "scheduler.pt is not the state of a schedule"
    else:
        message = str(file)
    assert message in resume(capsys, pictures, tmp_path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "trainer_state.json is damaged"),
        ("[]", "trainer_state.json is damaged"),
        ('{"global_step": "four"}', "trainer_state.json is damaged: global_step is 'four'"),
        ('{"global_step": 4, "nonsense": 1}', "trainer_state.json is damaged"),
    ],
)
def test_damaged_trainer_state(finished, pictures, tmp_path, capsys, text, message):
    checkpoint = copy_checkpoint(finished[0], tmp_path)
    (checkpoint / "trainer_state.json").write_text(text)
    rewrite_manifest(checkpoint)
    assert message in resume(capsys, pictures, tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"run": {}}', '{"run": [], "files": {}}', '{"run": {}, "files": {"../../secret": 4}}', 900 * "["],
)
def test_damaged_manifests(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(OSError, match=r"manifest.json is damaged"):
        check_manifest(tmp_path)


def test_all_files_are_listed_with_their_digests(tmp_path):
    for name, data in (("a.bin", b"abc"), ("teacher/b.bin", b"")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    write_manifest(tmp_path, {"seed": 7})
    # The digests of "abc" and of nothing are those of FIPS 180-4.
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "run": {"seed": 7},
        "files": {
            "a.bin": {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
            "teacher/b.bin": {
                "bytes": 0,
                "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            },
        },
    }
    assert check_manifest(tmp_path) == {"seed": 7}


def test_manifests_with_sizes_only_are_still_read(finished, tmp_path, caplog):
    checkpoint = copy_checkpoint(finished[0], tmp_path)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert check_manifest(checkpoint) == manifest["run"]
    assert "was saved by an older version: only the sizes of its files can be checked" in caplog.text
    shutil.copyfile(checkpoint / "scheduler.pt", checkpoint / "optimizer.pt")
    with pytest.raises(OSError, match=r"optimizer.pt has \d+ bytes instead of \d+"):
        check_manifest(checkpoint)
