"""Helpers to cut a run short and to compare it with the whole one."""

import json
import shutil

import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

from hf_mim.utils.manifest import MANIFEST_FILE, write_manifest


EVERY_STEP = ("--save_strategy", "steps", "--save_steps", "1")


def assert_equal_weights(first, second):
    """Student, teacher and centers of two runs, bit for bit."""
    for network in ("pretraining", "pretraining/teacher"):
        expected = AutoModelForPreTraining.from_pretrained(first / network).state_dict()
        found = AutoModelForPreTraining.from_pretrained(second / network).state_dict()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), f"{network}: {name}"
    expected, found = (load_file(run / "pretraining/teacher/centers.safetensors") for run in (first, second))
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def copy_checkpoint(source, output, name="checkpoint-4"):
    shutil.copytree(source / name, output / name)
    return output / name


def rewrite_manifest(checkpoint):
    """As if the checkpoint had been saved with the files that it has now."""
    manifest = json.loads((checkpoint / MANIFEST_FILE).read_text())
    (checkpoint / MANIFEST_FILE).unlink()
    write_manifest(checkpoint, manifest["run"])
