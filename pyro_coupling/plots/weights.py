"""Importance weights: their distribution, and the Pareto tail that k-hat is the shape of."""

from __future__ import annotations

__all__ = ["draw_histogram", "plot_weights"]

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..diagnostics import log_evidence, pareto_smooth, relative_ess
from .style import colour, given_or_new, ink, new_figure, tidy, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_weights(log_weights: Any, *, axes: np.ndarray | None = None) -> np.ndarray:
    """The distribution of log weights, and the largest of them in order beside the Pareto tail fitted to them.

    Where k-hat is trustworthy the points of the second panel lie on the line. A steep line says that few weights
    decide everything.

    Args:
        log_weights: Unnormalised log weights, ``(n,)``; ``-inf`` is a weight of zero.
        axes: Where to draw, ``(2,)``; a new figure if not given.

    Returns:
        Axes, ``(2,)``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the weights are no vector, hold NaN or ``+inf``, or ``axes`` are not two.

    Reference:
        Vehtari, Simpson, Gelman, Yao, Gabry. Pareto smoothed importance sampling. JMLR 2024.

    Example:
        >>> import torch
        >>> axes = plot_weights(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
        >>> axes[0].get_xlabel(), axes[1].get_xlabel()
        ('log weight, relative to the mean weight', 'rank of the weight')
    """
    weights = torch.as_tensor(log_weights).detach().double()
    smoothed, khat = pareto_smooth(weights)
    axes = given_or_new(axes, (2,), lambda: new_figure(10.5, 4.0).subplots(1, 2))
    draw_histogram(axes[0], weights)
    axes[0].set_title(f"Relative ESS {relative_ess(weights):.2f}", loc="left")
    _draw_tail(axes[1], weights, smoothed, khat)
    return axes


def draw_histogram(axes: Axes, log_weights: torch.Tensor) -> None:
    """Log weights relative to the mean weight, those of the tail set off."""
    axes.set_xlabel("log weight, relative to the mean weight")
    axes.set_ylabel("draws")
    tidy(axes)
    relative = _sorted(log_weights)
    relative = relative[np.isfinite(relative)]
    if len(relative) == 0:
        axes.text(0.5, 0.5, "every draw has density zero", transform=axes.transAxes, ha="center")
        return
    tail = _tail_size(len(relative))
    low = np.quantile(relative, 0.001)
    edges = np.linspace(low, max(relative[-1], low + 1e-3), 61)
    body, every = (np.histogram(values, edges)[0] for values in (relative[:-tail], relative))
    look: dict[str, Any] = {"fill": True, "alpha": 0.75, "linewidth": 0.0}
    axes.stairs(body, edges, color=colour(0), label="all draws", **look)
    tail_label = f"largest {tail}: the tail that k-hat is fitted to"
    axes.stairs(every, edges, baseline=body, color=colour(1), label=tail_label, **look)
    axes.axvline(0.0, ymax=0.68, color=ink(0.7), linestyle="--", linewidth=1.2, label="mean weight")
    axes.set_yscale("log")
    axes.set_ylim(0.7, axes.get_ylim()[1] * 12)  # room for the legend
    axes.margins(x=0.01)
    axes.legend(loc="upper left", frameon=False, fontsize="small", borderaxespad=0.2)


def _draw_tail(axes: Axes, log_weights: torch.Tensor, smoothed: torch.Tensor, khat: float) -> None:
    """Three times as many weights as are in the tail, from the largest, and what the fit puts in the tail's place."""
    raw, fitted = _sorted(log_weights)[::-1], np.sort(to_array(smoothed))[::-1]
    size = _tail_size(len(raw))
    axes.set_xlabel("rank of the weight")
    axes.set_ylabel("weight, relative to the mean")
    axes.set_title(f"k-hat {khat:.2f}" if math.isfinite(khat) else "too few weights for k-hat", loc="left")
    tidy(axes)
    shown = raw[: 3 * size]
    shown = shown[np.isfinite(shown)]
    if len(shown) == 0:
        return
    rank = 1 + np.arange(len(raw))
    axes.plot(rank[: len(shown)], np.exp(shown), ".", markersize=5, color=colour(0), label="weights")
    if math.isfinite(khat):
        # smoothing normalises: the first weight that it leaves alone tells the factor
        factor = raw[size] - fitted[size] if np.isfinite(raw[size]) else math.log(len(raw))
        line = np.exp(fitted[:size] + factor)
        axes.plot(rank[:size], line, color=colour(1), linewidth=1.8, label="fitted Pareto tail")
        axes.axvline(size + 0.5, color=ink(0.5), linestyle=":", linewidth=1.2)
    axes.axhline(1.0, color=ink(0.7), linestyle="--", linewidth=1.2, label="mean weight")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize="small")


def _sorted(log_weights: torch.Tensor) -> np.ndarray:
    """Log weights relative to the mean weight, rising."""
    mean = log_evidence(log_weights).value
    return np.sort(to_array(log_weights - mean if math.isfinite(mean) else log_weights))


def _tail_size(num_weights: int) -> int:
    """As many weights as `diagnostics.pareto_smooth` takes for the tail."""
    return math.ceil(min(0.2 * num_weights, 3 * math.sqrt(num_weights)))
