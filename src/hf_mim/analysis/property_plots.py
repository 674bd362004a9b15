"""Plots of the properties in `properties.py`, for several models in one figure."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .curves import save_figure


# Fraction of the space between two layers over which the heads of all models are spread.
SPREAD = 0.6


def plot_distances(distances: Mapping[str, np.ndarray], even: Mapping[str, float], path: str | Path) -> Figure:
    """
    Draw a point per head and a line through the means of the heads, over the layers, in one color per model.

    Args:
        distances (`Mapping[str, np.ndarray]`): `[layers, heads]` in pixels for every model, by its name in the legend.
        even (`Mapping[str, float]`): Distance under uniform attention, by the same names; drawn as a dotted line.
        path (`str` or `Path`): Picture to write (`.png`, `.pdf`, `.svg`), atomically.

    Returns:
        `Figure`: The figure.
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
        axes.axhline(
            value, color="0.45", linestyle=":", linewidth=1.2, label=f"uniform attention{of} ({value:.1f} px)"
        )
    axes.set_ylabel("mean attention distance (pixels)")
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    _layer_axis(axes, distances)
    axes.set_title("attention distance of each head (dots) and mean over a layer's heads (line)", fontsize=10)
    _legend(figure, axes)
    save_figure(figure, path)
    return figure


def plot_shares(shares: Mapping[str, np.ndarray], path: str | Path) -> Figure:
    """
    Draw the share of the largest singular value (dashed) and of the K largest (solid) over the layers, in one color
    per model. The numbers between them run between the two lines.

    Args:
        shares (`Mapping[str, np.ndarray]`): `[layers, K]` in [0, 1] for every model, by its name in the legend; K is
            the same for all.
        path (`str` or `Path`): Picture to write (`.png`, `.pdf`, `.svg`), atomically.

    Returns:
        `Figure`: The figure.
    """
    count = next(iter(shares.values())).shape[1]
    figure = Figure(figsize=(_width(shares), 4.6), layout="constrained")
    axes = figure.subplots()
    for color, (name, values) in enumerate(shares.items()):
        layers = np.arange(1, len(values) + 1)
        lines = [(values[:, -1], "-", f"{name}: the {count} largest"), (values[:, 0], "--", f"{name}: the largest")]
        for line, style, label in lines[: min(count, 2)]:
            axes.plot(
                layers, 100 * line, style, color=f"C{color % 10}", linewidth=1.8, marker="o", markersize=4, label=label
            )
    axes.set_ylim(0, None)
    axes.set_ylabel("share of the sum of all (%)")
    _layer_axis(axes, shares)
    axes.set_title(
        "singular values of an image's patch features: fewer directions in use are higher lines", fontsize=10
    )
    _legend(figure, axes)
    save_figure(figure, path)
    return figure


def _width(values: Mapping[str, np.ndarray]) -> float:
    """Return the width in inches that fits the dots of all models side by side."""
    layers = max(len(one) for one in values.values())
    return min(15.0, max(6.4, 2.0 + layers * (0.3 + 0.16 * len(values))))


def _layer_axis(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    layers = max(len(one) for one in values.values())
    axes.set_xlim(0.5, layers + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.set_xlabel("layer")
    axes.grid(alpha=0.3)


def _legend(figure: Figure, axes: Axes) -> None:
    """Draw the legend outside the axes: names of models are long, and the data may be anywhere."""
    handles, labels = axes.get_legend_handles_labels()
    room = figure.get_figwidth() / (0.7 + 0.07 * max(map(len, labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(int(room), len(labels))), fontsize=8)
