"""Gradients of the reverse divergence."""

import math

import pytest
import torch
from densities import banana, half_space, standard_normal

from pyro_coupling import flows
from pyro_coupling.training import ESTIMATORS, reverse_kl_backward
from pyro_coupling.training.objectives import _covering_weights

every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


@pytest.fixture
def flow():
    """Some way from everything."""
    flow = flows.real_nvp(2, num_layers=2, hidden_dims=(4,)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


def gradient(flow, target, z, estimator, **kwargs):
    flow.zero_grad()
    log_weights = reverse_kl_backward(flow, target, z, estimator, **kwargs)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in flow.parameters()]
    return torch.cat([part.flatten() for part in parts]), log_weights


def noise(n, dim=2):
    return torch.randn(n, dim, dtype=torch.float64)


def test_total_is_the_derivative_of_the_monte_carlo_divergence(flow):
    z, target = noise(50), banana()
    x, log_det = flow.forward_and_log_det(z)
    log_q = -0.5 * z.square().sum(-1) - math.log(2 * math.pi) - log_det
    expected = torch.autograd.grad((log_q - target.log_prob(x)).mean(), list(flow.parameters()), allow_unused=True)
    expected = [torch.zeros_like(p) if g is None else g for p, g in zip(flow.parameters(), expected, strict=True)]
    found, log_weights = gradient(flow, target, z, "total")
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in expected]))
    torch.testing.assert_close(log_weights, (target.log_prob(x) - log_q).detach())


def test_path_and_stl_are_one_gradient(flow):
    z = noise(50)
    (path, weights), (stl, others) = (gradient(flow, banana(), z, name) for name in ("path", "stl"))
    torch.testing.assert_close(path, stl)
    torch.testing.assert_close(weights, others)


def test_all_estimators_agree_in_expectation(flow):
    differences = []
    for _ in range(20):
        z = noise(300)
        differences.append(gradient(flow, banana(), z, "path")[0] - gradient(flow, banana(), z, "total")[0])
    differences = torch.stack(differences)
    error = differences.std(0) / math.sqrt(len(differences))
    # the mean of 20 batches for each of some 60 parameters: 6 standard errors (Student's t with 19 degrees)
    assert (differences.mean(0).abs() <= 6 * error + 1e-12).all()
    assert (error > 1e-6).any()


@every_estimator
def test_samples_that_are_not_finite_are_left_out(flow, estimator):
    target, z = half_space(2), noise(200)
    found, log_weights = gradient(flow, target, z, estimator)
    outside = flow.forward_and_log_det(z)[0][:, 0] >= 1
    assert 0 < int(outside.sum()) < 200
    assert torch.equal(log_weights == -torch.inf, outside)
    # what is left is the gradient of the samples inside alone
    torch.testing.assert_close(found, gradient(flow, target, z[~outside], estimator)[0])


@every_estimator
def test_where_no_sample_is_finite_the_gradient_is_zero(flow, estimator):
    far = noise(20) + torch.tensor([50.0, 0.0])
    inside = flow.forward_and_log_det(far)[0][:, 0] < 1
    found, log_weights = gradient(flow, half_space(2), far[~inside], estimator)
    assert (found == 0).all()
    assert (log_weights == -torch.inf).all()


@pytest.mark.parametrize("estimator", ["path", "stl"])
@pytest.mark.parametrize(("covering", "balanced"), [(False, False), (True, False), (True, True)])
def test_path_gradients_vanish_where_flow_and_target_agree(estimator, covering, balanced):
    flow = flows.real_nvp(3, num_layers=2, hidden_dims=(4,)).double()  # starts as the identity
    settings = {"covering": covering, "balanced": balanced}
    found, log_weights = gradient(flow, standard_normal(3), noise(64, 3), estimator, **settings)
    assert found.abs().max() < 1e-12
    assert log_weights.abs().max() < 1e-12


def test_covering_is_the_plain_gradient_where_weights_are_even(flow):
    # samples of the flow against its own density: all weights are one
    class Itself:
        dim, dtype, device, chunk_size = 2, torch.float64, torch.device("cpu"), 1000

        def log_prob(self, x):
            z, log_det = flow.inverse_and_log_det(x)
            return log_det - 0.5 * z.square().sum(-1) - math.log(2 * math.pi)

    z = noise(50)
    plain, covering = (gradient(flow, Itself(), z, "path", covering=c)[0] for c in (False, True))
    torch.testing.assert_close(plain, covering, atol=1e-12, rtol=1e-6)


def test_covering_moves_the_flow_over_the_tails():
    # a flow of half the target's scale: the weighted gradient of log-scale is the steeper one
    flow = flows.nice(1, num_layers=1, hidden_dims=(4,)).double()
    with torch.no_grad():
        flow[-1].log_diag.fill_(math.log(0.5))
    z = noise(4000, 1)

    def slope(covering):
        gradient(flow, standard_normal(1), z, "path", covering=covering)
        return flow[-1].log_diag.grad.item()

    assert slope(True) < slope(False) < 0


@pytest.mark.parametrize("estimator", ["path", "stl"])
def test_balanced_adds_the_gradient_of_the_density_at_fixed_samples(flow, estimator):
    z, target = noise(50), banana()
    plain, log_weights = gradient(flow, target, z, estimator, covering=True)
    found, _ = gradient(flow, target, z, estimator, covering=True, balanced=True)
    back, log_det = flow.inverse_and_log_det(flow(z).detach())
    log_q = log_det - 0.5 * back.square().sum(-1)
    excess = _covering_weights(log_weights) - 1 / 50
    expected = torch.autograd.grad(-(excess * log_q).sum(), list(flow.parameters()))
    torch.testing.assert_close(found - plain, torch.cat([g.flatten() for g in expected]))


def test_balanced_sees_modes_of_the_right_shape_but_the_wrong_probability():
    flow = flows.neural_spline(1, num_layers=2).double()

    class Heavier:
        """The flow's own density, but twice as much on one side: the score is the same everywhere."""

        dim, dtype, device, chunk_size = 1, torch.float64, torch.device("cpu"), 1000

        def log_prob(self, x):
            z, log_det = flow.inverse_and_log_det(x)
            return (log_det - 0.5 * z.square()[:, 0]) + math.log(2) * (x[:, 0] > 0)

    z = noise(1000, 1)
    assert gradient(flow, Heavier(), z, "path", covering=True)[0].abs().max() < 1e-12
    assert gradient(flow, Heavier(), z, "path", covering=True, balanced=True)[0].norm() > 0.01
    with torch.no_grad():
        before = flow(z).mean()
        for parameter in flow.parameters():
            parameter.sub_(parameter.grad)
        assert flow(z).mean() > before  # downhill is towards the heavier side


def test_a_failed_sample_takes_no_covering_weight_however_low_the_density():
    log_weights = torch.tensor([-13405.0, -13405.5, -torch.inf, -13404.8], dtype=torch.float64)
    weights = _covering_weights(log_weights)
    assert weights[2] == 0
    assert weights.sum() == pytest.approx(1.0)
    torch.testing.assert_close(weights[[0, 1, 3]], torch.softmax(log_weights[[0, 1, 3]], 0))


def test_covering_weights_are_even_where_importance_weights_are_hopeless():
    weights = _covering_weights(torch.tensor([0.0, -500.0, -900.0, -torch.inf], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64) / 3)
