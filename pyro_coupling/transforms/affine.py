"""The learned affine map a flow ends in: it carries location and scale, so that couplings need not."""

from __future__ import annotations

__all__ = ["DiagonalAffine", "LowRankAffine", "LowerTriangularAffine"]

import math

import torch
from torch import Tensor, nn

from ..registry import register
from .base import Bijection


@register
class DiagonalAffine(Bijection):
    """``y = loc + scale * (shift + exp(log_diag) * x)``, for events of any shape.

    ``loc`` and ``scale`` are set by a warm start and stay fixed; ``shift`` and ``log_diag`` are learned
    and start at zero. So a step of the optimiser is measured in units of ``scale``, whether that is
    1e-3 or 1e5.

    Args:
        loc: Location, of the event's shape.
        scale: Positive scales, like ``loc``; ones if not given.

    Example:
        >>> import torch
        >>> DiagonalAffine(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))(torch.ones(2))
        tensor([4., 6.], grad_fn=<AddcmulBackward0>)
    """

    stores_little = True

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor | None = None) -> None:
        super().__init__(loc.shape)
        self.register_buffer("loc", torch.empty_like(loc))
        self.register_buffer("scale", torch.empty_like(loc))
        self.shift = nn.Parameter(torch.zeros_like(loc))
        self.log_diag = nn.Parameter(torch.zeros_like(loc))
        self.set(loc, torch.ones_like(loc) if scale is None else scale)

    @torch.no_grad()
    def set(self, loc: Tensor, scale: Tensor) -> None:
        """Moves the map to ``loc + scale * x`` and forgets what was learned."""
        if scale.shape != self.event_shape or not bool((scale > 0).all()):
            raise ValueError(f"DiagonalAffine: scale must be positive and of shape {tuple(self.event_shape)}")
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        self.shift.zero_()
        self.log_diag.zero_()

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = torch.addcmul(self.loc + self.scale * self.shift, self.scale * self.log_diag.exp(), x)
        return y, self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = ((y - self.loc) / self.scale - self.shift) * (-self.log_diag).exp()
        return x, -self._log_det(y)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x)
        return y, log_det, score * (-self.log_diag.detach()).exp() / self.scale

    def _log_det(self, x: Tensor) -> Tensor:
        value = (self.scale.log() + self.log_diag).sum()
        return value.expand(x.shape[: x.dim() - len(self.event_shape)])

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"


