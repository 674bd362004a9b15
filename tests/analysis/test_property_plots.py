"""The pictures of attention distances and singular values hold their numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_mim.analysis.property_plots import plot_distances, plot_shares


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_distances_of_models_of_several_sizes(tmp_path: Path):
    random = np.random.default_rng(0)
    distances = {"small": random.uniform(5, 60, (3, 2)), "large": random.uniform(5, 110, (12, 16))}
    figure = plot_distances(distances, {"small": 60.04, "large": 115.9}, tmp_path / "distance.png")
    (axes,) = figure.axes
    points = [collection.get_offsets() for collection in axes.collections]
    lines = [line.get_xydata() for line in axes.lines if len(line.get_xdata()) > 2]
    for values, dots, line in zip(distances.values(), points, lines, strict=True):
        layers, heads = values.shape
        np.testing.assert_array_equal(dots[:, 1], values.ravel())
        np.testing.assert_array_equal(dots[:, 0].round(), np.arange(1, layers + 1).repeat(heads))
        np.testing.assert_array_equal(line[:, 1], values.mean(axis=1))
        np.testing.assert_array_equal(line[:, 0], dots[::heads, 0])
    # side by side
    assert points[0][0, 0] < 1 < points[1][0, 0]
    even = [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
    assert even == [60.0, 115.9]
    lines = ["uniform attention of small (60.0 px)", "uniform attention of large (115.9 px)"]
    assert legend(figure) == [*distances, *lines]
    assert axes.get_ylabel() == "mean attention distance (pixels)" and axes.get_xlabel() == "layer"
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > max(values.max() for values in distances.values())
    assert [file.name for file in tmp_path.iterdir()] == ["distance.png"]
    with Image.open(tmp_path / "distance.png") as picture:
        assert picture.width > picture.height


def test_distances_of_one_model_with_one_layer(tmp_path: Path):
    figure = plot_distances({"one": np.array([[3.0, 4.0]])}, {"one": 5.0}, tmp_path / "distance.pdf")
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_offsets(), [[1, 3], [1, 4]])
    assert legend(figure) == ["one", "uniform attention (5.0 px)"]


@pytest.mark.parametrize("top_k", [1, 5, 7])
def test_shares_of_the_largest_and_of_all_that_count(top_k: int, tmp_path: Path):
    random = np.random.default_rng(0)
    shares = {name: random.uniform(size=(layers, top_k)) for name, layers in (("a", 2), ("b", 12), ("c", 4))}
    [axes] = plot_shares(shares, tmp_path / "svd.png").axes
    drawn = {line.get_label(): line for line in axes.lines}
    for number, (name, values) in enumerate(shares.items()):
        wanted = {f"{name}: the {top_k} largest": (values[:, -1], "-"), f"{name}: the largest": (values[:, 0], "--")}
        for label, (column, style) in list(wanted.items())[: min(top_k, 2)]:
            line = drawn.pop(label)
            np.testing.assert_array_equal(line.get_xdata(), np.arange(1, len(values) + 1))
            np.testing.assert_allclose(line.get_ydata(), 100 * column)
            assert line.get_linestyle() == style and line.get_color() == f"C{number}"
    assert not drawn
    assert [file.name for file in tmp_path.iterdir()] == ["svd.png"]
