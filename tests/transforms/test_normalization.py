"""Activation normalisation by its first batch; batch normalisation against torch's and Pyro's."""

import copy
import io
import pickle

import pyro.distributions as dist
import pytest
import torch
from harness import directions, randomise, relative_error
from pyro.distributions.transforms import BatchNorm as PyrosBatchNorm

from pyro_coupling.transforms import ActNorm, BatchNorm, Chain, LULinear

CALLS = {
    "forward": lambda layer, x: layer.forward_and_log_det(x)[0],
    "inverse": lambda layer, x: layer.inverse_and_log_det(x)[0],
    "score": lambda layer, x: layer.forward_and_score(x, -x)[0],
    "call": lambda layer, x: layer(x),
    "inv": lambda layer, x: layer.inv(x),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
LAYOUTS = [((4,), -1), ((4, 5), -2), ((4, 2, 3), -3), ((2, 3, 4), -1)]
layouts = pytest.mark.parametrize(("shape", "dim"), LAYOUTS, ids=str)


def data(shape, n=50, dtype=torch.float64):
    """A scale of its own for every entry, far from zero for some."""
    entries = torch.Size(shape).numel()
    scale = torch.logspace(-2, 3, entries, dtype=dtype).reshape(shape)
    return 7.0 + scale * torch.randn(n, *shape, dtype=dtype)


def moments(x, dim):
    flat = x.movedim(dim, -1).flatten(0, -2)
    return flat.mean(0), flat.var(0, correction=0)


def is_set(layer):
    assert bool(layer.initialised) == layer._is_initialised
    return bool(layer.initialised)


# ActNorm: the first batch


@every_call
@layouts
def test_the_first_batch_comes_out_with_mean_zero_and_variance_one(call, shape, dim):
    layer = ActNorm(shape, dim).double()
    mean, variance = moments(call(layer, data(shape)), dim)
    assert mean.abs().max() < 1e-10 and (variance - 1).abs().max() < 1e-10
    assert is_set(layer)


@every_call
def test_later_batches_change_nothing(call):
    layer = ActNorm(4).double()
    call(layer, data((4,)))
    before = copy.deepcopy(layer.state_dict())
    call(layer, 100 * data((4,)))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@every_call
def test_in_eval_mode_before_any_batch_it_is_the_identity_and_stays_unset(call):
    layer = ActNorm(4).double().eval()
    x = data((4,))
    assert torch.equal(call(layer, x), x)
    assert not is_set(layer)
    layer.train()
    assert not torch.equal(call(layer, x), x)


@every_call
@pytest.mark.parametrize("n", [1, 50])
def test_a_constant_channel_is_only_centred(call, n):
    layer = ActNorm(3)
    x = torch.stack([torch.full((n,), 3.3), 1e4 + torch.zeros(n), torch.randn(n)], -1).requires_grad_()
    y = call(layer, x)
    assert y[:, :2].abs().max() < 1e-2 and y.isfinite().all()
    (y.sum() + layer.forward_and_log_det(x)[1].sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in (x, *layer.parameters()))
    assert torch.equal(layer.scale[:2], torch.ones(2))


@every_call
@pytest.mark.parametrize("bad", ["empty", "nan", "inf"])
def test_a_batch_that_says_nothing_is_passed_over(call, bad):
    layer = ActNorm(3).double()
    x = data((3,))
    spoilt = x[:0] if bad == "empty" else torch.where(x == x[0, 0], float(bad), x)
    y = call(layer, spoilt)
    assert not is_set(layer) and torch.equal(y.nan_to_num(), spoilt.nan_to_num())
    _, variance = moments(call(layer, x), -1)
    assert (variance - 1).abs().max() < 1e-10


def test_a_batch_of_one_event_sets_an_image_layer():
    layer = ActNorm((2, 8, 8), -3).double()
    mean, variance = moments(layer(data((2, 8, 8), n=1)), -3)
    assert mean.abs().max() < 1e-10 and (variance - 1).abs().max() < 1e-10
    assert ActNorm(3)(torch.randn(3)).abs().max() < 1e-6


def test_single_precision_far_from_zero():
    layer = ActNorm(2)
    mean, variance = moments(layer.inv(1e4 + torch.randn(500, 2)), -1)
    assert mean.abs().max() < 1e-2 and (variance - 1).abs().max() < 1e-2
    x = 1e4 + torch.randn(500, 2)
    assert relative_error(layer(layer.inv(x).clone()), x) < 1e-6


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_in_a_chain_each_layer_is_set_by_what_reaches_it(direction):
    chain = Chain([ActNorm(4), LULinear(4, seed=1), ActNorm(4)]).double()
    randomise(chain[1], 0.3)
    mean, variance = moments(CALLS[direction](chain, data((4,))), -1)
    assert mean.abs().max() < 1e-10 and (variance - 1).abs().max() < 1e-10
    assert is_set(chain[0]) and is_set(chain[2])


def test_what_was_learned_before_the_first_batch_is_forgotten():
    layer = randomise(ActNorm(4).double(), 1.0)
    assert moments(layer(data((4,))), -1)[0].abs().max() < 1e-10


def test_the_first_batch_sets_the_best_normal():
    layer = ActNorm(4).double()
    q = dist.TransformedDistribution(dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0), [layer])
    (-q.log_prob(data((4,))).mean()).backward()
    # at the maximum of the likelihood, where a gradient is rounding
    assert all(p.grad.abs().max() < 1e-10 for p in layer.parameters())


