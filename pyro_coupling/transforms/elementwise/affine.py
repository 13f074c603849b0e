"""Shift, and shift with scale: the maps of NICE and RealNVP."""

from __future__ import annotations

__all__ = ["Affine", "Shift"]

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...registry import register
from .base import Elementwise
from .scales import Scale, TanhScale


@register
@dataclass(frozen=True)
class Shift(Elementwise):
    """``y = x + shift``: volume-preserving.

    Reference:
        Dinh, Krueger, Bengio. NICE: non-linear independent components estimation. 2014 (section 3.2).

    Example:
        >>> import torch
        >>> Shift().forward_and_log_det(torch.ones(2), torch.full((1, 2), 3.0))
        (tensor([4., 4.]), tensor([0., 0.]))
    """

    slope_is_constant = True

    @property
    def num_params(self) -> int:
        return 1

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        y = x + params.squeeze(-2)
        return y, torch.zeros_like(y)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        x = y - params.squeeze(-2)
        return x, torch.zeros_like(x)


@register
@dataclass(frozen=True)
class Affine(Elementwise):
    """``y = shift + scale * x``.

    Args:
        scale: How the raw parameter becomes a scale, one of `transforms.elementwise.scales`.

    Reference:
        Dinh, Sohl-Dickstein, Bengio. Density estimation using Real NVP. ICLR 2017 (equation 8).

    Example:
        >>> import torch
        >>> Affine().forward_and_log_det(torch.ones(2), torch.zeros(2, 2))
        (tensor([1., 1.]), tensor([0., 0.]))
    """

    slope_is_constant = True
    scale: Scale = field(default_factory=TanhScale)

    def __post_init__(self) -> None:
        if not isinstance(self.scale, Scale):
            raise TypeError(f"Affine: scale must be a Scale such as TanhScale(), got {self.scale!r}")

    @property
    def num_params(self) -> int:
        return 2

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = params.unbind(-2)
        log_scale = self.scale.log_scale(raw)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = params.unbind(-2)
        log_slope = -self.scale.log_scale(raw)
        return (y - shift) * log_slope.exp(), log_slope
