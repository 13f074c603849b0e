"""Pictures of a fit, with matplotlib."""

from __future__ import annotations

__all__ = ["plot_fit"]

import itertools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .inference import FlowVI

_PANELS, _COLUMNS = 6, 3
_DRAWS = 4000
_BLUE, _ORANGE, _GREEN, _GREY = "#3b6ea5", "#d1701f", "#3f8f5b", "#5a5f66"


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
            ``(draws, *shape)``. Sites it lacks are drawn without.
        names: Up to six scalars: ``"mu"``, ``"effect[3]"``, ``"matrix[0,2]"``; the name of a site that is no scalar
            stands for its first entries. If not given, scalar sites come first, then the entries of others.
        compare_label: What ``compare`` is called in the legend.

    Returns:
        A figure that belongs to no window; write it with ``figure.savefig("fit.png")``.

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
    draws = {name: _array(value) for name, value in vi.get_samples(_DRAWS).items()}
    others = {name: _array(value) for name, value in (compare or {}).items()}
    scalars = _scalars(draws, names)
    figure = _new_figure()
    rows = math.ceil(len(scalars) / _COLUMNS)
    # figures of their own, so that the labels of one row do not push the columns of the other apart
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.0, 0.65 if rows > 1 else 1.0], hspace=0.03)
    grid = upper.add_gridspec(rows, min(len(scalars), _COLUMNS))
    for i, (name, index) in enumerate(scalars):
        axes = upper.add_subplot(grid[divmod(i, _COLUMNS)])
        _draw_marginal(axes, name, index, draws[name], others.get(name), compare_label)
    left, right = lower.subplots(1, 2)
    _draw_training(left, vi, figures)
    _draw_weights(right, vi, figures)
    figure.suptitle(_headline(vi, figures), x=0.012, ha="left", fontsize=14, linespacing=1.4)
    return figure


def _new_figure() -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_fit draws with matplotlib: pip install pyro-coupling[plots]") from error
    # not pyplot, which keeps every figure in a global list
    figure = Figure(figsize=(16, 10), dpi=100, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, hspace=0.04, wspace=0.02)  # type: ignore[call-arg, union-attr]
    return figure


def _headline(vi: FlowVI, figures: dict[str, Any]) -> str:
    first = (
        f"FlowVI: {vi.target.dim} latents, {figures['num_steps']} steps in {figures['seconds']:.0f} s, "
        f"log evidence {figures['log_evidence']:.2f} ± {figures['log_evidence_se']:.2g}"
    )
    return first + "\n" + textwrap.shorten(figures["message"], 150, placeholder=" …")


def _scalars(draws: dict[str, np.ndarray], names: Sequence[str] | None) -> list[tuple[str, tuple[int, ...]]]:
    """Up to six scalars as (site, index)."""
    if names is None:
        ordered = sorted(draws, key=lambda name: draws[name].ndim > 1)
        found = [scalar for name in ordered for scalar in itertools.islice(_entries(name, draws), _PANELS)]
        return found[:_PANELS]
    if isinstance(names, str) or not names:
        raise ValueError(f"plot_fit: names must be a sequence of names with one entry at least, got {names!r}")
    return [scalar for name in names for scalar in _parse(name, draws)][:_PANELS]


def _entries(name: str, draws: dict[str, np.ndarray]) -> Any:
    return ((name, index) for index in np.ndindex(draws[name].shape[1:]))


def _parse(name: str, draws: dict[str, np.ndarray]) -> list[tuple[str, tuple[int, ...]]]:
    if name in draws:
        return list(itertools.islice(_entries(name, draws), _PANELS))
    match = re.fullmatch(r"(.+)\[([\d,\s]+)\]", name)
    site = match[1] if match else name
    if site not in draws:
        raise ValueError(f"plot_fit: names has {name!r}, but the model's sites are {sorted(draws)}")
    index = tuple(int(part) for part in match[2].split(",")) if match else ()
    shape = draws[site].shape[1:]
    if len(index) != len(shape) or any(i >= n for i, n in zip(index, shape, strict=True)):
        raise ValueError(f"plot_fit: names has {name!r}, but {site!r} has shape {shape}")
    return [(site, index)]


def _draw_marginal(
    axes: Axes, name: str, index: tuple[int, ...], draws: np.ndarray, other: np.ndarray | None, other_label: str
) -> None:
    label = name + (f"[{','.join(map(str, index))}]" if index else "")
    series = [("FlowVI", _entry(draws, index))]
    if other is not None:
        if other.shape[1:] != draws.shape[1:]:
            raise ValueError(f"plot_fit: compare has {name!r} of shape {other.shape[1:]}, the fit {draws.shape[1:]}")
        series.append((other_label, _entry(other, index)))
    low, high = np.quantile(np.concatenate([values for _, values in series]), [0.001, 0.999])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    for (_, values), style in zip(series, _MARGINAL_STYLES, strict=False):
        # the width of bins follows the number of draws (Rice's rule), so that few draws do not look ragged
        bins = int(np.clip(2 * len(values) ** (1 / 3), 8, 40))
        axes.hist(values, bins=bins, range=(low, high), density=True, **style)
    axes.set_title(label, loc="left", fontsize=13, fontweight="bold")
    axes.set_yticks([])
    axes.set_ylabel("density", color=_GREY)
    axes.set_xlabel("value")
    axes.margins(x=0.01)
    # room above the highest bar for the legend
    axes.set_ylim(0, axes.get_ylim()[1] * (1.16 + 0.1 * len(series)))
    handles = [_handle(style) for _, style in zip(series, _MARGINAL_STYLES, strict=False)]
    texts = [f"{who}: {_number(v.mean(), v.std())} ± {_number(v.std(), v.std())}" for who, v in series]
    axes.legend(handles, texts, loc="upper right", frameon=False, fontsize=11, handlelength=1.4, borderaxespad=0.2)
    _clean(axes)


