"""k-NN evaluation during training, where every process encodes a part of the images."""

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import BaseImageProcessor, PreTrainedModel

from ...evaluation.features import extract_features
from ...evaluation.knn import knn_accuracy
from ..arguments import MIMTrainingArguments


def part_of_process(dataset: datasets.Dataset, index: int, count: int) -> datasets.Dataset:
    """Return the `index`-th of `count` parts of a dataset. With fewer rows than parts, some parts are empty."""
    return dataset.select(range(len(dataset) * index // count, len(dataset) * (index + 1) // count))


def knn_of_processes(
    encoder: PreTrainedModel,
    bank: datasets.Dataset,
    queries: datasets.Dataset,
    image_processor: BaseImageProcessor,
    accelerator: Accelerator,
    args: MIMTrainingArguments,
) -> dict[str, float]:
    """
    Compute k-NN accuracies. All processes must call this together, and get the same result.

    Args:
        encoder (`PreTrainedModel`): Model to evaluate.
        bank (`datasets.Dataset`): Labeled images in which neighbors are searched.
        queries (`datasets.Dataset`): Labeled images to classify.
        image_processor (`BaseImageProcessor`): Image processor of the encoder.
        accelerator (`Accelerator`): Combines the processes.
        args (`MIMTrainingArguments`): Batch size, number of workers and the `knn_...` options.

    Returns:
        What [`~hf_mim.evaluation.knn.knn_accuracy`] returns.
    """
    encoded: list[tuple[torch.Tensor, torch.Tensor]] = []
    for dataset in (bank, queries):
        part, found = part_of_process(dataset, accelerator.process_index, accelerator.num_processes), []
        # If there are fewer images than processes, some processes have none to encode.
        if len(part) or not len(dataset):
            with accelerator.autocast():
                found = [
                    extract_features(
                        encoder,
                        part,
                        image_processor,
                        batch_size=args.per_device_eval_batch_size,
                        num_workers=args.dataloader_num_workers,
                        pooling=args.knn_pooling,
                        device=accelerator.device,
                        progress=accelerator.is_main_process and not args.disable_tqdm,
                        skip_unreadable=True,
                    )
                ]
        if accelerator.num_processes > 1:
            found = gather_object(found)
        features, labels = map(torch.cat, zip(*found, strict=True))
        encoded.append((features.to(accelerator.device), labels.to(accelerator.device)))
    return knn_accuracy(*encoded[0], *encoded[1], k=args.knn_k, temperature=args.knn_temperature)
