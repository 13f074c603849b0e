"""Averages, populations and histograms of weighted samples, with bootstrap errors."""

from __future__ import annotations

__all__ = [
    "Estimate",
    "Histogram",
    "Profile",
    "autocorrelation_time",
    "free_energy_profile",
    "histogram",
    "populations",
    "reweighted",
]

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from ..diagnostics import relative_ess

_AT_ONCE = 2**22  # resampled draws that are held in memory


class Estimate(NamedTuple):
    """Averages with their errors.

    Attributes:
        value: ``(*shape)``.
        standard_error: Standard deviation among bootstrap replicates, ``(*shape)``; infinite where a replicate had
            no weight at all.
        num_samples: Number of samples.
        ess: Relative effective sample size of their weights; where it is low, the errors are too small as well.
    """

    value: Tensor
    standard_error: Tensor
    num_samples: int
    ess: float


class Histogram(NamedTuple):
    """Probabilities of bins.

    Attributes:
        edges: ``(bins + 1,)``.
        probabilities: ``(bins,)``; they sum to one less what lies outside the limits.
        standard_error: ``(bins,)``.
        num_samples: Number of samples.
        ess: Relative effective sample size of their weights.
    """

    edges: Tensor
    probabilities: Tensor
    standard_error: Tensor
    num_samples: int
    ess: float


class Profile(NamedTuple):
    """A free energy along a coordinate, in kT, zero at its lowest point.

    Attributes:
        centres: Middles of the bins, ``(bins,)``.
        free_energy: ``(bins,)``; infinite where no sample is.
        low: Lower end of the band that holds 95 % of the bootstrap replicates, ``(bins,)``.
        high: Upper end, ``(bins,)``; infinite where a replicate in forty found the bin empty.
        num_samples: Number of samples.
    """

    centres: Tensor
    free_energy: Tensor
    low: Tensor
    high: Tensor
    num_samples: int


