"""Real images without a download: tiles of the photographs that come with scikit-image and scikit-learn."""

import importlib.util
import io
from pathlib import Path

from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from .images import decode_image


SKIMAGE_PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)
SKLEARN_PHOTOS = ("china.jpg", "flower.jpg")

SHORT_SIDE = 384
TILE = 32
TEST_EVERY = 4


def load_photo_tiles(split: str = "train") -> Dataset:
    """
    Return tiles of 32 x 32 pixels, cut from 18 photographs; the class of a tile is its photograph.

    Each photograph is resized (bicubic) to a shorter side of 384 pixels and cut into tiles that do not overlap. Every
    fourth tile belongs to the split "test", the others to "train". Nothing is random.

    Args:
        split (`str`, defaults to `"train"`): `"train"` or `"test"`.

    Returns:
        `Dataset`: Columns `image` (PNG bytes of an RGB image, `Image(decode=False)`) and `label` (`ClassLabel` with
        the names of the photographs).

    Raises:
        ImportError: Without scikit-image or scikit-learn.
        ValueError: For another split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"photo-tiles has no split {split!r}, only test, train")
    photos = _photo_files()
    images, labels = [], []
    for label, file in enumerate(photos):
        for number, tile in enumerate(_tiles(decode_image(file))):
            if (number % TEST_EVERY == TEST_EVERY - 1) == (split == "test"):
                buffer = io.BytesIO()
                tile.save(buffer, "PNG")
                images.append({"bytes": buffer.getvalue(), "path": f"{file.stem}_{number:03d}.png"})
                labels.append(label)
    features = Features(
        {"image": ImageFeature(decode=False), "label": ClassLabel(names=[file.stem for file in photos])}
    )
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def _photo_files() -> list[Path]:
    files = [_package_folder("skimage") / "data" / name for name in SKIMAGE_PHOTOS]
    files += [_package_folder("sklearn") / "datasets" / "images" / name for name in SKLEARN_PHOTOS]
    return sorted(files, key=lambda file: file.stem)


def _package_folder(name: str) -> Path:
    # Importing the packages would take a second.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError('photo-tiles needs scikit-image and scikit-learn: pip install "hf_mim[demo]"')
    return Path(spec.origin).parent


def _tiles(photo: Image.Image) -> list[Image.Image]:
    """Cut a photograph into tiles, row by row; the rest at the right and the bottom is dropped."""
    scale = SHORT_SIDE / min(photo.size)
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
    return [
        photo.crop((left, top, left + TILE, top + TILE))
        for top in range(0, photo.height - TILE + 1, TILE)
        for left in range(0, photo.width - TILE + 1, TILE)
    ]
