"""Training traces of the original iBOT for `IBotTrainer`."""

import torch
from transformers import TrainerCallback

from hf_mim.hub.convert.ibot import translate
from hf_mim.hub.convert.reading import read_official
from hf_mim.training.ibot_arguments import IBotTrainingArguments
from tests.testing.official_ibot import part


class TraceCollator:
    """Gives the recorded views and masks, step after step, whatever it is asked for."""

    def __init__(self, golden: dict[str, torch.Tensor], dtype: torch.dtype):
        self.golden, self.dtype, self.step = golden, dtype, 0

    def __call__(self, samples):
        def crops(*numbers):
            views = [self.golden[f"step{self.step}/crop{n}"] for n in numbers]
            return torch.stack(views, dim=1).to(self.dtype)

        masks = [self.golden[f"step{self.step}/mask{n}"].flatten(1) for n in range(2)]
        batch = {
            "pixel_values": crops(0, 1),
            "local_pixel_values": crops(2, 3),
            "bool_masked_pos": torch.stack(masks, dim=1),
        }
        self.step += 1
        return batch


class CenterRecorder(TrainerCallback):
    """Notes centers, learning rate, weight decay and momentum of every step."""

    def __init__(self):
        self.steps, self.trainer = [], None

    def on_optimizer_step(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        self.steps.append(
            {
                "center": self.trainer.targets.cls_center.clone(),
                "center2": self.trainer.targets.patch_center.clone(),
                "lr": optimizer.param_groups[0]["lr"],
                "wd": optimizer.param_groups[0]["weight_decay"],
                "no_decay": optimizer.param_groups[1]["weight_decay"],
                "momentum": self.trainer.momentum_at(state.global_step),
            }
        )


def our_weights(golden: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """One network of a trace under our names, in the precision of the trace."""
    official = read_official(part(golden, prefix)).networks["model"]
    weights = translate(official, prefix, 3, {})[2]
    if "masked_embed" not in official:
        del weights["ibot.embeddings.mask_token"]
    return weights


def trace_arguments(tmp_path, hyper: dict, head: dict) -> IBotTrainingArguments:
    return IBotTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=hyper["batch"],
        num_train_epochs=hyper["epochs"],
        learning_rate=hyper["lr"],
        min_learning_rate=hyper["min_lr"],
        warmup_epochs=hyper["warmup_epochs"],
        weight_decay=hyper["weight_decay"],
        weight_decay_end=hyper["weight_decay_end"],
        momentum_teacher=hyper["momentum_teacher"],
        max_grad_norm=hyper["clip_grad"],
        freeze_last_layer=hyper["freeze_last_layer"],
        warmup_teacher_temp=hyper["warmup_teacher_temp"],
        teacher_temp=hyper["teacher_temp"],
        warmup_teacher_patch_temp=hyper["warmup_teacher_patch_temp"],
        teacher_patch_temp=hyper["teacher_patch_temp"],
        warmup_teacher_temp_epochs=hyper["warmup_teacher_temp_epochs"],
        pred_start_epoch=hyper["pred_start_epoch"],
        shared_head_teacher=head["shared_head_teacher"],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
