"""Warm starts find Gaussians of any scale, and more than one mode; the optimisers in lockstep are SciPy's."""

import threading

import numpy as np
import pytest
import torch
from densities import Density, funnel, gaussian, half_space, standard_normal, two_modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from pyro_coupling.training import warm_start
from pyro_coupling.training.lockstep import minimize_in_lockstep


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def starts(target, method="pathfinder", **kwargs):
    return warm_start(target, target.origin, method, generator=generator(), **kwargs)


def scales_over_eight_decades():
    scales = torch.tensor([1e-3, 1.0, 30.0, 1e5], dtype=torch.float64)
    return gaussian(torch.tensor([0.5, -1.0, 200.0, -3e5], dtype=torch.float64), torch.diag(scales))


def nearly_collinear():
    correlation = 0.99999
    covariance = torch.eye(3, dtype=torch.float64)
    covariance[0, 1] = covariance[1, 0] = correlation
    return gaussian(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), torch.linalg.cholesky(covariance))


def both():
    base, scales = nearly_collinear(), torch.tensor([1e4, 1e-3, 1.0], dtype=torch.float64)
    return Density(lambda x: base.log_prob(x / scales) - scales.log().sum(), 3)


@pytest.mark.parametrize("method", ["pathfinder", "laplace"])
@pytest.mark.parametrize("make", [scales_over_eight_decades, nearly_collinear, both])
def test_gaussians_are_found(make, method):
    target = make()
    best = starts(target, method)[0]
    # normalised: log Z = 0. Of many candidates the luckiest of a divergence of 0.02 may win: its log weights have a
    # standard deviation of 0.2, their mean over 300 draws one of 0.012
    assert -0.04 < best.elbo < 0.04
    x, log_q = best.sample(2000, generator(1))
    torch.testing.assert_close(log_q, best.log_prob(x))
    assert (target.log_prob(x) - log_q).mean().item() == pytest.approx(0.0, abs=0.04)


@settings(max_examples=8)
@given(st.floats(-3, 5), st.floats(-3, 5), st.floats(-0.99, 0.99))
def test_any_gaussian_of_two_dimensions_is_found(first, second, correlation):
    scales = torch.tensor([10.0**first, 10.0**second], dtype=torch.float64)
    tril = torch.linalg.cholesky(torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64))
    target = gaussian(scales, scales.unsqueeze(-1) * tril)
    assert abs(starts(target, "laplace", num_starts=2)[0].elbo) < 0.02


def test_in_float32_too():
    best = starts(standard_normal(4, torch.float32))[0]
    assert best.loc.dtype == best.scale_tril.dtype == torch.float32
    assert abs(best.elbo) < 0.01


def test_pathfinder_beats_laplace_on_a_funnel():
    target = funnel(5)
    pathfinder = starts(target)[0].elbo
    laplace = starts(target, "laplace")[0].elbo
    assert -3 < pathfinder <= 0.3  # 0 is exact; 300 draws of a difference of some nats
    assert pathfinder >= laplace - 0.3


def test_separate_modes_are_told_apart():
    found = starts(two_modes(2, gap=6.0), num_starts=8)
    assert {round(s.loc[0].item()) for s in found[:2]} == {-6, 6}
    assert [s.elbo for s in found] == sorted([s.elbo for s in found], reverse=True)
    # each is one of two equal halves: log 1/2
    assert found[0].elbo == pytest.approx(-np.log(2), abs=0.1)


def test_one_mode_is_one_start():
    assert len(starts(standard_normal(3), num_starts=8)) == 1


def test_init_keeps_the_initial_point():
    (start,) = warm_start(standard_normal(2), torch.ones(2).double(), "init")
    assert start.source == "init"
    assert torch.equal(start.loc, torch.ones(2).double())
    assert torch.equal(start.scale_tril, 0.1 * torch.eye(2).double())


@pytest.mark.parametrize("method", ["pathfinder", "laplace"])
def test_a_region_that_is_not_finite_is_avoided(method):
    best = starts(half_space(3, edge=2.0), method)[0]
    assert best.elbo == pytest.approx(0.0, abs=0.05)  # of the draws inside
    assert best.loc[0] < 2


