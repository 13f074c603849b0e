"""Annealed importance sampling: Hamiltonian moves that lead draws of a flow on towards a target."""

from __future__ import annotations

__all__ = ["AnnealedEstimate", "Annealer", "Annealing", "annealed_importance_sampling"]

from typing import NamedTuple

import torch
from torch import Tensor

from ..diagnostics import log_evidence
from ..targets import log_prob_and_score
from ..transforms import Bijection
from .checks import check_count, check_positive
from .phases import drawn, log_density
from .target import BoltzmannTarget

_ACCEPTED = 0.65  # the part of Hamiltonian moves that should be accepted (Beskos et al. 2013)
_LARGEST_FORCE = 1e3
_TUNING_RUNS, _TUNING_SAMPLES = 20, 64


class AnnealedEstimate(NamedTuple):
    """What annealed importance sampling found.

    Attributes:
        positions: Configurations, ``(n, *event_shape)``.
        energies: Their energies, ``(n,)``.
        log_weights: The logarithm of their mean is the log partition function, ``(n,)``.
        log_z: Log partition function.
        log_z_se: Its standard error.
        acceptance: Part of the moves that was accepted at each level, ``(levels,)``.
        num_energies: Evaluations of the energy, most of them with its gradient.
    """

    positions: Tensor
    energies: Tensor
    log_weights: Tensor
    log_z: float
    log_z_se: float
    acceptance: Tensor
    num_energies: int


class Annealing(NamedTuple):
    """A batch of annealed draws.

    Attributes:
        u: Coordinates, ``(n, dim)``.
        log_p: Log density of the target there, unnormalised, ``(n,)``.
        log_q: Log density of the flow there, ``(n,)``.
        log_weights: Of the annealed draws, ``(n,)``.
        before: Log weights of the flow's draws that they came from, ``(n,)``.
        acceptance: Part of the moves that was accepted at each level, ``(levels,)``.
    """

    u: Tensor
    log_p: Tensor
    log_q: Tensor
    log_weights: Tensor
    before: Tensor
    acceptance: Tensor


def annealed_importance_sampling(
    flow: Bijection,
    target: BoltzmannTarget,
    num_samples: int,
    *,
    num_levels: int = 8,
    num_leapfrog: int = 4,
    step_size: float = 0.1,
    generator: torch.Generator | None = None,
) -> AnnealedEstimate:
    """Moves draws of a flow through distributions between it and the target; their weights are exact.

    The mean weight is an unbiased estimate of the partition function for any number of levels, and of less
    variance than that of the flow's own draws, the more so the more levels there are. The steps of the moves are
    tuned in runs that do not count.

    Args:
        flow: Base noise ``(dim,)`` to coordinates, such as ``generator.flow`` of a `BoltzmannGenerator`.
        target: The distribution of coordinates, such as ``generator.target``.
        num_samples: Number of draws.
        num_levels: Number of distributions between flow and target.
        num_leapfrog: Leapfrog steps of the Hamiltonian move at each.
        step_size: Of the leapfrog steps, before tuning.
        generator: Source of random numbers, on the device of the target.

    Raises:
        ValueError: If a number is not positive.

    Reference:
        Neal. Annealed importance sampling. Statistics and Computing 11, 2001.

    Example:
        >>> from pyro_coupling.boltzmann.energies import DoubleWell
        >>> from pyro_coupling.transforms import DiagonalAffine
        >>> target = BoltzmannTarget(DoubleWell(), 1.0, None, torch.float64, torch.device("cpu"))
        >>> flow = DiagonalAffine(torch.zeros(2, dtype=torch.float64))  # a standard normal
        >>> found = annealed_importance_sampling(flow, target, 1000, generator=torch.Generator().manual_seed(0))
        >>> abs(found.log_z - DoubleWell().log_z()) < 4 * found.log_z_se
        True
    """
    check_count("annealed_importance_sampling", "num_samples", num_samples)
    annealer = Annealer(flow, target, num_levels, num_leapfrog, step_size=step_size, generator=generator)
    for _ in range(_TUNING_RUNS):
        annealer.adapt(annealer.run(_TUNING_SAMPLES).acceptance)
    sizes = [min(target.chunk_size, num_samples - done) for done in range(0, num_samples, target.chunk_size)]
    parts = [annealer.run(n) for n in sizes]
    with torch.no_grad():
        positions = [target.configurations(part.u)[0] for part in parts]
        energies = [target.energy(part) for part in positions]
    log_weights = torch.cat([part.log_weights for part in parts])
    evidence = log_evidence(log_weights.double())
    num_drawn = _TUNING_RUNS * _TUNING_SAMPLES + num_samples
    return AnnealedEstimate(
        positions=torch.cat(positions),
        energies=torch.cat(energies),
        log_weights=log_weights,
        log_z=evidence.value,
        log_z_se=evidence.standard_error,
        acceptance=torch.stack([n * part.acceptance for n, part in zip(sizes, parts, strict=True)]).sum(0)
        / num_samples,
        num_energies=num_drawn * annealer.energies_per_sample + num_samples,
    )


