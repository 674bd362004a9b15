"""Batches of VQ-KD, BEiT v2 and dBOT: what is in them, and that nothing but (seed, epoch, index) decides it."""

import io
import itertools

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_mim.data.collators import Beitv2Collator, DBotCollator, VQKDCollator
from hf_mim.data.datasets import StreamedViewsDataset, ViewsDataset
from hf_mim.data.masking import BlockMaskGenerator
from hf_mim.data.views import CropViews


VIEWS = CropViews(32, (0.2, 1.0), 0.4, 16, "lanczos")
MASKS = BlockMaskGenerator((8, 8), 25, 6)
COLLATORS = {"beitv2": Beitv2Collator(MASKS, seed=3), "vqkd": VQKDCollator(), "dbot": DBotCollator(3, 64)}


@pytest.fixture(scope="module")
def images() -> datasets.Dataset:
    """Ten pictures; the fourth is cut off."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(10):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    rows[3] = {"bytes": rows[3]["bytes"][:300], "path": "cut.png"}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": rows}, features=features)


def joined(parts: list[dict]) -> dict[str, torch.Tensor]:
    names = set(parts[0]) - {"mask_indices", "unreadable"}
    return {name: torch.cat([part[name] for part in parts]) for name in names}


@pytest.mark.parametrize("method", COLLATORS)
def test_same_for_any_number_of_workers_order_and_batch_size(images, method):
    dataset, collator = ViewsDataset(images, VIEWS, seed=1), COLLATORS[method]
    reference = joined([collator([dataset[index] for index in range(10)])])
    for options in ({"num_workers": 2, "batch_size": 4}, {"batch_size": 3}):
        found = joined(list(DataLoader(dataset, collate_fn=collator, **options)))
        assert found.keys() == reference.keys()
        assert all(torch.equal(found[name], reference[name]) for name in reference)
    order = [7, 2, 9, 0]
    found = joined([collator([dataset[index] for index in order])])
    assert all(torch.equal(found[name], reference[name][order]) for name in reference)


def test_contents_of_a_beitv2_batch(images):
    dataset = ViewsDataset(images, VIEWS, seed=1)
    samples = [dataset[index] for index in range(6)]
    batch = COLLATORS["beitv2"](samples)
    for name, key in (("pixel_values", "view"), ("target_pixel_values", "second_view")):
        assert torch.equal(batch[name], torch.stack([sample[key] for sample in samples]))
    masks = batch["bool_masked_pos"]
    assert masks.shape == (6, 64) and masks.dtype == torch.bool and (masks.sum(1) == 25).all()
    assert torch.equal(masks.flatten().nonzero().squeeze(1), batch["mask_indices"])
    [line] = batch["unreadable"]
    assert line.startswith("cannot read image cut.png")

    alone = ViewsDataset(images, CropViews(32, (0.2, 1.0)), seed=1)
    batch = COLLATORS["beitv2"]([alone[0]])
    assert batch.keys() == {"pixel_values", "bool_masked_pos", "mask_indices"}


def test_masks_change_with_seed_epoch_and_index(images):
    dataset = ViewsDataset(images, VIEWS, seed=1)
    first = COLLATORS["beitv2"]([dataset[index] for index in range(10)])["bool_masked_pos"]
    other = Beitv2Collator(MASKS, seed=4)([dataset[index] for index in range(10)])["bool_masked_pos"]
    dataset.set_epoch(1)
    later = COLLATORS["beitv2"]([dataset[index] for index in range(10)])["bool_masked_pos"]
    assert len(torch.cat([first, other, later]).unique(dim=0)) == 30


def test_contents_of_a_vqkd_batch(images):
    dataset = ViewsDataset(images, CropViews(32, (0.08, 1.0)), seed=1)
    samples = [dataset[index] for index in (0, 3)]
    batch = COLLATORS["vqkd"](samples)
    assert batch.keys() == {"pixel_values", "unreadable"}
    assert torch.equal(batch["pixel_values"], torch.stack([sample["view"] for sample in samples]))
    assert "unreadable" not in COLLATORS["vqkd"](samples[:1])


@pytest.mark.parametrize("method", COLLATORS)
def test_a_stream_gives_the_samples_of_its_rows(images, method):
    stream = StreamedViewsDataset(images.to_iterable_dataset(num_shards=2), VIEWS, seed=1)
    collator = {
        "beitv2": Beitv2Collator(MASKS, 3, stream.samples),
        "vqkd": VQKDCollator(stream.samples),
        "dbot": DBotCollator(3, 64, stream.samples),
    }[method]
    rows = list(itertools.islice(stream, 12))  # ten of the first epoch, two of the second
    expected = COLLATORS[method](stream.samples(rows))
    found = collator(rows)
    assert found.keys() == expected.keys() and len(found["unreadable"]) == 1
    for name in joined([expected]):
        assert torch.equal(found[name], expected[name])
    if method == "beitv2":
        # The same image in two epochs.
        assert rows[0]["index"] == rows[10]["index"]
        assert not torch.equal(found["bool_masked_pos"][0], found["bool_masked_pos"][10])


def test_contents_of_a_dbot_batch(images):
    dataset = ViewsDataset(images, CropViews(32, (0.2, 1.0)), seed=1)
    samples = [dataset[index] for index in (0, 3)]
    batch = COLLATORS["dbot"](samples)
    assert torch.equal(batch["pixel_values"], torch.stack([sample["view"] for sample in samples]))
    assert batch["noise"].dtype == torch.float32 and batch["noise"].shape == (2, 64)
    assert len(batch["unreadable"]) == 1
    with pytest.raises(ValueError, match="num_patches must be at least 1"):
        DBotCollator(3, 0)


def test_noise_is_uniform_and_changes_with_seed_epoch_and_index():
    samples = [{"view": torch.zeros(1), "epoch": epoch, "index": index} for epoch in (0, 1) for index in range(500)]
    noise = torch.cat([DBotCollator(seed, 64)(samples)["noise"] for seed in (3, 4)])
    assert len(noise.unique(dim=0)) == 2000
    assert noise.min() >= 0 and noise.max() <= 1
    shares = noise.flatten().histc(10, 0, 1) / noise.numel()
    assert (shares - 0.1).abs().max() < 0.005
    # Every patch is kept equally often.
    kept = (noise.argsort(dim=1).argsort(dim=1) < 16).float().mean(dim=0)
    assert (kept - 0.25).abs().max() < 0.05