def test_raw_numbers_of_any_size_leave_it_finite():
    for noise in (20.0, 1e4):
        layer = randomise(ActNorm(4), noise).eval()
        x = (1e6 * torch.randn(5, 4)).requires_grad_()
        for method in directions(layer):
            y, log_det = method(x)
            gradients = torch.autograd.grad(y.sum() + log_det.sum(), [x, *layer.parameters()])
            assert all(part.isfinite().all() for part in (y, log_det, *gradients))


# ActNorm: state


def saved(layer):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_loading_a_set_layer_sets_this_one():
    layer = ActNorm(4).double()
    layer(data((4,)))
    fresh = Chain([ActNorm(4).double()])
    fresh.load_state_dict({f"parts.0.{key}": value for key, value in saved(layer).items()})
    assert is_set(fresh[0])
    x = data((4,))
    assert torch.equal(fresh(x), layer(x))


def test_loading_a_layer_that_is_not_set_unsets_this_one():
    layer = ActNorm(4).double()
    layer(data((4,)))
    layer.load_state_dict(saved(ActNorm(4).double()))
    assert not is_set(layer)
    assert (moments(layer(data((4,))), -1)[1] - 1).abs().max() < 1e-10


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["copy", "pickle"])
@pytest.mark.parametrize("used", [False, True])
def test_copies_keep_the_state(duplicate, used):
    layer = ActNorm(4).double()
    if used:
        layer(data((4,)))
    twin = duplicate(layer)
    assert is_set(twin) == used
    twin(data((4,)))
    assert is_set(twin) and is_set(layer) == used
    twin.load_state_dict(ActNorm(4).state_dict())
    assert not is_set(twin)  # the copy reads the flag it loads, and into itself
    assert is_set(layer) == used


def test_what_ran_in_eval_mode_can_be_differentiated_after_the_first_batch():
    layer = ActNorm(4).double().eval()
    before = layer.forward_and_log_det(data((4,)))[1]
    before.sum().backward()
    layer.train()(data((4,)))
    layer(data((4,))).sum().backward()


# ActNorm: tracing


@pytest.mark.parametrize("transform", [torch.func.vmap, lambda f: torch.func.jacrev(lambda x: f(x).sum())])
def test_a_function_transform_refuses_the_first_batch_alone(transform):
    layer = ActNorm(4).double()
    x = data((4,))
    with pytest.raises(RuntimeError, match="ActNorm: the first batch"):
        transform(layer.forward)(x)
    layer(x)
    transform(layer.forward)(x)


def test_tracing_refuses_the_first_batch_alone():
    layer = ActNorm(4).double()
    x = data((4,))
    with pytest.raises(RuntimeError, match="ActNorm: the first batch"):
        torch.jit.trace(lambda z: layer(z), (x,))
    layer(x)
    layer.requires_grad_(False)  # a trace holds no tensor that wants a gradient
    assert relative_error(torch.jit.trace(lambda z: layer(z), (x,))(x), layer(x)) < 1e-12


@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
def test_compilation_of_a_set_layer_has_no_graph_break_in_training_mode(method):
    layer = ActNorm(4).double()
    x = data((4,))
    layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(getattr(layer, method), fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x)[0], getattr(layer, method)(x)[0]) < 1e-12


def test_whole_graph_compilation_refuses_the_first_batch():
    layer = ActNorm(4).double()
    torch._dynamo.reset()
    with pytest.raises(Exception, match="ActNorm: the first batch"):
        torch.compile(layer.forward_and_log_det, fullgraph=True, backend="eager")(data((4,)))
    assert not is_set(layer)


# BatchNorm


@layouts
def test_training_normalises_as_torch_does(shape, dim):
    layer, theirs = BatchNorm(shape, dim).double(), torch.nn.BatchNorm1d(4).double()
    x, twin = (data(shape).requires_grad_() for _ in range(2))
    twin.data = x.data.clone()
    found = layer.inverse_and_log_det(x)[0]
    expected = theirs(twin.movedim(dim, -1).reshape(-1, 4)).reshape(x.movedim(dim, -1).shape).movedim(-1, dim)
    assert relative_error(found, expected) < 1e-10
    assert relative_error(layer.running_mean, theirs.running_mean) < 1e-10
    weights = torch.randn_like(x)
    gradients = [torch.autograd.grad((y * weights).sum(), z)[0] for y, z in ((found, x), (expected, twin))]
    assert relative_error(*gradients) < 1e-9


