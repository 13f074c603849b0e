"""What the splines on an interval share: their settings, and the identity outside."""

from __future__ import annotations

__all__ = ["Spline", "SplineSettings"]

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ._bins import squash
from ._settings import require_count, require_positive
from .base import Elementwise


@dataclass(frozen=True)
class SplineSettings(Elementwise):
    """A monotone map made of pieces on ``[-bound, bound]``, none of whose raw parameters exceeds ``max_log_ratio``."""

    num_bins: int = 8
    bound: float = 5.0
    max_log_ratio: float = 1.25

    def __post_init__(self) -> None:
        require_count(self, "num_bins", 2)
        require_positive(self, "bound", "max_log_ratio")


@dataclass(frozen=True)
class Spline(SplineSettings):
    """A map of ``[-bound, bound]`` onto itself, made of pieces; the identity outside.

    A subclass says what happens on the interval, given raw parameters that have passed a tanh, so that
    none exceeds ``max_log_ratio``.
    """

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.abs() < self.bound
        y, log_det = self._forward(x.clamp(-self.bound, self.bound), squash(params, self.max_log_ratio))
        return torch.where(inside, y, x), torch.where(inside, log_det, 0.0)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        inside = y.abs() < self.bound
        x, log_det = self._inverse(y.clamp(-self.bound, self.bound), squash(params, self.max_log_ratio))
        return torch.where(inside, x, y), torch.where(inside, log_det, 0.0)

    @abstractmethod
    def _forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log slope on the interval."""

    @abstractmethod
    def _inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log slope of the inverse on the interval."""
