"""Which part of an event a coupling leaves alone and which it moves: boolean masks, and what reads them.

A mask has the shape of an event; True marks an entry that stays and feeds the conditioner, False one
that is moved.
"""

from __future__ import annotations

__all__ = ["Partition", "alternating", "as_shape", "halves", "random_pair", "reorder"]

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Partition(nn.Module):
    """Splits flattened events into the entries that stay and those that are moved, and joins them again.

    Args:
        mask: Boolean, one entry for each of the event; True stays. At least one entry must be False.

    Raises:
        TypeError: If the mask is not boolean.
        ValueError: If the mask moves nothing.

    Example:
        >>> import torch
        >>> stay, move = Partition([True, False, True]).split(torch.tensor([1.0, 2.0, 3.0]))
        >>> stay, move
        (tensor([1., 3.]), tensor([2.]))
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, mask: Tensor | Sequence[bool]) -> None:
        super().__init__()
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"Partition: mask must be boolean (True stays, False moves), found {mask.dtype}")
        flat = mask.flatten()
        if bool(flat.all()):
            raise ValueError(f"Partition: mask of {flat.numel()} entries moves nothing, one must be False")
        self.event_shape = mask.shape
        self.num_staying = int(flat.sum())
        self.num_moving = flat.numel() - self.num_staying
        order = torch.cat([flat.nonzero().flatten(), (~flat).nonzero().flatten()])
        # a mask that is one cut through the event needs no gathering, only views
        self._stays_first = bool(flat[: self.num_staying].all())
        self._stays_last = bool(flat[self.num_moving :].all())
        # part of the state, so that a flow loaded from a file splits as the saved one did
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(*batch, n)`` -> ``(*batch, num_staying)``, ``(*batch, num_moving)``."""
        if self._stays_last and not self._stays_first:
            moving, staying = x.split([self.num_moving, self.num_staying], -1)
            return staying, moving
        if not self._stays_first:
            x = reorder(x, self.order)
        staying, moving = x.split([self.num_staying, self.num_moving], -1)
        return staying, moving

    def join(self, staying: Tensor, moving: Tensor) -> Tensor:
        """The inverse of `split`."""
        if self._stays_last and not self._stays_first:
            return torch.cat([moving, staying], -1)
        joined = torch.cat([staying, moving], -1)
        return joined if self._stays_first else reorder(joined, self.inverse_order)

    def extra_repr(self) -> str:
        signs = "".join("." if i < self.num_staying else "#" for i in self.inverse_order.tolist())
        shown = signs if len(signs) <= 32 else signs[:29] + "..."
        return f"{shown}, {self.num_staying} stay, {self.num_moving} move"


def halves(event_shape: int | Sequence[int], split_dim: int | None = None, dim: int = -1) -> Tensor:
    """The first ``split_dim`` slices along ``dim`` stay; half of them (rounded down) if not given.

    Args:
        event_shape: Shape of an event, or its size.
        split_dim: Number of slices that stay, from 0 to the size less one.
        dim: Dimension that is split, negative.

    Example:
        >>> halves(4)
        tensor([ True,  True, False, False])
    """
    shape = as_shape(event_shape)
    if not -len(shape) <= dim <= -1:
        raise ValueError(f"halves: dim must be from {-len(shape)} to -1 for event shape {shape}, got {dim}")
    size = shape[dim]
    split_dim = size // 2 if split_dim is None else split_dim
    if not 0 <= split_dim < size:
        raise ValueError(f"halves: split_dim must be from 0 to {size - 1}, got {split_dim}")
    column = (torch.arange(size) < split_dim).reshape((-1,) + (1,) * (-dim - 1))
    return column.expand(shape).clone()


def alternating(event_shape: int | Sequence[int], phase: int = 0) -> Tensor:
    """Every second entry stays, beginning with the first where ``phase`` is 0.

    Example:
        >>> alternating(4)
        tensor([ True, False,  True, False])
    """
    shape = as_shape(event_shape)
    return (torch.arange(math.prod(shape)) % 2 == phase % 2).reshape(shape)


def random_pair(event_shape: int | Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random half and its complement, which depend on ``seed`` alone.

    Example:
        >>> first, second = random_pair(6, seed=3)
        >>> bool((first ^ second).all()), int(first.sum())
        (True, 3)
    """
    shape = as_shape(event_shape)
    size = math.prod(shape)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    first = (order < size // 2).reshape(shape)
    return first, ~first


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """``x[..., order]``, by an operation whose backward pass is fast too (that of indexing is not)."""
    return x.gather(-1, order.expand(x.shape))


def as_shape(size: int | Sequence[int], name: str = "event_shape") -> tuple[int, ...]:
    """A size or a shape as a shape; ``name`` is the argument that an error names."""
    try:
        shape = tuple(map(operator.index, size if isinstance(size, Sequence) else (size,)))
    except TypeError:
        raise TypeError(f"{name} must be a positive integer or a shape of such, got {size!r}") from None
    if not shape or min(shape) < 1:
        raise ValueError(f"{name} must be a positive integer or a shape of such, got {size!r}")
    return shape
