"""What a finished run leaves in its folder: encoder, pre-training model, metrics, pictures and card."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from ...hub.run_card import build_card, build_eval_results
from ...utils.files import replaced_file, replaced_folder
from ...utils.layout import METRICS_FILE, TEACHER_FOLDER
from ..trainer import MIMTrainer
from .provenance import describe_data, describe_hardware, describe_start, describe_time, versions
from .run import Method


EVAL_RESULTS_FILE = ".eval_results/knn.yaml"


def is_finished(output_dir: str) -> bool:
    """Whether a run in `output_dir` has come to its end; the metrics are written last."""
    return (Path(output_dir) / METRICS_FILE).is_file()


def collect_metrics(method: Method, trainer: MIMTrainer, metrics: dict) -> dict:
    """All that the summary and the card tell about a run, from the trainer's state and its last metrics."""
    state, args = trainer.state, trainer.args
    total_batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    # The first evaluation is that of the weights which the run began with, if it came before the first step.
    start = next((entry for entry in state.log_history if any(key.startswith("eval_") for key in entry)), {})
    initial = {}
    if start.get("step") == 0:
        initial = {key.replace("eval", "initial"): value for key, value in start.items() if key.startswith("eval_")}
    losses = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
    final = {f"final_{name}": value for name, value in losses.items() if name.startswith("loss")}
    has_length = hasattr(trainer.train_dataset, "__len__")
    return {
        **describe_data(method.data_args),
        "train_images": len(trainer.train_dataset) if has_length else None,
        "bank_images": None if trainer.bank_dataset is None else len(trainer.bank_dataset),
        "eval_images": None if trainer.eval_dataset is None else len(trainer.eval_dataset),
        **describe_start(method.model_args),
        "recipe": method.recipe,
        "command": method.command,
        "steps": state.global_step,
        **describe_hardware(args),
        **describe_time(state.log_history, state.global_step, total_batch),
        "versions": versions(),
        **method.facts(),
        **final,
        **initial,
        **metrics,
    }


def save_run(method: Method, trainer: MIMTrainer, metrics: dict, example_images: list[Image.Image]):
    """
    Write the results of a run into `output_dir`; only the main process does anything.

    - at the root what is deployed, with its image processor: a native transformers model, or a tokenizer,
    - `pretraining/`, unless that is all there is: the full model, its image processor and `teacher/`, from which
      training can go on,
    - `metrics.json`, `curves.png` (unless the run was too short to log anything), the pictures of the method,
      `masks.png` (where it masks), the card, `README.md`, and, for data from the Hub, `.eval_results/knn.yaml`.

    Args:
        method (`Method`): The run.
        trainer (`MIMTrainer`): After training.
        metrics (`dict`): Metrics of training and of the last evaluation.
        example_images (`list[PIL.Image.Image]`): A few images for the pictures.
    """
    # Sharded weights are gathered by all processes together.
    student, target, encoder = trainer.whole_student(), trainer.whole_target(), trainer.deployable_encoder()
    if not trainer.is_world_process_zero():
        return
    # Only here, because a run should not wait for matplotlib before its first step.
    from ...analysis.curves import plot_curves

    output, processor = Path(trainer.args.output_dir), trainer.processing_class
    if method.keeps_full_model:
        with replaced_folder(output / "pretraining") as folder:
            student.save_pretrained(folder)
            processor.save_pretrained(folder)
            if target is not None:
                trainer.save_target(folder / TEACHER_FOLDER, target)
    with replaced_folder(output / ".encoder") as folder:
        method.save_deployable(encoder, processor, folder)
    for file in (output / ".encoder").iterdir():
        os.replace(file, output / file.name)
    (output / ".encoder").rmdir()

    facts = collect_metrics(method, trainer, metrics)
    history = trainer.state.log_history
    facts["pictures"] = []
    if any(name.startswith(("loss", "eval_")) for entry in history for name in entry):
        plot_curves(history, output / "curves.png")
        facts["pictures"].append("curves.png")
    facts["pictures"] += method.draw(encoder, processor, example_images, output)
    facts["pictures"] += _draw_masks(method, trainer, example_images, output)
    with replaced_file(output / "README.md") as file:
        card = build_card(output.resolve().name, facts, trainer.args, encoder.config, method.card)
        file.write_text(card, encoding="utf-8")
    results = build_eval_results(facts, datetime.now(UTC).isoformat(timespec="seconds"))
    if results:
        with replaced_file(output / EVAL_RESULTS_FILE) as file:
            file.write_text(yaml.safe_dump(results, sort_keys=False), encoding="utf-8")
    with replaced_file(output / METRICS_FILE) as file:
        file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _draw_masks(method: Method, trainer: MIMTrainer, images: list[Image.Image], output: Path) -> list[str]:
    """Draw what the last epoch's masks hide of `images`, if they hide anything."""
    views, collator = method.build_views(), method.build_collator(None)
    epoch = trainer.epoch_of(max(trainer.state.global_step - 1, 0))
    samples = [
        views(image, np.random.default_rng([method.args.seed, number])) | {"index": number, "epoch": epoch}
        for number, image in enumerate(images[:4])
    ]
    batch = collator(samples) if samples else {}
    masks = method.drawn_masks(batch) if samples else None
    if masks is None or not masks.any():
        return []
    from ...analysis.masks import plot_masks

    plot_masks(batch["pixel_values"], masks, output / "masks.png")
    return ["masks.png"]


def summary(method: Method, output_dir: str) -> str:
    """The lines that a finished run prints: what it learned, and how to load it."""
    facts = json.loads((Path(output_dir) / METRICS_FILE).read_text())
    return "\n".join(["", *method.headline(facts, output_dir), ""])
