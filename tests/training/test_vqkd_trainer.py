"""VQKDTrainer: targets, the codebook's steps, what it logs and evaluates, and resuming."""

import copy
import shutil
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_mim.modeling.quantizer_vqkd import code_statistics
from hf_mim.training.callbacks.online_knn import part_of_process
from tests.testing.tiny_training import Bytes, tiny_teacher, tiny_vqkd_trainer


SAVE = {"save_strategy": "steps", "save_steps": 1}


def eval_images(count: int = 5) -> datasets.Dataset:
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(count)]
    return datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_equal_models(first, second):
    weights = second.model.state_dict()
    for name, value in first.model.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_targets_are_the_teachers_features_of_the_crop(tmp_path):
    trainer = tiny_vqkd_trainer(tmp_path)
    images = torch.stack([Bytes()[index] for index in range(8)])
    inputs = trainer.prepare_batch({"pixel_values": images})
    torch.testing.assert_close(inputs["pixel_values"], images / 127.5 - 1, rtol=0, atol=1e-6)
    labels = trainer.compute_targets(inputs)["labels"]
    torch.testing.assert_close(labels, tiny_teacher()(images / 255), rtol=1e-5, atol=1e-5)


def test_accumulated_batches_equal_one(tmp_path):
    """From a given codebook: with k-means, the first batch alone would decide about it."""
    given = {"kmeans_init": False}
    one = tiny_vqkd_trainer(tmp_path / "one", given)
    two = tiny_vqkd_trainer(tmp_path / "two", given, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    start = one.model.quantizer.codebook.clone()
    one.train()
    two.train()
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for name in ("codebook_usage", "perplexity", "dead_codes"):
        values = [[entry[name] for entry in t.state.log_history if name in entry] for t in (one, two)]
        assert values[0] == pytest.approx(values[1]) and len(values[0]) == 4
    weights = two.model.state_dict()
    assert not torch.equal(one.model.quantizer.codebook, start)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5, msg=name)


def test_usage_is_counted_since_the_last_log_and_over_the_epoch(tmp_path):
    """Eight steps are an epoch of 64 images, each of four patches."""
    trainer = tiny_vqkd_trainer(tmp_path, max_steps=12, logging_steps=3)
    steps = []
    update = trainer.model.update_codebook
    trainer.model.update_codebook = lambda: steps.append(update()) or steps[-1]
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "codebook_usage" in entry]
    assert [entry["step"] for entry in logs] == [3, 6, 9, 12] and len(steps) == 12
    assert all(counts.sum() == 8 * 4 for counts in steps)
    for entry in logs:
        expected = code_statistics(sum(steps[entry["step"] - 3 : entry["step"]]))
        for name in ("codebook_usage", "perplexity", "dead_codes"):
            assert entry[name] == pytest.approx(expected[name])
        # The first epoch as far as it has come, then as a whole.
        epoch = code_statistics(sum(steps[: min(entry["step"], 8)]))
        assert entry["codebook_usage_epoch"] == pytest.approx(epoch["codebook_usage"])


def test_positions_and_cls_tokens_do_not_decay(tmp_path):
    trainer = tiny_vqkd_trainer(tmp_path)
    decayed = trainer.get_decay_parameter_names(trainer.model)
    parameters = dict(trainer.model.named_parameters())
    spared = {name for name in parameters if name not in decayed and parameters[name].ndim > 1}
    assert spared == {
        f"{part}.embeddings.{name}" for part in ("encoder", "decoder") for name in ("cls_token", "position_embeddings")
    }
    assert all(parameters[name].ndim > 1 for name in decayed)


# Evaluation


def test_an_evaluation_is_the_mean_over_images_and_changes_nothing(tmp_path):
    images = eval_images()
    trainer = tiny_vqkd_trainer(tmp_path, eval_dataset=images, per_device_eval_batch_size=2)
    with pytest.raises(ValueError, match="no codebook yet"):
        trainer.evaluate()
    trainer.train()
    before = copy.deepcopy(trainer.model.state_dict())
    metrics = trainer.evaluate()
    assert trainer.model.training
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name

    pixels = torch.stack([torch.from_numpy(np.array(row["image"])).permute(2, 0, 1) for row in images])
    model = trainer.model.eval()
    with torch.no_grad():
        outputs = model(pixels / 127.5 - 1, labels=tiny_teacher()(pixels / 255))
    for name in ("loss", "loss_feature", "loss_quantizer"):
        assert metrics[f"eval_{name}"] == pytest.approx(outputs[name].item(), rel=1e-5)
    for name, value in code_statistics(outputs.codes.flatten().bincount(minlength=16)).items():
        assert metrics[f"eval_{name}"] == pytest.approx(value), name


