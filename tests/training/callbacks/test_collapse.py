"""The collapse alarm, provoked in real runs and fed with made-up logs."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from hf_mim.training.callbacks.collapse import ADVICE, CollapseCallback
from tests.testing.tiny_beitv2 import make_tokenizer, make_trainer
from tests.testing.tiny_training import Noise, tiny_trainer, tiny_vqkd_trainer


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "hf_mim.training.callbacks.collapse"]


TEMPERATURES = ("warmup_teacher_temp", "teacher_temp", "warmup_teacher_patch_temp", "teacher_patch_temp")


@pytest.mark.parametrize(
    ("options", "contrast", "message"),
    [
        (
            {},
            0.0,
            r"collapse of the features\? feature_std .* rankme 1\.[0-4], since step 2: .* check that the images",
        ),
        ({"learning_rate": 10.0}, 1.0, r"collapse of the features\? .* Lower the learning rate"),
        (
            dict.fromkeys(TEMPERATURES, 10.0),
            1.0,
            r"collapse of the uniform targets\? target_entropy 2\.772\d+ of at most 2\.77259.* Lower --teacher_temp",
        ),
        (
            dict.fromkeys(TEMPERATURES, 0.002)
            | {"center_momentum": 1.0, "patch_center_momentum": 1.0, "learning_rate": 0.1},
            1.0,
            r"collapse of the few prototypes\? 1 of 16 prototypes used by 16 images, .* or use --target sinkhorn",
        ),
    ],
    ids=["constant images", "learning rate", "hot teacher", "no center"],
)
def test_provoked(tmp_path, caplog, options, contrast, message):
    dataset = Noise(contrast=contrast)
    trainer = tiny_trainer(tmp_path, dataset, max_steps=60, logging_steps=2, **{"momentum_teacher": 0.9} | options)
    trainer.train()
    [warning] = [text for text in warnings_of(caplog) if message.split(r"\?")[0] in text]
    assert re.search(message, warning), warning


@pytest.mark.parametrize("target", ["centering", "sinkhorn"])
@pytest.mark.parametrize("linear_init", ["xavier_uniform", "trunc_normal"])
def test_healthy_runs_are_left_in_peace(tmp_path, caplog, target, linear_init):
    trainer = tiny_trainer(tmp_path, config={"linear_init": linear_init}, max_steps=60, logging_steps=2, target=target)
    trainer.train()
    assert warnings_of(caplog) == []


VQKD = dict(max_steps=60, logging_steps=4, config={"initializer_range": 0.2, "codebook_size": 64})


@pytest.mark.parametrize("provocation", ["learning rate", "constant images", None])
def test_tokenizers(tmp_path, caplog, provocation):
    trainer = tiny_vqkd_trainer(tmp_path, **VQKD, learning_rate=3.0 if provocation == "learning rate" else 1e-3)
    if provocation == "constant images":
        trainer.train_dataset = [torch.full((3, 8, 8), 128, dtype=torch.uint8)] * 64
    trainer.train()
    if provocation is None:
        assert warnings_of(caplog) == []
        return
    [warning] = warnings_of(caplog)
    assert re.search(r"codebook\? [1-5] of 64 codes used by 128 patches, perplexity .*revive_after_steps", warning)


@pytest.mark.parametrize("collapsed", [True, False])
def test_training_on_codes(tmp_path, caplog, collapsed):
    tokenizer = make_tokenizer(initializer_range=0.2)
    if collapsed:
        tokenizer.quantizer.codebook[1:] = tokenizer.quantizer.codebook[0]
    make_trainer(tmp_path, tokenizer, max_steps=40, logging_steps=4).train()
    if not collapsed:
        assert warnings_of(caplog) == []
        return
    [warning] = warnings_of(caplog)
    assert re.search(
        r"target codes\? 1 of 12 codes are targets, 100\.0 % of them the same one.*analyze codes", warning
    )


K, CODES = 128, 512
HEALTHY = {
    "loss": 4.0,
    "feature_std": 0.5,
    "rankme": 9.0,
    "target_entropy": 0.5 * math.log(K),
    "prototypes_used": 0.5,
    "codebook_usage": 0.5,
    "perplexity": 100.0,
    "majority_code": 0.2,
    "codes_used": 0.5,
}
SIGNS = {
    "features": {"feature_std": 0.01},
    "uniform targets": {"target_entropy": 0.99999 * math.log(K)},
    "few prototypes": {"target_entropy": 0.01, "prototypes_used": 3 / K},
    "codebook": {"codebook_usage": 20 / CODES},
    "target codes": {"majority_code": 0.95},
}


def feed(
    logs: list[dict], every: int = 10, max_steps: int = 1000, batch: int = 32, codebook_size: int = CODES
) -> None:
    """Gives the callback one log every so many steps."""
    callback = CollapseCallback()
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=max_steps)
    args = SimpleNamespace(train_batch_size=batch, gradient_accumulation_steps=1, world_size=1)
    model = SimpleNamespace(
        config=SimpleNamespace(out_dim=K, codebook_size=codebook_size, vocab_size=CODES, grid_size=(4, 4))
    )
    callback.on_train_begin(args, state, None)
    for log in logs:
        state.global_step += every
        callback.on_log(args, state, None, logs=HEALTHY | log, model=model)
        callback.on_log(args, state, None, logs={"eval_knn_20_top1": 50.0}, model=model)


@pytest.mark.parametrize("kind", SIGNS)
def test_a_sign_must_last(caplog, kind):
    logs = 25 if kind == "uniform targets" else 10
    feed([SIGNS[kind]] * logs + [{}])
    assert warnings_of(caplog) == []
    feed([SIGNS[kind]] * 50)
    [warning] = warnings_of(caplog)
    assert warning.startswith(f"step {10 * logs + 10}: collapse of the {kind}? ") and warning.endswith(ADVICE[kind])


def test_a_second_warning_only_after_recovery(caplog):
    feed([SIGNS["features"]] * 15 + [{}] + [SIGNS["features"]] * 15)
    assert [text.split(":")[0] for text in warnings_of(caplog)] == ["step 110", "step 270"]


def test_kinds_are_told_apart_and_come_together(caplog):
    feed([SIGNS["features"] | SIGNS["uniform targets"]] * 30)
    assert [text.split("?")[0].split("of the ")[1] for text in warnings_of(caplog)] == ["features", "uniform targets"]


def test_patience_has_bounds(caplog):
    feed([SIGNS["features"]] * 2, every=500, max_steps=1000)
    assert warnings_of(caplog) == []  # two logs are too few
    feed([SIGNS["features"]] * 12, every=100, max_steps=1_000_000)
    [warning] = warnings_of(caplog)
    assert warning.startswith("step 1100:")


@pytest.mark.parametrize(
    ("log", "seen"),
    [
        ({"codebook_usage": 20 / CODES}, "20 of 512 codes used by 5120 patches, perplexity 100.0"),
        ({"perplexity": 4.5}, "256 of 512 codes used by 5120 patches, perplexity 4.5"),
        ({"majority_code": 0.957}, "256 of 512 codes are targets, 95.7 % of them the same one"),
        ({"codes_used": 2 / CODES}, "2 of 512 codes are targets, 20.0 % of them the same one"),
    ],
)
def test_what_is_seen_of_codes(caplog, log, seen):
    feed([log] * 30)
    [warning] = warnings_of(caplog)
    assert f"? {seen}, since step 10: " in warning


def test_few_codes_are_enough_for_few_patches_and_small_codebooks(caplog):
    used = {"codebook_usage": 40 / CODES, "perplexity": 6.0}
    feed([used] * 50, batch=2, every=8)  # 256 patches in a log
    assert warnings_of(caplog) == []
    feed([used] * 50)
    assert "40 of 512 codes used by 5120 patches, perplexity 6.0" in warnings_of(caplog)[0]
    caplog.clear()
    feed([{"codebook_usage": 2 / 8, "perplexity": 1.2}] * 50, codebook_size=8)
    assert warnings_of(caplog) == []
    feed([{"codebook_usage": 1 / 8, "perplexity": 1.0}] * 50, codebook_size=8)
    assert "1 of 8 codes used by 5120 patches, perplexity 1.0" in warnings_of(caplog)[0]


def test_what_is_no_collapse(caplog):
    """Sharp targets on many prototypes; few prototypes for few images; too few images to judge."""
    feed([{"target_entropy": 0.01}] * 50)
    feed([{"prototypes_used": 1 / K}] * 50)
    feed([SIGNS["few prototypes"]] * 50, batch=4)  # 3 of 40 images differ
    feed([SIGNS["features"]] * 50, batch=1)
    assert warnings_of(caplog) == []


def test_a_method_without_prototypes(caplog):
    callback = CollapseCallback()
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=30)
    args = SimpleNamespace(train_batch_size=32, gradient_accumulation_steps=1, world_size=1)
    for step in range(1, 10):
        state.global_step = step
        callback.on_log(args, state, None, logs={"loss": 1.0, "rankme": 1.0}, model=SimpleNamespace(config=None))
    [warning] = warnings_of(caplog)
    assert "collapse of the features? feature_std 1 (1 is healthy, 0 collapsed), rankme 1.0, since step 1" in warning
