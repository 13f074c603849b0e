"""Elementwise maps against the formulas of their papers, and where floating point is hard on them."""

import math

import numpy as np
import pytest
import torch
from harness import ELEMENTWISE
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.interpolate import CubicHermiteSpline
from scipy.special import expit, logit, softmax

from pyro_coupling.transforms.elementwise import (
    Affine,
    AsymmetricClampScale,
    BoundedRationalQuadraticSpline,
    CircularRationalQuadraticSpline,
    ClampScale,
    CubicSpline,
    LinearRationalSpline,
    LogisticMixture,
    PerFeature,
    PiecewiseLinear,
    PiecewiseQuadratic,
    RationalQuadraticSpline,
    Shift,
    SigmoidScale,
    SoftplusScale,
    TanhScale,
)
from pyro_coupling.transforms.elementwise._solve import solve_increasing

SCALES = {
    "tanh": TanhScale(1.5),
    "asymmetric": AsymmetricClampScale(-2.0, 0.1),
    "clamp": ClampScale(-5.0, 3.0),
    "sigmoid": SigmoidScale(0.1, 4.0),
    "softplus": SoftplusScale(1e-3),
}
scales = pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
# three entries of an event, so that a map for each entry has something to distinguish
THREE = {name: elementwise.restricted_to((0, 1, 2)) for name, elementwise in ELEMENTWISE.items()}
MOST = max(elementwise.num_params for elementwise in THREE.values())
maps = pytest.mark.parametrize("elementwise", THREE.values(), ids=THREE)
float64 = torch.float64


def tensor(*numbers):
    return torch.tensor(numbers, dtype=float64)


def close(found, expected, tolerance=1e-12):
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


@maps
def test_zero_parameters_are_the_identity(elementwise):
    x = torch.linspace(-4, 4, 101, dtype=float64)[:, None].expand(-1, 3)
    for method in (elementwise.forward_and_log_det, elementwise.inverse_and_log_det):
        y, log_slope = method(x, torch.zeros(elementwise.num_params, 3, dtype=float64))
        assert close(y, x) and close(log_slope, torch.zeros_like(x))


@maps
@given(st.lists(st.floats(-1e4, 1e4), min_size=MOST, max_size=MOST), st.floats(-1e6, 1e6))
def test_any_parameters_give_finite_numbers_in_float32(elementwise, raw, x):
    params = torch.tensor(raw[: elementwise.num_params])[:, None].repeat(1, 3).requires_grad_()
    value = torch.tensor([x, x, x], requires_grad=True)
    for method in (elementwise.forward_and_log_det, elementwise.inverse_and_log_det):
        y, log_slope = method(value, params)
        gradients = torch.autograd.grad(y.sum() + log_slope.sum(), [value, params], allow_unused=True)
        assert all(part.isfinite().all() for part in (y, log_slope, *gradients) if part is not None)


@maps
@pytest.mark.parametrize("x", [-1e18, 1e18])
def test_gradients_are_finite_far_out(elementwise, x):
    params = torch.randn(elementwise.num_params, 3, requires_grad=True)
    value = torch.tensor([x, x, x], requires_grad=True)
    for method in (elementwise.forward_and_log_det, elementwise.inverse_and_log_det):
        y, log_slope = method(value, params)
        gradients = torch.autograd.grad(y.sum() + log_slope.sum(), [value, params], allow_unused=True)
        assert all(part.isfinite().all() for part in (y, log_slope, *gradients) if part is not None)


# Shift and affine: Dinh et al. 2014, section 3.2; Dinh et al. 2017, equations 7 and 8


def test_shift_adds_its_parameter():
    y, log_slope = Shift().forward_and_log_det(tensor(1, 2), tensor(3, -4).reshape(1, 2))
    assert y.tolist() == [4, -2] and log_slope.tolist() == [0, 0]


@scales
def test_affine_is_exp_s_times_x_plus_t(scale):
    x, shift, raw = torch.randn(3, 9, dtype=float64)
    s = scale.log_scale(raw)
    y, log_slope = Affine(scale).forward_and_log_det(x, torch.stack([shift, raw]))
    assert close(y, x * s.exp() + shift) and close(log_slope, s)
    back, log_slope = Affine(scale).inverse_and_log_det(y, torch.stack([shift, raw]))
    assert close(back, (y - shift) * (-s).exp()) and close(log_slope, -s)