def test_fewer_images_than_processes():
    images = eval_images(3)
    parts = [part_of_process(images, index, 2) for index in range(2)]
    assert [row for part in parts for row in part["image"]] == images["image"] and len(parts[1]) == 2
    assert [len(part_of_process(eval_images(1), index, 2)) for index in range(2)] == [0, 1]


def test_an_evaluation_on_one_image_by_two_processes(tmp_path):
    """The process without an image takes part in the sums."""
    trainer = tiny_vqkd_trainer(tmp_path)
    trainer.train()
    expected = trainer.measure(eval_images(1))
    sums = []
    for index in range(2):
        reduced = []
        trainer.accelerator = SimpleNamespace(
            num_processes=2,
            process_index=index,
            is_main_process=index == 0,
            unwrap_model=lambda model, **_: model,
            reduce=lambda value, _, reduced=reduced: reduced.append(value.clone()) or value + 1,
        )
        trainer.measure(eval_images(1))
        sums.append(reduced)
    assert not any(value.any() for value in sums[0])
    assert sums[1][0][0].item() == pytest.approx(expected["loss"]) and sums[1][1].sum() == 4


def test_a_run_with_evaluations_is_the_run_without(tmp_path):
    plain = tiny_vqkd_trainer(tmp_path / "plain")
    plain.train()
    # K-means draws random numbers: each run begins where its trainer, which seeds them, is made.
    options = {"eval_strategy": "steps", "eval_steps": 1}
    evaluated = tiny_vqkd_trainer(tmp_path / "evaluated", eval_dataset=eval_images(), **options)
    evaluated.train()
    assert sum("eval_perplexity" in entry for entry in evaluated.state.log_history) == 4
    assert losses(evaluated) == losses(plain)
    assert_equal_models(plain, evaluated)


def test_the_best_tokenizer_can_be_kept(tmp_path):
    options = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1}
    trainer = tiny_vqkd_trainer(tmp_path, eval_dataset=eval_images(), metric_for_best_model="loss", **options)
    trainer.train()
    evaluations = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    assert trainer.state.best_metric == min(evaluations.values()) == evaluations[trainer.state.best_global_step]
    with pytest.raises(ValueError, match="metric_for_best_model must be one of loss, codebook_usage, perplexity"):
        tiny_vqkd_trainer(tmp_path, metric_for_best_model="knn_20_top1", **options)


# Resuming


@pytest.mark.parametrize("config", [{}, {"revive_after_steps": 1}], ids=["kmeans", "revival"])
def test_resume_equals_an_uninterrupted_run(tmp_path, config):
    """Within the first epoch and after it (8 steps)."""
    whole = tiny_vqkd_trainer(tmp_path / "whole", config, max_steps=10, **SAVE)
    whole.train()
    assert bool(whole.model.quantizer.initialized)
    for step in (3, 8):
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / str(step) / f"checkpoint-{step}")
        cut = tiny_vqkd_trainer(tmp_path / str(step), config, max_steps=10)
        cut.train(resume_from_checkpoint=True)
        assert losses(cut) == losses(whole)
        assert_equal_models(whole, cut)


def test_a_checkpoint_names_its_teacher_and_is_not_resumed_with_another(tmp_path):
    trainer = tiny_vqkd_trainer(tmp_path, max_steps=2, **SAVE)
    trainer.train()
    folder = tmp_path / "checkpoint-2" / "teacher"
    assert [file.name for file in folder.iterdir()] == ["reference.json"]
    other = tiny_vqkd_trainer(tmp_path, teacher=tiny_teacher(1), **SAVE)
    with pytest.raises(ValueError, match="target network vit-0, and this run's, vit-1, has other weights"):
        other.train(resume_from_checkpoint=True)
    # Training that goes on elsewhere from these weights asks the same, and a model without a reference nothing.
    with pytest.raises(ValueError, match="target network vit-0"):
        other.continue_target(str(tmp_path / "checkpoint-2"))
    trainer.continue_target(str(tmp_path / "checkpoint-2"))
    (folder / "reference.json").unlink()
    other.continue_target(str(tmp_path / "checkpoint-2"))
    with pytest.raises(FileNotFoundError, match=r"checkpoint-2 has no teacher/reference.json"):
        trainer.load_target(str(tmp_path / "checkpoint-2"))
    with pytest.raises(FileNotFoundError, match=r"has lost teacher/reference.json"):
        trainer.train(resume_from_checkpoint=True)


# What does not fit together


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"12 numbers on a grid of \(2, 2\), the model predicts 10 \(target_dim\)"):
        tiny_vqkd_trainer(tmp_path, {"target_dim": 10})
    with pytest.raises(ValueError, match=r"12 numbers on a grid of \(2, 2\).*on \(4, 4\)"):
        tiny_vqkd_trainer(tmp_path, {"patch_size": 2})
    trainer = tiny_vqkd_trainer(tmp_path)
    with pytest.raises(ValueError, match="an evaluation needs eval_dataset"):
        trainer.evaluate()
