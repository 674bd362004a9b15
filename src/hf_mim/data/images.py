"""Decode image files into upright 8-bit images with a given number of channels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError


IMAGE_EXTENSIONS = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
# Pillow also reads formats that start or need another program (EPS, GRIB), which data files must not do.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

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
    source: bytes | str | Path | Image.Image | dict[str, Any] | None, num_channels: int = 3
) -> Image.Image:
    """
    Decode an image, turn it upright and convert it to 8 bits per channel.

    - The EXIF orientation is applied; an undefined or broken one is ignored. Animations give their first frame.
    - 16-bit grayscale is scaled from 0 ... 65535 to 0 ... 255. Float images are refused: their range is unknown.
    - Transparency is dropped, not blended, for one or three channels; the colors under it are used as stored.
    - Color profiles are ignored.

    Pillow's settings are respected and never changed. A file of more than `PIL.Image.MAX_IMAGE_PIXELS` (normally 89
    million) pixels is refused before it is decoded.

    Args:
        source (`bytes`, `str`, `Path`, `PIL.Image.Image` or `dict`): The bytes of a file, its path, an opened image,
            or the dictionary {"bytes", "path"} of a `datasets.Image(decode=False)` column; bytes take precedence.
        num_channels (`int`, defaults to 3): 1 (grayscale), 3 (RGB) or 4 (RGBA).

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
        return _convert(source if isinstance(source, Image.Image) else _open(data), MODES[num_channels])
    # On damaged data Pillow's readers raise all kinds of exceptions: OSError, SyntaxError, struct.error, KeyError.
    except Exception as error:
        raise UnreadableImageError(f"cannot read image {name}: {_cause(error, data)}") from error


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
    return str(path), Path(path).read_bytes()


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    # Between this limit and twice the limit Pillow only warns, which depends on the process's warning filters.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS = {limit}")
    return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    image.load()
    orientation = _orientation(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        image = _to_8_bits(image)
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


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels range from {values.min()} to {values.max()}, outside the 16-bit 0 ... 65535")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _cause(error: Exception, data: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in a known format ({len(data)} bytes)" if data else "the file is empty"
    return f"{error}".partition("\n")[0] or type(error).__name__
