"""The pictures of "Is my fit good?": four fits of densities on the plane, and eight schools written in two ways.

``python docs/make_pictures.py`` prints the figures of the page and writes ``docs/images/judging.png`` and
``docs/images/schools.png``, in about two minutes on one core.
"""

from __future__ import annotations

__all__ = ["FITS", "SCHOOLS", "main"]

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.infer import Predictive
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_coupling import FlowVI

IMAGES = Path(__file__).parent / "images"
BLUE, ORANGE, GREY = "#3b6ea5", "#d1701f", "#5a5f66"
DRAWS = 4000
EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def banana() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x.square() - 1.0, 0.5))


def ring() -> None:
    x, y = (pyro.sample(name, dist.Normal(0.0, 3.0)) for name in "xy")
    pyro.factor("radius", dist.Normal(2.0, 0.2).log_prob((x.square() + y.square()).sqrt()))


def heavy_tails() -> None:
    for name in "xy":
        pyro.sample(name, dist.StudentT(1.5))


def two_islands(scale: float) -> None:
    """Two islands of equal mass, of which that on the right has the given width."""
    x, y = (pyro.sample(name, dist.Normal(0.0, 10.0)) for name in "xy")
    left = dist.Normal(-3.0, 0.7).log_prob(x) + dist.Normal(0.0, 0.7).log_prob(y)
    right = dist.Normal(3.0, scale).log_prob(x) + dist.Normal(0.0, scale).log_prob(y)
    pyro.factor("islands", torch.logaddexp(left, right))


def eight_schools(effect: Tensor, error: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effect)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


class Fit(NamedTuple):
    """A model, its training, and the half-width of its picture."""

    title: str
    model: Callable[[], None]
    max_steps: int
    width: float


FITS = [
    Fit("good", banana, 1200, 4.0),
    Fit("too short", ring, 300, 3.5),
    Fit("tails not covered", heavy_tails, 400, 12.0),
    Fit("an island missed, and told", lambda: two_islands(0.7), 400, 6.0),
    Fit("an island missed, and not told", lambda: two_islands(0.02), 400, 6.0),
]
SCHOOLS = {
    "as written": eight_schools,
    "reparameterised": poutine.reparam(eight_schools, {"theta": LocScaleReparam(0.0)}),
}


def fitted(model: Callable, *data: Tensor, max_steps: int) -> FlowVI:
    """The fit with one seed; its warning stands in the printed message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FlowVI(model, max_steps=max_steps, seed=0, progress=False).run(*data)


def report(title: str, vi: FlowVI) -> None:
    figures = vi.diagnostics()
    evidence = f"log evidence {figures['log_evidence']:.3f} +- {figures['log_evidence_se']:.3f}"
    print(f"{title}: ess {figures['ess']:.2f}, k-hat {figures['khat']:.2f}, {evidence}, {figures['seconds']:.0f} s")
    print(f"    {figures['message']}\n")


def exact_density(model: Callable, width: float, cells: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Grid lines, and the density of a model of x and y on the grid, relative to its peak."""
    line = torch.linspace(-width, width, cells)
    x, y = torch.meshgrid(line, line, indexing="xy")
    trace = poutine.trace(poutine.condition(model, {"x": x, "y": y})).get_trace()
    trace.compute_log_prob()
    log_prob = sum(site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample")
    return line.numpy(), (log_prob - log_prob.max()).exp().numpy()


def draw_plane(axes: Axes, fit: Fit, vi: FlowVI) -> None:
    """The exact density in lines, draws of the flow as dots."""
    draws = vi.get_samples(1500, importance=False)
    line, density = exact_density(fit.model, fit.width)
    axes.scatter(draws["x"], draws["y"], s=3, color=BLUE, alpha=0.35, linewidths=0)
    axes.contour(line, line, density, levels=[0.01, 0.1, 0.5], colors=ORANGE, linewidths=1.3)
    axes.set_xlim(-fit.width, fit.width)
    axes.set_ylim(-fit.width, fit.width)
    axes.set_aspect("equal")
    axes.set_title(fit.title, fontsize=11, fontweight="bold")


def draw_weights(axes: Axes, vi: FlowVI) -> None:
    """Log weights relative to their mean, on a logarithmic scale of counts."""
    figures = vi.diagnostics()
    log_weights = vi.sample_with_log_weights(DRAWS)[1] - figures["log_evidence"]
    axes.hist(log_weights.clamp(-4, 6).numpy(), bins=50, range=(-4, 6), color=BLUE, alpha=0.75)
    axes.axvline(0.0, color=GREY, linestyle="--", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(0.7, DRAWS)
    axes.set_xlabel("log weight - log mean weight")
    axes.set_title(f"ESS {figures['ess']:.2f}   k-hat {figures['khat']:.2f}", fontsize=12)


def draw_schools(axes: Axes, vi: FlowVI, title: str) -> None:
    """Effect of the first school against the logarithm of tau: the neck of the funnel is at the bottom."""
    figures = vi.diagnostics()
    for importance, colour, label in ((False, BLUE, "flow"), (True, ORANGE, "resampled")):
        latents = vi.get_samples(2000, importance)
        draws = latents | Predictive(vi.model, latents)(EFFECT, ERROR)  # theta follows from the latents, or is one
        theta = draws["theta"][:, 0]
        axes.scatter(theta, draws["tau"].log(), s=3, color=colour, alpha=0.35, linewidths=0, label=label)
    axes.set_xlim(-20, 40)
    axes.set_ylim(-5, 4.5)
    axes.set_xlabel("theta of the first school")
    axes.set_ylabel("log tau")
    axes.set_title(f"{title}: ESS {figures['ess']:.2f}, k-hat {figures['khat']:.2f}", fontsize=12)
    axes.legend(frameon=False, loc="lower right", markerscale=4)


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")


def main() -> None:
    figure = new_figure(3.2 * len(FITS), 5.6)
    for column, fit in zip(figure.subplots(2, len(FITS), height_ratios=[1.4, 1.0]).T, FITS, strict=True):
        vi = fitted(fit.model, max_steps=fit.max_steps)
        report(fit.title, vi)
        draw_plane(column[0], fit, vi)
        draw_weights(column[1], vi)
    figure.savefig(IMAGES / "judging.png")

    figure = new_figure(11.0, 4.4)
    for axes, (title, model) in zip(figure.subplots(1, 2), SCHOOLS.items(), strict=True):
        vi = fitted(model, EFFECT, ERROR, max_steps=600)
        report(f"eight schools, {title}", vi)
        draw_schools(axes, vi, title)
    figure.savefig(IMAGES / "schools.png")


if __name__ == "__main__":
    main()