@pytest.mark.parametrize("value", [-torch.inf, torch.nan, 0.0])
@pytest.mark.parametrize("method", ["pathfinder", "laplace"])
def test_a_hopeless_target_gives_a_start_and_no_exception(value, method):
    target = Density(lambda x: 0 * x.sum(-1) + value, 2)
    for start in starts(target, method, num_starts=3):
        assert start.loc.isfinite().all()
        assert start.scale_tril.isfinite().all()


def test_a_huge_density_is_no_exception():
    target = Density(lambda x: -1e200 * x.square().sum(-1) ** 2, 2)
    assert starts(target, num_starts=3)[0].loc.isfinite().all()


def test_time_is_kept():
    slow = standard_normal(30)
    (start, *_) = starts(slow, max_seconds=0.0)
    assert start.loc.isfinite().all()


def test_the_same_generator_gives_the_same_starts():
    for a, b in zip(starts(two_modes(3, 4.0)), starts(two_modes(3, 4.0)), strict=True):
        assert torch.equal(a.loc, b.loc)
        assert torch.equal(a.scale_tril, b.scale_tril)
        assert a.elbo == b.elbo


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"warm_start must be one of .*got 'map'"):
        starts(standard_normal(1), "map")


# Optimisers in lockstep


def rosenbrock(x):
    """Row by row, so that a batch is bit for bit its rows."""
    values = [(optimize.rosen(row), optimize.rosen_der(row)) for row in x]
    return np.array([v for v, _ in values]), np.stack([g for _, g in values])


POINTS = np.array([[-1.5, 2.0, 0.3], [0.0, 0.0, 0.0], [3.0, -2.0, 1.0], [1.0, 1.0, 1.0]])
OPTIONS = {"maxcor": 20, "maxiter": 500, "maxfun": 500, "ftol": 1e-13, "gtol": 1e-8}


def test_lockstep_is_scipy_alone():
    together = minimize_in_lockstep(rosenbrock, POINTS, 500)
    for path, start in zip(together, POINTS, strict=True):
        iterates = [start]
        alone = optimize.minimize(
            lambda x: (optimize.rosen(x), optimize.rosen_der(x)), start, jac=True, method="L-BFGS-B",
            callback=lambda x: iterates.append(x.copy()), options=OPTIONS,  # noqa: B023, used at once
        )  # fmt: skip
        assert np.array_equal(path.points[-1], alone.x)
        assert np.array_equal(np.stack(path.points), np.stack(iterates))
        assert all(np.array_equal(g, optimize.rosen_der(p)) for p, g in zip(path.points, path.gradients, strict=True))


def test_lockstep_asks_for_all_values_at_once():
    sizes = []

    def counted(x):
        sizes.append(len(x))
        return rosenbrock(x)

    minimize_in_lockstep(counted, POINTS, 500)
    assert sizes[0] == 4
    assert sizes == sorted(sizes, reverse=True)


def test_lockstep_keeps_to_its_budget():
    calls = []
    paths = minimize_in_lockstep(lambda x: calls.append(1) or rosenbrock(x), POINTS, 7)
    assert len(calls) == 7
    assert all(len(path.points) >= 1 for path in paths)
    calls.clear()
    minimize_in_lockstep(lambda x: calls.append(1) or rosenbrock(x), POINTS, 500, out_of_time=lambda: len(calls) >= 3)
    assert len(calls) == 3


def test_a_start_where_the_function_is_infinite_spoils_no_other():
    def partly(x):
        values, gradients = rosenbrock(x)
        outside = x[:, 0] > 2
        return np.where(outside, np.inf, values), np.where(outside[:, None], 0.0, gradients)

    paths = minimize_in_lockstep(partly, POINTS, 500)
    assert not paths[2].points
    np.testing.assert_allclose(paths[0].points[-1], 1.0, atol=1e-4)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_comes_out_and_leaves_no_thread(error):
    def failing(x):
        raise error

    before = threading.active_count()
    with pytest.raises(error):
        minimize_in_lockstep(failing, POINTS, 500)
    assert threading.active_count() == before
