"""`AutoCouplingFlow` with everything in Pyro that takes a guide."""

import copy
import io
import math
import pickle
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from models import (
    Y,
    groups,
    groups_evidence,
    groups_posterior,
    location_scale,
    normal_mean,
    normal_mean_posterior,
    small_flow,
    two_normals,
)
from pyro.distributions.transforms import affine_coupling as pyros_affine_coupling
from pyro.distributions.transforms import iterated
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDiscreteParallel, AutoGuideList, AutoNormal
from pyro.infer.reparam import LocScaleReparam, NeuTraReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch.distributions import constraints

from pyro_coupling import AutoCouplingFlow, flows
from pyro_coupling.targets import PyroTarget
from pyro_coupling.transforms import affine_coupling, spline_coupling

particles = {"num_particles": 5, "vectorize_particles": True, "max_plate_nesting": 1}


def train(guide, model, *args, loss=None, steps=3, lr=1e-3):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), loss or Trace_ELBO())
    return [svi.step(*args) for _ in range(steps)]


def small(model, **kwargs):
    """A guide that is quick to make."""
    return AutoCouplingFlow(model, **({"flow": small_flow, "num_starts": 2} | kwargs))


def met(model, *args, **kwargs):
    """A small guide that has met its model."""
    guide = small(model, **kwargs)
    guide(*args)
    return guide


# Every ELBO


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=5),
        Trace_ELBO(**particles),
        TraceMeanField_ELBO(),
        TraceMeanField_ELBO(**particles),
        TraceGraph_ELBO(),
        TraceGraph_ELBO(**particles),
        TraceEnum_ELBO(max_plate_nesting=1),
        TraceEnum_ELBO(**particles),
        RenyiELBO(0.5, num_particles=2),
        RenyiELBO(0.5, **particles),
    ],
    ids=lambda elbo: f"{type(elbo).__name__}-{elbo.num_particles}{'-vectorized' * elbo.vectorize_particles}",
)
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_the_guide_of_a_gaussian_posterior_starts_at_the_evidence_and_trains(elbo):
    guide = small(groups)
    losses = train(guide, groups, Y, loss=elbo, lr=1e-3)
    # at q = p every draw gives the evidence, in every one of these bounds
    assert losses[0] == pytest.approx(-groups_evidence(), abs=1e-3)
    assert losses[-1] == pytest.approx(-groups_evidence(), abs=0.1)
    assert all(p.grad is None or p.grad.isfinite().all() for p in guide.parameters())


def test_trace_enum_elbo_is_the_elbo_of_the_target_that_sums_the_discrete_latent_out():
    model = config_enumerate(two_normals)
    guide = met(poutine.block(model, hide=["z"]), Y)
    elbo = TraceEnum_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        x = guide.get_posterior().sample((2000,))
        log_weights = PyroTarget(two_normals).log_prob(x) - guide.get_posterior().log_prob(x)
        # two independent estimates, each with this error; 5 sigma of their difference
        tolerance = 5 * math.sqrt(2) * log_weights.std().item() / math.sqrt(2000)
        assert elbo.loss(model, guide, Y) == pytest.approx(-log_weights.mean().item(), abs=tolerance)


def test_a_seed_of_pyro_makes_warm_start_and_training_repeatable():
    def losses():
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        return train(small(location_scale), location_scale, Y)

    assert losses() == losses()


# Starting points


@pytest.mark.parametrize("warm_start", ["pathfinder", "laplace"])
def test_a_warm_start_finds_a_gaussian_posterior(warm_start):
    guide = met(normal_mean, Y, warm_start=warm_start)
    mean, sd = normal_mean_posterior()
    x = guide.get_transform()(torch.tensor([[0.0], [1.0]])).flatten()
    assert x[0].item() == pytest.approx(mean, abs=1e-3)
    assert abs(x[1] - x[0]).item() == pytest.approx(sd, rel=1e-3)


