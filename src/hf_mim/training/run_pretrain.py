"""
`hf-mim pretrain [RECIPE] [--option value ...]`, also `python -m hf_mim.training.run_pretrain`: from a folder of images
to an encoder that `AutoModel.from_pretrained` loads.
"""

import argparse
import dataclasses
import logging
import math
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import transformers
from datasets import IterableDataset
from transformers import BaseImageProcessor, set_seed
from transformers.trainer_utils import IntervalStrategy

from ..data.datasets import StreamedViewsDataset, ViewsDataset
from ..data.sources import FOLDER_BUILDERS
from ..evaluation.features import raw_pixel_features
from ..evaluation.knn import knn_accuracy, used_neighbors
from ..methods import find_method
from ..utils.console import run as run_command
from ..utils.loading import find_source
from ..utils.run_lock import run_lock
from .arguments import MIMTrainingArguments
from .callbacks.checkpoint_uploads import check_access, upload_result
from .checkpoints import list_checkpoints
from .kept_arguments import check_former
from .pretrain.data import PretrainData, example_images, load_data
from .pretrain.help import help_text
from .pretrain.machine import batch_bytes, check_packages, check_shared_memory, evaluation_bytes
from .pretrain.options import DataArguments, ModelArguments
from .pretrain.outputs import is_finished, save_run, summary
from .pretrain.provenance import shown_command, shown_recipe, without_tokens
from .pretrain.recipe_files import load_recipe
from .pretrain.recipe_parser import parse_recipe_args
from .pretrain.run import PretrainRun
from .trainer import MIMTrainer


logger = logging.getLogger(__name__)

# Options that belong to the dataset of a recipe, and are left out with it.
OF_SOURCE = (
    "dataset_name",
    "dataset_config_name",
    "train_dir",
    "validation_dir",
    "train_split",
    "eval_split",
    "image_column_name",
    "label_column_name",
    "clean_list",
    "data_license",
)


def run_class(model_type: str) -> type[PretrainRun]:
    """Return the run of the method with this name. Raises `ValueError` for an unknown name."""
    found: type[PretrainRun] = pkgutil.resolve_name(find_method(model_type).run)
    return found


