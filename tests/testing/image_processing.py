"""Images, and image processing written out by hand."""

import importlib

import numpy as np
from PIL import Image
from transformers import BaseImageProcessor

import hf_mim


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def generated_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colors and noise; every channel, alpha included, is different."""
    rng = np.random.default_rng(width * height)
    rows, columns = np.mgrid[:height, :width]
    base = [rows * 255 / height, columns * 255 / width, (rows + columns) % 256, 255 - rows * 128 / height]
    pixels = np.stack(base, axis=-1) * 0.8 + rng.uniform(0, 50, (height, width, 4))
    rgba = Image.fromarray(pixels.astype(np.uint8), "RGBA")
    if mode == "P":
        return rgba.convert("RGB").quantize(64)
    return rgba if mode == "RGBA" else (rgba if mode == "LA" else rgba.convert("RGB")).convert(mode)


def by_hand(image: Image.Image, mode: str = "RGB", mean=MEAN, std=STD, resize: int = 256, crop: int = 224):
    """The same transform written with Pillow; `[C, H, W]`. What is transparent lets a white ground through."""
    if "A" in image.getbands():
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert(mode)
    width, height = image.size
    scale = resize / min(width, height)
    new_size = (resize, int(height * scale)) if width <= height else (int(width * scale), resize)
    image = image.resize(new_size, Image.Resampling.BICUBIC)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop))) / 255
    return np.moveaxis((pixels.reshape(crop, crop, -1) - mean) / std, -1, 0)


def has_torchvision() -> bool:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        return False
    return True


# What `pipeline` and `AutoImageProcessor` take when no backend is asked for.
DEFAULT_BACKEND = "torchvision" if has_torchvision() else "pil"


def in_default_backend(processor: BaseImageProcessor) -> BaseImageProcessor:
    """One of our image processors on Pillow as those two would load it."""
    name = type(processor).__name__
    if DEFAULT_BACKEND == "torchvision":
        name = name.removesuffix("Pil")
    return getattr(hf_mim, name).from_dict(processor.to_dict())