class Annealer:
    """Leads draws of a flow q through the densities ``q^(1 - s) p^s``, s from 0 to a power.

    The power 1 leads to the target p; 2 to ``p^2 / q``, from which importance sampling finds the alpha = 2
    divergence with the least variance. The densities are evenly spaced in s, and each but the two ends is the
    invariant density of one Hamiltonian move.

    Args:
        flow: Base noise to coordinates.
        target: The distribution.
        num_levels: Number of densities between the two ends.
        num_leapfrog: Leapfrog steps of each move.
        power: The last s.
        step_size: Of the leapfrog steps at first.
        generator: Source of randomness.

    Attributes:
        step_sizes: Of each level, ``(levels,)``.
        energies_per_sample: Evaluations of the energy that one draw takes.

    Raises:
        ValueError: If a number is not positive.

    Reference:
        Midgley, Stimper, Simm, Schölkopf, Hernández-Lobato. Flow annealed importance sampling bootstrap. ICLR 2023.
    """

    def __init__(
        self,
        flow: Bijection,
        target: BoltzmannTarget,
        num_levels: int,
        num_leapfrog: int = 4,
        *,
        power: float = 1.0,
        step_size: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, count in (("num_levels", num_levels), ("num_leapfrog", num_leapfrog)):
            check_count(self, name, count)
        for name, number in (("power", power), ("step_size", step_size)):
            check_positive(self, name, number)
        self.flow, self.target, self.generator = flow, target, generator
        self.num_leapfrog = num_leapfrog
        self.powers = [power * level / (num_levels + 1) for level in range(1, num_levels + 2)]
        self.step_sizes = torch.full((num_levels,), step_size, dtype=target.dtype, device=target.device)
        self.energies_per_sample = 1 + num_levels * num_leapfrog
        self._flow_density = _FlowDensity(flow, target)

    def run(self, n: int) -> Annealing:
        """Draws n samples and leads them on."""
        with torch.no_grad():
            u, _ = drawn(self.flow, self.target, n, self.generator)
        points = self._at(u)
        before = points.log_weights
        log_weights = self.powers[0] * before
        rates = []
        for power, following, step_size in zip(self.powers, self.powers[1:], self.step_sizes, strict=False):
            points, rate = self._move(points, power, step_size)
            log_weights = log_weights + (following - power) * points.log_weights
            rates.append(rate)
        return Annealing(points.u, points.log_p, points.log_q, log_weights, before, torch.stack(rates))

    def adapt(self, acceptance: Tensor) -> None:
        """Lengthens the steps of levels that accept more than they should, and shortens the others.

        Steps change between runs alone: within one they depend on none of its draws, which keeps weights exact.

        Args:
            acceptance: Of the latest run.
        """
        self.step_sizes = self.step_sizes * (acceptance - _ACCEPTED).exp()

    def _move(self, points: _Points, power: float, step_size: Tensor) -> tuple[_Points, Tensor]:
        """A Hamiltonian move that leaves a density invariant; also the part of draws that took it."""
        start = torch.randn(points.u.shape, dtype=points.u.dtype, device=points.u.device, generator=self.generator)
        momentum, proposed = start, points
        for _ in range(self.num_leapfrog):
            momentum = momentum + 0.5 * step_size * proposed.force(power)
            proposed = self._at(proposed.u + step_size * momentum)
            momentum = momentum + 0.5 * step_size * proposed.force(power)
        gain = proposed.height(power) - points.height(power) + 0.5 * (start.square() - momentum.square()).sum(-1)
        uniform = torch.rand(gain.shape, dtype=gain.dtype, device=gain.device, generator=self.generator)
        yes = uniform.log() < gain  # NaN is a no
        pairs = zip(points, proposed, strict=True)
        kept = (torch.where(yes.reshape(-1, *[1] * (old.dim() - 1)), new, old) for old, new in pairs)
        return _Points(*kept), yes.to(gain.dtype).mean()

    def _at(self, u: Tensor) -> _Points:
        log_p, score_p = log_prob_and_score(self.target, u)
        log_q, score_q = log_prob_and_score(self._flow_density, u)
        return _Points(u, log_p, score_p, log_q, score_q)


class _Points(NamedTuple):
    """Coordinates with the log densities of target and flow there, and their gradients."""

    u: Tensor
    log_p: Tensor
    score_p: Tensor
    log_q: Tensor
    score_q: Tensor

    @property
    def log_weights(self) -> Tensor:
        return torch.where(self._good, self.log_p - self.log_q, -torch.inf)

    def height(self, power: float) -> Tensor:
        """Log density ``(n,)``."""
        return torch.where(self._good, (1 - power) * self.log_q + power * self.log_p, -torch.inf)

    def force(self, power: float) -> Tensor:
        """Its gradient, cut where it is enormous: any function of the place makes a reversible leapfrog step."""
        gradient = (1 - power) * self.score_q + power * self.score_p
        return gradient.clamp(-_LARGEST_FORCE, _LARGEST_FORCE)

    @property
    def _good(self) -> Tensor:
        return self.log_p.isfinite() & self.log_q.isfinite()


class _FlowDensity:
    """The density of a flow as a `targets.Target`."""

    def __init__(self, flow: Bijection, target: BoltzmannTarget) -> None:
        self.flow = flow
        self.dim, self.dtype, self.device = target.dim, target.dtype, target.device
        self.chunk_size = target.chunk_size

    def log_prob(self, x: Tensor) -> Tensor:
        return log_density(self.flow, x)
