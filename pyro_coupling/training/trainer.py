"""The one training loop: every flow that is fitted to an unnormalised density is fitted here."""

from __future__ import annotations

__all__ = ["Trainer", "TrainingRecord", "TrainingState"]

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..diagnostics import relative_ess
from ..targets import Target
from ..transforms import Bijection
from .distribution import Ranks
from .interrupts import PostponedInterrupt
from .joined_adam import JoinedAdam
from .objectives import ESTIMATORS
from .schedule import Schedule
from .steps import GradientStep

_WINDOW = 200  # steps over which progress is judged
_AVERAGE_EVERY, _AVERAGE_WEIGHT = 10, 0.1


@dataclass
class TrainingRecord:
    """What happened in a run.

    Attributes:
        num_steps: Steps taken.
        seconds: Time they took.
        elbo: Mean log weight in each window of steps.
        ess: Relative effective sample size of the log weights in each window.
        steps: Step at which each window ended.
        skipped_samples: Samples left out because they were not finite.
        skipped_steps: Steps left out because no gradient was finite.
        stopped_by: ``"converged"``, ``"max_steps"``, ``"max_seconds"`` or ``"interrupt"``.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_coupling import FlowVI
        >>> model = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> record = FlowVI(model, max_steps=20, seed=0, progress=False).run().record
        >>> record.num_steps, record.stopped_by
        (20, 'max_steps')
    """

    num_steps: int = 0
    seconds: float = 0.0
    elbo: list[float] = field(default_factory=list)
    ess: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    skipped_samples: int = 0
    skipped_steps: int = 0
    stopped_by: str = ""


@dataclass(frozen=True)
class TrainingState:
    """A glance at a running fit, for a progress line.

    Attributes:
        step: Steps taken.
        seconds: Time they took.
        progress: Part of the budget that is used, 0 to 1.
        log_weights: Log weights of the latest steps, ``(n,)``.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_coupling import FlowVI
        >>> bounds = []
        >>> def note(state):
        ...     if state.step % 10 == 0:
        ...         bounds.append(state.log_weights.mean().item())
        >>> model = lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> _ = FlowVI(model, max_steps=50, seed=0, progress=False, callback=note).run()
        >>> len(bounds)
        5
    """

    step: int
    seconds: float
    progress: float
    log_weights: Tensor


