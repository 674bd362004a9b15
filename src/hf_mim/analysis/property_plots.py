"""Pictures of the properties of `properties.py`, with several models in each."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .curves import save_figure


# Of the room between two layers, the share in which the heads of all models lie side by side.
SPREAD = 0.6


def plot_distances(distances: Mapping[str, np.ndarray], even: Mapping[str, float], path: str | Path) -> Figure:
    """Draw a point per head and a line through the means of the heads, over the layers, in one colour per model.

    Args:
        distances: `[layers, heads]` in pixels by the model's name, as it stands in the legend.
        even: by the same names, the distance of attention that is the same for all tokens; a dotted line.
        path: picture to write (`.png`, `.pdf`, `.svg`); written whole or not at all.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(_width(distances), 5.0), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(distances.items()):
        layers, heads = values.shape
        color = f"C{number % 10}"
        shift = SPREAD * ((number + 0.5) / len(distances) - 0.5)
        places = np.arange(1, layers + 1) + shift
        size = 22 if heads <= 6 else 14
        axes.scatter(places.repeat(heads), values.ravel(), s=size, color=color, alpha=0.45, linewidths=0)
        axes.plot(places, values.mean(axis=1), color=color, linewidth=1.8, marker="_", markersize=11, label=name)
    lines: dict[float, list[str]] = {}
    for name, value in even.items():
        lines.setdefault(round(value, 1), []).append(name)
    for value, names in lines.items():
        of = "" if len(lines) == 1 else f" of {', '.join(names)}"
        axes.axhline(value, color="0.45", linestyle=":", linewidth=1.2, label=f"even attention{of} ({value:.1f} px)")
    axes.set_ylabel("mean attention distance (pixels)")
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    _layer_axis(axes, distances)
    axes.set_title("how far each head (dot) looks, and the mean of a layer's heads (line)", fontsize=10)
    _legend(figure, axes)
    save_figure(figure, path)
    return figure


def plot_shares(shares: Mapping[str, np.ndarray], path: str | Path) -> Figure:
    """Draw a panel for every number of singular values, with their share over the layers, a line per model.

    Args:
        shares: `[layers, K]` in 0..1 by the model's name, as it stands in the legend; K is the same for all.
        path: picture to write (`.png`, `.pdf`, `.svg`); written whole or not at all.

    Returns:
        The figure.
    """
    panels = next(iter(shares.values())).shape[1]
    columns = min(panels, 5)
    rows = -(-panels // columns)
    size = (1.2 + 2.6 * max(2, columns), 1.2 + 2.7 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= panels:
            axes.set_axis_off()
            continue
        for color, (name, values) in enumerate(shares.items()):
            layers = np.arange(1, len(values) + 1)
            axes.plot(
                layers, values[:, number], color=f"C{color % 10}", linewidth=1.6, marker="o", markersize=3, label=name
            )
        _layer_axis(axes, shares)
        axes.set_title("the largest" if number == 0 else f"the {number + 1} largest", fontsize=10)
    grid[0, 0].set_ylim(0, None)
    figure.supylabel("share in the sum of all", fontsize=10)
    figure.suptitle("singular values of an image's patch features: share of the largest ones", fontsize=10)
    _legend(figure, grid[0, 0])
    save_figure(figure, path)
    return figure


def _width(values: Mapping[str, np.ndarray]) -> float:
    """Inches in which the dots of all models find room side by side."""
    layers = max(len(one) for one in values.values())
    return min(15.0, max(6.4, 2.0 + layers * (0.3 + 0.16 * len(values))))


def _layer_axis(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    layers = max(len(one) for one in values.values())
    axes.set_xlim(0.5, layers + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.set_xlabel("layer")
    axes.grid(alpha=0.3)


def _legend(figure: Figure, axes: Axes) -> None:
    """Outside, because names of models are long and the data may be anywhere."""
    handles, labels = axes.get_legend_handles_labels()
    room = figure.get_figwidth() / (0.7 + 0.07 * max(map(len, labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(int(room), len(labels))), fontsize=8)
