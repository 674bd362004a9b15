"""Write the results of a run: encoder, pre-training model, metrics, pictures and card."""

import json
import logging
import os
from collections.abc import Sized
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from transformers import BaseImageProcessor

from ...hub.run_card import build_card, build_eval_results
from ...utils.files import replaced_file, replaced_folder, shown_folder
from ...utils.layout import METRICS_FILE, TEACHER_FOLDER
from ..arguments import MIMTrainingArguments
from ..checkpoints import list_checkpoints
from ..trainer import MIMTrainer
from .options import DataArguments
from .provenance import describe_data, describe_hardware, describe_start, describe_time, versions
from .run import PretrainRun
from .verdict import judge


logger = logging.getLogger(__name__)

# Draws of a mask for a picture.
MASK_ATTEMPTS = 20
EVAL_RESULTS_FILE = ".eval_results/knn.yaml"


def is_finished(args: MIMTrainingArguments, data_args: DataArguments) -> bool:
    """
    Return whether the run in `output_dir` is finished: its metrics, which are written last, are those of as many steps
    or epochs as are wanted. More of them continue the run.

    Raises:
        ValueError: If the metrics cannot be read, the run was one on other images, or it is to be continued and has no
            checkpoint.
    """
    file = Path(str(args.output_dir)) / METRICS_FILE
    if not file.is_file():
        return False
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        steps, epochs = facts["steps"], facts.get("num_train_epochs", args.num_train_epochs)
        if args.max_steps > 0:
            finished = steps >= args.max_steps
        else:
            finished = epochs is not None and epochs >= args.num_train_epochs
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged: restore it, or remove it to train on from the last checkpoint"
        ) from error
    data = describe_data(data_args)["data"]
    if facts.get("data") not in (None, data):
        raise ValueError(
            f"{file.parent} holds a finished run on {facts['data']}, and this command trains on {data}: choose "
            "another --output_dir"
        )
    if finished:
        return True
    if not list_checkpoints(file.parent):
        raise ValueError(
            f"the run in {file.parent} is finished after {steps} steps, and it has no checkpoint to continue from: "
            "pass its model as --model_name_or_path to a new --output_dir"
        )
    logger.info(f"the run in {file.parent} was finished after {steps} steps and is continued")
    return False


def collect_metrics(run: PretrainRun, trainer: MIMTrainer, metrics: dict[str, Any]) -> dict[str, Any]:
    """
    Collect the facts about a run for `metrics.json`, from which summary and card are made.

    Args:
        run (`PretrainRun`): The run.
        trainer (`MIMTrainer`): Its trainer, after training.
        metrics (`dict`): Metrics of training and of the last evaluation.
    """
    state, args = trainer.state, trainer.args
    total_batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    # An evaluation before the first step measures the weights that the run started from.
    start = next((entry for entry in state.log_history if any(key.startswith("eval_") for key in entry)), {})
    initial = {}
    if start.get("step") == 0:
        initial = {key.replace("eval", "initial"): value for key, value in start.items() if key.startswith("eval_")}
    losses = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
    final = {f"final_{name}": value for name, value in losses.items() if name.startswith("loss")}
    train_dataset, eval_dataset = trainer.train_dataset, trainer.eval_dataset
    return {
        **describe_data(run.data_args),
        "train_images": len(train_dataset) if isinstance(train_dataset, Sized) else None,
        "bank_images": None if trainer.bank_dataset is None else len(trainer.bank_dataset),
        "eval_images": len(eval_dataset) if isinstance(eval_dataset, Sized) else None,
        **describe_start(run.model_args),
        "recipe": run.recipe,
        "command": run.command,
        "steps": state.global_step,
        "num_train_epochs": None if args.max_steps > 0 else args.num_train_epochs,
        **describe_hardware(args),
        **describe_time(state.log_history, state.global_step, total_batch),
        "versions": versions(),
        **run.card_facts(),
        **final,
        **initial,
        **metrics,
    }


