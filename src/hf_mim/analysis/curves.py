"""Draw the training curves of a run from the Trainer's log."""

import math
import re
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..utils.files import replaced_file


# Title of each panel, and which keys of the log belong to it.
_PANELS: list[tuple[str, Callable[[str], bool]]] = [
    ("loss", lambda key: key.startswith("loss")),
    ("loss on held-out images", lambda key: key.startswith("eval_loss")),
    ("accuracy, and share of the most frequent code", lambda key: key.startswith(("accuracy", "majority_code"))),
    ("k-NN top-1 (%)", lambda key: key.startswith("eval_knn_") and key.endswith("_top1")),
    ("learning rate", lambda key: key == "learning_rate"),
    ("target entropy", lambda key: key == "target_entropy"),
    ("feature spread (0 = collapsed, 1 = isotropic)", lambda key: key == "feature_std"),
    ("effective rank of the features (RankMe)", lambda key: key == "rankme"),
    ("prototypes used", lambda key: key == "prototypes_used"),
    ("share of the codes in use", lambda key: key.removeprefix("eval_").startswith(("codebook_usage", "codes_used"))),
    ("perplexity of the codes", lambda key: key.removeprefix("eval_") == "perplexity"),
]
_COLUMNS = 3
# Names of lines whose key in the log does not read well.
_LABELS = {
    "loss": "all",
    "eval_loss": "all",
    "cls": "CLS token",
    "patch": "patches",
    "mim": "final layer",
    "mim_cls": "CLS head",
    "majority_code": "most frequent code",
    "codebook_usage": "training, a batch",
    "codebook_usage_epoch": "training, an epoch",
    "eval_codebook_usage": "held-out images",
    "perplexity": "training",
    "eval_perplexity": "held-out images",
    "codes_used": "targets",
}


def plot_curves(log_history: list[dict], path: str | Path) -> Figure:
    """
    Draw one panel per group of logged values over the optimization step, and write the picture.

    Panels, each only if the log has its keys: the loss and its parts (every key that starts with `loss`), the same
    for the evaluation (`eval_loss*`), the accuracies of BEiT v2's heads next to that of a constant guess
    (`accuracy_*`, `majority_code`), k-NN accuracy (`eval_knn_*_top1`), `learning_rate`, and the health metrics
    `target_entropy`, `feature_std`, `rankme`, `prototypes_used`, `codes_used` and, for training and evaluation,
    `codebook_usage` and `perplexity`. Where `stage` changes (dBOT), a dashed line crosses every panel, at the last
    entry before the new stage.

    Args:
        log_history (`list[dict]`): `trainer.state.log_history`; entries without `step` are ignored.
        path (`str` or `Path`): Picture to write (`.png`, `.pdf`, `.svg`), atomically.

    Returns:
        `Figure`: The figure.

    Raises:
        ValueError: If the log has nothing to draw.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in log_history:
        for key, value in entry.items():
            if "step" in entry and isinstance(value, int | float):
                curves.setdefault(key, []).append((entry["step"], value))
    panels = [(title, [key for key in curves if belongs(key)]) for title, belongs in _PANELS]
    panels = [(title, sorted(keys, key=_by_number)) for title, keys in panels if keys]
    if not panels:
        raise ValueError(f"{path}: the log has no loss, accuracy or other figure to draw")

    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    axes = None
    for number, (title, keys) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number, sharex=axes)
        for key in keys:
            steps, values = zip(*curves[key], strict=True)
            # A few points, such as one evaluation per epoch, are hard to see as a bare line.
            marker = "o" if len(steps) <= 30 else None
            axes.plot(steps, values, label=label_of(key), linewidth=1.4, marker=marker, markersize=3)
            if len(steps) == 1:
                axes.annotate(
                    f"{values[0]:.4g}", (steps[0], values[0]), (-4, 4), textcoords="offset points", ha="right"
                )
        for step in _stage_ends(log_history):
            axes.axvline(step, color="0.4", linewidth=1, linestyle="--")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.margins(x=0.06, y=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(keys) > 1:
            # Below the panel, where no line can run through it.
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=min(len(keys), 3))
    save_figure(figure, path)
    return figure


def label_of(key: str) -> str:
    """Return the name of a line: "10-NN" for `eval_knn_10_top1`, "CLS token" for `loss_cls`, and so on."""
    if key in _LABELS:
        return _LABELS[key]
    if key.startswith("eval_knn_"):
        return f"{key.split('_')[2]}-NN"
    part = re.sub(r"^(eval_)?(loss|accuracy)_", "", key)
    return _LABELS.get(part, part.replace("_", " "))


def _stage_ends(log_history: list[dict]) -> list[float]:
    """Return the last step of every stage but the last one."""
    ends: list[float] = []
    stage, last = None, 0.0
    for entry in log_history:
        if "stage" in entry and "step" in entry:
            if stage is not None and entry["stage"] != stage:
                ends.append(last)
            stage = entry["stage"]
        last = entry.get("step", last)
    return ends


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure atomically; the suffix of `path` determines the format."""
    with replaced_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _by_number(key: str) -> list[tuple[int, str]]:
    """Return a sort key that puts eval_knn_20_top1 before eval_knn_100_top1."""
    return [(int(part) if part.isdigit() else -1, part) for part in key.split("_")]
