"""
`hf-mim pretrain [RECIPE] [--option value ...]`, also `python -m hf_mim.training.run_pretrain`: from a folder of images
to an encoder that `AutoModel.from_pretrained` loads.
"""

import argparse
import glob
import logging
import math
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import transformers
from PIL import Image
from transformers import set_seed

from ..data.clean_list import keep_listed
from ..data.datasets import MAX_ATTEMPTS, StreamedViewsDataset, ViewsDataset
from ..data.images import UnreadableImageError, decode_image
from ..data.sources import load_image_dataset, random_subset
from ..evaluation.features import raw_pixel_features
from ..evaluation.knn import knn_accuracy
from ..utils.console import run
from .callbacks.checkpoint_uploads import check_access, upload_result
from .checkpoints import list_checkpoints
from .pretrain.options import DataArguments, ModelArguments
from .pretrain.outputs import is_finished, save_run, summary
from .pretrain.provenance import shown_command, shown_recipe
from .pretrain.recipe_parser import load_recipe, parse_recipe_args
from .pretrain.run import Method


logger = logging.getLogger(__name__)

MODEL_TYPES = ("ibot", "ibot_swin", "vqkd", "beitv2", "dbot", "dbot_symmetric")


def load_data(args: DataArguments, model_args: ModelArguments, seed: int, labels: bool = True):
    """
    Training images, and where there are labels also the two data sets of the k-NN evaluation.

    Returns:
        `(train, bank, queries)`; the last two are None when there is nothing to evaluate on, and the bank is None when
        `labels` is False: the evaluation then takes the images alone.

    Raises:
        ValueError, FileNotFoundError: If a folder, split or column is missing.
    """
    common = {
        "image_column_name": args.image_column_name,
        "label_column_name": args.label_column_name,
        "cache_dir": model_args.cache_dir,
        "token": model_args.token,
    }
    for name, folder in (("train_dir", args.train_dir), ("validation_dir", args.validation_dir)):
        is_name = folder is not None and "://" not in folder and not glob.has_magic(folder)
        if is_name and not Path(folder).expanduser().exists():
            raise FileNotFoundError(f"{name} {folder} does not exist")
    source = {
        "dataset_name": args.dataset_name,
        "dataset_config_name": args.dataset_config_name,
        "data_dir": args.train_dir,
    }
    train = load_image_dataset(**source, split=args.train_split, streaming=args.streaming, **common)
    if args.streaming:
        if args.eval_split or args.validation_dir or args.train_val_split:
            logger.warning("of a stream nothing is held out: there is no evaluation")
        if args.max_train_samples is not None:
            train = train.take(args.max_train_samples)
        return train.shuffle(seed=seed, buffer_size=args.shuffle_buffer_size), None, None
    if args.clean_list is not None:
        train = keep_listed(train, args.clean_list, args.train_dir)

    queries = None
    if args.validation_dir is not None:
        queries = load_image_dataset(data_dir=args.validation_dir, split=args.eval_split or "train", **common)
    elif args.eval_split is not None:
        queries = load_image_dataset(**source, split=args.eval_split, **common)
    elif args.train_val_split is not None:
        parts = train.train_test_split(args.train_val_split, seed=seed)
        train, queries = parts["train"], parts["test"]
    train = random_subset(train, args.max_train_samples, seed)
    if queries is None or not labels:
        return train, None, random_subset(queries, args.max_eval_samples, seed) if queries is not None else None
    for name, dataset in (("training", train), ("evaluation", queries)):
        if "label" not in dataset.column_names:
            raise ValueError(f"the {name} images have no labels, which the k-NN evaluation needs; leave out the split")
    classes, other = (getattr(dataset.features["label"], "names", None) for dataset in (train, queries))
    if classes != other:
        raise ValueError(f"the evaluation images have other classes than the training images: {other} and {classes}")
    bank = random_subset(train, args.max_bank_samples, seed)
    return train, bank, random_subset(queries, args.max_eval_samples, seed)


def method_class(model_type: str) -> type[Method]:
    """The method that a `model_type` names; raises `ValueError` for an unknown one."""
    if model_type == "ibot":
        from .pretrain.ibot import IBotMethod

        return IBotMethod
    if model_type == "ibot_swin":
        from .pretrain.ibot import IBotSwinMethod

        return IBotSwinMethod
    if model_type == "vqkd":
        from .pretrain.vqkd import VQKDMethod

        return VQKDMethod
    if model_type == "beitv2":
        from .pretrain.beitv2 import Beitv2Method

        return Beitv2Method
    if model_type == "dbot_symmetric":
        from .pretrain.dbot import DBotSymmetricMethod

        return DBotSymmetricMethod
    if model_type == "dbot":
        from .pretrain.dbot import DBotMethod

        return DBotMethod
    raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)}, got {model_type!r}")


def parse_arguments(argv: list[str]) -> Method:
    """
    The run that the options ask for. `config_overrides` of the command line are added to those of the recipe, name by
    name.

    Raises:
        ValueError, OSError: For unknown or contradictory options.
    """
    recipe = load_recipe(argv[0]) if argv and not argv[0].startswith("-") else {}
    # Which options there are depends on the method.
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    chosen.add_argument("--model_type", "--model-type", default=recipe.get("model_type", ModelArguments.model_type))
    chosen.add_argument("--base_learning_rate", "--base-learning-rate")
    given = chosen.parse_known_args(argv)[0]
    method = method_class(given.model_type)
    # The rule that somebody asks for is not to be undone by the recipe's own rate.
    without = {"learning_rate"} if given.base_learning_rate is not None else ()
    types = (ModelArguments, DataArguments, method.arguments_class)
    model_args, data_args, args = parse_recipe_args(types, argv, without)
    overrides = recipe.get("config_overrides")
    if overrides and model_args.config_overrides != overrides:
        model_args.config_overrides = ",".join(filter(None, (overrides, model_args.config_overrides)))
    checkpoint = args.resume_from_checkpoint
    if checkpoint not in (None, "latest") and not os.path.isdir(checkpoint):
        raise ValueError(f"resume_from_checkpoint must be 'latest' or a checkpoint, there is no folder {checkpoint}")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    for name in ("dataloader_num_workers", "learning_rate"):
        if getattr(args, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(args, name)}")
    run = method(model_args, data_args, args)
    run.recipe, run.command = shown_recipe(argv), shown_command(argv)
    if args.do_train:
        _check_length(run)
    return run


