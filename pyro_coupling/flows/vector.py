"""Flows of vectors: NICE, RealNVP, neural splines, circular splines."""

from __future__ import annotations

__all__ = ["circular_spline", "neural_spline", "nice", "real_nvp"]

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..nn import MLP, Constant, PeriodicFeatures, mlp
from ..transforms import (
    Affine,
    Bijection,
    Chain,
    CircularRationalQuadraticSpline,
    Coupling,
    DiagonalAffine,
    Elementwise,
    LULinear,
    Partition,
    PerFeature,
    Permutation,
    RationalQuadraticSpline,
    Scale,
    Shift,
    TanhScale,
    alternating,
    halves,
    random_pair,
)
from ..transforms.partitions import as_shape

_LARGEST_LINEAR = 64  # dimensions up to which splines stand between linear maps by default
_RATE = 8.0  # of maps that depend on nothing, beside networks


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
        context_dim: Number of context features, 0 for none.
        **kwargs: ``mask`` (what stays: ``"random"`` halves, ``"halves"`` or ``"alternating"``, each
            followed by its complement), ``seed`` (of the random masks), ``activation``, ``separate``,
            ``both`` (move the part that stays as well, by a map that depends on nothing), ``linear`` (put a
            learned linear map before each coupling), ``outer_affine`` (end in a learned location and scale;
            True), ``reversible``, ``checkpoint`` and ``compile`` (see `transforms.Chain`).

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
        context_dim: Number of context features, 0 for none.
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
    bound: float = 4.0,
    max_log_ratio: float = 1.25,
    both: bool = True,
    linear: bool | None = None,
    activation: Callable[[], nn.Module] = nn.ReLU,
    **kwargs,
) -> Chain:
    """Rational-quadratic spline couplings, between learned linear maps where there are few dimensions.

    Hidden layers start with He's weights, which keep the size of a signal; by torch's own, which shrink it
    several times, splines learn more slowly. The kinks of the first layer start spread over a standard normal.

    To learn a density from data, turn the flow round, ``neural_spline(...).inv``: scoring a point is then the
    direction in which splines are ratios of polynomials, and it is learned faster (see the docs).

    Args:
        input_dim: Number of dimensions, or an event shape.
        num_layers: Number of couplings.
        hidden_dims: Sizes of the hidden layers of each conditioner.
        context_dim: Number of context features, 0 for none.
        num_bins: Number of pieces of each spline.
        bound: Half-width of the interval outside which a spline is the identity.
        max_log_ratio: How uneven bins and slopes may be, see `transforms.RationalQuadraticSpline`. 2 fits sharp
            densities better, and keeps an inverse in float32 to two digits less.
        both: Move the part that stays as well, by splines that depend on nothing (section 3.3 of the paper).
        linear: Put a linear map of all dimensions before each coupling, learned as L U and the identity at
            the start, as the paper does. For vectors of up to 64 dimensions if not given: it has their square in
            parameters.
        activation: Makes an activation module. Rectifiers learn a density from data fast; in thousands of steps by an
            energy all units of a layer may end at zero, which ``torch.nn.SiLU`` prevents.
        **kwargs: As for `nice`.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios. Neural spline flows. NeurIPS 2019.
        He, Zhang, Ren, Sun. Delving deep into rectifiers. ICCV 2015 (equation 10).
        Steinwart. A sober look at neural network initializations. 2019.

    Example:
        >>> import torch
        >>> flow = neural_spline(3, num_layers=2, context_dim=2)
        >>> flow.condition(torch.ones(2))(torch.randn(7, 3)).shape
        torch.Size([7, 3])
    """
    spline = RationalQuadraticSpline(num_bins, bound, max_log_ratio)
    shape = as_shape(input_dim, "input_dim")
    if linear is None:
        linear = len(shape) == 1 and shape[0] <= _LARGEST_LINEAR
    settings = kwargs | {"both": both, "linear": linear, "activation": activation}
    flow = _couplings(spline, shape, num_layers, hidden_dims, context_dim, **settings)
    for network in flow.modules():
        if isinstance(network, MLP):
            _keep_signals(network)
            _spread_kinks(cast(nn.Linear, network[0]))
    return flow


