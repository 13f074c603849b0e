"""What training needs of a density: its dimension, and its logarithm for a batch of points."""

from __future__ import annotations

__all__ = ["Target", "log_prob_and_score"]

from typing import Protocol

import torch
from torch import Tensor


class Target(Protocol):
    """An unnormalised density on ``dim`` real numbers.

    Attributes:
        dim: Number of dimensions.
        dtype: Of points.
        device: Of points.
        chunk_size: Points that are evaluated at once: those whose intermediate values fit a processor's cache.

    Example:
        >>> class Banana:
        ...     dim, dtype, device, chunk_size = 2, torch.float32, torch.device("cpu"), 10_000
        ...
        ...     def log_prob(self, x):
        ...         return -0.5 * x[:, 0].square() - 2 * (x[:, 1] - x[:, 0].square()).square()
        >>> from pyro_coupling import flows, training
        >>> training.Trainer(flows.real_nvp(2), Banana(), max_steps=3).run().num_steps
        3
    """

    dim: int
    dtype: torch.dtype
    device: torch.device
    chunk_size: int

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

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_coupling.targets import PyroTarget
        >>> target = PyroTarget(lambda: pyro.sample("x", dist.Normal(1.0, 1.0)))
        >>> log_prob_and_score(target, torch.tensor([[0.0], [3.0]]))[1]
        tensor([[ 1.],
                [-2.]])
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
