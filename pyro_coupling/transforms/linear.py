"""Learned linear maps along one dimension of an event: LU, orthogonal and plain; the 1x1 convolution is one of them."""

from __future__ import annotations

__all__ = ["HouseholderLinear", "LULinear", "PlainLinear", "conv1x1"]

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..registry import register
from .base import Bijection
from .partitions import as_shape


class AlongDim(Bijection):
    """What acts along one dimension of an event, in the same way at all positions along the others.

    Args:
        event_shape: Shape of an event, or its size.
        dim: The dimension, negative: -1 for vectors, -3 for images ``(channels, height, width)``,
            -2 for audio ``(channels, time)``.
    """

    def __init__(self, event_shape: int | Sequence[int], dim: int) -> None:
        shape = as_shape(event_shape)
        if not -len(shape) <= dim <= -1:
            raise ValueError(
                f"{type(self).__name__}: dim must be from {-len(shape)} to -1 for event shape {shape}, got {dim}"
            )
        super().__init__(shape)
        self.dim = dim
        self.size = shape[dim]
        self.num_positions = math.prod(shape) // self.size

    def _rows(self, x: Tensor) -> Tensor:
        """``dim`` last."""
        return x.movedim(self.dim, -1)

    def _back(self, rows: Tensor) -> Tensor:
        return rows.movedim(-1, self.dim)

    def _for_batch(self, log_det: Tensor, x: Tensor) -> Tensor:
        """The log-determinant of one position, a number, as that of the events in ``x``."""
        return (self.num_positions * log_det).expand(x.shape[: x.dim() - len(self.event_shape)])

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, dim={self.dim}"


def _outside_autocast(method: Callable) -> Callable:
    """In bfloat16, a matrix would not be the one whose determinant is stated, and its inverse would have two digits."""

    @functools.wraps(method)
    def run(self: _Linear, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return method(self, x, *args, **kwargs)
        dtype = next(self.parameters()).dtype
        with torch.autocast(device, enabled=False):
            return method(self, *(a.to(dtype) if isinstance(a, Tensor) else a for a in (x, *args)), **kwargs)

    return run


class _Linear(AlongDim):
    """``y = W x`` along ``dim``. A subclass gives W, its log-determinant, and a way to solve."""

    stores_little = True

    weight: Tensor

    @_outside_autocast
    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._back(F.linear(self._rows(x), self.weight)), self._for_batch(self._log_det(), x)

    @_outside_autocast
    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._solved(y), self._for_batch(-self._log_det(), y)

    @_outside_autocast
    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x)
        with torch.no_grad():
            score = self._solved(score, transpose=True)
        return y, log_det, score

    def _solved(self, y: Tensor, transpose: bool = False) -> Tensor:
        rows = self._rows(y)
        flat = rows.reshape(-1, self.size)
        if len(flat) > self.size:  # an inverse and one product take less time than to solve for every row
            flat = flat @ self._solve(_eye_like(flat, self.size), transpose)
        else:
            flat = self._solve(flat, transpose)
        return self._back(flat.reshape(rows.shape))

    def _solve(self, rows: Tensor, transpose: bool) -> Tensor:
        """``W^-1 row``, or ``W^-T row``, for every row of ``rows``, ``(n, size)``."""
        raise NotImplementedError

    def _log_det(self) -> Tensor:
        """``log|det W|``."""
        raise NotImplementedError