def save_run(
    run: PretrainRun, trainer: MIMTrainer, metrics: dict[str, Any], example_images: list[Image.Image]
) -> None:
    """
    Write the results of a run into `output_dir`. All processes call this, the main process writes.

    - At the root, the deployed model with its image processor: a plain transformers model, or a tokenizer.
    - `pretraining/`, from which training can be continued: the full model, its image processor and `teacher/`. Left
      out if the deployed model is the full model.
    - `metrics.json`, `curves.png` (unless the run was too short to log anything), the pictures of the method,
      `masks.png` (if it masks patches), the card `README.md` and, for data from the Hub, `.eval_results/knn.yaml`.

    Args:
        run (`PretrainRun`): The run.
        trainer (`MIMTrainer`): Its trainer, after training.
        metrics (`dict`): Metrics of training and of the last evaluation.
        example_images (`list[PIL.Image.Image]`): A few images for the pictures.
    """
    # All processes gather sharded weights together.
    student, target, encoder = trainer.whole_student(), trainer.whole_target(), trainer.deployable_encoder()
    if not trainer.is_world_process_zero():
        return
    # Imported late because importing matplotlib would delay the first step.
    from ...analysis.curves import plot_curves

    output, processor = Path(str(trainer.args.output_dir)), trainer.processing_class
    assert isinstance(processor, BaseImageProcessor)
    if run.keeps_full_model:
        with replaced_folder(output / "pretraining") as folder:
            student.save_pretrained(folder)
            processor.save_pretrained(folder)
            if target is not None:
                trainer.save_target(folder / TEACHER_FOLDER, target)
    with replaced_folder(output / ".encoder") as folder:
        run.save_deployable(encoder, processor, folder)
    for file in (output / ".encoder").iterdir():
        os.replace(file, output / file.name)
    (output / ".encoder").rmdir()

    facts = collect_metrics(run, trainer, metrics)
    history = trainer.state.log_history
    facts["verdict"] = judge(facts, history)
    facts["value_range"] = run.data_args.value_range
    facts["pictures"] = []
    if any(name.startswith(("loss", "eval_")) for entry in history for name in entry):
        plot_curves(history, output / "curves.png")
        facts["pictures"].append("curves.png")
    facts["pictures"] += run.save_pictures(encoder, processor, example_images, output)
    facts["pictures"] += _draw_masks(run, trainer, example_images, output)
    with replaced_file(output / "README.md") as file:
        card = build_card(output.resolve().name, shown_folder(output), facts, trainer.args, encoder.config, run.card)
        file.write_text(card, encoding="utf-8")
    results = build_eval_results(facts, datetime.now(UTC).isoformat(timespec="seconds"))
    if results:
        with replaced_file(output / EVAL_RESULTS_FILE) as file:
            file.write_text(yaml.safe_dump(results, sort_keys=False), encoding="utf-8")
    with replaced_file(output / METRICS_FILE) as file:
        file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _draw_masks(run: PretrainRun, trainer: MIMTrainer, images: list[Image.Image], output: Path) -> list[str]:
    """Draw the masks of the last epoch on `images`, and return the file names. No masks, no file."""
    views, collator = run.build_views(), run.build_collator(None)
    epoch = trainer.epoch_of(max(trainer.state.global_step - 1, 0))
    samples, masks = [], []
    for number, image in enumerate(images[:4]):
        tried = []
        # Half of iBOT's views have no mask: those with one show what a mask is.
        for index in range(number, number + 4 * MASK_ATTEMPTS, 4):
            view = views(image, np.random.default_rng([run.args.seed, number]))
            batch = collator([view | {"index": index, "epoch": epoch}])
            mask = run.drawn_masks(batch)
            if mask is None:
                return []
            tried.append((batch["pixel_values"], mask))
            if mask.flatten(0, -2).any(-1).all():
                break
        pixels, mask = max(tried, key=lambda one: int(one[1].flatten(0, -2).any(-1).sum()))
        samples.append(pixels)
        masks.append(mask)
    if not masks or not torch.cat(masks).any():
        return []
    from ...analysis.masks import plot_masks

    plot_masks(torch.cat(samples), torch.cat(masks), output / "masks.png")
    return ["masks.png"]


def summary(run: PretrainRun, output_dir: str) -> str:
    """Return the text that a finished run prints: what it learned, and how to load it."""
    facts = json.loads((Path(output_dir) / METRICS_FILE).read_text())
    return "\n".join(["", *run.summary_lines(facts, output_dir), ""])
