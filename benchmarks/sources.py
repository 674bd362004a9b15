"""
Time to load and to check many image files: what `hf-mim pretrain` does before the first step, and `hf-mim check-data`.

    python benchmarks/sources.py [--images 20000] [--repeats 5] [--baseline CHECKOUT]

Small PNG files in 20 class folders of two splits are written once. Each figure is the median over fresh processes, in
seconds, of the call itself, without imports. With `--baseline`, the `src` folder of another checkout takes turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


PRETRAIN = """
import sys, time
from hf_mim.training.pretrain.data import load_data
from hf_mim.training.pretrain.options import DataArguments, ModelArguments
start = time.perf_counter()
load_data(DataArguments(train_dir=sys.argv[1], eval_split="test"), ModelArguments(), 0)
print(time.perf_counter() - start)
"""
CHECK = """
import contextlib, io, sys, time
from hf_mim.data.check_data import main
start = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    main([sys.argv[1], "--num_workers", "1"])
print(time.perf_counter() - start)
"""


def write_images(folder: Path, count: int) -> None:
    """Write PNG files of 32 x 32 pixels, all different."""
    values = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("test" if number % 10 == 0 else "train") / f"class_{number // 10 % 20:02d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path, compress_level=1)


def seconds(program: str, source: Path, folder: Path) -> float:
    """Time that a program prints, which imports `hf_mim` from `source`."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", program, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=20_000, help="number of files")
    parser.add_argument("--repeats", type=int, default=5, help="processes per figure")
    parser.add_argument("--baseline", type=Path, help="another checkout, to compare with")
    args = parser.parse_args()
    sources = {"this checkout": Path(__file__).resolve().parent.parent / "src"}
    if args.baseline is not None:
        sources["baseline"] = args.baseline / "src"
    programs = {"before the first step": PRETRAIN, "check-data": CHECK}
    figures = [(name, tree) for name in programs for tree in sources]
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), args.images)
        # The first round fills the caches of the file system.
        rounds = [
            {(name, tree): seconds(programs[name], sources[tree], Path(folder)) for name, tree in figures}
            for _ in range(args.repeats + 1)
        ][1:]
    for name, tree in figures:
        times = [times[name, tree] for times in rounds]
        print(f"{name:<24}{tree:<16}{statistics.median(times):8.2f} s, fastest {min(times):.2f} s")


if __name__ == "__main__":
    main()
