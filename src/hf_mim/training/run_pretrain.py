"""
`hf-mim pretrain [RECIPE] [--option value ...]`, also `python -m hf_mim.training.run_pretrain`: from a folder of images
to an encoder that `AutoModel.from_pretrained` loads.
"""

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
from transformers import AutoImageProcessor, set_seed
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..data.clean_list import keep_listed
from ..data.collator_ibot import IBotCollator
from ..data.datasets import MAX_ATTEMPTS, StreamedViewsDataset, ViewsDataset
from ..data.images import UnreadableImageError, decode_image
from ..data.masking import MaskGenerator
from ..data.sources import load_image_dataset, random_subset
from ..data.views import MultiCropViews
from ..evaluation.features import raw_pixel_features
from ..evaluation.knn import knn_accuracy
from ..modeling.configuration_ibot import IBotConfig
from ..modeling.image_processing_pil_ibot import IBotImageProcessorPil
from .checkpoints import list_checkpoints
from .ibot_arguments import IBotTrainingArguments
from .ibot_trainer import IBotTrainer
from .loading import load_ibot_for_pretraining, pretraining_config
from .outputs import is_finished, save_run, summary
from .pretrain_arguments import DataArguments, ModelArguments
from .recipe_parser import load_recipe, parse_recipe_args


logger = logging.getLogger(__name__)


