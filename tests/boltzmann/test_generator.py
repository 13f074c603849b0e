"""`BoltzmannGenerator` on energies whose answers are known."""

import functools
import math
from pathlib import Path

import pytest
import torch

from pyro_coupling import flows
from pyro_coupling.boltzmann import BoltzmannGenerator, InternalCoordinates, from_xml
from pyro_coupling.boltzmann.energies import DW4, Energy, ManyWell
from pyro_coupling.boltzmann.phases import Cooling, Replay, log_density
from pyro_coupling.boltzmann.target import BoltzmannTarget
from pyro_coupling.transforms import DiagonalAffine

FIXTURES = Path(__file__).parent / "fixtures"


class Springs(Energy):
    """A Gaussian with these stiffnesses, NaN beyond ``edge``."""

    def __init__(self, stiffness=(1.0, 4.0), edge=math.inf):
        super().__init__((len(stiffness),))
        self.register_buffer("stiffness", torch.tensor(stiffness))
        self.edge = edge

    def energy(self, x):
        energy = 0.5 * (self.stiffness.to(x) * x.square()).sum(-1)
        return torch.where(x[..., 0] < self.edge, energy, torch.nan)

    def log_z(self, kT):
        return float(0.5 * torch.log(2 * math.pi * kT / self.stiffness).sum())


def small(energy, max_steps=200, **settings):
    """A generator whose flow can be right, after a short training."""
    settings = {"kT": 0.5, "hottest": 1.0, "seed": 0, "progress": False, "num_particles": 64} | settings
    settings = {"learning_rate": 2e-3} | settings  # twice the default, which is made for thousands of steps
    (dim,) = energy.event_shape
    flow = settings.pop("flow", None) or flows.real_nvp(dim, 2, (8,))
    data, share = settings.pop("data", None), settings.pop("by_example", 0.6)
    return BoltzmannGenerator(energy, flow=flow, **settings).train(max_steps=max_steps, data=data, by_example=share)


@functools.cache
def trained():
    return small(Springs(), 600)


def test_the_partition_function_of_a_gaussian():
    found = trained().diagnostics()
    # 600 steps bring a Gaussian flow close; what is left is within its own standard error
    assert abs(found["log_z"] - Springs().log_z(0.5)) < 4 * found["log_z_se"] + 1e-6
    assert found["ess"] > 0.97 and found["elbo"] <= found["log_z"]
    assert found["num_energies"] == 600 * 64 and found["num_steps"] == 600 and found["seconds"] > 0


def test_weights_are_what_they_are_said_to_be():
    generator = trained()
    positions, energies, log_weights = generator.sample(5000)  # more than pass the flow at once
    assert positions.shape == (5000, 2) and energies.shape == log_weights.shape == (5000,)
    assert torch.allclose(energies, Springs().energy(positions))
    expected = -energies / 0.5 - generator.log_prob(positions)
    assert torch.allclose(log_weights, expected, atol=1e-3)  # float32, one way and back


def test_a_temperature_is_in_kelvin():
    generator = BoltzmannGenerator(Springs(), temperature=300.0, progress=False)
    assert generator.kT == pytest.approx(2.494339, abs=1e-6)


def test_cooling_keeps_the_weights_of_states():
    # the two states of a double well, barrier 9.9 kT: 0.844 and 0.156
    energy = ManyWell(2)
    flow = flows.neural_spline(2, 3, (16, 16))
    settings = {"kT": 1.0, "hottest": 4.0, "num_rungs": 4, "buffer_size": 4000, "num_particles": 256}
    generator = small(energy, 500, flow=flow, learning_rate=5e-3, **settings)
    assert [rung.kT for rung in generator.rungs] == pytest.approx([4 ** (3 / 4), 2.0, 4 ** (1 / 4), 1.0])
    assert all(rung.ess > 0.2 for rung in generator.rungs)
    draws = generator.sample(10_000)
    weights = draws.log_weights.double().softmax(0)
    found = torch.zeros(2).double().index_add_(0, energy.modes(draws.positions), weights)
    # 10 000 draws of a relative ESS of at least 0.3: a standard error of sqrt(0.84 * 0.16 / 3000) = 0.007
    assert generator.diagnostics()["ess"] > 0.3
    assert torch.allclose(found, torch.as_tensor(energy.mode_weights(1.0)).double(), atol=4 * 0.007)


