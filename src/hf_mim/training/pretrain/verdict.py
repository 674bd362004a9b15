"""Whether a run has learned anything, with the figures that tell."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..callbacks.knn_watch import shown_accuracy, smallest_difference


LEARNED, NOTHING, WORSE, UNKNOWN = "learned", "did not learn", "got worse", "unknown"


def judge(facts: Mapping[str, Any], log_history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """
    Return the verdict on a run.

    With labeled images, the k-NN accuracy at the end is compared with that at the start: it has to differ by more than
    chance, and a run has learned only if it is not below that of raw pixels by more than chance either. Without
    labels, the loss on held-out images, or else on the training images, says only whether it fell.

    Args:
        facts (`Mapping`): Metrics of the run: `eval_knn_*`, `initial_knn_*`, `raw_pixels_knn_*`, `eval_images`,
            `started_from`.
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.

    Returns:
        `dict[str, str]`: `outcome`, one of `"learned"`, `"did not learn"`, `"got worse"` and `"unknown"`, and `text`,
        a sentence with the figures.
    """
    end = shown_accuracy(facts, "eval_knn_")
    if end is None:
        return _judge_loss(log_history)
    k, accuracy = end
    images = facts["eval_images"]
    start, pixels = (facts.get(f"{name}_knn_{k}_top1") for name in ("initial", "raw_pixels"))
    of_start = facts.get("started_from") or "random initialization"
    figures = f"{k}-NN accuracy on {images:,} images: {accuracy:.1f} %"
    compared = [f"{of_start} {start:.1f} %"] if start is not None else []
    compared += [f"raw pixels {pixels:.1f} %"] if pixels is not None else []
    figures += f" ({', '.join(compared)})" if compared else ""
    if start is None:
        return {"outcome": UNKNOWN, "text": f"The start was not evaluated, so there is no verdict. {figures}."}
    chance = smallest_difference(start, accuracy, images)
    if accuracy < start - chance:
        return {"outcome": WORSE, "text": f"The features got worse. {figures}."}
    if accuracy <= start + chance:
        return {
            "outcome": NOTHING,
            "text": f"The run did not learn: the difference is within chance (±{chance:.1f}). {figures}.",
        }
    if pixels is not None and accuracy < pixels - smallest_difference(pixels, accuracy, images):
        return {"outcome": LEARNED, "text": f"The run learned, but raw pixels are still better. {figures}."}
    return {"outcome": LEARNED, "text": f"The run learned. {figures}."}


def _judge_loss(log_history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    for name, which in (("eval_loss_feature", "loss on held-out images"), ("loss", "loss on the training images")):
        values = [entry[name] for entry in log_history if name in entry]
        if len(values) > 1:
            first, last = values[0], values[-1]
            verb = "fell" if last < first else "rose"
            figures = f"The {which} {verb} from {first:.3f} to {last:.3f}."
            if name == "loss":
                text = f"{figures} What the features are worth needs labeled images (--eval_split, --validation_dir)."
                return {"outcome": UNKNOWN if last < first else NOTHING, "text": text}
            return {"outcome": LEARNED if last < first else WORSE, "text": figures}
    return {"outcome": UNKNOWN, "text": "The run was too short for a verdict."}
