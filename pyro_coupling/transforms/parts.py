"""A bijection inside another: on a slice of an event, or with its context encoded first."""

from __future__ import annotations

__all__ = ["OnSlice", "WithContext"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..registry import register
from .base import Bijection
from .partitions import as_shape
from .trial import trial_shape


@register
class OnSlice(Bijection):
    """Applies a bijection to the first slices of an event along one dimension and leaves the rest.

    Nested, this is a multi-scale architecture: the slices left alone have been factored out.

    Args:
        bijection: What acts on the slice. It keeps the slice's shape.
        event_shape: Shape of the whole event.
        dim: Dimension along which the slice is cut, negative; the first if not given.

    Raises:
        ValueError: If the shape of the bijection is no such slice.

    Reference:
        Dinh, Sohl-Dickstein, Bengio. Density estimation using Real NVP. ICLR 2017 (section 3.6).

    Example:
        >>> import torch
        >>> from pyro_coupling.transforms import DiagonalAffine
        >>> OnSlice(DiagonalAffine(torch.ones(2)), 3)(torch.zeros(3))
        tensor([1., 1., 0.], grad_fn=<CatBackward0>)
    """

    def __init__(self, bijection: Bijection, event_shape: int | Sequence[int], dim: int | None = None) -> None:
        shape = as_shape(event_shape)
        dim = -len(shape) if dim is None else dim
        if not -len(shape) <= dim <= -1:
            raise ValueError(f"OnSlice: dim must be from {-len(shape)} to -1 for event shape {shape}, got {dim}")
        inner = tuple(bijection.event_shape)
        fits = len(inner) == len(shape) and inner[dim] < shape[dim]
        if not fits or inner != (*shape[:dim], inner[dim], *shape[len(shape) + dim + 1 :]):
            raise ValueError(f"OnSlice: the bijection's event shape {inner} is no slice along dim {dim} of {shape}")
        if bijection.output_shape != bijection.event_shape:
            raise ValueError(f"OnSlice: the bijection must keep its shape {inner}, but gives {bijection.output_shape}")
        super().__init__(shape, bijection.context_shape)
        self.bijection = bijection
        self.dim = dim
        self._sizes = [inner[dim], shape[dim] - inner[dim]]

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, rest = x.split(self._sizes, self.dim)
        first, log_det = self.bijection.forward_and_log_det(first, context)
        return torch.cat([first, rest], self.dim), log_det

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, rest = y.split(self._sizes, self.dim)
        first, log_det = self.bijection.inverse_and_log_det(first, context)
        return torch.cat([first, rest], self.dim), log_det

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        first, rest = x.split(self._sizes, self.dim)
        score_first, score_rest = score.split(self._sizes, self.dim)
        first, log_det, score_first = self.bijection.forward_and_score(first, score_first, context)
        return torch.cat([first, rest], self.dim), log_det, torch.cat([score_first, score_rest], self.dim)


@register
class WithContext(Bijection):
    """Encodes the context once and hands the code to a bijection as its context.

    So a network that reads labels, an image or a spectrogram is run once for a whole flow, not once for
    each layer, and is learned together with it.

    Args:
        bijection: A bijection with a context.
        encoder: Maps a context ``(*batch, *context_shape)`` to ``(*batch, *bijection.context_shape)``.
        context_dim: Number of features of a raw context, or its shape.

    Raises:
        ValueError: If the encoder's output has the wrong shape; this is tried at construction.

    Example:
        >>> import torch
        >>> from pyro_coupling.transforms import conditional_affine_coupling
        >>> flow = WithContext(conditional_affine_coupling(4, context_dim=8), torch.nn.Linear(2, 8), 2)
        >>> flow.condition(torch.ones(2))(torch.zeros(10, 4)).shape
        torch.Size([10, 4])
    """

    def __init__(self, bijection: Bijection, encoder: nn.Module, context_dim: int | Sequence[int]) -> None:
        super().__init__(bijection.event_shape, context_dim, bijection.output_shape)
        self.bijection = bijection
        self.encoder = encoder
        found = trial_shape(encoder, self.context_shape)
        if not self.context_shape or found != (2, *bijection.context_shape):
            raise ValueError(
                f"WithContext: the encoder must map (batch, {', '.join(map(str, self.context_shape))}) to (batch, "
                f"{', '.join(map(str, bijection.context_shape))}); for a batch of 2 it returned {found}"
            )

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return self.bijection.domain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return self.bijection.codomain

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.forward_and_log_det(x, self.encoder(context))

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse_and_log_det(y, self.encoder(context))

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.bijection.forward_and_score(x, score, self.encoder(context))
