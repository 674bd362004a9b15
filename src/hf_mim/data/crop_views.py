"""One random crop of an image, rendered once or twice: what VQ-KD and BEiT v2 train on."""

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from .crops import check_mode, check_scale, check_size, draw_box, render_crop


INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
JITTERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class CropViews:
    """A random resized crop, mirrored with probability 0.5, of an image whose colours may be jittered before.

    BEiT v2 (`datasets.py: DataAugmentationForBEiT` and `transforms.py` of the original code) shows one and the same
    crop to the student and to its tokenizer, whose view may have another size or filter. VQ-KD
    (`run_vqkd_training.py`) needs the first view only.

    Args:
        size (`int` or `(height, width)`): Size of the view in pixels; Pillow's bicubic filter.
        scale (`(float, float)`): Smallest and largest share of the image's area that the crop covers, in (0, 1].
        color_jitter (`float`, defaults to 0.0):
            Brightness, contrast and saturation of the whole image are each multiplied by a factor between 1 - this
            (at least 0) and 1 + this, in random order; 0 leaves colours alone. BEiT v2 takes 0.4. Of greyscale images
            only the first two change; alpha never does. The crop drawn from a generator does not depend on this.
        second_size (`int` or `(height, width)`, *optional*): Size of the second view; by default that of the first.
        second_interpolation (`str`, defaults to `"bicubic"`): Filter of the second view, `"bicubic"` or `"lanczos"`.

    Raises:
        ValueError: naming the argument that is out of range.
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
        """Draw the views of one image.

        Args:
            image: In mode L, RGB or RGBA, of any size; C is its number of channels.
            rng: The only source of randomness.

        Returns:
            `view` uint8 [C, H, W] and, if its size or filter is another one, `second_view` uint8 [C, H2, W2].

        Raises:
            ValueError: if the image is in another mode.
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
