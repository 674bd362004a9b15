"""The verdict on a run, and the warning while its features get worse."""

import json
from types import SimpleNamespace

import pytest

from hf_mim.training.callbacks.knn_watch import KnnWatch, shown_accuracy, smallest_difference
from hf_mim.training.pretrain.verdict import judge
from hf_mim.training.run_pretrain import main
from tests.testing.tiny_training import TINY


def facts(start=None, end=None, pixels=None, images=1000, **others):
    accuracies = {"initial_knn_20_top1": start, "eval_knn_20_top1": end, "raw_pixels_knn_20_top1": pixels}
    return {
        "eval_images": images,
        **{name: value for name, value in accuracies.items() if value is not None},
        **others,
    }


@pytest.mark.parametrize(
    ("given", "outcome", "text"),
    [
        (
            facts(60, 80, 50),
            "learned",
            "The run learned. 20-NN accuracy on 1,000 images: 80.0 % (random initialization 60.0 %, raw pixels 50.0 %)"
            ".",
        ),
        (facts(60, 80), "learned", "(random initialization 60.0 %)."),
        (facts(60, 70, 80), "learned", "The run learned, but raw pixels are still better."),
        (facts(60, 62, 50), "did not learn", "The run did not learn: the difference is within chance (±4.4)."),
        (facts(60, 70, 50, images=30), "did not learn", "within chance (±24.5)."),
        (facts(60, 50, 55), "got worse", "The features got worse."),
        (facts(60, 50, started_from="org/model"), "got worse", "50.0 % (org/model 60.0 %)."),
        (facts(None, 50, 40), "unknown", "The start was not evaluated, so there is no verdict."),
        (facts(100, 100, images=12), "did not learn", "within chance"),
    ],
)
def test_verdicts_from_labels(given, outcome, text):
    verdict = judge(given, [])
    assert verdict["outcome"] == outcome and text in verdict["text"]


@pytest.mark.parametrize(
    ("log", "outcome", "text"),
    [
        (
            [{"loss": 5.0}, {"loss": 4.0}],
            "unknown",
            "The loss on the training images fell from 5.000 to 4.000. What the",
        ),
        ([{"loss": 4.0}, {"loss": 5.0}], "did not learn", "The loss on the training images rose from 4.000 to 5.000."),
        (
            [{"eval_loss_feature": 0.5}, {"loss": 1.0}, {"eval_loss_feature": 0.3}],
            "learned",
            "fell from 0.500 to 0.300",
        ),
        ([{"eval_loss_feature": 0.3}, {"eval_loss_feature": 0.5}], "got worse", "rose from 0.300 to 0.500."),
        ([{"loss": 4.0}], "unknown", "The run was too short for a verdict."),
    ],
)
def test_verdicts_without_labels(log, outcome, text):
    verdict = judge({"eval_images": None}, log)
    assert verdict["outcome"] == outcome and text in verdict["text"]


def test_the_smallest_difference_is_two_standard_errors():
    assert smallest_difference(50, 50, 200) == pytest.approx(100 * 2 * (2 * 0.25 / 200) ** 0.5)
    assert smallest_difference(100, 100, 10) > 0
    assert shown_accuracy(
        {"eval_knn_10_top1": 1.0, "eval_knn_20_top1": 2.0, "eval_knn_200_top1": 3.0}, "eval_knn_"
    ) == (
        20,
        2.0,
    )
    assert (
        shown_accuracy({"eval_knn_100_top1": 3.0}, "eval_knn_") == (100, 3.0) and shown_accuracy({}, "eval_") is None
    )


def test_falling_accuracy_warns_once(caplog):
    watch = KnnWatch(1000)
    history = []
    for step, accuracy in enumerate([70.0, 69.0, 60.0, 50.0]):
        metrics = {"eval_knn_20_top1": accuracy}
        history.append(metrics | {"step": step})
        watch.on_evaluate(
            None, SimpleNamespace(log_history=history, is_world_process_zero=True, global_step=step), None, metrics
        )
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("step 2: 20-NN accuracy has fallen from 70.0 to 60.0 %, by more than chance")


def test_a_run_on_own_images_is_judged(pictures, tmp_path, capsys):
    """Start, end and raw pixels are measured without being asked for, and change no number of the training."""
    options = ["--train_dir", str(pictures), "--eval_split", "test", "--max_steps", "4"]
    judged, plain = tmp_path / "judged", tmp_path / "plain"
    main([*TINY, *options, "--eval_strategy", "steps", "--eval_steps", "2", "--output_dir", str(judged)])
    found = json.loads((judged / "metrics.json").read_text())
    for name in ("initial", "eval", "raw_pixels"):
        assert 0 <= found[f"{name}_knn_3_top1"] <= 100
    text = found["verdict"]["text"]
    assert "random initialization" in text and "raw pixels" in text and "on 8 images" in text
    assert text in capsys.readouterr().out and f"**{text}**" in (judged / "README.md").read_text()
    main([*TINY, *options[:2], *options[4:], "--output_dir", str(plain)])
    assert json.loads((plain / "metrics.json").read_text())["final_loss"] == found["final_loss"]
    assert json.loads((plain / "metrics.json").read_text())["verdict"]["text"].startswith("The loss on the training")
