"""Whether posteriors are calibrated: ranks or probability integral transforms against the uniform distribution."""

from __future__ import annotations

__all__ = ["plot_calibration"]

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binom

from .style import colour, ink, new_figure, tidy, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_calibration(
    values: Any,
    num_draws: int | None = None,
    *,
    bins: int | None = None,
    level: float = 0.99,
    axes: Axes | None = None,
) -> Axes:
    """Histogram of ranks or of probability integral transforms, with the band in which uniform ones lie.

    In simulation-based calibration a parameter is drawn from the prior, data from the model, and the parameter is
    ranked among draws of the posterior given the data. Ranks of exact posteriors are uniform. A hump says that
    posteriors are too wide, a bowl that they are too narrow, a slope that they are off to one side.

    Args:
        values: Of n simulations: ranks, whole numbers from 0 to ``num_draws``; or the values of posterior
            distribution functions at the truth, in [0, 1]. ``(n,)``.
        num_draws: Among how many draws ranks were taken; None if values are no ranks.
        bins: Number of bins; if not given so many that each holds about twenty, at least 5 and at most 30, and where
            it can be equally many ranks.
        level: Probability with which the count of a bin lies in its band, for each bin by itself: of 20 bins
            of an exact posterior one in five pictures shows one that is outside of 99 %.
        axes: Where to draw; a new figure if not given.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If values are no vector or out of range, or another argument is.

    Reference:
        Talts, Betancourt, Simpson, Vehtari, Gelman. Validating Bayesian inference algorithms with simulation-based
        calibration. 2018.

    Example:
        >>> import torch
        >>> axes = plot_calibration(torch.arange(1000) % 100, num_draws=99)
        >>> axes.get_xlabel()
        'rank among 99 draws'
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    array = _checked(to_array(values), num_draws)
    num = len(array)
    bins = _suitable_bins(num, num_draws) if bins is None else bins
    if bins < 1 or (num_draws is not None and bins > num_draws + 1):
        raise ValueError(f"bins must be positive, and no more than the ranks there are, got {bins}")
    edges = np.linspace(0.0, 1.0, bins + 1)
    if num_draws is not None:
        edges = np.round(edges * (num_draws + 1)) - 0.5  # between ranks
    counts = np.histogram(array, edges)[0]
    part = np.diff(edges) / (edges[-1] - edges[0])  # of uniform values; bins of ranks may differ by one rank
    low, high = (binom.ppf(tail, num, part) for tail in ((1 - level) / 2, (1 + level) / 2))
    axes = new_figure(6.0, 3.6).subplots() if axes is None else axes
    axes.stairs(high, edges, baseline=low, fill=True, color=ink(0.2), label=f"{100 * level:g} % of each bin, if exact")
    axes.stairs(num * part, edges, baseline=None, color=ink(0.6), linestyle="--", linewidth=1.2)
    axes.stairs(counts, edges, baseline=None, color=colour(0), linewidth=1.8, label=f"{num} simulations")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.3 * max(counts.max(), high.max()))  # room for the legend
    axes.set_xlabel("probability integral transform" if num_draws is None else f"rank among {num_draws} draws")
    axes.set_ylabel("simulations in a bin")
    axes.legend(loc="upper center", ncols=2, frameon=False, fontsize="small")
    tidy(axes)
    return axes


def _suitable_bins(num: int, num_draws: int | None) -> int:
    wanted = int(np.clip(num // 20, 5, 30))
    if num_draws is None:
        return wanted
    even = [bins for bins in range(5, wanted + 1) if (num_draws + 1) % bins == 0]
    return max(even, default=min(wanted, num_draws + 1))


def _checked(values: np.ndarray, num_draws: int | None) -> np.ndarray:
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values must be a vector that is not empty, got shape {values.shape}")
    if num_draws is None:
        if values.dtype.kind != "f":
            raise ValueError(f"values of dtype {values.dtype} are ranks: say by num_draws among how many draws")
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("values must lie in [0, 1], or be ranks with num_draws given")
        return values
    if num_draws < 1:
        raise ValueError(f"num_draws must be positive, got {num_draws}")
    if not ((values >= 0) & (values <= num_draws) & (values == np.floor(values))).all():
        raise ValueError(f"values must be whole numbers from 0 to num_draws = {num_draws}")
    return values