def test_energies_that_are_not_numbers_are_counted_and_left_out():
    generator = small(Springs(edge=0.8), 300)
    found = generator.diagnostics()
    assert found["skipped_samples"] > 0 and all(p.isfinite().all() for p in generator.flow.parameters())
    # the Gaussian, cut where its first coordinate, of variance 0.5, reaches 0.8
    kept = 0.5 * (1 + math.erf(0.8))
    exact = Springs().log_z(0.5) + math.log(kept)
    assert abs(found["log_z"] - exact) < 4 * found["log_z_se"]
    draws = generator.sample(1000)
    assert (draws.log_weights[draws.positions[:, 0] >= 0.8] == -math.inf).all()


@pytest.mark.parametrize("edge", [0.8, -50.0])
def test_no_energy_that_is_not_a_number_ends_the_cooling(edge):
    generator = small(Springs(edge=edge), 60, hottest=2.0, num_rungs=2, buffer_size=200)
    assert len(generator.rungs) == 2 and generator.diagnostics()["num_steps"] == 60
    assert all(p.isfinite().all() for p in generator.flow.parameters())
    assert (generator.rungs[0].ess == 0) == (edge < 0)  # not one energy is a number


def test_by_example_alone_asks_for_the_energy_of_the_data_alone():
    torch.manual_seed(0)
    data = torch.randn(4000, 2) * torch.tensor([0.5, 0.25]).sqrt() * torch.tensor([1.0, 0.5]).sqrt()
    generator = small(Springs(), 600, data=data, by_example=1.0)
    assert generator.diagnostics()["num_energies"] == len(data)
    spread = generator.sample(4000).positions.std(0)
    # standard errors of both standard deviations are below 1.2 %; the flow is allowed 5 % more
    assert torch.allclose(spread, data.std(0), rtol=0.1)


def test_mixed_training_goes_on_from_the_data_by_energy():
    data = trained().sample(2000).positions
    generator = small(Springs(), 400, data=data, by_example=0.5)
    assert 190 * 64 <= generator.diagnostics()["num_energies"] - len(data) <= 210 * 64
    assert generator.diagnostics()["ess"] > 0.95


def test_a_second_training_goes_on_at_the_temperature_asked_for():
    settings = {"kT": 1.0, "seed": 0, "progress": False, "num_particles": 16, "buffer_size": 100, "num_rungs": 2}
    generator = BoltzmannGenerator(Springs(), flow=flows.real_nvp(2, 2, (8,)), **settings).train(max_steps=20)
    rungs, before = generator.rungs, generator.diagnostics()["num_energies"]
    generator.train(max_steps=20)
    assert generator.rungs is rungs and len(rungs) == 2
    assert generator.diagnostics()["num_energies"] - before == 20 * 16 + 100  # one buffer, no ladder


def test_a_seed_is_a_result_and_nothing_else_is_touched():
    before = torch.random.get_rng_state()
    settings = {"kT": 1.0, "seed": 0, "progress": False, "num_particles": 16, "buffer_size": 100}
    first, second = (BoltzmannGenerator(DW4(), **settings).train(max_steps=12).sample(10) for _ in range(2))
    assert torch.equal(first.positions, second.positions) and torch.equal(first.log_weights, second.log_weights)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_particles_keep_their_centre():
    generator = BoltzmannGenerator(DW4(), kT=1.0, seed=0, progress=False, dtype=torch.float64).train(max_steps=3)
    positions = generator.sample(100).positions
    assert positions.shape == (100, 4, 2) and positions.dtype == torch.float64
    assert positions.mean(1).abs().max() < 1e-12


def test_a_molecule_from_its_force_field():
    lines = (FIXTURES / "alanine_dipeptide.pdb").read_text().splitlines()
    atoms = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
    reference = 0.1 * torch.tensor([[float(line[i : i + 8]) for i in (30, 38, 46)] for line in atoms])
    energy = from_xml(FIXTURES / "aldp_ff96_obc1_system.xml")
    coordinates = InternalCoordinates(reference.double(), energy.bonds)
    settings = {"num_particles": 16, "buffer_size": 200, "num_rungs": 2, "seed": 0, "progress": False}
    generator = BoltzmannGenerator(energy, temperature=300.0, coordinates=coordinates, **settings).train(max_steps=20)
    positions, energies, log_weights = generator.sample(500)
    assert positions.shape == (500, 22, 3) and [round(rung.kT / generator.kT, 3) for rung in generator.rungs] == [2, 1]
    # an untrained flow on an informed base: most structures are whole molecules
    assert (energies < 1e4).double().mean() > 0.5 and log_weights.isfinite().double().mean() > 0.9
    # the weight of a structure that was moved and turned, from the density of the flow there
    turned = positions[:, :, [1, 2, 0]] + 0.3
    volume = coordinates.inverse_and_log_det(turned)[1]  # minus the log of the volume element
    again = -energies / generator.kT - volume - generator.log_prob(turned)
    good = log_weights.isfinite() & (energies < 1e4)
    assert ((again - log_weights)[good].abs() < 0.05 * (1 + log_weights[good].abs())).double().mean() > 0.95


