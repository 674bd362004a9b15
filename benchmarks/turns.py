"""Two sides of a benchmark, each in its own process, that alternate step by step."""

import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time

from torch.profiler import profile
from transformers import TrainerCallback


THREADS = 2


class Meter:
    """
    Measures wall-clock and processor seconds of every step, and the growth of resident memory since before the first
    (Linux).

    Waits for a line on standard input before each step, and writes the measurements to standard output after it.
    """

    def start(self):
        gc.collect()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # reset the peak
        self.before = self.resident("VmHWM")
        self.wait()

    def wait(self):
        sys.stdin.readline()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def step(self):
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        print(json.dumps({"wall": wall, "cpu": cpu, "growth": self.resident("VmHWM") - self.before}), flush=True)
        self.wait()

    @staticmethod
    def resident(name):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


class Profiler:
    """Used in place of a [`Meter`]: prints the operators on which the last step spends its time."""

    def __init__(self, steps):
        self.remaining = steps
        self.profile = profile()

    def start(self):
        self.step()

    def step(self):
        self.remaining -= 1
        if self.remaining == 0:
            self.profile.start()
        elif self.remaining < 0:
            self.profile.stop()
            print(
                self.profile.key_averages().table(
                    sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60
                )
            )


class StepEnds(TrainerCallback):
    """Reports the start of the first step and the end of every step of a `Trainer` to a [`Meter`]."""

    def __init__(self, meter):
        self.meter = meter

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.meter.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.meter.step()


def take_turns(commands, steps):
    """
    Run two scripts, with their arguments, step by step. Each uses a [`Meter`], and its last line on standard output is
    its result. Returns the measurements of every step and the result of each side.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, *map(str, command)], env=environment, stdin=pipe, stdout=pipe, text=True)
        for command in commands
    ]

    def lines(process):
        for line in process.stdout:
            if line[0] in "[{":
                with contextlib.suppress(ValueError):  # Trainer prints its logs, which are not JSON
                    yield json.loads(line)

    readers = [lines(process) for process in processes]
    figures = [[], []]
    for _ in range(steps):
        for process, reader, rows in zip(processes, readers, figures, strict=True):
            process.stdin.write("\n")
            process.stdin.flush()
            rows.append(next(reader))
    for process in processes:
        process.stdin.close()
    results = [next(reader) for reader in readers]
    for process in processes:
        process.wait()
    return figures, results


def print_comparison(losses, figures):
    """Print the losses of both sides from the same weights, and the measurements of their steps."""
    for step, (baseline, ours) in enumerate(zip(*losses, strict=True)):
        print(f"step {step}: loss of the baseline {baseline['loss']:.7f}, ours {ours['loss']:.7f}")
    difference = max(abs(a[key] - b[key]) for a, b in zip(*losses, strict=True) for key in a)
    print(f"largest difference of a loss or its parts: {difference:.1e}")
    # The first step also allocates the optimizer state.
    pairs = list(zip(*figures, strict=True))[1:]
    for title, key, statistic, scale in (
        ("ms per step, median", "wall", statistics.median, 1e3),
        ("ms per step, fastest", "wall", min, 1e3),
        ("processor ms per step, median", "cpu", statistics.median, 1e3),
        ("MiB of growth of resident memory", "growth", max, 1),
    ):
        baseline, ours = (statistic([pair[side][key] for pair in pairs]) * scale for side in (0, 1))
        ratio = f"ratio {ours / baseline:.2f} ({baseline / ours:.2f}x)"
        print(f"{title:<34} baseline {baseline:7.0f}  ours {ours:7.0f}  {ratio}")
    speedups = sorted(baseline["wall"] / ours["wall"] for baseline, ours in pairs)
    print("speed-up of each pair of steps: " + " ".join(f"{value:.2f}" for value in speedups))
