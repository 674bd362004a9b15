"""Checkpoints that are not what they claim: one line names the file, nothing is run, and nothing is waited for."""

import json
import os
import shutil
import struct
import zipfile

import pytest
import torch

from tests.testing.mistakes import refusal
from tests.testing.resuming import copy_checkpoint, rewrite_manifest
from tests.testing.tiny_training import TINY, pretrain
from tests.training.conftest import pictures  # noqa: F401  # a fixture


@pytest.fixture(scope="module")
def saved(pictures, tmp_path_factory):  # noqa: F811
    """A run with a checkpoint after each of its two epochs."""
    output = tmp_path_factory.mktemp("saved")
    pretrain("--train_dir", pictures, "--save_strategy", "epoch", output=output)
    return output


def write_header(file, header: bytes, size: int | None = None, data: bytes = b"") -> None:
    """Write a file of safetensors with this header, and this size of it."""
    file.write_bytes(struct.pack("<Q", len(header) if size is None else size) + header + data)


def tensor(offsets: list[int], shape: list[int]) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()


def rewrite_zip(file, change) -> None:
    """Write a file of torch.save again, with its pickle and its storages changed by a function of name and bytes."""
    with zipfile.ZipFile(file) as opened:
        entries = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(file, "w") as written:
        for name, data in entries.items():
            written.writestr(name, change(name, data))


def bomb(file) -> None:
    """Compressed storages, larger than the tensors."""
    with zipfile.ZipFile(file) as opened:
        entries = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
        for name, data in entries.items():
            written.writestr(name, bytes(1 << 16) if "/data/" in name else data)


def cycle(file) -> None:
    state: dict = {"state": {}, "param_groups": []}
    state["param_groups"].append(state)
    torch.save(state, file)


HOSTILE = {
    "header of 2^63 bytes": ("model.safetensors", lambda file: write_header(file, b"{}", 2**63)),
    "header beyond the end": ("model.safetensors", lambda file: write_header(file, b"{}", 10**6)),
    "header that is no JSON": ("model.safetensors", lambda file: write_header(file, b"nonsense")),
    "tensor beyond the end": ("model.safetensors", lambda file: write_header(file, tensor([0, 2**40], [2**38]))),
    "tensor of other bytes": ("model.safetensors", lambda file: write_header(file, tensor([0, 4], [9]), data=b"1234")),
    "no tensors": ("model.safetensors", lambda file: write_header(file, b"{}")),
    "empty weights": ("model.safetensors", lambda file: file.write_bytes(b"")),
    "empty teacher": ("teacher/model.safetensors", lambda file: file.write_bytes(b"")),
    "teacher of 2^63 bytes": ("teacher/model.safetensors", lambda file: write_header(file, b"{}", 2**63)),
    "centers that are text": ("teacher/centers.safetensors", lambda file: file.write_text("centers")),
    "centers without tensors": ("teacher/centers.safetensors", lambda file: write_header(file, b"{}")),
    "configuration that is text": ("teacher/config.json", lambda file: file.write_text("nonsense")),
    "configuration that is a list": ("teacher/config.json", lambda file: file.write_text("[1]")),
    "cycle": ("optimizer.pt", cycle),
    "tensor as optimizer": ("optimizer.pt", lambda file: torch.save(torch.zeros(3), file)),
    "number as optimizer": ("optimizer.pt", lambda file: torch.save(3, file)),
    "model as optimizer": ("optimizer.pt", lambda file: torch.save(torch.nn.Linear(2, 2), file)),
    "compressed optimizer": ("optimizer.pt", bomb),
    "storages cut off": ("optimizer.pt", lambda file: rewrite_zip(file, lambda name, data: data[:-4])),
    "pickle without end": (
        "optimizer.pt",
        lambda file: rewrite_zip(file, lambda name, data: data[:-2] if name.endswith("data.pkl") else data),
    ),
    "list as schedule": ("scheduler.pt", lambda file: torch.save([1], file)),
    "schedule that is text": ("scheduler.pt", lambda file: file.write_text("schedule")),
    "random state of another length": (
        "rng_state.pth",
        lambda file: torch.save(torch.load(file, weights_only=False) | {"cpu": torch.zeros(3).byte()}, file),
    ),
    "random state without NumPy": ("rng_state.pth", lambda file: torch.save({"python": None, "cpu": None}, file)),
    "steps that are text": ("trainer_state.json", lambda file: file.write_text('{"global_step": "many"}')),
    "state nested too deeply": ("trainer_state.json", lambda file: file.write_text(100_000 * "[")),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(saved, pictures, tmp_path, capsys, case):  # noqa: F811
    part, write = HOSTILE[case]
    checkpoint = copy_checkpoint(saved, tmp_path)
    write(checkpoint / part)
    rewrite_manifest(checkpoint)
    line = refusal(capsys, "pretrain", *TINY, "--train_dir", pictures, "--output_dir", tmp_path)
    assert str(checkpoint) in line and len(line) < 600


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.pt", "teacher/model.safetensors", "manifest.json"])
def test_what_is_no_regular_file_is_not_waited_for(saved, pictures, tmp_path, capsys, part):  # noqa: F811
    file = copy_checkpoint(saved, tmp_path) / part
    file.unlink()
    os.mkfifo(file)
    assert part in refusal(capsys, "pretrain", *TINY, "--train_dir", pictures, "--output_dir", tmp_path)


@pytest.mark.parametrize("part", ["model.safetensors", "rng_state.pth", "teacher/model.safetensors"])
def test_parts_that_the_manifest_does_not_list(saved, pictures, tmp_path, capsys, part):  # noqa: F811
    checkpoint = copy_checkpoint(saved, tmp_path)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in [name for name in manifest["files"] if name.startswith(part.partition("/")[0])]:
        del manifest["files"][name]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    line = refusal(capsys, "pretrain", *TINY, "--train_dir", pictures, "--output_dir", tmp_path)
    assert "manifest.json does not list " + part.partition("/")[0] in line


@pytest.mark.parametrize("entry", ['{"bytes": Infinity, "sha256": "a"}', '{"bytes": 1}', '"four"', "null"])
def test_sizes_that_are_no_numbers(saved, pictures, tmp_path, capsys, entry):  # noqa: F811
    checkpoint = copy_checkpoint(saved, tmp_path)
    (checkpoint / "manifest.json").write_text('{"run": {}, "files": {"model.safetensors": ' + entry + "}}")
    line = refusal(capsys, "pretrain", *TINY, "--train_dir", pictures, "--output_dir", tmp_path)
    assert "manifest.json is damaged" in line


def test_an_altered_checkpoint_is_passed_over_by_latest(saved, pictures, tmp_path, caplog):  # noqa: F811
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "metrics.json").unlink()
    newest, *_ = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: -int(path.name.partition("-")[2]))
    weights = newest / "teacher" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    pretrain("--train_dir", pictures, "--resume_from_checkpoint", "latest", output=tmp_path)
    assert f"{weights} has changed since it was saved" in caplog.text
    assert (
        json.loads((tmp_path / "metrics.json").read_text())["steps"]
        == json.loads((saved / "metrics.json").read_text())["steps"]
    )
