"""`PyroTarget`: the batched log density of a Pyro model, held against Pyro's own one point at a time."""

import functools
import itertools
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Y, groups, location_scale, normal_mean, subsampled, two_normals
from pyro.distributions import constraints
from pyro.infer.autoguide.initialization import InitMessenger
from torch.distributions import biject_to

from pyro_coupling.targets import PyroTarget, init_to_center, log_prob_and_score

DATA = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.0, 0.3]])


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


# Reference values: Pyro's own trace, one point at a time


def latent_sites(model, args=()):
    trace = poutine.trace(InitMessenger(init_to_center)(model)).get_trace(*args)
    return {
        name: site["fn"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and type(site["fn"]).__name__ != "_Subsample"
    }


def reference(model, x, args=()):
    """Log joint density at points (n, dim), the discrete latents summed out by brute force."""
    sites = latent_sites(model, args)
    discrete = {name: fn for name, fn in sites.items() if getattr(fn.support, "is_discrete", False)}

    def joint(values):
        return poutine.trace(poutine.condition(model, values)).get_trace(*args).log_prob_sum()

    def assignments(name):
        fn = discrete[name]
        support = fn.enumerate_support(expand=False).flatten().tolist()
        for choice in itertools.product(support, repeat=fn.batch_shape.numel()):
            yield name, torch.tensor(choice).reshape(fn.batch_shape)

    total = []
    for row in x:
        values, log_jacobian, position = {}, 0.0, 0
        for name, fn in sites.items():
            if name in discrete:
                continue
            transform = biject_to(fn.support)
            shape = transform.inverse_shape(fn.shape())
            free = row[position : position + shape.numel()].reshape(shape)
            values[name] = transform(free)
            log_jacobian = log_jacobian + transform.log_abs_det_jacobian(free, values[name]).sum()
            position += shape.numel()
        assert position == len(row)
        terms = [joint(values | dict(z)) for z in itertools.product(*[list(assignments(name)) for name in discrete])]
        total.append(torch.logsumexp(torch.stack(terms), 0) + log_jacobian)
    return torch.stack(total)


# Models, each with one thing that a density can be got wrong by


def nested_plates():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 2, dim=-2):
        row = pyro.sample("row_effect", dist.Normal(mu, 1.0))
        with pyro.plate("column", 3, dim=-1):
            cell = pyro.sample("cell", dist.Normal(row, 0.5))
            pyro.sample("y", dist.Normal(cell, 1.0), obs=DATA)


def crossed_plates():
    row, column = pyro.plate("row", 2, dim=-2), pyro.plate("column", 3, dim=-1)
    with row:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with column:
        b = pyro.sample("b", dist.Gamma(2.0, 1.0))
    with row, column:
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=DATA)


def constrained():
    pyro.sample("positive", dist.Gamma(2.0, 3.0))
    pyro.sample("interval", dist.Uniform(-2.0, 3.0))
    pyro.sample("unit", dist.Beta(2.0, 1.0))
    pyro.sample("simplex", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    pyro.sample("correlation", dist.LKJCholesky(3, 2.0))
    pyro.sample("above", dist.Pareto(1.0, 2.0))


def ordered():
    cuts = pyro.sample("cuts", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    pyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(cuts).sum(-1))


def constrained_in_a_plate():
    with pyro.plate("group", 2):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("count", dist.Multinomial(5, p), obs=torch.tensor([[1.0, 2.0, 2.0], [5.0, 0.0, 0.0]]))


def multivariate():
    x = pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), 2 * torch.eye(3)))
    with pyro.plate("data", 2):
        pyro.sample("y", dist.MultivariateNormal(x, torch.eye(3)), obs=DATA)


def scaled():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.5), pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=Y)


def masked():
    mask = torch.tensor([True, False, True])
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        with poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0).mask(mask), obs=Y)
    with poutine.mask(mask=False):
        pyro.sample("unseen", dist.Normal(mu, 1.0), obs=torch.tensor(1.0))


def factors():
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), (2,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.factor("penalty", -mu.square().sum(-1))
    pyro.sample("prior", dist.LogNormal(0.0, 1.0), obs=sigma)


def transformed():
    pyro.sample("x", dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.ExpTransform()]))
    pyro.deterministic("two", torch.tensor(2.0))
    x = pyro.sample("left", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=DATA)