def circular_spline(
    input_dim: int,
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    context_dim: int = 0,
    *,
    circular: Sequence[bool] | Tensor | None = None,
    num_bins: int = 8,
    bound: float = math.pi,
    linear_bound: float = 5.0,
    seed: int = 0,
    activation: Callable[[], nn.Module] = nn.SiLU,
    outer_affine: bool = True,
    reversible: bool = False,
    checkpoint: bool = False,
    compile: bool = False,
) -> Chain:
    """Spline couplings of angles, which may stand beside ordinary numbers.

    An angle is moved on its circle ``[-bound, bound)`` and read by the networks as cosine and sine, so
    the density has no seam. Its base is uniform: `flows.base_distribution` makes it.

    Args:
        input_dim: Number of dimensions.
        num_layers: Number of couplings.
        hidden_dims: Sizes of the hidden layers of each conditioner.
        context_dim: Number of context features, 0 for none.
        circular: Which dimensions are angles; all if not given. The others get linear splines.
        num_bins: Number of pieces of each spline.
        bound: Half of the circle's length.
        linear_bound: Half-width of the splines of the dimensions that are no angles.
        seed: Of the random masks.
        activation: Makes an activation module.
        outer_affine: End in a rotation of each circle, and a learned location and scale of the other dimensions;
            without it none leaves the interval of its splines.
        reversible: See `transforms.Chain`.
        checkpoint: See `transforms.Chain`.
        compile: See `transforms.Chain`.

    Reference:
        Rezende, Papamakarios, Racaniere, Albergo, Kanwar, Shanahan, Cranmer. Normalizing flows on tori
        and spheres. ICML 2020.

    Example:
        >>> import torch
        >>> flow = circular_spline(3, num_layers=2, circular=[True, True, False])
        >>> y = flow(torch.tensor([3.1, -3.1, 20.0]))
        >>> bool((y[:2].abs() <= torch.pi).all())
        True
    """
    (size,) = as_shape(input_dim, "input_dim")
    _check_sizes(num_layers, context_dim)
    angles = [True] * size if circular is None else torch.as_tensor(circular).tolist()
    if len(angles) != size:
        raise ValueError(f"circular must have one entry for each of {size} dimensions, got {len(angles)}")
    circle = CircularRationalQuadraticSpline(num_bins, bound)
    line = RationalQuadraticSpline(num_bins, linear_bound)
    parts: list[Bijection] = []
    for layer in range(num_layers):
        stays = random_pair(size, seed + layer // 2)[layer % 2] if size > 1 else torch.tensor([False])
        partition = Partition(stays)
        maps = PerFeature([circle if angle else line for angle in angles])
        shown = [angle for angle, stay in zip(angles, stays.tolist(), strict=True) if stay]
        # context comes last and is no angle
        read = [*shown, *[False] * context_dim]
        rows, moving = maps.restricted_to(partition.moving_entries).num_params, partition.num_moving
        network = mlp(len(read) + sum(read), rows, moving, hidden_dims, activation)
        if any(read):
            network = nn.Sequential(PeriodicFeatures(len(read), bound, read), network)
        parts.append(Coupling(partition, network, maps, context_dim))
    if outer_affine and not all(angles):
        maps = PerFeature([circle if angle else Affine(TanhScale(8.0)) for angle in angles])
        parts.append(Coupling([False] * size, mlp(0, maps.num_params, size), maps))
    return Chain(parts, reversible=reversible, checkpoint=checkpoint, compile=compile)


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
    both: bool = False,
    linear: bool = False,
    outer_affine: bool = True,
    reversible: bool = False,
    checkpoint: bool = False,
    compile: bool = False,
) -> Chain:
    shape = as_shape(input_dim, "input_dim")
    _check_sizes(num_layers, context_dim)
    parts: list[Bijection] = []
    if mask not in ("random", "halves", "alternating"):
        raise ValueError(f"mask must be 'random', 'halves' or 'alternating', got {mask!r}")
    size = math.prod(shape)
    if linear and len(shape) > 1:
        raise ValueError(f"linear: a linear map mixes the entries of a vector, got events of shape {shape}")
    order = torch.arange(size)  # which entry of the input has come where
    half = alternating(shape) if mask == "alternating" and size > 1 else halves(size).reshape(shape)
    stays, moved = half, set[int]()
    for layer in range(num_layers):
        if mask == "random" and layer % 2 == 0 and size > 1:
            # a random half as a cut after a random reordering: the same flow, and cheaper than gathering
            parts.append(Permutation.random(size, seed + layer, shape))
            order = order[parts[-1].permutation]
            # in few dimensions chance may repeat what was moved just before
            stays = ~half if set(order[~half.flatten()].tolist()) == moved else half
        elif layer and size > 1:
            stays = ~stays  # what the layer before left alone is moved; an event of one entry is always moved
        moved = set(order[~stays.flatten()].tolist())
        if linear and size > 1:
            parts.append(LULinear(size))
        partition = Partition(stays)
        features = partition.num_staying + context_dim
        conditioner = mlp(features, elementwise.num_params, partition.num_moving, hidden_dims, activation, separate)
        parts.append(Coupling(partition, conditioner, elementwise, context_dim))
        if both and partition.num_staying:
            learned = Constant(elementwise.num_params * partition.num_staying, rate=_RATE)
            parts.append(Coupling(~stays, learned, elementwise))
    if mask == "random" and size > 1:
        parts.append(Permutation(order.argsort(), shape))  # every entry back in its place: the start is the identity
    if outer_affine:
        parts.append(DiagonalAffine(torch.zeros(shape)))
    return Chain(parts, reversible=reversible, checkpoint=checkpoint, compile=compile)


def _keep_signals(network: MLP) -> None:
    for layer in list(network)[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)


def _spread_kinks(layer: nn.Linear) -> None:
    """Gives each unit the bias with which its input is zero at a random point of a standard normal."""
    with torch.no_grad():
        layer.bias.copy_(-(layer.weight * torch.randn_like(layer.weight)).sum(-1))


def _check_sizes(num_layers: int, context_dim: int) -> None:
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    if context_dim < 0:
        raise ValueError(f"context_dim must be 0 or more, got {context_dim}")
