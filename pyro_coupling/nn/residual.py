"""The residual perceptron, for vectors whose conditioner is deep."""

from __future__ import annotations

__all__ = ["ResidualMLP"]

from collections.abc import Callable

from torch import nn

from ..registry import register
from .parts import Linear, Residual, activated, check_settings, zeroed


@register
class ResidualMLP(nn.Sequential):
    """Pre-activation residual blocks between two linear layers, the last of which starts at zero.

    Maps ``(*batch, in_features)`` to ``(*batch, out_features)``.

    Args:
        in_features: Features that stay, and context features.
        out_features: Parameters of the elementwise map times the features that move.
        hidden_dim: Width of the blocks.
        num_blocks: Number of blocks, each of two linear layers.
        activation: Makes an activation module.
        layer_norm: Whether every activation follows a layer norm, which helps deep stacks.
        dropout: Fraction of the units within a block that are dropped while training.

    Raises:
        ValueError: If a size is not a positive integer, or ``dropout`` is not in [0, 1).

    Reference:
        He, Zhang, Ren, Sun. Identity mappings in deep residual networks. ECCV 2016 (figure 1b).

    Example:
        >>> import torch
        >>> ResidualMLP(3, 4, hidden_dim=8)(torch.ones(7, 3)).shape
        torch.Size([7, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_dim: int = 128,
        num_blocks: int = 2,
        activation: Callable[[], nn.Module] = nn.SiLU,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        check_settings(
            in_features=in_features,
            out_features=out_features,
            hidden_dim=hidden_dim,
            num_blocks=num_blocks,
            dropout=dropout,
        )
        normalization = nn.LayerNorm if layer_norm else None
        blocks = [
            Residual(
                *activated(hidden_dim, activation, normalization),
                nn.Linear(hidden_dim, hidden_dim),
                *activated(hidden_dim, activation, normalization),
                nn.Dropout(dropout),
                nn.Linear(hidden_dim, hidden_dim),
            )
            for _ in range(num_blocks)
        ]
        super().__init__(
            Linear(in_features, hidden_dim),
            *blocks,
            *activated(hidden_dim, activation, normalization),
            zeroed(nn.Linear(hidden_dim, out_features)),
        )
