"""What holds for every bijection: the claims, each run over the table in `harness`."""

import copy
import io
import pickle
import re

import pyro.distributions as dist
import pytest
import torch
from harness import CASES, ELEMENTWISE, coupling, directions, draw, make, periods, randomise, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

every = pytest.mark.parametrize("name", CASES)
learned = pytest.mark.parametrize(
    "name", [name for name in CASES if "permutation" not in name and any(True for _ in CASES[name]().parameters())]
)
conditional = pytest.mark.parametrize("name", [name for name in CASES if CASES[name]().context_dim])
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-4)]


def density(bijection, context):
    """The density of a standard normal pushed through the bijection."""
    plain = bijection.condition(context)
    base = dist.Normal(torch.zeros(plain.event_shape, dtype=torch.float64), 1.0).to_event(len(plain.event_shape))
    return dist.TransformedDistribution(base, [plain])


def log_det_by_autograd(method, x, context):
    jacobian = torch.autograd.functional.jacobian(lambda z: method(z, context)[0], x)
    return torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet


# Values


@every
@pytest.mark.parametrize("size", [1.5, 1e3])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_round_trip(name, size, dtype, tolerance):
    bijection = make(name, dtype)
    x, context = draw(bijection, (50,), dtype, size)
    for there, back in (directions(bijection), directions(bijection)[::-1]):
        y, log_det = there(x, context)
        again, opposite = back(y, context)
        assert relative_error(again, x, len(bijection.event_shape), periods(bijection)) <= tolerance
        assert relative_error(-opposite, log_det) <= 10 * tolerance


@every
def test_log_det_is_that_of_the_jacobian(name):
    bijection = make(name)
    x, context = draw(bijection)
    for method in directions(bijection):
        assert relative_error(method(x, context)[1], log_det_by_autograd(method, x, context)) < 1e-9


@every
def test_score_is_the_gradient_of_the_log_density(name):
    bijection = make(name)
    x, context = draw(bijection, (5,))
    y, log_det, score = bijection.forward_and_score(x, -x, context)
    expected_y, expected_log_det = bijection.forward_and_log_det(x, context)
    leaf = y.detach().requires_grad_()
    (expected,) = torch.autograd.grad(density(bijection, context).log_prob(leaf).sum(), leaf)
    assert relative_error(score, expected) < 1e-9
    assert relative_error(y, expected_y) < 1e-12 and relative_error(log_det, expected_log_det) < 1e-12
    assert not score.requires_grad


@learned
def test_score_under_no_grad_leaves_no_graph(name):
    bijection = make(name)
    x, context = draw(bijection, (5,))
    with torch.no_grad():
        assert not any(part.requires_grad for part in bijection.forward_and_score(x, -x, context))


@every
@pytest.mark.parametrize("batch", [(), (7,), (7, 3, 4), (0,)])
def test_batch_shapes(name, batch):
    bijection = make(name)
    x, context = draw(bijection, batch)
    for method in directions(bijection):
        y, log_det = method(x, context)
        assert y.shape == x.shape and log_det.shape == batch
        rows = (
            x.reshape(-1, *bijection.event_shape),
            context if context is None else context.reshape(-1, *bijection.context_shape),
        )
        assert relative_error(method(*rows)[0].reshape(x.shape), y) < 1e-12
    y, log_det, score = bijection.forward_and_score(x, -x, context)
    assert y.shape == score.shape == x.shape and log_det.shape == batch


@conditional
def test_one_context_serves_a_whole_batch(name):
    bijection = make(name)
    x, context = draw(bijection, (7, 3))
    shared = context[:1, :1]
    for method in directions(bijection):
        assert torch.equal(method(x, shared)[0], method(x, shared.expand(7, 3, *bijection.context_shape))[0])
        assert torch.equal(method(x, shared[0, 0])[0], method(x, shared)[0])


@conditional
def test_condition_fixes_the_context(name):
    bijection = make(name)
    x, context = draw(bijection, (7,))
    plain = bijection.condition(context)
    for method, expected in zip(directions(plain), directions(bijection), strict=True):
        assert torch.equal(method(x)[0], expected(x, context)[0])
        assert not torch.equal(method(x)[0], expected(x, context + 1)[0])


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_dtype_follows_the_input(name, dtype, default):
    bijection = make(name, dtype)
    torch.set_default_dtype(default)
    x, context = draw(bijection, (3,), dtype)
    for method in directions(bijection):
        assert [part.dtype for part in method(x, context)] == [dtype, dtype]


@every
def test_parameters_of_any_size_give_finite_numbers(name):
    bijection = make(name, noise=20.0)
    x, context = draw(bijection, (50,))
    for method in directions(bijection):
        y, log_det = method(x, context)
        assert y.isfinite().all() and log_det.isfinite().all()


# Gradients


# a sorted order does not change by a small step; `test_linear` says what its gradient is instead
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("permutation-learned")])
def test_gradients(name):
    bijection = make(name)
    x, context = draw(bijection, (2,))
    given = [x.requires_grad_()] + ([] if context is None else [context.requires_grad_()])
    for method in directions(bijection):
        # gradcheck moves the parameters in place, so the method sees them without being handed them
        assert torch.autograd.gradcheck(
            lambda *_, method=method: method(x, context), (*given, *bijection.parameters()), fast_mode=True
        )


