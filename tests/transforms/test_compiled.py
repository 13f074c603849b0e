"""A compiled flow gives what the ordinary one gives, or runs as the ordinary one and says so."""

import copy
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_coupling import AutoCouplingFlow, flows, load, save
from pyro_coupling.nn import MLP
from pyro_coupling.targets import PyroTarget
from pyro_coupling.training import ESTIMATORS
from pyro_coupling.training.objectives import reverse_kl_backward
from pyro_coupling.training.steps import GradientStep
from pyro_coupling.transforms import Affine, Chain, Coupling, DiagonalAffine, Permutation, compiled

BOTH = ("forward_and_log_det", "inverse_and_log_det")
RECIPES = {
    "nice": lambda **k: flows.nice(4, 2, (8,), **k),
    "real_nvp": lambda **k: flows.real_nvp(4, 2, (8,), **k),
    "neural_spline": lambda **k: flows.neural_spline(4, 2, (8,), num_bins=4, **k),
    "circular_spline": lambda **k: flows.circular_spline(4, 2, (8,), num_bins=4, **k),
    "real_nvp_image": lambda **k: flows.real_nvp_image((1, 4, 4), 2, 4, 1, **k),
    "glow": lambda **k: flows.glow((1, 4, 4), 2, 1, 4, **k),
    "wave_glow": lambda **k: flows.wave_glow(32, 2, 4, num_dilations=2, **k),
}


torch_compile = torch.compile


