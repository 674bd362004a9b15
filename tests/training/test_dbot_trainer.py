"""DBotTrainer on noise: what happens where a stage begins, who teaches, and exact resumes around the boundary."""

import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    ResNetConfig,
    ResNetModel,
    TrainerCallback,
    ViTConfig,
    ViTModel,
)

from hf_mim import DBotCollator, DBotConfig, DBotForPreTraining, DBotImageProcessorPil, DBotModel
from hf_mim.data.images import decode_image
from hf_mim.training.dbot_arguments import DBotTrainingArguments
from hf_mim.training.dbot_trainer import DBotTrainer
from hf_mim.training.schedules import staged_cosine_schedule
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
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(4)]))
    trainer.model.dbot.eval()
    with torch.no_grad():
        states = trainer.model.dbot(inputs["pixel_values"], output_hidden_states=True)
    expected = states.hidden_states[-1] if feature == "raw" else states.last_hidden_state
    torch.testing.assert_close(trainer.compute_targets(inputs)["labels"], expected, rtol=1e-5, atol=1e-5)
    assert inputs.keys() == {"pixel_values", "noise"}


def labelled_images() -> datasets.Dataset:
    """Twelve dark or light pictures."""
    rows, generator = [], np.random.default_rng(0)
    for i in range(12):
        buffer = io.BytesIO()
        pixels = np.clip(generator.normal(60 + 130 * (i % 2), 30, (20, 20, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": rows, "label": [i % 2 for i in range(12)]}, features=features)


@pytest.mark.parametrize("eval_strategy", ["no", "epoch"])
def test_encoders_of_the_stages_are_kept_with_their_evaluation(tmp_path, eval_strategy):
    images = labelled_images()
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
        processor = AutoImageProcessor.from_pretrained(folder)
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
    images = labelled_images()
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


# Teachers from elsewhere


def vit_teacher(cls_token: bool = True, seed: int = 0, **options) -> FeatureTeacher:
    """A ViT of patch size 2."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24} | options
    vit = ViTModel(ViTConfig(**sizes, image_size=8, patch_size=2, initializer_range=0.2), add_pooling_layer=False)
    return FeatureTeacher(vit, (4, 4), [0.5] * 3, [0.5] * 3, "raw", cls_token=cls_token, name=f"vit-{seed}")


def test_a_teacher_of_other_width_patch_size_and_normalisation(tmp_path):
    teacher = vit_teacher()
    trainer = make_trainer(tmp_path, teacher, {"target_dim": 12}, stage_epochs=None, num_train_epochs=2)
    samples = [trainer.train_dataset[i] for i in range(4)]
    inputs = trainer._prepare_inputs(trainer.data_collator(samples))
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
    trainer.save_target(str(tmp_path / "model" / "teacher"), trainer.whole_target())
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
        ({"max_steps": 4}, "stage 2 would begin with step 4, the run has only 4"),
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
