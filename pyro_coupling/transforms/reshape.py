"""Changes of layout: squeezing positions into channels, other shapes for the same entries."""

from __future__ import annotations

__all__ = ["Reshape", "Squeeze"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..registry import register
from .base import Bijection
from .partitions import as_shape


class _Layout(Bijection):
    """The same entries in another layout, log-determinant zero."""

    stores_little = True

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = x.shape[: x.dim() - len(self.event_shape)]
        return self._forwards(x, batch), x.new_zeros(batch)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = y.shape[: y.dim() - len(self.output_shape)]
        return self._backwards(y, batch), y.new_zeros(batch)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x)
        return y, log_det, self.forward_and_log_det(score)[0]

    def _forwards(self, x: Tensor, batch: torch.Size) -> Tensor:
        raise NotImplementedError

    def _backwards(self, y: Tensor, batch: torch.Size) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)} -> {tuple(self.output_shape)}"


@register
class Reshape(_Layout):
    """The entries of an event in another shape, in the same order.

    Args:
        event_shape: Shape of an input.
        output_shape: Shape of an output, of as many entries.

    Example:
        >>> import torch
        >>> Reshape(6, (2, 3))(torch.zeros(5, 6)).shape
        torch.Size([5, 2, 3])
    """

    def __init__(self, event_shape: int | Sequence[int], output_shape: int | Sequence[int]) -> None:
        before, after = as_shape(event_shape), as_shape(output_shape, "output_shape")
        if math.prod(before) != math.prod(after):
            raise ValueError(
                f"Reshape: output_shape {after} has {math.prod(after)} entries, "
                f"event_shape {before} has {math.prod(before)}"
            )
        super().__init__(before, output_shape=after)

    def _forwards(self, x: Tensor, batch: torch.Size) -> Tensor:
        return x.reshape(batch + self.output_shape)

    def _backwards(self, y: Tensor, batch: torch.Size) -> Tensor:
        return y.reshape(batch + self.event_shape)


@register
class Squeeze(_Layout):
    """Blocks of neighbouring positions become channels.

    An image ``(c, h, w)`` becomes ``(c * factor**2, h / factor, w / factor)``, a recording ``(c, t)``
    becomes ``(c * factor, t / factor)``. ``Squeeze(shape).inv`` unsqueezes.

    Args:
        event_shape: Shape of an input, channels first.
        factor: Positions that are joined, along each dimension but the first.

    Raises:
        ValueError: If a dimension can't be divided by ``factor``, or there is none to squeeze.

    Reference:
        Dinh, Sohl-Dickstein, Bengio. Density estimation using Real NVP. ICLR 2017 (section 3.6).

    Example:
        >>> import torch
        >>> squeeze = Squeeze((1, 4, 4))
        >>> squeeze(torch.arange(16.0).reshape(1, 4, 4))[:, 0, 0]
        tensor([0., 1., 4., 5.])
        >>> squeeze.inv(torch.zeros(7, 4, 2, 2)).shape
        torch.Size([7, 1, 4, 4])
    """

    def __init__(self, event_shape: Sequence[int], factor: int = 2) -> None:
        shape = as_shape(event_shape)
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"Squeeze: factor must be a positive integer, got {factor!r}")
        if len(shape) < 2:
            raise ValueError(f"Squeeze: event_shape must have channels and positions, got {shape}")
        if any(size % factor for size in shape[1:]):
            raise ValueError(
                f"Squeeze: every dimension of event_shape {shape} but the first must be divisible by factor {factor}"
            )
        positions = tuple(size // factor for size in shape[1:])
        super().__init__(shape, output_shape=(shape[0] * factor ** len(positions), *positions))
        self.factor = factor
        # (c, h, f, w, f) -> (c, f, f, h, w), counted from the end
        n = 2 * len(positions) + 1
        self._split = (shape[0], *(size for p in positions for size in (p, factor)))
        order = (0, *range(2, n, 2), *range(1, n, 2))
        self._order = [i - n for i in order]
        self._back = [order.index(i) - n for i in range(n)]

    def _forwards(self, x: Tensor, batch: torch.Size) -> Tensor:
        apart = x.reshape(batch + torch.Size(self._split))
        return _permuted(apart, self._order).reshape(batch + self.output_shape)

    def _backwards(self, y: Tensor, batch: torch.Size) -> Tensor:
        apart = y.reshape(batch + torch.Size([self._split[i] for i in self._order]))
        return _permuted(apart, self._back).reshape(batch + self.event_shape)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, factor={self.factor}"


def _permuted(x: Tensor, order: list[int]) -> Tensor:
    """Permutes the last dimensions, given from the end, and leaves those before them."""
    return x.permute(*range(x.dim() - len(order)), *(x.dim() + i for i in order))
