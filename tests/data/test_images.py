"""Decoding: the folder of hostile files as its manifest says, and the same properties on pictures made here."""

import io
import json
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile

from hf_mim.data.images import UnreadableImageError, decode_image
from tests.testing.paths import SHARED_DATA


MANIFEST = SHARED_DATA / "hostile_images" / "manifest.json"
HOSTILE = json.loads(MANIFEST.read_text(encoding="utf-8"))["files"] if MANIFEST.is_file() else []


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Smooth 60 x 40 RGB picture without symmetry."""
    y, x = np.mgrid[:40, :60]
    return Image.fromarray(np.stack([4 * x, 6 * y, 255 - 2 * x - 3 * y], axis=-1).astype(np.uint8))


# --------------------------------------------------------------------------- the hostile folder


def test_the_manifest_lists_every_hostile_file(shared_data):
    files = {path.name for path in (shared_data / "hostile_images").iterdir()} - {"manifest.json"}
    assert files == {entry["file"] for entry in HOSTILE} and len(files) == 42


@pytest.mark.parametrize("entry", HOSTILE, ids=lambda entry: ascii(entry["file"]))
@pytest.mark.parametrize("as_bytes", [False, True], ids=["path", "bytes"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_file(entry, as_bytes, shared_data):
    path = shared_data / "hostile_images" / entry["file"]
    source = {"bytes": path.read_bytes(), "path": path.name} if as_bytes else path
    if entry["expect"] == "error":
        with pytest.raises(UnreadableImageError) as caught:
            decode_image(source)
        assert entry["file"] in str(caught.value) and "\n" not in str(caught.value)
        return
    try:
        image = decode_image(source)
    except UnreadableImageError as error:
        assert entry["expect"] == "either" and entry["file"] in str(error)
        return

    assert image.mode == "RGB" and list(image.size) == entry["rgb_size"]
    pixels = np.asarray(image).astype(float)
    for probe in entry.get("probes", []):
        x, y = probe["xy"]
        assert np.abs(pixels[y, x] - probe["rgb"]).max() <= probe["tol"]
    if "rgb_like" in entry:
        reference = np.asarray(Image.open(path.with_name(entry["rgb_like"])).convert("RGB")).astype(float)
        assert np.abs(pixels - reference).mean() <= entry["tolerance_mean_abs"]
    if "rgb_mean_range" in entry:
        low, high = entry["rgb_mean_range"]
        assert low <= pixels.mean() <= high
    if entry.get("mode_on_disk") == "1":
        assert set(np.unique(pixels)) == {0, 255}


# --------------------------------------------------------------------------- where the bytes come from


def test_every_kind_of_source_gives_the_same_picture(picture, tmp_path):
    path = tmp_path / "bîld ünd 画.png"
    path.write_bytes(encoded(picture))
    sources = [
        path,
        str(path),
        path.read_bytes(),
        picture,
        Image.open(path),
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": None, "path": str(path)},
        {"bytes": path.read_bytes(), "path": "elsewhere.png"},
    ]
    for source in sources:
        np.testing.assert_array_equal(np.asarray(decode_image(source)), np.asarray(picture))


def test_a_missing_file_or_source_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        decode_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="neither bytes nor a path"):
        decode_image({"bytes": None, "path": None})


@pytest.mark.parametrize("num_channels", [0, 2, 5, None])
def test_other_numbers_of_channels_are_refused(picture, num_channels):
    with pytest.raises(ValueError, match="num_channels must be 1, 3 or 4"):
        decode_image(picture, num_channels)


# --------------------------------------------------------------------------- damage and bombs


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: b"GIF? no, just a few words", r"not an image in a known format \(25 bytes\)"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:-40] + bytes(20) + data[-20:], "data stream"),
        (lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image in a known format"),
    ],
)
def test_damaged_files_are_named_with_their_cause(picture, tmp_path, damage, cause):
    path = tmp_path / "photo 7.png"
    path.write_bytes(damage(encoded(picture)))
    with pytest.raises(UnreadableImageError, match=rf"^cannot read image .*photo 7\.png: .*{cause}"):
        decode_image(path)
    with pytest.raises(UnreadableImageError, match=cause):
        decode_image(path.read_bytes())


@pytest.mark.parametrize("action", ["error", "ignore", "default"])
def test_the_pixel_limit_holds_whatever_happens_to_warnings(picture, monkeypatch, action):
    data = encoded(picture)
    with warnings.catch_warnings():
        warnings.simplefilter(action, Image.DecompressionBombWarning)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 40)
        assert decode_image(data).size == (60, 40)
        for limit in (60 * 40 - 1, 60 * 40 // 3):
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            with pytest.raises(UnreadableImageError, match="pixels"):
                decode_image({"bytes": data, "path": "bomb.png"})
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert decode_image(data).size == (60, 40)


def test_pillows_settings_stay_as_they_are(picture):
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    data = encoded(picture)
    decode_image(data)
    with pytest.raises(UnreadableImageError):
        decode_image(data[: len(data) // 2])
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))


# --------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_pictures_are_turned_upright_once(picture, orientation, format):
    # How the camera stored the upright picture: the inverse of what each orientation asks for.
    undo = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.rotate(180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.rotate(90, expand=True),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.rotate(-90, expand=True),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(undo[orientation](picture), format, exif=exif, **options)
    once = decode_image(data)
    np.testing.assert_array_equal(np.asarray(once), np.asarray(picture))
    np.testing.assert_array_equal(np.asarray(decode_image(once)), np.asarray(picture))
    np.testing.assert_array_equal(np.asarray(decode_image(Image.open(io.BytesIO(data)))), np.asarray(picture))


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00garbage garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00"]
)
def test_broken_exif_does_not_matter(picture, exif):
    image = decode_image(encoded(picture, "JPEG", quality=95, exif=exif))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(picture)).mean() < 3


def test_undefined_orientation_does_not_matter(picture):
    exif = Image.Exif()
    exif[0x0112] = 99
    np.testing.assert_array_equal(np.asarray(decode_image(encoded(picture, exif=exif))), np.asarray(picture))


# --------------------------------------------------------------------------- pixel types


def test_sixteen_bit_grayscale_is_scaled():
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    expected = np.round(ramp / 257).astype(np.uint8)
    for source in (
        encoded(Image.fromarray(ramp)),
        encoded(Image.fromarray(ramp), "TIFF"),
        Image.fromarray(ramp.astype(np.int32)),
        b"P5 64 64 65535\n" + ramp.astype(">u2").tobytes(),
    ):
        np.testing.assert_array_equal(np.asarray(decode_image(source, 1)), expected)
        np.testing.assert_array_equal(np.asarray(decode_image(source, 3)), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_beyond_sixteen_bits_are_refused(value):
    with pytest.raises(UnreadableImageError, match=f"{value}, outside|from {value} "):
        decode_image(Image.fromarray(np.array([[0, value]], dtype=np.int32)))


def test_floats_are_refused():
    data = encoded(Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)), "TIFF")
    with pytest.raises(UnreadableImageError, match="x.tif: its pixels are floats of unknown range"):
        decode_image({"bytes": data, "path": "x.tif"})


def test_bilevel_becomes_black_and_white():
    bits = np.random.default_rng(0).random((9, 11)) < 0.5
    np.testing.assert_array_equal(np.asarray(decode_image(encoded(Image.fromarray(bits)), 1)), bits * np.uint8(255))


def test_transparency_is_dropped_or_kept(picture):
    alpha = Image.fromarray(np.linspace(0, 255, 2400).reshape(40, 60).astype(np.uint8))
    rgba = picture.copy()
    rgba.putalpha(alpha)
    np.testing.assert_array_equal(np.asarray(decode_image(encoded(rgba))), np.asarray(picture))
    np.testing.assert_array_equal(np.asarray(decode_image(encoded(rgba), 4)), np.asarray(rgba))
    np.testing.assert_array_equal(np.asarray(decode_image(encoded(rgba), 1)), np.asarray(picture.convert("L")))

    gray_alpha = Image.merge("LA", [picture.convert("L"), alpha])
    np.testing.assert_array_equal(np.asarray(decode_image(encoded(gray_alpha), 1)), np.asarray(picture.convert("L")))
    np.testing.assert_array_equal(np.asarray(decode_image(encoded(gray_alpha), 4))[..., 3], np.asarray(alpha))
    np.testing.assert_array_equal(np.asarray(decode_image(encoded(picture), 4))[..., 3], 255)


@pytest.mark.parametrize("transparency", [2, bytes([0, 128, 255, 7])])
@pytest.mark.filterwarnings("error")
def test_palette_with_transparency(transparency):
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], dtype=np.uint8)
    indices = np.arange(24).reshape(4, 6) % 4
    palette = Image.fromarray(indices.astype(np.uint8)).convert("P")
    palette.putpalette(colors.tobytes())
    data = encoded(palette, transparency=transparency)
    np.testing.assert_array_equal(np.asarray(decode_image(data)), colors[indices])
    alpha = [255, 255, 0, 255] if transparency == 2 else list(transparency)
    np.testing.assert_array_equal(np.asarray(decode_image(data, 4))[..., 3], np.array(alpha)[indices])


def test_cmyk_is_not_inverted(picture):
    pixels = np.asarray(decode_image(encoded(picture.convert("CMYK"), "JPEG", quality=95))).astype(int)
    assert np.abs(pixels - np.asarray(picture)).mean() < 6


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_counts(format):
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue", "white")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=40, lossless=True)
    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.full((6, 8, 3), (255, 0, 0)))


def test_the_callers_image_is_not_changed(picture):
    before = picture.copy()
    before.info["note"] = "kept"
    result = decode_image(before)
    result.paste((0, 0, 0), (0, 0, 60, 40))
    assert before.info == {"note": "kept"}
    np.testing.assert_array_equal(np.asarray(before), np.asarray(picture))
