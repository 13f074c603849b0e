"""Free-energy differences: of two generators, of states, by perturbation through a map, by BAR and by MBAR."""

from __future__ import annotations

__all__ = [
    "FreeEnergies",
    "FreeEnergyDifference",
    "bar",
    "exponential_average",
    "free_energy_difference",
    "mbar",
    "state_difference",
    "targeted_perturbation",
]

import math
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from ..diagnostics import log_evidence, relative_ess
from ..transforms import Bijection
from .phases import log_density

if TYPE_CHECKING:
    from .generator import BoltzmannGenerator

_FEW = 30  # effective draws from each generator
_LOST = 1e-3  # part of the draws that may be left out without a warning


class FreeEnergyDifference(NamedTuple):
    """The reduced free energy ``-log Z`` of a state b less that of a state a.

    Attributes:
        value: ``log Z_a - log Z_b``, dimensionless: the difference in units of kT where both have one temperature.
        standard_error: Its standard error.
        overlap: 0 to 1; below 0.03 the error should not be believed. For BAR the overlap of the two ensembles
            (1 less the second eigenvalue of the overlap matrix), otherwise the least relative effective sample size
            among the weights that were averaged.
        kT: Thermal energy that both states share, if it is known.
    """

    value: float
    standard_error: float
    overlap: float
    kT: float | None = None

    @property
    def energy(self) -> float | None:
        """The difference in the unit of the energy; None at two temperatures, where ``-kT log Z`` has no zero."""
        return None if self.kT is None else self.kT * self.value

    @property
    def energy_standard_error(self) -> float | None:
        """The standard error in the unit of the energy."""
        return None if self.kT is None else self.kT * self.standard_error


class FreeEnergies(NamedTuple):
    """Reduced free-energy differences among many states.

    Attributes:
        values: ``values[i, j]`` is the reduced free energy of state j less that of i, ``(states, states)``.
        standard_errors: ``(states, states)``.
        overlap: 0 to 1: 1 less the second eigenvalue of the overlap matrix.
    """

    values: Tensor
    standard_errors: Tensor
    overlap: float


class Density(Protocol):
    """Anything with an unnormalised log density: a `BoltzmannTarget`, a distribution of Pyro."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Points ``(n, *event_shape)`` to ``(n,)``."""
        ...