def test_warm_start_init_stays_at_the_initial_point():
    guide = met(normal_mean, Y, warm_start="init")
    x = guide.get_transform()(torch.tensor([[0.0], [1.0]])).flatten()
    torch.testing.assert_close(x, torch.tensor([0.0, 0.1]))


# Models under Pyro's handlers


@pytest.mark.parametrize(
    ("model", "sites"),
    [
        (poutine.block(groups, expose=["mu"]), {"mu"}),
        (poutine.condition(groups, {"mu": torch.tensor(1.0)}), {"theta"}),
        (poutine.reparam(groups, {"theta": LocScaleReparam(0.0)}), {"mu", "theta_decentered"}),
        (poutine.reparam(groups, {"theta": LocScaleReparam()}), {"mu", "theta_decentered"}),
        (poutine.scale(groups, 0.5), {"mu", "theta"}),
    ],
    ids=["block-expose", "condition", "reparam", "learned-reparam", "scale"],
)
def test_models_under_a_handler(model, sites):
    guide = small(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(guide(Y)) == sites
    assert all(math.isfinite(loss) for loss in train(guide, model, Y))


def test_a_latent_hidden_from_the_guide_makes_its_target_random_and_says_so():
    model = poutine.block(groups, hide=["theta"])
    with pytest.warns(UserWarning, match=r"random numbers of its own.*poutine\.block"):
        guide = met(model, Y, num_starts=1)
    assert set(guide(Y)) == {"mu"}


def test_one_guide_of_several():
    guide = AutoGuideList(two_normals)
    guide.append(small(poutine.block(two_normals, expose=["mu"])))
    guide.append(AutoDiscreteParallel(poutine.block(two_normals, expose=["z"])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = train(guide, two_normals, Y, loss=TraceEnum_ELBO(max_plate_nesting=1), lr=0.05, steps=40)
    assert losses[-1] < losses[0]
    assert set(guide(Y)) == {"mu", "z"}


def test_median_and_quantiles_of_several_guides_together():
    guide = AutoGuideList(groups)
    guide.append(small(poutine.block(groups, expose=["mu"])))
    guide.append(AutoNormal(poutine.block(groups, expose=["theta"])))
    train(guide, groups, Y)
    assert {k: v.shape for k, v in guide.median().items()} == {"mu": (), "theta": (3,)}
    assert {k: len(v) for k, v in guide.quantiles([0.1, 0.9]).items()} == {"mu": 2, "theta": 2}


def test_missing_data_by_obs_mask():
    def model(y, seen):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)

    y, seen = torch.tensor([1.0, 2.0, 4.0, 0.0]), torch.tensor([True, True, True, False])
    guide = met(model, y, seen)
    assert {k: v.shape for k, v in guide.median().items()} == {"mu": (), "y_unobserved": (4,)}
    assert all(math.isfinite(loss) for loss in train(guide, model, y, seen))
    mean, sd = normal_mean_posterior(y[seen])
    # 6 % of sd: five times the error of a median of 10 000 draws, 1.25 sd / sqrt(10 000)
    assert guide.median()["mu"].item() == pytest.approx(mean, abs=0.0625 * sd)


class Regression(PyroModule):
    """A latent slope over a learned feature."""

    def __init__(self):
        super().__init__()
        self.feature = torch.nn.Linear(2, 1)
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.slope = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self, x, y):
        mean = self.slope * self.feature(x).squeeze(-1)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


def test_parameters_of_a_pyro_module_are_learned_along():
    x = torch.randn(20, 2)
    model, y = Regression(), x.sum(-1)
    before = [p.detach().clone() for p in model.parameters()]
    guide = small(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = train(guide, model, x, y, lr=0.03, steps=60)
    assert losses[-1] < losses[0] - 1
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(name.startswith("feature") for name, _ in guide.named_parameters())


# Predictions and moments


def test_predictive_draws_follow_the_posterior():
    guide = met(normal_mean, Y)
    draws = Predictive(normal_mean, guide=guide, num_samples=1000, return_sites=["mu", "y"])(Y)
    mean, sd = normal_mean_posterior()
    assert draws["mu"].mean().item() == pytest.approx(mean, abs=5 * sd / math.sqrt(1000))
    assert draws["y"].shape == (1000, 3)


def test_quantiles_of_a_known_gaussian():
    def model():
        pyro.sample("x", dist.Normal(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 3.0])).to_event(1))
        pyro.sample("s", dist.LogNormal(1.0, 0.5))

    guide = small(model)
    guide()
    levels = torch.tensor([0.05, 0.5, 0.8])
    found = guide.quantiles(levels)
    normal = dist.Normal(0.0, 1.0)
    z = normal.icdf(levels)
    # standard error of a sample quantile: sqrt(p (1 - p) / n) / density; 5 of them
    error = 5 * (levels * (1 - levels) / 10_000).sqrt() / normal.log_prob(z).exp()
    assert ((found["x"][:, 0] - z).abs() < error).all()
    assert ((found["x"][:, 1] - (5 + 3 * z)).abs() < 3 * error).all()
    assert ((found["s"].log() - (1 + 0.5 * z)).abs() < 0.5 * error).all()


