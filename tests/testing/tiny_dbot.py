"""Two stages of `DBotTrainer`, so small that a test can watch them."""

import io
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback

from hf_mim import DBotCollator, DBotConfig, DBotForPreTraining, DBotImageProcessorPil
from hf_mim.training.dbot_arguments import DBotTrainingArguments
from hf_mim.training.dbot_trainer import DBotTrainer
from hf_mim.training.teachers import FeatureTeacher


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
SIZES |= {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
PROCESSOR = DBotImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


class Noise(torch.utils.data.Dataset):
    """16 images of 3x16x16 random bytes."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        view = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=generator)
        return {"epoch": 0, "index": index, "view": view}


def make_trainer(folder: Path, teacher: FeatureTeacher | None = None, config=None, **options) -> DBotTrainer:
    """Two stages of two epochs of two batches of 8 images, with stochastic depth."""
    kwargs = {name: options.pop(name) for name in ("eval_dataset", "bank_dataset") if name in options}
    defaults = {
        "stage_epochs": [2, 2],
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "warmup_epochs": 0.5,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = DBotTrainingArguments(output_dir=str(folder), **defaults | options)
    torch.manual_seed(0)
    return DBotTrainer(
        model=DBotForPreTraining(DBotConfig(**SIZES | (config or {}))),
        args=args,
        teacher=teacher,
        processing_class=PROCESSOR,
        train_dataset=Noise(),
        data_collator=DBotCollator(0, 16),
        **kwargs,
    )


def logs_of(trainer: DBotTrainer) -> list[dict]:
    timing = ("epoch", "images_per_second", "data_wait")
    return [
        {k: v for k, v in entry.items() if not k.startswith(timing) and "second" not in k}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(other[name], value), name


def copied(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


class Watcher(TrainerCallback):
    """Notes the student before and after the first update of every stage, the teacher, and Adam's step counter."""

    def __init__(self, trainer: DBotTrainer):
        self.trainer, self.seen = trainer, {}
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, **kwargs):
        # Called after the trainer's own callback.
        self.seen[state.global_step] = {
            "begin": copied(self.trainer.model),
            "teacher": copied(self.trainer.teacher),
            "random": torch.get_rng_state(),
        }

    def on_step_end(self, args, state, control, **kwargs):
        counters = {int(values["step"]) for values in self.trainer.optimizer.state.values()}
        self.seen[state.global_step - 1] |= {"end": copied(self.trainer.model), "counters": counters}


def encoder_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("dbot."): value for name, value in weights.items() if name.startswith("dbot.")}


def labeled_images() -> datasets.Dataset:
    """Twelve dark or light pictures."""
    rows, generator = [], np.random.default_rng(0)
    for i in range(12):
        buffer = io.BytesIO()
        pixels = np.clip(generator.normal(60 + 130 * (i % 2), 30, (20, 20, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": rows, "label": [i % 2 for i in range(12)]}, features=features)
