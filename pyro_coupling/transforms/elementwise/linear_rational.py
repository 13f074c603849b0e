"""The monotone linear-rational spline with linear tails."""

from __future__ import annotations

__all__ = ["LinearRationalSpline"]

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...registry import register
from ._bins import edges, find, fraction, pick, sizes
from ._spline import Spline


@register
@dataclass(frozen=True)
class LinearRationalSpline(Spline):
    """Linear-rational pieces on ``[-bound, bound]``, two for each bin; the identity outside.

    Slopes at the knots are free and one at the bounds, so the slope is continuous everywhere. Where a
    bin is cut in two is learned. A piece is a Moebius map, and so is its inverse.

    Args:
        num_bins: Number of bins.
        bound: Half-width of the interval.
        max_log_ratio: Bound of the raw parameters: a bin is at most ``exp(2 * max_log_ratio)`` times another,
            and a slope at a knot lies within ``exp(+-max_log_ratio)``.

    Raises:
        ValueError: If a setting is out of range.

    Reference:
        Dolatabadi, Erfani, Leckie. Invertible generative modeling using linear rational splines.
        AISTATS 2020 (algorithm 1).

    Example:
        >>> import torch
        >>> spline = LinearRationalSpline(num_bins=4, bound=3.0)
        >>> y, log_slope = spline.forward_and_log_det(torch.tensor([0.5, 7.0]), torch.zeros(spline.num_params, 2))
        >>> y, log_slope.abs().max() < 1e-6
        (tensor([0.5000, 7.0000]), tensor(True))
    """

    @property
    def num_params(self) -> int:
        return 4 * self.num_bins - 1

    def _forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        left, width, bottom, height, weight = self._piece(x, params, along_y=False)
        t = fraction(x, left, width)
        denominator = 1 - t + weight * t
        y = bottom + height * weight * t / denominator
        return y, (height * weight / width).log() - 2 * denominator.log()

    def _inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        left, width, bottom, height, weight = self._piece(y, params, along_y=True)
        share = fraction(y, bottom, height)
        denominator = share + weight * (1 - share)
        x = left + width * share / denominator
        return x, (width * weight / height).log() - 2 * denominator.log()

    def _piece(self, position: Tensor, params: Tensor, along_y: bool) -> tuple[Tensor, ...]:
        """Edges and sizes of the piece that holds each position, and the weight of its end over that of its start."""
        n = self.num_bins
        raw_widths, raw_heights, raw_cuts, raw_slopes = params.split([n, n, n, n - 1], -2)
        widths, heights = sizes(raw_widths, 2 * self.bound), sizes(raw_heights, 2 * self.bound)
        log_slopes = F.pad(raw_slopes, (0, 0, 1, 1))
        slope0, slope1 = log_slopes[..., :-1, :].exp(), log_slopes[..., 1:, :].exp()
        # weights at the end and at the cut of a bin, those at its start being one (algorithm 1)
        cut = torch.sigmoid(raw_cuts)
        end = (slope0 / slope1).sqrt()
        middle = (cut * slope0 + (1 - cut) * end * slope1) * widths / heights
        share = cut * end / (1 - cut + cut * end)
        widths = _interleave(cut * widths, (1 - cut) * widths)
        heights = _interleave(share * heights, (1 - share) * heights)
        weights = _interleave(middle, end / middle)
        left, bottom = edges(widths, -self.bound), edges(heights, -self.bound)
        return pick(find(position, bottom if along_y else left), left, widths, bottom, heights, weights)


def _interleave(first: Tensor, second: Tensor) -> Tensor:
    """Two tables of n bins as one of 2 n pieces."""
    return torch.stack([first, second], -2).flatten(-3, -2)
