"""Trying a network at construction, so that a wrong shape is an error there and not in training."""

from __future__ import annotations

__all__ = ["trial_shape"]

from collections.abc import Sequence

import torch
from torch import nn


def trial_shape(module: nn.Module, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of what a module returns for a batch of two zeros of ``shape``; nothing of the module changes."""
    like = next(module.parameters(), torch.empty(0))
    training = [part for part in module.modules() if part.training]
    module.eval()  # a trial must neither draw dropout nor move running statistics
    try:
        with torch.no_grad():
            return tuple(module(torch.zeros(2, *shape, dtype=like.dtype, device=like.device)).shape)
    finally:
        for part in training:
            part.training = True
