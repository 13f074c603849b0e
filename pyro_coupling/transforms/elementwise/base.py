"""What an elementwise map is: a monotone function of one number, its parameters given from outside."""

from __future__ import annotations

__all__ = ["Elementwise"]

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Elementwise(ABC):
    """A monotone map of single numbers; parameters that are all zero make it the identity.

    Subclasses are frozen dataclasses: they hold settings and no tensors, so that they compare, print
    and pickle. Parameters come parameter-major, ``(*batch, num_params, features)``: a slice of one
    parameter for all features is contiguous.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from pyro_coupling.nn import mlp
        >>> from pyro_coupling.transforms import Coupling, halves
        >>> @dataclass(frozen=True)
        ... class Stretch(Elementwise):
        ...     num_params = 1
        ...
        ...     def forward_and_log_det(self, x, params):
        ...         log_slope = params.squeeze(-2).expand_as(x)
        ...         return x * log_slope.exp(), log_slope
        ...
        ...     def inverse_and_log_det(self, y, params):
        ...         return self.forward_and_log_det(y, -params)
        >>> Coupling(halves(4), mlp(2, 1, 2), Stretch())(torch.ones(3, 4)).shape
        torch.Size([3, 4])
    """

    #: Whether the slope depends on the parameters alone, not on the input. Spares a backward pass.
    slope_is_constant: ClassVar[bool] = False

    #: Period of a map of a circle, None for one of the line; a tuple where each entry of an event has a map of its own.
    period: ClassVar[float | tuple[float | None, ...] | None] = None

    @property
    @abstractmethod
    def num_params(self) -> int:
        """Number of raw parameters for each feature."""

    @abstractmethod
    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log slope.

        Args:
            x: Input, ``(*batch, features)``.
            params: Raw parameters, ``(*batch, num_params, features)``, any real numbers.

        Returns:
            y and ``log dy/dx``, both ``(*batch, features)``.
        """

    @abstractmethod
    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Value of the inverse and its log slope, ``log dx/dy``."""

    def restricted_to(self, entries: tuple[int, ...]) -> Elementwise:
        """The map of the given entries of an event alone: itself, unless every entry has a map of its own."""
        return self