def free_energy_difference(
    a: BoltzmannGenerator, b: BoltzmannGenerator, num_samples: int = 10_000, *, method: str = "mixture"
) -> FreeEnergyDifference:
    """Difference between what two generators sample: one energy at two temperatures, or two energies.

    Both methods are exact for any flows, in that only the error depends on how well these are trained.

    * ``"mixture"``: each partition function is the mean of ``exp(-energy / kT)`` over the density of both flows
      together, at draws from both; that each flow's density integrates to one serves as a control variate. What one
      flow leaves out the other may reach, errors of both partition functions cancel in part, and with many draws the
      error is never larger than by the other method. It needs the inverse of the flows, and both energies at
      all draws.
    * ``"log_z"``: each partition function by the draws of its own generator.

    Args:
        a: The one whose free energy is subtracted.
        b: The other; its configurations are of the same shape.
        num_samples: Draws from each.
        method: ``"mixture"`` or ``"log_z"``.

    Returns:
        The difference b less a, with its standard error by the delta method.

    Raises:
        ValueError: If there is no such method, or shapes or numbers of coordinates differ.

    Warns:
        RuntimeWarning: If the result rests on few draws, or more than one draw in a thousand is lost to rounding, where
            neither flow has a density.

    Reference:
        Owen, Zhou. Safe and effective importance sampling. JASA 95, 2000. Tan. On a likelihood approach for Monte
        Carlo integration. JASA 99, 2004 (its relation to MBAR with the flows as states whose constants are known).

    Example:
        >>> from pyro_coupling.boltzmann import BoltzmannGenerator, energies
        >>> cold, hot = (BoltzmannGenerator(energies.DoubleWell(), kT=kT, seed=0, progress=False) for kT in (1.0, 2.0))
        >>> difference = free_energy_difference(cold, hot)  # of untrained flows: less precise, no less true
        >>> exact = cold.energy.log_z(1.0) - cold.energy.log_z(2.0)
        >>> abs(difference.value - exact) < 3 * difference.standard_error
        True
    """
    if method not in ("mixture", "log_z"):
        raise ValueError(f"method must be 'mixture' or 'log_z', got {method!r}")
    if a.energy.event_shape != b.energy.event_shape or a.target.dim != b.target.dim:
        raise ValueError(
            "a and b must have configurations of one shape and as many coordinates, got "
            f"{tuple(a.energy.event_shape)} with {a.target.dim} and {tuple(b.energy.event_shape)} with {b.target.dim}"
        )
    drawn = [generator.sample(num_samples) for generator in (a, b)]
    if method == "mixture":
        positions = torch.cat([samples.positions.to(a.target.device, torch.float64) for samples in drawn])
        result = _from_mixture(a, b, positions)
    else:
        of_a, of_b = (samples.log_weights.double() for samples in drawn)
        (log_z_a, error_a), (log_z_b, error_b) = log_evidence(of_a), log_evidence(of_b)
        overlap, kT = min(relative_ess(of_a), relative_ess(of_b)), a.kT if a.kT == b.kT else None
        result = FreeEnergyDifference(log_z_a - log_z_b, math.hypot(error_a, error_b), overlap, kT)
    if result.overlap * num_samples < _FEW:
        warnings.warn(
            f"free_energy_difference: the result rests on few draws (overlap {result.overlap:.1g}), and its error "
            "should not be believed",
            RuntimeWarning,
            stacklevel=2,
        )
    return result


def state_difference(
    in_a: Tensor,
    in_b: Tensor,
    log_weights: Tensor | None = None,
    *,
    kT: float | None = None,
) -> FreeEnergyDifference:
    """Difference between two states of one distribution, such as two conformers, from independent samples.

    Args:
        in_a: Which samples are in state a, boolean, ``(n,)``.
        in_b: Which are in b.
        log_weights: Log weights up to a constant, ``(n,)``; all equal if not given.
        kT: Thermal energy, for the result in its unit.

    Returns:
        Minus the logarithm of the ratio of populations, b to a, with its standard error by the delta method;
        infinite where a state has no sample.

    Raises:
        TypeError: If the states are not boolean.
        ValueError: If shapes differ.

    Example:
        >>> x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        >>> difference = state_difference(x < 0, x > 0)
        >>> abs(difference.value) < 3 * difference.standard_error
        True
    """
    if in_a.dtype != torch.bool or in_b.dtype != torch.bool:
        raise TypeError(f"in_a and in_b must be boolean, got {in_a.dtype} and {in_b.dtype}")
    log_weights = torch.zeros(in_a.shape, device=in_a.device) if log_weights is None else log_weights
    if not in_a.shape == in_b.shape == log_weights.shape:
        raise ValueError(
            "in_a, in_b and log_weights must be of one shape, got "
            f"{tuple(in_a.shape)}, {tuple(in_b.shape)} and {tuple(log_weights.shape)}"
        )
    log_weights = log_weights.double()
    log_a, log_b = (torch.where(inside, log_weights, -torch.inf) for inside in (in_a, in_b))
    return _difference(log_a, log_b, [len(log_weights)], kT)


