"""Random crops: where a crop lies, and what it looks like at the wanted size. Shared by all augmentations."""

import math

import numpy as np
from PIL import Image


def check_size(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels; raises ValueError naming the argument."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"{name} must be a positive number of pixels or a (height, width) pair of them, got {size}")
    return sides


def check_scale(name: str, scale: tuple[float, float]) -> tuple[float, float]:
    """(smallest, largest) share of the area; raises ValueError naming the argument."""
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"{name} must be (smallest, largest) share of the area with 0 < smallest <= largest <= 1, got {scale}"
        )
    return tuple(scale)


def check_mode(image: Image.Image) -> None:
    """Raises ValueError for a mode other than L, RGB and RGBA."""
    if image.mode not in ("L", "RGB", "RGBA"):
        raise ValueError(f"views need an image in mode L, RGB or RGBA, got {image.mode}")


def draw_box(
    image_width: int, image_height: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels, with the distribution of torchvision's RandomResizedCrop.

    Ten attempts to place a rectangle of random area and aspect ratio (log-uniform in 3/4 to 4/3), then the largest
    central crop with an admissible aspect ratio.
    """
    for _ in range(10):
        area = image_width * image_height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image_width and 0 < height <= image_height:
            left = int(rng.integers(image_width - width + 1))
            top = int(rng.integers(image_height - height + 1))
            return left, top, left + width, top + height
    width, height = image_width, image_height
    if width / height < 3 / 4:
        height = round(width * 4 / 3)
    elif width / height > 4 / 3:
        width = round(height * 4 / 3)
    left, top = (image_width - width) // 2, (image_height - height) // 2
    return left, top, left + width, top + height


def render_crop(
    image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int], interpolation: Image.Resampling
) -> np.ndarray:
    """The rectangle `box` of an image at `size` (height, width): uint8 [C, height, width]."""
    height, width = size
    resized = image.crop(box).resize((width, height), interpolation)
    return np.asarray(resized).reshape(height, width, -1).transpose(2, 0, 1)
