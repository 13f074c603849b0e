"""Masks: boolean, of an event's shape, True where an entry stays and feeds the conditioner."""

from __future__ import annotations

__all__ = ["alternating", "checkerboard", "decorrelating", "from_indices", "halves", "random_pair"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .partitions import as_shape


def halves(event_shape: int | Sequence[int], split_dim: int | None = None, dim: int = -1) -> Tensor:
    """The first ``split_dim`` slices along ``dim`` stay; half of them (rounded down) if not given.

    Args:
        event_shape: Shape of an event, or its size.
        split_dim: Number of slices that stay, from 0 to the size less one.
        dim: Dimension that is split, negative; that of the channels makes a channel-wise mask.

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

    Entries are counted through the flattened event: of an image of even width these are columns.

    Example:
        >>> alternating(4)
        tensor([ True, False,  True, False])
    """
    shape = as_shape(event_shape)
    return (torch.arange(math.prod(shape)) % 2 == phase % 2).reshape(shape)


def checkerboard(event_shape: Sequence[int], phase: int = 0) -> Tensor:
    """The black fields of a checkerboard over height and width stay, in every channel.

    Args:
        event_shape: ``(..., height, width)``.
        phase: 0 if the field at the top left stays, 1 if it moves.

    Reference:
        Dinh, Sohl-Dickstein, Bengio. Density estimation using Real NVP. ICLR 2017 (section 3.4).

    Example:
        >>> checkerboard((2, 3))
        tensor([[ True, False,  True],
                [False,  True, False]])
    """
    shape = as_shape(event_shape)
    if len(shape) < 2:
        raise ValueError(f"checkerboard: event_shape must end in height and width, got {shape}")
    rows, columns = torch.arange(shape[-2])[:, None], torch.arange(shape[-1])
    return ((rows + columns) % 2 == phase % 2).expand(shape).clone()


def from_indices(event_shape: int | Sequence[int], staying: Sequence[int] | Tensor) -> Tensor:
    """The listed entries of the flattened event stay.

    Args:
        event_shape: Shape of an event, or its size.
        staying: Indices into the flattened event, from 0 on.

    Raises:
        ValueError: If an index is out of range or listed twice.

    Example:
        >>> from_indices(4, [0, 3])
        tensor([ True, False, False,  True])
    """
    shape = as_shape(event_shape)
    indices = torch.as_tensor(staying, dtype=torch.long).flatten().tolist()
    if len(set(indices)) < len(indices) or not set(indices) <= set(range(math.prod(shape))):
        raise ValueError(
            f"from_indices: staying must hold different numbers from 0 to {math.prod(shape) - 1}, got {indices}"
        )
    mask = torch.zeros(math.prod(shape), dtype=torch.bool)
    mask[indices] = True
    return mask.reshape(shape)


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


def decorrelating(samples: Tensor) -> Tensor:
    """Halves between which the data are most correlated: what stays tells most about what is moved.

    A coupling models how its moved part depends on the part that stays, so entries that depend on each
    other belong on opposite sides. The halves are read off the eigenvector of the matrix of absolute
    correlations with the smallest eigenvalue, whose signs differ between strongly correlated entries.

    Args:
        samples: Data, ``(num_samples, *event_shape)``, at least two.

    Returns:
        A mask of the event's shape, half of it (rounded down) True.

    Example:
        >>> import torch
        >>> a, b = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
        >>> mask = decorrelating(torch.stack([a, a, b, b], -1))
        >>> bool(mask[0] ^ mask[1]), bool(mask[2] ^ mask[3])
        (True, True)
    """
    if samples.dim() < 2 or len(samples) < 2:
        raise ValueError(f"decorrelating: samples must be (num_samples, *event_shape), got {tuple(samples.shape)}")
    flat = samples.flatten(1)
    size = flat.size(1)
    # a column that never changes correlates with nothing
    correlation = torch.nan_to_num(torch.corrcoef(flat.T).reshape(size, size)).abs()
    side = torch.linalg.eigh(correlation).eigenvectors[:, 0]
    mask = torch.zeros(size, dtype=torch.bool)
    mask[side.argsort()[: size // 2]] = True
    return mask.reshape(samples.shape[1:])
