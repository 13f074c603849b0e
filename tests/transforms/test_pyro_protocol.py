"""The lower-case helpers as Pyro's transforms: its own scheme of tests, and how they fail elsewhere."""

import copy
import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from harness import CASES, HIDDEN, coupling, draw, make, randomise, relative_error
from pyro.distributions.transforms import ComposeTransformModule, iterated
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.optim import Adam

from pyro_coupling.transforms import (
    Affine,
    Chain,
    Coupling,
    DiagonalAffine,
    LowerTriangularAffine,
    LowRankAffine,
    Permutation,
    Shift,
    additive_coupling,
    affine_coupling,
    conditional_additive_coupling,
    conditional_affine_coupling,
    conditional_spline_coupling,
    halves,
    spline_coupling,
)

HELPERS = [additive_coupling, affine_coupling, spline_coupling]
TWINS = [conditional_additive_coupling, conditional_affine_coupling, conditional_spline_coupling]
EVENTS = [2, 5, (3, 2), (2, 3, 2)]

helpers = pytest.mark.parametrize("helper", HELPERS)
twins = pytest.mark.parametrize("twin", TWINS)
events = pytest.mark.parametrize("event", EVENTS, ids=str)
every = pytest.mark.parametrize("name", CASES)


def build(helper, event, *args, **kwargs):
    dim = -1 if isinstance(event, int) else -len(event)
    return randomise(helper(event, *args, hidden_dims=HIDDEN, dim=dim, **kwargs).double(), 0.3)


def build_conditioned(twin, event):
    conditional = build(twin, event, 3)
    return conditional.condition(torch.rand(1, 3, dtype=torch.float64))


TRANSFORMS = [(build, helper, event) for helper in HELPERS for event in EVENTS]
TRANSFORMS += [(build_conditioned, twin, event) for twin in TWINS for event in EVENTS]
pyros_own = pytest.mark.parametrize(
    ("builder", "helper", "event"), TRANSFORMS, ids=[f"{helper.__name__}-{event}" for _, helper, event in TRANSFORMS]
)


def base(transform, batch=()):
    zeros = torch.zeros(batch + tuple(transform.event_shape), dtype=next(transform.parameters()).dtype)
    return dist.Normal(zeros, 1.0).to_event(len(transform.event_shape))


# The scheme of Pyro's TransformTests: shape, inverse, Jacobian, autograd


@pyros_own
def test_shape(builder, helper, event):
    transform = builder(helper, event)
    for batch in [(3,), (3, 4), (3, 4, 5)]:
        # the transform takes care of the event's dimensions, so a base of plain normals is enough
        normal = dist.Normal(torch.zeros(batch + tuple(transform.event_shape), dtype=torch.float64), 1.0)
        q = dist.TransformedDistribution(normal, [transform])
        assert q.batch_shape == batch and q.event_shape == transform.event_shape
        assert q.sample().shape == batch + q.event_shape
        assert q.sample((2,)).shape == (2,) + batch + q.event_shape
        assert q.log_prob(q.sample((2,))).shape == (2,) + batch
    assert transform.forward_shape((3, *transform.event_shape)) == (3, *transform.event_shape)
    assert transform.domain.event_dim == transform.codomain.event_dim == transform.event_dim == len(q.event_shape)
    assert transform.bijective


@pyros_own
def test_inverse(builder, helper, event):
    transform = builder(helper, event)
    x, _ = draw(transform, (10,))
    y = transform._call(x)
    again = transform._inverse(y.clone())  # another tensor of the same value, so that no note helps
    assert relative_error(again, x) < 1e-10
    log_dets = [transform.log_abs_det_jacobian(z, y) for z in (x, again, x.clone())]
    assert all(relative_error(log_det, log_dets[0]) < 1e-10 for log_det in log_dets)
    assert relative_error(transform.inv.log_abs_det_jacobian(y, x), -log_dets[0]) < 1e-10