@register
class LowerTriangularAffine(Bijection):
    """``y = loc + scale_tril (shift + L x)`` with L lower-triangular, its diagonal ``exp(log_diag)``.

    ``loc`` and ``scale_tril`` are set by a warm start and stay fixed; ``shift``, ``log_diag`` and the
    part of L below the diagonal, ``below``, are learned and start at zero: see `DiagonalAffine`.

    Args:
        loc: Location, ``(dim,)``.
        scale_tril: Lower-triangular with positive diagonal, ``(dim, dim)``; the identity if not given.

    Example:
        >>> import torch
        >>> flow = LowerTriangularAffine(torch.zeros(2), torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
        >>> y, log_det = flow.forward_and_log_det(torch.ones(2))
        >>> y.tolist(), round(log_det.item(), 4)
        ([2.0, 2.0], 0.6931)
    """

    stores_little = True

    loc: Tensor
    scale_tril: Tensor

    def __init__(self, loc: Tensor, scale_tril: Tensor | None = None) -> None:
        super().__init__(loc.shape)
        dim = len(loc)
        self.register_buffer("loc", torch.empty_like(loc))
        self.register_buffer("scale_tril", loc.new_empty(dim, dim))
        self.shift = nn.Parameter(torch.zeros_like(loc))
        self.log_diag = nn.Parameter(torch.zeros_like(loc))
        self.below = nn.Parameter(loc.new_zeros(dim, dim))
        self.set(loc, torch.eye(dim, dtype=loc.dtype, device=loc.device) if scale_tril is None else scale_tril)

    @torch.no_grad()
    def set(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Moves the map to ``loc + scale_tril x`` and forgets what was learned."""
        dim = len(self.loc)
        if scale_tril.shape != (dim, dim) or not bool((scale_tril.diagonal() > 0).all()):
            raise ValueError(f"LowerTriangularAffine: scale_tril must be ({dim}, {dim}) with a positive diagonal")
        self.loc.copy_(loc)
        self.scale_tril.copy_(scale_tril.tril())
        for parameter in (self.shift, self.log_diag, self.below):
            parameter.zero_()

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._move(x, self._learned()), self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        white = _solve(self.scale_tril, y - self.loc) - self.shift
        return _solve(self._learned(), white), -self._log_det(y)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        learned = self._learned()
        y = self._move(x, learned)
        with torch.no_grad():
            score = _solve(self.scale_tril, _solve(learned, score, transpose=True), transpose=True)
        return y, self._log_det(x), score

    def _move(self, x: Tensor, learned: Tensor) -> Tensor:
        return self.loc + (self.shift + x @ learned.mT) @ self.scale_tril.mT

    def _learned(self) -> Tensor:
        return self.below.tril(-1) + torch.diag(self.log_diag.exp())

    def _log_det(self, x: Tensor) -> Tensor:
        value = self.scale_tril.diagonal().log().sum() + self.log_diag.sum()
        return value.expand(x.shape[:-1])

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"


@register
class LowRankAffine(Bijection):
    """``y = loc + scale * A (shift + exp(log_diag) * x)`` with ``A = I + Q (core C - I) Q^T``.

    A stretches and shears the space that the orthonormal columns of Q, ``basis``, span, and leaves alone what is
    orthogonal to it, so that parameters, inverse and log-determinant cost O(dim rank).

    ``loc``, ``scale``, ``basis`` and ``core`` are set by a warm start and stay fixed; ``shift``, ``log_diag`` and
    the lower-triangular C (its diagonal ``exp(log_stretch)``, below it ``below``) are learned, and start as the
    identity: see `DiagonalAffine`.

    Args:
        loc: Location, ``(dim,)``.
        scale: Positive scales, ``(dim,)``; ones if not given.
        basis: Orthonormal columns, ``(dim, rank)``; none if not given.
        core: Lower-triangular with positive diagonal, ``(rank, rank)``; the identity if not given.

    Reference:
        Miller, Foti, Adams. Variational boosting: iteratively refining posterior approximations. ICML 2017
        (diagonal plus low rank). The form with an orthonormal basis is that in which Zhang et al. (Pathfinder,
        JMLR 2022, algorithm 4) draw.

    Example:
        >>> import torch
        >>> flow = LowRankAffine(torch.zeros(2), torch.tensor([1.0, 3.0]), torch.eye(2)[:, :1], 4 * torch.eye(1))
        >>> y, log_det = flow.forward_and_log_det(torch.ones(2))
        >>> y.tolist(), round(log_det.exp().item(), 4)
        ([4.0, 3.0], 12.0)
    """

    stores_little = True

    loc: Tensor
    scale: Tensor
    basis: Tensor
    core: Tensor

    def __init__(
        self, loc: Tensor, scale: Tensor | None = None, basis: Tensor | None = None, core: Tensor | None = None
    ) -> None:
        super().__init__(loc.shape)
        basis = loc.new_zeros(len(loc), 0) if basis is None else basis
        if basis.dim() != 2:
            raise ValueError(f"LowRankAffine: basis must be (dim, rank), got {tuple(basis.shape)}")
        rank = basis.size(-1)
        self.register_buffer("loc", torch.empty_like(loc))
        self.register_buffer("scale", torch.empty_like(loc))
        self.register_buffer("basis", loc.new_empty(len(loc), rank))
        self.register_buffer("core", loc.new_empty(rank, rank))
        self.shift = nn.Parameter(torch.zeros_like(loc))
        self.log_diag = nn.Parameter(torch.zeros_like(loc))
        self.log_stretch = nn.Parameter(loc.new_zeros(rank))
        self.below = nn.Parameter(loc.new_zeros(rank, rank))
        identity = torch.eye(rank, dtype=loc.dtype, device=loc.device)
        self.set(loc, torch.ones_like(loc) if scale is None else scale, basis, identity if core is None else core)

    @torch.no_grad()
    def set(self, loc: Tensor, scale: Tensor, basis: Tensor, core: Tensor) -> None:
        """Moves the map to ``loc + scale * (x + basis (core - I) basis^T x)`` and forgets what was learned."""
        (dim, rank), name = self.basis.shape, type(self).__name__
        if scale.shape != (dim,) or not bool((scale > 0).all()):
            raise ValueError(f"{name}: scale must be positive and of shape ({dim},)")
        if core.shape != (rank, rank) or not bool((core.diagonal() > 0).all()):
            raise ValueError(f"{name}: core must be ({rank}, {rank}) with a positive diagonal")
        if basis.shape != (dim, rank) or not _orthonormal(basis):
            raise ValueError(f"{name}: basis must be ({dim}, {rank}) with orthonormal columns")
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        self.basis.copy_(basis)
        self.core.copy_(core.tril())
        for parameter in (self.shift, self.log_diag, self.log_stretch, self.below):
            parameter.zero_()

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._move(x, self._stretched()), self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        white = (y - self.loc) / self.scale
        inside = white @ self.basis
        white = white + (_solve(self._stretched(), inside) - inside) @ self.basis.mT
        return (white - self.shift) * (-self.log_diag).exp(), -self._log_det(y)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        stretched = self._stretched()
        y = self._move(x, stretched)
        with torch.no_grad():
            score = score * (-self.log_diag).exp()
            inside = score @ self.basis
            score = score + (_solve(stretched, inside, transpose=True) - inside) @ self.basis.mT
            score = score / self.scale
        return y, self._log_det(x), score

    def _move(self, x: Tensor, stretched: Tensor) -> Tensor:
        x = torch.addcmul(self.shift, self.log_diag.exp(), x)
        inside = x @ self.basis
        return torch.addcmul(self.loc, self.scale, x + (inside @ stretched.mT - inside) @ self.basis.mT)

    def _stretched(self) -> Tensor:
        """``core C``, what A does to the space of the basis."""
        return self.core @ (self.below.tril(-1) + torch.diag(self.log_stretch.exp()))

    def _log_det(self, x: Tensor) -> Tensor:
        value = (self.scale.log() + self.log_diag).sum() + (self.core.diagonal().log() + self.log_stretch).sum()
        return value.expand(x.shape[:-1])

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, rank={self.basis.size(-1)}"


def _solve(tril: Tensor, rows: Tensor, transpose: bool = False) -> Tensor:
    """``tril^-1 row`` (or ``tril^-T row``) for every row of ``rows``, ``(*batch, dim)``."""
    matrix = tril if transpose else tril.mT
    flat = rows.reshape(math.prod(rows.shape[:-1]), rows.size(-1))
    return torch.linalg.solve_triangular(matrix, flat, upper=not transpose, left=False).reshape(rows.shape)


def _orthonormal(columns: Tensor) -> bool:
    identity = torch.eye(columns.size(-1), dtype=columns.dtype, device=columns.device)
    return bool(((columns.mT @ columns - identity).abs() < 100 * torch.finfo(columns.dtype).eps ** 0.75).all())