class Trainer:
    """Fits a flow to a target by the reverse Kullback-Leibler divergence, with Adam.

    While the step size decays, samples of large importance weight count more, which draws the flow over the
    target's tails: ``covering`` in `objectives.reverse_kl`.

    Samples at which the target is not finite are left out and counted; a step without a finite gradient
    is skipped; the gradient norm is clipped. The parameters of the result are a running average over the
    last steps. A run ends when the fit no longer improves, at the latest at a given step or time.

    Args:
        flow: Base noise to sample; its parameters are trained in place.
        target: The density.
        num_particles: Samples in each step, over all ranks.
        learning_rate: Peak step size.
        estimator: Gradient estimator, see `objectives.reverse_kl`.
        max_steps: Largest number of steps.
        max_seconds: Longest time.
        generator: Source of randomness. All ranks need the same, in the same state.
        ranks: The processes that train together, see `distribution.joined_ranks`; this one alone if not given.
        compile: Whether to compile the step, see `steps.GradientStep`.
        balanced: Whether to mind the probabilities of separate modes while the step size decays, see
            `objectives.reverse_kl`.

    Raises:
        ValueError: If an argument is out of range, or there are fewer particles than ranks.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_coupling import flows
        >>> from pyro_coupling.targets import PyroTarget
        >>> target = PyroTarget(lambda: pyro.sample("x", dist.StudentT(5.0, torch.zeros(2), 1.0).to_event(1)))
        >>> flow = flows.real_nvp(2, num_layers=2)
        >>> Trainer(flow, target, max_steps=20).run().num_steps
        20
    """

    def __init__(
        self,
        flow: Bijection,
        target: Target,
        *,
        num_particles: int = 128,
        learning_rate: float = 3e-3,
        estimator: str = "path",
        max_steps: int = 50_000,
        max_seconds: float = math.inf,
        generator: torch.Generator | None = None,
        ranks: Ranks | None = None,
        compile: bool = False,
        balanced: bool = False,
    ) -> None:
        for name, value in (("num_particles", num_particles), ("learning_rate", learning_rate),
                            ("max_steps", max_steps), ("max_seconds", max_seconds)):  # fmt: skip
            if not value > 0:
                raise ValueError(f"Trainer: {name} must be positive, got {value}")
        if estimator not in ESTIMATORS:
            raise ValueError(f"Trainer: estimator must be one of {ESTIMATORS}, got {estimator!r}")
        self.ranks = ranks or Ranks()
        if num_particles < self.ranks.size:
            raise ValueError(f"Trainer: num_particles must be at least 1 for each of {self.ranks.size} ranks, "
                             f"got {num_particles}")  # fmt: skip
        self.flow = flow
        self.target = target
        self.num_particles = num_particles
        self.learning_rate = learning_rate
        self.estimator = estimator
        self.generator = generator or torch.Generator(device=target.device)
        self.parameters: list[Tensor] = [p for p in flow.parameters() if p.requires_grad]
        self.gradient_step = GradientStep(flow, target, estimator, compile, self.ranks, balanced)
        self.optimizer = JoinedAdam(self.parameters, learning_rate)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.last: list[Tensor] = []  # the optimiser's own parameters, once a run has put the average in their place
        self.schedule = Schedule(max_steps, max_seconds)
        self.judged_from: int | None = 0  # the window with which judging begins; None while it is too early for that
        self.record = TrainingRecord()
        self.recent: deque[Tensor] = deque(maxlen=_WINDOW)

    def run(self, watch: Callable[[TrainingState], Any] | None = None) -> TrainingRecord:
        """Trains until the end. Ctrl-C ends it after the step that it is in, and keeps what was learned.

        Args:
            watch: Called after every step.
        """
        began = time.monotonic() - self.record.seconds
        self.last = []
        try:
            with PostponedInterrupt() as interrupt:
                while True:
                    seconds, interrupted = self.ranks.agree(time.monotonic() - began, interrupt.seen)
                    self.record.seconds = seconds
                    if self.schedule.over(self.record.num_steps, seconds):
                        break
                    if interrupted:
                        raise KeyboardInterrupt
                    self._step(seconds)
                    self.record.seconds = time.monotonic() - began
                    if watch is not None:
                        watch(self.state())
            self.record.stopped_by = self._reason()
        except KeyboardInterrupt:
            self.record.stopped_by = "interrupt"
        with torch.no_grad():
            self.last = [p.detach().clone() for p in self.parameters]
            torch._foreach_copy_(self.parameters, self.averages)
        return self.record

    def extra_state(self) -> dict[str, Any]:
        """What a subclass needs to go on from a checkpoint, beside what this class has: tensors, or for JSON."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes up what `extra_state` returned."""

    def state(self) -> TrainingState:
        """A glance at the fit as it is now."""
        record = self.record
        recent = list(self.recent)[-20:]
        log_weights = torch.cat(recent) if recent else torch.empty(0)
        return TrainingState(
            record.num_steps, record.seconds, self.schedule.progress(record.num_steps, record.seconds), log_weights
        )

    def _step(self, seconds: float) -> None:
        record, step = self.record, self.record.num_steps
        self.optimizer.learning_rate = self.learning_rate * self.schedule.factor(step, seconds)
        z = torch.randn(
            self.num_particles, self.target.dim,
            dtype=self.target.dtype, device=self.target.device, generator=self.generator,
        )  # fmt: skip
        if step == 0 and self.ranks.size > 1:  # a layer that is set by the first batch has to see all of it
            with torch.no_grad():
                self.flow.forward_and_log_det(z)
        log_weights = self.gradients(z, seconds)
        self.ranks.add([p.grad for p in self.parameters if p.grad is not None])
        self.clip_and_step()
        record.skipped_samples += int((~log_weights.isfinite()).sum())
        record.num_steps += 1
        self.recent.append(log_weights)
        if record.num_steps % _WINDOW == 0:
            self._judge(seconds)

    def gradients(self, z: Tensor, seconds: float) -> Tensor:
        """Sets the parameters' gradients from base noise; returns the log weights of its samples, ``(n,)``."""
        # early on weights are too uneven to say anything of the tails
        covering = self.schedule.decay_began is not None
        return self.gradient_step(z, covering, self.record.num_steps)

    def clip_and_step(self) -> None:
        """Clips the gradients, takes the optimiser's step and moves the running average."""
        if not self.optimizer.step():
            self.record.skipped_steps += 1
        if self.record.num_steps % _AVERAGE_EVERY == 0:
            # the average reaches back over the last hundred steps, and over fewer at the start
            weight = max(_AVERAGE_WEIGHT, 1 / (self.record.num_steps // _AVERAGE_EVERY + 1))
            torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], weight)

    def _judge(self, seconds: float) -> None:
        """Notes how good the fit is, and begins the decay once it is good or no longer improves."""
        record = self.record
        log_weights = torch.cat(list(self.recent))
        finite = log_weights[log_weights.isfinite()]
        record.steps.append(record.num_steps)
        record.elbo.append(finite.mean().item() if len(finite) else -math.inf)
        record.ess.append(relative_ess(log_weights))
        variance = finite.var().item() if len(finite) > 1 else math.inf
        if self.judged_from is not None and (variance < 0.02 or self._stalled()):
            self.schedule.begin_decay(record.num_steps, seconds)

    def _stalled(self) -> bool:
        """Whether neither ELBO nor effective sample size has been gaining over the last ten windows."""
        elbo, ess = self.record.elbo[self.judged_from :], self.record.ess[self.judged_from :]
        if len(elbo) < 20:
            return False

        def gain(values: list[float]) -> float:
            return sum(values[-5:]) / 5 - sum(values[-20:-15]) / 5

        return gain(elbo) < 0.01 and gain(ess) < 0.01

    def _reason(self) -> str:
        if self.record.num_steps >= self.schedule.max_steps:
            return "max_steps"
        return "max_seconds" if self.record.seconds >= self.schedule.max_seconds else "converged"
