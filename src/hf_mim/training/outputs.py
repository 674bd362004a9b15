"""What a finished run leaves in its folder: encoder, pre-training model, metrics, pictures and card."""

import json
import os
from pathlib import Path

from ..data.files import replaced_file, replaced_folder
from ..data.images import decode_image
from ..hub.card import build_card
from ..hub.export import export_native, native_image_processor
from .pretrain_arguments import DataArguments, ModelArguments
from .sharding import whole_state_dict
from .trainer import TEACHER_FOLDER, MIMTrainer


METRICS_FILE = "metrics.json"


def is_finished(output_dir: str) -> bool:
    """Whether a run in `output_dir` has come to its end; the metrics are written last."""
    return (Path(output_dir) / METRICS_FILE).is_file()


def collect_metrics(trainer: MIMTrainer, metrics: dict, data_args: DataArguments, model_args: ModelArguments) -> dict:
    """All that the summary and the card tell about a run, from the trainer's state and its last metrics."""
    state = trainer.state
    # The first evaluation is that of the weights which the run began with, if it came before the first step.
    start = next((entry for entry in state.log_history if any("eval_knn" in key for key in entry)), {})
    initial = {}
    if start.get("step") == 0:
        initial = {key.replace("eval", "initial"): value for key, value in start.items() if "eval_knn" in key}
    losses = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
    final = {f"final_{name}": value for name, value in losses.items() if name.startswith("loss")}
    has_length = hasattr(trainer.train_dataset, "__len__")
    return {
        "data": data_args.dataset_name or Path(data_args.train_dir).name,
        "train_images": len(trainer.train_dataset) if has_length else None,
        "bank_images": None if trainer.bank_dataset is None else len(trainer.bank_dataset),
        "eval_images": None if trainer.eval_dataset is None else len(trainer.eval_dataset),
        "started_from": model_args.model_name_or_path,
        "steps": state.global_step,
        **final,
        **initial,
        **metrics,
    }


def save_run(
    trainer: MIMTrainer, metrics: dict, data_args: DataArguments, model_args: ModelArguments, example_images: list
):
    """
    Write the results of a run into `output_dir`; only the main process does anything.

    - at the root the deployable encoder as a native transformers model with its image processor,
    - `pretraining/`: the full model, its image processor and `teacher/`, from which training can go on,
    - `metrics.json`, `curves.png` (unless the run was too short to log anything), `attention.png` and the card,
      `README.md`.

    Args:
        trainer (`MIMTrainer`): After training.
        metrics (`dict`): Metrics of training and of the last evaluation.
        data_args, model_args: Where data and weights came from.
        example_images (`list`): A few images, encoded or not, for the attention pictures.
    """
    # Sharded weights are gathered by all processes together.
    target, encoder = trainer.whole_target(), trainer.deployable_encoder()
    student = whole_state_dict(trainer.accelerator.unwrap_model(trainer.model))
    if not trainer.is_world_process_zero():
        return
    # Only here, because a run should not wait for matplotlib before its first step.
    from ..analysis.attention import plot_attention
    from ..analysis.curves import plot_curves

    output, processor = Path(trainer.args.output_dir), trainer.processing_class
    with replaced_folder(output / "pretraining") as folder:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder, state_dict=student)
        processor.save_pretrained(folder)
        trainer.save_target(str(folder / TEACHER_FOLDER), target)
    with replaced_folder(output / ".encoder") as folder:
        export_native(encoder).save_pretrained(folder)
        native_image_processor(processor).save_pretrained(folder)
    for file in (output / ".encoder").iterdir():
        os.replace(file, output / file.name)
    (output / ".encoder").rmdir()

    facts = collect_metrics(trainer, metrics, data_args, model_args)
    history = trainer.state.log_history
    facts["curves"] = any(name.startswith(("loss", "eval_knn")) for entry in history for name in entry)
    if facts["curves"]:
        plot_curves(history, output / "curves.png")
    images = [decode_image(image, encoder.config.num_channels) for image in example_images]
    plot_attention(encoder, images, processor, output / "attention.png")
    with replaced_file(output / "README.md") as file:
        file.write_text(build_card(output.resolve().name, facts, trainer.args, encoder.config), encoding="utf-8")
    with replaced_file(output / METRICS_FILE) as file:
        file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def summary(output_dir: str) -> str:
    """The lines that a finished run prints: what k-NN says it learned, and how to load it."""
    facts = json.loads((Path(output_dir) / METRICS_FILE).read_text())
    lines = [""]
    names = [key.removeprefix("eval_knn_") for key in facts if key.startswith("eval_knn_") and key.endswith("_top1")]
    if names:
        name = "20_top1" if "20_top1" in names else names[-1]
        start = facts["started_from"] or "random initialisation"
        rows = {
            "raw pixels": facts.get(f"raw_pixels_knn_{name}"),
            start: facts.get(f"initial_knn_{name}"),
            f"after {facts['steps']} steps": facts[f"eval_knn_{name}"],
        }
        lines += [
            f"{name.split('_')[0]}-NN accuracy on {facts['eval_images']} held-out images "
            f"({facts['bank_images']} neighbours to choose from)"
        ]
        lines += [f"  {label:<24}{value:5.1f} %" for label, value in rows.items() if value is not None]
        lines.append("")
    beside = "card, curves.png and attention.png" if facts["curves"] else "card and attention.png"
    lines += [
        f"Encoder, {beside} are in {output_dir}. Three lines load it, without hf_mim:",
        "  from transformers import AutoImageProcessor, AutoModel",
        f'  processor = AutoImageProcessor.from_pretrained("{output_dir}")',
        f'  model = AutoModel.from_pretrained("{output_dir}")',
        "",
    ]
    return "\n".join(lines)
