"""Rounding errors of every elementwise map, there and back, beside those of the packages that have the map too.

x -> y -> x for 200,000 points in [-10, 10] (or the interval or circle that a map is made for), each with raw parameters
of its own, normal with standard deviation 1, 5 and 20: what a network puts out when it has just begun, when it is
trained, and when it goes astray. A cell is the largest error of x and the largest sum of the two log slopes, which
should be zero; where that failed it is the number of points that came out non-finite, or the exception that ended the
call. The last column counts non-finite values for points of any size up to 1e6. All packages get the same points, and
the same raw parameters where their maps take as many.

    python benchmarks/round_trip.py [--maps affine cubic] [--json benchmarks/results/round_trip.json]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import equinox as eqx
import flowjax.bijections as flowjax_bijections
import jax
import jax.numpy as jnp
import numpy as np
import torch
import zuko
from flowjax.utils import get_ravelled_pytree_constructor
from nflows.transforms import splines as nflows_splines
from normflows.flows import AffineCoupling as NormflowsAffineCoupling
from normflows.utils import splines as normflows_splines
from paramax import NonTrainable, unwrap
from pyro.distributions.transforms import AffineCoupling as PyroAffineCoupling
from pyro.distributions.transforms import ConditionalSpline as PyroConditionalSpline
from torch import Tensor

from pyro_coupling.transforms import elementwise as maps

BINS, BOUND, POINTS = 8, 5.0, 200_000
SCALES = (1.0, 5.0, 20.0)
#: raw parameters of a rational-quadratic spline: widths, heights, slopes at the inner knots
SIZES = (BINS, BINS, BINS - 1)
LINEAR_TAILS = {"tails": "linear", "tail_bound": BOUND}
INTERVAL = {"left": -BOUND, "right": BOUND, "bottom": -BOUND, "top": BOUND}


@dataclass(frozen=True)
class Contender:
    """A map of one package.

    Args:
        num_params: Raw parameters for each point.
        run: x ``(n,)``, raw parameters ``(n, num_params)`` and whether to invert -> value and log slope, both ``(n,)``.
    """

    num_params: int
    run: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def ours(elementwise: maps.Elementwise) -> Contender:
    def run(x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        method = elementwise.inverse_and_log_det if inverse else elementwise.forward_and_log_det
        y, log_slope = method(x.unsqueeze(-1), raw.unsqueeze(-1))
        return y.squeeze(-1), log_slope.squeeze(-1)

    return Contender(elementwise.num_params, run)


def of_function(sizes: tuple[int, ...], spline: Callable, **settings) -> Contender:
    """A spline of nflows or normflows: a function of points and raw parameters."""

    def run(x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return spline(x, *raw.split(sizes, -1), inverse=inverse, **settings)

    return Contender(sum(sizes), run)


def of_transform(num_params: int, make: Callable[[Tensor], torch.distributions.Transform]) -> Contender:
    """A transform in torch's protocol, built from raw parameters, as zuko's and Pyro's are."""

    def run(x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        transform = make(raw)
        if inverse:
            y = transform.inv(x)
            return y, -transform.log_abs_det_jacobian(y, x)
        y = transform(x)
        return y, transform.log_abs_det_jacobian(x, y)

    return Contender(num_params, run)


def in_columns(contender: Contender, staying: int = 0) -> Contender:
    """For a map that wants points as a column, or behind a column that stays as it is."""

    def run(x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        y, log_slope = contender.run(torch.nn.functional.pad(x[:, None], (staying, 0)), raw, inverse)
        return y[:, -1], log_slope.reshape(-1)

    return Contender(contender.num_params, run)


def of_flowjax(make: Callable[[], flowjax_bijections.AbstractBijection]) -> Contender:
    """A bijection of flowjax, its parameters moved from their start by the raw ones, as its coupling layer does."""

    def constructor() -> tuple[Callable, int]:
        is_fixed = partial(lambda kind, leaf: isinstance(leaf, kind), NonTrainable)
        return get_ravelled_pytree_constructor(make(), eqx.is_inexact_array, is_leaf=is_fixed)

    def run(x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        with jax.enable_x64(x.dtype == torch.float64):
            construct = constructor()[0]

            def move(x: jax.Array, raw: jax.Array) -> tuple[jax.Array, jax.Array]:
                bijection = unwrap(construct(raw))
                return bijection.inverse_and_log_det(x) if inverse else bijection.transform_and_log_det(x)

            moved = jax.jit(jax.vmap(move))(jnp.asarray(x.numpy()), jnp.asarray(raw.numpy()))
            y, log_slope = (torch.from_numpy(np.array(part)) for part in moved)
            return y, log_slope

    return Contender(constructor()[1], run)


class Raw(torch.nn.Module):
    """A conditioner that puts out given numbers."""

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, staying: Tensor) -> Tensor:
        return self.raw


def normflows_affine(x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    coupling = NormflowsAffineCoupling(Raw(raw))
    (_, y), log_slope = (coupling.inverse if inverse else coupling)([torch.zeros_like(x), x])
    return y, log_slope


def zuko_spline(raw: Tensor) -> torch.distributions.Transform:
    return zuko.transforms.MonotonicRQSTransform(*raw.split(SIZES, -1), bound=BOUND)


def zuko_circular(raw: Tensor) -> torch.distributions.Transform:
    return zuko.flows.spline.CircularRQSTransform(*raw.split(SIZES, -1))


def pyro_spline(order: str) -> Contender:
    sizes = (*SIZES, BINS) if order == "linear" else SIZES
    spline = PyroConditionalSpline(lambda raw: raw.split(sizes, -1), 1, BINS, BOUND, order)
    return in_columns(of_transform(sum(sizes), spline.condition))


MAPS: dict[str, dict[str, Contender]] = {
    "affine": {
        "pyro_coupling": ours(maps.Affine()),
        "Pyro": in_columns(of_transform(2, lambda raw: PyroAffineCoupling(1, lambda x: raw.split(1, -1))), staying=1),
        "zuko": of_transform(2, lambda raw: zuko.transforms.MonotonicAffineTransform(*raw.unbind(-1))),
        "normflows": in_columns(Contender(2, normflows_affine)),
        "flowjax": of_flowjax(flowjax_bijections.Affine),
    },
    "rational-quadratic": {
        "pyro_coupling": ours(maps.RationalQuadraticSpline(BINS, BOUND)),
        "Pyro": pyro_spline("quadratic"),
        "zuko": of_transform(sum(SIZES), zuko_spline),
        "normflows": of_function(SIZES, normflows_splines.unconstrained_rational_quadratic_spline, **LINEAR_TAILS),
        "nflows": of_function(SIZES, nflows_splines.unconstrained_rational_quadratic_spline, **LINEAR_TAILS),
        "flowjax": of_flowjax(partial(flowjax_bijections.RationalQuadraticSpline, knots=BINS - 1, interval=BOUND)),
    },
    "rational-quadratic, free ends": {
        "pyro_coupling": ours(maps.BoundedRationalQuadraticSpline(BINS, BOUND)),
        "normflows": of_function((BINS, BINS, BINS + 1), normflows_splines.rational_quadratic_spline, **INTERVAL),
        "nflows": of_function((BINS, BINS, BINS + 1), nflows_splines.rational_quadratic_spline, **INTERVAL),
    },
    "rational-quadratic, circular": {
        "pyro_coupling": ours(maps.CircularRationalQuadraticSpline(BINS)),
        "zuko": of_transform(sum(SIZES), zuko_circular),
        "normflows": of_function(
            (BINS, BINS, BINS),
            normflows_splines.unconstrained_rational_quadratic_spline,
            tails="circular",
            tail_bound=math.pi,
        ),
    },
    "linear rational": {
        "pyro_coupling": ours(maps.LinearRationalSpline(BINS, BOUND)),
        "Pyro": pyro_spline("linear"),
    },
    "piecewise linear": {
        "pyro_coupling": ours(maps.PiecewiseLinear(BINS, BOUND)),
        "nflows": of_function((BINS,), nflows_splines.unconstrained_linear_spline, **LINEAR_TAILS),
    },
    "piecewise quadratic": {
        "pyro_coupling": ours(maps.PiecewiseQuadratic(BINS, BOUND)),
        "nflows": of_function((BINS, BINS - 1), nflows_splines.unconstrained_quadratic_spline, **LINEAR_TAILS),
    },
    "cubic": {
        "pyro_coupling": ours(maps.CubicSpline(BINS, BOUND)),
        "nflows": of_function((BINS, BINS, 1, 1), nflows_splines.unconstrained_cubic_spline, **LINEAR_TAILS),
    },
    "logistic mixture": {"pyro_coupling": ours(maps.LogisticMixture())},
}
#: half-width of the interval that points are drawn from, 10 for maps of the whole line
WINDOWS = {"rational-quadratic, free ends": BOUND, "rational-quadratic, circular": math.pi}


@dataclass(frozen=True)
class Outcome:
    """What a round trip came to: an exception, or errors and the number of points that came out non-finite."""

    error: float | None = None
    log_det_error: float | None = None
    non_finite: int = 0
    exception: str = ""

    def __str__(self) -> str:
        if self.exception or self.error is None:
            return self.exception or f"{self.non_finite} non-finite"
        errors = f"{self.error:.0e} / {self.log_det_error:.0e}"
        return errors if not self.non_finite else f"{errors}, {self.non_finite} non-finite"


@torch.no_grad()
def round_trip(contender: Contender, x: Tensor, scale: float, period: float) -> Outcome:
    """There and back for every point; on a circle an error is the way around, not across."""
    generator = torch.Generator().manual_seed(1)
    # drawn in float32 for both dtypes, so that both see the same numbers
    raw = (scale * torch.randn(len(x), contender.num_params, generator=generator)).to(x.dtype)
    try:
        y, log_slope = contender.run(x, raw, False)
        back, log_slope_back = contender.run(y, raw, True)
    except Exception as exception:
        return Outcome(exception=type(exception).__name__)
    off = (back - x).abs()
    off = torch.minimum(off, (period - off).abs())
    mismatch = (log_slope + log_slope_back).abs()
    finite = y.isfinite() & off.isfinite() & mismatch.isfinite()
    if not finite.any():
        return Outcome(non_finite=len(x))
    return Outcome(off[finite].max().item(), mismatch[finite].max().item(), int((~finite).sum()))


def worst_ratio(outcomes: dict[str, list[Outcome]]) -> float:
    """Our largest error in units of the smallest of all packages that came through, over scales and both errors."""
    worst = 1.0
    for at_scale in zip(*outcomes.values(), strict=True):
        sound = [outcome for outcome in at_scale if outcome.error is not None and not outcome.non_finite]
        for name in ("error", "log_det_error"):
            mine, smallest = getattr(at_scale[0], name), min(getattr(outcome, name) for outcome in sound)
            worst = max(worst, mine / smallest if smallest else math.inf if mine else 1.0)
    return worst


def points(window: float, dtype: torch.dtype) -> Tensor:
    return (window * (2 * torch.rand(POINTS, generator=torch.Generator().manual_seed(0)) - 1)).to(dtype)


def points_of_any_size(dtype: torch.dtype) -> Tensor:
    """Signs and sizes from 1e-6 to 1e6, the ends of the splines' interval and of the circle, and zero."""
    size = 10 ** torch.linspace(-6, 6, POINTS // 2, dtype=torch.float64)
    special = torch.tensor([0.0, BOUND, -BOUND, math.pi, -math.pi, 1e6, -1e6], dtype=torch.float64)
    return torch.cat([size, -size, special]).to(dtype)


def count_non_finite(contender: Contender, dtype: torch.dtype) -> str:
    outcomes = [round_trip(contender, points_of_any_size(dtype), scale, math.inf) for scale in SCALES]
    exceptions = sorted({outcome.exception for outcome in outcomes} - {""})
    return ", ".join(exceptions) or str(sum(outcome.non_finite for outcome in outcomes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", nargs="+", default=list(MAPS), choices=list(MAPS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.float32, torch.float64):
        worst = {}
        print(f"\n{dtype}\n\n| map | package | s = 1 | s = 5 | s = 20 | to 1e6 |\n" + "|---" * 6 + "|")
        for name in options.maps:
            window = WINDOWS.get(name, 10.0)
            period = 2 * math.pi if "circular" in name else math.inf
            outcomes = {}
            for package, contender in MAPS[name].items():
                outcomes[package] = [round_trip(contender, points(window, dtype), scale, period) for scale in SCALES]
                large = count_non_finite(contender, dtype)
                cells = " | ".join(map(str, outcomes[package]))
                print(f"| {name} | {package} | {cells} | {large} |", flush=True)
                results = {str(scale): vars(outcome) for scale, outcome in zip(SCALES, outcomes[package], strict=True)}
                rows.append({"map": name, "package": package, "dtype": str(dtype), "scales": results, "large": large})
            worst[name] = worst_ratio(outcomes)
        print("\nlargest ratio of our error to the smallest in its column: ", end="")
        print(", ".join(f"{name} {ratio:.2g}" for name, ratio in worst.items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"bins": BINS, "points": POINTS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