def vector_in_plates():
    with pyro.plate("a", 2, dim=-3):
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        assert x.shape[-4:] == (2, 1, 1, 4)
        with pyro.plate("b", 3, dim=-1):
            pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=torch.ones(2, 1, 3))


CONTINUOUS = [
    normal_mean, location_scale, groups, nested_plates, crossed_plates, constrained, ordered, constrained_in_a_plate,
    multivariate, scaled, masked, factors, transformed, vector_in_plates,
    poutine.scale(groups, 0.3), poutine.condition(groups, {"mu": torch.tensor(0.5).double()}),
    poutine.mask(location_scale, mask=False),
]  # fmt: skip


def switch():
    z = pyro.sample("z", dist.Bernoulli(0.3))
    mu = pyro.sample("mu", dist.Normal(z, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(mu, 1.0 + z), obs=Y)


def switch_and_labels():
    k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Categorical(weights))
        loc = torch.where(z == 0, locs[..., 0], locs[..., 1])
        pyro.sample("y", dist.Normal(loc + k, 1.0), obs=Y)


def chain():
    stay = pyro.sample("stay", dist.Beta(2.0, 1.0))
    state = 0.0
    for t in range(3):
        state = pyro.sample(f"state_{t}", dist.Bernoulli(state * stay + (1 - state) * 0.3))
        pyro.sample(f"y_{t}", dist.Normal(state, 1.0), obs=Y[t])


def nested_labels():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 2, dim=-2):
        a = pyro.sample("a", dist.Bernoulli(0.4))
        with pyro.plate("column", 2, dim=-1):
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
            pyro.sample("y", dist.Normal(mu + b, 1.0), obs=DATA[:, :2])


# a scale acts on the joint density of all latents, before the sum, as in Pyro's NUTS
DISCRETE = [two_normals, switch, switch_and_labels, chain, nested_labels, poutine.scale(two_normals, 0.5)]


def name_of(model):
    return getattr(model, "__name__", None) or f"{type(model.func.__self__).__name__}-{model.args[0].__name__}"


every_continuous = pytest.mark.parametrize("model", CONTINUOUS, ids=name_of)
every_discrete = pytest.mark.parametrize("model", DISCRETE, ids=name_of)


