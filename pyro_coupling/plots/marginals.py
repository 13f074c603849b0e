"""Marginal distributions of draws, beside those of a reference."""

from __future__ import annotations

__all__ = ["Series", "draw_histograms", "draw_marginal", "limits", "plot_marginals", "series_of"]

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .draws import Scalar, choose, entry, label, read
from .style import colour, given_or_new, new_panels, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import StepPatch

#: what each set of draws is called, and its values of one scalar
Series = list[tuple[str, np.ndarray]]
_MOST = 12


def plot_marginals(
    samples: Any,
    reference: Any = None,
    names: Sequence[str] | None = None,
    *,
    labels: tuple[str, str] = ("samples", "reference"),
    columns: int = 3,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Histograms of scalars, one panel each, with mean and standard deviation in the legend.

    Args:
        samples: Draws: site -> ``(draws, *shape)``, such as ``vi.get_samples(4000)``; or an ArviZ object with a group
            ``posterior``.
        reference: Draws to lay over them, in either form. Sites it lacks are drawn without.
        names: Up to twelve scalars: ``"mu"``, ``"effect[3]"``, ``"matrix[0,2]"``; the name of a site that is no scalar
            stands for its first entries. If not given, scalar sites come first, then the entries of others.
        labels: What samples and reference are called in the legend.
        columns: Panels in a row of a new figure.
        axes: Where to draw, as many as there are scalars; a new figure if not given.

    Returns:
        Axes, ``(scalars,)``.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If samples or reference are neither a mapping nor an ArviZ object.
        ValueError: If a name is none of a scalar, if shapes do not agree, or ``axes`` are too few or many.

    Example:
        >>> import torch
        >>> axes = plot_marginals({"mu": torch.randn(500), "effect": torch.randn(500, 2)}, {"mu": torch.randn(900)})
        >>> [panel.get_title(loc="left") for panel in axes]
        ['mu', 'effect[0]', 'effect[1]']
    """
    draws = read(samples, "samples")
    others = {} if reference is None else read(reference, "reference")
    scalars = choose(draws, names, _MOST)
    axes = given_or_new(axes, (len(scalars),), lambda: new_panels(len(scalars), columns, 3.6, 2.7))
    for panel, scalar in zip(axes, scalars, strict=True):
        draw_marginal(panel, label(scalar), series_of(scalar, draws, others, labels, "reference"))
    return axes


def series_of(
    scalar: Scalar,
    draws: Mapping[str, np.ndarray],
    others: Mapping[str, np.ndarray],
    labels: tuple[str, str],
    argument: str,
) -> Series:
    """One scalar's draws, and those of the reference if it has the site."""
    name = scalar[0]
    found = [(labels[0], _finite(draws, scalar))]
    if name in others:
        if others[name].shape[1:] != draws[name].shape[1:]:
            raise ValueError(f"{argument} has {name!r} of shape {others[name].shape[1:]}, not {draws[name].shape[1:]}")
        found.append((labels[1], _finite(others, scalar)))
    return found


def draw_marginal(axes: Axes, title: str, series: Series) -> None:
    """Histograms of one scalar with their legend."""
    handles = draw_histograms(axes, series)
    axes.set_title(title, loc="left")
    axes.set_ylabel("density")
    axes.set_xlabel("value")
    # room above the highest bar for the legend
    axes.set_ylim(0, axes.get_ylim()[1] * (1.16 + 0.12 * len(series)))
    texts = [f"{who}: {_number(v.mean(), v.std())} ± {_number(v.std(), v.std())}" for who, v in series]
    axes.legend(handles, texts, loc="upper right", frameon=False, fontsize="small", handlelength=1.4, borderaxespad=0.2)


def draw_histograms(axes: Axes, series: Series) -> list[StepPatch]:
    """The first filled, the second as a line over it."""
    low, high = limits([values for _, values in series])
    handles = []
    styles: list[dict[str, Any]] = [{"fill": True, "alpha": 0.5, "linewidth": 0.0}, {"linewidth": 1.8}]
    for number, ((_, values), style) in enumerate(zip(series, styles, strict=False)):
        # the width of bins follows the number of draws (Rice's rule), so that few draws do not look ragged
        bins = int(np.clip(2 * len(values) ** (1 / 3), 8, 40))
        heights, edges = np.histogram(values, bins, (low, high), density=True)
        handles.append(axes.stairs(heights, edges, color=colour(number), **style))
    axes.set_yticks([])
    axes.margins(x=0.01)
    tidy(axes)
    return handles


def limits(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Where all but a thousandth lies at either end."""
    low, high = np.quantile(np.concatenate(values), [0.001, 0.999])
    return (float(low), float(high)) if high > low else (low - 0.5, low + 0.5)


def _finite(draws: Mapping[str, np.ndarray], scalar: Scalar) -> np.ndarray:
    values = entry(draws[scalar[0]], scalar[1])
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError(f"{label(scalar)}: no draw is finite; choose others by names")
    return values


def _number(value: float, scale: float) -> str:
    """A number with as many digits as its standard deviation makes sense of."""
    if not scale > 0:
        return f"{value:.3g}"
    digits = 1 - math.floor(math.log10(scale))
    if digits > 6 or scale >= 1e5:
        return f"{value:.3g}"
    return f"{round(value, digits) + 0.0:.{max(0, digits)}f}"  # adding zero turns -0 into 0