@register
class LULinear(_Linear):
    """``W = Q L U diag(s)`` along one dimension: cheap to invert, and its determinant a product.

    Q is fixed: a random rotation, or the identity. L and U are triangular with ones on their diagonals
    and s is positive; they are learned and start as the identity, in one square matrix of raw numbers:
    L below the diagonal and U above it, ``bound * tanh(raw / bound)``, and ``s = exp(asinh(raw))`` on it.
    So no step of an optimiser makes W singular. Its condition number can still grow exponentially with the
    number of features: float32 stays finite, whatever the raw numbers, for up to about 40 of them; more ask
    for a smaller ``bound``.

    Glow's factors are a permutation in place of Q, and L, U of a rotation at the start. With the rotation
    left whole, raw numbers of zero are the start, and the triangles stay near the identity, where
    solving is accurate.

    Args:
        event_shape: Shape of an event, or its size.
        dim: The dimension that is mixed, negative: -3 for images ``(channels, height, width)``.
        seed: Seed of the rotation; None starts as the identity.
        bound: Bound of the entries of L and U beside their diagonals.

    Raises:
        ValueError: If ``dim`` is no dimension of the event or ``bound`` is not positive and finite.

    Reference:
        Kingma, Dhariwal. Glow: generative flow with invertible 1x1 convolutions. NeurIPS 2018 (section 3.2).

    Example:
        >>> import torch
        >>> layer = LULinear((3, 8, 8), dim=-3, seed=1)
        >>> y, log_det = layer.forward_and_log_det(torch.randn(5, 3, 8, 8))
        >>> y.shape, log_det.tolist()
        (torch.Size([5, 3, 8, 8]), [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    rotation: Tensor

    def __init__(
        self, event_shape: int | Sequence[int], dim: int = -1, *, seed: int | None = None, bound: float = 2.0
    ) -> None:
        super().__init__(event_shape, dim)
        if not 0 < bound < math.inf:
            raise ValueError(f"LULinear: bound must be positive and finite, got {bound}")
        self.bound = bound
        self.register_buffer("rotation", _rotation(self.size, seed))
        self.raw = nn.Parameter(torch.zeros(self.size, self.size))

    @property
    def weight(self) -> Tensor:
        """W, ``(size, size)``."""
        rotation, lower, upper, log_scale = self._factors()
        return rotation @ lower @ (upper * log_scale.exp())

    def _solve(self, rows: Tensor, transpose: bool) -> Tensor:
        rotation, lower, upper, log_scale = self._factors()
        if transpose:
            rows = rows * (-log_scale).exp()
            rows = torch.linalg.solve_triangular(upper, rows, upper=True, left=False)
            return torch.linalg.solve_triangular(lower, rows, upper=False, left=False) @ rotation.mT
        rows = torch.linalg.solve_triangular(lower.mT, rows @ rotation, upper=True, left=False)
        rows = torch.linalg.solve_triangular(upper.mT, rows, upper=False, left=False)
        return rows * (-log_scale).exp()

    def _log_det(self) -> Tensor:
        return self._log_scale().sum()

    def _log_scale(self) -> Tensor:
        return self.raw.diagonal().asinh()

    def _factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        entries = self.bound * torch.tanh(self.raw / self.bound)
        one = _eye_like(entries, self.size)
        return _orthonormal(self.rotation), entries.tril(-1) + one, entries.triu(1) + one, self._log_scale()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bound={self.bound}"


@register
class HouseholderLinear(_Linear):
    """A product of Householder reflections along one dimension: orthogonal, log-determinant zero.

    ``W = H_1 H_2 ... H_k`` with ``H = I - 2 v v^T / v^T v``; of a vector v that is zero, H is the identity.
    As many reflections as there are features reach every orthogonal map (of determinant ``(-1)^k``).

    Args:
        event_shape: Shape of an event, or its size.
        num_reflections: Number k of reflections; the number of features, rounded up to an even number,
            if not given.
        dim: The dimension that is mixed, negative.
        seed: Seed of random reflections; None starts with equal pairs of them, which is the identity
            where ``num_reflections`` is even (and one reflection where it is odd).

    Raises:
        ValueError: If ``dim`` is no dimension of the event or ``num_reflections`` is less than 1.

    Reference:
        Tomczak, Welling. Improving variational auto-encoders using Householder flow. 2016.
        Joffrain, Low, Quintana-Ortí, van de Geijn, Van Zee. Accumulating Householder transformations,
        revisited. ACM TOMS 2006 (the product as one matrix).

    Example:
        >>> import torch
        >>> weight = HouseholderLinear(4, num_reflections=3, seed=1).weight
        >>> torch.allclose(weight @ weight.mT, torch.eye(4), atol=1e-6)
        True
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        num_reflections: int | None = None,
        dim: int = -1,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(event_shape, dim)
        count = self.size + self.size % 2 if num_reflections is None else num_reflections
        if count < 1:
            raise ValueError(f"HouseholderLinear: num_reflections must be 1 or more, got {num_reflections}")
        vectors = torch.randn(count, self.size, generator=torch.Generator().manual_seed(seed or 0))
        if seed is None:
            vectors = vectors.repeat_interleave(2, 0)[:count]
        self.vectors = nn.Parameter(vectors)

    @property
    def weight(self) -> Tensor:
        """W, ``(size, size)``."""
        v: Tensor = self.vectors
        # the length of v does not matter, so dividing by its largest entry, a constant, is exact
        largest = v.detach().abs().amax(-1, keepdim=True)
        v = v / torch.where(largest > torch.finfo(v.dtype).tiny, largest, 1.0)
        v = v / v.square().sum(-1, keepdim=True).clamp_min(1.0).sqrt()  # 1 or more, or v is zero
        # H_1 ... H_k = I - V^T S^-1 V, S the upper triangle of V V^T with 1/2 on its diagonal
        triangle = (v @ v.mT).triu(1) + 0.5 * _eye_like(v, len(v))
        return _orthonormal(_eye_like(v, self.size) - v.mT @ torch.linalg.solve_triangular(triangle, v, upper=True))

    def _solve(self, rows: Tensor, transpose: bool) -> Tensor:
        weight = self.weight
        return rows @ (weight.mT if transpose else weight)

    def _log_det(self) -> Tensor:
        return self.vectors.new_zeros(())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_reflections={len(self.vectors)}"


