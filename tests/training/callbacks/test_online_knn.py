"""k-NN of several processes: what each encodes is put together."""

from contextlib import nullcontext
from types import SimpleNamespace

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from hf_mim.training.callbacks import online_knn as knn_evaluation


def labeled(count: int) -> datasets.Dataset:
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": images, "label": list(range(count))}, features=features)


def test_fewer_images_than_processes(monkeypatch):
    """Three images in the bank and one query, for two processes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4), add_pooling_layer=False)
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    args = SimpleNamespace(
        per_device_eval_batch_size=2,
        dataloader_num_workers=0,
        knn_pooling="auto",
        disable_tqdm=True,
        knn_k=1,
        knn_temperature=0.07,
    )
    joined = []
    monkeypatch.setattr(knn_evaluation, "knn_accuracy", lambda *tensors, **_: joined.append(tensors) or {})

    def run(count: int, index: int, gather):
        monkeypatch.setattr(knn_evaluation, "gather_object", gather)
        accelerator = SimpleNamespace(
            num_processes=count,
            process_index=index,
            is_main_process=True,
            device=torch.device("cpu"),
            autocast=nullcontext,
        )
        knn_evaluation.knn_of_processes(model, labeled(3), labeled(1), processor, accelerator, args)

    run(1, 0, None)
    second = []
    some = (torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64))
    run(2, 1, lambda found: second.append(found) or [*found, some])
    # The first process has one image of the bank and no query.
    run(2, 0, lambda found: found + second.pop(0))
    assert [len(labels) for labels in joined[0][1::2]] == [3, 1]
    for one, other in zip(joined[2], joined[0], strict=True):
        torch.testing.assert_close(one, other)
