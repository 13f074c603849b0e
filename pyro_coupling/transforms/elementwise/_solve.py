"""The inverse of a map that has none in closed form: a root within a bracket, and its derivatives."""

from __future__ import annotations

__all__ = ["solve_increasing"]

from collections.abc import Callable

import torch
from torch import Tensor

from ._bins import replace_value


def solve_increasing(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    target: Tensor,
    low: Tensor,
    high: Tensor,
    start: Tensor,
    num_steps: int,
) -> Tensor:
    """Where an increasing function reaches a target.

    Newton's method, kept within a bracket that shrinks with every evaluation. A step that would leave the
    bracket, or is more than half the step before the last, goes to the midpoint instead, so that no cycle
    holds it up; of all points tried the best is taken. The number of steps is fixed, so that a call can be
    compiled and vectorised. Autograd sees only the last step: by the implicit function theorem, one Newton
    step from the root has the root's first derivatives in the target and in all that the function depends on.

    Args:
        function: Value and slope, each of the shape of its argument.
        target: Value to reach.
        low: Lower end of the bracket.
        high: Upper end of the bracket.
        start: First guess, within the bracket.
        num_steps: Number of evaluations before the last step.

    Returns:
        The root, of the shape of ``target``.
    """
    with torch.no_grad():
        x, lower, upper = start, low, high
        best, least = start, torch.full_like(target, torch.inf)
        last = before_last = high - low
        for _ in range(num_steps):
            value, slope = function(x)
            missing = target - value
            closer = missing.abs() < least
            best, least = torch.where(closer, x, best), torch.where(closer, missing.abs(), least)
            lower, upper = torch.where(missing > 0, x, lower), torch.where(missing > 0, upper, x)
            newton = missing / slope
            inside = (x + newton >= lower) & (x + newton <= upper)
            step = torch.where(inside & (2 * newton.abs() <= before_last), newton, (lower + upper) / 2 - x)
            x, last, before_last = x + step, step.abs(), last
    x = best.detach()
    value, slope = function(x)
    x = x + (target - value) / slope.detach()
    return replace_value(x, x.clamp(low, high))
