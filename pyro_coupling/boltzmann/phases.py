"""The phases of a training: by energy at a high temperature, by example while it falls, by samples that are given."""

from __future__ import annotations

__all__ = [
    "CLIPPED",
    "ByEnergy",
    "ByExample",
    "Cooling",
    "Phase",
    "PhasedTrainer",
    "Replay",
    "Rung",
    "drawn",
    "log_density",
]

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..diagnostics import clip_largest, relative_ess, resample
from ..training import Trainer, reverse_kl_backward
from ..transforms import Bijection
from .target import BoltzmannTarget

CLIPPED = 1e-4  # part of the weights, the largest, that are cut to the least of them
_RENEW_EVERY = 300  # steps for which samples serve


class Phase(Protocol):
    """A way to make gradients, for a part of the budget.

    Attributes:
        num_energies: Evaluations of the energy so far.
    """

    num_energies: int

    def __call__(self, z: Tensor, done: float) -> Tensor:
        """Sets the flow's gradients and returns log weights ``(n,)``, given base noise and how much is over, 0 to 1."""
        ...


class PhasedTrainer(Trainer):
    """Goes through phases, one after another, and spends the rest of the budget at the target by two divergences.

    The reverse divergence, by path gradients, makes weights even, but gives up a state of small probability sooner than
    it learns the bridge to it. The forward one, by maximum likelihood on samples that hold that state, does not.

    Args:
        flow: Base noise to coordinates.
        target: The distribution that is asked for.
        phases: Pairs of a phase and the part of the budget that it takes, together at most one.
        companion: Samples of the target, for the forward divergence; the reverse one alone if not given.
        **settings: As for `training.Trainer`.
    """

    def __init__(
        self,
        flow: Bijection,
        target: BoltzmannTarget,
        phases: Sequence[tuple[Phase, float]] = (),
        companion: ByExample | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(flow, target, **settings)
        self.phases = list(phases)
        self.companion = companion
        self.judged_from = None
        self._num_energies = self._num_last = 0  # of the last phase, energies and steps
        before = sum(share for _, share in phases)
        # the step size decays over the second half of the last phase, or the last fifth where that phase is missing
        self.schedule.decay_fraction = 0.5 * (1 - before) if before < 1 else 0.2

    @property
    def num_energies(self) -> int:
        """Evaluations of the energy so far."""
        sources = {id(source): source for source in (*(phase for phase, _ in self.phases), self.companion) if source}
        return self._num_energies + sum(source.num_energies for source in sources.values())

    def gradients(self, z: Tensor, seconds: float) -> Tensor:
        progress, began = self.schedule.progress(self.record.num_steps, seconds), 0.0
        for phase, share in self.phases:
            if progress < began + share:
                return phase(z, (progress - began) / share)
            began += share
        if self.judged_from is None:
            self.judged_from = len(self.record.elbo)  # what earlier phases were measured by was another density
        self._num_energies += len(z)
        log_weights = super().gradients(z, seconds)
        if self.companion is not None:
            if self._num_last % _RENEW_EVERY == 0:
                self.companion.renew()
            self.companion.add_gradient(len(z))
        self._num_last += 1
        return log_weights


class ByEnergy:
    """The reverse divergence from a distribution, such as that of a high temperature, where no barrier matters."""

    def __init__(self, flow: Bijection, target: BoltzmannTarget) -> None:
        self.flow, self.target = flow, target
        self.num_energies = 0

    def __call__(self, z: Tensor, done: float) -> Tensor:
        self.num_energies += len(z)
        for parameter in self.flow.parameters():
            parameter.grad = None
        # far from the target the path gradient is no less noisy, and takes twice as long
        return reverse_kl_backward(self.flow, self.target, z, "total")


class ByExample:
    """Maximum likelihood on samples: their forward divergence from the flow, which leaves no state out.

    Args:
        flow: Base noise to coordinates.
        samples: Coordinates ``(n, dim)``.
        log_p: Log density of the target at each, up to a constant, ``(n,)``.
        generator: Draws batches.
    """

    worth = 1.0  # of these samples beside the reverse divergence

    def __init__(self, flow: Bijection, samples: Tensor, log_p: Tensor, generator: torch.Generator) -> None:
        self.flow, self.samples, self.log_p, self.generator = flow, samples, log_p, generator
        self.num_energies = len(samples)

    def __call__(self, z: Tensor, done: float) -> Tensor:
        for parameter in self.flow.parameters():
            parameter.grad = None
        return self.add_gradient(len(z))

    def add_gradient(self, n: int) -> Tensor:
        """Adds the gradient for a batch of n samples to the flow's; returns their log weights ``(n,)``."""
        if not self.worth:
            return self.log_p.new_full((n,), -torch.inf)
        chosen = torch.randint(len(self.samples), (n,), generator=self.generator, device=self.samples.device)
        log_q = log_density(self.flow, self.samples[chosen])
        good = log_q.isfinite()
        (-self.worth * torch.where(good, log_q, 0.0).sum() / good.sum().clamp(min=1)).backward()
        return self.log_p[chosen] - log_q.detach()

    def renew(self) -> None:
        """Draws the samples anew, where that is possible."""


class Replay(ByExample):
    """Maximum likelihood on samples of the flow itself, weighted for a temperature and resampled.

    The largest weights are clipped, and the gradient counts by the relative effective sample size: where hardly
    a sample carries weight, there is nothing to learn from.

    Args:
        flow: Base noise to coordinates.
        target: The distribution.
        buffer_size: Samples drawn at a time.
        generator: Source of randomness.
    """

    def __init__(self, flow: Bijection, target: BoltzmannTarget, buffer_size: int, generator: torch.Generator) -> None:
        nothing = torch.empty(0, target.dim, dtype=target.dtype, device=target.device)
        super().__init__(flow, nothing, nothing[:, 0], generator)
        self.target, self.buffer_size = target, buffer_size

    def renew(self) -> None:
        self.refill(self.target)

    @torch.no_grad()
    def refill(self, target: BoltzmannTarget) -> None:
        """Draws new samples, of the target at some temperature."""
        u, log_q = drawn(self.flow, target, self.buffer_size, self.generator)
        log_p = torch.cat([target.log_prob(part) for part in u.split(target.chunk_size)])
        self.num_energies += len(u)
        log_weights = log_p - log_q
        log_weights = torch.where(log_weights.isfinite(), log_weights, -torch.inf)
        self.worth = relative_ess(log_weights)
        if self.worth:
            chosen = resample(clip_largest(log_weights, CLIPPED), len(u), self.generator)
            self.samples, self.log_p = u[chosen], log_p[chosen]


class Rung(NamedTuple):
    """A step down the ladder of temperatures.

    Attributes:
        kT: Thermal energy it led to.
        ess: Relative effective sample size of the flow's samples when they were weighted for it.
    """

    kT: float
    ess: float


class Cooling:
    """Down a ladder of temperatures, by both divergences.

    The forward one, on the flow's samples weighted for the next rung, keeps the states that they hold at their right
    probabilities. In many dimensions few samples have weight, and the reverse one leads the way.

    Args:
        replay: The samples.
        ladder: Thermal energies, falling; the target's own is the last.

    Attributes:
        rungs: The steps that were taken.

    Reference:
        Schopmans, Friederich. Temperature-annealed Boltzmann generators. ICML 2025 (the forward divergence).
    """

    def __init__(self, replay: Replay, ladder: Sequence[float]) -> None:
        self.replay, self.ladder = replay, list(ladder)
        self.rungs: list[Rung] = []
        self.num_energies = 0  # beside those of the replay

    def __call__(self, z: Tensor, done: float) -> Tensor:
        level = min(int(done * len(self.ladder)), len(self.ladder) - 1)
        if level >= len(self.rungs):
            target = self.replay.target.at(self.ladder[len(self.rungs)])
            self.replay.refill(target)
            self.rungs.append(Rung(target.kT, self.replay.worth))
            self._energy = ByEnergy(self.replay.flow, target)
        log_weights = self._energy(z, done)
        self.num_energies += len(z)
        self.replay.add_gradient(len(z))
        return log_weights


def drawn(flow: Bijection, target: BoltzmannTarget, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws of the flow, coordinates ``(n, dim)``, and their log density ``(n,)``."""
    z = torch.randn(n, target.dim, dtype=target.dtype, device=target.device, generator=generator)
    u, log_det = flow.forward_and_log_det(z)
    return u, _log_normal(z) - log_det


def log_density(flow: Bijection, u: Tensor) -> Tensor:
    """Log density of the flow, ``(n, dim)`` -> ``(n,)``."""
    z, log_det = flow.inverse_and_log_det(u)
    return _log_normal(z) + log_det


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1) - 0.5 * z.size(-1) * math.log(2 * math.pi)
