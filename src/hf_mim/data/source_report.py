"""
Say what a source of images holds that is not read: pages, channels, ranges of values.

What is left out among files, folders and labels is found while they are listed (`hf_mim.data.sources`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from .folders import ascii_path
from .images import cause_of, decode_image, open_image, read_image, tiff_samples


# Images that a run looks at before it starts; `hf-mim check-data` looks at all of them.
NUM_LOOKED_AT = 64
# Of these, so many are decoded as a whole.
NUM_DECODED = 8
# Upper ends of usual ranges: 10, 12 and 14 bits, and reflectances in units of 1e-4.
USUAL_MAXIMA = (1023, 4095, 10_000, 16_383, 65_535)


@dataclass(frozen=True)
class ImageFacts:
    """
    What the file of an image holds before it is converted to 8 bits.

    Attributes:
        mode (`str`): Pillow's mode.
        format (`str`, *optional*): File format.
        pages (`int`): Number of pages or frames.
        channels (`int`): Number of channels that the file declares.
        bits (`int`): Bits per channel.
        low, high (`float`, *optional*): Range of the values, for grayscale images with more than 8 bits.
    """

    mode: str
    format: str | None
    pages: int
    channels: int
    bits: int
    low: float | None = None
    high: float | None = None


def image_facts(data: bytes) -> ImageFacts:
    """Read the facts of an image file. Raises what Pillow raises for data that are no image."""
    with open_image(data) as image:
        samples = tiff_samples(data) if image.format == "TIFF" else None
        channels, bits = samples or (len(image.getbands()), 8)
        if image.format == "PNG" and data[12:16] == b"IHDR":
            bits = data[24]
        pages = getattr(image, "n_frames", 1)
        if image.mode != "F" and not image.mode.startswith("I"):
            return ImageFacts(image.mode, image.format, pages, channels, bits)
        values = np.asarray(image)
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
        return ImageFacts(image.mode, image.format, pages, channels, max(bits, 16), low, high)


def describe_images(named: Iterable[tuple[str, ImageFacts]], value_range: Sequence[float] | None = None) -> list[str]:
    """
    Return a line for each thing that the images hold and that is not read, with a count and an example.

    Args:
        named (`Iterable[tuple[str, ImageFacts]]`): Name and facts of every image.
        value_range (`Sequence[float]`, *optional*): The range that is used for more than 8 bits.
    """
    facts = list(named)
    lines = []

    def add(found: list[tuple[str, ImageFacts]], text: str) -> None:
        if found:
            lines.append(f"{len(found)} of {len(facts)} images {text}, such as {ascii_path(found[0][0])}")

    paged = [(name, one) for name, one in facts if one.pages > 1]
    most = max((one.pages for _, one in paged), default=0)
    add(paged, f"have several pages or frames (up to {most}), of which the first is read")
    add(
        [(name, one) for name, one in facts if one.channels == 2 and one.mode == "L"],
        "have 2 channels, of which the first is read",
    )
    add(
        [(name, one) for name, one in facts if one.bits > 8 and one.high is None and one.mode in ("RGB", "RGBA")],
        "have colors of 16 bits, of which the upper 8 are read",
    )
    transparent = [(name, one) for name, one in facts if one.mode in ("LA", "La", "RGBA", "RGBa", "PA")]
    add(transparent, "have a channel of transparency, which models of 1 or 3 channels do not see")
    deep = [(name, one) for name, one in facts if one.high is not None]
    if deep:
        lines += _describe_range(deep, len(facts), value_range)
    return lines


def look_at(dataset: Dataset, value_range: Sequence[float] | None = None) -> list[str]:
    """
    Look at a few images spread over a dataset, and return lines as [`describe_images`] does.

    Raises:
        ValueError: If none of them is readable.
    """
    rows = np.linspace(0, len(dataset) - 1, min(NUM_LOOKED_AT, len(dataset))).astype(int)
    found: list[tuple[str, ImageFacts]] = []
    unreadable = []
    for row in dict.fromkeys(rows.tolist()):
        source = dataset[row]["image"]
        name = (None if source is None else source["path"]) or f"row {row}"
        data = b""
        try:
            data = read_image(source)[1]
            facts = image_facts(data)
            if len(found) < NUM_DECODED or facts.high is not None:
                decode_image(data, value_range=value_range)
            found.append((name, facts))
        # On damaged data Pillow's readers raise all kinds of exceptions.
        except Exception as error:
            reason = cause_of(error, data).removeprefix("cannot read image (no file name): ")
            unreadable.append(f"{ascii_path(name)} ({reason})")
    if unreadable and not found:
        raise ValueError(
            f"none of the {len(unreadable)} images looked at is readable, such as {unreadable[0]}: "
            "hf-mim check-data lists them"
        )
    lines = describe_images(found, value_range)
    if unreadable:
        lines.append(f"{len(unreadable)} of {len(rows)} images looked at are not readable, such as {unreadable[0]}")
    return lines


def _describe_range(deep: list[tuple[str, ImageFacts]], total: int, value_range: Sequence[float] | None) -> list[str]:
    lows = [one.low for _, one in deep if one.low is not None]
    highs = [one.high for _, one in deep if one.high is not None]
    low, high = min(lows), max(highs)
    modes = ", ".join(sorted({one.mode for _, one in deep}))
    values = f"{len(deep)} of {total} images (mode {modes}) hold values from {low:.6g} to {high:.6g}"
    if value_range is not None:
        if low < value_range[0] or high > value_range[1]:
            return [f"{values}; those outside of --value_range {value_range[0]:g} {value_range[1]:g} are clipped"]
        return [values]
    if modes != "F" and 0 <= low and high > 32_767:
        return [values]
    if low < 0 or any(one.mode == "F" for _, one in deep):
        wanted = (low, high)
    else:
        wanted = (0, next(maximum for maximum in USUAL_MAXIMA if maximum >= high))
    problem = "cannot be converted to 8 bits" if modes == "F" or low < 0 or high > 65_535 else "come out nearly black"
    return [f"{values} and {problem}: --value_range {wanted[0]:.6g} {wanted[1]:.6g} makes the whole range visible"]
