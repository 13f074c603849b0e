"""The progress line: ELBO, ESS, k-hat, steps a second and time left, in a terminal or a notebook."""

from __future__ import annotations

__all__ = ["ProgressLine"]

import time
import warnings

from ..diagnostics import pareto_smooth, relative_ess
from .trainer import TrainingState

_INTERVAL = 0.5  # seconds between updates


class ProgressLine:
    """A line that is rewritten as a fit goes on; use it as a context manager.

    Args:
        enabled: Whether to show anything at all.
        name: What stands in front of it.
    """

    def __init__(self, enabled: bool, name: str = "FlowVI") -> None:
        self.enabled = enabled
        self.name = name
        self._last = 0.0
        self._bar = None

    def __enter__(self) -> ProgressLine:
        if self.enabled:
            with warnings.catch_warnings():  # a notebook without widgets gets the text line, and needs no advice
                warnings.simplefilter("ignore")
                from tqdm.auto import tqdm

                self._bar = tqdm(total=100, bar_format=f"{self.name} |{{bar:20}}| {{desc}}")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """Shows a word on what is going on."""
        if self._bar is not None:
            self._bar.set_description_str(text)

    def update(self, state: TrainingState) -> None:
        """Shows where a fit stands."""
        if self._bar is None or time.monotonic() - self._last < _INTERVAL:
            return
        self._last = time.monotonic()
        weights = state.log_weights
        finite = weights[weights.isfinite()]
        elbo = finite.mean().item() if len(finite) else float("-inf")
        left = state.seconds * (1 - state.progress) / max(state.progress, 1e-6)
        self._bar.n = min(100.0, 100 * state.progress)
        self.say(
            f"{state.step} steps, {state.step / max(state.seconds, 1e-9):.0f}/s, ELBO {elbo:.2f}, "
            f"ESS {relative_ess(weights):.2f}, k-hat {pareto_smooth(weights)[1]:.2f}, at most {_short(left)} left"
        )

    def finish(self, text: str) -> None:
        """Leaves a last word."""
        if self._bar is not None:
            self._bar.n = 100
            self.say(text)


def _short(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
