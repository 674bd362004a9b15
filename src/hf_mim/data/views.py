"""
Random views of an image: iBOT's multi-crop, and the one crop of the other methods, rendered once or twice.

For multi-crop, workers only crop, resize and flip uint8 images. The color parameters are drawn here, because every
random number of a sample comes from the sample's own generator. The colors are computed later, on the training device
(`hf_mim.data.color.color_views`).
"""

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from .color import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GRAYSCALE,
    HUE,
    JITTER_ORDERS,
    NEUTRAL,
    ORDER,
    SATURATION,
    SOLARIZE,
)


INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
JITTERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class MultiCropViews:
    """
    Random views of an image at two scales, as in iBOT's code (`main_ibot.py: DataAugmentationiBOT`).

    A view is a random resized crop (aspect ratio 3/4 to 4/3, Pillow's bicubic filter), mirrored with probability 0.5.
    Its color parameters are drawn with these probabilities:

    | | global 1 | further globals | locals |
    |---|---|---|---|
    | jitter of brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1, in random order | 0.8 | 0.8 | 0.8 |
    | grayscale | 0.2 | 0.2 | 0.2 |
    | Gaussian blur, radius 0.1 to 2 pixels | 1.0 | 0.1 | 0.5 |
    | solarization | 0 | 0.2 | 0 |

    Args:
        global_crops_number (`int`, defaults to 2): G, at least 1.
        global_crop_size (`int` or `(height, width)`, defaults to 224): Size of the global views in pixels.
        global_crops_scale (`(float, float)`, defaults to (0.25, 1.0)): Smallest and largest fraction of the image's
            area that a global crop covers, in (0, 1].
        local_crops_number (`int`, defaults to 10): L, may be 0.
        local_crop_size (`int` or `(height, width)`, defaults to 96): Size of the local views in pixels.
        local_crops_scale (`(float, float)`, defaults to (0.05, 0.25)): The same for local crops.
        color (`bool`, defaults to True): False leaves all color parameters neutral, for images whose channels are
            measurements. The crops drawn from a generator stay the same.
        blur (`bool`, defaults to True): False skips the Gaussian blur, whose radii of up to 2 pixels are made for
            views of 224 pixels and wipe out small ones. Everything else drawn from a generator stays the same.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(
        self,
        global_crops_number: int = 2,
        global_crop_size: int | tuple[int, int] = 224,
        global_crops_scale: tuple[float, float] = (0.25, 1.0),
        local_crops_number: int = 10,
        local_crop_size: int | tuple[int, int] = 96,
        local_crops_scale: tuple[float, float] = (0.05, 0.25),
        color: bool = True,
        blur: bool = True,
    ) -> None:
        if global_crops_number < 1:
            raise ValueError(f"global_crops_number must be at least 1, got {global_crops_number}")
        if local_crops_number < 0:
            raise ValueError(f"local_crops_number must be at least 0, got {local_crops_number}")
        self.global_crops_number = global_crops_number
        self.global_crop_size = check_size("global_crop_size", global_crop_size)
        self.global_crops_scale = check_scale("global_crops_scale", global_crops_scale)
        self.local_crops_number = local_crops_number
        self.local_crop_size = check_size("local_crop_size", local_crop_size)
        self.local_crops_scale = check_scale("local_crops_scale", local_crops_scale)
        self.color, self.blur = color, blur

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> dict[str, Tensor | np.ndarray]:
        """
        Draw all views of one image.

        Args:
            image (`PIL.Image.Image`): In mode L, RGB or RGBA, of any size; C is its number of channels.
            rng (`np.random.Generator`): The only source of randomness.

        Returns:
            `dict`: `global_views`, uint8 [G, C, H, W], `local_views`, uint8 [L, C, h, w], and `color_parameters`,
            NumPy float64 [G + L, 8] for `color_views`, globals first.

        Raises:
            ValueError: If the image is in another mode.
        """
        check_mode(image)
        views = {
            "global_views": _draw_crops(
                image, self.global_crops_number, self.global_crop_size, self.global_crops_scale, rng
            ),
            "local_views": _draw_crops(
                image, self.local_crops_number, self.local_crop_size, self.local_crops_scale, rng
            ),
        }
        return views | {"color_parameters": self._draw_color_parameters(rng)}

    def _draw_color_parameters(self, rng: np.random.Generator) -> np.ndarray:
        further, local = self.global_crops_number - 1, self.local_crops_number
        count = 1 + further + local
        parameters = np.tile(NEUTRAL, (count, 1))
        if not self.color:
            return parameters
        blur_probability = np.repeat([1.0, 0.1, 0.5], [1, further, local])
        solarize_probability = np.repeat([0.0, 0.2, 0.0], [1, further, local])

        jittered = rng.random(count) < 0.8
        for column, low, high in (
            (BRIGHTNESS, 0.6, 1.4),
            (CONTRAST, 0.6, 1.4),
            (SATURATION, 0.8, 1.2),
            (HUE, -0.1, 0.1),
        ):
            parameters[:, column] = np.where(jittered, rng.uniform(low, high, count), NEUTRAL[column])
        parameters[:, ORDER] = rng.integers(len(JITTER_ORDERS), size=count)
        parameters[:, GRAYSCALE] = rng.random(count) < 0.2
        blurred = rng.random(count) < blur_probability
        radius = rng.uniform(0.1, 2.0, count)
        parameters[:, BLUR] = np.where(blurred & self.blur, radius, 0.0)
        parameters[:, SOLARIZE] = rng.random(count) < solarize_probability
        return parameters


class CropViews:
    """
    A random resized crop, mirrored with probability 0.5, of an image with optional color jitter.

    BEiT v2 (`datasets.py: DataAugmentationForBEiT` and `transforms.py` of the original code) shows the same crop to
    the student and to its tokenizer, whose view may have another size or filter. VQ-KD (`run_vqkd_training.py`) needs
    only the first view.

    Args:
        size (`int` or `(height, width)`): Size of the view in pixels; Pillow's bicubic filter.
        scale (`(float, float)`): Smallest and largest fraction of the image's area that the crop covers, in (0, 1].
        color_jitter (`float`, defaults to 0.0): Brightness, contrast and saturation of the whole image are each
            multiplied by a factor between 1 - `color_jitter` (at least 0) and 1 + `color_jitter`, in random order; 0
            keeps the colors. BEiT v2 uses 0.4. For grayscale images only the first two change; alpha never does. The
            crop drawn from a generator does not depend on it.
        second_size (`int` or `(height, width)`, *optional*): Size of the second view; defaults to that of the first.
        second_interpolation (`str`, defaults to `"bicubic"`): Filter of the second view, `"bicubic"` or `"lanczos"`.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        scale: tuple[float, float],
        color_jitter: float = 0.0,
        second_size: int | tuple[int, int] | None = None,
        second_interpolation: Literal["bicubic", "lanczos"] = "bicubic",
    ) -> None:
        if not color_jitter >= 0:
            raise ValueError(f"color_jitter must be at least 0, got {color_jitter}")
        if second_interpolation not in INTERPOLATIONS:
            raise ValueError(f"second_interpolation must be one of bicubic, lanczos, got {second_interpolation!r}")
        self.size = check_size("size", size)
        self.scale = check_scale("scale", scale)
        self.color_jitter = color_jitter
        self.second_size = self.size if second_size is None else check_size("second_size", second_size)
        self.second_interpolation = INTERPOLATIONS[second_interpolation]

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> dict[str, Tensor]:
        """
        Draw the views of one image.

        Args:
            image (`PIL.Image.Image`): In mode L, RGB or RGBA, of any size; C is its number of channels.
            rng (`np.random.Generator`): The only source of randomness.

        Returns:
            `dict`: `view`, uint8 [C, H, W], and, if its size or filter differs, `second_view`, uint8 [C, H2, W2].

        Raises:
            ValueError: If the image is in another mode.
        """
        check_mode(image)
        box, mirrored = draw_box(*image.size, self.scale, rng), rng.random() < 0.5
        image = self._jitter(image, rng)
        renderings = {"view": (self.size, Image.Resampling.BICUBIC)}
        second = self.second_size, self.second_interpolation
        if second != renderings["view"]:
            renderings["second_view"] = second
        views = {}
        for name, rendering in renderings.items():
            planes = render_crop(image, box, *rendering)
            views[name] = torch.from_numpy(np.array(planes[..., ::-1] if mirrored else planes, order="C"))
        return views

    def _jitter(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if self.color_jitter == 0:
            return image
        order = rng.permutation(len(JITTERS))
        factors = rng.uniform(max(0.0, 1 - self.color_jitter), 1 + self.color_jitter, len(JITTERS))
        for number in order:
            image = JITTERS[number](image).enhance(factors[number])
        return image


def _draw_crops(
    image: Image.Image, number: int, size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> Tensor:
    """Draw `number` crops: uint8 [number, C, height, width]."""
    crops = np.empty((number, len(image.getbands()), *size), dtype=np.uint8)
    for crop in crops:
        box = draw_box(*image.size, scale, rng)
        planes = render_crop(image, box, size, Image.Resampling.BICUBIC)
        crop[...] = planes[..., ::-1] if rng.random() < 0.5 else planes
    return torch.from_numpy(crops)


def check_size(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels; raises `ValueError` naming the argument."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"{name} must be a positive number of pixels or a (height, width) pair of them, got {size}")
    return sides


def check_scale(name: str, scale: tuple[float, float]) -> tuple[float, float]:
    """Return (smallest, largest) fraction of the area; raises `ValueError` naming the argument."""
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"{name} must be (smallest, largest) fraction of the area with 0 < smallest <= largest <= 1, got {scale}"
        )
    return scale[0], scale[1]


def check_mode(image: Image.Image) -> None:
    """Raise `ValueError` for a mode other than L, RGB and RGBA."""
    if image.mode not in ("L", "RGB", "RGBA"):
        raise ValueError(f"views need an image in mode L, RGB or RGBA, got {image.mode}")


def draw_box(
    image_width: int, image_height: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """
    Draw (left, top, right, bottom) in pixels, with the distribution of torchvision's RandomResizedCrop.

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
    """Resize the rectangle `box` of an image to `size` (height, width): uint8 [C, height, width]."""
    height, width = size
    resized = image.crop(box).resize((width, height), interpolation)
    return np.asarray(resized).reshape(height, width, -1).transpose(2, 0, 1)