def reweighted(
    values: Tensor,
    log_weights: Tensor | None = None,
    *,
    num_bootstrap: int = 200,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Average of an observable over the distribution that the weights lead to.

    Args:
        values: The observable at each sample, ``(n, *shape)``.
        log_weights: Log weights up to a constant, ``(n,)``; all equal if not given. Samples must be independent:
            frames of a trajectory are to be thinned to one in an `autocorrelation_time` first.
        num_bootstrap: Number of replicates for the error.
        generator: Of the replicates, on the device of the values.

    Returns:
        The average, in float64.

    Raises:
        ValueError: If shapes differ, weights hold NaN or are all zero, or a value with weight is not finite.

    Reference:
        Efron. Bootstrap methods: another look at the jackknife. Annals of Statistics 1979.

    Example:
        >>> x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        >>> mean = reweighted(x, 0.5 * x, generator=torch.Generator().manual_seed(1))  # of a normal about 0.5
        >>> bool((mean.value - 0.5).abs() < 3 * mean.standard_error)
        True
    """
    log_weights, ess = _checked_weights(log_weights, values, num_bootstrap)
    values = _finite(values, log_weights, 0.0)
    columns = values.reshape(len(values), -1).double()
    replicates = torch.cat([part @ columns for part in _replicates(log_weights, num_bootstrap, generator)])
    value, error = torch.softmax(log_weights, 0) @ columns, _spread(replicates)
    shape = values.shape[1:]
    return Estimate(value.reshape(shape), error.reshape(shape), len(values), ess)


def populations(
    states: Tensor,
    num_states: int | None = None,
    log_weights: Tensor | None = None,
    *,
    num_bootstrap: int = 200,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Probability of each state.

    Args:
        states: Number of the state of each sample, ``(n,)``, integer or boolean.
        num_states: Number of states; one more than the largest that is there if not given.
        log_weights: Log weights up to a constant, ``(n,)``; all equal if not given.
        num_bootstrap: Number of replicates for the error.
        generator: Of the replicates, on the device of the states.

    Returns:
        Probabilities ``(num_states,)``, in float64.

    Raises:
        TypeError: If states are real numbers.
        ValueError: If shapes differ, weights hold NaN or are all zero, or a state is out of range.

    Example:
        >>> populations(torch.tensor([0, 1, 1, 2]), log_weights=torch.tensor([2.0, 1.0, 1.0, 4.0]).log()).value
        tensor([0.2500, 0.2500, 0.5000], dtype=torch.float64)
    """
    if states.is_floating_point() or states.is_complex():
        raise TypeError(f"states must be integers or booleans, got {states.dtype}")
    log_weights, ess = _checked_weights(log_weights, states, num_bootstrap, one_dimensional=True)
    states = states.long()
    num_states = int(states.max()) + 1 if num_states is None else num_states
    if not 0 <= int(states.min()) <= int(states.max()) < num_states:
        raise ValueError(f"states must be from 0 to {num_states - 1}, got {int(states.min())} to {int(states.max())}")
    value, replicates = _tallies(states, num_states, log_weights, num_bootstrap, generator)
    return Estimate(value, _spread(replicates), len(states), ess)


def histogram(
    values: Tensor,
    bins: int = 64,
    limits: tuple[float, float] = (-math.pi, math.pi),
    log_weights: Tensor | None = None,
    *,
    num_bootstrap: int = 200,
    generator: torch.Generator | None = None,
) -> Histogram:
    """Probabilities of bins of equal width; those of an angle if no limits are given.

    Args:
        values: A number for each sample, ``(n,)``.
        bins: Number of bins.
        limits: Ends of the first and the last bin.
        log_weights: Log weights up to a constant, ``(n,)``; all equal if not given.
        num_bootstrap: Number of replicates for the error.
        generator: Of the replicates, on the device of the values.

    Raises:
        ValueError: If shapes differ, weights hold NaN or are all zero, a value with weight is not finite, or
            there is no bin or no interval.

    Example:
        >>> histogram(torch.tensor([0.5, 1.5, 1.6, 9.0]), 2, (0.0, 2.0)).probabilities
        tensor([0.2500, 0.5000], dtype=torch.float64)
    """
    log_weights, ess = _checked_weights(log_weights, values, num_bootstrap, one_dimensional=True)
    edges, labels = _binned(values, bins, limits, log_weights)
    value, replicates = _tallies(labels, bins + 1, log_weights, num_bootstrap, generator)
    return Histogram(edges, value[:-1], _spread(replicates[:, :-1]), len(values), ess)


def free_energy_profile(
    values: Tensor,
    bins: int = 64,
    limits: tuple[float, float] = (-math.pi, math.pi),
    log_weights: Tensor | None = None,
    *,
    num_bootstrap: int = 200,
    generator: torch.Generator | None = None,
) -> Profile:
    """``-log`` of the density along a coordinate, with its 95 % band.

    Args:
        values: A number for each sample, ``(n,)``.
        bins: Number of bins.
        limits: Ends of the first and the last bin; those of an angle if not given.
        log_weights: Log weights up to a constant, ``(n,)``; all equal if not given.
        num_bootstrap: Number of replicates for the band.
        generator: Of the replicates, on the device of the values.

    Raises:
        ValueError: As by `histogram`, and if all samples lie outside the limits.

    Example:
        >>> x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        >>> profile = free_energy_profile(x, 20, (-2.0, 2.0), generator=torch.Generator().manual_seed(1))
        >>> profile.free_energy.shape, int(profile.free_energy.argmin()) in (8, 9, 10, 11)
        (torch.Size([20]), True)
    """
    log_weights, _ = _checked_weights(log_weights, values, num_bootstrap, one_dimensional=True)
    edges, labels = _binned(values, bins, limits, log_weights)
    value, replicates = _tallies(labels, bins + 1, log_weights, num_bootstrap, generator)
    free_energy, replicates = -value[:-1].log(), -replicates[:, :-1].nan_to_num().log()
    lowest = free_energy.min()
    if not bool(lowest.isfinite()):
        raise ValueError(f"limits: no sample with weight lies between {limits[0]:g} and {limits[1]:g}")
    ordered = replicates.sort(0).values
    # order statistics, because interpolation between two infinite ones would give NaN
    tail = int(0.025 * num_bootstrap)
    centres = (edges[1:] + edges[:-1]) / 2
    return Profile(centres, free_energy - lowest, ordered[tail] - lowest, ordered[-1 - tail] - lowest, len(values))


def autocorrelation_time(values: Tensor) -> Tensor:
    """Integrated autocorrelation time of an observable along chains, in steps; 1 for independent draws.

    Args:
        values: ``(steps, chains, *shape)``, at least four steps; chains should have reached equilibrium.

    Returns:
        ``(*shape)``; infinite where nothing ever changed.

    Raises:
        ValueError: If there are fewer steps or no chain.

    Reference:
        Geyer. Practical Markov chain Monte Carlo. Statistical Science 1992 (where the sum is cut).

    Example:
        >>> autocorrelation_time(torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))).round().item()
        1.0
    """
    if values.dim() < 2 or len(values) < 4 or not values.size(1):
        raise ValueError(f"values must be (steps, chains, ...) with four steps or more, got {tuple(values.shape)}")
    values = values.double()
    still = (values == values[:1, :1]).all(0).all(0)
    # the NaN of a constant would spread to the others
    ramp = torch.arange(len(values), device=values.device).reshape(-1, *[1] * (values.dim() - 1))
    times = values.size(0) * values.size(1) / effective_sample_size(torch.where(still, ramp, values), 1, 0)
    return torch.where(still, torch.inf, times)


def _checked_weights(
    log_weights: Tensor | None, values: Tensor, num_bootstrap: int, one_dimensional: bool = False
) -> tuple[Tensor, float]:
    """Log weights in float64, and their relative effective sample size."""
    if values.dim() < 1 or not len(values) or (one_dimensional and values.dim() > 1):
        shape = "(n,)" if one_dimensional else "(n, ...)"
        raise ValueError(f"values must be {shape} with a sample or more, got shape {tuple(values.shape)}")
    if num_bootstrap < 2:
        raise ValueError(f"num_bootstrap must be 2 or more, got {num_bootstrap}")
    if log_weights is None:
        log_weights = torch.zeros(len(values), device=values.device)
    if log_weights.shape != values.shape[:1]:
        raise ValueError(f"log_weights must be of shape ({len(values)},), got {tuple(log_weights.shape)}")
    log_weights = log_weights.detach().to(values.device, torch.float64)
    ess = relative_ess(log_weights)
    if not ess:
        raise ValueError("log_weights: all are -inf, there is nothing to average")
    return log_weights, ess


def _finite(values: Tensor, log_weights: Tensor, instead: float) -> Tensor:
    """The values, with a number in place of those without weight, such as an infinite energy."""
    has_weight = log_weights.isfinite().reshape(-1, *[1] * (values.dim() - 1))
    values = torch.where(has_weight, values.detach(), instead)
    bad = int((~values.isfinite()).reshape(len(values), -1).any(1).sum())
    if bad:
        raise ValueError(f"values: {bad} of {len(values)} are not finite and have weight")
    return values


def _binned(values: Tensor, bins: int, limits: tuple[float, float], log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Edges, and the bin of each value; the number ``bins`` stands for outside."""
    low, high = limits
    if bins < 1 or not -math.inf < low < high < math.inf:
        raise ValueError(f"bins must be 1 or more and limits finite and rising, got bins={bins}, limits={limits}")
    values = _finite(values, log_weights, low).double()
    # the two ends belong to the bins beside them, also where rounding puts pi in float32 beyond pi
    near = 1e-6 * (high - low)
    inside = (values >= low - near) & (values <= high + near)
    labels = ((values - low) * (bins / (high - low))).clamp(0, bins - 1).long()
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64, device=values.device)
    return edges, torch.where(inside, labels, bins)


def _tallies(
    labels: Tensor, num: int, log_weights: Tensor, num_bootstrap: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The weight of each label, ``(num,)``, and that in each replicate, ``(num_bootstrap, num)``."""
    none = log_weights.new_zeros(num)
    parts = [
        none.repeat(len(part), 1).index_add_(1, labels, part)
        for part in _replicates(log_weights, num_bootstrap, generator)
    ]
    return none.index_add(0, labels, torch.softmax(log_weights, 0)), torch.cat(parts)


def _replicates(log_weights: Tensor, num: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Normalised weights of samples that were drawn anew with replacement, ``(some, n)`` at once."""
    n = len(log_weights)
    weights, one = (log_weights - log_weights.max()).exp(), log_weights.new_ones(())
    for begin in range(0, num, max(1, _AT_ONCE // n)):
        size = min(num - begin, max(1, _AT_ONCE // n))
        drawn = torch.randint(n, (size, n), generator=generator, device=weights.device)
        times = weights.new_zeros(size, n).scatter_add_(1, drawn, one.expand(size, n))
        part = times * weights
        yield part / part.sum(1, keepdim=True)


def _spread(replicates: Tensor) -> Tensor:
    return replicates.std(0).nan_to_num(nan=torch.inf)