@torch.no_grad()
def targeted_perturbation(
    a: Density,
    b: Density,
    samples_a: Tensor,
    samples_b: Tensor | None = None,
    *,
    map: Bijection | None = None,
    kT: float | None = None,
) -> FreeEnergyDifference:
    """Free-energy perturbation through a map that carries samples of a to where b has its own.

    The better the map, the less the generalised work ``log p_a(x) - log p_b(y) - log|dy/dx|`` varies; without a map
    this is Zwanzig's perturbation. With a flow as the map and its base distribution, which is normalised, as a,
    the result is ``-log Z_b``.

    Args:
        a: Unnormalised density, such as the `BoltzmannTarget` of a generator, in coordinates.
        b: The other.
        samples_a: Independent samples of a, ``(n, *event_shape)``.
        samples_b: Independent samples of b, ``(m, *event_shape)``. With both, BAR; with those of a alone, the
            exponential average, which needs that a and its map leave nothing of b out.
        map: From a to b; the identity if not given.
        kT: Thermal energy, for the result in its unit.

    Returns:
        The difference b less a.

    Raises:
        ValueError: If the work is NaN somewhere.

    Reference:
        Jarzynski. Targeted free energy perturbation. Physical Review E 65, 2002. With samples of both: Hahn, Then.
        Using bijective maps to improve free-energy estimates. Physical Review E 79, 2009.

    Example:
        >>> from pyro.distributions import Normal
        >>> from pyro_coupling.transforms import DiagonalAffine
        >>> a, b = Normal(torch.zeros(1), 1.0).to_event(1), Normal(torch.full((1,), 3.0), 1.0).to_event(1)
        >>> shift = DiagonalAffine(torch.full((1,), 3.0))
        >>> round(abs(targeted_perturbation(a, b, torch.randn(100, 1), map=shift).value), 4)
        0.0
    """
    moved, log_det = (samples_a, 0.0) if map is None else map.forward_and_log_det(samples_a)
    forward = a.log_prob(samples_a) - b.log_prob(moved) - log_det
    if samples_b is None:
        return exponential_average(forward, kT=kT)
    moved, log_det = (samples_b, 0.0) if map is None else map.inverse_and_log_det(samples_b)
    return bar(forward, b.log_prob(samples_b) - a.log_prob(moved) - log_det, kT=kT)


def exponential_average(work: Tensor, *, kT: float | None = None) -> FreeEnergyDifference:
    """Difference from the reduced work of going from a to b, at independent samples of a.

    Args:
        work: ``(n,)``, in units of kT; infinite where b has no density.
        kT: Thermal energy, for the result in its unit.

    Raises:
        ValueError: If the work is NaN or minus infinity somewhere, or not ``(n,)``.

    Reference:
        Zwanzig. High-temperature equation of state by a perturbation method. Journal of Chemical Physics 22, 1954.
        Jarzynski. Nonequilibrium equality for free energy differences. Physical Review Letters 78, 1997.

    Example:
        >>> exponential_average(torch.full((100,), 2.0))
        FreeEnergyDifference(value=2.0, standard_error=0.0, overlap=1.0, kT=None)
    """
    log_weights = -_checked_work("work", work)
    evidence = log_evidence(log_weights)
    return FreeEnergyDifference(-evidence.value, evidence.standard_error, relative_ess(log_weights), kT)


