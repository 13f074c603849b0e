"""The table of bijections that every check runs over, and the few ways in which checks look at one."""

from __future__ import annotations

__all__ = ["CASES", "directions", "draw", "make", "periods", "randomise", "relative_error"]

from collections.abc import Callable
from functools import partial

import torch
from cases_layouts import LAYOUT_CASES
from cases_linear import LINEAR_CASES

from pyro_coupling import flows
from pyro_coupling.nn import mlp
from pyro_coupling.transforms import (
    Affine,
    AsymmetricClampScale,
    Bijection,
    Chain,
    ClampScale,
    Coupling,
    DiagonalAffine,
    LowerTriangularAffine,
    LowRankAffine,
    Partition,
    Permutation,
    RationalQuadraticSpline,
    Shift,
    SigmoidScale,
    SoftplusScale,
    TanhScale,
    additive_coupling,
    affine_coupling,
    alternating,
    conditional_additive_coupling,
    conditional_affine_coupling,
    conditional_spline_coupling,
    halves,
    random_pair,
    spline_coupling,
)
from pyro_coupling.transforms.elementwise import (
    BoundedRationalQuadraticSpline,
    CircularRationalQuadraticSpline,
    CubicSpline,
    LinearRationalSpline,
    LogisticMixture,
    PerFeature,
    PiecewiseLinear,
    PiecewiseQuadratic,
)

HIDDEN = (6,)
SPLINE = RationalQuadraticSpline(num_bins=4, bound=3.0)
# a circle that holds every draw of a standard normal, so that a base of normals may stand on it
CIRCULAR = CircularRationalQuadraticSpline(num_bins=4, bound=6.0)
ELEMENTWISE = {
    "shift": Shift(),
    "tanh": Affine(TanhScale()),
    "asymmetric_clamp": Affine(AsymmetricClampScale()),
    "clamp": Affine(ClampScale()),
    "sigmoid": Affine(SigmoidScale()),
    "softplus": Affine(SoftplusScale()),
    "spline": SPLINE,
    "linear-spline": PiecewiseLinear(num_bins=4, bound=3.0),
    "quadratic-spline": PiecewiseQuadratic(num_bins=4, bound=3.0),
    "cubic-spline": CubicSpline(num_bins=4, bound=3.0),
    "linear-rational-spline": LinearRationalSpline(num_bins=4, bound=3.0),
    "bounded-spline": BoundedRationalQuadraticSpline(num_bins=4, bound=3.0),
    "circular-spline": CIRCULAR,
    "logistic-mixture": LogisticMixture(num_components=3),
    "per-feature": PerFeature([SPLINE, CIRCULAR, Affine()] * 3),
}


def coupling(mask, elementwise=ELEMENTWISE["tanh"], context_dim=0, separate=False) -> Coupling:
    """A coupling with a small network built to fit."""
    partition = Partition(mask)
    rows = elementwise.restricted_to(partition.moving_entries).num_params
    sizes = (partition.num_staying + context_dim, rows, partition.num_moving)
    return Coupling(partition, mlp(*sizes, HIDDEN, separate=separate), elementwise, context_dim)


def _lower_triangular() -> LowerTriangularAffine:
    return LowerTriangularAffine(torch.randn(3), torch.randn(3, 3).tril(-1) + torch.diag(torch.rand(3) + 0.5))


def _low_rank() -> LowRankAffine:
    basis, core = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64))  # orthonormal to all digits of a check
    core = core.mT.tril(-1) + torch.diag(core.diagonal().abs() + 0.5)
    return LowRankAffine(torch.randn(5).double(), torch.rand(5).double() + 0.5, basis, core)


def _chain() -> Chain:
    parts = [coupling(halves(3)), Permutation([2, 0, 1]), coupling(~halves(3), SPLINE), DiagonalAffine(torch.ones(3))]
    return Chain(parts)


