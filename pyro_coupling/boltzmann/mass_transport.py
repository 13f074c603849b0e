"""Constrained mass transport (CMT): from a flow to a target in steps of bounded divergence and loss of entropy."""

from __future__ import annotations

__all__ = ["MassTransport", "TransportStep", "transport_step"]

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor

from ..diagnostics import relative_ess, resample
from ..transforms import Bijection
from .checks import check_positive
from .phases import ByExample, Rung, drawn
from .target import BoltzmannTarget

_LARGEST = 60.0  # exponent of the largest multiplier
_PRECISION = 1e-9  # of the multipliers' logarithms


class TransportStep(NamedTuple):
    """The distribution closest to the target within both bounds, on samples of the one that it starts from.

    Attributes:
        log_weights: Of the samples, ``(n,)``, normalised to sum to one.
        trust: Multiplier of the divergence; 0 where its bound does not bind.
        entropy: Multiplier of the loss of entropy; 0 where its bound does not bind.
        divergence: KL divergence from the start, nats.
        entropy_loss: Entropy of the start less that of the result, nats.
    """

    log_weights: Tensor
    trust: float
    entropy: float
    divergence: float
    entropy_loss: float

    @property
    def reached(self) -> bool:
        """Whether the result is the target itself."""
        return self.trust == self.entropy == 0.0


def transport_step(
    log_p: Tensor, log_q: Tensor, max_divergence: float = 0.3, max_entropy_loss: float = 1.0
) -> TransportStep:
    """Goes from q towards p as far as two bounds allow.

    Sought is the density r that minimises ``KL(r || p)`` subject to ``KL(r || q) <= max_divergence`` and
    ``H(q) - H(r) <= max_entropy_loss``. With multipliers a and b of the bounds, the Lagrangian is

        ``(1 + a + b) E_r[log r] - E_r[log p + a log q] - a max_divergence + b (H(q) - max_entropy_loss)``

    whose minimum over r, at fixed a and b, is

        ``r = (p q^a)^(1 / (1 + a + b)) / Z``.

    With ``b = 0`` these are the geometric mixtures of q and p, with ``a = 0`` it is p at a higher temperature. Put
    in, it leaves the dual function

        ``g(a, b) = -(1 + a + b) log Z - a max_divergence + b (H(q) - max_entropy_loss)``,

    concave, whose slopes are ``KL(r || q) - max_divergence`` and ``H(q) - H(r) - max_entropy_loss``. Its maximum over
    ``a, b >= 0`` is found by one root within another: of the second slope, at the a that is best for each b. All is
    estimated on samples of q, for which r is a set of weights; on these, what is said holds exactly.

    Args:
        log_p: Log density of the target at samples of q, up to a constant, ``(n,)``. Samples where it is not finite
            get no weight and do not count.
        log_q: Normalised log density of q, ``(n,)``.
        max_divergence: Bound on the divergence, nats.
        max_entropy_loss: Bound on the loss of entropy, nats.

    Raises:
        ValueError: If a bound is not positive, or no log density is finite.

    Reference:
        von Klitzing, Blessing, Schopmans, Friederich, Neumann. Learning Boltzmann generators via constrained mass
        transport. 2025, arXiv 2510.18460.

    Example:
        >>> x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        >>> step = transport_step(-2.0 * (x - 3) ** 2, -0.5 * x**2 - 0.919, max_divergence=0.1, max_entropy_loss=0.05)
        >>> round(step.divergence, 4), round(step.entropy_loss, 4), step.reached
        (0.1, 0.05, False)
    """
    for name, bound in (("max_divergence", max_divergence), ("max_entropy_loss", max_entropy_loss)):
        check_positive("transport_step", name, bound)
    good = log_p.isfinite() & log_q.isfinite()
    if not bool(good.any()):
        raise ValueError("transport_step: there must be samples at which both log densities are finite, got none")
    problem = _Problem(log_p[good].double(), log_q[good].double(), max_divergence, max_entropy_loss)
    entropy = _multiplier(lambda b: problem.excess(problem.best_trust(b), b)[1])
    trust = problem.best_trust(entropy)
    weights, divergence, loss = problem.at(trust, entropy)
    log_weights = torch.full_like(log_p, -torch.inf, dtype=torch.float64).masked_scatter(good, weights)
    return TransportStep(log_weights, trust, entropy, divergence, loss)