LOG_SCALES = {
    "tanh": lambda r: 1.5 * math.tanh(r / 1.5),
    # Andrade 2024, with the argument scaled such that the slope at zero is one
    "asymmetric": lambda r: (b := 2.0 if r < 0 else 0.1) * 2 / math.pi * math.atan(math.pi / 2 * r / b),
    "clamp": lambda r: min(max(r, -5.0), 3.0),
    "sigmoid": lambda r: math.log(0.1 + 3.9 / (1 + math.exp(-r) * 3.0 / 0.9)),
    "softplus": lambda r: math.log(1e-3 + math.log1p(math.exp(r) * math.expm1(1 - 1e-3))),
}


@pytest.mark.parametrize("name", SCALES)
def test_log_scale_is_its_formula(name):
    raw = tensor(-30, -1.3, -0.2, 0, 0.4, 2.5, 30)
    expected = tensor(*map(LOG_SCALES[name], raw.tolist()))
    assert close(SCALES[name].log_scale(raw), expected)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("tanh", -1.5, 1.5), ("asymmetric", -2, 0.1), ("clamp", -5, 3), ("sigmoid", math.log(0.1), math.log(4))]
    + [("softplus", math.log(1e-3), math.inf)],
)
def test_bounds_are_reached_and_kept(name, low, high):
    raw = tensor(-1e9, -30, -3, 0, 3, 30, 1e9)
    found = SCALES[name].log_scale(raw)
    assert (found.diff() >= 0).all()
    assert (found >= low - 1e-12).all() and (found <= high + 1e-12).all()
    assert close(found[0], tensor(low)[0], 1e-6)
    assert high == math.inf or close(found[-1], tensor(high)[0], 1e-6)


@scales
def test_slope_of_the_log_scale_at_zero_is_positive(scale):
    raw = tensor(0.0).requires_grad_()
    (slope,) = torch.autograd.grad(scale.log_scale(raw), raw)
    assert scale.log_scale(raw).item() == pytest.approx(0, abs=1e-15) and slope.item() > 0.3


INVALID = [
    (TanhScale, {"bound": 0.0}),
    (TanhScale, {"bound": math.inf}),
    (TanhScale, {"bound": math.nan}),
    (AsymmetricClampScale, {"min": 0.0}),
    (AsymmetricClampScale, {"max": -0.1}),
    (ClampScale, {"min": 1.0}),
    (ClampScale, {"max": 0.0}),
    (SigmoidScale, {"min": 0.0}),
    (SigmoidScale, {"max": 1.0}),
    (SigmoidScale, {"max": math.inf}),
    (SoftplusScale, {"min": 1.0}),
    (RationalQuadraticSpline, {"num_bins": 1}),
    (RationalQuadraticSpline, {"num_bins": 2.5}),
    (RationalQuadraticSpline, {"bound": 0.0}),
    (RationalQuadraticSpline, {"bound": math.inf}),
    (RationalQuadraticSpline, {"max_log_ratio": -1.0}),
    (PiecewiseLinear, {"num_bins": 1}),
    (PiecewiseQuadratic, {"bound": -2.0}),
    (CubicSpline, {"max_log_ratio": 0.0}),
    (LinearRationalSpline, {"num_bins": 0}),
    (BoundedRationalQuadraticSpline, {"bound": math.nan}),
    (CircularRationalQuadraticSpline, {"bound": 0.0}),
    (LogisticMixture, {"num_components": 0}),
    (LogisticMixture, {"max_mean": -1.0}),
    (LogisticMixture, {"max_log_scale": math.inf}),
    (LogisticMixture, {"max_log_ratio": 0.0}),
]


@pytest.mark.parametrize(("cls", "settings"), INVALID)
def test_an_invalid_setting_is_named(cls, settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"{cls.__name__}: {name} must be .* got {value}"):
        cls(**settings)


def test_a_scale_of_the_wrong_type_is_named():
    with pytest.raises(TypeError, match="scale"):
        Affine(torch.exp)


# Rational-quadratic spline: Durkan et al. 2019

BINS, BOUND = 6, 3.0
SPLINE = RationalQuadraticSpline(BINS, BOUND, max_log_ratio=2.0)


def raw_parameters(features=1, size=2.0):
    return size * torch.randn(SPLINE.num_params, features, dtype=float64)


