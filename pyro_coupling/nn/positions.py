"""Position codes, which turn attention over a set into attention over a sequence."""

from __future__ import annotations

__all__ = ["LearnedPositions", "SinusoidalPositions"]

import math

import torch
from torch import Tensor, nn

from ..registry import register
from .parts import check_settings


@register
class SinusoidalPositions(nn.Module):
    """Adds sines and cosines of an item's position; knows sequences of any length, and has nothing to learn.

    Maps ``(*batch, items, features)`` to itself. With d features, feature i is moved by
    ``sin(position * w[i])`` in the first half (rounded up) and by ``cos(position * w[i])`` in the second,
    the frequencies w falling from 1 to nearly 1 / ``longest`` in each half.

    Args:
        longest: The longest wavelength, in units of 2 pi items.

    Raises:
        ValueError: If ``longest`` is not a finite number above 1.

    Reference:
        Vaswani et al. Attention is all you need. NeurIPS 2017 (section 3.5).

    Example:
        >>> import torch
        >>> SinusoidalPositions()(torch.zeros(3, 2))
        tensor([[ 0.0000,  1.0000],
                [ 0.8415,  0.5403],
                [ 0.9093, -0.4161]])
    """

    def __init__(self, longest: float = 10_000.0) -> None:
        super().__init__()
        if not 1 < longest < math.inf:
            raise ValueError(f"longest must be a finite number above 1, got {longest!r}")
        self.longest = longest

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, items, features)`` -> the same shape."""
        items, features = x.shape[-2:]
        half = (features + 1) // 2
        rates = self.longest ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half)
        angles = torch.arange(items, dtype=x.dtype, device=x.device)[:, None] * rates
        return x + torch.cat([angles.sin(), angles.cos()], -1)[:, :features]

    def extra_repr(self) -> str:
        return f"longest={self.longest}"


@register
class LearnedPositions(nn.Module):
    """Adds a learned vector for each position of a sequence of fixed length.

    Maps ``(*batch, num_items, features)`` to itself.

    Args:
        num_items: Length of the sequences.
        features: Features of an item: the ``hidden_dim`` of the attention that it is for.

    Raises:
        ValueError: If a size is not a positive integer, or the input has not ``num_items`` items.

    Example:
        >>> import torch
        >>> LearnedPositions(3, 2)(torch.zeros(7, 3, 2)).shape
        torch.Size([7, 3, 2])
    """

    def __init__(self, num_items: int, features: int) -> None:
        super().__init__()
        check_settings(num_items=num_items, features=features)
        # small beside the embedding of an item, as is usual for learned position codes
        self.codes = nn.Parameter(0.02 * torch.randn(num_items, features))

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, num_items, features)`` -> the same shape."""
        if x.shape[-2:] != self.codes.shape:
            raise ValueError(
                f"LearnedPositions: the input must end in (items, features) = {tuple(self.codes.shape)}, "
                f"but has shape {tuple(x.shape)}"
            )
        return x + self.codes

    def extra_repr(self) -> str:
        return "num_items={}, features={}".format(*self.codes.shape)