class _Problem(NamedTuple):
    """Both densities at samples, and the bounds."""

    log_p: Tensor
    log_q: Tensor
    max_divergence: float
    max_entropy_loss: float

    def at(self, trust: float, entropy: float) -> tuple[Tensor, float, float]:
        """Normalised log weights, divergence and loss of entropy at two multipliers."""
        log_weights = ((self.log_p - (1 + entropy) * self.log_q) / (1 + trust + entropy)).log_softmax(0)
        weights = log_weights.exp()
        divergence = (weights * log_weights).sum().item() + math.log(len(weights))
        loss = ((weights - 1 / len(weights)) * self.log_q).sum().item() + divergence
        return log_weights, divergence, loss

    def excess(self, trust: float, entropy: float) -> tuple[float, float]:
        """By how much each bound is exceeded."""
        _, divergence, loss = self.at(trust, entropy)
        return divergence - self.max_divergence, loss - self.max_entropy_loss

    def best_trust(self, entropy: float) -> float:
        # in units in which a given multiplier bends the result as much whatever the other
        return (1 + entropy) * _multiplier(lambda a: self.excess((1 + entropy) * a, entropy)[0])


def _multiplier(excess: Callable[[float], float]) -> float:
    """Where a falling function of a multiplier is zero; 0 where it is never positive."""
    if excess(0.0) <= 0:
        return 0.0
    # from 0 on evenly at first and then by factors
    return math.expm1(brentq(lambda x: excess(math.expm1(x)), 0.0, _LARGEST, xtol=_PRECISION))


class MassTransport(ByExample):
    """CMT: the flow is fitted to one `transport_step` after another, each from where the flow has come.

    The samples of a step are drawn from the flow, weighted and resampled, and learned by maximum likelihood. Once no
    bound binds, the step ends at the target itself, and what follows is learning from its weighted samples.

    Args:
        flow: Base noise to coordinates.
        target: The distribution.
        num_rungs: Number of steps.
        buffer_size: Samples for each.
        generator: Source of randomness.
        max_divergence: Bound on the divergence of each step, nats.
        max_entropy_loss: Bound on its loss of entropy, nats.

    Attributes:
        rungs: For each step ``kT`` times the sum of 1 and both multipliers, the temperature at which the energy
            enters its distribution, and the effective sample size.

    Reference:
        von Klitzing, Blessing, Schopmans, Friederich, Neumann. Learning Boltzmann generators via constrained mass
        transport. 2025, arXiv 2510.18460.
    """

    kept = ("num_energies", "samples", "log_p", "rungs", "level")

    def __init__(
        self,
        flow: Bijection,
        target: BoltzmannTarget,
        num_rungs: int,
        buffer_size: int,
        generator: torch.Generator,
        *,
        max_divergence: float = 0.3,
        max_entropy_loss: float = 1.0,
    ) -> None:
        nothing = torch.empty(0, target.dim, dtype=target.dtype, device=target.device)
        super().__init__(flow, nothing, nothing[:, 0], generator)
        self.target, self.num_rungs, self.buffer_size = target, num_rungs, buffer_size
        self.bounds = (max_divergence, max_entropy_loss)
        self.rungs: list[Rung] = []
        self.level = -1

    def __call__(self, z: Tensor, done: float) -> Tensor:
        level = int(done * self.num_rungs)
        if level > self.level or not len(self.samples):
            self.level = level
            self.renew()
        return super().__call__(z, done) if len(self.samples) else self.log_p.new_full((len(z),), -torch.inf)

    @torch.no_grad()
    def renew(self) -> None:
        """Draws samples of the flow and weights them for the next step."""
        u, log_q = drawn(self.flow, self.target, self.buffer_size, self.generator)
        log_p = torch.cat([self.target.log_prob(part) for part in u.split(self.target.chunk_size)])
        self.num_energies += len(u)
        if not bool((log_p.isfinite() & log_q.isfinite()).any()):
            return
        step = transport_step(log_p, log_q, *self.bounds)
        self.rungs.append(Rung(self.target.kT * (1 + step.trust + step.entropy), relative_ess(step.log_weights)))
        chosen = resample(step.log_weights, len(u), self.generator)
        self.samples, self.log_p = u[chosen], log_p[chosen]

    def restore(self, state: dict[str, Any]) -> None:
        rungs = self.rungs
        super().restore(state)
        rungs[:] = [Rung(*rung) for rung in self.rungs]
        self.rungs = rungs