@register
class PlainLinear(_Linear):
    """``y = W x`` along one dimension, every entry of W learned; the plain 1x1 convolution of Glow.

    Nothing keeps W from becoming singular: its inverse then fails with an error of ``torch.linalg``, and
    long before that loses digits. `LULinear` can't get there. Each call costs the cube of the number of
    features.

    Args:
        event_shape: Shape of an event, or its size.
        dim: The dimension that is mixed, negative.
        seed: Seed of a random rotation to start from; None starts from the identity.

    Raises:
        ValueError: If ``dim`` is no dimension of the event.

    Reference:
        Kingma, Dhariwal. Glow: generative flow with invertible 1x1 convolutions. NeurIPS 2018 (section 3.2).

    Example:
        >>> import torch
        >>> PlainLinear(2)(torch.tensor([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """

    def __init__(self, event_shape: int | Sequence[int], dim: int = -1, *, seed: int | None = None) -> None:
        super().__init__(event_shape, dim)
        self.weight = nn.Parameter(_rotation(self.size, seed))

    def _solve(self, rows: Tensor, transpose: bool) -> Tensor:
        return torch.linalg.solve(self.weight if transpose else self.weight.mT, rows, left=False)

    def _log_det(self) -> Tensor:
        return torch.linalg.slogdet(self.weight).logabsdet


def conv1x1(event_shape: Sequence[int], lu: bool = True, seed: int | None = 0) -> LULinear | PlainLinear:
    """An invertible 1x1 convolution (Glow): the same linear map of the channels at every position.

    Args:
        event_shape: ``(channels, height, width)``, ``(channels, time)``, or any with channels first.
        lu: `LULinear`; False for `PlainLinear`.
        seed: Seed of the rotation it starts as; None for the identity.

    Raises:
        ValueError: If ``event_shape`` has channels only.

    Example:
        >>> import torch
        >>> conv1x1((4, 100))(torch.randn(10, 4, 100)).shape
        torch.Size([10, 4, 100])
    """
    shape = as_shape(event_shape)
    if len(shape) < 2:
        raise ValueError(f"conv1x1: event_shape must have channels and positions, got {shape}")
    return (LULinear if lu else PlainLinear)(shape, -len(shape), seed=seed)


def _rotation(size: int, seed: int | None) -> Tensor:
    """A rotation drawn uniformly; the identity without a seed.

    Reference:
        Mezzadri. How to generate random matrices from the classical compact groups. Notices AMS 2007.
    """
    if seed is None:
        return torch.eye(size)
    normal = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal().sign()
    q[:, 0] *= torch.linalg.det(q).sign()
    return q.to(torch.get_default_dtype()).contiguous()


def _orthonormal(q: Tensor) -> Tensor:
    """A matrix that is orthogonal up to an error, with that error squared: a step of Newton and Schulz.

    What was rounded when it was stored or computed is then orthogonal in whatever dtype it has now, so that its
    transpose is its inverse.
    """
    return 1.5 * q - 0.5 * q @ (q.mT @ q)


def _eye_like(tensor: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=tensor.dtype, device=tensor.device)
