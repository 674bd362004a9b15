"""Schedules that are longer than the run are found together, and shortened on request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mim.training.dbot_arguments import DBotTrainingArguments
from hf_mim.training.dbot_trainer import DBotTrainer, fitting_stages
from hf_mim.training.ibot_arguments import IBotTrainingArguments
from hf_mim.training.ibot_trainer import IBotTrainer
from hf_mim.training.schedules import fit_or_refuse


def arguments(cls, tmp_path, **options):
    return cls(output_dir=str(tmp_path), use_cpu=True, report_to=[], **options)


@pytest.mark.parametrize(
    ("options", "epochs", "steps", "fitting"),
    [
        ({}, 100, None, {}),
        ({}, 100, 7, {}),
        ({}, 20, None, {"warmup_teacher_temp_epochs": 6}),
        ({}, 5, None, {"warmup_epochs": 0.5, "warmup_teacher_temp_epochs": 1}),
        ({}, 5, 20, {"warmup_steps": 10, "warmup_teacher_temp_epochs": 1}),
        ({}, 2.5, 2, {"warmup_epochs": 0, "warmup_teacher_temp_epochs": 0}),
        ({"warmup_steps": 30}, 100, None, {}),
        ({"warmup_steps": 30}, 40, 1, {}),
        ({"warmup_steps": 30}, 30, 1, {"warmup_steps": 3}),
        ({"warmup_epochs": 0, "warmup_teacher_temp_epochs": 0}, 0.1, 30, {}),
        ({"pred_start_epoch": 50}, 60, None, {"warmup_teacher_temp_epochs": 10}),
        ({"pred_start_epoch": 50}, 40, None, {"pred_start_epoch": 0}),
        (
            {"pred_start_epoch": 50},
            10,
            None,
            {"warmup_epochs": 1, "pred_start_epoch": 0, "warmup_teacher_temp_epochs": 3},
        ),
    ],
)
def test_fitting_values_of_ibot(tmp_path, options, epochs, steps, fitting):
    args = arguments(IBotTrainingArguments, tmp_path, fit_schedules=True, **options)
    found = IBotTrainer.schedules_too_long(args, epochs, steps)
    assert {item.option: item.fitting for item in found} == fitting
    fit_or_refuse(args, found)
    assert IBotTrainer.schedules_too_long(args, epochs, steps) == []
    assert all(getattr(args, name) == value for name, value in fitting.items())


@pytest.mark.parametrize(
    ("options", "epochs", "steps", "fitting"),
    [
        ({"stage_epochs": [100, 100]}, 200, None, {}),
        ({"stage_epochs": [100, 30]}, 130, None, {"warmup_epochs": 3}),
        ({"stage_epochs": [100, 100]}, 150, 2, {}),
        ({"stage_epochs": [100, 100]}, 120, 2, {"warmup_steps": 4}),
        ({"stage_epochs": [100, 100]}, 100, 2, {"stage_epochs": [50, 50]}),
        ({"stage_epochs": [100, 100]}, 15, 2, {"stage_epochs": [7, 8], "warmup_steps": 1}),
        ({"stage_epochs": [100, 100]}, 0.5, 60, {"stage_epochs": [1], "warmup_steps": 3}),
        (
            {"stage_epochs": [100, 100], "stage_teacher_depth": [12, 8]},
            1,
            60,
            {"stage_epochs": [1], "stage_teacher_depth": [12], "warmup_steps": 6},
        ),
    ],
)
def test_fitting_values_of_dbot(tmp_path, options, epochs, steps, fitting):
    args = arguments(DBotTrainingArguments, tmp_path, fit_schedules=True, **options)
    found = DBotTrainer.schedules_too_long(args, epochs, steps)
    assert {item.option: item.fitting for item in found} == fitting
    fit_or_refuse(args, found)
    assert DBotTrainer.schedules_too_long(args, epochs, steps) == []


@given(st.lists(st.integers(1, 900), min_size=1, max_size=4), st.floats(0.01, 3000))
def test_stages_in_whole_epochs(stages, epochs):
    fitted = fitting_stages(stages, epochs)
    assert min(fitted) >= 1 and sum(fitted[:-1]) < epochs <= sum(fitted)
    assert len(fitted) in (1, len(stages))


def test_all_conflicts_in_one_message(tmp_path):
    args = arguments(IBotTrainingArguments, tmp_path)
    found = IBotTrainer.schedules_too_long(args, 5, None)
    with pytest.raises(ValueError) as error:
        fit_or_refuse(args, found)
    assert str(error.value) == (
        "the learning rate's warm-up takes 10 epochs, the run only 5; the teacher temperatures' warm-up ends after 30 "
        "epochs (warmup_teacher_temp_epochs 30 + pred_start_epoch 0), the run after 5: set warmup_epochs = 0.5, "
        "warmup_teacher_temp_epochs = 1, or fit_schedules"
    )
    with pytest.raises(ValueError) as error:
        fit_or_refuse(args, found, ["ibot-vits16", "--train_dir", "my images"])
    assert str(error.value).endswith(
        ". This works: hf-mim pretrain ibot-vits16 --train_dir 'my images' --warmup_epochs 0.5 "
        "--warmup_teacher_temp_epochs 1 (or add --fit_schedules, which chooses these values)"
    )


def test_epochs_and_stages_that_contradict_each_other(tmp_path):
    with pytest.raises(ValueError, match=r"stage_epochs \[2, 3\] already give the 5 epochs of the run"):
        arguments(DBotTrainingArguments, tmp_path, stage_epochs=[2, 3], num_train_epochs=7)
    assert arguments(DBotTrainingArguments, tmp_path, stage_epochs=[2, 3], num_train_epochs=5).num_train_epochs == 5