def test_quantiles_of_very_many_latents():
    def model():  # 2000 x 10 000 draws are more than torch.quantile takes
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([2000]).to_event(1))

    guide = AutoCouplingFlow(model, partial(flows.nice, num_layers=1, hidden_dims=(1,)), warm_start="init")
    guide()
    # standard deviations of 0.1: five times the largest of 2000 errors of a median of 10 000 draws
    assert guide.median()["x"].abs().max() < 5 * 1.25 * 0.1 / math.sqrt(10_000)


def test_nuts_through_the_flow_gives_the_posterior():
    neutra = NeuTraReparam(met(groups, Y))
    # it sees a standard normal, of which this step size is good enough without adaptation
    kernel = NUTS(neutra.reparam(groups), step_size=0.7, adapt_step_size=False, adapt_mass_matrix=False)
    mcmc = MCMC(kernel, num_samples=120, warmup_steps=5, disable_progbar=True)
    mcmc.run(Y)
    draws = neutra.transform_sample(mcmc.get_samples()["mu_shared_latent"].unsqueeze(-2))
    mean, sd = groups_posterior()
    # if only every third draw counts: 5 sigma
    tolerance = 5 / math.sqrt(40)
    assert draws["mu"].mean().item() == pytest.approx(mean, abs=tolerance * sd)
    assert draws["mu"].std().item() == pytest.approx(sd, rel=tolerance / math.sqrt(2))


# Copies


def same_density(one, other):
    x = torch.randn(5, one.latent_dim)
    torch.testing.assert_close(one.get_posterior().log_prob(x), other.get_posterior().log_prob(x))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda guide: pickle.loads(pickle.dumps(guide))])
def test_a_copy_draws_and_the_original_trains_on(copier):
    guide = met(location_scale, Y)
    train(guide, location_scale, Y)
    copied = copier(guide)
    same_density(guide, copied)
    assert set(copied(Y)) == {"mu", "sigma"}
    assert copied.median().keys() == guide.median().keys()
    assert math.isfinite(train(guide, location_scale, Y)[-1])


def test_a_deepcopy_trains_on_its_own():
    guide = met(location_scale, Y)
    copied = copy.deepcopy(guide)
    before = [p.detach().clone() for p in guide.parameters()]
    pyro.clear_param_store()  # both would have the same names in it
    train(copied, location_scale, Y, lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, copied.parameters(), strict=True))


def test_a_deepcopy_from_before_the_first_call_has_its_model():
    copied = copy.deepcopy(small(location_scale))
    assert set(copied(Y)) == {"mu", "sigma"}


def test_a_pickle_from_before_the_first_call_says_that_it_has_no_model():
    guide = pickle.loads(pickle.dumps(small(location_scale)))
    with pytest.raises(ValueError, match="pickled before it had met its model"):
        guide(Y)


