"""Targets in closed form, for the tests of training and inference."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Density:
    """A target from a function of points ``(n, dim)``."""

    device = torch.device("cpu")
    chunk_size = 1000

    def __init__(self, log_prob, dim: int, dtype: torch.dtype = torch.float64) -> None:
        self.log_prob = log_prob
        self.dim = dim
        self.dtype = dtype

    @property
    def origin(self) -> Tensor:
        return torch.zeros(self.dim, dtype=self.dtype)


def gaussian(loc: Tensor, scale_tril: Tensor) -> Density:
    normal = torch.distributions.MultivariateNormal(loc, scale_tril=scale_tril, validate_args=False)
    return Density(normal.log_prob, len(loc), loc.dtype)


def standard_normal(dim: int, dtype: torch.dtype = torch.float64) -> Density:
    return gaussian(torch.zeros(dim, dtype=dtype), torch.eye(dim, dtype=dtype))


def banana() -> Density:
    """x ~ N(0, 1), y ~ N(x^2, 0.5)."""

    def log_prob(x: Tensor) -> Tensor:
        return -0.5 * x[:, 0] ** 2 - 2 * (x[:, 1] - x[:, 0] ** 2) ** 2 - math.log(math.pi)

    return Density(log_prob, 2)


def funnel(dim: int) -> Density:
    """v ~ N(0, 3), the others ~ N(0, exp(v / 2))."""

    def log_prob(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        tail = -0.5 * rest.square().sum(-1) * (-v).exp() - 0.5 * (dim - 1) * v
        return -(v**2) / 18 - math.log(3) + tail - 0.5 * dim * math.log(2 * math.pi)

    return Density(log_prob, dim)


def two_modes(dim: int, gap: float) -> Density:
    """Two unit Gaussians of equal weight, at +gap and -gap on the first axis."""

    def log_prob(x: Tensor) -> Tensor:
        modes = torch.stack([-0.5 * (x[:, 0] - s * gap) ** 2 for s in (1, -1)])
        rest = -0.5 * x[:, 1:].square().sum(-1)
        return torch.logsumexp(modes, 0) - math.log(2) + rest - 0.5 * dim * math.log(2 * math.pi)

    return Density(log_prob, dim)


def half_space(dim: int, edge: float = 1.0) -> Density:
    """A standard normal where the first coordinate is below an edge, NaN elsewhere."""

    def log_prob(x: Tensor) -> Tensor:
        log_p = -0.5 * x.square().sum(-1) - 0.5 * dim * math.log(2 * math.pi)
        return torch.where(x[:, 0] < edge, log_p, torch.nan)

    return Density(log_prob, dim)
