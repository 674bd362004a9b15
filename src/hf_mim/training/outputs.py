"""What a finished run leaves in its folder: encoder, pre-training model, metrics, pictures and card."""

import json
import os
from pathlib import Path

from PIL import Image

from ..data.files import replaced_file, replaced_folder
from ..hub.card import build_card
from .method import Method
from .trainer import TEACHER_FOLDER, MIMTrainer


METRICS_FILE = "metrics.json"


def is_finished(output_dir: str) -> bool:
    """Whether a run in `output_dir` has come to its end; the metrics are written last."""
    return (Path(output_dir) / METRICS_FILE).is_file()


def collect_metrics(method: Method, trainer: MIMTrainer, metrics: dict) -> dict:
    """All that the summary and the card tell about a run, from the trainer's state and its last metrics."""
    state = trainer.state
    # The first evaluation is that of the weights which the run began with, if it came before the first step.
    start = next((entry for entry in state.log_history if any(key.startswith("eval_") for key in entry)), {})
    initial = {}
    if start.get("step") == 0:
        initial = {key.replace("eval", "initial"): value for key, value in start.items() if key.startswith("eval_")}
    losses = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
    final = {f"final_{name}": value for name, value in losses.items() if name.startswith("loss")}
    has_length = hasattr(trainer.train_dataset, "__len__")
    return {
        "data": method.data_args.dataset_name or Path(method.data_args.train_dir).name,
        "train_images": len(trainer.train_dataset) if has_length else None,
        "bank_images": None if trainer.bank_dataset is None else len(trainer.bank_dataset),
        "eval_images": None if trainer.eval_dataset is None else len(trainer.eval_dataset),
        "started_from": method.model_args.model_name_or_path,
        "steps": state.global_step,
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
    - `metrics.json`, `curves.png` (unless the run was too short to log anything), the pictures of the method and the
      card, `README.md`.

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
    from ..analysis.curves import plot_curves

    output, processor = Path(trainer.args.output_dir), trainer.processing_class
    if method.keeps_full_model:
        with replaced_folder(output / "pretraining") as folder:
            student.save_pretrained(folder)
            processor.save_pretrained(folder)
            trainer.save_target(str(folder / TEACHER_FOLDER), target)
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
    with replaced_file(output / "README.md") as file:
        card = build_card(output.resolve().name, facts, trainer.args, encoder.config, method.card)
        file.write_text(card, encoding="utf-8")
    with replaced_file(output / METRICS_FILE) as file:
        file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def summary(method: Method, output_dir: str) -> str:
    """The lines that a finished run prints: what it learned, and how to load it."""
    facts = json.loads((Path(output_dir) / METRICS_FILE).read_text())
    return "\n".join(["", *method.headline(facts, output_dir), ""])