def load_data(args: DataArguments, model_args: ModelArguments, seed: int):
    """
    Training images, and where there are labels also the two data sets of the k-NN evaluation.

    Returns:
        `(train, bank, queries)`; the last two are None when there is nothing to evaluate on.

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
            logger.warning("a stream has no bank of neighbours to look among: there is no k-NN evaluation")
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
    if queries is None:
        return train, None, None
    for name, dataset in (("training", train), ("evaluation", queries)):
        if "label" not in dataset.column_names:
            raise ValueError(f"the {name} images have no labels, which the k-NN evaluation needs; leave out the split")
    classes, other = (getattr(dataset.features["label"], "names", None) for dataset in (train, queries))
    if classes != other:
        raise ValueError(f"the evaluation images have other classes than the training images: {other} and {classes}")
    bank = random_subset(train, args.max_bank_samples, seed)
    return train, bank, random_subset(queries, args.max_eval_samples, seed)


def build_image_processor(
    args: DataArguments, model_args: ModelArguments, config: IBotConfig
) -> IBotImageProcessorPil:
    """
    The transform for evaluation and inference: resize, central crop, normalisation.

    Mean and standard deviation are those of the options, else those that the weights were trained with, else those of
    ImageNet for RGB and 0.5 otherwise.
    """
    height, width = (side * config.patch_size for side in config.grid_size)
    channels = config.num_channels
    imagenet = channels == 3
    mean, std = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if imagenet else ([0.5] * channels, [0.5] * channels)
    if model_args.model_name_or_path is not None:
        try:
            before = AutoImageProcessor.from_pretrained(model_args.model_name_or_path, **model_args.hub_options)
            mean, std = before.image_mean, before.image_std
        except OSError:
            logger.warning(f"{model_args.model_name_or_path} has no image processor: check --image_mean, --image_std")
    mean, std = args.image_mean or mean, args.image_std or std
    for name, values in (("image_mean", mean), ("image_std", std)):
        if len(values) != channels:
            raise ValueError(f"{name} must have one number for each of the {channels} channels, got {len(values)}")
    return IBotImageProcessorPil(
        size={"shortest_edge": args.resize_size or round(min(height, width) * 256 / 224)},
        crop_size={"height": height, "width": width},
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=imagenet,
    )


def build_views(args: IBotTrainingArguments, config: IBotConfig) -> tuple[MultiCropViews, MaskGenerator]:
    """Multi-crop views and masks; raises `ValueError` when sizes and shares do not fit the patches."""
    patch_size = config.patch_size
    image_size = [side * patch_size for side in config.grid_size]
    global_size = _crop_size("global_crop_size", args.global_crop_size or image_size, patch_size)
    local_size = (patch_size, patch_size)
    if args.local_crops_number:
        local_size = _crop_size("local_crop_size", args.local_crop_size, patch_size)
    views = MultiCropViews(
        global_crops_number=args.global_crops_number,
        global_crop_size=global_size,
        global_crops_scale=tuple(args.global_crops_scale),
        local_crops_number=args.local_crops_number,
        local_crop_size=local_size,
        local_crops_scale=tuple(args.local_crops_scale),
        color=args.color_augmentation,
        blur=args.blur_augmentation,
    )
    grid = (global_size[0] // patch_size, global_size[1] // patch_size)
    if args.pred_shape == "block" and min(grid) < 2 and max(args.pred_ratio) > 0:
        raise ValueError(
            f"global views of {grid[0]} x {grid[1]} patches have no room for blocks: enlarge global_crop_size "
            f"{list(global_size)}, or set pred_shape to 'rand'"
        )
    masks = MaskGenerator(grid, args.pred_ratio, args.pred_ratio_var, args.pred_shape, args.pred_start_epoch)
    return views, masks


def _crop_size(name: str, size: list[int], patch_size: int) -> tuple[int, int]:
    if len(size) not in (1, 2):
        raise ValueError(f"{name} must be one number, or height and width, got {size}")
    if any(side < patch_size or side % patch_size for side in size):
        raise ValueError(f"{name} {size} must be a multiple of the patch size {patch_size}")
    return size[0], size[-1]


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, IBotTrainingArguments]:
    """
    The options of a run. `config_overrides` of the command line are added to those of the recipe, name by name.

    Raises:
        ValueError, FileNotFoundError: For unknown or contradictory options.
    """
    model_args, data_args, args = parse_recipe_args((ModelArguments, DataArguments, IBotTrainingArguments), argv)
    if argv and not argv[0].startswith("-"):
        recipe = load_recipe(argv[0]).get("config_overrides")
        if recipe and model_args.config_overrides != recipe:
            model_args.config_overrides = ",".join(filter(None, (recipe, model_args.config_overrides)))
    if model_args.model_type != "ibot":
        raise ValueError(f"model_type must be 'ibot', got {model_args.model_type!r}")
    checkpoint = args.resume_from_checkpoint
    if checkpoint not in (None, "latest") and not os.path.isdir(checkpoint):
        raise ValueError(f"resume_from_checkpoint must be 'latest' or a checkpoint, there is no folder {checkpoint}")
    if data_args.streaming and args.pred_start_epoch:
        raise ValueError("a stream has no epochs to count to: pred_start_epoch must be 0 with --streaming")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    for name in ("dataloader_num_workers", "learning_rate"):
        if getattr(args, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(args, name)}")
    if args.do_train:
        _check_length(data_args, args)
    return model_args, data_args, args


def _check_length(data_args: DataArguments, args: IBotTrainingArguments):
    """What can be said about the length of the run before its data are known; the trainer says the rest."""
    if args.max_steps > 0:
        return
    if data_args.streaming:
        raise ValueError("a stream has no length: say with --max_steps how long to train")
    if args.num_train_epochs <= 0:
        raise ValueError(f"num_train_epochs must be positive, got {args.num_train_epochs:g}")
    epochs = math.ceil(args.num_train_epochs)
    if args.warmup_teacher_temp_epochs + args.pred_start_epoch > epochs:
        raise ValueError(
            f"the teacher temperatures' warm-up (warmup_teacher_temp_epochs {args.warmup_teacher_temp_epochs}, from "
            f"pred_start_epoch {args.pred_start_epoch} on) is longer than the run of {args.num_train_epochs:g} epochs"
        )
    if args.lr_scheduler_type == "cosine" and not args.warmup_steps and args.warmup_epochs >= epochs:
        raise ValueError(
            f"the learning rate's warm-up (warmup_epochs {args.warmup_epochs:g}) is as long as the run of "
            f"{args.num_train_epochs:g} epochs, or longer"
        )


def main(argv: list[str] | None = None) -> dict[str, float]:
    """
    Train, evaluate and save; gives the metrics.

    Args:
        argv: Arguments after the program name; those of the process when None.

    Raises:
        ValueError, FileNotFoundError: For options and data that do not fit together, before any training.
    """
    model_args, data_args, args = parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO if args.should_log else logging.WARNING, format="%(message)s")
    # One line per HTTP request or cache lookup would bury what matters.
    for name in ("httpx", "httpx2", "fsspec", "matplotlib", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_warning()
    # The bars of single files being read and written; the one of the training stays.
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_warning()
    if args.do_train and is_finished(args.output_dir):
        print(summary(args.output_dir))
        print(
            f"This run is finished. For another one, choose another --output_dir or remove {args.output_dir}; to go "
            f"on from its weights, pass --model_name_or_path {os.path.join(args.output_dir, 'pretraining')}."
        )
        return {}

    # What is wrong with sizes and data shows here, before weights are made or fetched.
    config = pretraining_config(model_args)
    views, masks = build_views(args, config)
    processor = build_image_processor(data_args, model_args, config)
    train, bank, queries = load_data(data_args, model_args, args.seed)
    if queries is None and not args.do_train:
        raise ValueError("an evaluation needs labelled images: --eval_split, --validation_dir or --train_val_split")
    if queries is None and (args.eval_strategy != "no" or args.eval_on_start):
        logger.warning("no labelled split (--eval_split, --validation_dir or --train_val_split): k-NN is left out")
        args.eval_strategy, args.eval_on_start = "no", False
    if data_args.streaming:
        order = {name: getattr(data_args, name) for name in ("shuffle_buffer_size", "max_train_samples")}
        train_dataset = StreamedViewsDataset(train, views, config.num_channels, args.seed, order)
        collator = IBotCollator(masks, args.seed, train_dataset.samples)
    else:
        total_batch = args.train_batch_size * args.world_size
        if len(train) < total_batch:
            raise ValueError(f"{len(train)} training images do not fill one batch of {total_batch}")
        train_dataset = ViewsDataset(train, views, config.num_channels, args.seed)
        collator = IBotCollator(masks, args.seed)

    set_seed(args.seed)
    model = load_ibot_for_pretraining(model_args)
    trainer = IBotTrainer(
        model=model,
        args=args,
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
    metrics = {} if queries is None else _latest_evaluation(trainer) or trainer.evaluate()
    if not args.do_train:
        print("\n".join(f"{name}: {value:.2f}" for name, value in metrics.items()))
        return metrics
    examples = queries if queries is not None else train
    metrics = result.metrics | metrics
    if data_args.raw_pixel_baseline and queries is not None:
        channels = model.config.num_channels
        pixels = [
            raw_pixel_features(part, processor, num_channels=channels, progress=False, skip_unreadable=True)
            for part in (bank, queries)
        ]
        accuracy = knn_accuracy(*pixels[0], *pixels[1], k=args.knn_k, temperature=args.knn_temperature)
        metrics |= {f"raw_pixels_{name}": value for name, value in accuracy.items()}
    save_run(trainer, metrics, data_args, model_args, _first_images(examples, model.config.num_channels))
    if trainer.is_world_process_zero():
        print(summary(args.output_dir))
    return metrics


def _latest_evaluation(trainer: IBotTrainer) -> dict[str, float]:
    """The evaluation of the present weights, if the training ended with one."""
    evaluations = [entry for entry in trainer.state.log_history if any("eval_knn" in name for name in entry)]
    if not evaluations or evaluations[-1]["step"] != trainer.state.global_step:
        return {}
    return {name: value for name, value in evaluations[-1].items() if name.startswith("eval_")}


def _first_images(dataset, num_channels: int, count: int = 4) -> list[Image.Image]:
    """Images spread over the data set, for the attention pictures; in place of an unreadable one the next."""
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
    from hf_mim_cli import main as cli

    sys.exit(cli(["pretrain", *sys.argv[1:]]))
