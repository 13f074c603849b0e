"""A recorded step is the ordinary one, and where it is not, it is not used."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_coupling import flows
from pyro_coupling.targets import PyroTarget
from pyro_coupling.training import ESTIMATORS, steps
from pyro_coupling.training.recording import record
from pyro_coupling.training.steps import GradientStep

Y = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
#: a step that may be replayed, and is not one at which replays are checked
LATE = 101


def hierarchical(y):
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_ones(())))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def mixture(y):
    weight = pyro.sample("weight", dist.Beta(y.new_ones(()), 1.0))
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 2.0))
    with pyro.plate("data", len(y)):
        high = pyro.sample("high", dist.Bernoulli(weight), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu + high, 1.0), obs=y)


def flow_of(dim, recipe=flows.real_nvp):
    torch.manual_seed(0)
    flow = recipe(dim, 3, (16, 16)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def both_ways(flow, target, estimator="path", covering=False, scale=1.0, balanced=False):
    """Log weights and gradients of an ordinary and of a replayed step, and the step."""
    step = GradientStep(flow, target, estimator, balanced=balanced)
    z = torch.randn(50, target.dim, dtype=torch.float64)
    found = []
    step(z, covering, 0)
    step(z, covering, LATE)  # records
    for number in (0, LATE):
        maker = GradientStep(flow, target, estimator, balanced=balanced) if number == 0 else step
        log_weights = maker(scale * z, covering, number)
        found.append((log_weights, {name: p.grad.clone() for name, p in flow.named_parameters() if p.grad is not None}))
    return found, step


@pytest.mark.parametrize(
    ("estimator", "covering", "balanced", "recipe", "model"),
    [
        *((estimator, False, False, flows.real_nvp, hierarchical) for estimator in ESTIMATORS),
        ("path", True, False, flows.neural_spline, hierarchical),
        ("path", True, True, flows.neural_spline, hierarchical),
        ("stl", True, False, flows.nice, hierarchical),
        ("path", True, False, flows.real_nvp, mixture),
    ],
)
def test_a_replayed_step_is_the_ordinary_one(estimator, covering, balanced, recipe, model):
    target = PyroTarget(model, (Y,))
    ((log_weights, gradients), (replayed, found)), step = both_ways(
        flow_of(target.dim, recipe), target, estimator, covering, scale=1.3, balanced=balanced
    )
    assert step.mode == "recorded", step.reason
    torch.testing.assert_close(replayed, log_weights, rtol=1e-10, atol=1e-10)
    assert found.keys() == gradients.keys()
    for name in found:
        torch.testing.assert_close(found[name], gradients[name], rtol=1e-8, atol=1e-10)


def test_the_recording_follows_the_parameters():
    target = PyroTarget(hierarchical, (Y,))
    flow = flow_of(target.dim)
    step = GradientStep(flow, target, "path")
    z = torch.randn(20, target.dim, dtype=torch.float64)
    step(z, False, LATE)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.5)
    replayed = step(z, False, LATE)
    torch.testing.assert_close(replayed, GradientStep(flow, target, "path")(z, False, 0))


def test_samples_outside_the_support_are_left_out_as_in_an_ordinary_step():
    def bounded(y):
        x = pyro.sample("x", dist.Normal(y.new_zeros(()), 1.0))
        pyro.factor("edge", torch.where(x > 0.5, -torch.inf, 0.0))
        pyro.sample("other", dist.Normal(y.new_zeros(()), 1.0))

    target = PyroTarget(bounded, (Y,))
    ((log_weights, gradients), (replayed, found)), step = both_ways(flow_of(2), target)
    assert step.mode == "recorded", step.reason
    assert torch.equal(replayed.isfinite(), log_weights.isfinite())
    assert not replayed.isfinite().all()
    for name in found:
        torch.testing.assert_close(found[name], gradients[name])


def test_a_model_of_very_many_operations_is_not_recorded():
    target = PyroTarget(hierarchical, (Y,))
    target.num_operations = 10**6
    step = GradientStep(flow_of(target.dim), target, "path")
    step(torch.randn(8, target.dim, dtype=torch.float64), False, LATE)
    assert step.mode == "ordinary" and "1000000 operations" in step.reason


def test_a_model_that_branches_on_a_latent_is_not_recorded():
    def branching(y):
        x = pyro.sample("x", dist.Normal(y.new_zeros(()), 1.0))
        pyro.factor("f", x if float(x.sum()) > 0 else -x)
        pyro.sample("other", dist.Normal(y.new_zeros(()), 1.0))

    target = PyroTarget(branching, (Y,))
    step = GradientStep(flow_of(2), target, "path")
    step(torch.randn(8, 2, dtype=torch.float64), False, LATE)
    assert step.mode == "ordinary"
    assert step.reason


class Frozen(torch.autograd.Function):
    """Leaves torch for numpy, so that a recording takes its result for a constant."""

    @staticmethod
    def forward(ctx, x):
        return torch.as_tensor(x.detach().numpy() * 2)

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_a_model_that_leaves_torch_is_found_out():
    def with_numpy(y):
        x = pyro.sample("x", dist.Normal(y.new_zeros(()), 1.0))
        pyro.factor("f", -Frozen.apply(x).square())
        pyro.sample("other", dist.Normal(y.new_zeros(()), 1.0))

    step = GradientStep(flow_of(2), PyroTarget(with_numpy, (Y,)), "path")
    with pytest.warns(UserWarning, match="without the recording"):
        step(torch.randn(8, 2, dtype=torch.float64), False, LATE)
    assert step.mode == "ordinary"


def test_a_model_that_changes_later_is_found_out_at_the_next_check():
    state = {"scale": 1.0}

    def changing(y):
        pyro.sample("x", dist.Normal(y.new_zeros(2), state["scale"]).to_event(1))

    target = PyroTarget(changing, (Y,))
    step = GradientStep(flow_of(2), target, "path")
    z = torch.randn(8, 2, dtype=torch.float64)
    step(z, False, LATE)
    assert step.mode == "recorded"
    state["scale"] = 2.0
    with pytest.warns(UserWarning, match="without the recording"):
        log_weights = step(z, False, 2000)
    torch.testing.assert_close(log_weights, GradientStep(step.flow, target, "path")(z, False, 0))


def test_a_factorisation_that_fails_for_one_sample_costs_that_sample_only():
    def with_cholesky(y):
        x = pyro.sample("x", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
        matrix = torch.diag_embed(5.0 - x.abs())
        pyro.factor("f", -torch.linalg.cholesky(matrix).diagonal(dim1=-2, dim2=-1).sum(-1))

    target = PyroTarget(with_cholesky, (Y,))
    flow = flow_of(2)
    step = GradientStep(flow, target, "path")
    z = 0.1 * torch.randn(8, 2, dtype=torch.float64)
    step(z, False, LATE)
    assert step.mode == "recorded", step.reason
    far = z.clone()
    far[3] = -20.0
    log_weights = step(far, False, LATE)
    assert log_weights.isfinite().tolist() == [i != 3 for i in range(8)]
    assert step.mode == "recorded"
    for _ in range(20):
        step(far, False, LATE)
    assert step.mode == "ordinary" and "fail" in step.reason


@pytest.mark.slow
def test_a_compiled_step_is_the_ordinary_one():
    target = PyroTarget(hierarchical, (Y,))
    flow = flow_of(target.dim)
    step = GradientStep(flow, target, "path", compile=True)
    z = torch.randn(20, target.dim, dtype=torch.float64)
    found = step(z, True, LATE)
    gradients = {name: p.grad.clone() for name, p in flow.named_parameters()}
    assert step.mode == "compiled"
    torch.testing.assert_close(found, GradientStep(flow, target, "path")(z, True, 0), rtol=1e-8, atol=1e-8)
    for name, parameter in flow.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-6, atol=1e-8)


def test_where_there_is_no_compiler_a_step_is_recorded_and_a_warning_says_so(monkeypatch):
    def without_compiler(function, inputs, compile):
        if compile:
            raise RuntimeError("no C++ compiler")
        return record(function, inputs)

    monkeypatch.setattr(steps, "record", without_compiler)
    target = PyroTarget(hierarchical, (Y,))
    step = GradientStep(flow_of(target.dim), target, "path", compile=True)
    with pytest.warns(UserWarning, match=r"can't be compiled: RuntimeError: no C\+\+ compiler"):
        step(torch.randn(20, target.dim, dtype=torch.float64), False, LATE)
    assert step.mode == "recorded"
