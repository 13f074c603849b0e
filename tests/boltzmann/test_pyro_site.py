"""A molecule in a Pyro model: its weights, its place in plates and larger models, what a measurement makes of it."""

import copy
import functools
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Importance, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal

from pyro_coupling import flows
from pyro_coupling.boltzmann import BoltzmannGenerator, InternalCoordinates, from_xml
from pyro_coupling.boltzmann.energies import DW4, DoubleWell
from pyro_coupling.boltzmann.pyro_site import BoltzmannDistribution, flow_distribution
from pyro_coupling.diagnostics import log_evidence, relative_ess

FIXTURES = Path(__file__).parent / "fixtures"
OBSERVED, NOISE = torch.tensor(-1.7), 0.5  # in the smaller of the two wells


@pytest.fixture(autouse=True)
def fresh_parameters():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@functools.cache
def trained():
    """A generator of the double well; in float64, so that weights can be compared closely."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = flows.neural_spline(2, 2, (16,))
    settings = {"kT": 1.0, "seed": 0, "progress": False, "dtype": torch.float64, "num_rungs": 4, "buffer_size": 2000}
    return BoltzmannGenerator(DoubleWell(), flow=flow, **settings).train(max_steps=300)


@functools.cache
def molecule():
    lines = (FIXTURES / "alanine_dipeptide.pdb").read_text().splitlines()
    atoms = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
    reference = 0.1 * torch.tensor([[float(line[i : i + 8]) for i in (30, 38, 46)] for line in atoms])
    energy = from_xml(FIXTURES / "aldp_ff96_obc1_system.xml")
    coordinates = InternalCoordinates(reference.double(), energy.bonds)
    settings = {"coordinates": coordinates, "dtype": torch.float64, "seed": 0, "progress": False}
    return BoltzmannGenerator(energy, temperature=300.0, **settings)


def particles():
    return BoltzmannGenerator(DW4(), kT=1.0, seed=0, progress=False, dtype=torch.float64)


def measured(generator, y=OBSERVED):
    """A configuration whose first coordinate is measured with noise."""
    x = generator.model("x")()
    pyro.sample("y", dist.Normal(x[..., 0], NOISE), obs=y)
    return x


def traces(model, guide, *args):
    guided = poutine.trace(guide).get_trace(*args)
    return poutine.trace(poutine.replay(model, trace=guided)).get_trace(*args), guided


def exact(y=OBSERVED):
    """Log evidence of the measurement and posterior mean of the first coordinate, by sums over a grid."""
    grid = torch.linspace(-4, 4, 801, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    prior = -DoubleWell().energy(points)
    height = prior + dist.Normal(points[:, 0], NOISE).log_prob(y)
    posterior = height.softmax(0)
    return (height.logsumexp(0) - prior.logsumexp(0)).item(), (posterior @ points[:, 0]).item()


@pytest.mark.parametrize("make", [trained, particles, molecule], ids=["vector", "particles", "molecule"])
def test_log_weights_are_those_of_the_generator(make):
    generator = make()
    model, guide = generator.model("x"), generator.guide("x")
    with pyro.plate("draws", 50), torch.no_grad():
        model_trace, guide_trace = traces(model, guide)
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    found = model_trace.nodes["x"]["log_prob"] - guide_trace.nodes["x"]["log_prob"]
    positions = model_trace.nodes["x"]["value"]
    assert positions.shape == (50, *generator.energy.event_shape) and positions.dtype == torch.float64
    # the generator's own, from the density of coordinates and the volume element, at the same configurations
    u = generator.target.coordinates_of(positions)
    volume = generator.target.configurations(u)[1]
    expected = volume - generator.energy(positions) / generator.kT - generator.log_prob(positions)
    good = found.isfinite() & (generator.energy(positions).abs() < 1e5)
    assert good.double().mean() > 0.4
    torch.testing.assert_close(found[good], expected[good], rtol=1e-6, atol=1e-6)


def test_importance_finds_the_partition_function():
    generator = trained()
    found = Importance(generator.model("x"), generator.guide("x"), num_samples=200).run()
    weights = torch.stack([torch.as_tensor(weight) for weight in found.log_weights])
    evidence = log_evidence(weights)
    assert abs(evidence.value - DoubleWell().log_z(1.0)) < 4 * evidence.standard_error
    assert relative_ess(weights) > 0.5


def test_draws_of_the_site_are_boltzmann_distributed():
    # the right well weighs more than the left; an untrained flow, whose draws are resampled
    generator = BoltzmannGenerator(DoubleWell(), kT=1.0, seed=0, progress=False)
    x = BoltzmannDistribution(generator).sample((20_000,))
    weights = DoubleWell().mode_weights(1.0)
    found = (DoubleWell().modes(x) == 0).double().mean().item()
    # 80 000 candidates; an effective sample size of at least a few percent: standard error below 0.01
    assert found == pytest.approx(float(weights[0]), abs=0.04)


def test_a_measurement_weighs_the_draws():
    generator = trained()
    with pyro.plate("draws", 20_000), torch.no_grad():
        model_trace, guide_trace = traces(functools.partial(measured, generator), generator.guide("x"))
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    weights = sum(model_trace.nodes[name]["log_prob"] for name in ("x", "y")) - guide_trace.nodes["x"]["log_prob"]
    evidence, (log_evidence_exact, mean) = log_evidence(weights), exact()
    assert abs(evidence.value - DoubleWell().log_z(1.0) - log_evidence_exact) < 4 * evidence.standard_error
    x = model_trace.nodes["x"]["value"][:, 0]
    probabilities = weights.softmax(0)
    error = (probabilities.square() * (x - mean).square()).sum().sqrt().item()
    assert abs((probabilities @ x).item() - mean) < 4 * error


@pytest.mark.parametrize("vectorized", [False, True])
def test_svi_turns_the_generator_into_the_guide_of_the_posterior(vectorized):
    generator = copy.deepcopy(trained())
    model, guide = functools.partial(measured, generator), generator.guide("x")

    def ess():
        with pyro.plate("draws", 4000), torch.no_grad():
            model_trace, guide_trace = traces(model, guide)
        model_trace.compute_log_prob()
        guide_trace.compute_log_prob()
        x, y, q = (t.nodes[n]["log_prob"] for t, n in ((model_trace, "x"), (model_trace, "y"), (guide_trace, "x")))
        return relative_ess(x + y - q)

    before = ess()
    elbo = Trace_ELBO(num_particles=32 if vectorized else 4, vectorize_particles=vectorized, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 5e-3}), elbo)
    for _ in range(200 if vectorized else 5):
        assert math.isfinite(svi.step())
    assert not torch.equal(next(generator.flow.parameters()), next(trained().flow.parameters()))
    if vectorized:
        assert before < 0.5 < ess()


def test_a_part_of_a_larger_model():
    # the noise of the measurement is a latent too, with a guide of its own
    generator = copy.deepcopy(trained())

    def model(y):
        x = generator.model("x")()
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
        with pyro.plate("measurements", len(y)):
            pyro.sample("y", dist.Normal(x[..., :1], noise), obs=y)

    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, hide=["x"])))
    guide.append(generator.guide("x"))
    y = torch.tensor([1.1, 1.3, 1.6])
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert all(math.isfinite(svi.step(y)) for _ in range(3))
    drawn = Predictive(model, guide=guide, num_samples=10)(y)
    assert drawn["x"].shape == (10, 1, 2) and drawn["noise"].shape == (10, 1)  # the one is the plate, as Pyro has it


def test_an_ensemble_of_which_an_average_is_measured():
    # of a plate of configurations the mean is observed
    generator = copy.deepcopy(trained())

    def model(y):
        with pyro.plate("ensemble", 16):
            x = generator.model("x")()
        pyro.sample("mean", dist.Normal(x[..., 0].mean(-1), 0.1), obs=y)

    one = generator.guide("x")

    def guide(y):
        with pyro.plate("ensemble", 16):
            one()

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO(num_particles=2, vectorize_particles=True))
    assert all(math.isfinite(svi.step(torch.tensor(0.0, dtype=torch.float64))) for _ in range(3))
    model_trace, _ = traces(model, guide, torch.tensor(0.0))
    x = model_trace.nodes["x"]["value"]
    expected = -DoubleWell().energy(x).sum() + dist.Normal(x[:, 0].mean(), 0.1).log_prob(torch.tensor(0.0))
    assert x.shape == (16, 2) and model_trace.log_prob_sum().item() == pytest.approx(expected.item(), rel=1e-9)


def test_two_molecules_have_parameters_of_their_own():
    first, second = copy.deepcopy(trained()), copy.deepcopy(trained())

    def model():
        distance = first.model("a")() - second.model("b")()
        pyro.sample("distance", dist.Normal(distance.norm(dim=-1), 0.1), obs=torch.tensor(2.0))

    parts = first.guide("a"), second.guide("b")

    def guide():
        for part in parts:
            part()

    SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step()
    names = set(pyro.get_param_store().keys())
    count = sum(1 for _ in first.flow.parameters())
    assert len(names) == 2 * count and {name.split(".")[0] for name in names} == {"a", "b"}


def test_predictive_without_a_guide_and_with_a_condition():
    generator = trained()
    model = functools.partial(measured, generator, None)
    assert Predictive(model, num_samples=5)()["y"].shape == (5,)
    x = torch.tensor([1.7, 0.0], dtype=torch.float64)
    conditioned = poutine.trace(poutine.condition(model, data={"x": x})).get_trace()
    conditioned.compute_log_prob()
    assert conditioned.nodes["x"]["log_prob"].item() == pytest.approx(-DoubleWell().energy(x).item())


def test_the_guide_is_normalised():
    generator = trained()
    grid = torch.linspace(-5, 5, 401, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        log_q = flow_distribution(generator.flow, generator.target).log_prob(points)
    assert log_q.exp().sum().item() * 0.025**2 == pytest.approx(1.0, abs=1e-3)


def test_an_energy_that_is_not_a_number_has_no_density():
    class Broken(DoubleWell):
        def energy(self, x):
            return torch.where(x[..., 0] > 0, torch.nan, super().energy(x))

    distribution = BoltzmannDistribution(BoltzmannGenerator(Broken(), kT=1.0, seed=0, progress=False))
    found = distribution.log_prob(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert found[0] == -math.inf and found[1].isfinite()
    assert (distribution.sample((100,))[:, 0] <= 0).all()
