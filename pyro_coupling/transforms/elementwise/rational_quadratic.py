"""Monotone rational-quadratic splines: with linear tails, and with free ends."""

from __future__ import annotations

__all__ = ["BoundedRationalQuadraticSpline", "RationalQuadraticSpline"]

from dataclasses import dataclass

from torch import Tensor

from ...registry import register
from ._rational_quadratic_kernel import Knots, rational_quadratic
from ._spline import SplineSettings


@register
@dataclass(frozen=True)
class RationalQuadraticSpline(SplineSettings):
    """Rational-quadratic pieces on ``[-bound, bound]``, the identity outside.

    Bins and slopes are bounded for every real parameter: the raw numbers pass a tanh, a bin is at most
    ``exp(2 * max_log_ratio)`` times another, and a slope at a knot lies within ``exp(+-max_log_ratio)``.
    What the bound buys is an inverse in float32: whatever the parameters, a round trip of the default
    map is off by less than 1e-3; with ``max_log_ratio=3`` it may be off by a whole bin, because the map
    can be flatter than 1e-7. Shapes are static and nothing is indexed by a mask, so the map can be
    vectorised (``torch.func.vmap``) and compiled.

    Args:
        num_bins: Number of pieces.
        bound: Half-width of the interval.
        max_log_ratio: Bound of the raw parameters.

    Raises:
        ValueError: If a setting is out of range.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios. Neural spline flows. NeurIPS 2019 (equations 4-8).

    Example:
        >>> import torch
        >>> spline = RationalQuadraticSpline(num_bins=4, bound=3.0)
        >>> y, log_det = spline.forward_and_log_det(torch.tensor([0.5, 7.0]), torch.zeros(spline.num_params, 2))
        >>> y, log_det.abs().max() < 1e-6
        (tensor([0.5000, 7.0000]), tensor(True))
    """

    @property
    def num_params(self) -> int:
        return 3 * self.num_bins - 1

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic(x, params, self._knots, inverse=False)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic(y, params, self._knots, inverse=True)

    @property
    def _knots(self) -> Knots:
        return Knots(self.num_bins, self.num_params - 2 * self.num_bins, self.bound, self.max_log_ratio, self.bound)


@register
@dataclass(frozen=True)
class BoundedRationalQuadraticSpline(RationalQuadraticSpline):
    """A rational-quadratic spline whose slopes at the ends of ``[-bound, bound]`` are free.

    For variables that live on an interval, whose density may be anything at the ends. Outside it is the
    identity, so it is a bijection of the whole line; its slope jumps at the bounds.

    Args:
        num_bins: Number of pieces.
        bound: Half-width of the interval.
        max_log_ratio: Bound of the raw parameters; see `RationalQuadraticSpline`.

    Raises:
        ValueError: If a setting is out of range.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios. Neural spline flows. NeurIPS 2019.
        Rezende et al. Normalizing flows on tori and spheres. ICML 2020 (flows on closed intervals).

    Example:
        >>> import torch
        >>> spline = BoundedRationalQuadraticSpline(num_bins=4, bound=1.0)
        >>> params = torch.zeros(spline.num_params, 1)
        >>> params[-1] = 0.5  # the log slope at the upper end
        >>> spline.forward_and_log_det(torch.tensor([0.999999]), params)[1] > 0.4
        tensor([True])
    """

    @property
    def num_params(self) -> int:
        return 3 * self.num_bins + 1
