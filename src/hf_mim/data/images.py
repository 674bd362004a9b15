"""Decode image files into upright 8-bit images with a given number of channels."""

import importlib.util
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from transformers import BaseImageProcessor


IMAGE_EXTENSIONS = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
# Pillow also reads formats that start or need another program (EPS, GRIB), which data files must not do.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

# Read with the package pillow-heif.
HEIF_EXTENSIONS = frozenset((".heic", ".heif"))
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIF_HINT = "`pip install pillow-heif` makes them readable"

MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# EXIF orientation -> the operation that turns the image upright; 1 is upright, other values are undefined.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(ValueError):
    """An image that cannot be decoded; the message names the file and the cause."""


def decode_image(
    source: bytes | str | Path | Image.Image | dict[str, Any] | None,
    num_channels: int = 3,
    value_range: Sequence[float] | None = None,
) -> Image.Image:
    """
    Decode an image, turn it upright and convert it to 8 bits per channel.

    - The EXIF orientation is applied; an undefined or broken one is ignored. Animations give their first frame.
    - Grayscale of 16 or 32 bits is scaled from 0 ... 65535, or from `value_range`, to 0 ... 255. Float images need
      `value_range`.
    - Transparency is dropped, not blended, for one or three channels; the colors under it are used as stored.
    - Color profiles are ignored.

    Pillow's settings are respected and never changed. A file of more than `PIL.Image.MAX_IMAGE_PIXELS` (normally 89
    million) pixels is refused before it is decoded.

    Args:
        source (`bytes`, `str`, `Path`, `PIL.Image.Image` or `dict`): The bytes of a file, its path, an opened image,
            or the dictionary {"bytes", "path"} of a `datasets.Image(decode=False)` column; bytes take precedence.
        num_channels (`int`, defaults to 3): 1 (grayscale), 3 (RGB) or 4 (RGBA).
        value_range (`Sequence[float]`, *optional*): Values of grayscale images with more than 8 bits that become 0 and
            255. Those beyond are clipped. Without effect on images of 8 bits.

    Returns:
        `PIL.Image.Image`: A new image in mode "L", "RGB" or "RGBA", without metadata.

    Raises:
        UnreadableImageError: If the file is not an image, is damaged or too large, or has an unsuitable pixel type.
            Also for None and a dictionary with neither bytes nor path, which mark a missing image in tables.
        OSError: If there is no file at the path (`FileNotFoundError`) or it may not be read.
        ValueError: For another number of channels.
    """
    if num_channels not in MODES:
        raise ValueError(f"num_channels must be 1, 3 or 4, not {num_channels!r}")
    if isinstance(source, Image.Image):
        data = b""
        name = getattr(source, "filename", "") or f"{source.mode} of {source.width} x {source.height} pixels"
    else:
        name, data = read_image(source)
    try:
        image = source if isinstance(source, Image.Image) else open_image(data)
        return _convert(image, MODES[num_channels], value_range)
    # On damaged data Pillow's readers raise all kinds of exceptions: OSError, SyntaxError, struct.error, KeyError.
    except Exception as error:
        raise UnreadableImageError(f"cannot read image {name}: {cause_of(error, data)}") from error


def value_range_of(image_processor: BaseImageProcessor) -> list[float] | None:
    """Return the `value_range` with which the images of a model were decoded, kept with its image processor."""
    return image_processor.to_dict().get("value_range")


def keep_value_range(image_processor: BaseImageProcessor, value_range: Sequence[float] | None) -> None:
    """
    Keep a `value_range` with an image processor, which saves it and does not apply it: it gets images of 8 bits.

    Raises:
        ValueError: As for [`check_value_range`].
    """
    if value_range is not None:
        check_value_range(value_range)
        image_processor.value_range = list(value_range)  # type: ignore[attr-defined]  # processors keep attributes


def check_value_range(value_range: Sequence[float]) -> None:
    """Raise `ValueError` unless a range is two finite numbers, the lower one first."""
    if len(value_range) != 2 or not all(map(math.isfinite, value_range)) or value_range[0] >= value_range[1]:
        shown = " ".join(f"{value:g}" for value in value_range)
        raise ValueError(f"value_range must be two numbers, the value of black before that of white, got {shown}")


def read_image(source: bytes | str | Path | dict[str, Any] | None) -> tuple[str, bytes]:
    """Return name and contents of an image file; raises like [`decode_image`] if there is none."""
    if isinstance(source, bytes):
        source = {"bytes": source}
    elif not isinstance(source, dict):
        source = {"path": source}
    path, data = source.get("path"), source.get("bytes")
    if data is not None:
        return str(path or "(no file name)"), data
    if path is None:
        raise UnreadableImageError("this image has neither bytes nor a path")
    if not os.path.isfile(path) and os.path.exists(path):
        # A pipe or a device may never end.
        raise UnreadableImageError(f"cannot read image {path}: it is not a regular file")
    return str(path), Path(path).read_bytes()


def can_read_heif() -> bool:
    """Return whether HEIC images can be read, that is, whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def open_image(data: bytes) -> Image.Image:
    """Open the bytes of an image file. Raises what Pillow raises, and `ValueError` for one that is too large."""
    formats: tuple[str, ...] = FORMATS
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        if not can_read_heif():
            raise ValueError(f"HEIC images cannot be read; {HEIF_HINT}")
        importlib.import_module("pillow_heif").register_heif_opener()
        formats = (*FORMATS, "HEIF")
    image = Image.open(io.BytesIO(data), formats=formats)
    # Between this limit and twice the limit Pillow only warns, which depends on the process's warning filters.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS = {limit}")
    return image


def _convert(image: Image.Image, mode: str, value_range: Sequence[float] | None) -> Image.Image:
    image.load()
    orientation = _orientation(image)
    if image.mode == "F" and value_range is None:
        raise ValueError("its pixels are floats of unknown range; give it with --value_range LOW HIGH")
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image, value_range)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    image = image.convert(mode)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    # The orientation must not be applied a second time by a later reader.
    image.info = {}
    return image


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # an image with a broken EXIF block is still usable
        return None


def _to_8_bits(image: Image.Image, value_range: Sequence[float] | None) -> Image.Image:
    if value_range is not None:
        low, high = value_range
        values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=low, posinf=high, neginf=low)
        scaled = (values - low) * 255 / (high - low)
        return Image.fromarray((scaled.clip(0, 255) + 0.5).astype(np.uint8))
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"its pixels range from {values.min()} to {values.max()}, outside the 16-bit 0 ... 65535; give the range "
            "with --value_range LOW HIGH"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def cause_of(error: Exception, data: bytes) -> str:
    """Return why an image file cannot be read, in one line, from what Pillow raised for its bytes."""
    if isinstance(error, UnidentifiedImageError):
        samples = tiff_samples(data)
        if samples is not None:
            return (
                f"a TIFF of {samples[0]} channels of {samples[1]} bits, which is not read; TIFFs of 1, 3 and 4 "
                "channels of 8 bits are, and of 1 channel of 16 or 32 bits"
            )
        return f"not an image in a known format ({len(data)} bytes)" if data else "the file is empty"
    return f"{error}".partition("\n")[0] or type(error).__name__


def tiff_samples(data: bytes) -> tuple[int, int] | None:
    """Return the number of channels and of bits per channel that a TIFF file declares, or None for another file."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if 43 in data[2:4] else data[:8])
        file = io.BytesIO(data)
        file.seek(directory.next)
        directory.load(file)
        bits = directory.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        return int(directory.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)), int(bits[0])
    except Exception:  # a damaged header
        return None
