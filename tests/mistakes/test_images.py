"""Images of which something is not read: bit depth, pages, channels, formats; and files that are no images."""

import io
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

import hf_mim_cli as cli
from hf_mim.data.images import decode_image
from tests.testing.mistakes import refusal


def tiff(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def saved(image: Image.Image, extension: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, extension, **options)
    return buffer.getvalue()


def ramp(highest: int, dtype="uint16") -> np.ndarray:
    return np.linspace(0, highest, 32 * 32).round().astype(dtype).reshape(32, 32)


GRAY = {"photometric": "minisblack"}
TOGETHER = GRAY | {"planarconfig": "contig"}
FRAMES = [Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue")]


@pytest.mark.parametrize(
    ("name", "data", "note"),
    [
        (
            "10.tif",
            tiff(ramp(1023)),
            "(mode I;16) hold values from 0 to 1023 and come out nearly black: --value_range 0 1023 makes",
        ),
        (
            "12.png",
            saved(Image.fromarray(ramp(4000)), "PNG"),
            "from 0 to 4000 and come out nearly black: --value_range 0 4095",
        ),
        ("14.tif", tiff(ramp(16383), byteorder=">"), "(mode I;16B) hold values from 0 to 16383 and come out nearly"),
        ("reflectance.tif", tiff(ramp(9500)), "from 0 to 9500 and come out nearly black: --value_range 0 10000 makes"),
        ("16.tif", tiff(ramp(65535)), "1 of 1 images (mode I;16) hold values from 0 to 65535"),
        (
            "pages.tif",
            tiff(np.zeros((5, 32, 32), np.uint8), **GRAY),
            "have several pages or frames (up to 5), of which",
        ),
        (
            "moving.gif",
            saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
            "frames (up to 3), of which the",
        ),
        (
            "moving.png",
            saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
            "frames (up to 3), of which the",
        ),
        (
            "moving.webp",
            saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
            "frames (up to 3), of which",
        ),
        ("two.tif", tiff(np.zeros((32, 32, 2), np.uint8), **TOGETHER), "have 2 channels, of which the first is read"),
        (
            "rgb16.tif",
            tiff(np.zeros((32, 32, 3), np.uint16), photometric="rgb"),
            "have colors of 16 bits, of which the",
        ),
        ("alpha.png", saved(Image.new("RGBA", (32, 32)), "PNG"), "have a channel of transparency, which models of 1"),
    ],
)
def test_what_is_not_read_is_said(tmp_path, capsys, name, data, note):
    (tmp_path / name).write_bytes(data)
    assert cli.main(["check-data", str(tmp_path), "--num_workers", "1"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note ")]
    assert len(printed) == 1 and note in printed[0]
    assert name in printed[0] or "hold values" in printed[0]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (
            "five.tif",
            tiff(np.zeros((32, 32, 5), np.uint8), **TOGETHER),
            "a TIFF of 5 channels of 8 bits, which is not read",
        ),
        (
            "planes.tif",
            tiff(np.zeros((5, 32, 32), np.uint8), planarconfig="separate", **GRAY),
            "a TIFF of 5 channels of 8 bits, which is not read",
        ),
        ("double.tif", tiff(np.zeros((32, 32))), "a TIFF of 1 channels of 64 bits, which is not read"),
        (
            "float.tif",
            tiff(np.zeros((32, 32), np.float32)),
            "floats of unknown range; give it with --value_range LOW HIGH",
        ),
        ("signed.tif", tiff(np.full((32, 32), -5, np.int16)), "give the range with --value_range LOW HIGH"),
        ("wide.tif", tiff(np.full((32, 32), 10**6, np.uint32)), "give the range with --value_range LOW HIGH"),
        ("text.jpg", b"a text under the name of a picture", "not an image in a known format (34 bytes)"),
        ("empty.png", b"", "the file is empty"),
        ("cut.png", saved(FRAMES[0], "PNG")[:60], "cut.png: "),
    ],
)
def test_unreadable_images(tmp_path, capsys, name, data, reason):
    (tmp_path / name).write_bytes(data)
    assert cli.main(["check-data", str(tmp_path), "--num_workers", "1"]) == 1
    assert reason in capsys.readouterr().out
    # A run ends before its model is built.
    options = ("--train_dir", tmp_path, "--output_dir", tmp_path / "run")
    line = refusal(capsys, "pretrain", "quickstart", *options)
    assert f"none of the 1 images looked at is readable, such as {tmp_path}/{name} (" in line
    assert reason.removeprefix("cut.png: ") in line
    assert not (tmp_path / "run").exists()


def test_value_range_uses_all_gray_levels():
    values = ramp(4095)
    assert len(np.unique(np.asarray(decode_image(tiff(values), 1)))) == 17
    picture = np.asarray(decode_image(tiff(values), 1, (0, 4095)))
    np.testing.assert_array_equal(picture, np.floor(values * (255 / 4095) + 0.5).astype(np.uint8))
    assert len(np.unique(picture)) == 256


@pytest.mark.parametrize(
    ("values", "value_range", "expected"),
    [
        (np.float32([[0, 0.5, 1, 2]]), (0, 1), [[0, 128, 255, 255]]),
        (np.float32([[-1, 0, np.nan, np.inf]]), (-1, 1), [[0, 128, 0, 255]]),
        (np.int16([[-100, 0, 50, 100]]), (-100, 100), [[0, 128, 191, 255]]),
        (np.uint32([[0, 10**6, 2 * 10**6, 3 * 10**6]]), (10**6, 3 * 10**6), [[0, 0, 128, 255]]),
    ],
)
def test_value_ranges_of_other_types(values, value_range, expected):
    assert np.asarray(decode_image(tiff(values), 1, value_range)).tolist() == expected


def test_value_range_leaves_images_of_8_bits_alone():
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert decode_image(saved(picture, "PNG"), 1, (0, 4095)).tobytes() == picture.tobytes()


def test_heic_images(tmp_path, monkeypatch):
    """With pillow-heif they are found and read; without it, a line says how to install it."""
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    heif.register_heif_opener()
    FRAMES[0].save(tmp_path / "a.heic", quality=100)
    data = (tmp_path / "a.heic").read_bytes()
    assert np.abs(np.asarray(decode_image(data)).astype(int) - [254, 0, 0]).max() < 5
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match="HEIC images cannot be read; `pip install pillow-heif` makes them readable"):
        decode_image(data)