@pyros_own
def test_jacobian(builder, helper, event):
    transform = builder(helper, event)
    x, _ = draw(transform, (1,))
    n = x.numel()
    steps = 1e-5 * torch.eye(n, dtype=torch.float64).reshape(n, *transform.event_shape)
    jacobian = (transform(x + steps) - transform(x - steps)).reshape(n, n) / 2e-5
    # central differences: an error of the step squared
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert relative_error(transform.log_abs_det_jacobian(x, transform(x)), expected) < 1e-6


@pyros_own
@pytest.mark.parametrize("inverse", [False, True])
def test_autodiff(builder, helper, event, inverse):
    transform = builder(helper, event)
    q = dist.TransformedDistribution(base(transform), [transform.inv if inverse else transform])
    optimizer = torch.optim.Adam(transform.parameters())
    x, _ = draw(transform, (4,))
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(-q.log_prob(x).mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[2] < losses[0]


# Sampling and scoring


def count_calls(transform):
    """A list that grows with every evaluation of a conditioner."""
    calls = []
    for part in transform.modules():
        if isinstance(part, Coupling):
            part.conditioner.register_forward_hook(lambda *_: calls.append(1))
    return calls


def gradients(values, layer):
    parameters = list(layer.parameters())
    nothing = 0 * sum(p.sum() for p in parameters)  # the density at its own sample may depend on none of them
    return torch.autograd.grad(values.sum() + nothing, parameters, retain_graph=True)


@every
def test_a_drawn_sample_is_scored_as_any_other_and_for_nothing(name):
    bijection = make(name)
    transform = bijection.condition(torch.ones(bijection.context_shape, dtype=torch.float64))
    normal = dist.Normal(torch.zeros(tuple(transform.event_shape), dtype=torch.float64), 1.0)
    q = dist.TransformedDistribution(normal, [transform])
    calls = count_calls(transform)
    for draw_one in (q.rsample, q.sample):
        with torch.set_grad_enabled(draw_one == q.rsample):
            calls.clear()
            y = draw_one((6,))
            log_prob = q.log_prob(y)
            assert len(calls) == sum(isinstance(part, Coupling) for part in transform.modules())
            assert relative_error(log_prob, q.log_prob(y.clone())) < 1e-10


@helpers
def test_a_helper_moves_both_parts_on_request(helper):
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for both in (False, True):
        layer = randomise(helper(5, (6,), both=both, permute=False).double(), 0.3)
        jacobian = torch.autograd.functional.jacobian(layer, x)
        # what the map of an entry that stays depends on: itself alone
        assert (jacobian[:2, 2:] == 0).all() and jacobian[:2, :2].count_nonzero() == 2
        moves = [part for part in layer.modules() if isinstance(part, Coupling)]
        assert sum(part.partition.num_moving for part in moves) == (5 if both else 3)


@helpers
def test_iterated_scores_data_in_one_pass(helper):
    flow = ComposeTransformModule([build(helper, 4) for _ in range(3)])
    x = torch.randn(6, 4, dtype=torch.float64)
    calls = count_calls(flow)
    dist.TransformedDistribution(base(flow[0]), [flow]).log_prob(x)
    assert len(calls) == 3


@helpers
def test_a_list_of_transforms_costs_one_pass_too(helper):
    layers = [build(helper, 4) for _ in range(3)]
    q = dist.TransformedDistribution(base(layers[0]), layers)
    calls = [count_calls(layer) for layer in layers]
    y = q.rsample((6,))
    log_prob = q.log_prob(y)
    assert [len(c) for c in calls] == [1, 1, 1]
    assert relative_error(log_prob, q.log_prob(y.clone())) < 1e-10


@helpers
def test_gradients_of_a_scored_sample_do_not_depend_on_the_note(helper):
    layer = build(helper, 4)
    q = dist.TransformedDistribution(base(layer), [layer])
    y = q.rsample((6,))
    noted, fresh = (gradients(q.log_prob(z), layer) for z in (y, y.clone()))
    assert all(relative_error(a, b) < 1e-9 for a, b in zip(noted, fresh, strict=True))


@helpers
def test_a_sample_drawn_under_no_grad_is_scored_with_gradients(helper):
    layer = build(helper, 4)
    q = dist.TransformedDistribution(base(layer), [layer])
    y = q.sample((6,))
    noted, fresh = (gradients(q.log_prob(z), layer) for z in (y, y.clone()))
    assert all(map(torch.equal, noted, fresh))
    assert any(g.abs().max() > 0 for g in noted)


def write_to_output(layer, x, y):
    y.add_(1.0)


def write_to_input(layer, x, y):
    x.add_(1.0)


def write_to_parameter(layer, x, y):
    next(layer.parameters()).add_(1.0)


def write_to_buffer(layer, x, y):
    layer.loc.add_(1.0)


def swap_data(layer, x, y):
    vector = torch.nn.utils.parameters_to_vector(layer.parameters())
    torch.nn.utils.vector_to_parameters(vector + 1.0, layer.parameters())


def load_state(layer, x, y):
    layer.load_state_dict({key: value + 1.0 for key, value in layer.state_dict().items()})


CHANGES = [write_to_output, write_to_input, write_to_parameter, write_to_buffer, swap_data, load_state]


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_goes_unnoticed(change):
    layer = DiagonalAffine(torch.zeros(3))
    with torch.no_grad():
        x = torch.randn(5, 3)
        y = layer(x)
        change(layer, x, y)
        assert torch.equal(layer.inv(y), layer.inverse_and_log_det(y)[0])


def test_a_sample_of_a_frozen_flow_can_be_differentiated():
    layer = build(affine_coupling, 4).requires_grad_(False)
    q = dist.TransformedDistribution(base(layer), [layer])
    y = q.rsample((6,)).requires_grad_()
    (score,) = torch.autograd.grad(q.log_prob(y).sum(), y)
    leaf = y.detach().requires_grad_()
    assert torch.equal(score, torch.autograd.grad(q.log_prob(leaf).sum(), leaf)[0])


def test_other_weights_for_one_call_leave_no_trace():
    layer, x = build(affine_coupling, 4), torch.randn(5, 4, dtype=torch.float64)
    y = torch.func.functional_call(layer, {n: 2 * p for n, p in layer.named_parameters()}, (x,))
    assert torch.equal(layer.inv(y), layer.inverse_and_log_det(y)[0])


def test_inference_mode():
    layer, x = build(affine_coupling, 4), torch.randn(5, 4, dtype=torch.float64)
    with torch.inference_mode():
        y = layer(x)
        assert relative_error(layer.inv(y), x) < 1e-12
    assert layer.inv(layer(x)) is x


@every
def test_nothing_of_a_call_outlives_its_output(name):
    bijection = make(name)
    x, context = draw(bijection, (5,))
    plain = bijection.condition(context)
    x.requires_grad_()
    gc.disable()  # what only the collector can free is a leak while it has not run
    try:
        y = plain(x)
        back = plain.inv(y.detach().clone())
        plain.log_abs_det_jacobian(x, y)
        references = [weakref.ref(y), weakref.ref(back)]
        del y, back
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()
    holders = [part for part in (*plain.modules(), *plain.inv.modules()) if hasattr(part, "_notes")]
    assert not any(part._notes for part in holders)
    held = [value for part in holders for key, value in vars(part).items() if key != "context"]
    assert not any(isinstance(value, torch.Tensor) for value in held)


# Pyro's own classes around a transform


@helpers
def test_with_cache_changes_nothing(helper):
    layer = build(helper, 4)
    x, _ = draw(layer, (5,))
    for size in (0, 1):
        assert torch.equal(layer.with_cache(size)(x), layer(x))
        assert torch.equal(layer.inv.with_cache(size)(x), layer.inv(x))


@every
def test_inverse_of_the_inverse_is_the_map_itself(name):
    for bijection in (make(name), copy.deepcopy(make(name)), copy.deepcopy(make(name).inv)):
        assert bijection.inv.inv is bijection
        assert bijection.inv is bijection.inv


@twins
def test_conditional_transformed_distribution(twin):
    layer = build(twin, 4, 3)
    q = dist.ConditionalTransformedDistribution(base(layer), [layer])
    context = torch.randn(6, 3, dtype=torch.float64)
    given = q.condition(context)
    x = given.sample((6,))
    assert x.shape == (6, 4) and given.log_prob(x).shape == (6,)
    assert not torch.equal(given.log_prob(x), q.condition(context + 1).log_prob(x))
    rows = [q.condition(c).log_prob(row) for c, row in zip(context, x, strict=True)]
    assert relative_error(given.log_prob(x), torch.stack(rows)) < 1e-12


@twins
def test_the_inverse_of_a_conditional_transform_is_one_too(twin):
    layer = build(twin, 4, 3)
    context = torch.randn(3, dtype=torch.float64)
    x, _ = draw(layer, (5,))
    assert torch.equal(layer.inv.condition(context)(x), layer.condition(context).inv(x))


@pytest.mark.parametrize("composition", [Chain, ComposeTransformModule, dist.transforms.ComposeTransform])
def test_compositions_agree(composition):
    layers = [build(helper, 4) for helper in HELPERS]
    flow, reference = composition(layers), Chain(layers)
    x, _ = draw(reference, (5,))
    y, log_det = reference.forward_and_log_det(x)
    assert torch.equal(flow(x), y)
    assert relative_error(flow.inv(y), x) < 1e-10
    assert relative_error(flow.log_abs_det_jacobian(x, y), log_det) < 1e-10


@helpers
def test_iterated_registers_every_parameter(helper):
    flow = iterated(3, helper, 4, HIDDEN)
    assert isinstance(flow, ComposeTransformModule)
    assert len(list(flow.parameters())) == 3 * len(list(helper(4, HIDDEN).parameters()))
    assert copy.deepcopy(flow)(torch.zeros(2, 4)).shape == (2, 4)


@pytest.mark.parametrize("elbo", [Trace_ELBO, JitTrace_ELBO])
@helpers
def test_maximum_likelihood_with_svi(helper, elbo):
    flow = iterated(2, helper, 2, (8,))
    data = torch.randn(200, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]]) + torch.tensor([1.0, -1.0])

    def model(data):
        pyro.module("flow", flow)
        q = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow])
        with pyro.plate("data", len(data)):
            pyro.sample("x", q, obs=data)

    svi = SVI(model, lambda data: None, Adam({"lr": 2e-2}), elbo(ignore_jit_warnings=True))
    losses = [svi.step(data) for _ in range(40)]
    # the mean alone, learned by every helper, is worth 0.5 * |loc|^2 = 1 nat a point
    assert losses[-1] < losses[0] - 0.5 * len(data)
    assert any(key.startswith("flow$$$") for key in pyro.get_param_store())


