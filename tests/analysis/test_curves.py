"""The curves show exactly what was logged."""

import math
from pathlib import Path

import pytest
from PIL import Image

from hf_mim.analysis.curves import plot_curves


def lines(figure) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """{panel title: {line label: [(x, y), ...]}}"""
    return {
        axes.get_title(): {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}
        for axes in figure.axes
    }


def test_panels_hold_the_logged_values(tmp_path: Path):
    history = [
        {
            "loss": 5.0,
            "loss_cls": 3.0,
            "loss_patch": 2.0,
            "learning_rate": 0.1,
            "rankme": 20.5,
            "epoch": 0.5,
            "step": 5,
        },
        {"eval_knn_100_top1": 40.0, "eval_knn_20_top1": 50.0, "eval_knn_20_top5": 90.0, "eval_runtime": 1, "step": 10},
        {"loss": 4.0, "loss_cls": 2.5, "loss_patch": 1.5, "learning_rate": 0.2, "target_entropy": 3.0, "step": 10},
        {"feature_std": 0.5, "prototypes_used": 17, "step": 15},
        {"train_loss": 4.5, "train_runtime": 3.0, "step": 15},
    ]
    figure = plot_curves(history, tmp_path / "curves.png")
    assert lines(figure) == {
        "loss": {
            "all": [(5, 5.0), (10, 4.0)],
            "CLS token": [(5, 3.0), (10, 2.5)],
            "patches": [(5, 2.0), (10, 1.5)],
        },
        "k-NN top-1 (%)": {"20-NN": [(10, 50.0)], "100-NN": [(10, 40.0)]},
        "learning rate": {"learning rate": [(5, 0.1), (10, 0.2)]},
        "target entropy": {"target entropy": [(10, 3.0)]},
        "feature spread (0 = collapsed, 1 = isotropic)": {"feature std": [(15, 0.5)]},
        "effective rank of the features (RankMe)": {"rankme": [(5, 20.5)]},
        "prototypes used": {"prototypes used": [(15, 17)]},
    }
    assert list(lines(figure)["k-NN top-1 (%)"]) == ["20-NN", "100-NN"]
    # One line needs no legend, and a single value is written beside its dot.
    legends = {axes.get_title(): axes.get_legend() for axes in figure.axes}
    assert legends["learning rate"] is None
    assert [text.get_text() for text in legends["k-NN top-1 (%)"].get_texts()] == ["20-NN", "100-NN"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["50", "40"]
    for axes in figure.axes:
        assert all(tick == int(tick) for tick in axes.get_xticks())


def test_stages_are_divided(tmp_path: Path):
    history = [
        {"loss": 3.0, "stage": 1, "step": 10},
        {"loss": 2.0, "stage": 1, "step": 20},
        {"eval_knn_20_top1": 50.0, "step": 25},
        {"loss": 3.0, "stage": 2, "step": 30},
        {"loss": 2.0, "stage": 3, "step": 40},
    ]
    figure = plot_curves(history, tmp_path / "curves.png")
    assert [axes.get_title() for axes in figure.axes] == ["loss", "k-NN top-1 (%)"]
    for axes in figure.axes:
        dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
        assert [list(line.get_xdata()) for line in dashed] == [[25, 25], [30, 30]]
        assert all(line.get_label().startswith("_") for line in dashed)


def test_panels_of_tokenizers_and_of_training_on_their_codes(tmp_path: Path):
    history = [
        {"loss": 2.0, "loss_feature": 1.5, "loss_quantizer": 0.5, "dead_codes": 3, "step": 5},
        {"codebook_usage": 0.5, "codebook_usage_epoch": 0.75, "perplexity": 20.0, "step": 5},
        {"eval_loss": 2.5, "eval_loss_feature": 2.0, "eval_codebook_usage": 0.6, "eval_perplexity": 30.0, "step": 6},
        {"accuracy_mim": 0.2, "accuracy_mim_cls": 0.1, "majority_code": 0.05, "eval_majority_code": 0.1, "step": 7},
        {"codes_used": 0.4, "step": 7},
    ]
    assert lines(plot_curves(history, tmp_path / "curves.png")) == {
        "loss": {"all": [(5, 2.0)], "feature": [(5, 1.5)], "quantizer": [(5, 0.5)]},
        "loss on held-out images": {"all": [(6, 2.5)], "feature": [(6, 2.0)]},
        "accuracy, and share of the most frequent code": {
            "final layer": [(7, 0.2)],
            "CLS head": [(7, 0.1)],
            "most frequent code": [(7, 0.05)],
        },
        "share of the codes in use": {
            "training, a batch": [(5, 0.5)],
            "training, an epoch": [(5, 0.75)],
            "targets": [(7, 0.4)],
            "held-out images": [(6, 0.6)],
        },
        "perplexity of the codes": {"training": [(5, 20.0)], "held-out images": [(6, 30.0)]},
    }


def test_panels_without_data_are_left_out(tmp_path: Path):
    figure = plot_curves([{"loss": 1.0, "step": 1}, {"loss": math.nan, "step": 2}], tmp_path / "curves.png")
    assert list(lines(figure)) == ["loss"]
    assert figure.axes[0].get_xlabel() == "step"


def test_the_picture_replaces_the_old_one_whole(tmp_path: Path):
    path = tmp_path / "new" / "curves.png"
    plot_curves([{"loss": 1.0, "step": 1}], path)
    plot_curves([{"loss": 1.0, "learning_rate": 0.1, "step": 1}], path)
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]
    with Image.open(path) as picture:
        assert picture.width > 2 * picture.height  # two panels side by side
    with pytest.raises(ValueError, match="Format 'unknown'"):
        plot_curves([{"loss": 1.0, "step": 1}], tmp_path / "new" / "curves.unknown")
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("history", [[], [{"train_runtime": 3.0, "step": 5}], [{"loss": 1.0}]])
def test_nothing_to_draw_is_an_error(tmp_path: Path, history):
    with pytest.raises(ValueError, match="curves.png: the log has no loss"):
        plot_curves(history, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())