def parse_arguments(argv: list[str]) -> PretrainRun:
    """
    Build the run from the command line.

    What the command line gives replaces what the recipe gives: `base_learning_rate` the recipe's `learning_rate`, a
    dataset all options of the recipe's dataset. `config_overrides` are merged field by field. Without an `output_dir`,
    it is `runs/` and the name of the recipe, with that of the dataset if it is another one.

    Args:
        argv (`list[str]`): Arguments after the program name.

    Raises:
        ValueError, OSError: If options are unknown or contradict each other.
        SystemExit: After `--help` was printed, with code 0.
    """
    recipe = load_recipe(argv[0]) if argv and not argv[0].startswith("-") else {}
    # The method determines which options there are.
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    names = ("model_type", "base_learning_rate", "output_dir", "dataset_name", "train_dir", "dataloader_num_workers")
    for name in names:
        chosen.add_argument(f"--{name}", f"--{name.replace('_', '-')}")
    given = chosen.parse_known_args(argv)[0]
    method_run = run_class(given.model_type or recipe.get("model_type", ModelArguments.model_type))
    types = (ModelArguments, DataArguments, method_run.arguments_class)
    if {"-h", "--help"} & set(argv):
        name = given.model_type or recipe.get("model_type", ModelArguments.model_type)
        print(help_text(name, types, recipe, everything="all" in argv), end="")
        raise SystemExit(0)
    check_former(argv, recipe, {field.name for cls in types for field in dataclasses.fields(cls)})
    without = {"learning_rate"} if given.base_learning_rate is not None else set()
    replaced = replaced_source(recipe, given.dataset_name, given.train_dir)
    output = []
    if given.output_dir is None and recipe and recipe.get("output_dir") is None:
        # The recipe's own run may be there already.
        source = given.train_dir or given.dataset_name
        parts = [Path(argv[0]).stem, *([Path(os.path.abspath(source)).stem] if source and replaced else [])]
        output = ["--output_dir", os.path.join("runs", "-".join(parts))]
    model_args, data_args, args = parse_recipe_args(types, [*argv, *output], without | replaced.keys())
    if args.do_train and not (output or given.output_dir or recipe.get("output_dir")):
        raise ValueError("give the folder for the results: --output_dir FOLDER")
    overrides = recipe.get("config_overrides")
    if overrides and model_args.config_overrides != overrides:
        model_args.config_overrides = ",".join(filter(None, (overrides, model_args.config_overrides)))
    names = vars(args) | {"model_name_or_path": model_args.model_name_or_path}
    for name in ("model_name_or_path", "teacher_model_name_or_path", "tokenizer_name_or_path"):
        if names.get(name) is not None:
            find_source(names[name], f"--{name}", model_args.token)
    checkpoint = args.resume_from_checkpoint
    if checkpoint not in (None, "latest") and not os.path.isdir(checkpoint):
        raise ValueError(f"resume_from_checkpoint must be 'latest' or a checkpoint, there is no folder {checkpoint}")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    for name in ("dataloader_num_workers", "learning_rate"):
        if getattr(args, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(args, name)}")
    run = method_run(model_args, data_args, args)
    run.recipe, run.command, run.argv = shown_recipe(argv), shown_command(argv), without_tokens(argv)
    if replaced:
        words = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
        left_out = ", ".join(f"{name} {value}" for name, value in replaced.items() if name not in words)
        if left_out:
            run.notes.append(f"the command line gives other images than the recipe, without its {left_out}")
    if output:
        run.notes.append(f"results go to {output[1]}; --output_dir chooses another folder")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if given.dataloader_num_workers is None:
        # A recipe knows the machine of its authors. The number changes no result.
        args.dataloader_num_workers = min(args.dataloader_num_workers, cores)
    elif args.dataloader_num_workers > cores:
        run.notes.append(f"{args.dataloader_num_workers} data-loading processes share {cores} cores")
    if args.do_train:
        _check_length(run)
    return run


def replaced_source(recipe: dict[str, Any], dataset_name: str | None, train_dir: str | None) -> dict[str, Any]:
    """
    Return the options of a recipe that belong to its dataset, if the command line gives another one.

    Args:
        recipe (`dict`): Options of the recipe.
        dataset_name, train_dir (`str`, *optional*): Options of the command line. A builder such as `imagefolder` and
            the folder that it reads may come from different places.
    """
    if train_dir is None and (dataset_name is None or dataset_name in FOLDER_BUILDERS):
        return {}
    of_source = [name for name in OF_SOURCE if recipe.get(name) is not None]
    if dataset_name is None and recipe.get("dataset_name") in FOLDER_BUILDERS:
        of_source.remove("dataset_name")
    return {name: recipe[name] for name in of_source}


def _check_length(run: PretrainRun) -> None:
    """Check the length of the run as far as possible without its data. The trainer checks the rest."""
    args = run.args
    if args.max_steps > 0:
        return
    if run.data_args.streaming:
        raise ValueError("a stream has no length: give --max_steps, the number of steps to train")
    if args.num_train_epochs <= 0:
        raise ValueError(f"num_train_epochs must be positive, got {args.num_train_epochs:g}")
    run.check_schedules(args.num_train_epochs)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """
    Train, evaluate and save.

    Args:
        argv (`list[str]`, *optional*): Arguments after the program name. By default, those of the process.

    Returns:
        Metrics of training and of the last evaluation.

    Raises:
        ValueError, OSError: If options contradict each other or the data. Raised before any training.
    """
    run = parse_arguments(sys.argv[1:] if argv is None else argv)
    args = run.args
    set_verbosity(args.should_log)
    for note in run.notes:
        logger.info(note)
    if args.do_train and is_finished(args, run.data_args):
        report_finished(run)
        return {}
    check_packages(args)
    # Processes of one run share the folder.
    with run_lock(str(args.output_dir)) if args.do_train and args.process_index == 0 else nullcontext():
        return train_and_save(run)


