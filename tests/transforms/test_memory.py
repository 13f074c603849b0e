"""Reversible and checkpointed chains: the same numbers, less memory, and a watch on the reconstruction."""

import copy
import gc
import math
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from harness import coupling, randomise
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_coupling import flows
from pyro_coupling.transforms import Affine, Chain, ClampScale, Permutation, RationalQuadraticSpline, halves

MODES = [{"reversible": True}, {"checkpoint": True}]
modes = pytest.mark.parametrize("mode", MODES, ids=["reversible", "checkpoint"])
SPLINE = RationalQuadraticSpline(4, 3.0)


def parts(num_layers=4, context_dim=0, elementwise=SPLINE):
    torch.manual_seed(0)
    layers = [coupling(halves(4) if i % 2 else ~halves(4), elementwise, context_dim) for i in range(num_layers)]
    return [part for layer in layers for part in (randomise(layer.double(), 0.3), Permutation([1, 3, 0, 2]))]


def pair(mode, **kwargs):
    """The same chain twice: as usual, and in a mode that saves memory."""
    built = parts(**kwargs)
    return Chain(built), Chain(copy.deepcopy(built), **mode)


def results(chain, method, x, context):
    x = x.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    y, log_det = getattr(chain, method)(x, context)
    sources = [x, *chain.parameters()] + ([] if context is None else [context])
    return y, log_det, *torch.autograd.grad((y * torch.arange(1.0, 5.0)).sum() + log_det.square().sum(), sources)


@modes
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
@pytest.mark.parametrize("batch", [(), (7,), (2, 3), (0,)])
def test_values_and_gradients_are_those_of_an_ordinary_chain(mode, context_dim, method, batch):
    plain, frugal = pair(mode, context_dim=context_dim)
    x = torch.randn(*batch, 4, dtype=torch.float64)
    context = torch.randn(context_dim, dtype=torch.float64) if context_dim else None  # one for the whole batch
    for expected, found in zip(results(plain, method, x, context), results(frugal, method, x, context), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@modes
def test_contexts_that_parts_hold_have_gradients(mode):
    layers = parts(context_dim=2)
    x = torch.randn(7, 4, dtype=torch.float64)
    given = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for chosen in ({}, mode):
        encoded = given.tanh()  # as from an encoder: no leaf of the graph
        first, second = layers[0].condition(encoded[0]), layers[2].condition(encoded[1]).inv
        y, log_det = Chain([first, layers[1], second, first], **chosen).forward_and_log_det(x)
        found.append(torch.autograd.grad(y.square().sum() + log_det.sum(), given)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@modes
def test_score_and_its_gradients_are_those_of_an_ordinary_chain(mode):
    plain, frugal = pair(mode)
    x = torch.randn(7, 4, dtype=torch.float64)
    found = []
    for chain in (plain, frugal):
        y, log_det, score = chain.forward_and_score(x, -x)
        assert not score.requires_grad
        loss = (y * score).sum() + log_det.sum()  # what a path gradient differentiates
        found.append((y, log_det, score, *torch.autograd.grad(loss, list(chain.parameters()))))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*found, strict=True))


