"""DBotTrainer on noise: what happens where a stage begins, and exact resumes around the boundary."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, ViTModel

from hf_mim import DBotConfig, DBotForPreTraining, DBotModel
from hf_mim.data.images import decode_image
from hf_mim.training.schedules import staged_cosine_schedule
from tests.testing.tiny_dbot import (
    PROCESSOR,
    SIZES,
    Noise,
    Watcher,
    assert_same_weights,
    copied,
    encoder_of,
    labeled_images,
    logs_of,
    make_trainer,
)


# The switch


@pytest.mark.parametrize("reset", [False, True])
def test_what_a_switch_changes(tmp_path, reset):
    trainer = make_trainer(tmp_path, reset_optimizer_at_stage=reset)
    seen = Watcher(trainer).seen
    initial = copied(trainer.model)
    trainer.train()
    assert_same_weights(seen[3]["teacher"], encoder_of(initial))
    assert_same_weights(seen[4]["teacher"], encoder_of(seen[3]["end"]))
    assert_same_weights(copied(trainer.teacher), seen[4]["teacher"])

    kept = "dbot.embeddings.patch_embeddings.projection.bias"
    expected = DBotForPreTraining(trainer.model.config)
    torch.manual_seed(int(np.random.SeedSequence((42, 1)).generate_state(1)[0]))
    expected.reinitialize()
    weights = copied(expected) | {kept: seen[3]["end"][kept]}
    assert_same_weights(seen[4]["begin"], weights)
    # Without a warm-up that has begun nothing moves: the first learning rate of a stage is 0.
    assert_same_weights(seen[4]["end"], weights)
    assert not torch.equal(seen[5]["end"]["dbot.embeddings.cls_token"], weights["dbot.embeddings.cls_token"])
    assert [seen[step]["counters"] for step in (3, 4, 7)] == [{4}, {1 if reset else 5}, {4 if reset else 8}]
    assert [log["stage"] for log in logs_of(trainer)] == [1] * 4 + [2] * 4
    assert [log["learning_rate"] for log in logs_of(trainer)][::4] == [0, 0]


def test_a_switch_does_not_depend_on_random_numbers_nor_change_them(tmp_path):
    found = []
    for seed in (1, 2):
        trainer = make_trainer(tmp_path, config={"drop_path_rate": 0.0}, stage_teacher_depth=[2, 4])
        seen = Watcher(trainer).seen
        plain_before_step, states = trainer.before_step, []

        def before_step(trainer=trainer, plain=plain_before_step, states=states, seed=seed):
            if trainer.state.global_step == 4:
                torch.manual_seed(seed)
            states.append(torch.get_rng_state())
            plain()
            assert torch.equal(torch.get_rng_state(), states[-1])

        trainer.before_step = before_step
        trainer.train()
        assert len(states) == 8 and trainer.stage == 1
        found.append(seen[4])
    assert not torch.equal(found[0]["random"], found[1]["random"])
    assert_same_weights(found[0]["begin"], found[1]["begin"])
    # Two of its four blocks are drawn.
    assert_same_weights(found[0]["teacher"], found[1]["teacher"])


@pytest.mark.parametrize("depths", [[0, 2], [1, 4], [3, 0]])
def test_depth_of_the_teachers(tmp_path, depths):
    trainer = make_trainer(tmp_path, stage_teacher_depth=depths, save_strategy="steps", save_steps=4)
    seen = Watcher(trainer).seen
    initial = copied(trainer.model)
    trainer.train()
    for step, source, depth in ((0, initial, depths[0]), (4, seen[3]["end"], depths[1])):
        weights, teacher = encoder_of(source), seen[step]["teacher"]
        blocks = {int(name.split(".")[1]) for name in teacher if name.startswith("layers.")}
        assert blocks == set(range(depth))
        shared = {name for name in weights if not name.startswith("layers.") or int(name.split(".")[1]) < depth}
        assert_same_weights({name: weights[name] for name in shared}, {name: teacher[name] for name in shared})
    saved = DBotModel.from_pretrained(tmp_path / "checkpoint-8" / "teacher")
    assert saved.config.num_hidden_layers == depths[1] and saved.config.drop_path_rate == 0
    assert_same_weights(saved.state_dict(), copied(trainer.teacher))


@pytest.mark.parametrize("feature", ["raw", "normed"])
def test_the_teacher_sees_the_whole_image(tmp_path, feature):
    trainer = make_trainer(tmp_path, teacher_feature=feature)
    inputs = trainer.prepare_batch(trainer.data_collator([trainer.train_dataset[i] for i in range(4)]))
    trainer.model.dbot.eval()
    with torch.no_grad():
        states = trainer.model.dbot(inputs["pixel_values"], output_hidden_states=True)
    expected = states.hidden_states[-1] if feature == "raw" else states.last_hidden_state
    torch.testing.assert_close(trainer.compute_targets(inputs)["labels"], expected, rtol=1e-5, atol=1e-5)
    assert inputs.keys() == {"pixel_values", "noise"}


@pytest.mark.parametrize("eval_strategy", ["no", "epoch"])
def test_encoders_of_the_stages_are_kept_with_their_evaluation(tmp_path, eval_strategy):
    images = labeled_images()
    trainer = make_trainer(
        tmp_path, eval_dataset=images, bank_dataset=images, eval_strategy=eval_strategy, knn_k=[1, 3]
    )
    seen = Watcher(trainer).seen
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_knn_3_top1" in entry]
    assert [entry["step"] for entry in evaluations] == ([4, 8] if eval_strategy == "no" else [2, 4, 6, 8])
    pixels = PROCESSOR([decode_image(image) for image in images["image"]], return_tensors="pt")["pixel_values"]
    for number, step in ((1, 4), (2, 8)):
        folder = tmp_path / f"stage-{number}"
        native = AutoModel.from_pretrained(folder)
        assert isinstance(native, ViTModel)
        ours = DBotModel(trainer.model.config).eval()
        ours.load_state_dict(encoder_of(seen[step - 1]["end"]))
        with torch.no_grad():
            expected, found = (model(pixels).last_hidden_state for model in (ours, native))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        assert processor.crop_size == {"height": 16, "width": 16}
        facts = json.loads((folder / "metrics.json").read_text())
        (logged,) = [entry for entry in evaluations if entry["step"] == step]
        assert facts["stage"] == number and facts["steps"] == step
        assert {k: v for k, v in facts.items() if "knn" in k} == {k: v for k, v in logged.items() if "knn" in k}
    assert facts["eval_knn_1_top1"] == 100


def test_one_stage_is_kept_nowhere_else(tmp_path):
    trainer = make_trainer(tmp_path, stage_epochs=None, num_train_epochs=2)
    trainer.train()
    assert [log["stage"] for log in logs_of(trainer)] == [1] * 4 and not list(tmp_path.glob("stage-*"))
    assert trainer.deployable_encoder() is trainer.model.dbot


# Exact runs


@pytest.mark.parametrize("step", [3, 4, 5])
def test_resumed_around_the_boundary_equals_uninterrupted(tmp_path, step):
    options = {"save_strategy": "steps", "save_steps": 1, "stage_teacher_depth": [2, 3], "seed": 7}
    images = labeled_images()
    options |= {"eval_dataset": images, "bank_dataset": images}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    checkpoint = tmp_path / "cut" / f"checkpoint-{step}"
    shutil.copytree(tmp_path / "whole" / checkpoint.name, checkpoint)
    resumed = make_trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint="latest")
    assert logs_of(resumed) == logs_of(whole)
    assert_same_weights(copied(resumed.model), copied(whole.model))
    assert_same_weights(copied(resumed.teacher), copied(whole.teacher))
    stages = ("stage-1", "stage-2") if step <= 4 else ("stage-2",)
    for stage in stages:
        encoders = [load_file(tmp_path / run / stage / "model.safetensors") for run in ("whole", "cut")]
        assert_same_weights(*encoders)
        metrics = [json.loads((tmp_path / run / stage / "metrics.json").read_text()) for run in ("whole", "cut")]
        assert metrics[0].keys() == metrics[1].keys() and "eval_knn_10_top1" in metrics[0]


def test_accumulated_batches_give_the_same_run(tmp_path):
    whole = make_trainer(tmp_path / "whole", config={"drop_path_rate": 0.0})
    halves = make_trainer(
        tmp_path / "halves",
        config={"drop_path_rate": 0.0},
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    for trainer in (whole, halves):
        trainer.train()
    for one, other in zip(logs_of(whole), logs_of(halves), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_learning_rate_of_every_stage(dbot_golden):
    golden = dbot_golden("lr_schedule")
    cases = {
        "pretrain_2stage_800": (2.4e-3, 0.0, 40, (0, 800, 1600)),
        "pretrain_3stage_uneven": (1e-3, 1e-5, 5, (0, 20, 60, 100)),
        "finetune_base": (1.2e-3, 1e-6, 5, (0, 100)),
        "finetune_large": (1.2e-3, 1e-6, 5, (0, 50)),
        "finetune_huge448": (2.8e-4, 1e-6, 2, (0, 10)),
    }
    for name, (peak, final, warmup, boundaries) in cases.items():
        times = golden[f"{name}.t"].tolist()
        rates = [staged_cosine_schedule(time, peak, final, boundaries, warmup) for time in times]
        assert rates == pytest.approx(golden[f"{name}.lr"].flatten().tolist(), abs=1e-12)
    assert staged_cosine_schedule(100, 1e-3, 1e-5, (0, 20, 100)) == 1e-5
    assert staged_cosine_schedule(20, 1e-3, 1e-5, (0, 20, 100)) == 1e-3


def test_weight_decay_spares_biases_and_norms_only(tmp_path):
    decayed = make_trainer(tmp_path).get_decay_parameter_names(DBotForPreTraining(DBotConfig(**SIZES)))
    assert {"dbot.embeddings.cls_token", "decoder.mask_token", "dbot.layers.0.mlp.fc1.weight"} <= set(decayed)
    assert not any(name.endswith("bias") or "layernorm" in name for name in decayed)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([Noise()[i] for i in range(16)] * 100)


def test_stages_of_a_stream(tmp_path):
    trainer = make_trainer(tmp_path, stage_epochs=[1, 2], max_steps=9)
    trainer.train_dataset = Stream()
    trainer.train()
    assert trainer.stage_boundaries == [0, 3, 9]
    assert [log["stage"] for log in logs_of(trainer)] == [1] * 3 + [2] * 6
