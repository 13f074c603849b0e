"""How a fit went: bound, effective sample size and k-hat over the steps of training."""

from __future__ import annotations

__all__ = ["draw_elbo", "draw_ess", "plot_training"]

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .style import colour, given_or_new, ink, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from ..inference import FlowVI
    from ..training import TrainingRecord

_NO_CURVE = "no curve: fewer than 200 steps, or loaded from a file"


def plot_training(vi: FlowVI, khat: Mapping[int, float] | None = None, *, axes: np.ndarray | None = None) -> np.ndarray:
    """ELBO, relative effective sample size and k-hat over the steps of a fit, one above the other.

    A run keeps the first two; k-hat over the steps comes from a callback, as in the example. Without one the picture
    shows the k-hat that the fit ended with.

    Args:
        vi: A fit that has been run.
        khat: Step -> k-hat.
        axes: Where to draw, ``(3,)``; a new figure if not given.

    Returns:
        Axes, ``(3,)``.

    Raises:
        ImportError: If matplotlib is not installed.
        RuntimeError: If ``vi`` has not been run.
        TypeError: If ``khat`` is no mapping.
        ValueError: If ``axes`` are not three.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_coupling import FlowVI
        >>> from pyro_coupling.diagnostics import pareto_smooth
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> khat = {}
        >>> def watch(state):
        ...     if state.step % 10 == 0:
        ...         khat[state.step] = pareto_smooth(state.log_weights)[1]
        >>> vi = FlowVI(model, max_steps=40, seed=0, progress=False, callback=watch).run(torch.tensor([1.0, 2.0]))
        >>> [axes.get_ylabel() for axes in plot_training(vi, khat)]
        ['ELBO (nats)', 'relative ESS', 'k-hat']
    """
    figures = vi.diagnostics()
    if khat is not None and not isinstance(khat, Mapping):
        raise TypeError(f"khat must map steps to numbers, got {type(khat).__name__}")
    axes = given_or_new(axes, (3,), lambda: new_figure(7.0, 6.6).subplots(3, 1, sharex=True))
    if draw_elbo(axes[0], vi.record, figures["log_evidence"]):
        above: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.2}
        axes[0].legend(ncols=2, frameon=False, fontsize="small", **above)
    draw_ess(axes[1], vi.record)
    known = {figures["num_steps"]: figures["khat"]} if khat is None else khat
    _draw_khat(axes[2], known, figures["num_steps"])
    axes[2].set_xlabel("step")
    for panel in axes:
        tidy(panel)
    return axes


def draw_elbo(axes: Axes, record: TrainingRecord, evidence: float) -> list[Line2D]:
    """The bound, and the evidence that it cannot pass; or a word on why there is none."""
    axes.set_ylabel("ELBO (nats)")
    if not record.steps:
        axes.text(0.5, 0.5, _NO_CURVE, transform=axes.transAxes, ha="center")
        axes.set_yticks([])
        return []
    elbo = np.asarray(record.elbo, dtype=float)
    lines = _curve(axes, record.steps, elbo, colour(0), f"ELBO (from {elbo[0]:.1f})")
    if math.isfinite(evidence):
        lines.append(axes.axhline(evidence, color=colour(0), linestyle="--", linewidth=1.2, label="log evidence"))
    _limit_to_late_steps(axes, elbo, evidence)
    axes.set_xlim(0, record.steps[-1] * 1.02)
    return lines


def draw_ess(axes: Axes, record: TrainingRecord) -> list[Line2D]:
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("relative ESS")
    return _curve(axes, record.steps, record.ess, colour(2), "relative ESS")


def _draw_khat(axes: Axes, khat: Mapping[int, float], last_step: int) -> None:
    steps = sorted(khat)
    values = np.asarray([khat[step] for step in steps], dtype=float)
    finite = values[np.isfinite(values)]
    _curve(axes, steps, values, colour(1), "k-hat")
    for limit, word in ((0.5, "good below"), (0.7, "usable below")):
        axes.axhline(limit, color=ink(0.5), linestyle="--", linewidth=1.0)
        axes.annotate(
            f"{word} {limit}", (1, limit), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            fontsize="small", color=ink(0.7), va="center",
        )  # fmt: skip
    axes.set_ylabel("k-hat")
    axes.set_ylim(min(0.0, *finite - 0.05), max(0.95, *finite + 0.1))
    axes.set_xlim(0, max([last_step, *steps]) * 1.02)


def _curve(axes: Axes, steps: Any, values: Any, shade: Any, name: str) -> list[Line2D]:
    marker = "o" if len(steps) < 40 else None
    return axes.plot(steps, values, color=shade, marker=marker, markersize=4, linewidth=1.8, label=name)


def _limit_to_late_steps(axes: Axes, elbo: np.ndarray, evidence: float) -> None:
    """Leaves the first steep rise out of the picture, so that one can see how the fit ends."""
    finite = elbo[np.isfinite(elbo)]
    if len(finite) == 0:
        return
    late = finite[max(1, len(finite) // 10) :] if len(finite) >= 5 else finite
    top = max(late.max(), evidence) if math.isfinite(evidence) else late.max()
    bottom = late.min()
    room = max(top - bottom, 1e-3)
    axes.set_ylim(bottom - 0.1 * room, top + 0.1 * room)