CASES: dict[str, Callable[[], Bijection]] = {
    **{f"coupling-{name}": partial(coupling, halves(4), kind) for name, kind in ELEMENTWISE.items()},
    **{f"coupling-{name}-separate": partial(coupling, halves(3), ELEMENTWISE[name], 0, True) for name in ELEMENTWISE},
    **{f"coupling-{name}-context": partial(coupling, halves(3), ELEMENTWISE[name], 2) for name in ELEMENTWISE},
    "mask-last": lambda: coupling(~halves(3), SPLINE),
    "mask-alternating": lambda: coupling(alternating(5)),
    "mask-alternating-phase": lambda: coupling(alternating(5, phase=1), SPLINE),
    "mask-random": lambda: coupling(random_pair(5, seed=1)[0]),
    "mask-random-complement": lambda: coupling(random_pair(5, seed=1)[1], SPLINE),
    "mask-any": lambda: coupling([False, True, True, False, True]),
    "mask-none-stays": lambda: coupling([False, False]),
    "one-dimension": lambda: coupling(halves(1)),
    "one-dimension-spline": lambda: coupling(halves(1), SPLINE),
    "one-dimension-context": lambda: coupling(halves(1), SPLINE, 2),
    "matrix": lambda: coupling(halves((2, 3), dim=-2)),
    "matrix-alternating-spline": lambda: coupling(alternating((2, 3)), SPLINE),
    "matrix-context": lambda: coupling(halves((2, 3)), SPLINE, 2),
    "conditioned": lambda: coupling(halves(3), context_dim=2).condition(torch.randn(2)),
    "conditioned-spline": lambda: coupling(halves(3), SPLINE, 2).condition(torch.randn(2)),
    "conditioned-inverse": lambda: coupling(halves(3), SPLINE, 2).inv.condition(torch.randn(2)),
    "permutation-reverse": lambda: Permutation.reverse(3),
    "permutation-random": lambda: Permutation.random(5, seed=2),
    "permutation-any": lambda: Permutation([1, 2, 0]),
    "permutation-matrix": lambda: Permutation.random(6, seed=1, event_shape=(2, 3)),
    "diagonal-affine": lambda: DiagonalAffine(torch.randn(3), torch.rand(3) + 0.5),
    "diagonal-affine-matrix": lambda: DiagonalAffine(torch.randn(2, 3), torch.rand(2, 3) + 0.5),
    "diagonal-affine-scalar": lambda: DiagonalAffine(torch.tensor(1.0), torch.tensor(2.0)),
    "lower-triangular-affine": _lower_triangular,
    "lower-triangular-affine-1": lambda: LowerTriangularAffine(torch.zeros(1)),
    "low-rank-affine": _low_rank,
    "low-rank-affine-none": lambda: LowRankAffine(torch.zeros(3)),
    "chain": _chain,
    "chain-nested": lambda: Chain([_chain(), _chain().inv]),
    "chain-context": lambda: Chain([coupling(halves(3), context_dim=2), Permutation.reverse(3), _chain()]),
    "inverse-coupling": lambda: coupling(halves(4), SPLINE).inv,
    "inverse-context": lambda: coupling(halves(4), context_dim=2).inv,
    "inverse-permutation": lambda: Permutation([1, 2, 0]).inv,
    "inverse-lower-triangular": lambda: _lower_triangular().inv,
    "inverse-low-rank": lambda: _low_rank().inv,
    "inverse-chain": lambda: _chain().inv,
    "additive_coupling": lambda: additive_coupling(4, HIDDEN),
    "affine_coupling": lambda: affine_coupling(5, HIDDEN, scale=ClampScale()),
    "affine_coupling-one": lambda: affine_coupling(1, HIDDEN),
    "affine_coupling-matrix": lambda: affine_coupling((2, 3), HIDDEN, dim=-2),
    "affine_coupling-split": lambda: affine_coupling(4, HIDDEN, split_dim=1, separate=True, permute=False),
    "spline_coupling": lambda: spline_coupling(3, HIDDEN, num_bins=4),
    "spline_coupling-cube": lambda: spline_coupling((2, 1, 2), HIDDEN, num_bins=4, dim=-3),
    "conditional_additive_coupling": lambda: conditional_additive_coupling(3, 2, HIDDEN),
    "conditional_affine_coupling": lambda: conditional_affine_coupling(3, 2, HIDDEN),
    "conditional_spline_coupling": lambda: conditional_spline_coupling(3, 2, HIDDEN, num_bins=4),
    "nice": lambda: flows.nice(3, 3, HIDDEN),
    "real_nvp": lambda: flows.real_nvp(4, 4, HIDDEN),
    "real_nvp-one": lambda: flows.real_nvp(1, 2, HIDDEN),
    "real_nvp-context": lambda: flows.real_nvp(3, 3, HIDDEN, 2, mask="alternating", separate=True),
    "real_nvp-matrix": lambda: flows.real_nvp((2, 2), 2, HIDDEN, mask="halves"),
    "neural_spline": lambda: flows.neural_spline(3, 3, HIDDEN, num_bins=4),
    "neural_spline-context": lambda: flows.neural_spline(3, 2, HIDDEN, 2, num_bins=4, outer_affine=False),
    **LINEAR_CASES,
    **LAYOUT_CASES,
}


def randomise(bijection: Bijection, noise: float) -> Bijection:
    """Parameters drawn anew, so that nothing is the identity by chance of its start."""
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.copy_(noise * torch.randn_like(parameter))
    return bijection


def make(name: str, dtype: torch.dtype = torch.float64, noise: float = 0.3) -> Bijection:
    """The named bijection with parameters of the size ``noise``."""
    torch.manual_seed(1)
    return randomise(CASES[name]().to(dtype), noise)


def draw(
    bijection: Bijection, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64, size: float = 1.5
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Arguments of a call: an input of magnitude ``size``, and a context or None."""
    x = size * torch.randn(batch + tuple(bijection.event_shape), dtype=dtype)
    return x, torch.randn(batch + bijection.context_shape, dtype=dtype) if bijection.context_shape else None


def directions(bijection: Bijection) -> tuple[Callable, Callable]:
    """Both methods of a bijection, to say of each what holds for each."""
    return bijection.forward_and_log_det, bijection.inverse_and_log_det


def periods(bijection: Bijection) -> torch.Tensor:
    """Period of each entry of an event, infinite where the entry lies on the line."""
    if not isinstance(bijection, Coupling):
        return torch.tensor(torch.inf)
    partition, period = bijection.partition, bijection.elementwise.period
    moving = period if isinstance(period, tuple) else (period,) * partition.num_moving
    moving = torch.tensor([entry or torch.inf for entry in moving], dtype=torch.float64)
    return partition.join(moving.new_full((partition.num_staying,), torch.inf), moving).reshape(bijection.event_shape)


def relative_error(
    found: torch.Tensor, expected: torch.Tensor, event_dim: int = 0, period: float | torch.Tensor = torch.inf
) -> float:
    """Largest ``|found - expected| / (1 + |expected|)``, ``|expected|`` the largest entry of an event.

    A number beside one a thousand times larger carries the rounding of the larger one, so an event is
    the smallest thing that an error can be relative to. Points of a circle differ by the shorter way
    round it. Infinite where anything is not a number.
    """
    if found.numel() == 0:
        return 0.0
    size = expected.abs().amax(tuple(range(-event_dim, 0)), keepdim=True) if event_dim else expected.abs()
    distance = torch.fmod((found - expected).abs(), period)
    distance = torch.minimum(distance, period - distance)
    return (distance / (1 + size)).nan_to_num(torch.inf).max().item()
