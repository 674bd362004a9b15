"""
Time to draw the masks of a batch: `MaskGenerator` against a loop over images, as in the original iBOT code
(`loader.py`).

Usage: python benchmarks/masks.py [--batch_size 256] [--repeats 20]

Two global views per image, a grid of 14 x 14 patches and the default ratios, 0 or 0.3 +- 0.2. Prints the shortest
CPU time of each in milliseconds per batch, and the ratio.
"""

import argparse
import math
import random
import time
from collections.abc import Callable

import numpy as np

from hf_mim.data.masking import MaskGenerator, mask_seeds


HEIGHT = WIDTH = 14
RATIOS, HALF_WIDTHS = (0.0, 0.3), (0.0, 0.2)
VIEWS = 2
LOG_ASPECT_RATIO = math.log(0.3), math.log(1 / 0.3)


def plain_ratio() -> float:
    return random.choice([random.uniform(r - w, r + w) if w else r for r, w in zip(RATIOS, HALF_WIDTHS, strict=True)])


def plain_block_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    target = plain_ratio() * HEIGHT * WIDTH
    smallest = (min(HEIGHT, WIDTH) // 3) ** 2
    count = 0
    while count < target:
        placed = 0
        for _ in range(10):
            area = random.uniform(smallest, target - count)
            aspect = math.exp(random.uniform(*LOG_ASPECT_RATIO))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= HEIGHT or width >= WIDTH:
                continue
            top, left = random.randint(0, HEIGHT - height), random.randint(0, WIDTH - width)
            masked = mask[top : top + height, left : left + width].sum()
            if 0 < height * width - masked <= target - count:
                for row in range(top, top + height):
                    for column in range(left, left + width):
                        if not mask[row, column]:
                            mask[row, column] = True
                            placed += 1
                break
        if not placed:
            break
        count += placed
    return mask


def plain_rand_mask() -> np.ndarray:
    cells = HEIGHT * WIDTH
    mask = np.arange(cells) < int(plain_ratio() * cells)
    np.random.shuffle(mask)
    return mask.reshape(HEIGHT, WIDTH)


def milliseconds(function: Callable[[], object], calls: int) -> float:
    """Processor time of the fastest of several calls, in milliseconds."""
    times = []
    for _ in range(calls):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()

    print(f"{args.batch_size} images x {VIEWS} views, {HEIGHT} x {WIDTH} patches; ms per batch")
    print(f"{'shape':8}{'loop':>10}{'hf_mim':>10}{'ratio':>8}")
    for shape, plain in (("block", plain_block_mask), ("rand", plain_rand_mask)):
        generator = MaskGenerator((HEIGHT, WIDTH), RATIOS, HALF_WIDTHS, shape)

        def loop(plain: Callable[[], np.ndarray] = plain) -> np.ndarray:
            random.seed(0)  # the same work in every repeat, as for the other side
            return np.stack([plain() for _ in range(args.batch_size * VIEWS)])

        def ours(generator: MaskGenerator = generator) -> np.ndarray:
            return generator(mask_seeds(0, 0, np.arange(args.batch_size), VIEWS).ravel(), 0)

        # Alternate, so that other work on the machine affects both sides equally.
        times = np.array([(milliseconds(loop, 1), milliseconds(ours, 5)) for _ in range(args.repeats)])
        before, now = times.min(axis=0)
        print(f"{shape:8}{before:10.2f}{now:10.3f}{before / now:8.1f}")


if __name__ == "__main__":
    main()
