"""Every recipe under torch.compile, torch.func and autocast."""

import pyro.distributions
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pyro_coupling import flows

SMALL = {"num_layers": 2, "hidden_dims": (8,)}
RECIPES = {
    "nice": lambda c: flows.nice(4, context_dim=c, **SMALL),
    "real_nvp": lambda c: flows.real_nvp(4, context_dim=c, **SMALL),
    "neural_spline": lambda c: flows.neural_spline(4, context_dim=c, num_bins=4, **SMALL),
    "circular_spline": lambda c: flows.circular_spline(
        4, context_dim=c, num_bins=4, circular=[True, False, True, False], **SMALL
    ),
    "real_nvp_image": lambda c: flows.real_nvp_image((1, 4, 4), 2, 4, 1, context_dim=c),
    "glow": lambda c: flows.glow((1, 4, 4), 2, 1, 4, context_dim=c),
    "wave_glow": lambda c: flows.wave_glow(32, 2, 4, context_dim=c, num_dilations=2),
}
every = pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES)


def built(make, context_dim=0, dtype=torch.float64):
    torch.manual_seed(0)
    flow = make(context_dim)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    flow = flow.to(dtype).eval()
    x = torch.randn(5, *flow.event_shape, dtype=dtype)
    context = torch.randn(5, context_dim, dtype=dtype) if context_dim else None
    return flow, x, context


def close(found, expected, tolerance=1e-9):
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(found, expected, strict=True))


def log_q(flow, z, context):
    """A sample and its log density, in one sweep."""
    x, log_det = flow.forward_and_log_det(z, context)
    return x, -0.5 * z.square().flatten(1).sum(1) - log_det


def log_prob(flow, x, context):
    z, log_det = flow.inverse_and_log_det(x, context)
    return z, -0.5 * z.square().flatten(1).sum(1) + log_det


@every
@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("function", [log_q, log_prob])
def test_compiles_to_one_graph(make, context_dim, function):
    flow, x, context = built(make, context_dim)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")  # a graph break would raise
    assert close(compiled(flow, x, context), function(flow, x, context))


@pytest.mark.parametrize("library", [torch.distributions, pyro.distributions], ids=["torch", "Pyro"])
def test_a_loss_of_the_users_own_compiles_to_one_graph(library):
    flow, x, _ = built(RECIPES["neural_spline"])
    normal = library.Normal(torch.zeros(4, dtype=torch.float64), 1.0, validate_args=False)
    base = library.Independent(normal, 1, validate_args=False)
    distribution = library.TransformedDistribution(base, [flow], validate_args=False)

    def loss():
        draws = distribution.rsample((7,))
        return (distribution.log_prob(draws) + draws.square().sum(-1)).mean() - distribution.log_prob(x).mean()

    def value_and_gradients(function):
        torch.manual_seed(1)
        value = function()
        return [value, *torch.autograd.grad(value, list(flow.parameters()))]

    expected = value_and_gradients(loss)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for _ in range(3):
        assert close(value_and_gradients(compiled), expected)
        loss()  # what an ordinary call leaves behind is no reason to compile anew
    assert counter.frame_count == 1


@every
def test_vmap_equals_the_batch(make):
    flow, x, context = built(make, 3)
    for method in (flow.forward_and_log_det, flow.inverse_and_log_det):
        assert close(torch.func.vmap(method)(x, context), method(x, context))


@every
def test_jacrev_gives_the_log_det(make):
    flow, x, context = built(make, 3)
    size = x[0].numel()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z, c: flow.forward_and_log_det(z, c)[0]))(x, context)
    found = torch.linalg.slogdet(jacobian.reshape(5, size, size)).logabsdet
    assert torch.allclose(found, flow.forward_and_log_det(x, context)[1], atol=1e-8)


@every
def test_functional_call_uses_the_given_parameters(make):
    flow, x, _ = built(make)
    other = {name: 0.5 * value for name, value in flow.named_parameters()}
    found = torch.func.functional_call(flow, other, (x,))
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            parameter.copy_(other[name])
    assert torch.allclose(found, flow(x))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_finite_log_determinants(make, dtype):
    flow, x, context = built(make, 3, torch.float32)
    exact = log_prob(flow, x, context)
    with torch.autocast("cpu", dtype=dtype):
        for method in (flow.forward_and_log_det, flow.inverse_and_log_det):
            y, log_det = method(x, context)
            assert y.isfinite().all() and log_det.isfinite().all()
        z, log_density = log_prob(flow, x, context)
    # bfloat16 keeps 8 bits: two or three digits in each entry
    assert torch.allclose(z.float(), exact[0], rtol=0.05, atol=0.1)
    assert torch.allclose(log_density.float(), exact[1], rtol=0.05, atol=1.0)


@pytest.mark.parametrize("name", ["nice", "real_nvp", "circular_spline", "real_nvp_image"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_networks_alone_are_of_few_digits(name, dtype):
    # no linear maps among their layers: a round trip runs the same networks on the same numbers
    flow, x, context = built(RECIPES[name], 3, torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y, log_det = flow.forward_and_log_det(x, context)
        back, inverse_log_det = flow.inverse_and_log_det(y, context)
    assert y.dtype == log_det.dtype == torch.float32
    assert torch.allclose(back, x, atol=1e-4) and torch.allclose(log_det, -inverse_log_det, atol=1e-3)
