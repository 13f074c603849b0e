"""Adapters that make other people's networks conditioners."""

from __future__ import annotations

__all__ = ["OverBatch"]

from torch import Tensor, nn

from ..registry import register
from .parts import over_batch


@register
class OverBatch(nn.Module):
    """Any network that wants exactly one batch dimension, for inputs of any batch shape.

    Args:
        module: Maps ``(batch, *event)`` to ``(batch, *other_event)``.
        event_dim: Number of dimensions of an event, 3 for images.

    Example:
        >>> import torch
        >>> OverBatch(torch.nn.Conv2d(2, 4, 1), event_dim=3)(torch.zeros(5, 6, 2, 8, 8)).shape
        torch.Size([5, 6, 4, 8, 8])
    """

    def __init__(self, module: nn.Module, event_dim: int) -> None:
        super().__init__()
        if not isinstance(event_dim, int) or event_dim < 1:
            raise ValueError(f"OverBatch: event_dim must be a positive integer, got {event_dim!r}")
        self.module = module
        self.event_dim = event_dim

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, *event)`` -> ``(*batch, *other_event)``."""
        return over_batch(self.module, x, self.event_dim)

    def extra_repr(self) -> str:
        return f"event_dim={self.event_dim}"
