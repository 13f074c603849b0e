"""Pareto smoothing against ArviZ, effective sample size and evidence against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_coupling.diagnostics import clip_largest, log_evidence, pareto_smooth, relative_ess, resample

az = pytest.importorskip("arviz")


def normal_weights(n, width, seed=0):
    """Log weights of N(0, 1) against N(0, width): their tail has the shape 1 - width^2, if that is positive."""
    x = width * np.random.default_rng(seed).standard_normal(n)
    return -0.5 * x**2 + 0.5 * (x / width) ** 2


def pareto_weights(n, shape, seed=0):
    return -shape * np.log(np.random.default_rng(seed).uniform(size=n))


def with_zeros(log_weights, every):
    log_weights = log_weights.copy()
    log_weights[::every] = -np.inf
    return log_weights


TAILS = {
    "light": normal_weights(4000, 1.3),
    "heavy": normal_weights(4000, 0.6),
    "normal": np.random.default_rng(0).standard_normal(1000),
    "pareto-0.3": pareto_weights(4000, 0.3),
    "pareto-0.7": pareto_weights(4000, 0.7),
    "pareto-1.5": pareto_weights(4000, 1.5),
    "uniform": np.log(np.random.default_rng(0).uniform(size=500)),
    "shifted": pareto_weights(1000, 0.5) - 5000.0,
    "huge-range": 300 * np.random.default_rng(0).standard_normal(1000),
    "one-large": np.append(np.zeros(999), 50.0),
    "n=25": pareto_weights(25, 0.5),
    "n=30": np.random.default_rng(0).standard_normal(30),
    "n=101": np.random.default_rng(1).standard_normal(101),
    "some-zero": with_zeros(pareto_weights(1000, 0.5), 7),
    "most-zero": with_zeros(with_zeros(pareto_weights(1000, 0.5), 2), 3),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("log_weights", TAILS.values(), ids=TAILS)
def test_pareto_smoothing_is_arvizs(log_weights):
    smoothed, khat = pareto_smooth(torch.as_tensor(log_weights))
    expected, expected_khat = az.psislw(log_weights.copy())
    assert khat == pytest.approx(float(expected_khat), abs=1e-6)
    np.testing.assert_allclose(smoothed.exp().numpy(), np.exp(expected), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 10, 100, 1000])
def test_constant_weights_stay_constant(n):
    smoothed, _ = pareto_smooth(torch.full((n,), -7.0).double())
    torch.testing.assert_close(smoothed, torch.full((n,), -math.log(n)).double())


@pytest.mark.parametrize("n", range(1, 25))
def test_too_few_weights_are_normalised_and_not_smoothed(n):
    log_weights = torch.randn(n).double()
    smoothed, khat = pareto_smooth(log_weights)
    if math.ceil(min(0.2 * n, 3 * math.sqrt(n))) < 5:
        assert khat == math.inf
        torch.testing.assert_close(smoothed, log_weights - log_weights.logsumexp(0))
    assert smoothed.exp().sum().item() == pytest.approx(1.0)


def test_zero_weights_stay_zero():
    log_weights = torch.as_tensor(TAILS["some-zero"])
    smoothed, _ = pareto_smooth(log_weights)
    assert torch.equal(smoothed == -torch.inf, log_weights == -torch.inf)


def test_weights_that_are_all_zero_are_of_no_use():
    smoothed, khat = pareto_smooth(torch.full((10,), -torch.inf))
    assert khat == math.inf
    assert smoothed.exp().sum().item() == pytest.approx(1.0)
    assert relative_ess(torch.full((10,), -torch.inf)) == 0.0
    assert log_evidence(torch.full((10,), -torch.inf)) == (-math.inf, math.inf)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.8])
def test_khat_estimates_the_shape(shape):
    khat = pareto_smooth(torch.as_tensor(pareto_weights(20_000, shape, seed=3)))[1]
    # tail of 3 sqrt(20 000) = 424 weights: standard error (1 + shape) / sqrt(424), and the prior's pull of 2 %
    assert khat == pytest.approx(shape, abs=4 * (1 + shape) / math.sqrt(424) + 0.02)


finite_weights = st.lists(st.floats(-700, 700), min_size=1, max_size=200)


@given(finite_weights)
def test_smoothed_weights_are_a_distribution_in_the_same_order(values):
    log_weights = torch.tensor(values, dtype=torch.float64)
    smoothed, khat = pareto_smooth(log_weights)
    assert smoothed.exp().sum().item() == pytest.approx(1.0)
    assert not math.isnan(khat)
    by_raw = smoothed[log_weights.sort(stable=True).indices]
    assert (by_raw.diff() >= -1e-9).all()


@given(finite_weights, st.floats(-1e4, 1e4))
def test_a_common_factor_changes_only_the_evidence(values, shift):
    log_weights = torch.tensor(values, dtype=torch.float64)
    assert relative_ess(log_weights + shift) == pytest.approx(relative_ess(log_weights), rel=1e-6)
    assert log_evidence(log_weights + shift).value == pytest.approx(log_evidence(log_weights).value + shift, abs=1e-6)


@given(finite_weights)
def test_relative_ess_is_between_one_draw_and_all(values):
    assert 1 / len(values) - 1e-9 <= relative_ess(torch.tensor(values, dtype=torch.float64)) <= 1.0


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1, 1, 1, 1], 1.0), ([1, 0, 0, 0], 0.25), ([3, 1], 16 / 20), ([2, 2, 0, 0], 0.5)],
)
def test_relative_ess_by_hand(weights, expected):
    assert relative_ess(torch.tensor(weights).double().log()) == pytest.approx(expected)


@pytest.mark.parametrize("log_z", [-1000.0, 0.0, 3.0])
def test_evidence_of_a_gaussian(log_z):
    q, p = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.3, 0.9)
    found, errors = [], []
    for _ in range(200):
        x = q.sample((500,)).double()
        value, error = log_evidence(log_z + p.log_prob(x) - q.log_prob(x))
        found.append(value)
        errors.append(error)
    found = np.array(found)
    # the mean of 200 runs, by their spread; and the error that each run claims against that spread (200 runs: 5 %)
    assert found.mean() == pytest.approx(log_z, abs=5 * found.std() / math.sqrt(200) + found.std() ** 2)
    assert np.mean(errors) == pytest.approx(found.std(), rel=0.25)


def test_evidence_of_one_draw_has_no_error_bar():
    assert log_evidence(torch.tensor([2.0])) == (2.0, math.inf)


def test_zero_weights_count_as_draws():
    assert log_evidence(torch.tensor([0.0, -torch.inf])).value == pytest.approx(-math.log(2))


@pytest.mark.parametrize("function", [relative_ess, log_evidence, pareto_smooth])
@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (torch.zeros(0), r"one-dimensional and not empty, got shape \(0,\)"),
        (torch.zeros(2, 2), r"one-dimensional and not empty, got shape \(2, 2\)"),
        (torch.tensor([0.0, math.nan]), r"must not hold NaN or \+inf"),
        (torch.tensor([0.0, math.inf]), r"must not hold NaN or \+inf"),
    ],
)
def test_weights_that_cannot_be(function, log_weights, message):
    with pytest.raises(ValueError, match=message):
        function(log_weights)


def test_results_hold_no_graph_and_keep_the_dtype():
    log_weights = torch.randn(100, requires_grad=True)
    smoothed, khat = pareto_smooth(log_weights)
    assert smoothed.dtype == torch.float32
    assert not smoothed.requires_grad
    assert all(isinstance(v, float) for v in (khat, relative_ess(log_weights), *log_evidence(log_weights)))


def test_resampling_draws_in_proportion_to_the_weights():
    weights = torch.tensor([0.1, 0.6, 0.0, 0.3])
    chosen = resample(weights.log(), 1000, torch.Generator().manual_seed(0))
    counts = torch.bincount(chosen, minlength=4)
    assert ((counts - 1000 * weights).abs() <= 1).all()  # systematic: off by less than one
    with pytest.raises(ValueError, match="no finite entry"):
        resample(torch.full((3,), -math.inf), 5, torch.Generator())


def test_clipped_weights_are_at_most_the_least_of_those_that_were_clipped():
    spiky = torch.zeros(10_000)
    spiky[0], spiky[1], spiky[2] = 20.0, 3.0, -math.inf
    clipped = clip_largest(spiky, 2e-4)
    assert clipped[0] == clipped[1] == 3.0 and clipped[2] == -math.inf and torch.equal(clipped[3:], spiky[3:])
    nothing = torch.full((3,), -math.inf)
    assert torch.equal(clip_largest(nothing, 0.1), nothing)
