"""One crop rendered twice: bytes and boxes of the original code, jitter of Pillow, determinism."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from safetensors.torch import load_file

import hf_mim.data.views
from hf_mim.data.views import CropViews, draw_box


GOLDEN = Path(__file__).parents[1] / "golden" / "beitv2"
BOXES = json.loads((GOLDEN / "crop_params.json").read_text())["cases"]
SCALE = (0.2, 1.0)


def original_box(width: int, height: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the original code, which draws from Python's global generator."""
    for _ in range(10):
        area = random.uniform(*SCALE) * width * height
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if crop_width <= width and crop_height <= height:
            top = random.randint(0, height - crop_height)
            return top, random.randint(0, width - crop_width), crop_height, crop_width
    crop_width, crop_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def corners(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    top, left, height, width = box
    return left, top, left + width, top + height


@pytest.fixture
def keep_random_state():
    state = random.getstate()
    yield
    random.setstate(state)


@pytest.mark.parametrize("size", BOXES)
def test_boxes_have_the_originals_distribution(keep_random_state, size):
    width, height = map(int, size.split("x"))
    random.seed(0)
    assert [list(original_box(width, height)) for _ in BOXES[size]] == BOXES[size]

    theirs = np.array([corners(original_box(width, height)) for _ in range(4000)])
    generator = np.random.default_rng(0)
    ours = np.array([draw_box(width, height, SCALE, generator) for _ in range(4000)])

    def figures(boxes: np.ndarray) -> list[np.ndarray]:
        left, top, right, bottom = boxes.T
        return [
            left,
            top,
            right - left,
            bottom - top,
            (right - left) * (bottom - top),
            (right - left) / (bottom - top),
        ]

    for first, second in zip(figures(theirs), figures(ours), strict=True):
        # Both distribution functions, compared everywhere (Kolmogorov-Smirnov, p = 1e-6).
        values = np.union1d(first, second)
        distances = [np.searchsorted(np.sort(one), values, side="right") / 4000 for one in (first, second)]
        assert np.abs(distances[0] - distances[1]).max() <= 2.7 * math.sqrt(2 / 4000)


def test_renderings_are_the_originals(keep_random_state, monkeypatch):
    tensors = load_file(GOLDEN / "two_view_crop.safetensors")
    image = Image.fromarray(tensors["in/image"].numpy())
    random.seed(5)
    box = corners(original_box(*image.size))
    monkeypatch.setattr(hf_mim.data.views, "draw_box", lambda *arguments: box)
    views = CropViews(32, SCALE, second_size=16, second_interpolation="lanczos")
    mirrored = set()
    for seed in range(8):
        sample = views(image, np.random.default_rng(seed))
        flip = bool(np.random.default_rng(seed).random() < 0.5)
        mirrored.add(flip)
        for name, expected in (("view", tensors["out/first"]), ("second_view", tensors["out/second"])):
            found = sample[name].permute(1, 2, 0)
            assert torch.equal(found.flip(1) if flip else found, expected)
    assert mirrored == {False, True}


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8))


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from([(1, 1), (900, 8), (8, 900), (37, 41), (90, 60)]),
    mode=st.sampled_from(["L", "RGB", "RGBA"]),
    crop_size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    jitter=st.sampled_from([0.0, 0.4, 1.5]),
    seed=st.integers(0, 2**32),
)
def test_any_image_equals_pillow(size, mode, crop_size, jitter, seed):
    """Jitter, crop and flip of the whole image, written plainly with the same draws."""
    image = noise(*size, mode)
    sample = CropViews(crop_size, SCALE, jitter, 8, "lanczos")(image, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    box = draw_box(*size, SCALE, rng)
    flip = rng.random() < 0.5
    if jitter:
        order, factors = rng.permutation(3), rng.uniform(max(0, 1 - jitter), 1 + jitter, 3)
        for number in order:
            image = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color][number](image).enhance(
                factors[number]
            )
    crop = image.crop(box)
    for name, (height, width), filter in (
        ("view", crop_size, Image.Resampling.BICUBIC),
        ("second_view", (8, 8), Image.Resampling.LANCZOS),
    ):
        expected = crop.resize((width, height), filter)
        expected = np.asarray(ImageOps.mirror(expected) if flip else expected).reshape(height, width, -1)
        assert sample[name].dtype == torch.uint8 and sample[name].is_contiguous()
        np.testing.assert_array_equal(sample[name].permute(1, 2, 0), expected)


def test_the_crop_does_not_depend_on_the_jitter():
    """White stays white under contrast and saturation, and black under all three: the rectangle shows."""
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[20:40, 30:50] = 255
    image = Image.fromarray(pixels)
    for seed in range(10):
        plain = CropViews(32, SCALE)(image, np.random.default_rng(seed))["view"]
        jittered = CropViews(32, SCALE, 0.4)(image, np.random.default_rng(seed))["view"]
        for view in (plain, jittered):
            assert view.amax() > view.amin()

        def shape(view: torch.Tensor) -> torch.Tensor:
            middle = (int(view.amax()) + int(view.amin())) / 2
            return view[0] > middle

        assert (shape(plain) != shape(jittered)).float().mean() < 0.02


