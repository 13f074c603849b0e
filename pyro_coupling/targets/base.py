"""What training needs of a density: its dimension, and its logarithm for a batch of points."""

from __future__ import annotations

__all__ = ["Target", "log_prob_and_score"]

from typing import Protocol

import torch
from torch import Tensor


class Target(Protocol):
    """An unnormalised density on ``dim`` real numbers."""

    dim: int
    dtype: torch.dtype
    device: torch.device
    chunk_size: int  # points whose intermediate values fit a processor's cache

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, up to a constant, of points ``(n, dim)``: ``(n,)``, differentiable.

        A point where the density is zero or can't be computed has ``-inf``.
        """
        ...


def log_prob_and_score(target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log density and its gradient at each point, on no graph.

    Args:
        target: The density.
        x: Points, ``(n, dim)``.

    Returns:
        Log density ``(n,)`` and gradient ``(n, dim)``. Where either is not finite the first is ``-inf``
        and the second zero, so that one bad point spoils no other.
    """
    if len(x) > target.chunk_size:
        parts = [log_prob_and_score(target, part) for part in x.split(target.chunk_size)]
        return torch.cat([log_p for log_p, _ in parts]), torch.cat([score for _, score in parts])
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        log_p = target.log_prob(leaf)
        (score,) = torch.autograd.grad(log_p.sum(), leaf, allow_unused=True) if log_p.requires_grad else (None,)
    log_p = log_p.detach()
    score = torch.zeros_like(x) if score is None else score
    good = log_p.isfinite() & score.isfinite().all(-1)
    return torch.where(good, log_p, -torch.inf), torch.where(good.unsqueeze(-1), score, 0.0)