# Plain iterated(...) is a full flow


@helpers
@pytest.mark.parametrize("num_layers", [4, 5])
@pytest.mark.parametrize("size", range(2, 13))
def test_four_layers_mix_every_pair_of_dimensions(helper, num_layers, size):
    flow = iterated(num_layers, helper, size, HIDDEN)
    for layer in flow:
        randomise(layer.double(), 0.2)
    x = 0.5 * torch.randn(size, dtype=torch.float64)  # within the bound of a spline, outside which it mixes nothing
    jacobian = torch.autograd.functional.jacobian(flow, x)
    assert (jacobian != 0).all()


@helpers
@pytest.mark.parametrize("size", range(1, 13))
def test_two_layers_leave_no_dimension_as_base_noise(helper, size):
    flow = iterated(2, helper, size, HIDDEN)
    for layer in flow:
        randomise(layer.double(), 0.5)
    x = torch.randn(9, size, dtype=torch.float64)
    y = flow(x)
    assert not any(torch.equal(column, noise) for column in y.T for noise in x.T)


@helpers
def test_a_new_layer_is_a_permutation(helper):
    x = torch.randn(5, 4)
    assert torch.allclose(helper(4, permute=False)(x), x, atol=1e-5)
    assert torch.allclose(helper(4)(x).sort().values, x.sort().values, atol=1e-5)


