"""Views and masks depend on (seed, epoch, index) alone: not on workers, processes, order or batch size."""

import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from PIL import Image
from torch.utils.data import DataLoader

import hf_mim.data.datasets
from hf_mim.data.collators import IBotCollator
from hf_mim.data.datasets import StreamedViewsDataset, ViewsDataset
from hf_mim.data.images import UnreadableImageError, decode_image
from hf_mim.data.masking import MaskGenerator
from hf_mim.data.views import MultiCropViews


VIEWS = MultiCropViews(global_crop_size=16, local_crops_number=3, local_crop_size=8)
COLLATOR = IBotCollator(MaskGenerator((4, 4)), seed=3)


@pytest.fixture(scope="module")
def images() -> datasets.Dataset:
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(12):
        pixels = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": rows}, features=features)


def batches(dataset, epoch=0, **loader_options) -> list[dict]:
    dataset.set_epoch(epoch)
    return list(DataLoader(dataset, collate_fn=COLLATOR, **loader_options))


def joined(parts: list[dict]) -> dict[str, torch.Tensor]:
    names = ("pixel_values", "local_pixel_values", "bool_masked_pos", "color_parameters")
    return {name: torch.cat([torch.as_tensor(part[name]) for part in parts]) for name in names}


def assert_equal(first: dict, second: dict):
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"batch_size": 3}, {"batch_size": 12, "num_workers": 1}])
def test_same_for_any_loader(images, options):
    reference = joined(batches(ViewsDataset(images, VIEWS, seed=1), batch_size=4))
    assert_equal(reference, joined(batches(ViewsDataset(images, VIEWS, seed=1), **{"batch_size": 4} | options)))


def test_same_for_any_order_and_rank(images):
    dataset = ViewsDataset(images, VIEWS, seed=1)
    reference = joined(batches(dataset, batch_size=4))
    # What two processes see: every other batch.
    for rank in range(2):
        indices = [i for start in range(4 * rank, 12, 8) for i in range(start, start + 4)]
        shard = joined([COLLATOR([dataset[i] for i in indices])])
        assert_equal({name: value[indices] for name, value in reference.items()}, shard)


def test_epochs_seeds_and_images_differ(images):
    dataset = ViewsDataset(images, VIEWS, seed=1)
    reference = joined(batches(dataset, batch_size=4))
    for other in (
        joined(batches(dataset, epoch=1, batch_size=4)),
        joined(batches(ViewsDataset(images, VIEWS, seed=2), batch_size=4)),
    ):
        assert not torch.equal(reference["pixel_values"], other["pixel_values"])
    assert not torch.equal(
        reference["bool_masked_pos"], joined(batches(dataset, epoch=1, batch_size=4))["bool_masked_pos"]
    )
    assert not torch.equal(reference["color_parameters"][0], reference["color_parameters"][1])


def test_workers_that_outlive_an_epoch_see_the_next(images):
    dataset = ViewsDataset(images, VIEWS, seed=1)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, persistent_workers=True, collate_fn=COLLATOR)
    first = joined(list(loader))
    dataset.set_epoch(1)
    second = joined(list(loader))
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    assert_equal(second, joined(batches(dataset, epoch=1, batch_size=4)))


def test_batch_contents(images):
    batch = batches(ViewsDataset(images, VIEWS, seed=1), batch_size=4)[0]
    assert batch["pixel_values"].shape == (4, 2, 3, 16, 16) and batch["pixel_values"].dtype == torch.uint8
    assert batch["local_pixel_values"].shape == (4, 3, 3, 8, 8)
    assert batch["color_parameters"].shape == (4, 5, 8) and isinstance(batch["color_parameters"], np.ndarray)
    mask = batch["bool_masked_pos"]
    assert mask.shape == (4, 2, 16) and mask.dtype == torch.bool
    assert torch.equal(mask.flatten().nonzero().squeeze(1), batch["mask_indices"])
    whole = MultiCropViews(global_crop_size=16, local_crops_number=0)
    assert "local_pixel_values" not in batches(ViewsDataset(images, whole), batch_size=4)[0]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_channels(images, channels, mode):
    sample = ViewsDataset(images, VIEWS, num_channels=channels)[0]
    assert sample["global_views"].shape == (2, channels, 16, 16)


def test_masks_wait_for_their_epoch(images):
    collator = IBotCollator(MaskGenerator((4, 4), 0.5, 0.0, "rand", pred_start_epoch=2), seed=3)
    dataset = ViewsDataset(images, VIEWS, seed=1)
    for epoch, masked in ((0, 0), (1, 0), (2, 8)):
        dataset.set_epoch(epoch)
        batch = collator([dataset[i] for i in range(3)])
        assert (batch["bool_masked_pos"].sum(-1) == masked).all()


