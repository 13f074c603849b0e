"""Reorderings of the features, fixed and learned."""

from __future__ import annotations

__all__ = ["LearnedPermutation", "Permutation"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..registry import register
from .base import Bijection
from .partitions import as_shape, reorder


@register
class Permutation(Bijection):
    """Reorders the entries of an event: ``y[i] = x[permutation[i]]`` (events are flattened for this).

    Args:
        permutation: Every number from 0 to n - 1 once.
        event_shape: Shape of an event with n entries; ``(n,)`` if not given.

    Raises:
        ValueError: If ``permutation`` is not a permutation or does not fit ``event_shape``.

    Example:
        >>> import torch
        >>> Permutation([2, 0, 1])(torch.tensor([10.0, 20.0, 30.0]))
        tensor([30., 10., 20.])
        >>> Permutation.random(4, seed=1).inverse_permutation.shape
        torch.Size([4])
    """

    stores_little = True

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, permutation: Sequence[int] | Tensor, event_shape: tuple[int, ...] | None = None) -> None:
        permutation = torch.as_tensor(permutation, dtype=torch.long)
        if permutation.dim() != 1 or not torch.equal(permutation.sort().values, torch.arange(permutation.numel())):
            raise ValueError(
                f"Permutation: permutation must hold every number from 0 to n - 1 once, got {permutation.tolist()}"
            )
        shape = (len(permutation),) if event_shape is None else tuple(event_shape)
        if math.prod(shape) != len(permutation):
            raise ValueError(f"Permutation: event_shape {shape} has not {len(permutation)} entries")
        super().__init__(shape)
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", permutation.argsort())

    @classmethod
    def reverse(cls, size: int) -> Permutation:
        """The features in reverse order."""
        return cls(torch.arange(size).flip(0))

    @classmethod
    def random(cls, size: int, seed: int = 0, event_shape: tuple[int, ...] | None = None) -> Permutation:
        """A random order that depends on ``seed`` alone."""
        return cls(torch.randperm(size, generator=torch.Generator().manual_seed(seed)), event_shape)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _reordered(self, x, self.permutation)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _reordered(self, y, self.inverse_permutation)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x)
        return y, log_det, _reordered(self, score, self.permutation)[0]

    def extra_repr(self) -> str:
        order = self.permutation.tolist()
        return str(order) if len(order) <= 16 else f"{len(order)} features"


@register
class LearnedPermutation(Bijection):
    """Reorders the entries of an event by the order of learned scores, the smallest first.

    The map itself is a permutation: its inverse is exact and its log-determinant zero. Scores have no
    gradient through sorting, so they get that of a relaxation (straight through): row i of the matrix is
    ``softmax(-|sort(scores)[i] - scores| / temperature)``. It is a guide to better orders and no derivative
    of the map, which is constant until two scores trade places.

    Args:
        event_shape: Shape of an event, which is flattened, or its size.
        temperature: Width of the relaxation; neighbouring scores start one apart.
        seed: Seed of a random order to start with; None starts as the identity.

    Raises:
        ValueError: If ``temperature`` is not positive and finite.

    Reference:
        Prillo, Eisenschlos. SoftSort: a continuous relaxation for the argsort operator. ICML 2020.

    Example:
        >>> import torch
        >>> layer = LearnedPermutation(3)
        >>> _ = layer.scores.data.copy_(torch.tensor([0.5, -1.0, 0.1]))
        >>> layer(torch.tensor([10.0, 20.0, 30.0])).tolist()
        [20.0, 30.0, 10.0]
    """

    def __init__(self, event_shape: int | Sequence[int], temperature: float = 1.0, *, seed: int | None = None) -> None:
        shape = as_shape(event_shape)
        if not 0 < temperature < math.inf:
            raise ValueError(f"LearnedPermutation: temperature must be positive and finite, got {temperature}")
        super().__init__(shape)
        self.temperature = temperature
        size = math.prod(shape)
        ranks = (
            torch.arange(size) if seed is None else torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        )
        self.scores = nn.Parameter(ranks.to(torch.get_default_dtype()))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        order = self.scores.argsort()
        y, log_det = _reordered(self, x, order)
        return self._straight_through(y, x, order, transpose=False), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        order = self.scores.argsort()
        x, log_det = _reordered(self, y, order.argsort())
        return self._straight_through(x, y, order, transpose=True), log_det

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x)
        return y, log_det, _reordered(self, score, self.scores.argsort())[0]

    def _straight_through(self, reordered: Tensor, x: Tensor, order: Tensor, transpose: bool) -> Tensor:
        """``reordered`` itself, and the gradient that the relaxed permutation of x has in the scores."""
        if not (torch.is_grad_enabled() and self.scores.requires_grad):
            return reordered
        apart = (self.scores[order, None] - self.scores).abs()
        soft = (-apart / self.temperature).softmax(-1)
        zero = soft - soft.detach()
        flat = x.detach().flatten(x.dim() - len(self.event_shape))
        return reordered + (flat @ (zero if transpose else zero.mT)).reshape(x.shape)

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, temperature={self.temperature}"


def _reordered(bijection: Bijection, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of events in another order, and a log-determinant of zero."""
    batch = x.shape[: x.dim() - len(bijection.event_shape)]
    if len(bijection.event_shape) == 1:
        return reorder(x, order), x.new_zeros(batch)
    return reorder(x.reshape(batch + order.shape), order).reshape(x.shape), x.new_zeros(batch)