_MARGINAL_STYLES: list[dict[str, Any]] = [
    {"color": _BLUE, "alpha": 0.45, "histtype": "stepfilled"},
    {"color": _ORANGE, "histtype": "step", "linewidth": 2.0},
]


def _handle(style: dict[str, Any]) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if style["histtype"] == "step":
        return Line2D([], [], color=style["color"], linewidth=style["linewidth"])
    return Patch(color=style["color"], alpha=style["alpha"])


def _draw_training(axes: Axes, vi: FlowVI, figures: dict[str, Any]) -> None:
    record = vi.record
    axes.set_title("Training", loc="left", fontsize=13, fontweight="bold")
    axes.set_xlabel("step")
    axes.set_ylabel("ELBO (nats)", color=_BLUE)
    steps, elbo, ess = (np.asarray(values, dtype=float) for values in (record.steps, record.elbo, record.ess))
    if len(steps) == 0:
        axes.text(
            0.5, 0.5, "no curve: fewer than 200 steps, or loaded from a file", transform=axes.transAxes, ha="center"
        )
        axes.set_yticks([])
        _clean(axes)
        return
    marker = "o" if len(steps) < 40 else None
    label = f"ELBO (from {elbo[0]:.1f})"
    lines = axes.plot(steps, elbo, color=_BLUE, marker=marker, markersize=4, linewidth=2, label=label)
    evidence = figures["log_evidence"]
    if math.isfinite(evidence):
        lines.append(axes.axhline(evidence, color=_BLUE, linestyle="--", linewidth=1.2, label="log evidence"))
    _limit_to_late_steps(axes, elbo, evidence)
    right = axes.twinx()
    lines += right.plot(steps, ess, color=_GREEN, marker=marker, markersize=4, linewidth=2, label="relative ESS")
    right.set_ylim(0, 1.05)
    right.set_ylabel("relative ESS", color=_GREEN)
    axes.set_xlim(0, steps[-1] * 1.02)
    axes.legend(
        lines, [str(line.get_label()) for line in lines],
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, fontsize=11, borderaxespad=0.2,
    )  # fmt: skip
    _clean(axes)
    _clean(right, right=True)


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


def _draw_weights(axes: Axes, vi: FlowVI, figures: dict[str, Any]) -> None:
    raw = vi._log_weights if vi._log_weights is not None else vi.sample_with_log_weights(_DRAWS)[1]
    log_weights = np.sort(_array(raw).astype(float))
    finite = log_weights[np.isfinite(log_weights)]
    axes.set_title(
        f"Importance weights: k-hat {figures['khat']:.2f}, relative ESS {figures['ess']:.2f}",
        loc="left", fontsize=13, fontweight="bold",
    )  # fmt: skip
    axes.set_xlabel("log weight, relative to the mean weight")
    axes.set_ylabel("draws")
    if len(finite) == 0:
        axes.text(0.5, 0.5, "every draw has density zero", transform=axes.transAxes, ha="center")
        _clean(axes)
        return
    relative = finite - figures["log_evidence"]
    low = np.quantile(relative, 0.001)
    bins = np.linspace(low, max(relative[-1], low + 1e-3), 61).tolist()
    tail = math.ceil(min(0.2 * len(relative), 3 * math.sqrt(len(relative))))
    axes.hist(
        [relative[:-tail], relative[-tail:]], bins=bins, stacked=True, color=[_BLUE, _ORANGE], alpha=0.75,
        label=["all draws", f"largest {tail}: the tail that k-hat is fitted to"],
    )  # fmt: skip
    axes.axvline(0.0, ymax=0.68, color=_GREY, linestyle="--", linewidth=1.2, label="mean weight")
    axes.set_yscale("log")
    axes.set_ylim(0.7, axes.get_ylim()[1] * 10)  # room for the legend
    axes.margins(x=0.01)
    axes.legend(loc="upper left", frameon=False, fontsize=11, borderaxespad=0.2)
    _clean(axes)


def _clean(axes: Axes, right: bool = False) -> None:
    for side in ("top", "left" if right else "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left", "right"):
        axes.spines[side].set_color("#b8bcc2")
    axes.tick_params(labelsize=11, color="#b8bcc2")
    axes.xaxis.label.set_fontsize(12)
    axes.yaxis.label.set_fontsize(12)


def _entry(draws: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    values = draws[(slice(None),) + index].astype(float)
    values = values[np.isfinite(values)]
    return values if len(values) else np.zeros(1)


def _number(value: float, scale: float) -> str:
    """A number with as many digits as its standard deviation makes sense of."""
    if not scale > 0:
        return f"{value:.3g}"
    digits = 1 - math.floor(math.log10(scale))
    if digits > 6 or scale >= 1e5:
        return f"{value:.3g}"
    return f"{round(value, digits) + 0.0:.{max(0, digits)}f}"  # adding zero turns -0 into 0


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