def test_stream_equals_itself_for_any_number_of_workers(images):
    def samples(workers: int) -> dict[tuple[int, int], torch.Tensor]:
        stream = StreamedViewsDataset(images.to_iterable_dataset(num_shards=4), VIEWS, seed=1)
        loader = DataLoader(stream, batch_size=1, num_workers=workers, collate_fn=lambda rows: stream.samples(rows)[0])
        # Each worker repeats its own part of the stream: three passes hold two whole ones of all of them.
        taken = list(itertools.islice(loader, 36))
        return {(s["epoch"], s["index"]): s["global_views"] for s in taken if s["epoch"] < 2}

    reference = samples(0)
    indices = {index for _, index in reference}
    assert len(reference) == 24 and len(indices) == 12
    assert not any(torch.equal(reference[0, index], reference[1, index]) for index in indices)
    for workers in (1, 2):
        other = samples(workers)
        assert other.keys() == reference.keys()
        assert all(torch.equal(other[key], reference[key]) for key in reference)


def test_an_empty_stream_ends(images):
    stream = images.to_iterable_dataset().filter(lambda row: False)
    assert list(StreamedViewsDataset(stream, VIEWS)) == []


def test_processes_of_a_stream_make_the_views_of_their_own_share_only(images, monkeypatch):
    decoded = []

    def decode(*arguments):
        decoded.append(arguments)
        return decode_image(*arguments)

    monkeypatch.setattr(hf_mim.data.datasets, "decode_image", decode)

    def batches_of(processes: int, rank: int) -> list[dict]:
        stream = StreamedViewsDataset(images.to_iterable_dataset(), VIEWS, seed=1)
        shard = IterableDatasetShard(stream, batch_size=2, num_processes=processes, process_index=rank, drop_last=True)
        loader = DataLoader(shard, batch_size=2, collate_fn=IBotCollator(MaskGenerator((4, 4)), 3, stream.samples))
        decoded.clear()
        return list(itertools.islice(loader, 6 // processes))

    whole = batches_of(1, 0)
    assert len(decoded) == 12
    for rank in range(2):
        share = batches_of(2, rank)
        assert len(decoded) == 6
        assert_equal(joined(share), joined(whole[rank::2]))


# Unreadable images


@pytest.fixture(scope="module")
def damaged(images) -> datasets.Dataset:
    """The same, but three rows cannot be read: one cut off, one of other bytes and without a name, one empty."""
    rows = [row["image"] for row in images]
    rows[3] = {"bytes": rows[3]["bytes"][:300], "path": "cut.png"}
    rows[7] = {"bytes": b"no image", "path": None}
    rows[8] = None
    return datasets.Dataset.from_dict({"image": rows}, features=images.features)


UNREADABLE = {
    3: "cannot read image cut.png: image file is truncated",
    7: "row 7: cannot read image (no file name): not an image in a known format",
    8: "row 8: this image has neither bytes nor a path",
}


def source_of(sample: dict, images: datasets.Dataset, index: int, epoch: int) -> int:
    """The row of `images` whose picture gives the views of `sample` with the random numbers of `index`."""
    found = []
    for row, image in enumerate(images["image"]):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([1, epoch, index])))
        views = VIEWS(decode_image(image), rng)
        if torch.equal(views["global_views"], sample["global_views"]):
            assert torch.equal(views["local_views"], sample["local_views"])
            assert np.array_equal(views["color_parameters"], sample["color_parameters"])
            found.append(row)
    [row] = found
    return row


def test_an_unreadable_image_is_replaced_by_another_one_with_its_own_random_numbers(images, damaged):
    dataset, substitutes = ViewsDataset(damaged, VIEWS, seed=1), set()
    for epoch, index in itertools.product(range(4), range(12)):
        dataset.set_epoch(epoch)
        sample = dataset[index]
        row = source_of(sample, images, index, epoch)
        assert (sample["index"], sample["epoch"]) == (index, epoch)
        if index in UNREADABLE:
            assert row not in UNREADABLE and sample["unreadable"][0].startswith(UNREADABLE[index])
            substitutes.add(row)
        else:
            assert row == index and "unreadable" not in sample
    assert len(substitutes) > 4


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"num_workers": 2}])
def test_replacements_are_the_same_for_any_number_of_workers(damaged, options):
    def messages(parts: list[dict]) -> list[str]:
        return [line for part in parts for line in part.get("unreadable", [])]

    dataset = ViewsDataset(damaged, VIEWS, seed=1)
    single = COLLATOR([dataset[index] for index in range(12)])
    parts = batches(dataset, batch_size=4, **options)
    assert_equal(joined([single]), joined(parts))
    assert messages(parts) == messages([single]) and len(messages(parts)) >= 3
    for start in UNREADABLE.values():
        assert any(line.startswith(start) for line in messages(parts))
    assert "unreadable" not in COLLATOR([dataset[0], dataset[1]])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_without_a_readable_image_is_an_error_that_names_its_files(damaged, workers):
    dataset = ViewsDataset(damaged.select([3]), VIEWS)
    with pytest.raises(UnreadableImageError, match=r"10 images in a row are unreadable: .*cut\.png"):
        batches(dataset, batch_size=1, num_workers=workers)