# Arguments


HELPER_ERRORS = [
    ((0,), {}, ValueError, "input_dim"),
    ((-1,), {}, ValueError, "input_dim"),
    (((),), {}, ValueError, "input_dim"),
    (((3, 0),), {"dim": -2}, ValueError, "input_dim"),
    ((2.5,), {}, TypeError, "input_dim"),
    (("3",), {}, TypeError, "input_dim"),
    ((4,), {"dim": -2}, ValueError, "input_dim.*dim"),
    (((2, 3),), {}, ValueError, "input_dim.*dim"),
    ((4,), {"dim": 1}, ValueError, "dim"),
    ((4,), {"split_dim": 4}, ValueError, "split_dim"),
    ((4,), {"split_dim": -1}, ValueError, "split_dim"),
    ((4, (8, 0)), {}, ValueError, "hidden_dims"),
    ((4, (8, 1.5)), {}, ValueError, "hidden_dims"),
]


@helpers
@pytest.mark.parametrize(("args", "kwargs", "error", "message"), HELPER_ERRORS)
def test_an_invalid_argument_of_a_helper_is_named(helper, args, kwargs, error, message):
    with pytest.raises(error, match=message):
        helper(*args, **kwargs)


@twins
def test_a_negative_context_dim_is_named(twin):
    with pytest.raises(ValueError, match="context_dim"):
        twin(4, -1)


