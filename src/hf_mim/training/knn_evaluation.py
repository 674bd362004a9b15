"""k-NN while a model trains: every process encodes a part of the images."""

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import BaseImageProcessor, PreTrainedModel

from ..evaluation.features import extract_features
from ..evaluation.knn import knn_accuracy
from .arguments import MIMTrainingArguments


def knn_of_processes(
    encoder: PreTrainedModel,
    bank: datasets.Dataset,
    queries: datasets.Dataset,
    image_processor: BaseImageProcessor,
    accelerator: Accelerator,
    args: MIMTrainingArguments,
) -> dict[str, float]:
    """Accuracies of `knn_accuracy` on `queries`, the same in every process; all of them must call this."""
    encoded = []
    for dataset in (bank, queries):
        part = dataset
        if accelerator.num_processes > 1:
            part = dataset.shard(accelerator.num_processes, accelerator.process_index)
        with accelerator.autocast():
            features, labels = extract_features(
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
        if accelerator.num_processes > 1:
            features, labels = map(torch.cat, zip(*gather_object([(features, labels)]), strict=True))
        encoded += [features.to(accelerator.device), labels.to(accelerator.device)]
    return knn_accuracy(*encoded, k=args.knn_k, temperature=args.knn_temperature)
