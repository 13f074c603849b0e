"""The step size over a run: warm-up, a stable phase for as long as it pays, then decay."""

from __future__ import annotations

__all__ = ["Schedule"]

import math
from dataclasses import dataclass, field


@dataclass
class Schedule:
    """Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): the end need not be known in advance.

    The decay begins when `begin_decay` is called, because the fit no longer improves, or when as much of
    the budget is left as the decay takes; then it lasts until the budget is used up. It follows a half cosine to a
    hundredth of the step size.

    Attributes:
        max_steps: Step at which to end at the latest.
        max_seconds: Seconds after which to end at the latest.
        warm_up: Steps of linear warm-up.
        decay_fraction: Part of the run that the decay takes.
    """

    max_steps: int
    max_seconds: float
    warm_up: int = 100
    decay_fraction: float = 0.5
    min_decay: int = 300
    decay_began: tuple[int, float] | None = field(default=None, init=False)
    decay_steps: int = field(default=0, init=False)

    def begin_decay(self, step: int, seconds: float) -> None:
        """Starts the decay, as long as a fixed part of what went before."""
        if self.decay_began is None:
            self.decay_began = (step, seconds)
            self.decay_steps = max(self.min_decay, round(step * self.decay_fraction / (1 - self.decay_fraction)))

    def progress(self, step: int, seconds: float) -> float:
        """Part of the run that is over, 0 to 1, by the stricter of the two limits."""
        return max(step / self.max_steps, seconds / self.max_seconds)

    def factor(self, step: int, seconds: float) -> float:
        """Step size relative to its peak."""
        if self.decay_began is None and self.progress(step, seconds) >= 1 - self.decay_fraction:
            self.decay_began, self.decay_steps = (step, seconds), self.max_steps  # no end but the budget's
        return min(1.0, (step + 1) / self.warm_up) * (
            0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self._decayed(step, seconds)))
        )

    def over(self, step: int, seconds: float) -> bool:
        """Whether the run has come to its end."""
        return self.progress(step, seconds) >= 1 or self._decayed(step, seconds) >= 1

    def _decayed(self, step: int, seconds: float) -> float:
        """Part of the decay that is over: by its own length, or by what the budget has left for it."""
        if self.decay_began is None:
            return 0.0
        began_step, began_seconds = self.decay_began
        by_length = (step - began_step) / self.decay_steps
        by_steps = (step - began_step) / max(1, self.max_steps - began_step)
        by_time = (seconds - began_seconds) / max(1e-9, self.max_seconds - began_seconds)
        return min(1.0, max(by_length, by_steps, by_time))
