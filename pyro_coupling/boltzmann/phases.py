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
_KEPT = ("judged_from", "_num_energies", "_num_last", "_phase")  # by a checkpoint, of the trainer itself


class Phase(Protocol):
    """A way to make gradients, for a part of the budget.

    Attributes:
        num_energies: Evaluations of the energy so far.
        kept: Names of what changes while it trains and a checkpoint has to hold: tensors, or what JSON can.
    """

    num_energies: int
    kept: tuple[str, ...] = ("num_energies",)

    def __call__(self, z: Tensor, done: float) -> Tensor:
        """Sets the flow's gradients and returns log weights ``(n,)``, given base noise and how much is over, 0 to 1."""
        ...

    def finish(self) -> None:
        """What is left to do when its part of the budget is over."""
        return

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {name: getattr(self, name) for name in self.kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what `state` returned."""
        for name in self.kept:
            setattr(self, name, state[name])


class PhasedTrainer(Trainer):
    """Goes through phases, one after another, and spends the rest of the budget at the target by two divergences.

    The reverse divergence, by path gradients, makes weights even, but gives up a state of small probability sooner than
    it learns the bridge to it. The forward one, by maximum likelihood on samples that hold that state, does not. While
    the step size decays, the flow's own samples balance the states, with less noise.

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
        super().__init__(flow, target, balanced=True, **settings)
        self.phases = list(phases)
        self.companion = companion
        self.judged_from = None
        self._num_energies = self._num_last = 0  # of the last phase, energies and steps
        self._phase = 0  # never goes back, also where the budget was raised
        before = sum(share for _, share in phases)
        # the step size decays over the second half of the last phase, or the last fifth where that phase is missing
        self.schedule.decay_fraction = 0.5 * (1 - before) if before < 1 - 1e-6 else 0.2

    @property
    def num_energies(self) -> int:
        """Evaluations of the energy so far."""
        return self._num_energies + sum(source.num_energies for source in self._sources())

    def _sources(self) -> list[Phase]:
        """The phases and the companion, each once."""
        sources = [*(phase for phase, _ in self.phases), *([] if self.companion is None else [self.companion])]
        return list({id(source): source for source in sources}.values())

    def extra_state(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _KEPT}
        for i, source in enumerate(self._sources()):
            own |= {f"{i}.{name}": value for name, value in source.state().items()}
        return own

    def load_extra_state(self, state: dict[str, Any]) -> None:
        for name in _KEPT:
            setattr(self, name, state[name])
        for i, source in enumerate(self._sources()):
            own = f"{i}."
            source.restore({name.removeprefix(own): value for name, value in state.items() if name.startswith(own)})

    def gradients(self, z: Tensor, seconds: float) -> Tensor:
        progress = self.schedule.progress(self.record.num_steps, seconds)
        began = sum(share for _, share in self.phases[: self._phase])
        for phase, share in self.phases[self._phase :]:
            if progress < began + share:
                return phase(z, max(0.0, progress - began) / share)
            began += share
            phase.finish()
            self._phase += 1
        if self.judged_from is None:
            self.judged_from = len(self.record.elbo)  # what earlier phases were measured by was another density
        self._num_energies += len(z)
        log_weights = super().gradients(z, seconds)
        decays = self.schedule.decay_began is not None
        if self.companion is not None and not (decays and self.companion.ends_early):
            if self._num_last % _RENEW_EVERY == 0:
                self.companion.renew()
            self.companion.add_gradient(len(z))
        self._num_last += 1
        return log_weights


class ByEnergy(Phase):
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


class ByExample(Phase):
    """Maximum likelihood on samples: their forward divergence from the flow, which leaves no state out.

    Args:
        flow: Base noise to coordinates.
        samples: Coordinates ``(n, dim)``.
        log_p: Log density of the target at each, up to a constant, ``(n,)``.
        generator: Draws batches.
    """

    worth = 1.0  # of these samples beside the reverse divergence
    ends_early = False  # whether they are left out once the step size decays

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
    a sample carries weight, there is nothing to learn from. Once the step size decays, balanced path gradients take
    over: unlike these they do not fluctuate where the flow is right.

    Args:
        flow: Base noise to coordinates.
        target: The distribution.
        buffer_size: Samples drawn at a time.
        generator: Source of randomness.
    """

    kept = ("num_energies", "worth", "samples", "log_p")
    ends_early = True

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


class Cooling(Phase):
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

    kept = ("num_energies", "rungs")

    def __init__(self, replay: Replay, ladder: Sequence[float]) -> None:
        self.replay, self.ladder = replay, list(ladder)
        self.rungs: list[Rung] = []
        self.num_energies = 0  # beside those of the replay

    def __call__(self, z: Tensor, done: float) -> Tensor:
        self._descend(min(int(done * len(self.ladder)), len(self.ladder) - 1))
        log_weights = self._energy(z, done)
        self.num_energies += len(z)
        self.replay.add_gradient(len(z))
        return log_weights

    def finish(self) -> None:
        self._descend(len(self.ladder) - 1)  # a short run may not have come so far

    def _descend(self, level: int) -> None:
        if self.rungs and self.rungs[-1].kT <= self.ladder[level]:
            return
        target = self.replay.target.at(self.ladder[level])
        self.replay.refill(target)
        self.rungs.append(Rung(target.kT, self.replay.worth))
        self._energy = ByEnergy(self.replay.flow, target)

    def restore(self, state: dict[str, Any]) -> None:
        self.num_energies = state["num_energies"]
        self.rungs[:] = [Rung(*rung) for rung in state["rungs"]]
        if self.rungs:
            self._energy = ByEnergy(self.replay.flow, self.replay.target.at(self.rungs[-1].kT))


def drawn(flow: Bijection, target: BoltzmannTarget, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
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
