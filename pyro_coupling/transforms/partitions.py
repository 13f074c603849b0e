"""Which part of an event a coupling leaves alone and which it moves: what reads a mask.

A mask has the shape of an event; True marks an entry that stays and feeds the conditioner, False one
that is moved. `masks` makes them.
"""

from __future__ import annotations

__all__ = ["MaskedPartition", "Partition", "SlicePartition", "as_shape", "reorder"]

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..registry import register


@register
class Partition(nn.Module):
    """Splits flattened events into the entries that stay and those that are moved, and joins them again.

    The conditioner sees the entries that stay as one vector. Subclasses show them in the event's own
    layout, to convolutions or attention.

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
            raise TypeError(
                f"{type(self).__name__}: mask must be boolean (True stays, False moves), found {mask.dtype}"
            )
        flat = mask.flatten()
        if bool(flat.all()):
            raise ValueError(f"{type(self).__name__}: mask of {flat.numel()} entries moves nothing, one must be False")
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
        self.shown_shape = torch.Size([self.num_staying])
        self.channel_dim = -1

    @property
    def moving_entries(self) -> tuple[int, ...]:
        """Places of the moved entries in the flattened event."""
        return tuple(self.order[self.num_staying :].tolist())

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

    def show(self, staying: Tensor) -> Tensor:
        """What stays as the conditioner sees it: ``(*batch, num_staying)`` -> ``(*batch, *shown_shape)``."""
        return staying

    def answer_shape(self, num_params: int) -> tuple[int, ...]:
        """Shape of an event's worth of the conditioner's output."""
        return (num_params * self.num_moving,)

    def read(self, answer: Tensor, num_params: int) -> Tensor:
        """``(*batch, *answer_shape)`` -> ``(*batch, num_params, num_moving)``."""
        batch = answer.shape[: answer.dim() - len(self.answer_shape(num_params))]
        return answer.reshape(batch + (num_params, self.num_moving))

    def extra_repr(self) -> str:
        signs = "".join("." if i < self.num_staying else "#" for i in self.inverse_order.tolist())
        shown = signs if len(signs) <= 32 else signs[:29] + "..."
        return f"{shown}, {self.num_staying} stay, {self.num_moving} move"


@register
class SlicePartition(Partition):
    """Cuts an event along its channel dimension; the conditioner sees the part that stays in its own layout.

    Channels first, ``dim=-3`` for images ``(channels, height, width)`` and ``dim=-2`` for audio
    ``(channels, time)``, goes with convolutions; channels last, ``dim=-1`` for ``(items, features)``,
    with attention and message passing. The conditioner keeps all other dimensions and returns
    ``num_params`` times as many channels as are moved.

    Args:
        event_shape: Shape of an event.
        num_staying: Channels that stay; half of them (rounded down) if not given.
        dim: The channel dimension, negative.
        stays_first: Whether the first channels stay, or the last.

    Raises:
        ValueError: If nothing stays or nothing moves.

    Example:
        >>> import torch
        >>> cut = SlicePartition((4, 8, 8), dim=-3)
        >>> stay, move = cut.split(torch.zeros(10, 256))
        >>> cut.show(stay).shape, move.shape
        (torch.Size([10, 2, 8, 8]), torch.Size([10, 128]))
    """

    def __init__(
        self, event_shape: Sequence[int], num_staying: int | None = None, dim: int = -1, stays_first: bool = True
    ) -> None:
        shape = as_shape(event_shape)
        if not -len(shape) <= dim <= -1:
            raise ValueError(f"SlicePartition: dim must be from {-len(shape)} to -1 for event shape {shape}, got {dim}")
        size = shape[dim]
        num_staying = size // 2 if num_staying is None else num_staying
        if not 0 < num_staying < size:
            raise ValueError(f"SlicePartition: num_staying must be from 1 to {size - 1}, got {num_staying}")
        channel = torch.arange(size) < num_staying if stays_first else torch.arange(size) >= size - num_staying
        super().__init__(channel.reshape((-1,) + (1,) * (-dim - 1)).expand(shape))
        # no part of the state, which so fits events of any other length or size
        for name in ("order", "inverse_order"):
            self.register_buffer(name, getattr(self, name), persistent=False)
        self.channel_dim = dim
        self.shown_shape = torch.Size(_with(shape, dim, num_staying))
        self._moving = size - num_staying

    def show(self, staying: Tensor) -> Tensor:
        return staying.reshape(staying.shape[:-1] + self.shown_shape)

    def answer_shape(self, num_params: int) -> tuple[int, ...]:
        return _with(self.shown_shape, self.channel_dim, num_params * self._moving)

    def read(self, answer: Tensor, num_params: int) -> Tensor:
        return _parameters_first(answer, self.channel_dim, num_params, len(self.shown_shape))


@register
class MaskedPartition(Partition):
    """Any mask; the conditioner sees the whole event, zero where it is moved, and answers for every entry.

    This is how a checkerboard meets a convolution. Answers for entries that stay are discarded.

    Args:
        mask: Boolean, of the event's shape; True stays.
        dim: The channel dimension, negative; the first if not given.

    Example:
        >>> import torch
        >>> from pyro_coupling.transforms import checkerboard
        >>> board = MaskedPartition(checkerboard((1, 2, 2)))
        >>> stay, move = board.split(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> board.show(stay)
        tensor([[[1., 0.],
                 [0., 4.]]])
    """

    moving_order: Tensor

    def __init__(self, mask: Tensor | Sequence[bool], dim: int | None = None) -> None:
        super().__init__(mask)
        shape = self.event_shape
        self.channel_dim = -len(shape) if dim is None else dim
        if not -len(shape) <= self.channel_dim <= -1:
            raise ValueError(
                f"MaskedPartition: dim must be from {-len(shape)} to -1 for shape {tuple(shape)}, got {dim}"
            )
        self.shown_shape = shape
        self.register_buffer("moving_order", self.order[self.num_staying :].clone())

    def show(self, staying: Tensor) -> Tensor:
        zeros = staying.new_zeros(staying.shape[:-1] + (self.num_moving,))
        return self.join(staying, zeros).reshape(staying.shape[:-1] + self.shown_shape)

    def answer_shape(self, num_params: int) -> tuple[int, ...]:
        return _with(self.shown_shape, self.channel_dim, num_params * self.shown_shape[self.channel_dim])

    def read(self, answer: Tensor, num_params: int) -> Tensor:
        params = _parameters_first(answer, self.channel_dim, num_params, len(self.shown_shape))
        return params.gather(-1, self.moving_order.expand(params.shape[:-1] + self.moving_order.shape))


def _with(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    """``shape`` with another size along ``dim``."""
    changed = list(shape)
    changed[dim] = size
    return tuple(changed)


def _parameters_first(answer: Tensor, dim: int, num_params: int, event_dim: int) -> Tensor:
    """Channels that count parameter-major become ``(*batch, num_params, entries)``."""
    apart = answer.unflatten(dim, (num_params, answer.size(dim) // num_params)).movedim(dim - 1, -event_dim - 1)
    return apart.flatten(-event_dim)


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
