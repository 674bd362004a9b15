"""What the progress bar shows."""

import subprocess
import sys
from types import SimpleNamespace

from hf_mim.training.callbacks.progress import MIMProgressCallback
from tests.testing.tiny_training import SHORT, TINY


class Bar:
    """Stands in for tqdm and notes what it is told."""

    def __init__(self, disable: bool = False):
        self.lines, self.postfix, self.disable = [], None, disable

    def write(self, line):
        self.lines.append(line)

    def set_postfix_str(self, text):
        self.postfix = text


def test_loss_parts_speed_and_accuracies():
    callback, bar = MIMProgressCallback(), Bar()
    state = SimpleNamespace(is_world_process_zero=True, global_step=40)
    logs = {"loss": 3.0, "loss_cls": 1.25, "loss_patch": 1.75, "learning_rate": 0.1, "rankme": 5.0}
    callback.on_log(None, state, None, logs)  # no bar before the training begins
    callback.training_bar = bar
    callback.on_log(None, state, None, logs)
    assert bar.postfix == "loss 3.000, loss_cls 1.250, loss_patch 1.750" and bar.lines == []
    callback.on_log(None, state, None, {"loss": 3.0, "images_per_second": 121.7, "data_wait": 0.034})
    assert bar.postfix == "loss 3.000, 122 img/s, data 3 %" and bar.lines == []
    callback.on_log(None, state, None, {"eval_knn_10_top1": 71.26, "eval_knn_10_top5": 90.0, "eval_knn_20_top1": 70.0})
    assert bar.lines == ["step     40: 10-NN 71.3 %, 20-NN 70.0 %"]
    tokenizer = {"eval_codebook_usage": 0.634, "eval_perplexity": 100.4, "eval_loss_feature": 0.1239}
    callback.on_log(None, state, None, tokenizer)
    assert bar.lines.pop() == "step     40: 63.4 % of the codes in use, perplexity 100, loss_feature 0.124"
    callback.on_log(None, SimpleNamespace(is_world_process_zero=False), None, {"eval_knn_10_top1": 1.0})
    callback.on_log(None, state, None, {"train_runtime": 1.0})
    assert len(bar.lines) == 1


def test_a_log_file_gets_one_line_for_each_log():
    callback, bar = MIMProgressCallback(), Bar(disable=True)
    state = SimpleNamespace(is_world_process_zero=True, global_step=40, max_steps=550)
    callback.training_bar = bar
    callback.on_log(None, state, None, {"loss": 3.0, "images_per_second": 121.7, "data_wait": 0.034})
    assert bar.lines == ["step     40 of 550: loss 3.000, 122 img/s, data 3 %"] and bar.postfix is None


def test_output_that_is_no_terminal_has_no_bars(pictures, tmp_path):
    """One line for each log and evaluation, from the first word to the summary."""
    options = ["--train_dir", str(pictures), "--eval_split", "test", "--eval_strategy", "epoch", *SHORT]
    options += ["--max_steps", "4", "--logging_steps", "2", "--disable_tqdm", "false", "--output_dir", str(tmp_path)]
    command = [sys.executable, "-m", "hf_mim_cli", "pretrain", *TINY, *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    text = result.stdout + result.stderr
    assert "\r" not in text and "%|" not in text and "it/s" not in text
    lines = [line for line in text.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0].split() for line in lines] == [
        ["step", "0"],
        ["step", "2", "of", "4"],
        ["step", "4", "of", "4"],
        ["step", "4"],
    ]