def quiet_target(model, args=(), **kwargs):
    """A target whose making gives no warning: the model runs on batches."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return PyroTarget(model, args, **kwargs)


@every_continuous
def test_log_density_is_pyros(model, double):
    target = quiet_target(model)
    x = 0.7 * torch.randn(5, target.dim)
    assert target.vectorized
    torch.testing.assert_close(target.log_prob(x), reference(model, x))


@every_discrete
def test_discrete_latents_are_summed_out(model, double):
    target = quiet_target(model)
    x = 0.7 * torch.randn(3, target.dim)
    assert target.vectorized
    torch.testing.assert_close(target.log_prob(x), reference(model, x))


def test_log_density_by_hand(double):
    # mu real, sigma = exp(s): Normal(mu; 0, 10) LogNormal(sigma; 0, 1) prod Normal(y; mu, sigma), times sigma
    mu, s = torch.tensor(0.7), torch.tensor(-0.4)
    by_hand = -(mu**2) / 200 - math.log(10) - s**2 / 2 - (((Y - mu) / s.exp()) ** 2).sum() / 2 - 3 * s
    by_hand = by_hand - 2.5 * math.log(2 * math.pi)
    log_p = PyroTarget(location_scale, (Y.double(),)).log_prob(torch.stack([mu, s]).unsqueeze(0))
    torch.testing.assert_close(log_p, by_hand.reshape(1))


@pytest.mark.parametrize("model", CONTINUOUS + DISCRETE, ids=name_of)
def test_gradient_is_the_finite_difference(model, double):
    target = quiet_target(model)
    x = 0.7 * torch.randn(2, target.dim)
    log_p, score = log_prob_and_score(target, x)
    assert not log_p.requires_grad
    assert not score.requires_grad
    width = 1e-5 * torch.eye(target.dim)
    for row, gradient in zip(x, score, strict=True):
        slopes = (target.log_prob(row + width) - target.log_prob(row - width)) / 2e-5
        torch.testing.assert_close(gradient, slopes, rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 9), st.integers(1, 12))
def test_a_batch_is_its_points(start, size):
    points = torch.linspace(-2, 2, 60, dtype=torch.float64).reshape(20, 3)[start : start + size]
    target = vector_and_switch_target()
    torch.testing.assert_close(target.log_prob(points), torch.cat([target.log_prob(row) for row in points.split(1)]))


@functools.cache
def vector_and_switch_target():
    return PyroTarget(vector_and_switch, (Y.double(),))


def vector_and_switch(y):
    z = pyro.sample("z", dist.Bernoulli(y.new_tensor(0.3)))
    x = pyro.sample("x", dist.Normal(y.new_zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x + z.unsqueeze(-1), 1.0).to_event(1), obs=y)


# Models that do not run on a batch


def with_item():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(math.exp(x.item()), 1.0), obs=torch.tensor(1.0))


def with_branch():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(2 * x if x > 0 else x, 1.0), obs=torch.tensor(1.0))


def indexed_from_the_left():
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(x[0] + 2 * x[2], 1.0), obs=torch.tensor(1.0))


def square_and_indexed_from_the_left():
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
    pyro.sample("y", dist.Normal(x[0], 1.0).to_event(1), obs=torch.tensor([1.0, 2.0]))


def summed_over_everything():
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(1.0))


def stacked():
    a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(torch.stack([a, b]), 1.0).to_event(1), obs=torch.tensor([1.0, 2.0]))


def unpacked():
    a, b = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(a * b, 1.0), obs=torch.tensor(1.0))


def discrete_and_indexed_from_the_left():
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("y", dist.Normal(x[0] + 2 * x[2] + z, 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize(
    "model",
    [
        with_item,
        with_branch,
        indexed_from_the_left,
        square_and_indexed_from_the_left,
        summed_over_everything,
        stacked,
        unpacked,
        discrete_and_indexed_from_the_left,
    ],
)
def test_a_model_that_cannot_run_on_a_batch_is_run_point_by_point(model, double):
    with pytest.warns(UserWarning, match="can't be run on a batch of points at once.* index from the right"):
        target = PyroTarget(model)
    assert not target.vectorized
    x = torch.randn(4, target.dim)
    torch.testing.assert_close(target.log_prob(x), reference(model, x))


def test_point_by_point_everything_else_works_too(double):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.deterministic("first", x[0])
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(x[0], 1.0), obs=Y[:2])

    with pytest.warns(UserWarning, match="point by point"):
        target = PyroTarget(model)
    x = torch.randn(4, 3)
    assert torch.equal(target.constrain(x)["first"], x[:, 0])
    expected = dist.Normal(x[:, :1], 1.0).log_prob(Y[:2])
    torch.testing.assert_close(target.log_likelihood(x)["y"], expected)
    assert target.predict(x)["y"].shape == (4, 2)
    assert log_prob_and_score(target, x)[1].isfinite().all()


def test_plates_hidden_from_the_target_do_not_stop_it_from_batching():
    target = quiet_target(poutine.block(nested_plates, expose=["mu"]))
    x = torch.randn(5, 1)
    assert target.vectorized
    torch.testing.assert_close(target.log_prob(x), dist.Normal(0.0, 1.0).log_prob(x[:, 0]))


# Points where the model fails


@pytest.mark.parametrize("model", [location_scale, constrained, groups, two_normals, crossed_plates])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
def test_far_out_there_is_no_exception_and_no_nan(model, size):
    target = PyroTarget(model)
    x = size * torch.tensor([[-1.0], [1.0], [0.0]]).expand(3, target.dim)
    log_p, score = log_prob_and_score(target, x)
    assert not log_p.isnan().any()
    assert (log_p < torch.inf).all()
    assert score.isfinite().all()
    assert log_p[-1].isfinite()


def gaussian_process():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    grid = torch.linspace(0, 1, 3)
    kernel = torch.exp(-((grid - grid.unsqueeze(-1)) ** 2) / scale[..., None, None] ** 2)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), kernel), obs=Y)


def careful():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if (x > 5).any():
        raise ArithmeticError("diverged")
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize(("model", "bad"), [(gaussian_process, 20.0), (careful, 7.0)])
def test_a_point_where_the_model_raises_has_density_zero_and_spoils_no_other(model, bad, double):
    target = quiet_target(model)
    x = torch.tensor([[-1.0], [0.1], [bad], [-0.5], [bad]])
    log_p, score = log_prob_and_score(target, x)
    good = x[:, 0] < bad
    assert (log_p[~good] == -torch.inf).all()
    assert (score[~good] == 0).all()
    alone_p, alone_score = log_prob_and_score(target, x[good])
    assert alone_p.isfinite().all()
    torch.testing.assert_close(log_p[good], alone_p)
    torch.testing.assert_close(score[good], alone_score)


def test_a_mistake_in_the_model_is_not_taken_for_a_bad_point():
    def model(table):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, table["sd"]), obs=torch.tensor(1.0))

    table = {"sd": 1.0}
    target = PyroTarget(model, (table,))
    del table["sd"]
    with pytest.raises(KeyError):
        target.log_prob(torch.zeros(2, 1))


# What can't be served


def observing(value, fn, **kwargs):
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", fn(mu), obs=value, **kwargs)

    return model


def positive_rate(mu):
    return dist.Poisson(mu.exp())


def no_latent():
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


def only_discrete():
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))


def infinite_support():
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    count = pyro.sample("count", dist.Poisson(rate))
    pyro.sample("y", dist.Normal(count, 1.0), obs=torch.tensor(1.0))


def appearing_site():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if x > 0.2:
        pyro.sample("extra", dist.Normal(0.0, 1.0))


def changing_shape():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("more", dist.Normal(0.0, 1.0).expand([2 if x > 0.2 else 1]).to_event(1))


def moving_support():
    top = pyro.sample("top", dist.Gamma(1.0, 1.0))
    pyro.sample("below", dist.Uniform(0.0, top))


def sequential():
    for i in pyro.plate("step", 2):
        pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0))


def local_in_a_minibatch():
    with pyro.plate("data", 10, subsample_size=4):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def mixture():
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (observing(torch.tensor([1.0, math.nan]), lambda mu: dist.Normal(mu, 1.0).expand([2]).to_event(1)),
         r"site 'y' contain 1 NaN; leave them out, or mask"),
        (observing(torch.tensor(-1.0), positive_rate), r"site 'y' lie outside the support of Poisson.*in 1 place"),
        (observing(torch.tensor([1.5, -2.0]), lambda mu: dist.LogNormal(mu + torch.zeros(2), 1.0).to_event(1)),
         r"site 'y' lie outside the support of LogNormal"),
        (no_latent, "no continuous latent site"),
        (only_discrete, "no continuous latent site"),
        (infinite_support, r"latent site 'count' \(Poisson\) is discrete and has no finite support"),
        (appearing_site, r"dynamic structure: the sites \['extra'\]"),
        (changing_shape, r"dynamic structure: the sites \['more'\]"),
        (moving_support, r"support of the latent site 'below' depends on another latent.*Uniform\(0, 1\)"),
        (sequential, r"latent site 'x_0' lies in a sequential plate"),
        (local_in_a_minibatch, r"'z' lies in the plate 'data', which is subsampled \(4 of 10\)"),
        (mixture, r"'x' \(MixtureSameFamily\) has a support without a known bijection"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_what_cannot_be_served_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        PyroTarget(model)


def test_structure_that_changes_after_the_model_was_read_is_not_overlooked():
    def model(extra):
        pyro.sample("x", dist.Normal(0.0, 1.0))
        if extra:
            pyro.sample("late", dist.Normal(0.0, 1.0))

    extra = []
    target = PyroTarget(model, (extra,))
    extra.append(1)
    with pytest.raises(RuntimeError, match="dynamic structure: the latent site 'late'"):
        target.log_prob(torch.zeros(2, 1))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 2)])
def test_points_of_another_dimension_are_refused(shape):
    with pytest.raises(ValueError, match=r"points must be \(n, 2\), got"):
        PyroTarget(location_scale).log_prob(torch.zeros(shape))


def test_no_points_give_no_values():
    target = PyroTarget(location_scale)
    assert target.log_prob(torch.zeros(0, 2)).shape == (0,)
    assert {k: v.shape for k, v in target.constrain(torch.zeros(0, 2)).items()} == {"mu": (0,), "sigma": (0,)}


# Missing and masked data


HOLES = torch.tensor([[1.0, math.nan, 2.0], [0.5, 0.1, math.nan], [1.0, 2.0, 3.0]])


def column_masked():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    seen = torch.tensor([True, False, False])
    with pyro.plate("row", 3, dim=-2), pyro.plate("column", 3, dim=-1), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=HOLES)


def vectors_masked():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 3):
        fn = dist.Normal(mu.unsqueeze(-1) + torch.zeros(3), 1.0).to_event(1)
        pyro.sample("y", fn.mask(~HOLES.isnan().any(-1)), obs=HOLES)


@pytest.mark.parametrize("model", [column_masked, vectors_masked])
def test_nan_under_a_mask_is_no_error(model):
    with pyro.validation_enabled(False):
        PyroTarget(model)


def missing(y, seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)


def test_obs_mask_gives_missing_data_a_density_and_keeps_that_of_the_rest(double):
    y, seen = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([True, False, True])
    target = quiet_target(missing, (y, seen))
    x = torch.randn(4, 4)
    mu, imputed = x[:, :1], x[:, 1:]
    joint = dist.Normal(0.0, 10.0).log_prob(mu[:, 0]) + dist.Normal(mu, 1.0).log_prob(y[seen]).sum(-1)
    # also for the data that are there: Pyro leaves these entries without a density, which no flow can follow
    torch.testing.assert_close(target.log_prob(x), joint + dist.Normal(mu, 1.0).log_prob(imputed).sum(-1))
    assert target.structure.imputed == ("y_unobserved",)


# Values


def test_float64_anywhere_makes_the_target_float64():
    for model, args in ((normal_mean, (Y.double(),)), (location_scale, (Y.double(),))):
        target = PyroTarget(model, args)
        assert target.dtype == target.initial.dtype == torch.float64
        x = torch.zeros(3, target.dim, dtype=torch.float64)
        assert target.log_prob(x).dtype == torch.float64
        assert {v.dtype for v in target.constrain(x).values()} == {torch.float64}
    assert PyroTarget(normal_mean, (Y,)).dtype == torch.float32


@pytest.mark.parametrize("model", CONTINUOUS, ids=name_of)
def test_constrain_and_unconstrain_are_inverse(model, double):
    target = PyroTarget(model)
    x = torch.randn(6, target.dim)
    values = target.constrain(x)
    for name, fn in latent_sites(model).items():
        assert values[name].shape == (6, *fn.shape())
        assert fn.support.check(values[name]).all()
    torch.testing.assert_close(target.unconstrain(values), x)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x, (3,)),
        (lambda x: x.sum(-1), ()),
        (lambda x: x[..., 0], ()),
        (lambda x: x.unsqueeze(-1) * x.unsqueeze(-2), (3, 3)),
        (lambda x: x > 0, (3,)),
        (lambda x: (x > 0).sum(-1), ()),
        (lambda x: torch.tensor([1.0, 2.0]), (2,)),
        (lambda x: torch.log(x), (3,)),  # NaN where x < 0
        (lambda x: x.sum(), ()),  # the others of the batch too: has to be run alone
        (lambda x: x - x[0], (3,)),
        (lambda x: torch.stack([x[..., 0], x[..., 1]]), (2,)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("event_dim", [None, 0])
def test_deterministic_sites(function, shape, event_dim, double):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.deterministic("d", function(x), event_dim=event_dim)
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=torch.ones(4))

    # event_dim=0 of a value with dimensions is Pyro's default of a batch shape; it must not count as a plate
    target = PyroTarget(model)
    for n in (1, 3, 5):
        x = torch.randn(n, 3)
        expected = torch.stack([function(row) for row in x])
        found = target.constrain(x)["d"]
        assert found.shape == (n, *shape)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, equal_nan=True)
    assert set(target.constrain(x, deterministic=False)) == {"x"}


def test_deterministic_sites_in_plates(double):
    def model():
        with pyro.plate("row", 2, dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * a)
            with pyro.plate("column", 3, dim=-1):
                b = pyro.sample("b", dist.Normal(a, 1.0))
                pyro.deterministic("sum", a + b)

    target = PyroTarget(model)
    found = target.constrain(torch.randn(5, 8))
    assert {k: v.shape for k, v in found.items()} == {
        "a": (5, 2, 1), "b": (5, 2, 3), "twice": (5, 2, 1), "sum": (5, 2, 3)
    }  # fmt: skip
    torch.testing.assert_close(found["sum"], found["a"] + found["b"])


def test_log_likelihood_of_each_observation(double):
    target = PyroTarget(nested_plates)
    x = torch.randn(5, target.dim)
    found = target.log_likelihood(x)["y"]
    torch.testing.assert_close(found, dist.Normal(target.constrain(x)["cell"], 1.0).log_prob(DATA))


@pytest.mark.parametrize("model", [two_normals, nested_plates, multivariate, scaled, masked, constrained_in_a_plate])
def test_predictions_have_the_shape_of_the_data_and_follow_the_likelihood(model):
    target = PyroTarget(model)
    x = torch.zeros(2000, target.dim)
    predicted, data = target.predict(x), target.observed_data()
    assert {k: v.shape for k, v in predicted.items()} == {k: (2000, *v.shape) for k, v in data.items()}
    assert all(v.float().std(0).max() > 0 for v in predicted.values())


def test_predictions_follow_the_likelihood():
    target = PyroTarget(normal_mean)
    x = torch.tensor([[-3.0], [4.0]]).repeat(1000, 1)
    error = target.predict(x)["y"] - x
    # 6000 standard normal numbers: 5 standard errors of mean and standard deviation
    assert abs(error.mean().item()) < 5 / math.sqrt(6000)
    assert error.std().item() == pytest.approx(1.0, abs=5 / math.sqrt(12_000))


def test_observed_data_are_the_data_and_not_factors_or_priors():
    assert torch.equal(PyroTarget(normal_mean, (Y,)).observed_data()["y"], Y)
    assert PyroTarget(factors).observed_data() == {}


def test_init_loc_fn_sets_the_initial_point():
    def model():
        pyro.sample("x", dist.Normal(5.0, 1.0))
        pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))

    torch.testing.assert_close(PyroTarget(model).initial, torch.zeros(2))
    mean = PyroTarget(model, init_loc_fn=pyro.infer.autoguide.init_to_mean).initial
    torch.testing.assert_close(mean, torch.tensor([5.0, 0.0]))  # the improper one can't be sampled: its centre
    assert init_to_center({"name": "u", "fn": dist.Uniform(2.0, 4.0)}).item() == 3.0


# Randomness and parameters of the model's own


def test_a_parameter_of_the_model_is_kept_and_spoken_of():
    def model():
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("x", dist.Normal(0.0, scale))

    with pytest.warns(UserWarning, match=r"pyro.param, 'scale': its value is kept as it is"):
        target = PyroTarget(model)
    torch.testing.assert_close(target.log_prob(torch.zeros(1, 1)), dist.Normal(0.0, 2.0).log_prob(torch.zeros(1)))


@pytest.mark.parametrize("hidden", [dist.Normal(0.0, 1.0), dist.Bernoulli(0.5)], ids=["continuous", "discrete"])
def test_a_random_density_is_recognised_and_frozen(hidden):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with poutine.block():
            z = pyro.sample("z", hidden)
        pyro.sample("y", dist.Normal(x + z, 1.0), obs=torch.tensor(1.0))

    target = quiet_target(model)
    x = torch.randn(5, 1)
    assert target.stochastic
    assert torch.equal(target.log_prob(x), target.log_prob(x))


def test_randomness_that_leaves_the_density_alone_is_none():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))
        return torch.randn(())

    assert not quiet_target(model).stochastic


def test_a_minibatch_is_the_same_one_at_every_call():
    target = quiet_target(subsampled, (torch.arange(30.0), 5))
    x = torch.randn(4, 1)
    assert target.stochastic
    assert target.structure.subsampled == {"data": (5, 30)}
    first = target.log_prob(x)
    assert torch.equal(first, target.log_prob(x))
    # scaled to the full data
    (index,) = target.structure.subsamples.values()
    y = torch.arange(30.0)[index]
    by_hand = dist.Normal(0.0, 10.0).log_prob(x[:, 0]) + 6 * dist.Normal(x, 1.0).log_prob(y).sum(-1)
    torch.testing.assert_close(first, by_hand)


def test_handlers_outside_see_nothing_of_the_target():
    with poutine.trace() as trace:
        target = PyroTarget(groups)
        target.log_prob(torch.zeros(2, 4))
        target.constrain(torch.zeros(2, 4))
        target.predict(torch.zeros(2, 4))
    assert len(trace.trace.nodes) == 0


def test_larger_models_are_evaluated_in_chunks_with_the_same_result(double):
    target = PyroTarget(nested_plates)
    x = torch.randn(23, target.dim)
    whole = log_prob_and_score(target, x)
    target.chunk_size = 5
    for a, b in zip(whole, log_prob_and_score(target, x), strict=True):
        torch.testing.assert_close(a, b)


def test_numpy_numbers_as_data():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu.unsqueeze(-1) + torch.zeros(3), 1.0).to_event(1), obs=torch.as_tensor(y))

    assert PyroTarget(model, (np.array([1.0, 2.0, 3.0]),)).dtype == torch.float64