def _check_length(method: Method):
    """What can be said about the length of the run before its data are known; the trainer says the rest."""
    args = method.args
    if args.max_steps > 0:
        return
    if method.data_args.streaming:
        raise ValueError("a stream has no length: say with --max_steps how long to train")
    if args.num_train_epochs <= 0:
        raise ValueError(f"num_train_epochs must be positive, got {args.num_train_epochs:g}")
    method.check_epochs(math.ceil(args.num_train_epochs))


def main(argv: list[str] | None = None) -> dict[str, float]:
    """
    Train, evaluate and save; gives the metrics.

    Args:
        argv: Arguments after the program name; those of the process when None.

    Raises:
        ValueError, OSError: For options and data that do not fit together, before any training.
    """
    method = parse_arguments(sys.argv[1:] if argv is None else argv)
    model_args, data_args, args = method.model_args, method.data_args, method.args
    logging.basicConfig(level=logging.INFO if args.should_log else logging.WARNING, format="%(message)s")
    # One line per HTTP request or cache lookup would bury what matters.
    for name in ("httpx", "httpx2", "fsspec", "matplotlib", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_warning()
    # The bars of single files being read and written; the one of the training stays.
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_warning()
    if args.do_train and is_finished(args.output_dir):
        print(summary(method, args.output_dir))
        full_model = os.path.join(args.output_dir, "pretraining") if method.keeps_full_model else args.output_dir
        print(
            f"This run is finished. For another one, choose another --output_dir or remove {args.output_dir}; to go "
            f"on from its weights, pass --model_name_or_path {full_model}."
        )
        if args.push_to_hub and args.process_index == 0:
            upload_result(args, method.keeps_full_model)
        return {}

    # What is wrong with sizes and data shows here, before weights are made or fetched.
    views, collator, processor = method.build_views(), method.build_collator(None), method.build_processor()
    train, bank, queries = load_data(data_args, model_args, args.seed, method.trainer_class.needs_bank)
    if queries is None and not args.do_train:
        raise ValueError("an evaluation needs held-out images: --eval_split, --validation_dir or --train_val_split")
    if queries is None and (args.eval_strategy != "no" or args.eval_on_start):
        logger.warning(
            "no held-out images (--eval_split, --validation_dir or --train_val_split): the evaluation is left out"
        )
        args.eval_strategy, args.eval_on_start = "no", False
    channels = method.config.num_channels
    if data_args.streaming:
        order = {name: getattr(data_args, name) for name in ("shuffle_buffer_size", "max_train_samples")}
        train_dataset = StreamedViewsDataset(train, views, channels, args.seed, order)
        collator = method.build_collator(train_dataset.samples)
    else:
        total_batch = args.train_batch_size * args.world_size
        if len(train) < total_batch:
            raise ValueError(f"{len(train)} training images do not fill one batch of {total_batch}")
        train_dataset = ViewsDataset(train, views, channels, args.seed)

    if args.push_to_hub and args.do_train and args.process_index == 0:
        check_access(args, method.keeps_full_model)
    set_seed(args.seed)
    trainer = method.build_trainer(
        model=method.build_model(),
        data_collator=collator,
        train_dataset=train_dataset,
        eval_dataset=queries,
        bank_dataset=bank,
        processing_class=processor,
    )
    if model_args.model_name_or_path is not None:
        trainer.continue_target(model_args.model_name_or_path, **model_args.hub_options)

    if args.do_train:
        checkpoint = args.resume_from_checkpoint or bool(list_checkpoints(args.output_dir))
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_state()
    metrics = {} if queries is None else trainer.latest_evaluation() or trainer.evaluate()
    if not args.do_train:
        print("\n".join(f"{name}: {value:.2f}" for name, value in metrics.items()))
        return metrics
    examples = queries if queries is not None else train
    metrics = result.metrics | metrics
    if data_args.raw_pixel_baseline and bank is not None:
        pixels = [
            raw_pixel_features(part, processor, num_channels=channels, progress=False, skip_unreadable=True)
            for part in (bank, queries)
        ]
        accuracy = knn_accuracy(*pixels[0], *pixels[1], k=args.knn_k, temperature=args.knn_temperature)
        metrics |= {f"raw_pixels_{name}": value for name, value in accuracy.items()}
    save_run(method, trainer, metrics, _first_images(examples, channels, method.num_example_images))
    if trainer.is_world_process_zero():
        print(summary(method, args.output_dir))
        if args.push_to_hub:
            upload_result(args, method.keeps_full_model)
    return metrics


def _first_images(dataset, num_channels: int, count: int) -> list[Image.Image]:
    """Images spread over the data set, for the pictures; in place of an unreadable one the next."""
    rows = list(dataset.take(2 * count)) if isinstance(dataset, datasets.IterableDataset) else dataset
    images = []
    for start in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int):
        for offset in range(min(len(rows), MAX_ATTEMPTS)):
            try:
                images.append(decode_image(rows[int(start + offset) % len(rows)]["image"], num_channels))
                break
            except (UnreadableImageError, OSError):
                continue
    return images


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
