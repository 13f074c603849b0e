"""Attention over the items of a set or of a sequence."""

from __future__ import annotations

__all__ = ["SetAttention"]

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..registry import register
from .parts import check_settings, over_batch, zeroed


@register
class SetAttention(nn.Module):
    """A transformer encoder, in which every item's parameters depend on all items.

    Maps ``(*batch, items, in_features)`` to ``(*batch, items, out_features)``, for any number of items.
    Without ``positions`` a permutation of the items permutes the output; with them the items are a
    sequence. The last linear layer starts at zero. Memory grows with the square of the number of items.

    Args:
        in_features: Features of an item that stay, and context features.
        out_features: Parameters of the elementwise map times the features that move.
        hidden_dim: Features of an item inside, a multiple of ``num_heads``.
        num_heads: Number of attention heads.
        num_layers: Number of encoder layers (``torch.nn.TransformerEncoderLayer``, norm first).
        activation: Makes the activation module of the feed-forward parts, four times ``hidden_dim`` wide.
        dropout: Fraction of attention weights and of units that are dropped while training.
        positions: A module that adds position codes to ``(*batch, items, hidden_dim)``, such as
            `SinusoidalPositions` or `LearnedPositions`; none for sets.

    Raises:
        ValueError: If a size is not a positive integer, ``num_heads`` does not divide ``hidden_dim``, or
            ``dropout`` is not in [0, 1).

    Reference:
        Vaswani et al. Attention is all you need. NeurIPS 2017.
        Lee, Lee, Kim, Kosiorek, Choi, Teh. Set transformer: a framework for attention-based
        permutation-invariant neural networks. ICML 2019.

    Example:
        >>> import torch
        >>> SetAttention(2, 4, hidden_dim=8, num_heads=2)(torch.ones(7, 5, 2)).shape
        torch.Size([7, 5, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
        positions: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_settings(
            in_features=in_features,
            out_features=out_features,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            num_layers=num_layers,
            dropout=dropout,
        )
        if hidden_dim % num_heads:
            raise ValueError(f"num_heads must divide hidden_dim = {hidden_dim}, got {num_heads}")
        # not TransformerEncoder, whose layers are copies of one and so start alike; not batch_first, which in
        # eval mode takes a fused path that vmap has no rule for
        layers = [
            nn.TransformerEncoderLayer(
                hidden_dim, num_heads, 4 * hidden_dim, dropout, activation(), norm_first=True, batch_first=False
            )
            for _ in range(num_layers)
        ]
        self.embedding = nn.Linear(in_features, hidden_dim)
        self.positions = nn.Identity() if positions is None else positions
        self.layers = nn.Sequential(*layers)
        self.last = nn.Sequential(nn.LayerNorm(hidden_dim), zeroed(nn.Linear(hidden_dim, out_features)))

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, items, in_features)`` -> ``(*batch, items, out_features)``."""
        return over_batch(self._of_batch, x, 2)

    def _of_batch(self, x: Tensor) -> Tensor:
        items_first = self.positions(self.embedding(x)).transpose(0, 1)
        # the fused kernels have no second derivatives, and vmap would loop over them
        with sdpa_kernel(SDPBackend.MATH):
            return self.last(self.layers(items_first)).transpose(0, 1)
