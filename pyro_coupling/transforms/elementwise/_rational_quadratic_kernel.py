"""The rational-quadratic spline as one autograd Function, with one gradient by hand for both directions."""

from __future__ import annotations

__all__ = ["Knots", "rational_quadratic", "relative_root"]

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..reversible import in_function_transform
from ._bins import replace_value, squash

# bin sizes are powers of two of their binary logarithms: twice as fast on a CPU as those of e
_LOG2_E = math.log2(math.e)

# Bins of all positions together, up to which the number of operations counts, and not their length. Then whole tables
# at once are twice as fast as row by row, and what is saved for backward need not be little: for 256 x 4 positions and
# eight bins. Long batches are faster row by row, which stays in the cache.
_SHORT = 2**15


class Knots(NamedTuple):
    """How the raw numbers of a spline are read.

    Args:
        num_bins: Number of pieces.
        num_slopes: Number of raw slopes: with ``num_bins - 1`` the slope is one at both ends, with ``num_bins`` both
            ends share the first, with ``num_bins + 1`` each has its own.
        bound: Half-width of the interval.
        limit: Bound of the raw numbers, which pass a tanh.
        reach: Distance from zero from which on the map is the identity.
    """

    num_bins: int
    num_slopes: int
    bound: float
    limit: float
    reach: float


class _Outcome(NamedTuple):
    """Value and log slope, and what backward needs to know of the way there.

    ``logs`` and ``piece`` are those of `_find_piece`, ``number`` that of the piece; ``inside`` tells where the map
    is not the identity, and ``curve`` is the piece at the position.
    """

    value: Tensor
    log_slope: Tensor
    logs: Tensor
    piece: Tensor
    number: Tensor
    inside: Tensor
    curve: _Curve


