"""Multi-crop views: geometry, distributions of what is drawn, determinism."""

import io
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hf_mim.data.color import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GRAYSCALE,
    HUE,
    NEUTRAL,
    ORDER,
    SATURATION,
    SOLARIZE,
)
from hf_mim.data.views import MultiCropViews


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8))


def coordinates(width: int, height: int) -> Image.Image:
    """Red grows with x, green with y: a view tells which rectangle it shows."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=-1).round().astype(np.uint8))


def reference_views(image: Image.Image, views: MultiCropViews, rng: np.random.Generator) -> list[torch.Tensor]:
    """RandomResizedCrop and a flip, written plainly with the same draws."""
    results = []
    groups = [
        (views.global_crops_number, views.global_crop_size, views.global_crops_scale),
        (views.local_crops_number, views.local_crop_size, views.local_crops_scale),
    ]
    for number, (out_height, out_width), scale in groups:
        for _ in range(number):
            for _ in range(10):
                area = image.width * image.height * rng.uniform(*scale)
                ratio = math.exp(rng.uniform(math.log(0.75), -math.log(0.75)))
                width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
                if 1 <= width <= image.width and 1 <= height <= image.height:
                    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
                    break
            else:
                width = min(image.width, round(image.height * 4 / 3))
                height = min(image.height, round(image.width * 4 / 3))
                left, top = (image.width - width) // 2, (image.height - height) // 2
            box = tuple(int(side) for side in (left, top, left + width, top + height))
            view = image.crop(box).resize((out_width, out_height), Image.BICUBIC)
            view = ImageOps.mirror(view) if rng.random() < 0.5 else view
            results.append(torch.from_numpy(np.array(view)).view(out_height, out_width, -1).permute(2, 0, 1))
    return results


def assert_equals_reference(image: Image.Image, views: MultiCropViews, seed: int) -> None:
    sample = views(image, np.random.default_rng(seed))
    expected = reference_views(image, views, np.random.default_rng(seed))
    found = [*sample["global_views"], *sample["local_views"]]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_photos_equal_pillow(shared_data):
    (file,) = (shared_data / "photos_mini").glob("test-*.parquet")
    rows = pq.read_table(file, columns=["image"])["image"].to_pylist()[:10]
    for seed, row in enumerate(rows):
        assert_equals_reference(Image.open(io.BytesIO(row["bytes"])).convert("RGB"), MultiCropViews(), seed)


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from([(1, 1), (10000, 8), (8, 10000), (2, 3), (1, 500), (37, 41), (300, 200)]),
    mode=st.sampled_from(["L", "RGB", "RGBA"]),
    numbers=st.tuples(st.integers(1, 3), st.integers(0, 3)),
    crop_sizes=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32),
)
def test_any_image_and_size_equal_pillow(size, mode, numbers, crop_sizes, seed):
    views = MultiCropViews(numbers[0], crop_sizes[:2], (0.25, 1), numbers[1], crop_sizes[2:], (0.01, 0.3))
    assert_equals_reference(noise(*size, mode), views, seed)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_layout(mode, channels):
    views = MultiCropViews(3, (32, 48), (0.5, 1), 2, (16, 24), (0.1, 0.2))
    sample = views(noise(90, 60, mode), np.random.default_rng(0))
    assert sample["global_views"].shape == (3, channels, 32, 48)
    assert sample["local_views"].shape == (2, channels, 16, 24)
    assert sample["global_views"].dtype == sample["local_views"].dtype == torch.uint8
    assert sample["global_views"].is_contiguous() and sample["local_views"].is_contiguous()
    assert sample["color_parameters"].shape == (5, 8)
    assert sample["color_parameters"].dtype == np.float64


def test_no_local_views():
    sample = MultiCropViews(global_crop_size=16, local_crops_number=0)(noise(40, 30), np.random.default_rng(0))
    assert sample["local_views"].shape == (0, 3, 96, 96)
    assert sample["color_parameters"].shape == (2, 8)


def test_defaults():
    sample = MultiCropViews()(noise(250, 240), np.random.default_rng(0))
    assert sample["global_views"].shape == (2, 3, 224, 224)
    assert sample["local_views"].shape == (10, 3, 96, 96)


def test_same_generator_state_same_views():
    views, image = MultiCropViews(global_crop_size=32, local_crops_number=2, local_crop_size=16), noise(90, 60)
    np.random.seed(0)
    torch.manual_seed(0)
    first = views(image, np.random.default_rng([1, 2, 3]))
    again = views(image, np.random.default_rng([1, 2, 3]))
    other = views(image, np.random.default_rng([1, 2, 4]))
    for name in first:
        assert np.array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_without_color():
    image = noise(90, 60)
    options = dict(global_crop_size=32, local_crops_number=2, local_crop_size=16)
    colored = MultiCropViews(**options)(image, np.random.default_rng(5))
    plain = MultiCropViews(**options, color=False)(image, np.random.default_rng(5))
    assert np.array_equal(plain["color_parameters"], np.tile(NEUTRAL, (4, 1)))
    assert not np.array_equal(colored["color_parameters"], plain["color_parameters"])
    assert torch.equal(colored["global_views"], plain["global_views"])
    assert torch.equal(colored["local_views"], plain["local_views"])


def test_without_blur():
    image = noise(90, 60)
    options = dict(global_crop_size=32, local_crops_number=2, local_crop_size=16)
    everything = MultiCropViews(**options)(image, np.random.default_rng(5))
    sharp = MultiCropViews(**options, blur=False)(image, np.random.default_rng(5))
    assert everything["color_parameters"][0, BLUR] > 0
    expected = everything["color_parameters"].copy()
    expected[:, BLUR] = 0.0
    assert np.array_equal(sharp["color_parameters"], expected)
    assert torch.equal(sharp["global_views"], everything["global_views"])


def test_distribution_of_crops():
    """Area and aspect of a crop, and the flip, read from the picture itself."""
    count, side = 400, 240
    views = MultiCropViews(count, 24, (0.1, 0.4), 0)
    pixels = views(coordinates(side, side), np.random.default_rng(0))["global_views"].numpy().astype(float)
    # One pixel of a view spans 1/24 of the crop; the innermost pixels are free of border effects.
    step_x = (pixels[:, 0, 12, 20] - pixels[:, 0, 12, 3]) / 17
    step_y = (pixels[:, 1, 20, 12] - pixels[:, 1, 3, 12]) / 17
    width, height = abs(step_x) * 24 / 255, step_y * 24 / 255
    assert (step_y > 0).all()
    flipped = (step_x < 0).sum()
    assert abs(flipped - count / 2) < 5 * math.sqrt(count / 4)

    area, log_ratio = width * height, np.log(width / height)
    assert 0.09 < area.min() < 0.13 and 0.37 < area.max() < 0.42
    assert abs(area.mean() - 0.25) < 5 * 0.3 / math.sqrt(12 * count) + 0.003
    limit = math.log(4 / 3)
    assert abs(log_ratio).max() < limit + 0.06
    assert abs(log_ratio.mean()) < 5 * limit / math.sqrt(3 * count)
    assert abs(log_ratio.std() - limit / math.sqrt(3)) < 0.02

    # Left and top edges are uniform over the places where the crop fits.
    center_x = (pixels[:, 0, 12, 11] + pixels[:, 0, 12, 12]) / 2 / 255
    center_y = (pixels[:, 1, 11, 12] + pixels[:, 1, 12, 12]) / 2 / 255
    for center, length in ((center_x, width), (center_y, height)):
        place = (center - length / 2) / (1 - length)
        assert -0.03 < place.min() < 0.05 and 0.95 < place.max() < 1.03
        assert abs(place.mean() - 0.5) < 5 / math.sqrt(12 * count) + 0.005


def test_elongated_images_fall_back_to_the_center():
    wide, tall = coordinates(1000, 8), coordinates(8, 1000)
    views = MultiCropViews(1, (8, 11), (0.9, 1), 0)
    sample = views(wide, np.random.default_rng(0))["global_views"]
    center = np.asarray(wide.crop((494, 0, 505, 8)))
    shown = sample[0].permute(1, 2, 0).numpy()
    assert np.array_equal(shown, center) or np.array_equal(shown[:, ::-1], center)
    shown = MultiCropViews(1, (11, 8), (0.9, 1), 0)(tall, np.random.default_rng(0))["global_views"]
    shown, center = shown[0].permute(1, 2, 0).numpy(), np.asarray(tall.crop((0, 494, 8, 505)))
    assert np.array_equal(shown, center) or np.array_equal(shown[:, ::-1], center)


@pytest.fixture(scope="module")
def parameters() -> np.ndarray:
    """[draws, 1 + 3 + 3 views, 8]: the first global, three further globals, three locals."""
    views = MultiCropViews(4, 1, (0.25, 1), 3, 1, (0.05, 0.25))
    image, rng = noise(4, 4), np.random.default_rng(0)
    return np.stack([views(image, rng)["color_parameters"] for _ in range(4000)])


def assert_frequency(happened: np.ndarray, probability: float) -> None:
    tolerance = 5 * math.sqrt(probability * (1 - probability) / happened.size)
    assert abs(happened.mean() - probability) <= tolerance


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    width, count = high - low, values.size
    assert low <= values.min() < low + 20 * width / count and high - 20 * width / count < values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 5 * width / math.sqrt(12 * count)
    assert abs(values.var() - width**2 / 12) < 5 * width**2 / math.sqrt(180 * count)


GROUPS = {"first": slice(0, 1), "further": slice(1, 4), "local": slice(4, 7)}


@pytest.mark.parametrize(
    ("group", "blur", "solarize"), [("first", 1.0, 0.0), ("further", 0.1, 0.2), ("local", 0.5, 0.0)]
)
def test_probabilities(parameters, group, blur, solarize):
    rows = parameters[:, GROUPS[group]].reshape(-1, 8)
    assert_frequency(rows[:, BRIGHTNESS] != 1, 0.8)
    assert_frequency(rows[:, GRAYSCALE] == 1, 0.2)
    assert_frequency(rows[:, BLUR] != 0, blur)
    assert_frequency(rows[:, SOLARIZE] == 1, solarize)
    assert set(np.unique(rows[:, [GRAYSCALE, SOLARIZE]])) <= {0, 1}


@pytest.mark.parametrize("group", GROUPS)
def test_ranges(parameters, group):
    rows = parameters[:, GROUPS[group]].reshape(-1, 8)
    jittered = rows[:, BRIGHTNESS] != 1
    # The four operations come together or not at all.
    assert (rows[jittered][:, [CONTRAST, SATURATION, HUE]] != [1, 1, 0]).all()
    assert (rows[~jittered][:, [CONTRAST, SATURATION, HUE]] == [1, 1, 0]).all()
    assert_uniform(rows[jittered, BRIGHTNESS], 0.6, 1.4)
    assert_uniform(rows[jittered, CONTRAST], 0.6, 1.4)
    assert_uniform(rows[jittered, SATURATION], 0.8, 1.2)
    assert_uniform(rows[jittered, HUE], -0.1, 0.1)
    assert_uniform(rows[rows[:, BLUR] > 0, BLUR], 0.1, 2.0)
    for order in range(24):
        assert_frequency(rows[:, ORDER] == order, 1 / 24)


def test_draws_are_independent(parameters):
    columns = [BRIGHTNESS, GRAYSCALE, BLUR, SOLARIZE, HUE]
    further = parameters[:, GROUPS["further"]]
    within = np.corrcoef(further.reshape(-1, 8)[:, columns].T)
    across = np.corrcoef(further[:, 0, columns].T, further[:, 1, columns].T)
    for matrix, count in ((within, 12000), (across, 4000)):
        off_diagonal = matrix[~np.eye(len(matrix), dtype=bool)]
        assert abs(off_diagonal).max() < 5 / math.sqrt(count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_crops_number": 0}, "global_crops_number must be at least 1, got 0"),
        ({"local_crops_number": -1}, "local_crops_number must be at least 0, got -1"),
        ({"global_crop_size": 0}, "global_crop_size must be"),
        ({"local_crop_size": (96, 0)}, "local_crop_size must be"),
        ({"local_crop_size": (96, 96, 3)}, "local_crop_size must be"),
        ({"global_crops_scale": (0.0, 1.0)}, "global_crops_scale must be"),
        ({"global_crops_scale": (0.5, 1.1)}, "global_crops_scale must be"),
        ({"local_crops_scale": (0.4, 0.05)}, "local_crops_scale must be"),
        ({"local_crops_scale": (0.4,)}, "local_crops_scale must be"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        MultiCropViews(**options)


@pytest.mark.parametrize("mode", ["P", "1", "CMYK", "LA", "I;16"])
def test_unsupported_mode(mode):
    with pytest.raises(ValueError, match=f"mode L, RGB or RGBA, got {mode}"):
        MultiCropViews()(Image.new(mode, (20, 20)), np.random.default_rng(0))
