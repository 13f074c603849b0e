"""The map from a standard normal to the box of internal coordinates: what a flow's noise looks like at its start."""

from __future__ import annotations

__all__ = ["InformedBase"]

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from ...registry import register
from ...transforms import Bijection


@register
class InformedBase(Bijection):
    """Maps a standard normal to truncated normals and uniforms on ``[-bound, bound]``, each entry by itself.

    An entry becomes a normal of given location and scale, truncated to the box, through the two distribution
    functions: ``u = loc + scale * Q(P(-h) + P(z) (P(h') - P(-h)))`` with P the distribution function of the
    standard normal, Q its inverse and h, h' the distances of ``loc`` to the ends in units of ``scale``. Where
    the ends are far that is ``loc + scale * z``. An infinite scale makes the entry uniform, for an angle that
    turns freely.

    Both tails are computed as lower ones, where P keeps all its digits. Outputs lie strictly within the bound,
    also where rounding would reach it. A number beyond the bound has density zero: the inverse gives it the
    largest ``|z|`` that the dtype tells apart, and minus infinity as log-determinant.

    Args:
        loc: Locations, ``(dim,)``, within the bound.
        scale: Positive scales, ``(dim,)``; infinite for uniform entries, whose location is ignored.
        bound: Half-width of the box.

    Raises:
        ValueError: If a location lies outside the box, a scale is not positive, or shapes differ.

    Example:
        >>> import torch
        >>> base = InformedBase(torch.tensor([0.0, 1.0]), torch.tensor([float("inf"), 0.1]))
        >>> base(torch.tensor([1.0, 1.0]))
        tensor([2.1447, 1.1000])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, bound: float = math.pi) -> None:
        if loc.dim() != 1 or scale.shape != loc.shape:
            raise ValueError(
                f"InformedBase: loc and scale must both be of shape (dim,), got {tuple(loc.shape)} and "
                f"{tuple(scale.shape)}"
            )
        if not 0 < bound < math.inf:
            raise ValueError(f"InformedBase: bound must be positive and finite, got {bound}")
        if not bool((loc.abs() < bound).all()):
            raise ValueError(f"InformedBase: loc must lie within {bound:g} of zero, got {loc.tolist()}")
        if not bool((scale > 0).all()):
            raise ValueError(f"InformedBase: scale must be positive, got {scale.tolist()}")
        super().__init__(loc.shape)
        self.bound = bound
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return constraints.independent(constraints.interval(-self.bound, self.bound), 1)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, _, log_slope = self._forward(x)
        return y, log_slope.sum(-1)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        loc, scale, is_uniform, below, above = self._settings(y)
        mass = 1 - below - above
        white = (y - loc) / scale
        upper = torch.where(is_uniform, y > 0, white > torch.special.ndtri(below + 0.5 * mass))
        tail = (_ndtr(torch.where(upper, -white, white)) - torch.where(upper, above, below)) / mass
        tail = torch.where(is_uniform, (self.bound - y.abs()) / (2 * self.bound), tail)
        x = torch.special.ndtri(_positive(tail))
        log_slope = -self._log_slope(x, white, is_uniform, mass, scale)
        log_slope = torch.where(y.abs() <= self.bound, log_slope, -math.inf)
        return torch.where(upper, -x, x), log_slope.sum(-1)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, white, log_slope = self._forward(x)
        with torch.no_grad():
            # after a standard normal score + x is zero: what remains is the score of a truncated normal, or none
            least = 0.5 * math.log(torch.finfo(x.dtype).tiny)
            score = (score + x) * (-log_slope.clamp_min(least)).exp() - white / self.scale.to(x.dtype)
        return y, log_slope.sum(-1), score

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output, the same in units of the normal that is truncated, and the log slope."""
        loc, scale, is_uniform, below, above = self._settings(x)
        mass = 1 - below - above
        upper = x > 0
        tail = _positive(_ndtr(-x.abs()))
        white = torch.special.ndtri(torch.where(upper, above, below) + tail * mass)
        white = torch.where(upper, -white, white)
        from_end = self.bound * (2 * tail - 1)
        y = torch.where(is_uniform, torch.where(upper, -from_end, from_end), loc + scale * white)
        edge = self.bound * (1 - torch.finfo(x.dtype).eps)
        log_slope = self._log_slope(x, white, is_uniform, mass, scale)
        return y.clamp(-edge, edge), white, log_slope

    def _log_slope(self, x: Tensor, white: Tensor, is_uniform: Tensor, mass: Tensor, scale: Tensor) -> Tensor:
        uniform = math.log(2 * self.bound / math.sqrt(2 * math.pi)) - 0.5 * x.square()
        return torch.where(is_uniform, uniform, scale.log() + mass.log() + 0.5 * (white.square() - x.square()))

    def _settings(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Location, scale, which entries are uniform, and the mass of the normal beyond each end."""
        is_uniform = self.scale.isinf()
        loc, scale = self.loc.to(like.dtype), self.scale.to(like.dtype).masked_fill(is_uniform, 1.0)
        return loc, scale, is_uniform, _ndtr((-self.bound - loc) / scale), _ndtr((loc - self.bound) / scale)

    def extra_repr(self) -> str:
        return f"dim={len(self.loc)}, uniform={int(self.scale.isinf().sum())}, bound={self.bound:g}"


def _ndtr(x: Tensor) -> Tensor:
    """Distribution function of the standard normal; unlike ``torch.special.ndtr`` accurate in its lower tail."""
    return 0.5 * torch.erfc(-x * math.sqrt(0.5))


def _positive(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)
