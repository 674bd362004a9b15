"""
Two stages of `DBotTrainer` in processes that accelerate has started: `FOLDER BATCH_SIZE SHARDED [--option value ...]`.

Leaves the whole student and its teacher in FOLDER, and the weights of every process as it sees them after the switch.
"""

import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from transformers import TrainerCallback

from hf_mim.training.fsdp import whole_state_dict
from tests.testing import fsdp_on_cpu
from tests.testing.tiny_dbot import labeled_images, make_trainer


class AfterTheSwitch(TrainerCallback):
    """Saves what the first step of the second stage begins with, and draws another random number in every process."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        torch.rand(1 + args.process_index)
        if state.global_step == 4:
            weights = {name: value.clone() for name, value in whole_state_dict(model).items()}
            save_file(weights, Path(args.output_dir) / f"process-{args.process_index}.safetensors")


def main(folder: str, batch_size: str, sharded: str, checkpoint: str | None = None):
    if sharded == "sharded":
        AcceleratorState.__init__ = fsdp_on_cpu.init
    images = labeled_images()
    trainer = make_trainer(
        Path(folder),
        config={"drop_path_rate": 0.0},
        per_device_train_batch_size=int(batch_size),
        stage_teacher_depth=[0, 3],
        save_strategy="steps",
        save_steps=1,
        eval_dataset=images,
        bank_dataset=images,
    )
    trainer.add_callback(AfterTheSwitch())
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    student, teacher = trainer.whole_student(), trainer.whole_target()
    assert (type(trainer.model) is not type(student)) == (sharded == "sharded")
    if trainer.is_world_process_zero():
        save_file(dict(student.state_dict()), Path(folder) / "student.safetensors")
        save_file(dict(teacher.state_dict()), Path(folder) / "teacher.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