@pytest.fixture(autouse=True)
def uncompiled(request, monkeypatch):
    """A compiler that does nothing: the true one takes a minute."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(torch, "compile", lambda function, **settings: function)


@pytest.fixture
def traced(uncompiled, monkeypatch):
    """A compiler that traces forward and backward, and makes no code."""

    def trace(function, fullgraph, dynamic, options):
        return torch_compile(function, fullgraph=fullgraph, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", trace)


def built(recipe="neural_spline", compile=True, **settings):
    torch.manual_seed(0)
    flow = RECIPES[recipe](compile=compile, **settings).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def pair(recipe="neural_spline", **settings):
    """A compiled flow and the ordinary one of the same parameters."""
    flow, ordinary = built(recipe, True, **settings), built(recipe, False, **settings)
    return flow, ordinary


def inputs(flow, batch=(5,)):
    return torch.randn(*batch, *flow.event_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(flow, method, x, context=None):
    x = x.clone().requires_grad_()
    y, log_det = getattr(flow, method)(x, context)
    found = torch.autograd.grad(y.sin().sum() + log_det.square().sum(), [x, *flow.parameters()], allow_unused=True)
    return [y, log_det, *(g for g in found if g is not None)]


def close(found, expected, tolerance=1e-9):
    return len(found) == len(expected) and all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(found, expected, strict=True)
    )


def functions(flow):
    return len(flow._compiled._functions)


def normal():
    pyro.sample("x", dist.Normal(torch.zeros(4, dtype=torch.float64), 2.0).to_event(1))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("method", BOTH)
def test_values_and_gradients_are_those_of_the_ordinary_flow(recipe, method):
    flow, ordinary = pair(recipe)
    x = inputs(flow)
    expected = gradients(ordinary, method, x)
    for _ in range(3):
        assert close(gradients(flow, method, x), expected)
    assert functions(flow) == 1


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("method", BOTH)
def test_traced_it_gives_the_values_and_gradients_of_the_ordinary_flow(method):
    flow, ordinary = pair("real_nvp", context_dim=2)
    x, context = inputs(flow), torch.randn(5, 2, dtype=torch.float64)
    expected = gradients(ordinary, method, x, context)
    for _ in range(3):
        assert close(gradients(flow, method, x, context), expected)
    assert functions(flow) == 1 and not flow._compiled.reason


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["real_nvp", "neural_spline"])
def test_inductor_gives_the_values_and_gradients_of_the_ordinary_flow(recipe):
    flow, ordinary = pair(recipe)
    x = inputs(flow)
    for method in BOTH:
        expected = gradients(ordinary, method, x)
        for _ in range(3):
            assert close(gradients(flow, method, x), expected)
    assert functions(flow) == 2 and not flow._compiled.reason


def test_a_context_has_its_gradient():
    flow, ordinary = pair(context_dim=3)
    x = inputs(flow)
    context = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    slopes = []
    for f in (ordinary, flow, flow, flow):
        slopes += torch.autograd.grad(f.forward_and_log_det(x, context)[1].sum(), context)
    assert functions(flow) == 1
    assert close(slopes[1:], slopes[:1] * 3)


def test_an_input_that_is_the_context_as_well_has_the_gradient_of_both():
    flow, ordinary = pair("real_nvp", context_dim=4)
    x = inputs(flow).requires_grad_()
    slopes = [torch.autograd.grad(f.forward_and_log_det(x, x)[0].sum(), x)[0] for f in (ordinary, flow, flow)]
    assert functions(flow) == 1
    assert close(slopes[1:], slopes[:1] * 2)


def test_it_is_compiled_at_the_second_call_of_a_kind():
    flow = built()
    with torch.no_grad():
        for batch, wanted in [((5,), 0), ((6,), 0), ((5,), 1), ((5,), 1), ((6,), 2), ((2, 3), 2)]:
            flow.forward_and_log_det(inputs(flow, batch))
            assert functions(flow) == wanted
    flow.inverse_and_log_det(inputs(flow))
    assert functions(flow) == 2


def test_the_first_compilation_is_announced_once(caplog):
    flow = built()
    with torch.no_grad():
        for batch in (5, 5, 6, 6):
            flow.forward_and_log_det(inputs(flow, (batch,)))
    (record,) = (r for r in caplog.records if r.name.startswith("pyro_coupling"))
    assert "compiling a flow for a batch of shape (5, 4)" in record.getMessage()


def test_it_follows_the_parameters():
    flow, ordinary = pair()
    x = inputs(flow)
    for _ in range(2):
        flow.forward_and_log_det(x)
    for f in (flow, ordinary):
        with torch.no_grad():
            for parameter in f.parameters():
                parameter.mul_(1.5)
    assert close(gradients(flow, "forward_and_log_det", x), gradients(ordinary, "forward_and_log_det", x))


@pytest.mark.usefixtures("traced")
def test_many_flows_and_shapes_are_compiled():
    # torch by itself keeps at most eight compiled functions for one piece of code
    for number in range(5):
        flow = Chain([Permutation([1, 0]), DiagonalAffine(torch.zeros(2))], compile=True)
        for batch in (4 + number, 20 + number):
            for _ in range(2):
                flow.forward_and_log_det(torch.ones(batch, 2))
        assert functions(flow) == 2 and not flow._compiled.reason


def test_more_kinds_of_call_than_are_compiled_run_as_ordinary_ones_and_a_warning_says_so_once(monkeypatch):
    monkeypatch.setattr(compiled, "_MOST_FUNCTIONS", 2)
    flow, ordinary = pair("nice")
    with pytest.warns(UserWarning, match="2 kinds of call are compiled") as caught:
        for batch in (3, 4, 5, 6):
            for _ in range(3):
                x = inputs(flow, (batch,))
                assert close(flow.forward_and_log_det(x), ordinary.forward_and_log_det(x))
    assert functions(flow) == 2
    assert len(caught) == 1


def test_without_a_compiler_it_runs_as_the_ordinary_flow_and_a_warning_says_so_once(monkeypatch):
    def none(*args, **kwargs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", none)
    flow, ordinary = pair()
    x = inputs(flow)
    with pytest.warns(
        UserWarning, match=r"compilation failed \(RuntimeError: no C\+\+ compiler\). It runs uncompiled"
    ) as w:
        for _ in range(4):
            assert close(gradients(flow, "forward_and_log_det", x), gradients(ordinary, "forward_and_log_det", x))
    assert len(w) == 1


def test_a_backward_pass_that_cannot_be_compiled_is_found_out_before_it_is_needed(monkeypatch):
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *sources):
            return sources[0].clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("no way back")

    monkeypatch.setattr(torch, "compile", lambda f, **k: lambda c, x, _: (Failing.apply(x, *c.parameters()), x.sum(-1)))
    flow, ordinary = pair()
    x = inputs(flow)
    gradients(flow, "forward_and_log_det", x)
    with pytest.warns(UserWarning, match="no way back"):
        found = gradients(flow, "forward_and_log_det", x)
    assert close(found, gradients(ordinary, "forward_and_log_det", x))


def test_a_users_error_is_the_ordinary_one():
    flow = built()
    for _ in range(3):
        with pytest.raises(ValueError, match="dtype"):
            flow.forward_and_log_det(torch.randn(5, 4))
    assert not flow._compiled.reason


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("method", BOTH)
def test_second_derivatives_are_those_of_the_ordinary_flow(method):
    flow, ordinary = pair("real_nvp")
    x = inputs(flow)

    def second(flow):
        leaf = x.clone().requires_grad_()
        y, log_det = getattr(flow, method)(leaf)
        (slope,) = torch.autograd.grad(y.square().sum() + log_det.sum(), leaf, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [leaf, *flow.parameters()])

    expected = second(ordinary)
    for _ in range(3):
        assert close(second(flow), expected)
    assert functions(flow) == 1


@pytest.mark.usefixtures("traced")
def test_the_gradient_can_be_taken_again_from_a_graph_that_is_kept():
    flow, ordinary = pair("real_nvp")
    x = inputs(flow)
    expected = gradients(ordinary, "forward_and_log_det", x)[2:]
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        y, log_det = flow.forward_and_log_det(leaf)
        sources = [leaf, *flow.parameters()]
        for kept in (True, True, False):
            found = torch.autograd.grad(y.sin().sum() + log_det.square().sum(), sources, retain_graph=kept)
            assert close(found, expected)


def test_batched_gradients_give_the_jacobian():
    flow, ordinary = pair()
    x = inputs(flow, ())
    jacobians = [
        torch.autograd.functional.jacobian(lambda z, f=f: f.forward_and_log_det(z)[0], x, vectorize=True)
        for f in (ordinary, flow, flow)
    ]
    assert functions(flow) == 1
    assert close(jacobians[1:], jacobians[:1] * 2)


def test_a_parameter_changed_before_backward_is_an_error():
    flow = built()
    for _ in range(2):
        y, _ = flow.forward_and_log_det(inputs(flow))
    with torch.no_grad():
        next(flow.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_volume_preserving_and_frozen_flows_have_the_gradients_they_should():
    flow, ordinary = pair("nice", outer_affine=False)
    x = inputs(flow)
    for _ in range(3):
        y, log_det = flow.forward_and_log_det(x)
        assert y.requires_grad and not log_det.requires_grad
    for f in (flow, ordinary):
        f.requires_grad_(False)
    for _ in range(3):
        assert not flow.forward_and_log_det(x)[0].requires_grad
    leaf = x.clone().requires_grad_()
    slopes = [torch.autograd.grad(f.forward_and_log_det(leaf)[0].sin().sum(), leaf)[0] for f in (ordinary, flow, flow)]
    assert close(slopes[1:], slopes[:1] * 2)


def test_a_tensor_with_gradients_that_is_no_parameter_is_found_out_and_gets_its_gradient():
    context = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    conditional = flows.real_nvp(3, 2, (8,), context_dim=2, outer_affine=False).double()
    with torch.no_grad():
        for parameter in conditional.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    flow = Chain([conditional.condition(context)], compile=True)
    x = torch.randn(5, 3, dtype=torch.float64)
    slopes = []
    with pytest.warns(UserWarning, match="a layer holds a tensor that requires gradients"):
        for _ in range(3):
            slopes += torch.autograd.grad(flow.forward_and_log_det(x)[1].sum(), context)
    assert close(slopes[1:], slopes[:1] * 2) and slopes[0].abs().max() > 0


def test_function_transforms_and_forward_mode_see_the_ordinary_flow():
    flow, ordinary = pair()
    x = inputs(flow)
    for _ in range(2):
        for f in (flow, ordinary):
            f.forward_and_log_det(x)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        jacobians = [transform(lambda z, f=f: f.forward_and_log_det(z)[0])(x) for f in (flow, ordinary)]
        assert close(jacobians[:1], jacobians[1:])
    values = [torch.func.vmap(f.inverse_and_log_det)(x) for f in (flow, ordinary)]
    assert close(*values)
    slopes = [
        torch.autograd.functional.jvp(lambda z, f=f: f.forward_and_log_det(z)[1], x, x)[1] for f in (flow, ordinary)
    ]
    assert close(slopes[:1], slopes[1:])


def test_another_compilation_takes_the_ordinary_flow_into_its_own_graph():
    flow, ordinary = pair("real_nvp")
    x = inputs(flow)
    outer = torch_compile(lambda z: flow.inverse_and_log_det(z), fullgraph=True, backend="eager")
    for _ in range(2):
        assert close(outer(x), ordinary.inverse_and_log_det(x))
    assert functions(flow) == 0


def test_a_recorded_training_step_takes_the_ordinary_flow_into_its_recording():
    target = PyroTarget(normal)
    flow, ordinary = pair("real_nvp")
    z = inputs(flow)
    step, expected = GradientStep(flow, target, "total"), GradientStep(ordinary, target, "total")
    for number in (0, 1, 2, 101, 102):
        assert torch.allclose(step(z, False, number), expected(z, False, number))
        assert close([p.grad for p in flow.parameters()], [p.grad for p in ordinary.parameters()])
    assert functions(flow) == 1
    assert step.mode == "recorded", step.reason


def test_empty_batches_are_not_compiled():
    flow = built()
    for _ in range(3):
        y, log_det = flow.forward_and_log_det(inputs(flow, (0,)))
        assert y.shape == (0, 4) and log_det.shape == (0,)
    assert functions(flow) == 0


def test_a_functional_call_uses_the_given_parameters():
    flow, ordinary = pair()
    x = inputs(flow)
    for _ in range(2):
        flow(x)
    other = {name: (0.5 * value).detach().requires_grad_() for name, value in flow.named_parameters()}
    found = [torch.func.functional_call(f, other, (x,)) for f in (flow, flow, ordinary)]
    assert close(found[:2], found[2:] * 2)
    slopes = [torch.autograd.grad(y.sin().sum(), list(other.values()), allow_unused=True) for y in found]
    for ours, expected in zip(slopes[0], slopes[2], strict=True):
        assert (ours is None) == (expected is None) and (ours is None or torch.allclose(ours, expected))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_has_the_gradient_of_the_ordinary_flow(estimator):
    target = PyroTarget(normal)
    flow, ordinary = pair()
    z = inputs(flow)
    for _ in range(3):
        for f in (flow, ordinary):
            f.zero_grad()
            reverse_kl_backward(f, target, z, estimator)
        found, expected = ([p.grad for p in f.parameters()] for f in (flow, ordinary))
        assert close(found, expected)


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda flow: pickle.loads(pickle.dumps(flow))])
def test_a_copy_is_compiled_anew_and_is_its_own(copier):
    flow = built()
    x = inputs(flow)
    for _ in range(2):
        expected = flow.forward_and_log_det(x)
    twin = copier(flow)
    assert twin.compiled
    for _ in range(3):
        assert close(twin.forward_and_log_det(x), expected)
    if copier is copy.copy:
        return
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert close(flow.forward_and_log_det(x), expected)
    assert not close(twin.forward_and_log_det(x), expected)


def test_the_setting_is_not_saved(tmp_path):
    flow = built()
    x = inputs(flow)
    for _ in range(2):
        expected = flow.forward_and_log_det(x)
    save(flow, tmp_path / "flow")
    loaded = load(tmp_path / "flow")
    assert not loaded.compiled
    assert close(Chain([loaded], compile=True).forward_and_log_det(x), expected)
    built(compile=False).load_state_dict(flow.state_dict())


def test_in_training_and_for_evaluation_there_is_a_function_each():
    flow, ordinary = pair("glow")
    x = inputs(flow)
    for f in (flow, ordinary):
        f.inverse_and_log_det(x)  # the first batch in training sets the scales
    for mode in (True, False):
        flow.train(mode)
        for _ in range(2):
            assert close(flow.inverse_and_log_det(x), ordinary.inverse_and_log_det(x))
    assert functions(flow) == 2


def test_samples_are_scored_without_a_second_pass():
    flow = built()
    base = flows.base_distribution(flow)
    for _ in range(3):
        d = dist.TransformedDistribution(base, [flow])
        x = d.rsample((5,))
        z, log_det = flow.inverse_and_log_det(x)
        assert torch.allclose(d.log_prob(x), base.log_prob(z) + log_det)


def test_autocast_is_a_kind_of_its_own():
    flow, ordinary = (f.float() for f in pair())
    x = inputs(flow).float()
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            for _ in range(2):
                found, expected = flow.forward_and_log_det(x), ordinary.forward_and_log_det(x)
                assert [t.dtype for t in found] == [t.dtype for t in expected] == [torch.float32] * 2
                assert close(found, expected, 1e-5)
    assert functions(flow) == 2


@pytest.mark.parametrize("setting", ["reversible", "checkpoint"])
def test_settings_that_save_memory_are_refused(setting):
    with pytest.raises(ValueError, match="compile=True stores what every part needs"):
        flows.real_nvp(4, compile=True, **{setting: True})
    with pytest.raises(ValueError, match="compile=True stores what every part needs"):
        Chain([flows.real_nvp(4, **{setting: True})], compile=True)


def test_dropout_is_refused():
    layer = Coupling([True, False], MLP(1, 2, (4,), dropout=0.5), Affine())
    with pytest.raises(ValueError, match="may run parts again in backward, which Dropout does not allow"):
        Chain([layer], compile=True)


def test_a_chain_of_identities_returns_a_tensor_of_its_own():
    flow = Chain([Permutation([0, 1, 2])], compile=True)
    x = torch.randn(5, 3, requires_grad=True)
    for _ in range(3):
        y, _ = flow.forward_and_log_det(x)
        (slope,) = torch.autograd.grad(y.square().sum(), x)
        assert torch.allclose(slope, 2 * x)


def test_a_guide_learns_as_the_ordinary_one_does():
    y = torch.tensor([1.0, -2.0, 0.5])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, tau), obs=y)

    losses = []
    for compile in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoCouplingFlow(model, partial(flows.real_nvp, num_layers=2, hidden_dims=(8,)), compile=compile)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(num_particles=4, vectorize_particles=True))
        losses.append([svi.step(y) for _ in range(6)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert functions(guide.transform) > 0
    assert copy.deepcopy(guide).transform.compiled
