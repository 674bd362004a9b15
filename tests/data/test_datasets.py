"""Views and masks depend on (seed, epoch, index) alone: not on workers, processes, order or batch size."""

import io
import itertools

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_mim.data.collator_ibot import IBotCollator
from hf_mim.data.datasets import StreamedViewsDataset, ViewsDataset
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
        loader = DataLoader(stream, batch_size=None, num_workers=workers)
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
