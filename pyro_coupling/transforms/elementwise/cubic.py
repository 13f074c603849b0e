"""The monotone cubic spline."""

from __future__ import annotations

__all__ = ["CubicSpline"]

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...registry import register
from ._bins import edges, find, fraction, pick, sizes
from ._rational_quadratic_kernel import relative_root
from ._solve import solve_increasing
from ._spline import Spline

_STEPS = 6


@register
@dataclass(frozen=True)
class CubicSpline(Spline):
    """Cubic pieces on ``[-bound, bound]``, the identity outside.

    The slopes at the inner knots follow from the knots by Steffen's rule, which keeps every piece monotone;
    those at the two ends are free, between 0 and 3 times the mean slope of the outermost piece. The slope is
    continuous but for the bounds, where it jumps. The inverse is found numerically; its gradients are
    those of the implicit function theorem, first derivatives only.

    Args:
        num_bins: Number of pieces.
        bound: Half-width of the interval.
        max_log_ratio: Bound of the raw parameters: a bin is at most ``exp(2 * max_log_ratio)`` times another.

    Raises:
        ValueError: If a setting is out of range.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios. Cubic-spline flows. ICML workshop on invertible neural networks
        and normalizing flows, 2019.
        Steffen. A simple method for monotonic interpolation in one dimension. Astronomy and Astrophysics 239,
        1990 (equation 11).

    Example:
        >>> import torch
        >>> spline = CubicSpline(num_bins=4, bound=3.0)
        >>> x, params = torch.tensor([0.5]), torch.linspace(-1, 1, spline.num_params)[:, None]
        >>> y, log_slope = spline.forward_and_log_det(x, params)
        >>> spline.inverse_and_log_det(y, params)[0]
        tensor([0.5000])
    """

    @property
    def num_params(self) -> int:
        return 2 * self.num_bins + 2

    def _forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        left, width, bottom, height, slope0, slope1 = self._piece(x, params, along_y=False)
        share, slope = _unit_cubic(fraction(x, left, width), slope0, slope1)
        return bottom + height * share, (height / width * slope).log()

    def _inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        left, width, bottom, height, slope0, slope1 = self._piece(y, params, along_y=True)
        share = fraction(y, bottom, height)
        one = torch.ones_like(share)
        # the rational-quadratic piece with the same slopes at its ends is close, and inverts in closed form
        start = relative_root(share, one, slope0, slope0 + slope1 - 2)
        cubic = partial(_unit_cubic, slope0=slope0, slope1=slope1)
        t = solve_increasing(cubic, share, torch.zeros_like(share), one, start, _STEPS)
        return left + width * t, -(height / width * cubic(t)[1]).log()

    def _piece(self, position: Tensor, params: Tensor, along_y: bool) -> tuple[Tensor, ...]:
        """Edges and sizes of the bin that holds each position, and the slopes at its ends over its mean slope."""
        raw_widths, raw_heights, raw_first, raw_last = params.split([self.num_bins, self.num_bins, 1, 1], -2)
        widths, heights = sizes(raw_widths, 2 * self.bound), sizes(raw_heights, 2 * self.bound)
        left, bottom = edges(widths, -self.bound), edges(heights, -self.bound)
        secants = heights / widths
        inner = _steffen(secants, widths)
        slope0 = torch.cat([_end_slope(raw_first), inner / secants[..., 1:, :]], -2)
        slope1 = torch.cat([inner / secants[..., :-1, :], _end_slope(raw_last)], -2)
        index = find(position, bottom if along_y else left)
        return pick(index, left, widths, bottom, heights, slope0, slope1)


def _steffen(secants: Tensor, widths: Tensor) -> Tensor:
    """Slopes at the inner knots: that of the parabola through three knots, at most twice a mean slope beside it."""
    before, after = secants[..., :-1, :], secants[..., 1:, :]
    width0, width1 = widths[..., :-1, :], widths[..., 1:, :]
    parabola = (before * width1 + after * width0) / (width0 + width1)
    return torch.minimum(parabola, 2 * torch.minimum(before, after))


def _end_slope(raw: Tensor) -> Tensor:
    """A slope from 0 to 3, where a cubic over the unit square is monotone; one at zero."""
    return 3 * torch.sigmoid(raw - math.log(2))


def _unit_cubic(t: Tensor, slope0: Tensor, slope1: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of the cubic from (0, 0) to (1, 1) with the given slopes there, in Bernstein's form."""
    rest = 1 - t
    value = t * (slope0 * rest.square() + (3 - slope1) * t * rest + t.square())
    slope = slope0 * rest.square() + 2 * (3 - slope0 - slope1) * t * rest + slope1 * t.square()
    return value, slope
