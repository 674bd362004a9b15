"""
Startup time: imports, `hf-mim --help`, and `hf-mim pretrain quickstart` to the end of its first step.

    python benchmarks/startup.py [--repeats 5] [--no_training]

Each result is the median over fresh processes, in seconds and as a multiple of `import torch`. The commands alternate,
so that other work on the machine slows all of them equally. A warm-up round, which does not count, fills the caches.
The first step is timed from the launch of the process to the end of the first optimizer step.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time


RUN = "import sys, hf_mim_cli; sys.exit(hf_mim_cli.main({}))"
# Exits after the first step, before anything is written.
FIRST_STEP = """
import os
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *args: os._exit(0))
import hf_mim_cli
hf_mim_cli.main({})
os._exit(1)
"""
REFERENCE = "import torch"
IMPORTS = [
    REFERENCE,
    "import transformers",
    "import torch, transformers.modeling_utils",
    "from transformers import AutoModel, AutoImageProcessor",
    "from transformers import Trainer",
    "import hf_mim",
    "import hf_mim.training.run_pretrain",
]
VERBS = [["--version"], ["--help"], ["pretrain", "--help"]]
TRAINING = ["pretrain", "quickstart", "--max_steps", "1", "--warmup_steps", "0", "--disable_tqdm", "true"]
NO_EVALUATION = ["--eval_strategy", "no", "--eval_on_start", "false"]


def programs(training: bool, folder: str) -> dict[str, str]:
    """The programs to measure, by name, as source for `python -c`."""
    found = {line: line for line in IMPORTS}
    found |= {f"hf-mim {' '.join(verb)}": RUN.format(verb) for verb in VERBS}
    if training:
        options = [*TRAINING, "--output_dir", os.path.join(folder, "run")]
        found["hf-mim pretrain quickstart: first step"] = FIRST_STEP.format(options)
        found["the same without the evaluation before it"] = FIRST_STEP.format([*options, *NO_EVALUATION])
    return found


def seconds(program: str) -> float:
    """Wall-clock time of one process; raises `CalledProcessError` when it fails."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="processes per figure")
    parser.add_argument("--no_training", action="store_true", help="leave out the first step")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = programs(not args.no_training, folder)
        rounds = [{name: seconds(program) for name, program in measured.items()} for _ in range(args.repeats + 1)][1:]
    medians = {name: statistics.median(times[name] for times in rounds) for name in measured}
    for name, value in medians.items():
        print(f"{name:<56}{value:8.2f} s{value / medians[REFERENCE]:8.2f} x")


if __name__ == "__main__":
    main()