def test_a_rung_is_filled_with_draws_of_its_temperature():
    energy, flow = Springs((1.0,)), DiagonalAffine(torch.zeros(1)).double()  # kT = 1 is what the flow is at
    target = BoltzmannTarget(energy, 0.5, None, torch.float64, torch.device("cpu"))
    replay = Replay(flow, target, 20_000, torch.Generator().manual_seed(0))
    cooling = Cooling(replay, [0.5])
    cooling(torch.randn(64, 1, dtype=torch.float64), 0.0)
    # variance 0.5; 20 000 weighted draws of relative ESS 0.87 have a standard error of 0.5 * sqrt(2 / 17 000)
    assert replay.samples.var().item() == pytest.approx(0.5, abs=4 * 0.006)
    assert cooling.rungs[0].ess == pytest.approx(math.sqrt(3) / 2, abs=0.02)  # E[w]^2 / E[w^2]


@pytest.mark.parametrize("max_steps", [3, 10, 17])
def test_a_short_training_ends_at_the_temperature_that_is_asked_for(max_steps):
    generator = small(Springs(), max_steps, hottest=4.0, num_rungs=8, buffer_size=50)
    levels = [rung.kT for rung in generator.rungs]
    assert levels[-1] == pytest.approx(0.5) and levels == sorted(levels, reverse=True)


def test_log_density_is_normalised():
    flow = trained().flow
    grid = torch.linspace(-6, 6, 241)
    points = torch.cartesian_prod(grid, grid)
    assert log_density(flow, points).exp().sum().item() * 0.05**2 == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one of kT and temperature"),
        ({"kT": 1.0, "temperature": 300.0}, "exactly one of kT and temperature"),
        ({"kT": -1.0}, "kT must be a positive"),
        ({"temperature": 0.0}, "temperature"),
        ({"kT": 1.0, "hottest": 0.5}, "hottest must be 1 or more, got 0.5"),
        ({"kT": 1.0, "num_particles": 0}, "num_particles must be a positive"),
        ({"kT": 1.0, "num_particles": 0.5}, "num_particles must be a positive integer, got 0.5"),
        ({"kT": 1.0, "num_rungs": 2.5}, "num_rungs must be a positive integer, got 2.5"),
        ({"kT": 1.0, "buffer_size": 100.0}, "buffer_size must be a positive integer, got 100.0"),
        ({"kT": 1.0, "flow": flows.nice(3)}, r"flow must map \(2,\) to \(2,\), but maps \(3,\)"),
        ({"kT": 1.0, "coordinates": flows.nice(3)}, r"coordinates give configurations of shape \(3,\)"),
    ],
)
def test_settings_that_can_not_be(settings, words):
    with pytest.raises(ValueError, match=words):
        BoltzmannGenerator(Springs(), progress=False, **settings)


def test_things_of_the_wrong_kind():
    with pytest.raises(TypeError, match="energy must be an Energy, got function"):
        BoltzmannGenerator(lambda x: x, kT=1.0)
    with pytest.raises(TypeError, match="flow must be a Bijection, got Linear"):
        BoltzmannGenerator(Springs(), kT=1.0, flow=torch.nn.Linear(2, 2))


def test_data_that_do_not_fit():
    generator = BoltzmannGenerator(Springs(), kT=1.0, progress=False)
    with pytest.raises(ValueError, match=r"data must be configurations \(n, 2\), got shape \(5, 3\)"):
        generator.train(max_steps=1, data=torch.zeros(5, 3))
    with pytest.raises(ValueError, match="data: 1 of 3 configurations are not finite"):
        generator.train(max_steps=1, data=torch.tensor([[0.0, 0.0], [math.nan, 0.0], [1.0, 1.0]]))
    with pytest.raises(ValueError, match=r"max_steps must be a positive integer, got 0\.5"):
        generator.train(max_steps=0.5)
    with pytest.raises(ValueError, match=r"num_samples must be a positive integer, got 1\.5"):
        generator.sample(1.5)
    with pytest.raises(ValueError, match="max_seconds must be a positive"):
        generator.train(max_seconds=-1)
