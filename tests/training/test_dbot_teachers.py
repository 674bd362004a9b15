"""Teachers of DBotTrainer from elsewhere or from a former run, and options and checkpoints that do not fit."""

import pytest
import torch
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from hf_mim.training.dbot_arguments import DBotTrainingArguments
from hf_mim.training.teachers import FeatureTeacher
from tests.testing.tiny_dbot import Watcher, assert_same_weights, copied, encoder_of, logs_of, make_trainer


# Teachers from elsewhere


def vit_teacher(cls_token: bool = True, seed: int = 0, **options) -> FeatureTeacher:
    """A ViT of patch size 2."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24} | options
    vit = ViTModel(ViTConfig(**sizes, image_size=8, patch_size=2, initializer_range=0.2), add_pooling_layer=False)
    return FeatureTeacher(vit, (4, 4), [0.5] * 3, [0.5] * 3, "raw", cls_token=cls_token, name=f"vit-{seed}")


def test_a_teacher_of_other_width_patch_size_and_normalization(tmp_path):
    teacher = vit_teacher()
    trainer = make_trainer(tmp_path, teacher, {"target_dim": 12}, stage_epochs=None, num_train_epochs=2)
    samples = [trainer.train_dataset[i] for i in range(4)]
    inputs = trainer.prepare_batch(trainer.data_collator(samples))
    labels = trainer.compute_targets(inputs)["labels"]
    images = torch.stack([sample["view"] for sample in samples]) / 255
    assert labels.shape == (4, 17, 12)
    torch.testing.assert_close(labels, teacher(images), rtol=1e-4, atol=1e-4)
    before = copied(teacher)
    trainer.train()
    assert_same_weights(copied(teacher), before)
    for log in logs_of(trainer):
        assert log["loss"] == pytest.approx((log["loss_cls"] + 12 * log["loss_patch"]) / 13, rel=1e-5)


def test_a_teacher_without_cls_token(tmp_path):
    torch.manual_seed(0)
    resnet = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 4, 4, 8], depths=[1, 1, 1, 1]))
    teacher = FeatureTeacher(resnet, (4, 4), [0.5] * 3, [0.5] * 3, cls_token=True)
    trainer = make_trainer(tmp_path, teacher, {"target_dim": 8}, stage_epochs=None, max_steps=2)
    trainer.train()
    for log in logs_of(trainer):
        assert log["loss"] == log["loss_patch"] > 0 and "loss_cls" not in log


def test_a_student_follows_a_teacher_from_elsewhere(tmp_path):
    """Checkpoints of the first stage name it; a resumed run needs it."""
    teacher = vit_teacher(hidden_size=16)
    whole = make_trainer(tmp_path / "whole", teacher, save_strategy="steps", save_steps=1)
    seen = Watcher(whole).seen
    whole.train()
    assert_same_weights(copied(whole.teacher), encoder_of(seen[3]["end"]))
    folder = tmp_path / "whole" / "checkpoint-4" / "teacher"
    assert {file.name for file in folder.iterdir()} == {"reference.json", "stage.json"}
    for step in (2, 4, 5):
        resumed = make_trainer(tmp_path / "cut", vit_teacher(hidden_size=16))
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert logs_of(resumed) == logs_of(whole)
        assert_same_weights(copied(resumed.model), copied(whole.model))
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    with pytest.raises(ValueError, match="trained with the target network vit-0, and this run's, vit-1"):
        make_trainer(tmp_path, vit_teacher(hidden_size=16, seed=1)).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="was trained with the teacher vit-0: name it"):
        make_trainer(tmp_path).train(resume_from_checkpoint=checkpoint)


# Going on from a model


def test_a_new_run_takes_the_teacher_beside_a_model(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_target(tmp_path / "model" / "teacher", trainer.whole_target())
    other = make_trainer(tmp_path / "other", stage_epochs=None)
    other.continue_target(str(tmp_path / "model"))
    assert other.stage == 0
    assert_same_weights(copied(other.teacher), copied(trainer.teacher))
    (tmp_path / "bare").mkdir()
    other = make_trainer(tmp_path / "other")
    other.continue_target(str(tmp_path / "bare"))
    assert_same_weights(copied(other.teacher), copied(other.model.dbot))
    teacher = vit_teacher(hidden_size=16)
    other = make_trainer(tmp_path / "other", teacher)
    other.continue_target(str(tmp_path / "model"))
    assert other.teacher is teacher


# What does not fit


def test_a_teacher_that_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="features of 12 numbers on a grid of .* predicts 16"):
        make_trainer(tmp_path, vit_teacher())
    with pytest.raises(ValueError, match=r"predicts features of 12 numbers \(target_dim\), .* has 16 .*one stage"):
        make_trainer(tmp_path, vit_teacher(), {"target_dim": 12})
    with pytest.raises(ValueError, match="'projected' needs a teacher from elsewhere"):
        make_trainer(tmp_path, teacher_feature="projected")


def test_a_checkpoint_of_other_stages(tmp_path):
    make_trainer(tmp_path / "whole", save_strategy="steps", save_steps=3).train()
    checkpoint = tmp_path / "whole" / "checkpoint-6"
    with pytest.raises(ValueError, match=r"saved in stage 2, and with .* \[3, 1\] its step 6 belongs to stage 1"):
        make_trainer(tmp_path / "other", stage_epochs=[3, 1]).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(ValueError, match=r"not a teacher of 3 blocks .*stage_teacher_depth.*missing \['layers.2"):
        make_trainer(tmp_path / "other", stage_teacher_depth=[2, 3]).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(ValueError, match=r"not a teacher of 1 blocks .*unexpected \['layers.1"):
        make_trainer(tmp_path / "other", stage_teacher_depth=[2, 1]).train(resume_from_checkpoint=str(checkpoint))
    trainer = make_trainer(tmp_path / "other")
    (checkpoint / "teacher" / "stage.json").write_text("{")
    with pytest.raises(OSError, match=r"teacher/stage\.json is damaged"):
        trainer.load_target(str(checkpoint))
    (checkpoint / "teacher" / "stage.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no teacher/stage\.json"):
        trainer.load_target(str(checkpoint))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stage_epochs": [2, 1], "warmup_epochs": 1}, "warm-up takes 2 steps, stage 2 only 2"),
        ({"stage_epochs": [2, 1], "warmup_steps": 3}, "warm-up takes 3 steps, stage 2 only 2"),
        (
            {"max_steps": 4},
            r"stage 2 begins after 2 epochs .*, the run has only 2: set stage_epochs = 1 1",
        ),
    ],
)
def test_stages_that_do_not_fit_the_run(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options).train()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stage_epochs": []}, r"stage_epochs must be whole epochs of at least 1, got \[\]"),
        ({"stage_epochs": [3, 0]}, "stage_epochs must be whole epochs"),
        ({"stage_teacher_depth": [2]}, r"for each of 2 stages \(stage_epochs\), got \[2\]"),
        ({"stage_teacher_depth": [2, -1]}, "stage_teacher_depth must be a number of blocks, 0 or more"),
        ({"lr_scheduler_type": "linear"}, "must be 'cosine' with several stages"),
        ({"min_crop_scale": 0.0}, r"min_crop_scale must lie in \(0, 1\]"),
    ],
)
def test_options_that_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DBotTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{"stage_epochs": [1, 1]} | options)


def test_defaults_are_the_published_ones(tmp_path):
    args = DBotTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4096, stage_epochs=[800, 800]
    )
    assert (args.num_train_epochs, args.num_stages, args.warmup_epochs) == (1600, 2, 40)
    assert args.learning_rate == pytest.approx(2.4e-3) and args.min_learning_rate == 0
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.95, 0.05, 3.0)
    assert (args.grad_clip, args.teacher_feature) == ("global", "raw")