def bar(forward_work: Tensor, reverse_work: Tensor, *, kT: float | None = None) -> FreeEnergyDifference:
    """Bennett's acceptance ratio, from the reduced work of both ways: what is likeliest, given all of the work.

    Args:
        forward_work: From a to b at independent samples of a, ``(n,)``, in units of kT; infinite where b can't be.
        reverse_work: From b to a at independent samples of b, ``(m,)``.
        kT: Thermal energy, for the result in its unit.

    Returns:
        The difference b less a. With no overlap at all the standard error is infinite.

    Raises:
        ValueError: If work is NaN or minus infinity somewhere, or of the wrong shape.

    Reference:
        Bennett. Efficient estimation of free energy differences from Monte Carlo data. Journal of Computational
        Physics 22, 1976. The standard error: Shirts, Bair, Hooker, Pande. Equilibrium free energies from
        nonequilibrium measurements using maximum-likelihood methods. Physical Review Letters 91, 2003.

    Example:
        >>> x, y = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
        >>> difference = bar(0.5 - x, 0.5 + y)  # of normals about 0 and 1: the work is ((x - 1)^2 - x^2) / 2
        >>> abs(difference.value) < 3 * difference.standard_error
        True
    """
    forward = _checked_work("forward_work", forward_work)
    reverse = _checked_work("reverse_work", reverse_work).to(forward.device)
    log_ratio = math.log(len(forward) / len(reverse))
    ups, downs = forward + log_ratio, -reverse + log_ratio  # infinite ones weigh nothing in either sum

    def excess(value: float) -> float:
        return (torch.sigmoid(value - ups).sum() - torch.sigmoid(downs - value).sum()).item()

    known = torch.cat([ups, downs])
    known = known[known.isfinite()]
    if not bool(ups.isfinite().any()) or not bool(downs.isfinite().any()):
        value = math.nan if not len(known) else math.inf if not bool(ups.isfinite().any()) else -math.inf
        return FreeEnergyDifference(value, math.inf, 0.0, kT)
    margin = 40.0 + math.log(len(forward) + len(reverse))
    value = brentq(excess, known.min().item() - margin, known.max().item() + margin, xtol=1e-12)
    per_sample = 1 / len(forward) + 1 / len(reverse)
    overlap = per_sample * (torch.sigmoid(known - value) * torch.sigmoid(value - known)).sum().item()
    error = math.sqrt(per_sample * max(0.0, 1 / overlap - 1)) if overlap > 0 else math.inf
    return FreeEnergyDifference(value, error, overlap, kT)


def mbar(reduced_energies: Tensor, num_samples: Sequence[int]) -> FreeEnergies:
    """The multistate acceptance ratio, from every reduced energy at the independent samples of all states.

    Args:
        reduced_energies: ``energy / kT`` of each state at each sample, ``(states, n)``; samples of the first state come
            first, then those of the second, and so on.
        num_samples: Number of samples of each state, ``(states,)``; zero for a state that was not sampled.

    Raises:
        ImportError: If pymbar is not installed.
        ValueError: If an energy is NaN, or the numbers do not add up to n.

    Reference:
        Shirts, Chodera. Statistically optimal analysis of samples from multiple equilibrium states. Journal of Chemical
        Physics 129, 2008.

    Example:
        >>> x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
        >>> x[1000:] *= 2.0
        >>> result = mbar(torch.stack([x**2 / 2, x**2 / 8]), [1000, 1000])  # Z is twice as large
        >>> bool((result.values[0, 1] + 0.6931).abs() < 3 * result.standard_errors[0, 1])
        True
    """
    if reduced_energies.shape != (len(num_samples), sum(num_samples)):
        raise ValueError(
            "reduced_energies must be (states, n) with num_samples for each state that add up to n, got shape "
            f"{tuple(reduced_energies.shape)} and {list(num_samples)}"
        )
    if bool(reduced_energies.isnan().any()):
        raise ValueError("reduced_energies must not be NaN; a configuration that a state can't have has infinity")
    energies = reduced_energies.detach().cpu().double()
    # pymbar starts at differences of zero and may not find the way from there if they are large
    levels = torch.where(energies.isfinite(), energies, torch.nan).nanmedian(1).values
    solved = _pymbar("mbar").MBAR((energies - levels.unsqueeze(1)).numpy(), np.asarray(num_samples))
    result = solved.compute_free_energy_differences()
    values, errors = (torch.as_tensor(result[key]) for key in ("Delta_f", "dDelta_f"))
    values, device = values + levels - levels.unsqueeze(1), reduced_energies.device
    return FreeEnergies(values.to(device), errors.to(device), float(solved.compute_overlap()["scalar"]))


