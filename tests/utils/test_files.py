"""What is written appears whole under its name, or the old stays."""

import os
import resource
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hf_mim.utils import files
from hf_mim.utils.files import replaced_file, replaced_folder


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Names of what is synchronized and renamed, in order."""
    calls, sync, replace = [], files.sync, os.replace
    monkeypatch.setattr(files, "sync", lambda path: (calls.append(f"sync {path.name}"), sync(path)))
    monkeypatch.setattr(
        files.os, "replace", lambda a, b: (calls.append(f"{Path(a).name} -> {Path(b).name}"), replace(a, b))
    )
    return calls


def test_a_file_is_on_the_disk_before_it_is_renamed(tmp_path, calls):
    path = tmp_path / "new" / "curves.png"
    with replaced_file(str(path)) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".png"
        temporary.write_text("second")
        assert not path.exists()
    assert path.read_text() == "second" and os.listdir(path.parent) == ["curves.png"]
    assert calls == ["sync .curves.new.png", ".curves.new.png -> curves.png", "sync new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_old_file_stays_on_an_exception(tmp_path, error):
    path = tmp_path / "metrics.json"
    path.write_text("first")
    with pytest.raises(error), replaced_file(path) as temporary:
        temporary.write_text("half of the sec")
        raise error
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["metrics.json"]


def test_a_file_that_was_not_written_is_missed(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("first")
    with pytest.raises(FileNotFoundError), replaced_file(path):
        pass
    assert path.read_text() == "first"


def test_a_folder_is_on_the_disk_before_it_is_renamed(tmp_path, calls):
    path = tmp_path / "runs" / "checkpoint"
    for content in ("first", "second"):
        calls.clear()
        with replaced_folder(str(path)) as temporary:
            assert temporary == path.with_name(".checkpoint.new") and not list(temporary.iterdir())
            (temporary / "teacher").mkdir()
            (temporary / "teacher" / content).write_text(content)
        assert [file.read_text() for file in path.rglob("*") if file.is_file()] == [content]
        assert os.listdir(path.parent) == ["checkpoint"]
    assert sorted(calls[:3]) == ["sync .checkpoint.new", "sync second", "sync teacher"]
    assert calls[3:] == ["checkpoint -> .checkpoint.old", ".checkpoint.new -> checkpoint", "sync runs"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_the_old_folder_stays_on_an_exception(tmp_path, error):
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "weights").write_text("first")
    with pytest.raises(error), replaced_folder(path) as temporary:
        (temporary / "weights").write_text("half of the sec")
        raise error
    assert (path / "weights").read_text() == "first" and os.listdir(tmp_path) == ["checkpoint"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    path, replace = tmp_path / "checkpoint", os.replace
    path.mkdir()
    (path / "weights").write_text("first")

    def fail_for_the_new_one(source, target):
        if str(source).endswith(".new"):
            raise PermissionError(str(source))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail_for_the_new_one)
    with pytest.raises(PermissionError), replaced_folder(path):
        pass
    assert (path / "weights").read_text() == "first" and os.listdir(tmp_path) == ["checkpoint"]


def test_what_an_earlier_process_left_is_not_mixed_in(tmp_path):
    path = tmp_path / "checkpoint"
    for leftover in (".checkpoint.new", ".checkpoint.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "stale").write_text("stale")
    with replaced_folder(path) as temporary:
        (temporary / "weights").write_text("second")
    assert os.listdir(path) == ["weights"] and os.listdir(tmp_path) == ["checkpoint"]


NOISE = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
WRITERS = {
    "model.safetensors": lambda path: save_file({"noise": torch.from_numpy(NOISE)}, path),
    "optimizer.pt": lambda path: torch.save(torch.from_numpy(NOISE), path),
    "features.parquet": lambda path: pyarrow.parquet.write_table(pyarrow.table({"noise": NOISE.ravel()}), path),
    "picture.png": lambda path: Image.fromarray(NOISE).save(path),
    "notes.json": lambda path: path.write_bytes(NOISE.tobytes()),
}


@pytest.fixture
def small_files():
    """No file may grow beyond 50 kB, which to a writer is like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_names_the_file_and_leaves_nothing(tmp_path, small_files, name):
    with pytest.raises(OSError, match=f"^cannot write .*{name}: "), replaced_file(tmp_path / name) as temporary:
        WRITERS[name](temporary)
    with pytest.raises(OSError, match="^cannot write .*result: "), replaced_folder(tmp_path / "result") as temporary:
        WRITERS[name](temporary / name)
    assert not list(tmp_path.iterdir())
