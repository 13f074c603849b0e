"""Features of circular variables: what stands before a network that reads angles."""

from __future__ import annotations

__all__ = ["PeriodicFeatures"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..registry import register
from .parts import check_settings


@register
class PeriodicFeatures(nn.Module):
    """Replaces each circular feature by its cosine and its sine, so that a network sees no seam.

    Maps ``(*batch, in_features)`` to ``(*batch, out_features)``: the features that are not circular, then
    the cosines, then the sines.

    Args:
        in_features: Size of the input.
        bound: Circular features live on ``[-bound, bound]``, whose ends are one point.
        which: Which features are circular, as indices or as booleans; all if not given.

    Attributes:
        out_features: Size of the output.

    Raises:
        ValueError: If ``in_features`` or ``bound`` is not positive, or ``which`` names a feature that does
            not exist or names one twice.

    Reference:
        Rezende, Papamakarios, Racaniere, Albergo, Kanwar, Shanahan, Cranmer. Normalizing flows on tori and
        spheres. ICML 2020.

    Example:
        >>> import torch
        >>> from pyro_coupling.nn import MLP
        >>> features = PeriodicFeatures(3, bound=1.0, which=[0])
        >>> features(torch.tensor([0.5, 7.0, 8.0])).round(decimals=4).abs()
        tensor([7., 8., 0., 1.])
        >>> torch.nn.Sequential(features, MLP(features.out_features, 2))(torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    circular: Tensor
    others: Tensor

    def __init__(
        self, in_features: int, bound: float = math.pi, which: Sequence[int] | Sequence[bool] | Tensor | None = None
    ) -> None:
        super().__init__()
        check_settings(in_features=in_features)
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be positive and finite, got {bound!r}")
        mask = _as_mask(which, in_features)
        self.bound = bound
        self.in_features = in_features
        self.out_features = in_features + int(mask.sum())
        self.register_buffer("circular", mask.nonzero().flatten())
        self.register_buffer("others", (~mask).nonzero().flatten())

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, in_features)`` -> ``(*batch, out_features)``."""
        if x.dim() < 1 or x.size(-1) != self.in_features:
            raise ValueError(
                f"PeriodicFeatures: the input must end in {self.in_features} features, but has shape {tuple(x.shape)}"
            )
        angles = x.index_select(-1, self.circular) * (math.pi / self.bound)
        return torch.cat([x.index_select(-1, self.others), angles.cos(), angles.sin()], -1)

    def extra_repr(self) -> str:
        return f"{self.in_features}, bound={self.bound:g}, which={self.circular.tolist()}"


def _as_mask(which: Sequence[int] | Sequence[bool] | Tensor | None, size: int) -> Tensor:
    if which is None:
        return torch.ones(size, dtype=torch.bool)
    given = torch.as_tensor(which)
    if given.dtype == torch.bool:
        if given.shape != (size,):
            raise ValueError(f"which as booleans must have shape ({size},), found {tuple(given.shape)}")
        return given
    chosen = given.tolist()
    if given.dim() != 1 or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(size)):
        raise ValueError(f"which must name features from 0 to {size - 1}, each at most once, got {which!r}")
    return torch.zeros(size, dtype=torch.bool).index_fill(0, given.long(), True)