def knots(raw):
    """Knots and slopes that the raw numbers of one feature stand for, in numpy."""
    raw = 2.0 * np.tanh(raw.numpy() / 2.0)
    widths, heights, slopes = np.split(np.exp(raw), [BINS, 2 * BINS])
    edges = [2 * BOUND * np.concatenate([[0], np.cumsum(part / part.sum())]) - BOUND for part in (widths, heights)]
    return *edges, np.concatenate([[1], slopes, [1]])


def durkan(x, xs, ys, slopes):
    """Equation 4 of the paper and, by hand, its derivative (equation 5), for one number."""
    if not -BOUND < x < BOUND:
        return x, 1.0
    k = int(np.searchsorted(xs, x, side="right")) - 1
    s = (ys[k + 1] - ys[k]) / (xs[k + 1] - xs[k])
    xi = (x - xs[k]) / (xs[k + 1] - xs[k])
    bottom = s + (slopes[k + 1] + slopes[k] - 2 * s) * xi * (1 - xi)
    y = ys[k] + (ys[k + 1] - ys[k]) * (s * xi**2 + slopes[k] * xi * (1 - xi)) / bottom
    top = s**2 * (slopes[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + slopes[k] * (1 - xi) ** 2)
    return y, top / bottom**2


def test_spline_is_equations_4_and_5():
    raw = raw_parameters()
    x = torch.linspace(-4, 4, 401, dtype=float64)
    expected = torch.tensor([durkan(v, *knots(raw[:, 0])) for v in x.tolist()], dtype=float64)
    y, log_slope = SPLINE.forward_and_log_det(x[:, None], raw)
    assert close(y[:, 0], expected[:, 0]) and close(log_slope[:, 0], expected[:, 1].log())
    back, log_slope = SPLINE.inverse_and_log_det(y, raw)
    assert close(back[:, 0], x, 1e-10) and close(log_slope[:, 0], -expected[:, 1].log(), 1e-9)


def test_spline_passes_through_its_knots_with_their_slopes():
    raw = raw_parameters()
    xs, ys, slopes = (torch.tensor(part, dtype=float64)[:, None] for part in knots(raw[:, 0]))
    y, log_slope = SPLINE.forward_and_log_det(xs, raw)
    assert close(y, ys) and close(log_slope, slopes.log(), 1e-10)
    x, log_slope = SPLINE.inverse_and_log_det(ys, raw)
    assert close(x, xs) and close(log_slope, -slopes.log(), 1e-10)


@pytest.mark.parametrize("inverse", [False, True])
def test_spline_and_its_slope_are_continuous(inverse):
    raw = raw_parameters()
    method = SPLINE.inverse_and_log_det if inverse else SPLINE.forward_and_log_det
    at = torch.tensor(knots(raw[:, 0])[1 if inverse else 0], dtype=float64)[:, None]
    left, right = method(at - 1e-9, raw), method(at + 1e-9, raw)
    # the slope is at most e^9 here, and its change over 2e-9 that much times its curvature
    assert close(left[0], right[0], 1e-5) and close(left[1], right[1], 1e-4)


def test_spline_increases():
    raw = raw_parameters(features=50, size=20.0)
    x = torch.linspace(-4, 4, 2001, dtype=float64)[:, None].expand(-1, 50)
    assert (SPLINE.forward_and_log_det(x, raw)[0].diff(dim=0) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("sign", [-1, 1])
def test_spline_is_the_identity_from_the_bound_on(dtype, sign):
    raw = raw_parameters(features=100, size=5.0).to(dtype)
    for distance in (BOUND, BOUND + 1e-5, 10.0, 1e30):
        x = torch.full((100,), sign * distance, dtype=dtype)
        for method in (SPLINE.forward_and_log_det, SPLINE.inverse_and_log_det):
            y, log_slope = method(x, raw)
            assert torch.equal(y, x) and torch.equal(log_slope, torch.zeros_like(x))


# Reached over three seeds: 5e-5, 4e-4, 7e-4, which is what rounding y to float32 costs where the map is
# flattest. Log-determinants, reached 1e-4, 5e-4, 1.2e-3, lose a few times more.
@pytest.mark.parametrize(("size", "tolerance"), [(1, 1e-4), (5, 1e-3), (20, 1e-3)])
def test_spline_round_trip_in_float32(size, tolerance):
    spline = RationalQuadraticSpline()
    x = 20 * torch.rand(200_000) - 10
    raw = size * torch.randn(spline.num_params, 200_000)
    for there, back in (
        (spline.forward_and_log_det, spline.inverse_and_log_det),
        (spline.inverse_and_log_det, spline.forward_and_log_det),
    ):
        y, log_slope = there(x, raw)
        again, opposite = back(y, raw)
        assert all(part.isfinite().all() for part in (y, log_slope, again, opposite))
        assert (again - x).abs().max() <= tolerance
        assert (log_slope + opposite).abs().max() <= 5 * tolerance


def test_a_spline_too_steep_to_invert_in_float32_still_gives_finite_numbers():
    spline = RationalQuadraticSpline(max_log_ratio=3.0)
    x = 20 * torch.rand(200_000) - 10
    raw = 20 * torch.randn(spline.num_params, 200_000)
    for part in (*spline.forward_and_log_det(x, raw), *spline.inverse_and_log_det(x, raw)):
        assert part.isfinite().all()


# The other splines, each against the formula of its paper for one number at a time

WIDE = 2.0  # bound of the raw parameters below
PERIOD = 2 * BOUND


def apart(a, b, period=PERIOD):
    """Distance of points of the circle."""
    distance = torch.fmod((a - b).abs(), period)
    return torch.minimum(distance, period - distance)


def edges(raw):
    """Edges of bins whose sizes are the softmax of the raw numbers."""
    return 2 * BOUND * np.concatenate([[0], np.cumsum(np.exp(raw) / np.exp(raw).sum())]) - BOUND


def linear(raw):
    """Mueller et al. 2019: the distribution function of a histogram."""
    xs, ys = np.linspace(-BOUND, BOUND, BINS + 1), edges(raw)
    slopes = np.diff(ys) / np.diff(xs)
    return lambda x: (np.interp(x, xs, ys), slopes[np.searchsorted(xs, x, side="right") - 1])


def quadratic(raw):
    """Mueller et al. 2019: the distribution function of a density linear between its vertices."""
    xs, vertices = edges(raw[:BINS]), np.exp(raw[BINS:])
    vertices = vertices * 2 * BOUND / trapezoid(vertices, xs)

    def reference(x):
        grid = np.append(xs[xs < x], x)
        return trapezoid(np.interp(grid, xs, vertices), grid) - BOUND, np.interp(x, xs, vertices)

    return reference


def cubic(raw):
    """Durkan et al. 2019: Hermite's cubic with the slopes of Steffen 1990, equation 11."""
    xs, ys = edges(raw[:BINS]), edges(raw[BINS : 2 * BINS])
    h, s = np.diff(xs), np.diff(ys) / np.diff(xs)
    p = (s[:-1] * h[1:] + s[1:] * h[:-1]) / (h[:-1] + h[1:])
    sign = np.sign(s[:-1]) + np.sign(s[1:])
    inner = sign * np.minimum(np.minimum(np.abs(s[:-1]), np.abs(s[1:])), np.abs(p) / 2)
    first, last = 3 * s[[0, -1]] * expit(raw[2 * BINS :] - np.log(2))
    spline = CubicHermiteSpline(xs, ys, np.concatenate([[first], inner, [last]]))
    return lambda x: (spline(x).item(), spline(x, 1).item())


def linear_rational(raw):
    """Dolatabadi et al. 2020, algorithm 1 and equation 5."""
    xs, ys = edges(raw[:BINS]), edges(raw[BINS : 2 * BINS])
    cuts = expit(raw[2 * BINS : 3 * BINS])
    slopes = np.concatenate([[1], np.exp(raw[3 * BINS :]), [1]])

    def piece(x):
        k = int(np.searchsorted(xs, x, side="right")) - 1
        lam, (y0, y1), (d0, d1) = cuts[k], ys[k : k + 2], slopes[k : k + 2]
        w0 = 1.0
        w1 = np.sqrt(d0 / d1) * w0
        wm = (lam * w0 * d0 + (1 - lam) * w1 * d1) * (xs[k + 1] - xs[k]) / (y1 - y0)
        ym = ((1 - lam) * w0 * y0 + lam * w1 * y1) / ((1 - lam) * w0 + lam * w1)
        phi = (x - xs[k]) / (xs[k + 1] - xs[k])
        if phi <= lam:
            below = w0 * (lam - phi) + wm * phi
            return (w0 * y0 * (lam - phi) + wm * ym * phi) / below, lam * w0 * wm * (ym - y0) / below**2, k
        below = wm * (1 - phi) + w1 * (phi - lam)
        return (wm * ym * (1 - phi) + w1 * y1 * (phi - lam)) / below, (1 - lam) * wm * w1 * (y1 - ym) / below**2, k

    def reference(x):
        y, slope, k = piece(x)
        return y, slope / (xs[k + 1] - xs[k])

    return reference


def bounded(raw):
    return lambda x: durkan(x, edges(raw[:BINS]), edges(raw[BINS : 2 * BINS]), np.exp(raw[2 * BINS :]))


PAPERS = {
    "linear": (PiecewiseLinear(BINS, BOUND, WIDE), linear),
    "quadratic": (PiecewiseQuadratic(BINS, BOUND, WIDE), quadratic),
    "cubic": (CubicSpline(BINS, BOUND, WIDE), cubic),
    "linear-rational": (LinearRationalSpline(BINS, BOUND, WIDE), linear_rational),
    "bounded": (BoundedRationalQuadraticSpline(BINS, BOUND, WIDE), bounded),
}
papers = pytest.mark.parametrize(("spline", "formula"), PAPERS.values(), ids=PAPERS)
intervals = pytest.mark.parametrize("spline", [spline for spline, _ in PAPERS.values()], ids=PAPERS)


@papers
def test_a_spline_is_the_formula_of_its_paper(spline, formula):
    raw = 2 * torch.randn(spline.num_params, 1, dtype=float64)
    reference = formula(WIDE * np.tanh(raw[:, 0].numpy() / WIDE))
    x = torch.linspace(-4, 4, 402, dtype=float64)  # none at a knot of the linear one, where its slope jumps
    inside = x.abs() < BOUND
    expected = torch.tensor([reference(v) if abs(v) < BOUND else (v, 1.0) for v in x.tolist()], dtype=float64)
    y, log_slope = spline.forward_and_log_det(x[:, None], raw)
    assert close(y[:, 0], expected[:, 0]) and close(log_slope[:, 0], expected[:, 1].log())
    back, log_slope = spline.inverse_and_log_det(y, raw)
    assert close(back[:, 0], x, 1e-10) and close(log_slope[:, 0], -expected[:, 1].log(), 1e-9)
    assert (y[inside].abs() < BOUND).all() and torch.equal(y[~inside, 0], x[~inside])


@intervals
@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_spline_on_an_interval_is_the_identity_from_the_bound_on(spline, dtype, sign):
    raw = 5 * torch.randn(spline.num_params, 100, dtype=dtype)
    for distance in (BOUND, BOUND + 1e-5, 10.0, 1e30):
        x = torch.full((100,), sign * distance, dtype=dtype)
        for method in (spline.forward_and_log_det, spline.inverse_and_log_det):
            y, log_slope = method(x, raw)
            assert torch.equal(y, x) and torch.equal(log_slope, torch.zeros_like(x))


@intervals
def test_a_spline_on_an_interval_increases(spline):
    raw = 20 * torch.randn(spline.num_params, 50, dtype=float64)
    x = torch.linspace(-4, 4, 2001, dtype=float64)[:, None].expand(-1, 50)
    assert (spline.forward_and_log_det(x, raw)[0].diff(dim=0) > 0).all()


def test_the_slopes_of_a_bounded_spline_at_its_ends_are_parameters():
    spline, raw = PAPERS["bounded"][0], 2 * torch.randn(3 * BINS + 1, 1, dtype=float64)
    ends = tensor(-BOUND, BOUND)[:, None] * (1 - 1e-12)
    assert close(spline.forward_and_log_det(ends, raw)[1], WIDE * torch.tanh(raw[[2 * BINS, -1]] / WIDE), 1e-9)


DEFAULTS = [
    PiecewiseLinear(),
    PiecewiseQuadratic(),
    CubicSpline(),
    LinearRationalSpline(),
    BoundedRationalQuadraticSpline(),
    CircularRationalQuadraticSpline(),
    LogisticMixture(),
]


# Reached: 1e-4, 8e-4, 2e-3 for the worst map, 3e-6, 1e-5, 1e-5 for the best; log-determinants lose a few times more.
@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize(("size", "tolerance"), [(1, 2e-4), (5, 2e-3), (20, 4e-3)])
def test_round_trip_of_every_default_map_in_float32(kind, size, tolerance):
    x = 20 * torch.rand(50_000) - 10
    raw = size * torch.randn(kind.num_params, 50_000)
    for there, back in (
        (kind.forward_and_log_det, kind.inverse_and_log_det),
        (kind.inverse_and_log_det, kind.forward_and_log_det),
    ):
        y, log_slope = there(x, raw)
        again, opposite = back(y, raw)
        assert all(part.isfinite().all() for part in (y, log_slope, again, opposite))
        assert apart(again, x, kind.period or math.inf).max() <= tolerance
        # where a slope jumps, rounding may put a point and its image on different sides
        assert ((log_slope + opposite).abs() > 5 * tolerance).sum() <= 2


# Circular spline: Rezende et al. 2020

CIRCLE = CircularRationalQuadraticSpline(BINS, BOUND, WIDE)


def test_a_circular_spline_is_a_spline_with_one_slope_at_both_ends_and_a_turn():
    raw = 2 * torch.randn(CIRCLE.num_params, 1, dtype=float64)
    squashed = WIDE * np.tanh(raw[:-1, 0].numpy() / WIDE)
    slopes = np.exp(np.append(squashed[2 * BINS :], squashed[2 * BINS]))
    x = torch.linspace(-BOUND, BOUND, 402, dtype=float64)[1:-1]
    curve = [durkan(v, edges(squashed[:BINS]), edges(squashed[BINS : 2 * BINS]), slopes) for v in x.tolist()]
    expected = torch.tensor(curve, dtype=float64)
    y, log_slope = CIRCLE.forward_and_log_det(x[:, None], raw)
    assert apart(y[:, 0], expected[:, 0] + raw[-1]).max() < 1e-12 and close(log_slope[:, 0], expected[:, 1].log())
    back, log_slope = CIRCLE.inverse_and_log_det(y, raw)
    assert apart(back[:, 0], x).max() < 1e-10 and close(log_slope[:, 0], -expected[:, 1].log(), 1e-9)


directions = pytest.mark.parametrize("method", [CIRCLE.forward_and_log_det, CIRCLE.inverse_and_log_det])


@directions
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_a_circular_spline_stays_on_its_circle_after_rounding(method, dtype):
    ends = torch.tensor([-BOUND, BOUND, 3 * BOUND, 0.0, 1e6, -1e6], dtype=dtype)
    x = torch.cat([torch.nextafter(ends, -ends - 1), ends, torch.nextafter(ends, ends + 1), ends - 1e-20])
    x = x[:, None].expand(-1, 1000)
    raw = 5 * torch.randn(CIRCLE.num_params, 1000, dtype=dtype)
    raw[-1, ::2] = 0
    y, _ = method(x, raw)
    assert (y >= -BOUND).all() and (y < BOUND).all()


@directions
def test_a_circular_spline_and_its_slope_go_on_across_the_seam(method):
    raw = 2 * torch.randn(CIRCLE.num_params, 20, dtype=float64)
    (left, slope_left), (right, slope_right) = (method(torch.full((20,), x, dtype=float64), raw) for x in (-3.0, 3.0))
    assert apart(left, right).max() < 1e-12 and close(slope_left, slope_right)
    near, slope_near = method(torch.full((20,), BOUND - 1e-9, dtype=float64), raw)
    # the slope is at most e^9 here, as is its logarithm's change
    assert apart(near, right).max() < 1e-5 and close(slope_near, slope_right, 1e-4)


@directions
def test_whole_turns_change_nothing(method):
    x, raw = 2 * torch.randn(100, dtype=float64), 2 * torch.randn(CIRCLE.num_params, 100, dtype=float64)
    y, log_slope = method(x, raw)
    for turned, phase in ((x + 5 * PERIOD, 0), (x - PERIOD, 0), (x, 3 * PERIOD)):
        shifted = torch.cat([raw[:-1], raw[-1:] + phase])
        again, same = method(turned, shifted)
        assert apart(again, y).max() < 1e-9 and close(same, log_slope, 1e-9)


# Mixture of logistics: Ho et al. 2019

MIXTURE = LogisticMixture(num_components=3, max_mean=2.0, max_log_scale=0.5, max_log_ratio=WIDE)


def test_a_logistic_mixture_is_its_formula():
    raw = 2 * torch.randn(MIXTURE.num_params, dtype=float64)
    weights, means, log_scales = np.split(raw[:9].numpy(), 3)
    factor = np.array([4, 6, 8]) / 6
    weights = softmax(WIDE * np.tanh(weights / WIDE))
    means = 2.0 * np.tanh(factor * means / 2.0)
    scales = np.exp(0.5 * np.tanh(factor[::-1] * log_scales / 0.5))
    x = np.linspace(-6, 6, 101)
    z = (x[:, None] - means) / scales
    below, density = expit(z) @ weights, expit(z) * expit(-z) / scales @ weights
    shift, log_scale = raw[9].item(), TanhScale().log_scale(raw[10]).item()
    y, log_slope = MIXTURE.forward_and_log_det(torch.tensor(x)[:, None], raw[:, None])
    assert close(y[:, 0], torch.tensor(shift + np.exp(log_scale) * logit(below)), 1e-10)
    assert close(log_slope[:, 0], torch.tensor(log_scale + np.log(density / (below * (1 - below)))), 1e-10)
    back, opposite = MIXTURE.inverse_and_log_det(y, raw[:, None])
    assert close(back[:, 0], torch.tensor(x), 1e-10) and close(opposite, -log_slope, 1e-9)


@pytest.mark.parametrize("x", [-1e6, -1e3, 30.0, 1e4, 1e6])
def test_the_tails_of_a_logistic_mixture_do_not_saturate_in_float32(x):
    mixture, raw = LogisticMixture(), 5 * torch.randn(LogisticMixture().num_params, 200)
    for name in ("forward_and_log_det", "inverse_and_log_det"):
        found = getattr(mixture, name)(torch.full((200,), x), raw)
        expected = getattr(mixture, name)(torch.full((200,), x, dtype=float64), raw.double())
        for part, exact in zip(found, expected, strict=True):
            assert close(part.double(), exact, 1e-5)


def bimodal_fit(mixture, optimizer, steps, **kwargs):
    """Parameters learned from zero, and nats above the entropy, of a map that makes one normal of two."""
    generator = torch.Generator().manual_seed(3)
    sign = torch.randint(2, (2000,), generator=generator) * 2 - 1
    data = (2.0 * sign + 0.4 * torch.randn(2000, generator=generator))[:, None]
    raw = torch.zeros(mixture.num_params, 1, requires_grad=True)
    normal = torch.distributions.Normal(0.0, 1.0)
    optimizer = optimizer([raw], **kwargs)
    for _ in range(steps):
        optimizer.zero_grad()
        z, log_slope = mixture.forward_and_log_det(data, raw)
        loss = -(normal.log_prob(z) + log_slope).mean()
        loss.backward()
        optimizer.step()
    modes = torch.distributions.Normal(tensor(-2, 2), 0.4).log_prob(data.double())
    entropy = -(modes.logsumexp(-1) - math.log(2)).mean()
    return raw.detach(), loss.item() - entropy.item()


@pytest.mark.parametrize(("optimizer", "rate", "steps"), [(torch.optim.Adam, 0.05, 400), (torch.optim.SGD, 0.5, 1000)])
def test_the_components_of_a_mixture_part_from_an_equal_start(optimizer, rate, steps):
    mixture = LogisticMixture(num_components=4)
    raw, excess = bimodal_fit(mixture, optimizer, steps, lr=rate)
    _, means, _ = mixture._components(raw[:12])
    assert means.max() > 1 and means.min() < -1
    _, alone = bimodal_fit(LogisticMixture(num_components=1), optimizer, steps, lr=rate)
    assert excess < 0.1 < 0.9 < alone


# The numerical inverse


def steep(x, slope):
    """An S with a nearly flat middle, and its slope."""
    return x.pow(3) + slope * x, 3 * x.square() + slope


def stairs(x, slope):
    return torch.tanh(50 * x) + slope * x, 50 / torch.cosh(50 * x).square() + slope


@pytest.mark.parametrize("function", [steep, stairs])
@pytest.mark.parametrize("start", [-1e3, 0.0, 1e3])
def test_the_solver_finds_the_root_from_anywhere(function, start):
    root = torch.cat([tensor(-1e3, 1e3, 0, 1e-9), torch.linspace(-5, 5, 101, dtype=float64)])
    target, _ = function(root, 1e-3)
    low, high = torch.full_like(root, -1e3), torch.full_like(root, 1e3)
    found = solve_increasing(lambda x: function(x, 1e-3), target, low, high, torch.full_like(root, start), 100)
    # rounding of the target, divided by the slope
    assert ((found - root).abs() <= 1e-14 * (1 + target.abs()) / function(root, 1e-3)[1]).all()


def test_the_solver_stays_in_its_bracket():
    end = tensor(2.0, -3.0)
    assert torch.equal(solve_increasing(lambda x: steep(x, 1.0), end, end, end, end, 5), end)


def test_derivatives_of_the_root_are_those_of_the_implicit_function_theorem():
    target, slope = tensor(-2, 0.3, 4).requires_grad_(), tensor(0.1, 1, 2).requires_grad_()
    end = torch.full((3,), 10.0, dtype=float64)

    def root(target, slope):
        return solve_increasing(lambda x: steep(x, slope), target, -end, end, torch.zeros_like(end), 60)

    x = root(target, slope)
    by_target, by_slope = torch.autograd.grad(x.sum(), [target, slope])
    assert close(by_target, 1 / (3 * x**2 + slope)) and close(by_slope, -x / (3 * x**2 + slope))
    assert torch.autograd.gradcheck(root, (target, slope))


# A map for each entry

MIXED = PerFeature([SPLINE, Affine(), SPLINE, CIRCLE, MIXTURE, Shift(), Affine()])


@pytest.mark.parametrize("name", ["forward_and_log_det", "inverse_and_log_det"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_each_entry_is_moved_by_its_own_map(name, batch):
    x = torch.randn(*batch, 7, dtype=float64)
    params = torch.randn(*batch, MIXED.num_params, 7, dtype=float64)
    y, log_slope = getattr(MIXED, name)(x, params)
    for i, kind in enumerate(MIXED.maps):
        column = getattr(kind, name)(x[..., i : i + 1], params[..., : kind.num_params, i : i + 1])
        # to the last digits, which vector and scalar code of one function may give differently
        for whole, alone in zip((y, log_slope), column, strict=True):
            assert torch.allclose(whole[..., i : i + 1], alone, rtol=1e-13, atol=1e-13)


def test_rows_that_a_small_map_does_not_need_have_no_effect():
    params = torch.randn(MIXED.num_params, 7, dtype=float64, requires_grad=True)
    y, log_slope = MIXED.forward_and_log_det(torch.randn(5, 7, dtype=float64), params)
    (gradient,) = torch.autograd.grad(y.sum() + log_slope.sum(), params)
    for i, kind in enumerate(MIXED.maps):
        assert (gradient[kind.num_params :, i] == 0).all() and gradient[: kind.num_params, i].any()


def test_equal_maps_are_moved_by_one_call(monkeypatch):
    calls = []
    original = Affine.forward_and_log_det
    monkeypatch.setattr(Affine, "forward_and_log_det", lambda *args: calls.append(1) or original(*args))
    PerFeature([Affine(), Shift(), Affine()]).forward_and_log_det(torch.zeros(3), torch.zeros(2, 3))
    assert len(calls) == 1


def test_maps_follow_their_entries():
    assert MIXED.restricted_to((3, 1)) == PerFeature([CIRCLE, Affine()])
    assert MIXED.period == (None, None, None, PERIOD, None, None, None)
    assert SPLINE.restricted_to((3, 1)) is SPLINE and SPLINE.period is None and CIRCLE.period == PERIOD


@pytest.mark.parametrize(
    ("invalid", "error", "message"),
    [
        (lambda: PerFeature([]), ValueError, "PerFeature: maps"),
        (lambda: PerFeature([Shift(), torch.exp]), TypeError, "PerFeature: maps.*exp"),
        (lambda: PerFeature([PerFeature([Shift()])]), TypeError, "PerFeature: maps.*single"),
        (lambda: MIXED.restricted_to((0, 7)), ValueError, "PerFeature: .*7 entries.*entry 7"),
        (lambda: MIXED.forward_and_log_det(torch.zeros(4, 3), torch.zeros(4, 20, 3)), ValueError, r"7 .*\(4, 3\)"),
        (lambda: LogisticMixture(scale=2.0), TypeError, "LogisticMixture: scale must be a Scale .* got 2.0"),
    ],
)
def test_an_invalid_use_of_maps_is_named(invalid, error, message):
    with pytest.raises(error, match=message):
        invalid()
