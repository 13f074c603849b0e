"""Monotone rational-quadratic splines: with linear tails, and with free ends."""

from __future__ import annotations

__all__ = ["BoundedRationalQuadraticSpline", "RationalQuadraticSpline", "relative_root"]

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...registry import register
from ._bins import edges, find, pick, replace_value, sizes
from ._spline import Spline


@register
@dataclass(frozen=True)
class RationalQuadraticSpline(Spline):
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

    def _forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        left, width, bottom, height, slope0, slope1 = self._piece(x, params, along_y=False)
        t = (x - left) / width
        t_rest = t * (1 - t)
        secant = height / width
        denominator = secant + (slope0 + slope1 - 2 * secant) * t_rest
        y = bottom + height * (secant * t.square() + slope0 * t_rest) / denominator
        return y, _log_slope(t, t_rest, secant, slope0, slope1, denominator)

    def _inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        left, width, bottom, height, slope0, slope1 = self._piece(y, params, along_y=True)
        secant = height / width
        t = relative_root(y - bottom, height, secant, slope0, slope1)
        t_rest = t * (1 - t)
        denominator = secant + (slope0 + slope1 - 2 * secant) * t_rest
        return left + t * width, -_log_slope(t, t_rest, secant, slope0, slope1, denominator)

    def _piece(self, position: Tensor, params: Tensor, along_y: bool) -> tuple[Tensor, ...]:
        """Edges, sizes and slopes of the bin that holds each position, each ``(*batch, features)``."""
        raw_widths, raw_heights, raw_slopes = params.tensor_split((self.num_bins, 2 * self.num_bins), -2)
        widths, heights = sizes(raw_widths, 2 * self.bound), sizes(raw_heights, 2 * self.bound)
        left, bottom = edges(widths, -self.bound), edges(heights, -self.bound)
        slopes = self._log_slopes(raw_slopes).exp()
        index = find(position, bottom if along_y else left)
        return pick(index, left, widths, bottom, heights, slopes[..., :-1, :], slopes[..., 1:, :])

    def _log_slopes(self, raw: Tensor) -> Tensor:
        """Log slopes at all knots, ``(*batch, num_bins + 1, features)``: here one at both ends."""
        return F.pad(raw, (0, 0, 1, 1))


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

    def _log_slopes(self, raw: Tensor) -> Tensor:
        return raw


def relative_root(rise: Tensor, height: Tensor, secant: Tensor, slope0: Tensor, slope1: Tensor) -> Tensor:
    """Where in its bin, from 0 to 1, a rational-quadratic piece has risen by ``rise``."""
    # the root of a t^2 + b t + c in [0, 1], in the form that cancels nothing (Durkan et al., equation 29)
    bend = slope0 + slope1 - 2 * secant
    a = height * (secant - slope0) + rise * bend
    b = height * slope0 - rise * bend
    c = -secant * rise
    discriminant = (b.square() - 4 * a * c).clamp(min=torch.finfo(rise.dtype).tiny)
    t = 2 * c / (-b - discriminant.sqrt())
    return replace_value(t, t.clamp(0, 1))  # rounding may leave the bin, where the slope may be negative


def _log_slope(
    t: Tensor, t_rest: Tensor, secant: Tensor, slope0: Tensor, slope1: Tensor, denominator: Tensor
) -> Tensor:
    """``log dy/dx`` at the relative position t of a bin (Durkan et al., equation 5)."""
    numerator = slope1 * t.square() + 2 * secant * t_rest + slope0 * (1 - t).square()
    return 2 * secant.log() + numerator.log() - 2 * denominator.log()