def _from_mixture(a: BoltzmannGenerator, b: BoltzmannGenerator, positions: Tensor) -> FreeEnergyDifference:
    """From draws of both flows, those of a first, as many of either."""
    (log_p_a, log_q_a), (log_p_b, log_q_b) = (_log_densities(generator, positions) for generator in (a, b))
    log_mixture = torch.logaddexp(log_q_a, log_q_b) - math.log(2)
    lost = ~log_mixture.isfinite()
    if int(lost.sum()) > _LOST * len(lost):
        warnings.warn(
            f"free_energy_difference: {int(lost.sum())} of {len(lost)} draws have no finite density under "
            "either flow once they are mapped back, and count as zero; use float64, or method='log_z'",
            RuntimeWarning,
            stacklevel=3,
        )
    of_a, of_b = (torch.where(lost, -torch.inf, log_p - log_mixture) for log_p in (log_p_a, log_p_b))
    control = torch.where(lost, 0.0, (log_q_a - log_mixture).exp() - 1)
    sizes = [len(positions) // 2] * 2
    return _difference(of_a, of_b, sizes, a.kT if a.kT == b.kT else None, control)


@torch.no_grad()
def _log_densities(generator: BoltzmannGenerator, positions: Tensor) -> tuple[Tensor, Tensor]:
    """``-energy / kT``, and the log density of the flow in the measure of positions: all that two flows share."""
    target, parts = generator.target, []
    for x in positions.to(target.device, target.dtype).split(target.chunk_size):
        u, log_det = (x, 0.0) if target.coordinates is None else target.coordinates.inverse_and_log_det(x)
        parts.append(torch.stack([-target.energy(x) / target.kT, log_density(generator.flow, u) + log_det]))
    log_p, log_q = torch.cat(parts, 1).to(positions)
    return torch.where(log_p.isfinite(), log_p, -torch.inf), torch.where(log_q.isfinite(), log_q, -torch.inf)


def _difference(
    log_a: Tensor, log_b: Tensor, sizes: list[int], kT: float | None, control: Tensor | None = None
) -> FreeEnergyDifference:
    """From log weights of both states at the same draws, which come in groups of independent and equal ones."""
    (log_z_a, influence_a), (log_z_b, influence_b) = (_mean(log_weights, control) for log_weights in (log_a, log_b))
    if not math.isfinite(log_z_a - log_z_b):
        return FreeEnergyDifference(log_z_a - log_z_b, math.inf, 0.0, kT)
    # the first-order change of the difference with each draw: errors that both states share cancel here
    groups = (influence_a - influence_b).split(sizes)
    variance = sum(len(group) * group.var().item() for group in groups) / len(log_a) ** 2
    overlap = min(relative_ess(log_a), relative_ess(log_b))
    return FreeEnergyDifference(log_z_a - log_z_b, math.sqrt(variance), overlap, kT)


def _mean(log_weights: Tensor, control: Tensor | None) -> tuple[float, Tensor]:
    """Logarithm of the mean weight, and how each draw moves it; without what a control of mean zero explains."""
    log_mean = log_evidence(log_weights).value
    weights = (log_weights - log_mean).exp()
    if control is None or not math.isfinite(log_mean):
        return log_mean, weights
    centred = control - control.mean()
    slope = (centred @ weights) / (centred @ centred).clamp(min=torch.finfo(centred.dtype).tiny)
    correction = 1 - slope * control.mean()
    if not correction > 0:  # a few heavy draws may lead the regression astray
        return log_mean, weights
    return log_mean + correction.log().item(), (weights - slope * control) / correction


def _checked_work(name: str, work: Tensor) -> Tensor:
    if work.dim() != 1 or not len(work):
        raise ValueError(f"{name} must be (n,) with a sample or more, got shape {tuple(work.shape)}")
    if bool((work.isnan() | (work == -math.inf)).any()):
        raise ValueError(f"{name} must not hold NaN or -inf; a sample that the other state can't have has +inf")
    return work.detach().double()


def _pymbar(owner: str) -> ModuleType:
    try:
        import pymbar
    except ImportError as error:
        raise ImportError(f'{owner} needs pymbar: pip install "pyro-coupling[molecules]"') from error
    return pymbar