def jitter_factors(jitter: float, count: int) -> list[list[tuple[str, float]]]:
    """The operations in their order, as read from what the views do to Pillow."""
    applied = []

    class Recorder:
        def __init__(self, name: str):
            self.name = name

        def __call__(self, image: Image.Image) -> "Recorder":
            self.image = image
            return self

        def enhance(self, factor: float) -> Image.Image:
            applied[-1].append((self.name, factor))
            return self.image

    views = CropViews(1, SCALE, jitter)
    rng, image = np.random.default_rng(0), noise(4, 4)
    names = ("Brightness", "Contrast", "Color")
    assert [jitter.__name__ for jitter in hf_mim.data.views.JITTERS] == list(names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_mim.data.views, "JITTERS", tuple(map(Recorder, names)))
        for _ in range(count):
            applied.append([])
            views(image, rng)
    return applied


def test_distribution_of_the_jitter():
    count = 3000
    applied = jitter_factors(0.4, count)
    orders = [tuple(name for name, _ in one) for one in applied]
    assert len(set(orders)) == 6
    for order in set(orders):
        assert abs(orders.count(order) / count - 1 / 6) < 5 * math.sqrt(5 / 36 / count)
    table = np.array([[dict(one)[name] for name in ("Brightness", "Contrast", "Color")] for one in applied])
    assert 0.6 <= table.min() and table.max() <= 1.4
    assert (np.abs(table.mean(axis=0) - 1) < 5 * 0.8 / math.sqrt(12 * count)).all()
    assert (np.abs(table.std(axis=0) - 0.8 / math.sqrt(12)) < 0.01).all()
    assert np.abs(np.corrcoef(table.T)[np.triu_indices(3, 1)]).max() < 5 / math.sqrt(count)
    strong = np.array([factor for one in jitter_factors(1.5, 1000) for _, factor in one])
    assert 0 <= strong.min() < 0.02 and 2.48 < strong.max() <= 2.5


def test_alpha_and_gray_keep_what_the_jitter_has_no_say_in():
    rgba, gray = noise(40, 30, "RGBA"), noise(40, 30, "L")
    for seed in range(5):
        plain, jittered = (CropViews(24, SCALE, jitter)(rgba, np.random.default_rng(seed)) for jitter in (0, 0.4))
        assert torch.equal(plain["view"][3], jittered["view"][3])
        assert not torch.equal(plain["view"][:3], jittered["view"][:3])
        plain, jittered = (CropViews(24, SCALE, jitter)(gray, np.random.default_rng(seed)) for jitter in (0, 0.4))
        assert jittered["view"].shape == (1, 24, 24) and not torch.equal(plain["view"], jittered["view"])


@pytest.mark.parametrize(
    ("options", "second"),
    [
        ({}, None),
        ({"second_size": 24}, None),
        ({"second_size": (24, 24)}, None),
        ({"second_size": 12}, (3, 12, 12)),
        ({"second_size": (24, 12)}, (3, 24, 12)),
        ({"second_interpolation": "lanczos"}, (3, 24, 24)),
    ],
)
def test_a_second_view_only_where_it_differs(options, second):
    sample = CropViews(24, SCALE, **options)(noise(60, 50), np.random.default_rng(0))
    assert sample["view"].shape == (3, 24, 24)
    assert (tuple(sample["second_view"].shape) if "second_view" in sample else None) == second


def test_the_second_view_shows_the_same_crop():
    # Red grows with x, green with y.
    red, green = np.meshgrid(np.linspace(0, 255, 400), np.linspace(0, 255, 300))
    image = Image.fromarray(np.stack([red, green, 0 * red], axis=-1).round().astype(np.uint8))
    views = CropViews(32, SCALE, second_size=16)
    for seed in range(20):
        sample = views(image, np.random.default_rng(seed))
        coarse = torch.nn.functional.avg_pool2d(sample["view"].float(), 2)
        assert (coarse - sample["second_view"].float()).abs().max() < 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be a positive number"),
        ({"scale": (0, 1)}, "scale must be"),
        ({"color_jitter": -0.1}, "color_jitter must be at least 0, got -0.1"),
        ({"color_jitter": math.nan}, "color_jitter must be at least 0, got nan"),
        ({"second_size": (16, 0)}, "second_size must be a positive number"),
        ({"second_interpolation": "nearest"}, "second_interpolation must be one of bicubic, lanczos, got 'nearest'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CropViews(**{"size": 32, "scale": SCALE, **options})


def test_unsupported_mode():
    with pytest.raises(ValueError, match="mode L, RGB or RGBA, got CMYK"):
        CropViews(32, SCALE)(Image.new("CMYK", (20, 20)), np.random.default_rng(0))
