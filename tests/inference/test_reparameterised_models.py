"""Models whose sites Pyro's reparameterisers have replaced: the original sites are there in what users are given."""

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.reparam import DiscreteCosineReparam, LocScaleReparam, SplitReparam, TransformReparam

from pyro_coupling import FlowVI
from pyro_coupling.targets import PyroTarget
from pyro_coupling.targets.prior import sample_prior

Y = torch.tensor([3.0, 0.0, -1.0, 2.0])


def in_a_plate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 2.0))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def as_a_vector(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    theta = pyro.sample("theta", dist.Normal(mu.unsqueeze(-1), 2.0).expand(mu.shape + y.shape).to_event(1))
    pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)


def transformed(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", len(y)):
        moved = dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(mu, 2.0))
        theta = pyro.sample("theta", moved)
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


CASES = {
    "decentred": (in_a_plate, LocScaleReparam(0.0)),
    "half-decentred": (as_a_vector, LocScaleReparam(0.5)),
    "base-noise": (transformed, TransformReparam()),
    "cosines": (as_a_vector, DiscreteCosineReparam()),
    "split": (as_a_vector, SplitReparam([1, 3], -1)),
}


@pytest.fixture(params=CASES)
def points(request):
    """Of a reparameterised model: its target, points, and Pyro's own trace at each."""
    model, reparam = CASES[request.param]
    model = poutine.reparam(model, {"theta": reparam})
    target = PyroTarget(model, (Y,))
    x = torch.randn(7, target.dim)
    latents = target.constrain(x, deterministic=False)
    rows = [{name: value[i] for name, value in latents.items()} for i in range(len(x))]
    return target, x, [poutine.trace(poutine.condition(model, row)).get_trace(Y) for row in rows]


def test_the_original_site_is_what_the_model_makes_of_its_latents(points):
    target, x, traces = points
    assert "theta" not in target.constrain(x, deterministic=False)
    expected = torch.stack([trace.nodes["theta"]["value"] for trace in traces])
    torch.testing.assert_close(target.constrain(x)["theta"], expected)


def test_reporting_the_original_site_leaves_the_density_as_it_is(points):
    target, x, traces = points  # all latents are unconstrained: no Jacobian is added to Pyro's density
    torch.testing.assert_close(target.log_prob(x), torch.stack([trace.log_prob_sum() for trace in traces]))


def test_draws_of_the_original_site_are_its_posterior():
    def model(y):
        with pyro.plate("groups", len(y)):
            theta = pyro.sample("theta", dist.Normal(1.0, 2.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    decentred = poutine.reparam(model, {"theta": LocScaleReparam(0.0)})
    vi = FlowVI(decentred, max_steps=50, seed=0, progress=False).run(Y)
    theta = vi.get_samples(4000)["theta"]
    # of a conjugate pair: precisions 1/4 and 1 add up
    mean, sd = (1.0 / 4 + Y) / 1.25, 1.25**-0.5
    # five standard errors of a mean of 4000 draws, which resampling of even weights hardly widens
    assert vi.diagnostics()["ess"] > 0.9
    torch.testing.assert_close(theta.mean(0), mean, atol=5 * sd * 4000**-0.5, rtol=0.0)
    assert set(vi.to_arviz(10)["posterior"]["theta"].dims) == {"chain", "draw", "groups"}


def test_the_prior_of_a_decentred_model_can_be_sampled():
    model = poutine.reparam(in_a_plate, {"theta": LocScaleReparam(0.0)})
    prior = sample_prior(PyroTarget(model, (Y,)), 10)
    assert {name: tuple(draws.shape) for name, draws in prior.items()} == {"mu": (10,), "theta_decentered": (10, 4)}


def test_a_replaced_site_with_a_density_of_its_own_is_still_a_factor_of_the_prior():
    model = poutine.reparam(as_a_vector, {"theta": SplitReparam([1, 3], -1)})
    with pytest.raises(ValueError, match="prior can't be sampled"):
        sample_prior(PyroTarget(model, (Y,)), 10)


def test_data_of_a_delta_are_data():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("fixed", dist.Delta(torch.tensor(2.0)), obs=torch.tensor(2.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    structure = PyroTarget(model).structure
    assert structure.deterministic == {} and set(structure.observed) == {"fixed", "y"}