def linear(out):
    return torch.nn.Linear(1, out)


INVALID = [
    (lambda: Coupling([True, True], linear(2), Shift()), ValueError, "mask"),
    (lambda: Coupling(torch.ones(2), linear(2), Shift()), TypeError, "mask.*boolean"),
    (lambda: Coupling([1, 0], linear(2), Shift()), TypeError, "mask.*boolean"),
    (lambda: Coupling([True, False], linear(3), Affine()), ValueError, r"conditioner.*\(2, 3\)"),
    (lambda: Coupling([True, False], lambda x: x, Shift()), TypeError, "conditioner"),
    (lambda: Coupling([True, False], linear(1), torch.add), TypeError, "elementwise"),
    (lambda: Coupling([True, False], linear(1), Shift(), context_dim=-1), ValueError, "context_dim"),
    (lambda: Chain([coupling(halves(3)), coupling(halves(4))]), ValueError, r"\(3,\).*\(4,\)"),
    (
        lambda: Chain([coupling(halves(3), context_dim=1), coupling(halves(3), context_dim=2)]),
        ValueError,
        r"\(1,\), \(2,\)",
    ),
    (lambda: Chain([]), ValueError, "bijections"),
    (lambda: Chain([torch.nn.Linear(1, 1)]), TypeError, "Linear"),
    (lambda: Permutation([0, 2]), ValueError, "permutation"),
    (lambda: Permutation([0, 1], event_shape=(3,)), ValueError, "event_shape"),
    (lambda: DiagonalAffine(torch.zeros(2), torch.zeros(2)), ValueError, "scale"),
    (lambda: LowerTriangularAffine(torch.zeros(2), torch.ones(3, 3)), ValueError, "scale_tril"),
    (lambda: LowRankAffine(torch.zeros(2), torch.zeros(2)), ValueError, "scale"),
    (lambda: LowRankAffine(torch.zeros(2), basis=torch.ones(2)), ValueError, r"basis must be \(dim, rank\)"),
    (lambda: LowRankAffine(torch.zeros(2), basis=torch.ones(2, 1)), ValueError, "basis .* orthonormal"),
    (lambda: LowRankAffine(torch.zeros(2), basis=torch.eye(2), core=-torch.eye(2)), ValueError, "core"),
    (lambda: halves((2, 3), dim=-3), ValueError, "dim"),
]


@pytest.mark.parametrize(("invalid", "error", "message"), INVALID)
def test_an_invalid_part_is_named(invalid, error, message):
    with pytest.raises(error, match=message):
        invalid()


def test_a_mask_of_the_wrong_length_shows_at_the_first_input():
    layer = Coupling([True, False], linear(1), Shift())
    with pytest.raises(ValueError, match=r"\(2,\).*\(5, 3\)"):
        layer(torch.zeros(5, 3))
