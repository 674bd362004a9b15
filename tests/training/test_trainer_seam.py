"""What `MIMTrainer` relies on in `transformers.Trainer`: this fails first, and says what changed, on a new version."""

import inspect

import pytest
import transformers
from transformers import Trainer

from hf_mim import DBotTrainer, IBotTrainer, MIMTrainer, VQKDTrainer
from hf_mim.training.dbot_symmetric_trainer import DBotSymmetricTrainer


PRIVATE = {"_clip_grad_norm", "_get_grad_norm", "_save_checkpoint"}
# Parameters of the methods that are overridden or called, as they are in transformers 5.23.
SIGNATURES = {
    "_clip_grad_norm": ["self", "model"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_save_checkpoint": ["self", "model", "trial"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "create_optimizer": ["self", "model"],
    "create_scheduler": ["self", "num_training_steps", "optimizer"],
    "evaluate": ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "get_decay_parameter_names": ["self", "model"],
    "get_train_dataloader": ["self"],
    "init_hf_repo": ["self", "token", "private"],
    "log": ["self", "logs", "start_time"],
    "set_initial_training_values": ["self", "args", "dataloader"],
    "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    found = list(inspect.signature(getattr(Trainer, name)).parameters)
    assert found == SIGNATURES[name], (
        f"transformers {transformers.__version__} changed Trainer.{name} from {SIGNATURES[name]} to {found}: "
        "adapt MIMTrainer, then this list"
    )


def test_initial_values_are_those_that_the_trainer_unpacks():
    annotation = inspect.signature(Trainer.set_initial_training_values).return_annotation
    assert len(annotation.__args__) == 7, (
        f"transformers {transformers.__version__} returns {annotation} from set_initial_training_values: MIMTrainer "
        "reads number of epochs (first), steps per epoch (second) and number of steps (last)"
    )


@pytest.mark.parametrize("trainer", [MIMTrainer, IBotTrainer, VQKDTrainer, DBotTrainer, DBotSymmetricTrainer])
def test_private_methods_of_trainer_that_are_overridden(trainer):
    overridden = {
        name
        for base in trainer.__mro__[: trainer.__mro__.index(Trainer)]
        for name in vars(base)
        if name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name) and name != "_abc_impl"
    }
    assert overridden == PRIVATE
