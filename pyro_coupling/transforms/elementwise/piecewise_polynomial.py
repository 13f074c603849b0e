"""Piecewise-linear and piecewise-quadratic maps: the simplest splines, exact inverses."""

from __future__ import annotations

__all__ = ["PiecewiseLinear", "PiecewiseQuadratic"]

from dataclasses import dataclass

import torch
from torch import Tensor

from ...registry import register
from ._bins import edges, find, fraction, pick, sizes
from ._spline import Spline


@register
@dataclass(frozen=True)
class PiecewiseLinear(Spline):
    """Straight pieces over bins of equal width on ``[-bound, bound]``, the identity outside.

    The distribution function of a histogram. Its slope jumps at every knot and at the bounds, so near a
    knot rounding may put a point and its image into different pieces, with different slopes.

    Args:
        num_bins: Number of pieces.
        bound: Half-width of the interval.
        max_log_ratio: Bound of the raw parameters: a piece rises at most ``exp(2 * max_log_ratio)`` times
            as much as another.

    Raises:
        ValueError: If a setting is out of range.

    Reference:
        Mueller, McWilliams, Rousselle, Gross, Novak. Neural importance sampling. ACM Transactions on
        Graphics 38(5), 2019 (piecewise-linear coupling).

    Example:
        >>> import torch
        >>> spline = PiecewiseLinear(num_bins=2, bound=1.0)
        >>> heights = torch.tensor([[3.0], [1.0]]).log()
        >>> y, log_slope = spline.forward_and_log_det(torch.tensor([0.0]), heights)
        >>> y > 0.3, log_slope < 0
        (tensor([True]), tensor([True]))
    """

    max_log_ratio: float = 2.0

    @property
    def num_params(self) -> int:
        return self.num_bins

    def _forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        left, width, bottom, height = self._piece(x, params, along_y=False)
        return bottom + height * fraction(x, left, width), (height / width).log()

    def _inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        left, width, bottom, height = self._piece(y, params, along_y=True)
        return left + width * fraction(y, bottom, height), (width / height).log()

    def _piece(self, position: Tensor, params: Tensor, along_y: bool) -> tuple[Tensor, ...]:
        heights = sizes(params, 2 * self.bound)
        widths = torch.full_like(heights, 2 * self.bound / self.num_bins)
        left, bottom = edges(widths, -self.bound), edges(heights, -self.bound)
        return pick(find(position, bottom if along_y else left), left, widths, bottom, heights)


@register
@dataclass(frozen=True)
class PiecewiseQuadratic(Spline):
    """Parabolas on ``[-bound, bound]``, the identity outside.

    The distribution function of a density that is linear between its vertices: the slope is continuous
    but for the bounds, where it jumps.

    Args:
        num_bins: Number of pieces.
        bound: Half-width of the interval.
        max_log_ratio: Bound of the raw parameters: a bin is at most ``exp(2 * max_log_ratio)`` times as wide
            as another, and the slope at a knot at most as many times that at another.

    Raises:
        ValueError: If a setting is out of range.

    Reference:
        Mueller, McWilliams, Rousselle, Gross, Novak. Neural importance sampling. ACM Transactions on
        Graphics 38(5), 2019 (piecewise-quadratic coupling).

    Example:
        >>> import torch
        >>> spline = PiecewiseQuadratic(num_bins=4, bound=3.0)
        >>> y, log_slope = spline.forward_and_log_det(torch.tensor([0.5, 7.0]), torch.zeros(spline.num_params, 2))
        >>> y, log_slope.abs().max() < 1e-6
        (tensor([0.5000, 7.0000]), tensor(True))
    """

    max_log_ratio: float = 2.0

    @property
    def num_params(self) -> int:
        return 2 * self.num_bins + 1

    def _forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        left, width, bottom, _, slope0, slope1 = self._piece(x, params, along_y=False)
        t = fraction(x, left, width)
        slope = slope0 * (1 - t) + slope1 * t
        return bottom + width * t * (slope0 + slope) / 2, slope.log()

    def _inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        left, width, bottom, height, slope0, slope1 = self._piece(y, params, along_y=True)
        share = fraction(y, bottom, height)
        # along a parabola the square of the slope is linear in the height
        squared = slope0.square() * (1 - share) + slope1.square() * share
        t = share * (slope0 + slope1) / (slope0 + squared.sqrt())
        return left + width * t, -squared.log() / 2

    def _piece(self, position: Tensor, params: Tensor, along_y: bool) -> tuple[Tensor, ...]:
        raw_widths, raw_slopes = params.split([self.num_bins, self.num_bins + 1], -2)
        widths, slopes = sizes(raw_widths, 2 * self.bound), raw_slopes.exp()
        heights = widths * (slopes[..., :-1, :] + slopes[..., 1:, :]) / 2
        scale = 2 * self.bound / heights.sum(-2, keepdim=True)
        heights, slopes = heights * scale, slopes * scale
        left, bottom = edges(widths, -self.bound), edges(heights, -self.bound)
        index = find(position, bottom if along_y else left)
        return pick(index, left, widths, bottom, heights, slopes[..., :-1, :], slopes[..., 1:, :])
