"""Scale parameterisations: how a raw number becomes the logarithm of a positive scale.

Each maps zero to scale one. They differ in how far a layer may stretch or shrink, and in what happens
to the gradient at the bounds.
"""

from __future__ import annotations

__all__ = ["AsymmetricClampScale", "ClampScale", "Scale", "SigmoidScale", "SoftplusScale", "TanhScale"]

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...registry import register
from ._bins import squash


class Scale(ABC):
    """A positive scale, parameterised by any real number.

    Example:
        >>> from pyro_coupling.transforms import affine_coupling
        >>> class SoftsignScale(Scale):  # between 1/e and e
        ...     def log_scale(self, raw):
        ...         return raw / (1 + raw.abs())
        >>> affine_coupling(4, scale=SoftsignScale())(torch.zeros(3, 4)).shape
        torch.Size([3, 4])
    """

    @abstractmethod
    def log_scale(self, raw: Tensor) -> Tensor:
        """Logarithm of the scale; zero at zero."""


@register
@dataclass(frozen=True)
class TanhScale(Scale):
    """``log scale = bound * tanh(raw / bound)``: between ``exp(-bound)`` and ``exp(bound)``.

    Reference:
        Dinh, Sohl-Dickstein, Bengio. Density estimation using Real NVP. ICLR 2017.

    Example:
        >>> TanhScale(bound=2.0).log_scale(torch.tensor([-100.0, 0.0, 100.0]))
        tensor([-2.,  0.,  2.])
    """

    bound: float = 2.0

    def __post_init__(self) -> None:
        _require("TanhScale", "bound", self.bound, 0 < self.bound < math.inf, "positive and finite")

    def log_scale(self, raw: Tensor) -> Tensor:
        return squash(raw, self.bound)


@register
@dataclass(frozen=True)
class AsymmetricClampScale(Scale):
    """A soft clamp of the log scale to ``(min, max)``, of slope one at zero: ``2/pi * b * atan(pi/2 * raw / b)``.

    A low ``max`` keeps deep flows from blowing up while ``min`` lets them contract.

    Reference:
        Andrade. Stable training of normalizing flows for high-dimensional variational inference.
        2024, arXiv 2402.16408 (bounds -2 and 0.1).

    Example:
        >>> AsymmetricClampScale().log_scale(torch.tensor([-1e6, 0.0, 1e6]))
        tensor([-2.0000,  0.0000,  0.1000])
    """

    min: float = -2.0
    max: float = 0.1

    def __post_init__(self) -> None:
        _require("AsymmetricClampScale", "min", self.min, -math.inf < self.min < 0, "negative and finite")
        _require("AsymmetricClampScale", "max", self.max, 0 < self.max < math.inf, "positive and finite")

    def log_scale(self, raw: Tensor) -> Tensor:
        # of raw's dtype: two plain numbers would give the default one
        bound = torch.where(raw < 0, raw.new_tensor(-self.min), raw.new_tensor(self.max))
        return 2 / math.pi * bound * torch.atan(math.pi / 2 * raw / bound)


@register
@dataclass(frozen=True)
class ClampScale(Scale):
    """The log scale clamped to ``[min, max]``; no gradient outside.

    The default bounds are those of Pyro's ``AffineCoupling``.

    Example:
        >>> ClampScale().log_scale(torch.tensor([-100.0, 0.0, 1.0, 100.0]))
        tensor([-5.,  0.,  1.,  3.])
    """

    min: float = -5.0
    max: float = 3.0

    def __post_init__(self) -> None:
        _require("ClampScale", "min", self.min, self.min < 0, "negative")
        _require("ClampScale", "max", self.max, self.max > 0, "positive")

    def log_scale(self, raw: Tensor) -> Tensor:
        return raw.clamp(self.min, self.max)


@register
@dataclass(frozen=True)
class SigmoidScale(Scale):
    """``scale = min + (max - min) * sigmoid(raw + offset)``, the offset such that zero gives one.

    Reference:
        Kingma, Dhariwal. Glow: generative flow with invertible 1x1 convolutions. NeurIPS 2018, whose code
        has a sigmoid in place of the exponential; here with bounds, and one at zero.

    Example:
        >>> SigmoidScale().log_scale(torch.tensor([-100.0, 0.0, 100.0])).exp()
        tensor([0.1000, 1.0000, 4.0000])
    """

    min: float = 0.1
    max: float = 4.0

    def __post_init__(self) -> None:
        _require("SigmoidScale", "min", self.min, 0 < self.min < 1, "between 0 and 1")
        _require("SigmoidScale", "max", self.max, 1 < self.max < math.inf, "greater than 1 and finite")

    def log_scale(self, raw: Tensor) -> Tensor:
        offset = math.log((1 - self.min) / (self.max - 1))
        return torch.log(self.min + (self.max - self.min) * torch.sigmoid(raw + offset))


@register
@dataclass(frozen=True)
class SoftplusScale(Scale):
    """``scale = min + softplus(raw + offset)``, the offset such that zero gives one; unbounded above.

    Example:
        >>> SoftplusScale().log_scale(torch.tensor([-100.0, 0.0, 100.0])).exp().round()
        tensor([  0.,   1., 101.])
    """

    min: float = 1e-3

    def __post_init__(self) -> None:
        _require("SoftplusScale", "min", self.min, 0 < self.min < 1, "between 0 and 1")

    def log_scale(self, raw: Tensor) -> Tensor:
        offset = math.log(math.expm1(1 - self.min))
        return torch.log(self.min + F.softplus(raw + offset))


def _require(owner: str, name: str, value: float, holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{owner}: {name} must be {what}, got {value}")