def test_a_file_that_is_gone_is_unreadable(tmp_path, images):
    rows = [images[0]["image"], {"bytes": None, "path": str(tmp_path / "gone.png")}]
    dataset = ViewsDataset(datasets.Dataset.from_dict({"image": rows}, features=images.features), VIEWS, seed=1)
    sample = dataset[1]
    assert "gone.png" in sample["unreadable"][0]
    assert source_of(sample, images, index=1, epoch=0) == 0


def test_in_a_stream_the_next_readable_image_of_the_batch_takes_the_place(images, damaged):
    stream = StreamedViewsDataset(damaged.to_iterable_dataset(), VIEWS, seed=1)
    rows = list(itertools.islice(stream, 12))
    samples = stream.samples(rows)
    for number, sample in enumerate(samples):
        assert (sample["index"], sample["epoch"]) == (rows[number]["index"], 0)
        expected = {3: 4, 7: 9, 8: 9}.get(number, number)
        assert source_of(sample, images, sample["index"], 0) == expected
        if number in UNREADABLE:
            [message] = sample["unreadable"]
            assert message.startswith(UNREADABLE[number].removeprefix(f"row {number}: "))
        else:
            assert "unreadable" not in sample
    # After the last image of the batch comes its first.
    batch = IBotCollator(MaskGenerator((4, 4)), 3, stream.samples)(rows[6:9])
    assert len(batch["unreadable"]) == 2
    for position, number in ((1, 7), (2, 8)):
        sample = {
            "global_views": batch["pixel_values"][position],
            "local_views": batch["local_pixel_values"][position],
        }
        sample["color_parameters"] = batch["color_parameters"][position]
        assert source_of(sample, images, rows[number]["index"], 0) == 6
    with pytest.raises(UnreadableImageError, match="no image of a batch is readable: .*no file name.*; this image"):
        stream.samples(rows[7:9])


# The folder of hostile files


@pytest.fixture(scope="module")
def hostile(shared_data) -> tuple[datasets.Dataset, list[dict]]:
    folder = shared_data / "hostile_images"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    rows = [{"bytes": None, "path": str(folder / entry["file"])} for entry in manifest]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": rows}, features=features), manifest


@pytest.mark.parametrize("streamed", [False, True])
def test_hostile_files_in_training(hostile, streamed):
    """Two workers: those that must not load are named once each, whatever loads gives its views."""
    dataset, manifest = hostile
    if streamed:
        stream = StreamedViewsDataset(dataset.to_iterable_dataset(num_shards=2), VIEWS, seed=1)
        collator = IBotCollator(MaskGenerator((4, 4)), 3, stream.samples)
        # One batch from each worker, whose shard holds 21 files; then the stream begins again.
        loader = DataLoader(stream, batch_size=21, collate_fn=collator, num_workers=2, timeout=120)
        parts = list(itertools.islice(loader, 2))
    else:
        parts = batches(ViewsDataset(dataset, VIEWS, seed=1), batch_size=7, num_workers=2, timeout=120)
    assert joined(parts)["pixel_values"].shape == (42, 2, 3, 16, 16)
    assert joined(parts)["local_pixel_values"].shape == (42, 3, 3, 8, 8)
    messages = {line for part in parts for line in part.get("unreadable", [])}
    assert len(messages) < 20 and not any("\n" in line for line in messages)
    for entry in manifest:
        named = any(f"/{entry['file']}: " in line for line in messages)
        assert entry["expect"] == "either" or named == (entry["expect"] == "error"), entry["file"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_hostile_files_take_little_memory(hostile):
    """108 million pixels, 70 MiB of text or 10.8 GB would show in the peak of a process that decodes them all."""
    program = """
import sys
from hf_mim.data.images import UnreadableImageError, decode_image

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before, count = peak(), 0
for path in sys.argv[1:]:
    try:
        decode_image(path)
        count += 1
    except UnreadableImageError:
        pass
print(count, (peak() - before) // 1024)
"""
    paths = [row["path"] for row in hostile[0]["image"]]
    result = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    count, growth = map(int, result.stdout.split())
    assert count >= 29 and growth < 60
