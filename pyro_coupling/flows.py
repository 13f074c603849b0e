"""Recipes: whole flows composed from the parts in `transforms`, and no mathematics of their own.

Each returns one bijection in Pyro's direction, base noise to sample, that starts as the identity. All
share one vocabulary: ``num_layers`` couplings, ``hidden_dims`` of their networks, ``mask`` for which
part stays.
"""

from __future__ import annotations

__all__ = ["neural_spline", "nice", "real_nvp"]

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .nn import mlp
from .transforms import (
    Affine,
    Bijection,
    Chain,
    Coupling,
    DiagonalAffine,
    Elementwise,
    Partition,
    Permutation,
    RationalQuadraticSpline,
    Scale,
    Shift,
    TanhScale,
    alternating,
    halves,
)
from .transforms.partitions import as_shape


def nice(
    input_dim: int | Sequence[int],
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    context_dim: int = 0,
    **kwargs,
) -> Chain:
    """Additive couplings and a final learned scaling.

    Args:
        input_dim: Number of dimensions, or an event shape.
        num_layers: Number of couplings.
        hidden_dims: Sizes of the hidden layers of each conditioner.
        context_dim: Number of context features; 0 for none.
        **kwargs: ``mask`` (what stays: ``"random"`` halves, ``"halves"`` or ``"alternating"``, each
            followed by its complement), ``seed`` (of the random masks), ``activation``, ``separate``,
            ``outer_affine`` (end in a learned location and scale; True).

    Reference:
        Dinh, Krueger, Bengio. NICE: non-linear independent components estimation. 2014.

    Example:
        >>> import torch
        >>> nice(4, num_layers=2)(torch.randn(7, 4)).shape
        torch.Size([7, 4])
    """
    return _couplings(Shift(), input_dim, num_layers, hidden_dims, context_dim, **kwargs)


def real_nvp(
    input_dim: int | Sequence[int],
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    context_dim: int = 0,
    *,
    scale: Scale | None = None,
    **kwargs,
) -> Chain:
    """Affine couplings.

    Args:
        input_dim: Number of dimensions, or an event shape.
        num_layers: Number of couplings.
        hidden_dims: Sizes of the hidden layers of each conditioner.
        context_dim: Number of context features; 0 for none.
        scale: Scale parameterisation, ``TanhScale(2.0)`` if not given.
        **kwargs: As for `nice`.

    Reference:
        Dinh, Sohl-Dickstein, Bengio. Density estimation using Real NVP. ICLR 2017.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> base = dist.Normal(torch.zeros(4), 1.0).to_event(1)
        >>> dist.TransformedDistribution(base, [real_nvp(4)]).sample((7,)).shape
        torch.Size([7, 4])
    """
    return _couplings(Affine(scale or TanhScale()), input_dim, num_layers, hidden_dims, context_dim, **kwargs)


def neural_spline(
    input_dim: int | Sequence[int],
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    context_dim: int = 0,
    *,
    num_bins: int = 8,
    bound: float = 5.0,
    **kwargs,
) -> Chain:
    """Rational-quadratic spline couplings.

    Args:
        input_dim: Number of dimensions, or an event shape.
        num_layers: Number of couplings.
        hidden_dims: Sizes of the hidden layers of each conditioner.
        context_dim: Number of context features; 0 for none.
        num_bins: Number of pieces of each spline.
        bound: Half-width of the interval outside which a spline is the identity.
        **kwargs: As for `nice`.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios. Neural spline flows. NeurIPS 2019.

    Example:
        >>> import torch
        >>> flow = neural_spline(3, num_layers=2, context_dim=2)
        >>> flow.condition(torch.ones(2))(torch.randn(7, 3)).shape
        torch.Size([7, 3])
    """
    spline = RationalQuadraticSpline(num_bins, bound)
    return _couplings(spline, input_dim, num_layers, hidden_dims, context_dim, **kwargs)


def _couplings(
    elementwise: Elementwise,
    input_dim: int | Sequence[int],
    num_layers: int,
    hidden_dims: Sequence[int],
    context_dim: int,
    mask: str = "random",
    seed: int = 0,
    activation: Callable[[], nn.Module] = nn.SiLU,
    separate: bool = False,
    outer_affine: bool = True,
) -> Chain:
    shape = as_shape(input_dim, "input_dim")
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    if context_dim < 0:
        raise ValueError(f"context_dim must be 0 or more, got {context_dim}")
    parts: list[Bijection] = []
    if mask not in ("random", "halves", "alternating"):
        raise ValueError(f"mask must be 'random', 'halves' or 'alternating', got {mask!r}")
    size = math.prod(shape)
    order = torch.arange(size)  # which entry of the input has come where
    for layer in range(num_layers):
        stays = alternating(shape) if mask == "alternating" and size > 1 else halves(size).reshape(shape)
        if mask == "random" and layer % 2 == 0 and size > 1:
            # a random half as a cut after a random reordering: the same flow, and cheaper than gathering
            parts.append(Permutation.random(size, seed + layer, shape))
            order = order[parts[-1].permutation]
        # every second layer moves what the one before left alone; an event of one entry is always moved
        partition = Partition(~stays if layer % 2 and size > 1 else stays)
        features = partition.num_staying + context_dim
        conditioner = mlp(features, elementwise.num_params, partition.num_moving, hidden_dims, activation, separate)
        parts.append(Coupling(partition, conditioner, elementwise, context_dim))
    if mask == "random" and size > 1:
        parts.append(Permutation(order.argsort(), shape))  # every entry back in its place: the start is the identity
    if outer_affine:
        parts.append(DiagonalAffine(torch.zeros(shape)))
    return Chain(parts)
