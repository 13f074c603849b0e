"""A fit in one picture."""

from __future__ import annotations

__all__ = ["plot_fit"]

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .draws import choose, label, read
from .marginals import draw_marginal, series_of
from .style import colour, new_figure, tidy
from .training import draw_elbo, draw_ess
from .weights import draw_histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..inference import FlowVI

_PANELS, _COLUMNS = 6, 3
_DRAWS = 4000


def plot_fit(
    vi: FlowVI,
    compare: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    *,
    compare_label: str = "comparison",
) -> Figure:
    """Marginals, training curve and importance weights of a fit, in one figure of 1600 x 1000 pixels.

    Args:
        vi: A fit that has been run.
        compare: Draws to lay over the marginals, for instance ``mcmc.get_samples()`` of NUTS: site ->
            ``(draws, *shape)``, or an ArviZ object. Sites it lacks are drawn without.
        names: Up to six scalars: ``"mu"``, ``"effect[3]"``, ``"matrix[0,2]"``; the name of a site that is no scalar
            stands for its first entries. If not given, scalar sites come first, then the entries of others.
        compare_label: What ``compare`` is called in the legend.

    Returns:
        A figure that belongs to no window: write it with ``figure.savefig("fit.png")``, or name it last in a notebook's
        cell.

    Raises:
        ImportError: If matplotlib is not installed.
        RuntimeError: If ``vi`` has not been run.
        ValueError: If a name is no latent or deterministic scalar of the model, or draws to compare have another shape.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_coupling import FlowVI
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> vi = FlowVI(model, max_steps=20, seed=0, progress=False).run(torch.tensor([1.0, 2.0, 3.0]))
        >>> figure = plot_fit(vi, compare={"mu": 2.0 + torch.randn(500) / 3**0.5}, compare_label="exact")
        >>> len(figure.axes)
        3
    """
    figures = vi.diagnostics()
    draws = read(vi.get_samples(_DRAWS), "samples")
    others = read(compare, "compare") if compare else {}
    scalars = choose(draws, names, _PANELS)
    figure = new_figure(12.8, 8.0, dpi=125)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08, hspace=0.04, wspace=0.02)  # type: ignore[call-arg, union-attr]
    rows = math.ceil(len(scalars) / _COLUMNS)
    # figures of their own, so that the labels of one row do not push the columns of the other apart
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.0, 0.65 if rows > 1 else 1.0], hspace=0.03)
    grid = upper.add_gridspec(rows, min(len(scalars), _COLUMNS))
    for i, scalar in enumerate(scalars):
        series = series_of(scalar, draws, others, ("FlowVI", compare_label), "compare")
        draw_marginal(upper.add_subplot(grid[divmod(i, _COLUMNS)]), label(scalar), series)
    left, right = lower.subplots(1, 2)
    _draw_training(left, vi, figures)
    log_weights = vi._log_weights if vi._log_weights is not None else vi.sample_with_log_weights(_DRAWS)[1]
    draw_histogram(right, log_weights.detach().double())
    right.set_title(f"Importance weights: k-hat {figures['khat']:.2f}, ESS {figures['ess']:.2f}", loc="left")
    figure.suptitle(_headline(vi, figures), x=0.012, ha="left", linespacing=1.4, fontsize="large")
    return figure


def _headline(vi: FlowVI, figures: dict[str, Any]) -> str:
    first = (
        f"FlowVI: {vi.target.dim} latents, {figures['num_steps']} steps in {figures['seconds']:.0f} s, "
        f"log evidence {figures['log_evidence']:.2f} ± {figures['log_evidence_se']:.2g}"
    )
    return first + "\n" + textwrap.shorten(figures["message"], 150, placeholder=" …")


def _draw_training(axes: Axes, vi: FlowVI, figures: dict[str, Any]) -> None:
    """Bound and effective sample size on one panel, each with a scale of its own."""
    axes.set_title("Training", loc="left")
    axes.set_xlabel("step")
    lines = draw_elbo(axes, vi.record, figures["log_evidence"])
    axes.yaxis.label.set_color(colour(0))
    tidy(axes)
    if not lines:
        return
    right = axes.twinx()
    right.grid(False)  # lines of one scale are enough
    lines += draw_ess(right, vi.record)
    right.yaxis.label.set_color(colour(2))
    tidy(right, right=True)
    axes.legend(
        lines, [str(line.get_label()) for line in lines],
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, fontsize="small", borderaxespad=0.2,
    )  # fmt: skip
