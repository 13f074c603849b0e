"""Several bijections one after another, as one sweep."""

from __future__ import annotations

__all__ = ["Chain"]

from collections.abc import Iterable, Iterator
from typing import cast

from torch import Tensor, nn

from .base import Bijection


class Chain(Bijection):
    """Composition of bijections: the first one listed acts first.

    Log-determinants are added up as the sweep goes, so value and log-determinant cost one pass.

    Args:
        bijections: At least one `Bijection`, all of the same event shape.

    Raises:
        TypeError: If a part is not a `Bijection`.
        ValueError: If there is no part, or if event shapes or context sizes do not agree.

    Example:
        >>> import torch
        >>> from pyro_coupling.transforms import Chain, Permutation, affine_coupling
        >>> chain = Chain([affine_coupling(3), Permutation([2, 1, 0])])
        >>> y, log_det = chain.forward_and_log_det(torch.randn(5, 3))
        >>> y.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, bijections: Iterable[Bijection]) -> None:
        parts = list(bijections)
        for part in parts:
            if not isinstance(part, Bijection):
                raise TypeError(
                    f"Chain: every part must be a Bijection, found {type(part).__name__}; "
                    "use Pyro's ComposeTransformModule for other transforms"
                )
        if not parts:
            raise ValueError("Chain: bijections is empty, at least one is needed")
        shapes = {tuple(part.event_shape) for part in parts}
        contexts = {part.context_dim for part in parts} - {0}
        if len(shapes) > 1:
            raise ValueError(f"Chain: all parts must share one event shape, found {sorted(shapes)}")
        if len(contexts) > 1:
            raise ValueError(f"Chain: all parts with a context must share its size, found {sorted(contexts)}")
        super().__init__(parts[0].event_shape, max(contexts, default=0))
        self.parts = nn.ModuleList(parts)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for part in self.parts:
            x, log_det = part.forward_and_log_det(x, context)
            total = total + log_det
        return x, total

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(())
        for part in reversed(self.parts):
            y, log_det = part.inverse_and_log_det(y, context)
            total = total + log_det
        return y, total

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        total = x.new_zeros(())
        for part in self.parts:
            x, log_det, score = part.forward_and_score(x, score, context)
            total = total + log_det
        return x, total, score

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Bijection:
        return cast(Bijection, self.parts[index])

    def __iter__(self) -> Iterator[Bijection]:
        return (cast(Bijection, part) for part in self.parts)
