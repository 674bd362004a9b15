"""Multi-crop views of an image: the geometry of iBOT's augmentation on uint8, and the draw of its colour parameters.

Workers only crop, resize and flip. What happens to the colours is drawn here too, because every random number of a
sample comes from the sample's own generator, but it is computed later, on the training device
(`hf_mim.data.color.color_views`).
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .color import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GREYSCALE,
    HUE,
    JITTER_ORDERS,
    NEUTRAL,
    ORDER,
    SATURATION,
    SOLARISE,
)
from .crops import check_mode, check_scale, check_size, draw_box, render_crop


class MultiCropViews:
    """Two scales of random views of an image, as in iBOT's code (`main_ibot.py: DataAugmentationiBOT`).

    A view is a random resized crop (aspect ratio 3/4 to 4/3, Pillow's bicubic filter), mirrored with probability 0.5.
    Its colour parameters are drawn with these probabilities:

    | | global 1 | further globals | locals |
    |---|---|---|---|
    | jitter of brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1, in random order | 0.8 | 0.8 | 0.8 |
    | greyscale | 0.2 | 0.2 | 0.2 |
    | Gaussian blur, radius 0.1 to 2 pixels | 1.0 | 0.1 | 0.5 |
    | solarisation | 0 | 0.2 | 0 |

    Args:
        global_crops_number (`int`, defaults to 2): G, at least 1.
        global_crop_size (`int` or `(height, width)`, defaults to 224): Size of the global views in pixels.
        global_crops_scale (`(float, float)`, defaults to (0.25, 1.0)):
            Smallest and largest share of the image's area that a global crop covers, in (0, 1].
        local_crops_number (`int`, defaults to 10): L, may be 0.
        local_crop_size (`int` or `(height, width)`, defaults to 96): Size of the local views in pixels.
        local_crops_scale (`(float, float)`, defaults to (0.05, 0.25)): The same for local crops.
        color (`bool`, defaults to True):
            False leaves colours alone (all parameters neutral), for images whose channels are measurements. The crops
            drawn from a generator stay the same.
        blur (`bool`, defaults to True):
            False leaves out the Gaussian blur, whose radii of up to 2 pixels are made for views of 224 pixels and wipe
            out small ones. All else that is drawn from a generator stays the same.

    Raises:
        ValueError: naming the argument that is out of range.
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
        """Draw all views of one image.

        Args:
            image: In mode L, RGB or RGBA, of any size; C is its number of channels.
            rng: The only source of randomness.

        Returns:
            `global_views` uint8 [G, C, H, W], `local_views` uint8 [L, C, h, w] and `color_parameters`, numpy float64
            [G + L, 8] for `color_views`, globals first.

        Raises:
            ValueError: if the image is in another mode.
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
        solarise_probability = np.repeat([0.0, 0.2, 0.0], [1, further, local])

        jittered = rng.random(count) < 0.8
        for column, low, high in (
            (BRIGHTNESS, 0.6, 1.4),
            (CONTRAST, 0.6, 1.4),
            (SATURATION, 0.8, 1.2),
            (HUE, -0.1, 0.1),
        ):
            parameters[:, column] = np.where(jittered, rng.uniform(low, high, count), NEUTRAL[column])
        parameters[:, ORDER] = rng.integers(len(JITTER_ORDERS), size=count)
        parameters[:, GREYSCALE] = rng.random(count) < 0.2
        blurred = rng.random(count) < blur_probability
        radius = rng.uniform(0.1, 2.0, count)
        parameters[:, BLUR] = np.where(blurred & self.blur, radius, 0.0)
        parameters[:, SOLARISE] = rng.random(count) < solarise_probability
        return parameters


def _draw_crops(
    image: Image.Image, number: int, size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> Tensor:
    """uint8 [number, C, height, width]."""
    crops = np.empty((number, len(image.getbands()), *size), dtype=np.uint8)
    for crop in crops:
        box = draw_box(*image.size, scale, rng)
        planes = render_crop(image, box, size, Image.Resampling.BICUBIC)
        crop[...] = planes[..., ::-1] if rng.random() < 0.5 else planes
    return torch.from_numpy(crops)
