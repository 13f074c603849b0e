"""Elementwise maps against the formulas of their papers, and where floating point is hard on them."""

import math

import numpy as np
import pytest
import torch
from harness import ELEMENTWISE
from hypothesis import given
from hypothesis import strategies as st

from pyro_coupling.transforms import (
    Affine,
    AsymmetricClampScale,
    ClampScale,
    RationalQuadraticSpline,
    Shift,
    SigmoidScale,
    SoftplusScale,
    TanhScale,
)

SCALES = {
    "tanh": TanhScale(1.5),
    "asymmetric": AsymmetricClampScale(-2.0, 0.1),
    "clamp": ClampScale(-5.0, 3.0),
    "sigmoid": SigmoidScale(0.1, 4.0),
    "softplus": SoftplusScale(1e-3),
}
scales = pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
maps = pytest.mark.parametrize("elementwise", ELEMENTWISE.values(), ids=ELEMENTWISE)
float64 = torch.float64


def tensor(*numbers):
    return torch.tensor(numbers, dtype=float64)


def close(found, expected, tolerance=1e-12):
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


@maps
def test_zero_parameters_are_the_identity(elementwise):
    x = torch.linspace(-4, 4, 101, dtype=float64)
    for method in (elementwise.forward_and_log_det, elementwise.inverse_and_log_det):
        y, log_slope = method(x, torch.zeros(elementwise.num_params, 101, dtype=float64))
        assert close(y, x) and close(log_slope, torch.zeros(101, dtype=float64))


@maps
@given(st.lists(st.floats(-1e4, 1e4), min_size=11, max_size=11), st.floats(-1e6, 1e6))
def test_any_parameters_give_finite_numbers_in_float32(elementwise, raw, x):
    params = torch.tensor(raw[: elementwise.num_params])[:, None].requires_grad_()
    value = torch.tensor([x], requires_grad=True)
    for method in (elementwise.forward_and_log_det, elementwise.inverse_and_log_det):
        y, log_slope = method(value, params)
        gradients = torch.autograd.grad(y.sum() + log_slope.sum(), [value, params], allow_unused=True)
        assert all(part.isfinite().all() for part in (y, log_slope, *gradients) if part is not None)


@maps
@pytest.mark.parametrize("x", [-1e18, 1e18])
def test_gradients_are_finite_far_out(elementwise, x):
    params = torch.randn(elementwise.num_params, 1, requires_grad=True)
    value = torch.tensor([x], requires_grad=True)
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