def test_running_averages_follow_the_batches():
    layer = BatchNorm(3, momentum=0.25).double()
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for _ in range(3):
        x = data((3,))
        layer.inverse_and_log_det(x)
        mean, variance = 0.75 * mean + 0.25 * x.mean(0), 0.75 * variance + 0.25 * x.var(0, correction=0)
    assert relative_error(layer.running_mean, mean) < 1e-12
    assert relative_error(layer.running_variance, variance) < 1e-12


def test_forwards_and_in_eval_mode_it_agrees_with_pyros():
    layer, theirs = randomise(BatchNorm(3).double(), 0.3), PyrosBatchNorm(3).double()
    layer.inverse_and_log_det(data((3,)))
    theirs.moving_mean, theirs.moving_variance = layer.running_mean, layer.running_variance
    theirs.beta.data, theirs.gamma.data = layer.bias.data, layer.raw_gain.data.asinh().exp()
    x = data((3,))
    assert relative_error(layer(x), theirs(x)) < 1e-5  # Pyro adds 1e-6 to the gain
    layer.eval(), theirs.eval()
    assert relative_error(layer.inv(x), theirs.inv(x)) < 1e-5
    log_det = theirs.log_abs_det_jacobian(x, theirs(x)).sum(-1)
    assert relative_error(layer.log_abs_det_jacobian(x, layer(x)), log_det) < 1e-5


def test_with_momentum_one_evaluation_repeats_training():
    layer = randomise(BatchNorm((4, 5), -2, momentum=1.0).double(), 0.3)
    x = data((4, 5))
    trained = layer.inverse_and_log_det(x)
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(layer.eval().inverse_and_log_det(x), trained, strict=True))


def test_forwards_training_mode_changes_nothing():
    layer = BatchNorm(3).double()
    before = copy.deepcopy(layer.state_dict())
    x = data((3,))
    y, log_det, score = layer.forward_and_score(x, -x)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    for found, expected in zip((y, log_det, score), layer.eval().forward_and_score(x, -x), strict=True):
        assert torch.equal(found, expected)


def test_log_prob_in_training_mode_takes_all_from_the_batch():
    layer = BatchNorm(3).double()
    normal = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)
    x = data((3,))
    found = dist.TransformedDistribution(normal, [layer]).log_prob(x)
    noise, log_det = layer.inverse_and_log_det(x)
    assert relative_error(found, normal.log_prob(noise) + log_det) < 1e-12


@pytest.mark.parametrize("bad", ["empty", "nan", "inf"])
def test_a_bad_batch_does_not_spoil_the_running_averages(bad):
    layer = BatchNorm(3).double()
    x = data((3,))
    layer.inverse_and_log_det(x)
    before = copy.deepcopy(layer.state_dict())
    layer.inverse_and_log_det(x[:0] if bad == "empty" else torch.where(x == x[0, 0], float(bad), x))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_constant_channel_stays_finite():
    layer = BatchNorm(2)
    for x in (torch.ones(5, 2), torch.ones(1, 2), torch.ones(2)):
        x.requires_grad_()
        y, log_det = layer.inverse_and_log_det(x)
        (y.square().sum() + log_det.sum()).backward()
        assert all(part.isfinite().all() for part in (y, log_det, x.grad, layer.raw_gain.grad, layer.running_variance))


def test_batch_norm_compiles_without_graph_breaks_in_training_mode():
    layer = BatchNorm(3).double()
    twin = copy.deepcopy(layer)
    x = data((3,))
    torch._dynamo.reset()
    found = torch.compile(layer.inverse_and_log_det, fullgraph=True, backend="aot_eager")(x)
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(found, twin.inverse_and_log_det(x), strict=True))
    assert relative_error(layer.running_variance, twin.running_variance) < 1e-12


def test_batch_norm_refuses_to_be_trained_one_event_at_a_time():
    layer = BatchNorm(3).double()
    with pytest.raises(RuntimeError, match=r"BatchNorm: .*eval\(\)"):
        torch.func.vmap(layer.inverse_and_log_det)(data((3,)))
    torch.func.vmap(layer.eval().inverse_and_log_det)(data((3,)))


def test_batch_norm_is_refused_by_a_chain_that_inverts():
    with pytest.raises(ValueError, match="BatchNorm"):
        Chain([BatchNorm(3)], reversible=True)


# Arguments


INVALID = [
    (lambda: ActNorm((3, 4), dim=-3), "ActNorm: dim"),
    (lambda: ActNorm(0), "event_shape"),
    (lambda: BatchNorm(3, dim=0), "BatchNorm: dim"),
    (lambda: BatchNorm(3, momentum=0.0), "BatchNorm: momentum"),
    (lambda: BatchNorm(3, momentum=1.5), "BatchNorm: momentum"),
    (lambda: BatchNorm(3, eps=0.0), "BatchNorm: eps"),
]


@pytest.mark.parametrize(("invalid", "message"), INVALID)
def test_an_invalid_argument_is_named(invalid, message):
    with pytest.raises(ValueError, match=message):
        invalid()
