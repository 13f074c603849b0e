"""Elementwise maps without parameters: leaky ReLU, tails that grow slowly or not at all, the unit interval."""

from __future__ import annotations

__all__ = ["LOFT", "LeakyReLU", "SoftBound", "ToUnitInterval"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from ..registry import register
from .base import Bijection
from .partitions import as_shape


class _Fixed(Bijection):
    """One map of single numbers, for all entries. A subclass gives it, its inverse, and how its slope changes."""

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(as_shape(event_shape))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_slope = self._forward(x)
        return y, self._sum(log_slope)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_slope = self._inverted(y)
        return x, self._sum(log_slope)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_slope = self._forward(x)
        with torch.no_grad():
            # where an output has reached its bound to rounding, the score stops growing
            least = 0.5 * math.log(torch.finfo(x.dtype).tiny)
            score = (score - self._log_slope_change(x)) * (-log_slope.clamp_min(least)).exp()
        return y, self._sum(log_slope), score

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and ``log dy/dx``, like x."""
        raise NotImplementedError

    def _inverted(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and ``log dx/dy``, like y."""
        raise NotImplementedError

    def _log_slope_change(self, x: Tensor) -> Tensor:
        """Derivative of ``log dy/dx`` in x."""
        raise NotImplementedError

    def _sum(self, log_slope: Tensor) -> Tensor:
        return log_slope.flatten(-len(self.event_shape)).sum(-1)


@register
class LeakyReLU(_Fixed):
    """``y = x`` where x is positive, ``negative_slope * x`` elsewhere.

    Args:
        event_shape: Shape of an event, or its size.
        negative_slope: Slope below zero, positive.

    Raises:
        ValueError: If ``negative_slope`` is not positive and finite.

    Example:
        >>> import torch
        >>> LeakyReLU(3, negative_slope=0.5)(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-1.,  0.,  2.])
    """

    def __init__(self, event_shape: int | Sequence[int], negative_slope: float = 0.01) -> None:
        super().__init__(event_shape)
        if not 0 < negative_slope < math.inf:
            raise ValueError(f"LeakyReLU: negative_slope must be positive and finite, got {negative_slope}")
        self.negative_slope = negative_slope

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._with_slope(x, self.negative_slope)

    def _inverted(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._with_slope(y, 1 / self.negative_slope)

    def _with_slope(self, x: Tensor, slope: float) -> tuple[Tensor, Tensor]:
        return torch.where(x < 0, slope * x, x), (x < 0).to(x.dtype) * math.log(slope)

    def _log_slope_change(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, negative_slope={self.negative_slope}"


@register
class LOFT(_Fixed):
    """Log-soft tails: the identity up to a threshold, logarithmic beyond.

    ``y = sign(x) (min(|x|, t) + log(1 + max(|x| - t, 0)))``. The inverse grows exponentially and would soon
    overflow; so from ``|x| = t + e^30`` (1e13), ``|y| = t + 30``, the map goes on as a straight line of slope
    ``e^-30``. It remains a bijection of all real numbers, and finite for ``|y|`` up to 1e24 in float32.

    Args:
        event_shape: Shape of an event, or its size.
        threshold: End t of the identity.

    Raises:
        ValueError: If ``threshold`` is negative or not finite.

    Reference:
        Andrade. Stable training of normalizing flows for high-dimensional variational inference. 2024,
        arXiv 2402.16408.

    Example:
        >>> import torch
        >>> LOFT(3, threshold=100.0)(torch.tensor([-50.0, 100.0, 1e6]))
        tensor([-50.0000, 100.0000, 113.8154])
    """

    _LONGEST = 30.0  # length of the logarithmic part in y

    def __init__(self, event_shape: int | Sequence[int], threshold: float = 100.0) -> None:
        super().__init__(event_shape)
        if not 0 <= threshold < math.inf:
            raise ValueError(f"LOFT: threshold must be 0 or more and finite, got {threshold}")
        self.threshold = threshold

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        beyond = F.relu(x.abs() - self.threshold)
        end = math.expm1(self._LONGEST)
        log = beyond.clamp_max(end).log1p()
        return self._identity(x) + x.sign() * (log + F.relu(beyond - end) * math.exp(-self._LONGEST)), -log

    def _inverted(self, y: Tensor) -> tuple[Tensor, Tensor]:
        beyond = F.relu(y.abs() - self.threshold)
        log = beyond.clamp_max(self._LONGEST)
        line = F.relu(beyond - self._LONGEST) * math.exp(self._LONGEST)
        return self._identity(y) + y.sign() * (log.expm1() + line), log

    def _identity(self, x: Tensor) -> Tensor:
        return x.clamp(-self.threshold, self.threshold)

    def _log_slope_change(self, x: Tensor) -> Tensor:
        beyond = F.relu(x.abs() - self.threshold)
        curved = (beyond > 0) & (beyond < math.expm1(self._LONGEST))
        return torch.where(curved, -x.sign() / (1 + beyond), 0.0)

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, threshold={self.threshold}"


@register
class SoftBound(_Fixed):
    """Bounded tails: the identity up to a threshold t, then an arc tangent towards ``+-bound``.

    ``y = sign(x) (t + 2/pi w atan(pi/2 (|x| - t) / w))`` beyond t, with ``w = bound - t``. Slope and curvature are
    continuous, and a large x leaves its trace in y for longer than under a hyperbolic tangent.

    Outputs lie strictly within the bound, also where rounding would reach it. A number at or beyond the
    bound has no inverse: its density is zero. The inverse gives the largest x that the dtype tells apart,
    and minus infinity as its log-determinant, never NaN.

    Args:
        event_shape: Shape of an event, or its size.
        threshold: End t of the identity.
        bound: Limit of the outputs.

    Raises:
        ValueError: If not ``0 <= threshold < bound < inf``.

    Example:
        >>> import torch
        >>> squash = SoftBound(3, threshold=2.0, bound=3.0)
        >>> squash(torch.tensor([-1.0, 3.0, 1e6]))
        tensor([-1.0000,  2.6391,  3.0000])
        >>> squash.inverse_and_log_det(torch.tensor([0.0, 0.0, 3.0]))[1]
        tensor(-inf)
    """

    def __init__(self, event_shape: int | Sequence[int], threshold: float, bound: float) -> None:
        super().__init__(event_shape)
        if not 0 <= threshold < bound < math.inf:
            raise ValueError(f"SoftBound: needs 0 <= threshold < bound < inf, got threshold {threshold}, bound {bound}")
        self.threshold = threshold
        self.bound = bound

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return constraints.independent(constraints.interval(-self.bound, self.bound), len(self.event_shape))

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tangent = self._tangent(x)
        tail = (self.bound - self.threshold) * 2 / math.pi * tangent.atan()
        edge = self.bound * (1 - torch.finfo(x.dtype).eps)
        return (self._identity(x) + x.sign() * tail).clamp(-edge, edge), -tangent.square().log1p()

    def _inverted(self, y: Tensor) -> tuple[Tensor, Tensor]:
        width = self.bound - self.threshold
        part = (F.relu(y.abs() - self.threshold) / width).clamp_max(1 - torch.finfo(y.dtype).eps)
        tangent = (math.pi / 2 * part).tan()
        x = self._identity(y) + y.sign() * width * 2 / math.pi * tangent
        return x, torch.where(y.abs() < self.bound, tangent.square().log1p(), -math.inf)

    def _identity(self, x: Tensor) -> Tensor:
        return x.clamp(-self.threshold, self.threshold)

    def _tangent(self, x: Tensor) -> Tensor:
        return F.relu(x.abs() - self.threshold) * (math.pi / 2 / (self.bound - self.threshold))

    def _log_slope_change(self, x: Tensor) -> Tensor:
        tangent = self._tangent(x)
        return -x.sign() * math.pi / (self.bound - self.threshold) * tangent / (1 + tangent.square())

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, threshold={self.threshold}, bound={self.bound}"


@register
class ToUnitInterval(_Fixed):
    """A sigmoid from the real line onto the unit interval and a margin about it: the last step to pixels.

    Its inverse is the logit preprocessing of images, ``x = logit(margin + (1 - 2 margin) y)``, which stays
    finite for y of exactly 0 and 1 if there is a margin. Outputs may leave the unit interval by
    ``margin / (1 - 2 margin)`` on either side, strictly less than that; with no margin they don't leave
    it. A number at or beyond these ends has density zero: the inverse gives the largest ``|x|`` that the
    dtype tells apart, and minus infinity as its log-determinant, never NaN.

    Args:
        event_shape: Shape of an event, or its size.
        margin: From 0 to less than 1/2.

    Raises:
        ValueError: If ``margin`` is out of range.

    Reference:
        Dinh, Sohl-Dickstein, Bengio. Density estimation using Real NVP. ICLR 2017 (section 4.1).

    Example:
        >>> import torch
        >>> to_pixels = ToUnitInterval((1, 1, 3), margin=0.05)
        >>> to_pixels.inv(torch.tensor([[[0.0, 0.5, 1.0]]]))
        tensor([[[-2.9444,  0.0000,  2.9444]]])
    """

    def __init__(self, event_shape: int | Sequence[int], margin: float = 0.05) -> None:
        super().__init__(event_shape)
        if not 0 <= margin < 0.5:
            raise ValueError(f"ToUnitInterval: margin must be 0 or more and less than 0.5, got {margin}")
        self.margin = margin
        self._low = 0.0 - margin / (1 - 2 * margin)
        self._high = 1.0 - self._low

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return constraints.independent(constraints.interval(self._low, self._high), len(self.event_shape))

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        width = self._high - self._low
        log_slope = F.logsigmoid(x) + F.logsigmoid(-x) + math.log(width)
        return self._within(self._low + width * x.sigmoid()), log_slope

    def _inverted(self, y: Tensor) -> tuple[Tensor, Tensor]:
        inside = (y > self._low) & (y < self._high)
        y = self._within(y)
        # distances to the two ends: their ratio is the odds, without a sigmoid near 0 or 1
        log_below, log_above = (y - self._low).log(), (self._high - y).log()
        log_slope = math.log(self._high - self._low) - log_below - log_above
        return log_below - log_above, torch.where(inside, log_slope, -math.inf)

    def _within(self, y: Tensor) -> Tensor:
        info = torch.finfo(y.dtype)
        return y.clamp(self._low * (1 - info.eps) + info.tiny, self._high * (1 - info.eps))

    def _log_slope_change(self, x: Tensor) -> Tensor:
        return -(x / 2).tanh()

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, margin={self.margin}"
