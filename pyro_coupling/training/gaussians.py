"""Gaussian approximations of a target, their covariance dense or diagonal plus low rank."""

from __future__ import annotations

__all__ = ["LARGEST_DENSE", "Gaussian", "GaussianStart", "LowRankStart"]

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor

#: Dimensions up to which a covariance is held in full.
LARGEST_DENSE = 500


class Gaussian(ABC):
    """What a warm start is asked for: ``x = loc + root(z)`` of standard normal z, and back.

    Attributes:
        loc: Mean, ``(dim,)``.
        elbo: Evidence lower bound in nats, -inf if unknown or hopeless.
        source: Where it comes from: ``"pathfinder"``, ``"laplace"`` or ``"init"``.

    Example:
        >>> gaussian: Gaussian = GaussianStart(torch.ones(3), 0.1 * torch.eye(3), elbo=0.0, source="init")
        >>> gaussian.whiten(torch.ones(5, 3)).abs().max().item()
        0.0
    """

    loc: Tensor
    elbo: float
    source: str

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors it is made of, by name: also the arguments with which an affine map is set to it."""
        values = {f.name: getattr(self, f.name) for f in fields(cast(Any, self))}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def with_elbo(self, elbo: float) -> Gaussian:
        """The same Gaussian with another ELBO."""
        return replace(cast(Any, self), elbo=elbo)

    def to(self, device: torch.device) -> Gaussian:
        """The same Gaussian on a device."""
        return replace(cast(Any, self), **{name: value.to(device) for name, value in self.tensors.items()})

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n draws ``(n, dim)`` and their log densities ``(n,)``."""
        z = torch.randn(n, len(self.loc), dtype=self.loc.dtype, device=self.loc.device, generator=generator)
        return self.loc + self._color(z), -0.5 * z.square().sum(-1) + self._log_normalizer()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at points ``(n, dim)``."""
        return -0.5 * self.whiten(x).square().sum(-1) + self._log_normalizer()

    @abstractmethod
    def whiten(self, x: Tensor) -> Tensor:
        """The standard normals z that make the points ``(n, dim)``, ``(n, dim)``."""

    @abstractmethod
    def _color(self, z: Tensor) -> Tensor:
        """The root of the covariance times each row of z, ``(n, dim)``."""

    @abstractmethod
    def _log_det(self) -> Tensor:
        """Logarithm of the root's determinant."""

    def _log_normalizer(self) -> Tensor:
        return -self._log_det() - 0.5 * len(self.loc) * math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianStart(Gaussian):
    """A Gaussian with a dense covariance.

    Attributes:
        loc: Mean, ``(dim,)``.
        scale_tril: Cholesky factor of the covariance, ``(dim, dim)``.
        elbo: Evidence lower bound in nats, -inf if unknown or hopeless.
        source: Where it comes from: ``"pathfinder"``, ``"laplace"`` or ``"init"``.

    Example:
        >>> start = GaussianStart(torch.zeros(2), torch.diag(torch.tensor([1.0, 3.0])), elbo=0.0, source="laplace")
        >>> x, log_q = start.sample(5, torch.Generator().manual_seed(0))
        >>> torch.allclose(start.log_prob(x), log_q)
        True
    """

    loc: Tensor
    scale_tril: Tensor
    elbo: float
    source: str

    def whiten(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.scale_tril.mT, x - self.loc, upper=True, left=False)

    def _color(self, z: Tensor) -> Tensor:
        return z @ self.scale_tril.mT

    def _log_det(self) -> Tensor:
        return self.scale_tril.diagonal().log().sum()


@dataclass(frozen=True)
class LowRankStart(Gaussian):
    """A Gaussian whose covariance has the root ``diag(scale) (I + basis (core - I) basis^T)``.

    Attributes:
        loc: Mean, ``(dim,)``.
        scale: Positive scales, ``(dim,)``.
        basis: Orthonormal columns, ``(dim, rank)``.
        core: Lower-triangular with positive diagonal, ``(rank, rank)``.
        elbo: Evidence lower bound in nats, -inf if unknown or hopeless.
        source: Where it comes from: ``"pathfinder"``, ``"laplace"`` or ``"init"``.

    Reference:
        Zhang, Carpenter, Gelman, Vehtari. Pathfinder: parallel quasi-Newton variational inference.
        JMLR 2022 (algorithm 4).

    Example:
        >>> basis = torch.eye(1000)[:, :2]
        >>> core = torch.diag(torch.tensor([3.0, 5.0]))
        >>> start = LowRankStart(torch.zeros(1000), torch.ones(1000), basis, core, elbo=0.0, source="pathfinder")
        >>> start.whiten(torch.ones(1, 1000))[0, :4]
        tensor([0.3333, 0.2000, 1.0000, 1.0000])
    """

    loc: Tensor
    scale: Tensor
    basis: Tensor
    core: Tensor
    elbo: float
    source: str

    def whiten(self, x: Tensor) -> Tensor:
        white = (x - self.loc) / self.scale
        inside = white @ self.basis
        solved = torch.linalg.solve_triangular(self.core.mT, inside, upper=True, left=False)
        return white + (solved - inside) @ self.basis.mT

    def _color(self, z: Tensor) -> Tensor:
        inside = z @ self.basis
        return self.scale * (z + (inside @ self.core.mT - inside) @ self.basis.mT)

    def _log_det(self) -> Tensor:
        return self.scale.log().sum() + self.core.diagonal().log().sum()