def rational_quadratic(position: Tensor, raw: Tensor, knots: Knots, inverse: bool) -> tuple[Tensor, Tensor]:
    """Value and log slope of the spline, or of its inverse.

    Autograd sees one node. Function transforms, forward-mode differentiation and tracers see the formulas.

    Args:
        position: x, or y for the inverse, ``(*batch, features)``.
        raw: Raw widths, heights and slopes, ``(*batch, num_params, features)``; the two batches broadcast.
        knots: How the raw numbers are read.
        inverse: Whether x is wanted for given y.
    """
    dtype = torch.promote_types(position.dtype, raw.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    raw = raw[(None,) * (position.dim() + 1 - raw.dim())]
    function = _evaluate if _is_watched(position) or _is_watched(raw) else _RationalQuadratic.apply
    value, log_slope, *_ = function(position.to(wide), raw.to(wide), knots, inverse)
    return value.to(dtype), log_slope.to(dtype)


def _is_watched(tensor: Tensor) -> bool:
    """Whether something other than reverse-mode differentiation follows the tensor through every operation."""
    if torch.compiler.is_compiling():
        return False
    has_tangent = forward_ad.unpack_dual(tensor).tangent is not None
    return has_tangent or torch.jit.is_tracing() or in_function_transform(tensor)


class _RationalQuadratic(torch.autograd.Function):
    # Saved are the binary logarithms of the bin sizes and the piece of each position, together as large as the raw
    # numbers. Both are outputs as well, and backward consists of differentiable operations on them: so a second
    # derivative finds its way through them to the inputs. The curve is saved for short batches alone, since it is half
    # as large again, and for first derivatives alone, since no second one finds its way through it.

    @staticmethod
    def forward(ctx: Any, position: Tensor, raw: Tensor, knots: Knots, inverse: bool) -> tuple[Tensor, ...]:
        outcome = _evaluate(position, raw, knots, inverse)
        curve = outcome.curve[4:] if _is_short(outcome.number, knots) else ()
        ctx.save_for_backward(outcome.value if inverse else position, *outcome[2:6], *curve)
        ctx.knots, ctx.inverse, ctx.shape = knots, inverse, position.shape
        if not torch.compiler.is_compiling():
            ctx.set_materialize_grads(False)
        return outcome[:4]

    @staticmethod
    def backward(
        ctx: Any, by_value: Tensor | None, by_log: Tensor | None, by_logs: Tensor | None, by_piece: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, logs, piece, number, inside, *saved = ctx.saved_tensors
        knots = ctx.knots
        by_value, by_log = (torch.zeros_like(piece[0]) if grad is None else grad for grad in (by_value, by_log))
        usable = saved and not torch.is_grad_enabled()
        curve = _Curve(*piece[:4].unbind(), *saved) if usable else _Curve.at(piece, x.clamp(-knots.bound, knots.bound))
        by_position, pulled = curve.pull(by_value * inside, by_log * inside, ctx.inverse)
        by_position = torch.where(inside, by_position, by_value)
        if by_piece is not None:  # of a second derivative
            pulled = pulled + torch.cat([by_piece[:2], by_piece[2:4] * piece[2:4], by_piece[4:]])
        by_raw = _pull_piece(pulled, by_logs, logs, piece, number, knots)
        return by_position.sum_to_size(ctx.shape), by_raw, None, None


def _evaluate(position: Tensor, raw: Tensor, knots: Knots, inverse: bool) -> _Outcome:
    sizes, slopes = raw.movedim(-2, 0).contiguous().tensor_split([2 * knots.num_bins])
    logs = squash(sizes.unflatten(0, (2, knots.num_bins)), knots.limit, unit=_LOG2_E)
    inside = position.abs() < knots.reach
    clamped = position.clamp(-knots.bound, knots.bound)
    piece, number = _find_piece(clamped, logs, slopes, knots, axis=int(inverse))
    curve = _Curve.at(piece, clamped, inverse)
    value, log_slope = curve.x() if inverse else curve.y(), curve.slope.log()
    log_slope = (-log_slope if inverse else log_slope) * inside
    return _Outcome(torch.where(inside, value, position), log_slope, logs, piece, number, inside, curve)


def _find_piece(position: Tensor, logs: Tensor, slopes: Tensor, knots: Knots, axis: int) -> tuple[Tensor, Tensor]:
    """The piece that holds each position, and its number.

    Args:
        position: Coordinates along one axis, ``(*batch, features)``.
        logs: Binary logarithms of relative widths and heights, ``(2, num_bins, *batch, features)``.
        slopes: Raw slopes, ``(num_slopes, *batch, features)``.
        knots: How the raw numbers are read.
        axis: Whether positions are x (0) or y (1).

    Returns:
        Left edge, lower edge, width, height and log slopes at the right and at the left end, ``(6, *batch, features)``;
        and the number as a float, ``(*batch, features)``.
    """
    relative = logs.exp2()
    scale = 2 * knots.bound / relative.sum(1)
    with torch.no_grad():
        level = (position + knots.bound) / scale[axis]
        # one for each inner knot that the position has passed, else zero: not as booleans, which are slow on a CPU
        reached = (level - relative[axis, :-1].cumsum(0)).sign_().clamp(min=0)
    number = reached.sum(0)
    if _is_short(number, knots):
        before, at = _compare(number, knots.num_bins)
        edge, size = (relative * before).sum(1), (relative * at).sum(1)
        slope = (slopes * _slope_weights(at, knots)).sum(1)
    else:
        marks, rows, ends = reached.unbind(), relative.unbind(1), _at_knots(slopes, knots)
        edge, size = _sum_reached(marks, rows), _last_reached(marks, rows)
        slope = torch.stack([_last_reached(marks, ends[1:]), _last_reached(marks, ends[:-1])])
    return torch.cat([edge * scale - knots.bound, size * scale, squash(slope, knots.limit)]), number


def _is_short(number: Tensor, knots: Knots) -> bool:
    return number.numel() * knots.num_bins <= _SHORT and not torch.compiler.is_compiling()


def _pull_piece(
    by_piece: Tensor, by_logs: Tensor | None, logs: Tensor, piece: Tensor, number: Tensor, knots: Knots
) -> Tensor:
    """Gradient by the raw numbers from that by the piece of each position, as `_Curve.pull` returns it."""
    by_sizes, by_slopes = _pull_bins(by_piece, logs, piece, number, knots)
    by_sizes = by_sizes if by_logs is None else torch.add(by_sizes, by_logs, alpha=_LOG2_E)
    by_sizes = _pull_squash(by_sizes, logs, knots.limit * _LOG2_E)
    by_sizes = by_sizes.reshape(2 * knots.num_bins, *by_slopes.shape[1:])
    return torch.cat([by_sizes.movedim(0, -2), by_slopes.movedim(0, -2)], -2)


def _pull_bins(by_piece: Tensor, logs: Tensor, piece: Tensor, number: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    """Gradients by the natural logarithms of relative sizes and by the raw slopes."""
    by_edge, by_size, by_slope = by_piece.split(2)
    edge, _, slope = piece.split(2)
    relative = logs.exp2()
    share = relative.sum(1).reciprocal()
    before, at = _compare(number, knots.num_bins)
    # sizes are shares of the whole, each of which takes from all others
    shared = torch.addcmul(by_size, by_edge, edge + knots.bound) * -share
    by_edge = (by_edge * share).unsqueeze(1)
    by_sizes = torch.addcmul(shared.unsqueeze(1), by_edge, before, value=2 * knots.bound).mul_(relative)
    by_sizes = by_sizes.addcmul_(by_size.unsqueeze(1), at).sum_to_size(logs.shape)
    by_slope = _pull_squash(by_slope, slope, knots.limit)
    to_right, to_left = _slope_weights(at, knots)
    by_slopes = torch.addcmul(to_right * by_slope[0], to_left, by_slope[1])
    return by_sizes, by_slopes.sum_to_size(by_slopes.shape[:1] + logs.shape[2:])


def _at_knots(slopes: Tensor, knots: Knots) -> tuple[Tensor, ...]:
    """The raw slope at each knot."""
    rows = slopes.unbind()
    if knots.num_slopes < knots.num_bins:
        none = torch.zeros_like(rows[0])
        return none, *rows, none
    return rows if knots.num_slopes > knots.num_bins else (*rows, rows[0])


def _last_reached(marks: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    found = rows[0]
    for mark, row in zip(marks, rows[1:], strict=True):
        found = torch.lerp(found, row, mark)
    return found


def _sum_reached(marks: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Sum of the rows before the last one reached."""
    found = marks[0] * rows[0]
    for mark, row in zip(marks[1:], rows[1:-1], strict=True):
        found = torch.addcmul(found, mark, row)
    return found


def _compare(number: Tensor, num_bins: int) -> tuple[Tensor, Tensor]:
    """For each bin one where it lies before that of the given number, and one where it is it; else zero."""
    bins = torch.arange(-1, num_bins, dtype=number.dtype, device=number.device)
    before = (number - bins.view((-1,) + (1,) * number.dim())).clamp(0, 1)
    return before[1:], before[:-1] - before[1:]


def _slope_weights(at: Tensor, knots: Knots) -> Tensor:
    """One where a raw slope belongs to the right end of a position's bin, and to the left; else zero."""
    if knots.num_slopes == knots.num_bins:
        at = torch.cat([at[-1:], at])
    elif knots.num_slopes > knots.num_bins:
        none = torch.zeros_like(at[:1])
        at = torch.cat([none, at, none])
    return at.unfold(0, knots.num_slopes, 1).movedim(-1, 1)


def _pull_squash(grad: Tensor, squashed: Tensor, limit: float) -> Tensor:
    return torch.addcmul(grad, grad * squashed, squashed, value=-1 / limit**2)


class _Curve(NamedTuple):
    """Rational-quadratic pieces, each at one position (Durkan et al. 2019, equations 4 and 5).

    ``t`` and ``rise`` are the shares of width and height, from 0 to 1, at which the position lies.
    """

    left: Tensor
    bottom: Tensor
    width: Tensor
    height: Tensor
    slope1: Tensor
    slope0: Tensor
    bend: Tensor
    t: Tensor
    t_square: Tensor
    t_rest: Tensor
    below: Tensor
    above: Tensor
    rise: Tensor
    slope: Tensor

    @classmethod
    def at(cls, piece: Tensor, position: Tensor, inverse: bool = False) -> _Curve:
        """At given x, or y for the inverse, ``(*batch, features)``, each in its piece as `_find_piece` returns it."""
        left, bottom, width, height = piece[:4].unbind()
        slope1, slope0 = piece[4:].exp().unbind()
        secant = height / width
        bend = torch.sub(slope0 + slope1, secant, alpha=2)
        if inverse:
            rise = (position - bottom) / height
            t = relative_root(rise, secant, slope0, bend)
        else:
            t = (position - left) / width
        t_square = t.square()
        t_rest = t - t_square
        below = torch.addcmul(secant, bend, t_rest)
        above = torch.addcmul(torch.lerp(slope0, slope1, t), bend, t_rest, value=-1)
        if not inverse:
            rise = torch.addcmul(secant * t_square, slope0, t_rest) / below
        slope = (secant / below).square() * above
        return cls(left, bottom, width, height, slope1, slope0, bend, t, t_square, t_rest, below, above, rise, slope)

    def x(self) -> Tensor:
        return torch.addcmul(self.left, self.t, self.width)

    def y(self) -> Tensor:
        return torch.addcmul(self.bottom, self.height, self.rise)

    def log_slope_by_x(self) -> Tensor:
        bent = torch.addcmul(self.bend, self.bend, self.t, value=-2)
        by_t = torch.addcdiv((self.slope1 - self.slope0 - bent) / self.above, bent, self.below, value=-2)
        return by_t / self.width

    def pull(self, by_value: Tensor, by_log: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Gradients by position and piece, logarithms in place of its sizes, from those by value and log slope."""
        by_x_of_log = self.log_slope_by_x()
        if inverse:
            # By the implicit function theorem. In terms of x and the log slope at x: where y and the piece change,
            # x changes so that y(x, piece) stays what it is, and both outputs enter with the opposite sign.
            by_x, by_log = -by_value, -by_log
            by_y = (by_x - by_log * by_x_of_log) / self.slope
            return -by_y, self._pull_piece(by_x, by_y, by_log)
        by_x = torch.addcmul(by_log * by_x_of_log, by_value, self.slope)
        return by_x, self._pull_piece(by_x, by_value, by_log)

    def _pull_piece(self, by_x: Tensor, by_y: Tensor, by_log: Tensor) -> Tensor:
        rise, t_rest = self.rise, self.t_rest
        by_rise = by_y * self.height
        by_below = by_rise / self.below
        by_above = by_log / self.above
        drag = torch.addcdiv(by_below * rise, by_log, self.below, value=2)
        to_left = torch.addcmul(by_above, by_above, self.t + t_rest, value=-1)
        by_slope0 = torch.addcmul(to_left, t_rest, by_below - drag) * self.slope0
        by_slope1 = torch.addcmul(by_above * self.t_square, t_rest, drag, value=-1) * self.slope1
        # with all three slopes multiplied by a number, the rise stays and the slope is multiplied by it
        by_secant = by_log - by_slope0 - by_slope1
        by_log_width = -torch.addcmul(by_secant, by_x * self.width, self.t)
        by_log_height = torch.addcmul(by_secant, by_rise, rise)
        return torch.stack([-by_x, by_y, by_log_width, by_log_height, by_slope1, by_slope0])


def relative_root(rise: Tensor, secant: Tensor, slope0: Tensor, bend: Tensor) -> Tensor:
    """Where in its bin, from 0 to 1, a rational-quadratic piece has risen by a share of the height, from 0 to 1.

    ``bend`` is the sum of the slopes at both ends, less twice the secant.
    """
    # the root of a t^2 + b t - c in [0, 1], in the form that cancels nothing (Durkan et al., equation 29)
    bent = bend * rise
    a = secant - slope0 + bent
    b = slope0 - bent
    c = secant * rise
    discriminant = torch.addcmul(b.square(), a, c, value=4).clamp(min=torch.finfo(rise.dtype).tiny)
    t = (c + c) / (b + discriminant.sqrt())
    return replace_value(t, t.clamp(0, 1))  # rounding may leave the bin, where the slope may be negative