@learned
def test_two_backward_passes_for_the_same_value(name):
    bijection = make(name)
    x, context = draw(bijection, (5,))
    q = density(bijection, context)
    gradients = []
    for _ in range(2):
        loss = -q.log_prob(x).sum()
        gradients.append(torch.autograd.grad(loss, list(bijection.parameters()), allow_unused=True))
    for first, second in zip(*gradients, strict=True):
        assert first is second is None or torch.equal(first, second)


@learned
def test_an_update_of_the_parameters_shows_at_once(name):
    bijection = make(name)
    x, context = draw(bijection, (5,))
    plain = bijection.condition(context)
    before = plain(x), plain.inv(x)
    randomise(bijection, 0.3)
    for old, new, method in zip(before, (plain(x), plain.inv(x)), directions(plain), strict=True):
        assert torch.equal(new, method(x)[0])
        assert not torch.equal(new, old)


# Copies, files, function transforms


@every
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["copy", "pickle"])
def test_a_copy_of_a_used_bijection_gives_the_same(name, duplicate):
    bijection = make(name)
    x, context = draw(bijection, (5,))
    plain = bijection.condition(context)
    y = plain(x)  # held, and with it the note that the call left
    plain.inv(y)
    for twin, original in ((duplicate(bijection), bijection), (duplicate(plain), plain)):
        for method, expected in zip(directions(twin), directions(original), strict=True):
            assert all(map(torch.equal, method(x, context), expected(x, context)))


# the context of a conditioned map is an argument, not state
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("conditioned")])
def test_state_dict_carries_all_there_is(name):
    bijection = make(name)
    file = io.BytesIO()
    torch.save(bijection.state_dict(), file)
    file.seek(0)
    torch.manual_seed(2)
    fresh = CASES[name]().double()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x, context = draw(bijection, (5,))
    for method, expected in zip(directions(fresh), directions(bijection), strict=True):
        assert all(map(torch.equal, method(x, context), expected(x, context)))


@every
def test_vmap_equals_the_batch(name):
    bijection = make(name)
    x, context = draw(bijection, (5,))
    arguments = (x,) if context is None else (x, context)
    for method in directions(bijection):
        for found, expected in zip(torch.func.vmap(method)(*arguments), method(*arguments), strict=True):
            assert relative_error(found, expected) < 1e-12


COMPILED = [name for name in CASES if name.startswith("coupling") and name.endswith("context")]


@pytest.mark.parametrize("name", [*COMPILED, "coupling-tanh", "mask-random", "spline_coupling"])
def test_compiles_without_graph_breaks(name):
    bijection = make(name)
    x, context = draw(bijection, (5,))
    torch._dynamo.reset()
    assert torch._dynamo.explain(bijection.forward_and_log_det)(x, context).graph_break_count == 0
    for method in directions(bijection):
        compiled = torch.compile(method, fullgraph=True, backend="eager")
        assert relative_error(compiled(x, context)[0], method(x, context)[0]) < 1e-12


# Errors


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]().event_shape])
def test_a_wrong_event_shape_is_named_beside_the_right_one(name):
    bijection = make(name)
    x, context = draw(bijection, (7,))
    wrong = torch.cat([x, x], -1)
    message = re.escape(str(tuple(bijection.event_shape))) + ".*" + re.escape(str(tuple(wrong.shape)))
    for method in (*directions(bijection), lambda z, c: bijection.forward_and_score(z, -z, c)):
        with pytest.raises(ValueError, match=message):
            method(wrong, context)
        with pytest.raises(ValueError, match="event shape"):
            method(x[0, ..., 0], context)


@conditional
@pytest.mark.parametrize("case", ["missing", "features", "batch", "number"])
def test_a_wrong_context_is_an_error(name, case):
    bijection = make(name)
    x, context = draw(bijection, (7,))
    wrong = {"missing": None, "features": context[..., :1], "batch": context[:3], "number": context[0, 0]}[case]
    for method in (*directions(bijection), lambda z, c: bijection.forward_and_score(z, -z, c)):
        with pytest.raises(ValueError, match="context"):
            method(x, wrong)
    if case != "batch":
        with pytest.raises(ValueError, match="context"):
            bijection.condition(wrong)
    with pytest.raises(ValueError, match="context"):
        bijection(x)


# Couplings of any make


@st.composite
def couplings(draw):
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    size = torch.Size(shape).numel()
    mask = draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(lambda stays: not all(stays)))
    elementwise = ELEMENTWISE[draw(st.sampled_from(sorted(ELEMENTWISE)))]
    torch.manual_seed(draw(st.integers(0, 99)))
    built = coupling(torch.tensor(mask).reshape(shape), elementwise, draw(st.integers(0, 2)), draw(st.booleans()))
    return randomise(built.double(), draw(st.sampled_from([0.0, 0.3, 1.0])))


@given(
    couplings(),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9),
)
@settings(max_examples=100)
def test_any_coupling_at_any_input(bijection, batch, values):
    _, context = draw(bijection, batch)
    shape = batch + tuple(bijection.event_shape)
    x = torch.tensor(values, dtype=torch.float64).repeat(torch.Size(shape).numel())[: torch.Size(shape).numel()]
    x = x.reshape(shape)
    for there, back in (directions(bijection), directions(bijection)[::-1]):
        y, log_det = there(x, context)
        assert y.shape == shape and log_det.shape == batch
        again, opposite = back(y, context)
        # a softplus scale has no upper bound, so a value of 1e3 may pass through one of 1e6
        assert relative_error(again, x, period=periods(bijection)) <= 1e-8
        assert relative_error(-opposite, log_det) <= 1e-8
        if not batch:
            assert relative_error(log_det, log_det_by_autograd(there, x, context)) <= 1e-8
