"""Beitv2Trainer on noise: who sees what, what does not fit, and an exact resume."""

import json

import pytest
import torch

from hf_mim.training.beitv2_arguments import Beitv2TrainingArguments
from hf_mim.training.beitv2_trainer import Beitv2Trainer
from tests.testing.tiny_beitv2 import make_tokenizer, make_trainer


def logs_of(trainer: Beitv2Trainer) -> list[dict]:
    timing = ("epoch", "images_per_second", "data_wait")
    return [
        {k: v for k, v in entry.items() if not k.startswith(timing) and "second" not in k}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


@pytest.mark.parametrize("second_size, patch_size", [(None, 4), (32, 8)])
def test_each_view_is_normalized_for_its_network(tmp_path, second_size, patch_size):
    tokenizer = make_tokenizer(patch_size=patch_size, image_size=4 * patch_size)
    trainer = make_trainer(tmp_path, tokenizer, second_size)
    samples = [trainer.train_dataset[i] for i in range(8)]
    inputs = trainer.prepare_batch(trainer.data_collator(samples))
    for name, views, mean, std in (
        ("pixel_values", "view", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("target_pixel_values", "view" if second_size is None else "second_view", [0.5] * 3, [0.5] * 3),
    ):
        pixels = torch.stack([sample[views] for sample in samples]) / 255
        expected = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(inputs[name], expected)

    views = inputs["target_pixel_values"]
    targets = trainer.compute_targets(inputs)
    assert torch.equal(targets["labels"], tokenizer.encode(views))
    assert inputs.keys() == {"pixel_values", "bool_masked_pos", "mask_indices"}
    # The labels of masked patches are what is counted.
    masked = targets["labels"][inputs["bool_masked_pos"]]
    logs = trainer.collect_logs()
    assert logs["codes_used"] == len(masked.unique()) / 12
    assert logs["majority_code"] == pytest.approx(masked.bincount().max().item() / len(masked))
    trainer.train()
    assert len(logs_of(trainer)) == 4


def test_normalized_views_are_put_in_the_tokenizers_scale(tmp_path):
    trainer = make_trainer(tmp_path)
    raw = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    expected = trainer.prepare_batch(dict(raw))
    given = {**raw, "pixel_values": expected["pixel_values"].clone()}
    inputs = trainer.prepare_batch(dict(given))
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    torch.testing.assert_close(inputs["target_pixel_values"], expected["target_pixel_values"], rtol=0, atol=1e-5)
    own = torch.rand(8, 3, 16, 16)
    assert torch.equal(trainer.prepare_batch(given | {"target_pixel_values": own})["target_pixel_values"], own)
    trainer.processing_class = None
    with pytest.raises(ValueError, match="normalized pixel_values need processing_class"):
        trainer.prepare_batch(given)


def test_what_is_logged_and_deployed(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2)
    before = {name: value.clone() for name, value in trainer.teacher.state_dict().items()}
    trainer.train()
    for log in logs_of(trainer):
        assert log["loss"] == pytest.approx(log["loss_mim"] + log["loss_mim_cls"], rel=1e-6)
        assert 0 <= log["accuracy_mim"] <= 1 and 0 <= log["accuracy_mim_cls"] <= 1
        assert 1 / 12 <= log["majority_code"] <= 1 and 1 / 12 <= log["codes_used"] <= 1
    assert trainer.deployable_encoder() is trainer.model.beitv2
    for name, value in trainer.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert "beitv2.embeddings.mask_token" in decayed and "beitv2.embeddings.cls_token" not in decayed
    assert "beitv2.shared_position_bias.relative_position_bias_table" in decayed


def test_without_the_head_branch(tmp_path):
    trainer = make_trainer(tmp_path, config={"head_layers": 0}, max_steps=1)
    trainer.train()
    (log,) = logs_of(trainer)
    assert log["loss"] == log["loss_mim"] and "accuracy_mim" in log and "accuracy_mim_cls" not in log


def test_accumulated_batches_give_the_same_run(tmp_path):
    whole = make_trainer(tmp_path)
    halves = make_trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for trainer in (whole, halves):
        trainer.train()
    for one, other in zip(logs_of(whole), logs_of(halves), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_resumed_equals_uninterrupted(tmp_path):
    whole = make_trainer(tmp_path / "whole", save_strategy="steps", save_steps=2)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    reference = json.loads((checkpoint / "teacher" / "reference.json").read_text())
    assert reference["name"] == "tokenizer" and len(reference["sha256"]) == 64
    assert not list((checkpoint / "teacher").glob("*.safetensors"))
    resumed = make_trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert logs_of(resumed) == logs_of(whole)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    with pytest.raises(ValueError, match="was trained with the target network tokenizer"):
        make_trainer(tmp_path / "other", make_tokenizer(seed=5)).train(resume_from_checkpoint=str(checkpoint))


def test_a_tokenizer_that_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="predicts one of 12 codes, the tokenizer has 13"):
        make_trainer(tmp_path, make_tokenizer(codebook_size=13))
    with pytest.raises(ValueError, match="the tokenizer has no codebook"):
        make_trainer(tmp_path, make_tokenizer(kmeans_init=True))
    trainer = make_trainer(tmp_path, make_tokenizer(patch_size=8))
    with pytest.raises(ValueError, match=r"4x4 patches of 4 pixels, the tokenizer 2x2 of 8: .* \[32, 32\] pixels"):
        trainer.train()


def test_learning_rate(tmp_path):
    def rate(**options) -> float:
        arguments = Beitv2TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=128, use_cpu=True, **options
        )
        return arguments.learning_rate

    assert rate() == 1.5e-3
    assert rate(base_learning_rate=1e-3) == pytest.approx(5e-4)
    assert rate(base_learning_rate=1e-3, learning_rate=1e-2) == 1e-2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"min_crop_scale": 0.0}, r"min_crop_scale must lie in \(0, 1\]"),
        ({"second_interpolation": "nearest"}, "second_interpolation must be 'bicubic' or 'lanczos'"),
    ],
)
def test_options_that_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Beitv2TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
