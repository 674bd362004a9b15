"""
Images per second and core: `MultiCropViews` and `color_views` against Pillow on one image at a time.

Usage: python benchmarks/views.py [--data_dir FOLDER] [--images 64] [--batch_size 32] [--repeats 5]

Both sides decode the files, generate 2 views of 224 pixels and 10 of 96, augment their colors and stack normalized
float32 batches. The Pillow side is the pipeline of the original iBOT code (`main_ibot.py: DataAugmentationiBOT`).
"Worker" leaves color augmentation to the training device, as in training on a GPU; its batches are uint8.

The results are images per second of CPU time in one thread, the best of the alternating repeats. Without --data_dir,
the images are those of ../shared/data/photos_mini if that folder exists, otherwise the tiles of `load_photo_tiles`.
"""

import argparse
import io
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from hf_mim.data.color import color_views
from hf_mim.data.images import decode_image
from hf_mim.data.photo_tiles import load_photo_tiles
from hf_mim.data.sources import load_image_dataset
from hf_mim.data.views import MultiCropViews


PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos_mini"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEAN_COLUMN, STD_COLUMN = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
GLOBAL_SCALE, LOCAL_SCALE = (0.25, 1.0), (0.05, 0.25)
# Probabilities of blur and solarization in the first global view, the second, and the local views.
FIRST, SECOND, LOCAL = (1.0, 0.0), (0.1, 0.2), (0.5, 0.0)


def pillow_crop(image: Image.Image, size: int, scale: tuple[float, float]) -> Image.Image:
    for _ in range(10):
        area = image.width * image.height * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
            break
    else:
        width, height = min(image.width, round(image.height * 4 / 3)), min(image.height, round(image.width * 4 / 3))
        left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)


def pillow_jitter(image: Image.Image) -> Image.Image:
    for operation in random.sample(range(4), 4):
        if operation == 0:
            image = ImageEnhance.Brightness(image).enhance(random.uniform(0.6, 1.4))
        elif operation == 1:
            image = ImageEnhance.Contrast(image).enhance(random.uniform(0.6, 1.4))
        elif operation == 2:
            image = ImageEnhance.Color(image).enhance(random.uniform(0.8, 1.2))
        else:
            hue, saturation, value = image.convert("HSV").split()
            shifted = np.array(hue)
            shifted += np.uint8(int(255 * random.uniform(-0.1, 0.1)) % 256)
            image = Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")
    return image


def pillow_view(
    image: Image.Image, size: int, scale: tuple[float, float], probabilities: tuple[float, float]
) -> Tensor:
    image = pillow_crop(image, size, scale)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.8:
        image = pillow_jitter(image)
    if random.random() < 0.2:
        image = image.convert("L").convert("RGB")
    blur, solarise = probabilities
    if random.random() < blur:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    if random.random() < solarise:
        image = ImageOps.solarize(image)
    view = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
    return view.sub_(MEAN_COLUMN).div_(STD_COLUMN)


def pillow_batch(files: list[bytes], seed: int) -> list[Tensor]:
    random.seed(seed)
    samples = []
    for data in files:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        kinds = [(224, GLOBAL_SCALE, FIRST), (224, GLOBAL_SCALE, SECOND)] + [(96, LOCAL_SCALE, LOCAL)] * 10
        samples.append([pillow_view(image, *kind) for kind in kinds])
    return [torch.stack(views) for views in zip(*samples, strict=True)]


def worker_batch(files: list[bytes], seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """The work of the data loader workers and the collator."""
    views = MultiCropViews(2, 224, GLOBAL_SCALE, 10, 96, LOCAL_SCALE)
    samples = [views(decode_image(data), np.random.default_rng([seed, i])) for i, data in enumerate(files)]
    return (
        torch.stack([sample["global_views"] for sample in samples]),
        torch.stack([sample["local_views"] for sample in samples]),
        np.stack([sample["color_parameters"] for sample in samples]),
    )


def colored_batch(files: list[bytes], seed: int) -> list[Tensor]:
    """[`worker_batch`] and the work of the trainer on the batch."""
    *groups, parameters = worker_batch(files, seed)
    tables = parameters[:, :2], parameters[:, 2:]
    return [
        color_views(views.flatten(0, 1), table.reshape(-1, 8), MEAN, STD)
        for views, table in zip(groups, tables, strict=True)
    ]


def read_files(data_dir: str | None, count: int) -> list[bytes]:
    if data_dir is None and not PHOTOS.is_dir():
        dataset = load_photo_tiles()
    else:
        dataset = load_image_dataset(data_dir=data_dir or str(PHOTOS))
    images = [dataset[i]["image"] for i in range(min(count, len(dataset)))]
    return [image["bytes"] or Path(image["path"]).read_bytes() for image in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder of images, as for hf-mim pretrain --train_dir")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)

    files = read_files(args.data_dir, args.images)
    batches = [files[start : start + args.batch_size] for start in range(0, len(files), args.batch_size)]
    pipelines = {"Pillow": pillow_batch, "hf_mim": colored_batch, "hf_mim, worker": worker_batch}
    seconds = {name: math.inf for name in pipelines}
    for repeat in range(args.repeats):
        for name, pipeline in pipelines.items():
            start = time.process_time()
            for batch in batches:
                pipeline(batch, repeat)
            seconds[name] = min(seconds[name], time.process_time() - start)

    print(f"{len(files)} images in batches of {args.batch_size}, 2 x 224 + 10 x 96 pixels, one thread")
    print(f"{'pipeline':16}{'ms/image':>10}{'images/s':>10}{'ratio':>8}")
    for name, spent in seconds.items():
        ratio = seconds["Pillow"] / spent
        print(f"{name:16}{1000 * spent / len(files):10.2f}{len(files) / spent:10.1f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