@modes
def test_frozen_and_shared_parameters(mode):
    built = parts(3)
    for parameter in built[2].parameters():
        parameter.requires_grad_(False)
    built.append(built[0])  # stands in two places
    gradients = []
    for chain in (Chain(built), Chain(built, **mode)):
        loss = sum(part.sum() for part in chain.forward_and_log_det(torch.ones(5, 4).double()))
        loss.backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in chain.parameters()])
        chain.zero_grad()
    for expected, found in zip(*gradients, strict=True):
        assert (expected is None and found is None) or torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def live_bytes(chain, x):
    """Bytes of the tensors that the graph of a call keeps alive."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _alive = chain.forward_and_log_det(x)
    owned = {p.untyped_storage().data_ptr() for p in (*chain.parameters(), *chain.buffers())}
    return sum(size for pointer, size in sizes.items() if pointer not in owned)


def test_memory_of_a_reversible_chain_does_not_grow_with_depth():
    x = torch.randn(1000, 4, dtype=torch.float64)
    plain = [live_bytes(Chain(parts(n)), x) for n in (2, 8)]
    frugal = [live_bytes(Chain(parts(n), reversible=True), x) for n in (2, 8)]
    assert plain[1] > 3 * plain[0] > 20 * frugal[0]
    assert frugal[0] == frugal[1] <= 3 * x.nbytes


def test_checkpoints_store_one_input_for_a_coupling_and_what_stands_before_it():
    x = torch.randn(1000, 4, dtype=torch.float64)
    chain = Chain(parts(8), checkpoint=True)  # a permutation after each coupling
    assert live_bytes(chain, x) == 9 * x.nbytes  # the last permutation stands alone


def test_the_watch_falls_back_to_exact_gradients_and_says_so():
    # scales of exp(-12): what is squeezed so far below what is added to it can't be had back in float32
    built = parts(6, elementwise=Affine(ClampScale(-12.0, 12.0)))
    for part in built[::2]:
        with torch.no_grad():
            part.conditioner[-1].bias[:2] = 5.0
            part.conditioner[-1].bias[2:] = -12.0
    x = torch.randn(50, 4)
    exact = Chain(copy.deepcopy(built)).float()
    frugal = Chain(copy.deepcopy(built), reversible=True).float()
    expected = results(exact, "forward_and_log_det", x, None)
    with pytest.warns(UserWarning, match="Chain: inverting.*checkpoints"):
        found = results(frugal, "forward_and_log_det", x, None)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert frugal.drifted
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        again = results(frugal, "forward_and_log_det", x, None)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(again, expected, strict=True))


def test_no_drift_in_a_deep_affine_flow():
    torch.manual_seed(0)
    flow = flows.real_nvp(6, 32, (32,), reversible=True)  # float32
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, log_det = flow.inverse_and_log_det(torch.randn(200, 6))
        (y.square().sum() - log_det.sum()).backward()
    assert not flow.drifted


@modes
def test_a_parameter_changed_before_backward_is_an_error_not_a_wrong_gradient(mode):
    _, frugal = pair(mode)
    y, _ = frugal.forward_and_log_det(torch.ones(5, 4).double())
    with torch.no_grad():
        frugal[0].conditioner[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match=r"modified (by an inplace operation|between forward and backward)"):
        y.sum().backward()


@modes
def test_svi_learns_the_same(mode):
    losses = []
    for chain in pair(mode):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)

        def model():
            pyro.sample("z", dist.Normal(torch.zeros(4).double(), 2.0).to_event(1))

        def guide(chain=chain):
            pyro.module("flow", chain)
            base = dist.Normal(torch.zeros(4).double(), 1.0).expand([16, 4]).to_event(1)
            with pyro.plate("particles", 16):
                pyro.sample("z", dist.TransformedDistribution(base, [chain]))

        def particles():
            with pyro.plate("particles", 16):
                model()

        svi = SVI(particles, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        losses.append([svi.step() for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][0] != losses[0][-1]


@modes
def test_function_transforms_and_the_compiler_see_an_ordinary_chain(mode):
    plain, frugal = pair(mode)
    x = torch.randn(5, 4, dtype=torch.float64)
    found = torch.func.vmap(frugal.forward_and_log_det)(x)
    assert torch.allclose(found[0], plain.forward_and_log_det(x)[0])
    jacobian = torch.func.jacrev(lambda z: frugal.forward_and_log_det(z)[0])
    assert torch.allclose(jacobian(x[0]), torch.func.jacrev(lambda z: plain.forward_and_log_det(z)[0])(x[0]))
    torch._dynamo.reset()
    compiled = torch.compile(frugal.forward_and_log_det, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x.requires_grad_())[1], plain.forward_and_log_det(x)[1])


@modes
def test_copies_keep_the_mode_and_the_repr_tells_it(mode):
    _, frugal = pair(mode)
    (name,) = mode
    for twin in (copy.deepcopy(frugal), pickle.loads(pickle.dumps(frugal))):
        assert getattr(twin, name) and f"{name}=True" in repr(twin)


def test_modes_that_can_not_be_are_refused():
    with pytest.raises(ValueError, match="reversible and checkpoint"):
        Chain(parts(), reversible=True, checkpoint=True)
    layer = coupling(halves(4))
    layer.conditioner.append(nn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"Dropout.*checkpoint=True"):
        Chain([layer], reversible=True)
    Chain([layer], checkpoint=True)


def test_checkpoints_repeat_dropout():
    torch.manual_seed(0)
    layer = coupling(halves(4))
    randomise(layer, 0.3)
    layer.conditioner.insert(2, nn.Dropout(0.5))
    x = torch.randn(50, 4)
    found = []
    for chain in (Chain([layer]), Chain([layer], checkpoint=True)):
        torch.manual_seed(1)
        y, log_det = chain.forward_and_log_det(x)
        found.append((y, *torch.autograd.grad(y.square().sum() + log_det.sum(), list(layer.parameters()))))
    assert all(map(torch.equal, *found))


def test_log_densities_of_a_deep_reversible_flow_are_normalised():
    flow = flows.real_nvp(1, 4, reversible=True).double()
    randomise(flow, 0.3)
    grid = torch.linspace(-20, 20, 4001, dtype=torch.float64)[:, None]
    z, log_det = flow.inverse_and_log_det(grid)
    density = (-0.5 * z.square().sum(-1) - 0.5 * math.log(2 * math.pi) + log_det).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1.0, abs=1e-6)