def train_and_save(run: PretrainRun) -> dict[str, float]:
    """Train, evaluate and save a run, or with `--do_train false` only evaluate; returns the metrics."""
    args = run.args
    trainer, data = build(run)
    if args.do_train:
        checkpoint = args.resume_from_checkpoint or bool(list_checkpoints(str(args.output_dir)))
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_state()
    metrics = {} if data.queries is None else trainer.latest_evaluation() or trainer.evaluate()
    if not args.do_train:
        print("\n".join(f"{name}: {value:.2f}" for name, value in metrics.items()))
        return metrics

    metrics = result.metrics | metrics | raw_pixel_metrics(run, trainer, data)
    shown = data.train if data.queries is None else data.queries
    value_range = run.data_args.value_range
    images = example_images(shown, run.config.num_channels, run.num_example_images, value_range)
    save_run(run, trainer, metrics, images)
    if trainer.is_world_process_zero():
        print(summary(run, str(args.output_dir)))
        if args.push_to_hub:
            upload_result(args, run.keeps_full_model)
    return metrics


def set_verbosity(should_log: bool) -> None:
    """Log what a user of the command needs, and silence the rest."""
    # Said in one line already, where the user has chosen their number.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    logging.basicConfig(level=logging.INFO if should_log else logging.WARNING, format="%(message)s")
    # They log a line per HTTP request or cache lookup.
    for name in ("httpx", "httpx2", "fsspec", "matplotlib", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_warning()
    # Hides the bars of single files. The bar of the training remains.
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_warning()
    if not sys.stderr.isatty():
        # Fragments of bars would fill a log file.
        datasets.disable_progress_bars()


def report_finished(run: PretrainRun) -> None:
    """Report that `output_dir` holds a finished run, and upload its result if wanted."""
    args, output_dir = run.args, str(run.args.output_dir)
    print(summary(run, output_dir))
    full_model = os.path.join(output_dir, "pretraining") if run.keeps_full_model else output_dir
    print(
        f"This run is finished. More --max_steps or --num_train_epochs continue it. To start another one, choose "
        f"another --output_dir or remove {output_dir}. To start from its weights, pass --model_name_or_path "
        f"{full_model}."
    )
    if args.push_to_hub and args.process_index == 0:
        upload_result(args, run.keeps_full_model)


def build(run: PretrainRun) -> tuple[MIMTrainer, PretrainData]:
    """
    Load data and models, and build the trainer.

    Mistakes in sizes and data are found before weights are initialized or downloaded.
    """
    args, data_args, source = run.args, run.data_args, run.model_args.model_name_or_path
    views, processor = run.build_views(), run.build_processor()
    collator = run.build_collator(None)
    if args.do_train:
        channels = run.config.num_channels
        train_bytes = batch_bytes(views, channels, args.train_batch_size)
        evaluates = args.eval_strategy != "no"
        eval_bytes = evaluation_bytes(processor, channels, args.per_device_eval_batch_size) if evaluates else 0
        check_shared_memory(args, train_bytes, eval_bytes)
    data = load_data(data_args, run.model_args, args.seed, run.trainer_class.needs_bank)
    if data.queries is None and not args.do_train:
        raise ValueError("an evaluation needs held-out images: --eval_split, --validation_dir or --train_val_split")
    if data.queries is None and (args.eval_strategy != "no" or args.eval_on_start):
        logger.warning(
            "no held-out images (--eval_split, --validation_dir or --train_val_split): the evaluation is left out"
        )
        args.eval_strategy, args.eval_on_start = IntervalStrategy.NO, False
    if data.bank is not None:
        fit_neighbors(args, len(data.bank))
        if args.do_train and args.eval_strategy != "no":
            # The verdict on the run compares its end with its start.
            args.eval_on_start = True
    train_dataset, make_samples = build_train_dataset(run, data.train, views)
    if args.do_train and isinstance(train_dataset, ViewsDataset):
        steps = steps_per_epoch(args, len(train_dataset))
        run.check_schedules(args.max_steps / steps if args.max_steps > 0 else args.num_train_epochs, steps)
    if make_samples is not None:
        collator = run.build_collator(make_samples)
    if args.push_to_hub and args.do_train and args.process_index == 0:
        check_access(args, run.keeps_full_model)
    set_seed(args.seed)
    trainer = run.build_trainer(
        model=run.build_model(),
        data_collator=collator,
        train_dataset=train_dataset,
        eval_dataset=data.queries,
        bank_dataset=data.bank,
        processing_class=processor,
    )
    if source is not None:
        trainer.continue_target(source, **run.model_args.hub_options)
    return trainer, data


def steps_per_epoch(args: MIMTrainingArguments, num_images: int) -> int:
    """Return the number of optimizer steps in one pass over `num_images`, as Trainer counts them."""
    batches = num_images / (args.train_batch_size * args.world_size)
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    return math.ceil(batches / args.gradient_accumulation_steps)


def fit_neighbors(args: MIMTrainingArguments, bank_size: int) -> None:
    """
    Replace numbers of neighbors that the k-NN bank does not hold, and log it.

    Raises:
        ValueError: If the best checkpoint is selected by one of them.
    """
    too_many = [k for k in args.knn_k if k > bank_size]
    if not too_many:
        return
    best = (args.metric_for_best_model or "").removeprefix("eval_")
    if any(best.startswith(f"knn_{k}_") for k in too_many):
        raise ValueError(
            f"metric_for_best_model {args.metric_for_best_model} needs more neighbors than the {bank_size} labeled "
            f"images to choose from: set --knn_k and --metric_for_best_model to {bank_size} or fewer"
        )
    args.knn_k = used_neighbors(args.knn_k, bank_size)
    logger.info(
        f"knn_k {', '.join(map(str, too_many))} is more than the {bank_size} labeled images to choose from: all of "
        "them vote instead"
    )


def build_train_dataset(
    run: PretrainRun, train: datasets.Dataset | IterableDataset, views: Callable[..., dict[str, Any]]
) -> tuple[ViewsDataset | StreamedViewsDataset, Callable | None]:
    """
    Build the dataset of views.

    Returns:
        The dataset, and for a stream the function with which the collator makes samples of its rows.

    Raises:
        ValueError: If there are not enough images for one batch.
    """
    args, channels = run.args, run.config.num_channels
    if isinstance(train, IterableDataset):
        order = {name: getattr(run.data_args, name) for name in ("shuffle_buffer_size", "max_train_samples")}
        stream = StreamedViewsDataset(train, views, channels, args.seed, order, run.data_args.value_range)
        return stream, stream.samples
    total_batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    if len(train) < total_batch:
        # The learning rate follows from the whole batch.
        parts = (
            f"{args.train_batch_size} per device, {args.world_size} devices, {args.gradient_accumulation_steps} times"
        )
        accumulated = f" ({parts})" if args.gradient_accumulation_steps > 1 else ""
        raise ValueError(f"{len(train)} training images do not fill one batch of {total_batch}{accumulated}")
    return ViewsDataset(train, views, channels, args.seed, run.data_args.value_range), None


def raw_pixel_metrics(run: PretrainRun, trainer: MIMTrainer, data: PretrainData) -> dict[str, float]:
    """Return the k-NN accuracies on raw pixels with `--raw_pixel_baseline`, otherwise nothing."""
    if not run.data_args.raw_pixel_baseline or data.bank is None or data.queries is None:
        return {}
    processor = trainer.processing_class
    assert isinstance(processor, BaseImageProcessor)
    (bank, bank_labels), (queries, query_labels) = (
        raw_pixel_features(part, processor, num_channels=run.config.num_channels, progress=False, skip_unreadable=True)
        for part in (data.bank, data.queries)
    )
    assert bank_labels is not None and query_labels is not None
    accuracy = knn_accuracy(
        bank, bank_labels, queries, query_labels, k=run.args.knn_k, temperature=run.args.knn_temperature
    )
    return {f"raw_pixels_{name}": value for name, value in accuracy.items()}


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
