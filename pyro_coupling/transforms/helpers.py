"""Lower-case helpers in Pyro's convention: one coupling layer, its network built to fit.

They go where Pyro's own ``affine_coupling`` and ``spline_coupling`` go: into ``iterated``,
``AutoNormalizingFlow``, ``TransformedDistribution``. A layer ends in a fixed permutation, so that plain
``iterated(n, affine_coupling, dim)`` transforms every dimension and mixes every pair.
"""

from __future__ import annotations

__all__ = [
    "additive_coupling",
    "affine_coupling",
    "conditional_additive_coupling",
    "conditional_affine_coupling",
    "conditional_spline_coupling",
    "spline_coupling",
]

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..nn import mlp
from .affine import DiagonalAffine
from .base import Bijection
from .chain import Chain
from .coupling import Coupling
from .elementwise import Affine, Elementwise, RationalQuadraticSpline, Scale, Shift, TanhScale
from .masks import halves
from .partitions import Partition, as_shape
from .permutation import Permutation

_HIDDEN = (64, 64)


def additive_coupling(input_dim: int | Sequence[int], hidden_dims: Sequence[int] = _HIDDEN, **kwargs) -> Bijection:
    """A volume-preserving coupling layer (NICE); arguments as for `affine_coupling`, without a scale.

    Example:
        >>> import torch
        >>> additive_coupling(4)(torch.zeros(3, 4)).shape
        torch.Size([3, 4])
    """
    return conditional_additive_coupling(input_dim, 0, hidden_dims, **kwargs)


def affine_coupling(
    input_dim: int | Sequence[int], hidden_dims: Sequence[int] = _HIDDEN, *, scale: Scale | None = None, **kwargs
) -> Bijection:
    """An affine coupling layer (RealNVP).

    Args:
        input_dim: Number of dimensions, or the event shape where ``dim < -1``.
        hidden_dims: Sizes of the conditioner's hidden layers.
        scale: Scale parameterisation, ``TanhScale(2.0)`` if not given.
        **kwargs: ``split_dim`` (how many slices along ``dim`` stay; half of them if not given), ``dim``
            (the dimension that is split, negative; the event has ``-dim`` dimensions), ``activation``,
            ``separate`` (a network for each of shift and scale), ``both`` (move the part that stays as
            well, by a map that depends on nothing, as Pyro's spline coupling does; False), ``permute``
            (end in a fixed permutation; True).

    Example:
        >>> import torch
        >>> from pyro.distributions.transforms import iterated
        >>> flow = iterated(4, affine_coupling, 6)
        >>> flow(torch.randn(10, 6)).shape
        torch.Size([10, 6])
    """
    return conditional_affine_coupling(input_dim, 0, hidden_dims, scale=scale, **kwargs)


def spline_coupling(
    input_dim: int | Sequence[int],
    hidden_dims: Sequence[int] = _HIDDEN,
    *,
    num_bins: int = 8,
    bound: float = 5.0,
    **kwargs,
) -> Bijection:
    """A rational-quadratic spline coupling layer, followed by a learned location and scale.

    The spline is the identity outside ``[-bound, bound]``; the learned affine map lets the layer reach
    targets anywhere.

    Args:
        input_dim: Number of dimensions, or the event shape where ``dim < -1``.
        hidden_dims: Sizes of the conditioner's hidden layers.
        num_bins: Number of pieces.
        bound: Half-width of the interval.
        **kwargs: As for `affine_coupling`.

    Example:
        >>> import torch
        >>> spline_coupling(3, num_bins=4)(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    return conditional_spline_coupling(input_dim, 0, hidden_dims, num_bins=num_bins, bound=bound, **kwargs)


def conditional_additive_coupling(
    input_dim: int | Sequence[int], context_dim: int, hidden_dims: Sequence[int] = _HIDDEN, **kwargs
) -> Bijection:
    """`additive_coupling` that also depends on ``context_dim`` features, set by ``condition(context)``.

    Example:
        >>> import torch
        >>> layer = conditional_additive_coupling(4, context_dim=2)
        >>> layer.condition(torch.ones(10, 2))(torch.zeros(10, 4)).shape
        torch.Size([10, 4])
    """
    return _layer(Shift(), input_dim, context_dim, hidden_dims, **kwargs)


def conditional_affine_coupling(
    input_dim: int | Sequence[int],
    context_dim: int,
    hidden_dims: Sequence[int] = _HIDDEN,
    *,
    scale: Scale | None = None,
    **kwargs,
) -> Bijection:
    """`affine_coupling` that also depends on ``context_dim`` features, set by ``condition(context)``.

    Example:
        >>> import torch
        >>> layer = conditional_affine_coupling(4, context_dim=2)
        >>> layer.condition(torch.ones(10, 2))(torch.zeros(10, 4)).shape
        torch.Size([10, 4])
    """
    return _layer(Affine(scale or TanhScale()), input_dim, context_dim, hidden_dims, **kwargs)


def conditional_spline_coupling(
    input_dim: int | Sequence[int],
    context_dim: int,
    hidden_dims: Sequence[int] = _HIDDEN,
    *,
    num_bins: int = 8,
    bound: float = 5.0,
    **kwargs,
) -> Bijection:
    """`spline_coupling` that also depends on ``context_dim`` features, set by ``condition(context)``.

    Example:
        >>> import torch
        >>> layer = conditional_spline_coupling(4, context_dim=2, num_bins=4)
        >>> layer.condition(torch.ones(10, 2))(torch.zeros(10, 4)).shape
        torch.Size([10, 4])
    """
    spline = RationalQuadraticSpline(num_bins, bound)
    return _layer(spline, input_dim, context_dim, hidden_dims, outer_affine=True, **kwargs)


def _layer(
    elementwise: Elementwise,
    input_dim: int | Sequence[int],
    context_dim: int,
    hidden_dims: Sequence[int],
    split_dim: int | None = None,
    dim: int = -1,
    activation: Callable[[], nn.Module] = nn.SiLU,
    separate: bool = False,
    both: bool = False,
    permute: bool = True,
    outer_affine: bool = False,
) -> Bijection:
    shape = as_shape(input_dim, "input_dim")
    if len(shape) != -dim:
        raise ValueError(f"input_dim: event shape {shape} must have -dim = {-dim} dimensions")
    if context_dim < 0:
        raise ValueError(f"context_dim must be 0 or more, got {context_dim}")
    partition = Partition(halves(shape, split_dim, dim))
    features = partition.num_staying + context_dim
    conditioner = mlp(features, elementwise.num_params, partition.num_moving, hidden_dims, activation, separate)
    parts: list[Bijection] = [Coupling(partition, conditioner, elementwise, context_dim)]
    if both and partition.num_staying:
        learned = mlp(0, elementwise.num_params, partition.num_staying)
        parts.append(Coupling(~halves(shape, split_dim, dim), learned, elementwise))
    if outer_affine:
        parts.append(DiagonalAffine(torch.zeros(shape)))
    if permute and shape[dim] > 1:
        # Rolled by the number that stays, what stayed comes last in the moved part: over a few layers
        # every entry is moved and every entry conditions.
        size = shape[dim]
        shift = max(1, size // 2 if split_dim is None else split_dim)
        order = torch.arange(math.prod(shape)).reshape(shape).roll(-shift, dims=dim)
        parts.append(Permutation(order.flatten(), shape))
    return parts[0] if len(parts) == 1 else Chain(parts)
