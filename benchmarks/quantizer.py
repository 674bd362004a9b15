"""
The quantizer of VQ-KD: this package against the arithmetic of the original code.

    python benchmarks/quantizer.py

12,544 vectors of 32 numbers (64 images of 14 x 14 patches) and 8,192 codes, float32. Both sides alternate; times are
medians, because the speed of a shared machine changes from minute to minute:

- statistics: the number of vectors per code, and their sum;
- encode: the codes of one batch in evaluation mode;
- step: forward and backward pass of a training batch, and the update of the codebook;
- the codebooks after twenty such steps from the same initial codebook;
- memory: the increase in peak resident memory from one step, in a separate process (Linux).

The baseline is written from the description of the original (`norm_ema_quantizer.py`): it builds the full
distance matrix and a one-hot matrix of the same size, in training mode and in evaluation mode.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

from hf_mim import VQKDConfig
from hf_mim.modeling.quantizer_vqkd import VQKDQuantizer, counts_and_sums


DECAY, STEPS, SEED = 0.99, 20, 0
SIDES = ("baseline", "ours")


class Baseline(nn.Module):
    def __init__(self, codebook):
        super().__init__()
        self.weight = nn.Parameter(codebook, requires_grad=False)
        self.register_buffer("cluster_size", torch.zeros(len(codebook)))

    def forward(self, z):
        z = F.normalize(z, dim=-1)
        flat = z.reshape(-1, z.shape[-1])
        distances = (
            flat.pow(2).sum(dim=1, keepdim=True)
            + self.weight.pow(2).sum(dim=1)
            - 2 * torch.einsum("bd,nd->bn", flat, self.weight)
        )
        codes = torch.argmin(distances, dim=1)
        quantized = F.embedding(codes, self.weight).view(z.shape)
        encodings = self.one_hot(codes)
        with torch.no_grad():
            if self.training:
                bins, sums = self.statistics(flat, encodings)
                self.cluster_size.mul_(DECAY).add_(bins, alpha=1 - DECAY)
                empty = bins == 0
                means = F.normalize((sums / bins.masked_fill(empty, 1.0).unsqueeze(0)).t(), dim=-1)
                means = torch.where(empty[..., None], self.weight, means)
                self.weight.data.mul_(DECAY).add_(means, alpha=1 - DECAY)
                self.weight.data.copy_(F.normalize(self.weight.data, dim=-1))
            else:
                self.cluster_size.mul_(DECAY).add_(encodings.sum(0), alpha=1 - DECAY)
        loss = F.mse_loss(quantized.detach(), z)
        return z + (quantized - z).detach(), codes, loss

    def one_hot(self, codes):
        return F.one_hot(codes, len(self.weight)).type(self.weight.dtype)

    @staticmethod
    def statistics(flat, encodings):
        return encodings.sum(0), flat.t() @ encodings


def make_quantizer(side, codebook):
    if side == "baseline":
        return Baseline(codebook.clone())
    size, channels = codebook.shape
    quantizer = VQKDQuantizer(VQKDConfig(codebook_size=size, codebook_dim=channels, codebook_decay=DECAY))
    quantizer.codebook.copy_(codebook)
    quantizer.initialized.fill_(True)
    return quantizer


def train(quantizer, features, gradient):
    """Run one step and return the codes."""
    features = features.detach().requires_grad_()
    quantized, codes, loss = quantizer.train()(features)
    torch.autograd.backward((quantized, loss), (gradient, torch.ones_like(loss)))
    if isinstance(quantizer, VQKDQuantizer):
        quantizer.update_codebook()
    return codes


@torch.no_grad()
def encode(quantizer, features):
    return quantizer.encode(features) if isinstance(quantizer, VQKDQuantizer) else quantizer.eval()(features)[1]


def make_data(options):
    """A codebook of unit vectors, and the features of all steps, each close to a vector of the codebook."""
    generator = torch.Generator().manual_seed(SEED)
    codebook = F.normalize(torch.randn(options.codes, options.channels, generator=generator), dim=1)
    features = []
    for _ in range(STEPS):
        # Some codes are frequent, many are not used at all.
        chosen = (torch.rand(options.tokens, generator=generator) ** 2 * options.codes).long()
        features.append(codebook[chosen] + 0.1 * torch.randn(options.tokens, options.channels, generator=generator))
    return codebook, features, torch.randn(options.tokens, options.channels, generator=generator)


def median_times(functions, repeats):
    """Median milliseconds of each function; the functions alternate, and the first round does not count."""
    times = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return [1e3 * statistics.median(seconds[1:]) for seconds in times]


def compare(options):
    codebook, features, gradient = make_data(options)
    baseline, ours = (make_quantizer(side, codebook) for side in SIDES)
    flat = F.normalize(features[0], dim=1)
    codes = encode(ours, features[0])
    rows = [
        (
            "statistics",
            lambda: baseline.statistics(flat, baseline.one_hot(codes)),
            lambda: counts_and_sums(flat, codes, options.codes),
        ),
        ("encode", lambda: encode(baseline, features[0]), lambda: encode(ours, features[0])),
        ("step", lambda: train(baseline, features[0], gradient), lambda: train(ours, features[0], gradient)),
    ]
    for name, *functions in rows:
        theirs, mine = median_times(functions, options.repeats)
        title = f"{name}, ms, median of {options.repeats}"
        print(f"{title:<34} baseline {theirs:8.2f}  ours {mine:8.2f}  {theirs / mine:.1f}x")

    baseline, ours = (make_quantizer(side, codebook) for side in SIDES)
    differing = sum(int((train(baseline, x, gradient) != train(ours, x, gradient)).sum()) for x in features)
    pairs = (baseline.weight, ours.codebook), (baseline.cluster_size, ours.usage)
    codebook, usage = ((theirs - mine).abs().max() for theirs, mine in pairs)
    print(f"codes that differ in {STEPS} steps: {differing} of {STEPS * options.tokens}")
    print(f"largest difference afterwards: {codebook:.1e} in the codebook, {usage:.1e} in the usage")

    for side in SIDES:
        command = [sys.executable, __file__, "--memory_of", side, "--tokens", options.tokens, "--codes", options.codes]
        command += ["--channels", options.channels]
        growth = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout.strip()
        print(f"growth of resident memory in a step, MiB: {side:<8} {float(growth):7.0f}")
    matrix = options.tokens * options.codes / 2**18
    print(f"a matrix of {options.tokens} x {options.codes} float32 numbers, MiB: {matrix:.0f}")


def resident(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def memory_of(options):
    codebook, features, gradient = make_data(options)
    quantizer = make_quantizer(options.memory_of, codebook)
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # reset the peak
    before = resident("VmHWM")
    train(quantizer, features[0], gradient)
    print(resident("VmHWM") - before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=12544, help="vectors of a batch")
    parser.add_argument("--codes", type=int, default=8192, help="size of the codebook")
    parser.add_argument("--channels", type=int, default=32, help="numbers of a vector")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side")
    parser.add_argument("--memory_of", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        memory_of(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
