"""Every color operation against Pillow, byte for byte."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from hf_mim.data.color import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GRAYSCALE,
    HUE,
    HUE_UNIT,
    JITTER_ORDERS,
    NEUTRAL,
    ORDER,
    SATURATION,
    SOLARIZE,
    color_views,
)
from hf_mim.data.views import MultiCropViews


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pillow_hue(image: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shifted = np.asarray(hue) + np.array(int(shift * 255) % 256, dtype=np.uint8)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


def pillow_augment(image: Image.Image, parameters: np.ndarray) -> Image.Image:
    """The plain pipeline: torchvision's transforms on Pillow images, in iBOT's order. RGB only."""
    row = [float(value) for value in parameters]
    for operation in JITTER_ORDERS[int(row[ORDER])]:
        if operation == HUE:
            image = pillow_hue(image, row[HUE]) if row[HUE] else image
        else:
            enhancer = {
                BRIGHTNESS: ImageEnhance.Brightness,
                CONTRAST: ImageEnhance.Contrast,
                SATURATION: ImageEnhance.Color,
            }
            image = enhancer[operation](image).enhance(row[operation])
    if row[GRAYSCALE]:
        image = image.convert("L").convert("RGB")
    if row[BLUR]:
        image = image.filter(ImageFilter.GaussianBlur(row[BLUR]))
    return ImageOps.solarize(image) if row[SOLARIZE] else image


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1).permute(2, 0, 1).contiguous()


def to_image(pixels: torch.Tensor) -> Image.Image:
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array))


def table(count: int = 1, **columns: float) -> np.ndarray:
    parameters = np.tile(NEUTRAL, (count, 1))
    for name, value in columns.items():
        parameters[:, globals()[name.upper()]] = value
    return parameters


def augment(pixels: torch.Tensor, parameters: np.ndarray) -> torch.Tensor:
    """`color_views` without normalization, as bytes; [C, H, W] or [M, C, H, W]."""
    batch = pixels if pixels.ndim == 4 else pixels[None]
    channels = batch.shape[1]
    levels = color_views(batch, parameters, [0.0] * channels, [1 / 255] * channels)
    rounded = levels.round()
    assert (levels - rounded).abs().max() < 1e-3
    return rounded.to(torch.uint8).view(pixels.shape)


def sample_pixels(channels: int = 3, height: int = 37, width: int = 53, count: int | None = None) -> torch.Tensor:
    """Noise, a smooth ramp, extremes and a flat area side by side."""
    rng = np.random.default_rng(0)
    shape = (count or 1, channels, height, width)
    pixels = rng.integers(0, 256, shape)
    ramp = np.linspace(0, 255, height * (width // 2)).reshape(height, -1)
    pixels[..., : width // 2] = (ramp + 40 * np.arange(channels)[:, None, None]) % 256
    pixels[..., : height // 3, :] = rng.choice([0, 255], (*shape[:2], height // 3, width))
    pixels[..., -3:, -9:] = 127
    tensor = torch.from_numpy(pixels.astype(np.uint8))
    return tensor if count else tensor[0]


def random_table(count: int, seed: int = 0) -> np.ndarray:
    views = MultiCropViews(global_crops_number=count, global_crop_size=8, local_crops_number=0)
    return views(Image.new("RGB", (9, 9)), np.random.default_rng(seed))["color_parameters"]


@settings(deadline=None, max_examples=60)
@given(factor=st.floats(0, 2, width=32), name=st.sampled_from(["brightness", "contrast", "saturation"]))
def test_enhancers_equal_pillow(factor, name):
    pixels = sample_pixels()
    enhancers = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color"}
    expected = getattr(ImageEnhance, enhancers[name])(to_image(pixels)).enhance(factor)
    assert torch.equal(augment(pixels, table(**{name: factor})), to_tensor(expected))


@pytest.mark.parametrize("level", range(0, 256, 5))
def test_contrast_pivot_rounds_like_pillow(level):
    # Half of the pixels one level higher: the mean lies exactly between two integers.
    pixels = torch.full((3, 4, 4), level, dtype=torch.uint8)
    pixels[:, ::2] = min(level + 1, 255)
    expected = ImageEnhance.Contrast(to_image(pixels)).enhance(0.3)
    assert torch.equal(augment(pixels, table(contrast=0.3)), to_tensor(expected))


def test_contrast_pivot_is_exact_on_large_images():
    pixels = torch.full((3, 600, 500), 255, dtype=torch.uint8)
    pixels[:, :, ::2] = 254  # the sum of 300,000 pixels exceeds 2^24
    pixels[:, 0, 0] = 0
    expected = ImageEnhance.Contrast(to_image(pixels)).enhance(1.4)
    assert torch.equal(augment(pixels, table(contrast=1.4)), to_tensor(expected))


def test_hue_equals_pillow_for_all_colors():
    shift = -0.1
    green, blue = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    for reds in torch.arange(256).split(4):
        colors = torch.stack([torch.stack([torch.full_like(green, red), green, blue]) for red in reds])
        colors = colors.to(torch.uint8).permute(1, 0, 2, 3).reshape(3, -1, 256)
        assert torch.equal(augment(colors, table(hue=shift)), to_tensor(pillow_hue(to_image(colors), shift)))


@settings(deadline=None, max_examples=60)
@given(shift=st.floats(-0.5, 0.5).filter(lambda shift: shift != 0))
def test_hue_equals_pillow_for_all_shifts(shift):
    pixels = sample_pixels()
    assert torch.equal(augment(pixels, table(hue=shift)), to_tensor(pillow_hue(to_image(pixels), shift)))


def test_hue_arithmetic_for_all_shares_and_products():
    values = torch.arange(256)
    products = torch.outer(values, values).unique()
    expected = (2 * torch.outer(values, products) + 65025) // (2 * 65025)
    found = values.float()[:, None] * products.float().mul(HUE_UNIT)
    assert torch.equal(found.round(), expected.float())


def test_grayscale_equals_pillow():
    pixels = sample_pixels()
    expected = to_image(pixels).convert("L").convert("RGB")
    assert torch.equal(augment(pixels, table(grayscale=1)), to_tensor(expected))


def test_solarize_equals_pillow():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(3, 1, 1)
    expected = ImageOps.solarize(to_image(pixels), threshold=128)
    assert torch.equal(augment(pixels, table(solarize=1)), to_tensor(expected))


@settings(deadline=None, max_examples=100)
@given(
    radius=st.floats(0.01, 6), height=st.integers(1, 12), width=st.integers(1, 12), channels=st.sampled_from([1, 3, 4])
)
def test_blur_equals_pillow(radius, height, width, channels):
    pixels = sample_pixels(channels, height, width)
    expected = to_image(pixels).filter(ImageFilter.GaussianBlur(radius))
    assert torch.equal(augment(pixels, table(blur=radius)), to_tensor(expected))


@pytest.mark.parametrize("radius", [*np.linspace(0.1, 2, 40), 2**0.5, 2**0.5 * 0.999999, 2**0.5 * 1.000001])
def test_blur_equals_pillow_on_larger_images(radius):
    pixels = sample_pixels()
    expected = to_image(pixels).filter(ImageFilter.GaussianBlur(float(radius)))
    assert torch.equal(augment(pixels, table(blur=radius)), to_tensor(expected))


@pytest.mark.parametrize("order", range(24))
def test_order_of_the_jitter(order):
    pixels = sample_pixels()
    parameters = table(brightness=1.3, contrast=0.7, saturation=1.2, hue=0.08, order=order)
    expected = to_tensor(pillow_augment(to_image(pixels), parameters[0]))
    assert torch.equal(augment(pixels, parameters), expected)
    other_order = table(brightness=1.3, contrast=0.7, saturation=1.2, hue=0.08, order=23 - order)
    assert not torch.equal(augment(pixels, other_order), expected)


def test_one_channel():
    pixels = sample_pixels(channels=1)
    image = to_image(pixels)
    for parameters, expected in [
        (table(brightness=1.3), ImageEnhance.Brightness(image).enhance(1.3)),
        (table(contrast=0.6), ImageEnhance.Contrast(image).enhance(0.6)),
        (table(solarize=1), ImageOps.solarize(image)),
        (table(saturation=1.2, hue=0.1, grayscale=1), image),
    ]:
        assert torch.equal(augment(pixels, parameters), to_tensor(expected))


def test_alpha_is_only_blurred():
    pixels = sample_pixels(channels=4)
    parameters = table(
        brightness=1.3, contrast=0.7, saturation=1.2, hue=0.08, order=7, grayscale=1, blur=1.1, solarize=1
    )
    output = augment(pixels, parameters)
    assert torch.equal(output[:3], to_tensor(pillow_augment(to_image(pixels[:3]), parameters[0])))
    assert torch.equal(output[3:], to_tensor(to_image(pixels[3:]).filter(ImageFilter.GaussianBlur(1.1))))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_batch_independence(channels):
    # Enough pixels that a CPU works in several pieces.
    batch, parameters = sample_pixels(channels, 160, 170, count=40), random_table(40)
    mean, std = [0.4] * channels, [0.2] * channels
    before = batch.clone()
    together = color_views(batch, parameters, mean, std)
    alone = torch.cat([color_views(batch[i : i + 1], parameters[i : i + 1], mean, std) for i in range(40)])
    assert torch.equal(together, alone)
    assert torch.equal(batch, before)


def test_normalization():
    pixels = sample_pixels(count=2)
    expected = (pixels.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(color_views(pixels, table(2), MEAN, STD), expected)


def test_nothing_waits_for_the_device():
    # Tensors of the meta device have no values: whatever asks for one on the host fails.
    views = torch.empty(50, 3, 32, 40, dtype=torch.uint8, device="meta")
    colored = color_views(views, random_table(50), MEAN, STD)
    assert colored.device.type == "meta" and colored.shape == views.shape and colored.dtype == torch.float32


def test_no_views():
    empty = torch.empty(0, 3, 8, 6, dtype=torch.uint8)
    assert color_views(empty, table(0), MEAN, STD).shape == (0, 3, 8, 6)


def test_memory_layout_does_not_matter():
    pixels, parameters = sample_pixels(count=4), random_table(4)
    expected = color_views(pixels, parameters, MEAN, STD)
    for other in (pixels.to(memory_format=torch.channels_last), torch.cat([pixels, pixels], dim=3)[..., :53]):
        assert not other.is_contiguous()
        assert torch.equal(color_views(other, parameters, MEAN, STD), expected)


@pytest.mark.parametrize(
    ("views", "parameters", "mean", "message"),
    [
        (torch.zeros(2, 3, 4, 4), table(2), MEAN, "uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), table(3), MEAN, r"\[M, C, H, W\]"),
        (torch.zeros(2, 2, 4, 4, dtype=torch.uint8), table(2), (0, 0), "C = 1, 3 or 4"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), table(3), MEAN, r"\(2, 8\), got \(3, 8\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), table(2), MEAN, "1 values for 1 channels, got 3 and 1"),
    ],
)
def test_bad_input(views, parameters, mean, message):
    with pytest.raises(ValueError, match=message):
        color_views(views, parameters, mean, (1,) * views.shape[1])


def test_whole_pipeline_equals_pillow_on_photos(shared_data):
    (file,) = (shared_data / "photos_mini").glob("test-*.parquet")
    rows = pq.read_table(file, columns=["image"])["image"].to_pylist()[:12]
    photos = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in rows]
    draw = MultiCropViews(local_crops_number=6)
    for seed, photo in enumerate(photos):
        sample = draw(photo, np.random.default_rng(seed))
        parameters = sample["color_parameters"]
        for views, rows in ((sample["global_views"], parameters[:2]), (sample["local_views"], parameters[2:])):
            images = torch.stack([to_tensor(pillow_augment(to_image(v), p)) for v, p in zip(views, rows, strict=True)])
            expected = (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
            assert torch.equal(color_views(views, rows, MEAN, STD), expected)
