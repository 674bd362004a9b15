"""Images that cannot be read are replaced, named, counted, and stop a run when they are too many."""

import json
import shutil

import pytest

from hf_mim.training.callbacks.unreadable_images import UnreadableImages
from tests.testing.tiny_training import pretrain


@pytest.fixture
def damaged(pictures, tmp_path):
    """The pictures, one of them broken in each split."""
    folder = tmp_path / "damaged"
    shutil.copytree(pictures, folder)
    (folder / "train" / "dark" / "3.png").write_bytes(b"no image")
    (folder / "test" / "light" / "1.png").write_bytes(b"")
    return folder


def logged(folder, name):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if "loss" in entry]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_without_them(damaged, tmp_path, caplog, workers):
    options = ("--train_dir", damaged, "--eval_split", "test", "--eval_strategy", "epoch")
    options += ("--raw_pixel_baseline", "true", "--dataloader_num_workers", workers)
    metrics = pretrain(*options, "--max_unreadable_fraction", 0.1, output=tmp_path / "run")
    # Every epoch meets it; at the end of the first it has been met for certain.
    counts = logged(tmp_path / "run", "data/unreadable")
    assert len(counts) == 8 and counts == sorted(counts) and counts[3:] == [1] * 5
    assert sum("3.png" in record.message and "takes its place" in record.message for record in caplog.records) == 1
    # Seven of eight test pictures are left to be classified.
    assert metrics["eval_knn_3_top1"] * 7 / 100 == pytest.approx(round(metrics["eval_knn_3_top1"] * 7 / 100))


def test_too_many_stop_the_run(damaged, tmp_path):
    message = r"1 of 16 images cannot be read, more than --max_unreadable_fraction 0.01; .*3\.png.*check-data"
    with pytest.raises(ValueError, match=message):
        pretrain("--train_dir", damaged, output=tmp_path / "run")


def test_whole_data_have_a_count_of_zero(pictures, tmp_path):
    pretrain("--train_dir", pictures, "--max_steps", 2, "--warmup_epochs", 0, output=tmp_path)
    assert logged(tmp_path, "data/unreadable") == [0, 0]


def test_the_same_image_counts_once():
    images = UnreadableImages(num_images=100, max_fraction=0.02, num_processes=1)
    for _ in range(3):
        images.note(["a", "b"], batch_size=4)
    assert images.count() == 2
    with pytest.raises(ValueError, match="3 of 100 images cannot be read, more than .* 0.02; one of them: a"):
        images.note(["c"], batch_size=4)


def test_a_stream_is_judged_by_what_was_read():
    images = UnreadableImages(num_images=None, max_fraction=0.002, num_processes=2)
    images.note(["a", "b"], batch_size=64)
    with pytest.raises(ValueError, match="3 of 1000 images"):
        images.note(["c"], batch_size=64)
    images = UnreadableImages(num_images=None, max_fraction=0.002, num_processes=2)
    for _ in range(10):
        images.note([], batch_size=100)
    images.note(["a", "b", "c", "d"], batch_size=1)
    with pytest.raises(ValueError, match="5 of 2004 images"):
        images.note(["e"], batch_size=1)
