"""Pairs of scalars: how draws of two hang together, beside a reference."""

from __future__ import annotations

__all__ = ["plot_pairs"]

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

from .draws import Scalar, choose, entry, label, read
from .marginals import draw_histograms, limits, series_of
from .style import colour, given_or_new, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 8
_POINTS = 2000
_CELLS, _BLUR = 60, 2.0
_MASSES = (0.9, 0.5)


def plot_pairs(
    samples: Any,
    reference: Any = None,
    names: Sequence[str] | None = None,
    *,
    labels: tuple[str, str] = ("samples", "reference"),
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Draws of each pair of scalars as points; of a reference, lines that hold 50 % and 90 % of its draws.

    On the diagonal are marginals. At most 2000 points are drawn in a panel, evenly picked; the lines are those of a
    histogram of all draws, blurred by two of its 60 cells.

    Args:
        samples: Draws: site -> ``(draws, *shape)``, such as ``vi.get_samples(4000)``; or an ArviZ object with a group
            ``posterior``.
        reference: Draws to compare with, in either form, of the same sites.
        names: Two to eight scalars, see `plot_marginals`; if not given the first eight.
        labels: What samples and reference are called in the legend.
        axes: Where to draw, ``(scalars, scalars)``; those above the diagonal are emptied. A new figure if not given.

    Returns:
        Axes, ``(scalars, scalars)``.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If samples or reference are neither a mapping nor an ArviZ object.
        ValueError: If there are fewer than two scalars, a name is none of a scalar, or the reference lacks a site.

    Example:
        >>> import torch
        >>> plot_pairs({"mu": torch.randn(500), "effect": torch.randn(500, 2)}).shape
        (3, 3)
    """
    draws = read(samples, "samples")
    others = {} if reference is None else read(reference, "reference")
    scalars = choose(draws, names, _MOST)
    if len(scalars) < 2:
        raise ValueError(f"names must give two scalars at least, got {[label(scalar) for scalar in scalars]}")
    missing = sorted({name for name, _ in scalars} - set(others)) if others else []
    if missing:
        raise ValueError(f"reference must have the sites of samples that are shown, it lacks {missing}")
    size = len(scalars)
    axes = given_or_new(axes, (size, size), lambda: new_figure(1.0 + 1.9 * size, 0.8 + 1.7 * size).subplots(size, size))
    series = [series_of(scalar, draws, others, labels, "reference") for scalar in scalars]
    spans = [limits([values for _, values in one]) for one in series]
    for row in range(size):
        draw_histograms(axes[row, row], series[row])
        for column in range(row):
            pair = scalars[column], scalars[row]
            _draw_points(axes[row, column], _joint(draws, pair))
            if others:
                _draw_contours(axes[row, column], _joint(others, pair), spans[column], spans[row])
        for column in range(row + 1, size):
            axes[row, column].set_axis_off()
    _set_scales(axes, scalars, spans)
    if others:
        _draw_legend(axes[0, -1], labels)
    return axes


def _joint(draws: dict[str, np.ndarray], pair: tuple[Scalar, Scalar]) -> np.ndarray:
    """Draws of two scalars, ``(2, draws)``."""
    return np.stack([entry(draws[name], index) for name, index in pair])


def _draw_points(axes: Axes, joint: np.ndarray) -> None:
    x, y = joint[:, :: math.ceil(joint.shape[1] / _POINTS)]
    axes.plot(x, y, ".", markersize=2.5, markeredgewidth=0, alpha=0.5, color=colour(0))


def _draw_contours(axes: Axes, joint: np.ndarray, across: tuple[float, float], upwards: tuple[float, float]) -> None:
    counts, x_edges, y_edges = np.histogram2d(joint[0], joint[1], _CELLS, [_widened(*across), _widened(*upwards)])
    blurred = gaussian_filter(counts, _BLUR)
    ordered = np.sort(blurred.ravel())[::-1]
    mass = np.cumsum(ordered) / ordered.sum()
    levels = [ordered[np.searchsorted(mass, part)] for part in _MASSES]
    if not levels[0] < levels[1]:
        return
    middles = [(edges[1:] + edges[:-1]) / 2 for edges in (x_edges, y_edges)]
    axes.contour(*middles, blurred.T, levels=levels, colors=[colour(1)], linewidths=[1.0, 1.8])


def _set_scales(axes: np.ndarray, scalars: list[Scalar], spans: list[tuple[float, float]]) -> None:
    size = len(scalars)
    for row in range(size):
        for column in range(row + 1):
            panel = axes[row, column]
            panel.set_xlim(_widened(*spans[column]))
            panel.locator_params(axis="x", nbins=3)
            panel.tick_params(labelbottom=row == size - 1, labelleft=column == 0 and row > 0)
            if row > column:
                panel.set_ylim(_widened(*spans[row]))
                panel.locator_params(axis="y", nbins=3)
            tidy(panel)
        axes[size - 1, row].set_xlabel(label(scalars[row]))
        if row:
            axes[row, 0].set_ylabel(label(scalars[row]))


def _draw_legend(axes: Axes, labels: tuple[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=".", markersize=8, color=colour(0)),
        Line2D([], [], linewidth=1.8, color=colour(1)),
    ]
    texts = [labels[0], f"{labels[1]}, 50 % and 90 %"]
    # it may reach over the empty panel on its left, and must not push the columns apart
    axes.legend(handles, texts, loc="upper right", frameon=False, borderaxespad=0).set_in_layout(False)


def _widened(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low)
    return low - room, high + room
