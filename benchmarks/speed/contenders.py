"""The same coupling flow by every package that runs on torch: one short function each."""

from __future__ import annotations

__all__ = ["COMPILED", "COMPILED_LOSS", "CONTENDERS", "PEERS", "Conditioner", "Flow", "conditioners"]

import warnings
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import NamedTuple

import normflows
import torch
import zuko
from nflows.transforms import (
    AffineCouplingTransform,
    CompositeTransform,
    PiecewiseRationalQuadraticCouplingTransform,
)
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
from pyro.distributions.transforms import AffineCoupling, Permute, SplineCoupling
from pyro.nn import DenseNN
from torch import Tensor, nn

from pyro_coupling import flows

from .cells import BINS, BOUND, HIDDEN, Cell

warnings.filterwarnings("ignore", message="Inputs to the softmax are not scaled down")
SPLINE = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}


class Flow(NamedTuple):
    """Value and log-determinant, noise to sample and sample to noise, each ``(batch, dim)``."""

    module: nn.Module
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    inverse: Callable[[Tensor], tuple[Tensor, Tensor]]


class Conditioner(nn.Sequential):
    """The network of the floor, and of packages that take any."""

    def __init__(self, in_features: int, out_features: int) -> None:
        sizes = (in_features, *HIDDEN)
        hidden = [(nn.Linear(*pair), nn.ReLU()) for pair in zip(sizes, HIDDEN, strict=False)]
        super().__init__(*chain(*hidden), nn.Linear(HIDDEN[-1], out_features))

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return super().forward(x)


def conditioners(cell: Cell) -> nn.ModuleList:
    half = cell.dim // 2
    return nn.ModuleList(Conditioner(half, cell.num_params * half) for _ in range(cell.layers))


def ours(cell: Cell, mask: str = "halves", **settings) -> Flow:
    spline = partial(flows.neural_spline, both=False, linear=False, bound=BOUND)
    recipe = {"affine": flows.real_nvp, "rational-quadratic": spline}
    flow = recipe[cell.kind](
        cell.dim, cell.layers, HIDDEN, activation=nn.ReLU, mask=mask, outer_affine=False, **settings
    )
    return Flow(flow, flow.forward_and_log_det, flow.inverse_and_log_det)


def of_pyro(cell: Cell) -> Flow:
    half = cell.dim // 2

    def coupling() -> nn.Module:
        if cell.kind == "affine":
            return AffineCoupling(half, DenseNN(half, list(HIDDEN), [half, half]))
        network = DenseNN(half, list(HIDDEN), [half * BINS, half * BINS, half * (BINS - 1)])
        layer = SplineCoupling(cell.dim, half, network, BINS, BOUND, order="quadratic", identity=True)
        del layer.lower_spline  # made in any case, and not used by identity=True
        return layer

    swap = torch.arange(cell.dim).roll(half)
    parts = [part for _ in range(cell.layers) for part in (Permute(swap), coupling())][1:]

    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(())
        for part in parts:
            part.clear_cache()  # or a second call with the same input would compute nothing
            x = part(z)
            z, total = x, total + part.log_abs_det_jacobian(z, x)
        return z, total

    def inverse(x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for part in reversed(parts):
            part.clear_cache()
            z = part.inv(x)
            x, total = z, total - part.log_abs_det_jacobian(z, x)
        return x, total

    return Flow(nn.ModuleList(part for part in parts if isinstance(part, nn.Module)), forward, inverse)


def of_zuko(cell: Cell) -> Flow:
    spline = {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": [(BINS,), (BINS,), (BINS - 1,)]}
    settings = {} if cell.kind == "affine" else spline
    layer = partial(zuko.flows.coupling.GeneralCouplingTransform, cell.dim, hidden_features=HIDDEN, **settings)
    masks = [torch.arange(cell.dim) % 2 == i % 2 for i in range(cell.layers)]
    transform = zuko.lazy.LazyComposedTransform(*(layer(mask=mask) for mask in masks))

    def one_pass(x: Tensor) -> tuple[Tensor, Tensor]:
        return transform().call_and_ladj(x)

    def two_passes(x: Tensor) -> tuple[Tensor, Tensor]:
        return transform().inv.call_and_ladj(x)

    return Flow(transform, one_pass, two_passes) if cell.samples else Flow(transform, two_passes, one_pass)


def of_normflows(cell: Cell) -> Flow:
    if cell.kind == "affine":
        couplings = [normflows.flows.AffineCouplingBlock(network) for network in conditioners(cell)]
        swaps = [normflows.flows.Permute(cell.dim, mode="swap") for _ in couplings]
        flow = normflows.NormalizingFlow(None, list(chain(*zip(swaps, couplings, strict=True)))[1:])
        return Flow(flow, flow.forward_and_log_det, flow.inverse_and_log_det)
    flow = normflows.NormalizingFlow(None, _masked(cell, partial(PiecewiseRationalQuadraticCoupling, **SPLINE)))
    # as in its CoupledRationalQuadraticSpline, which moves the other half as well, a density is the forward direction
    return Flow(flow, flow.inverse_and_log_det, flow.forward_and_log_det)


def of_nflows(cell: Cell) -> Flow:
    spline = partial(PiecewiseRationalQuadraticCouplingTransform, **SPLINE)
    flow = CompositeTransform(_masked(cell, AffineCouplingTransform if cell.kind == "affine" else spline))
    return Flow(flow, flow.inverse, flow)


def _masked(cell: Cell, layer: Callable[..., nn.Module]) -> list[nn.Module]:
    """Layers that take a mask, and what makes a network of two sizes."""
    return [layer(torch.arange(cell.dim) % 2 == i % 2, Conditioner) for i in range(cell.layers)]


#: The ordinary flow within an operation that is compiled as a whole, density of the base and of the target included.
COMPILED_LOSS = "pyro_coupling, compiled loss"
#: Those whose set-up takes a minute a cell, so that they stand beside the others where they are asked for.
COMPILED = ("pyro_coupling, compiled", COMPILED_LOSS)
#: A column each; ``partial(ours, ...)`` with a setting of the recipes makes another one of ours. The first has halves,
#: as all peers have; random ones, the default of our recipes, cost a reordering for every other coupling.
CONTENDERS: dict[str, Callable[[Cell], Flow]] = {
    "pyro_coupling": ours,
    "pyro_coupling, random": partial(ours, mask="random"),
    COMPILED[0]: partial(ours, compile=True),
    COMPILED_LOSS: ours,
    "Pyro": of_pyro,
    "zuko": of_zuko,
    "normflows": of_normflows,
    "nflows": of_nflows,
}
PEERS = ("Pyro", "zuko", "normflows", "nflows")
