"""The rational-quadratic spline of a circle."""

from __future__ import annotations

__all__ = ["CircularRationalQuadraticSpline"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...registry import register
from ._rational_quadratic_kernel import Knots, rational_quadratic
from .rational_quadratic import RationalQuadraticSpline


@register
@dataclass(frozen=True)
class CircularRationalQuadraticSpline(RationalQuadraticSpline):
    """A rational-quadratic spline of the circle ``[-bound, bound)``, followed by a turn.

    Value and slope go on across the seam: the two ends are one point, with one slope. The spline keeps
    that point in place, so a learned phase follows that turns the circle. Any real input stands for its
    point on the circle; outputs lie in ``[-bound, bound)``, also after rounding.

    Args:
        num_bins: Number of pieces.
        bound: Half the period.
        max_log_ratio: Bound of the raw parameters other than the phase; see `RationalQuadraticSpline`.

    Raises:
        ValueError: If a setting is out of range.

    Reference:
        Rezende, Papamakarios, Racaniere, Albergo, Kanwar, Shanahan, Cranmer. Normalizing flows on tori and
        spheres. ICML 2020 (circular splines).

    Example:
        >>> import torch
        >>> spline = CircularRationalQuadraticSpline(num_bins=4)
        >>> params = torch.zeros(spline.num_params, 3)
        >>> params[-1] = math.pi / 2
        >>> spline.forward_and_log_det(torch.tensor([0.0, 3.0, 3.0 - 2 * math.pi]), params)[0]
        tensor([ 1.5708, -1.7124, -1.7124])
    """

    bound: float = math.pi

    @property
    def num_params(self) -> int:
        return 3 * self.num_bins + 1

    @property
    def period(self) -> float:
        return 2 * self.bound

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        spline, phase = self._split(params)
        y, log_det = rational_quadratic(self._wrap(x), spline, self._knots, inverse=False)
        return self._wrap(y + phase), log_det

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        spline, phase = self._split(params)
        x, log_det = rational_quadratic(self._wrap(self._wrap(y) - phase), spline, self._knots, inverse=True)
        return self._wrap(x), log_det

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        spline, phase = params.split([3 * self.num_bins, 1], -2)
        return spline, self._wrap(phase.squeeze(-2))

    @property
    def _knots(self) -> Knots:
        return Knots(self.num_bins, self.num_bins, self.bound, self.max_log_ratio, reach=math.inf)

    def _wrap(self, x: Tensor) -> Tensor:
        """The point of ``[-bound, bound)`` that x stands for; where x is such a point, x itself."""
        turned = torch.remainder(x + self.bound, self.period) - self.bound
        # the remainder of a tiny negative number rounds to the whole period
        turned = torch.where(turned < self.bound, turned, turned - self.period)
        return torch.where((x >= -self.bound) & (x < self.bound), x, turned)
