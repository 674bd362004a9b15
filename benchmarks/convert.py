"""
Time and peak memory of `hf-mim convert` on a full iBOT checkpoint: both networks, centers and the moments of AdamW.

    python benchmarks/convert.py [--sizes base large] [--native] [--folder FOLDER]

A separate process generates the file with random numbers, in the layout of `main_ibot.py`; the file is removed
afterwards. The peak is that of the resident memory of the converting process, which includes the mapped pages of the
file. It is compared with the size of the file, and the time with that of copying the file.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def network(width: int, depth: int, prefix: str, is_student: bool) -> dict[str, torch.Tensor]:
    """An official state dict with random numbers and a shared head of 8192 prototypes."""
    shapes = {"cls_token": [1, 1, width], "pos_embed": [1, 197, width], "patch_embed.proj.weight": [width, 3, 16, 16]}
    shapes |= {"patch_embed.proj.bias": [width]} | ({"masked_embed": [1, width]} if is_student else {})
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in (f"blocks.{i}" for i in range(depth)):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": [width], f"{block}.{norm}.bias": [width]}
        for name, shape in layers.items():
            shapes |= {f"{block}.{name}.weight": list(shape), f"{block}.{name}.bias": [shape[0]]}
    shapes |= {"norm.weight": [width], "norm.bias": [width]}
    weights = {f"{prefix}backbone.{name}": torch.rand(shape) for name, shape in shapes.items()}
    for i, shape in ((0, (2048, width)), (2, (2048, 2048)), (4, (256, 2048))):
        weights |= {
            f"{prefix}head.mlp.{i}.weight": torch.rand(shape),
            f"{prefix}head.mlp.{i}.bias": torch.rand(shape[0]),
        }
    magnitude, direction = torch.rand(8192, 1), torch.rand(8192, 256)
    for layer in ("last_layer", "last_layer2"):
        weights |= {f"{prefix}head.{layer}.weight_g": magnitude, f"{prefix}head.{layer}.weight_v": direction}
    return weights


def generate(size: str, path: Path):
    width, depth, _ = SIZES[size]
    student = network(width, depth, "module.", is_student=True)
    parameters = list({id(tensor): tensor for tensor in student.values()}.values())
    moments = {i: {"exp_avg": torch.rand_like(p), "exp_avg_sq": torch.rand_like(p)} for i, p in enumerate(parameters)}
    content = {
        "student": student,
        "teacher": network(width, depth, "", is_student=False),
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]},
        "epoch": 100,
        "args": argparse.Namespace(norm_last_layer=False, drop_path=0.1),
        "ibot_loss": {"center": torch.rand(1, 8192), "center2": torch.rand(1, 1, 8192)},
    }
    torch.save(content, path)


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident memory in GiB of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["base"])
    parser.add_argument("--native", action="store_true", help="also the encoder as a model of transformers")
    parser.add_argument("--folder", help="for the files, which are removed (default: that for temporary files)")
    parser.add_argument("--generate", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.generate:
        return generate(args.sizes[0], Path(args.generate))

    convert = [sys.executable, "-c", "import sys, hf_mim_cli; sys.exit(hf_mim_cli.main())", "convert"]
    idle, without = measured([*convert, "--help"])
    print(f"hf-mim convert --help: {idle:.1f} s, peak {without:.2f} GiB")
    for size in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            file = Path(folder, "checkpoint.pth")
            subprocess.run([sys.executable, __file__, "--sizes", size, "--generate", file], check=True)
            start = time.perf_counter()
            shutil.copyfile(file, Path(folder, "copy.pth"))
            copying = time.perf_counter() - start
            Path(folder, "copy.pth").unlink()
            weight = file.stat().st_size / 2**30
            output = [str(Path(folder, "out")), *(["--native"] if args.native else [])]
            seconds, peak = measured([*convert, str(file), *output])
        print(
            f"ViT-{size[0].upper()}, file of {weight:.2f} GiB: {seconds:.1f} s ({seconds / copying:.1f} x copying it),"
        )
        print(
            f"    peak {peak:.2f} GiB, {peak / weight:.2f} x the file ({(peak - without) / weight:.2f} x above --help)"
        )


if __name__ == "__main__":
    main()