@pytest.mark.parametrize("move", [lambda g: g.double(), lambda g: g.to("cpu"), lambda g: g.to(torch.float64)])
def test_moved_guides_train(move):
    guide = move(met(location_scale, Y))
    assert math.isfinite(train(guide, location_scale, Y)[-1])
    dtype = next(guide.parameters()).dtype
    assert {v.dtype for v in [*guide(Y).values(), *guide.median().values()]} == {dtype}


def test_a_float64_guide_is_loaded_as_one():
    guide, fresh = met(location_scale, Y.double()), small(location_scale)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert {p.dtype for p in fresh.parameters()} == {torch.float64}
    fresh(Y.double())
    assert all(torch.equal(a, b) for a, b in zip(guide.parameters(), fresh.parameters(), strict=True))


def test_parameters_of_another_model_are_refused_when_they_meet_it():
    fresh = small(groups)
    fresh.load_state_dict(met(location_scale, Y).state_dict())
    with pytest.raises(ValueError, match="loaded parameters are for 2 latent dimensions, the model has 4"):
        fresh(Y)


# Flows of one's own


@pytest.mark.parametrize(
    "flow",
    [
        partial(flows.neural_spline, num_layers=2, hidden_dims=(8,)),
        partial(flows.nice, num_layers=2, hidden_dims=(8,)),
        partial(iterated, 2, partial(affine_coupling, hidden_dims=(8,))),
        partial(iterated, 2, partial(spline_coupling, hidden_dims=(8,))),
        partial(affine_coupling, hidden_dims=(8,)),
        affine_coupling(4, hidden_dims=(8,)),
        iterated(2, affine_coupling, 4, hidden_dims=(8,)),
    ],
    ids=["neural_spline", "nice", "iterated-affine", "iterated-spline", "one-layer", "instance", "iterated-instance"],
)
def test_any_flow_starts_at_the_warm_start_and_trains(flow):
    guide = small(groups, flow=flow)
    losses = train(guide, groups, Y)
    assert losses[0] == pytest.approx(-groups_evidence(), abs=1e-3)
    assert math.isfinite(losses[-1])


@pytest.mark.parametrize(
    ("flow", "error", "message"),
    [
        ("real_nvp", TypeError, "flow must be callable or a Bijection, got str"),
        (lambda dim: None, TypeError, "must make a Bijection.*found NoneType"),
        (pyros_affine_coupling, TypeError, "found AffineCoupling; Pyro's AutoNormalizingFlow takes any"),
        (iterated(2, pyros_affine_coupling, 4), TypeError, "found ComposeTransformModule"),
        (affine_coupling(3), ValueError, r"must be a bijection of \(4,\).*found event shape \(3,\)"),
        (lambda dim: flows.real_nvp(dim, context_dim=2), ValueError, "without context.*context of shape .2,."),
    ],
)
def test_a_flow_that_does_not_fit_is_refused(flow, error, message):
    with pytest.raises(error, match=message):
        AutoCouplingFlow(groups, flow)(Y)


# Misuse


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be callable, got int"),
        ({"warm_start": "nuts"}, ValueError, "warm_start must be one of .*'pathfinder'.* got 'nuts'"),
        ({"num_starts": 0}, ValueError, "num_starts must be at least 1, got 0"),
    ],
)
def test_arguments_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        AutoCouplingFlow(**({"model": groups} | arguments))


@pytest.mark.parametrize("use", ["get_transform", "get_base_dist", "get_posterior", "median"])
def test_use_before_the_model_is_met_says_what_to_do(use):
    with pytest.raises(ValueError, match=r"has not met its model yet: call guide\(\*args, \*\*kwargs\)"):
        getattr(AutoCouplingFlow(groups), use)()


@pytest.mark.parametrize("levels", [[-0.1], [0.5, 1.1], 0.5])
def test_levels_that_are_no_probabilities(levels):
    with pytest.raises(ValueError, match="quantiles must be a list of numbers from 0 to 1"):
        met(normal_mean, Y).quantiles(levels)
