"""Fixed reorderings of the features."""

from __future__ import annotations

__all__ = ["Permutation"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Bijection
from .partitions import reorder


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
        return self._reorder(x, self.permutation)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._reorder(y, self.inverse_permutation)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x)
        return y, log_det, self._reorder(score, self.permutation)[0]

    def _reorder(self, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.shape[: x.dim() - len(self.event_shape)]
        if len(self.event_shape) == 1:
            return reorder(x, order), x.new_zeros(batch)
        return reorder(x.reshape(batch + order.shape), order).reshape(x.shape), x.new_zeros(batch)

    def extra_repr(self) -> str:
        order = self.permutation.tolist()
        return str(order) if len(order) <= 16 else f"{len(order)} features"
