"""One flow for a range of temperatures: weights, partition functions and averages at each."""

import functools
import math
from pathlib import Path

import pytest
import torch

from pyro_coupling import flows
from pyro_coupling.boltzmann import InternalCoordinates, SteerableGenerator, from_xml
from pyro_coupling.boltzmann.energies import DW4, Energy, ManyWell
from pyro_coupling.boltzmann.steerable import Steering

FIXTURES = Path(__file__).parent / "fixtures"
RANGE = (0.8, 3.0)
QUIET = {"seed": 0, "progress": False}


@functools.cache
def trained():
    torch.manual_seed(0)
    # at the hot end a standard deviation is 1.7: splines that ended at 4 left an ESS of 0.3 to 0.6 there, these 0.7
    flow = flows.neural_spline(2, 2, (16, 16), context_dim=1, bound=6.0, linear=False)
    settings = {"num_particles": 128, "learning_rate": 5e-3, "buffer_size": 2000} | QUIET
    return SteerableGenerator(ManyWell(2), kT=RANGE, flow=flow, **settings).train(max_steps=400)


def test_the_partition_function_along_temperatures():
    curve = trained().curve(10_000, kT=[0.8, 1.2, 1.8, 3.0])
    exact = torch.tensor([ManyWell(2).log_z(kT) for kT in curve.kT.tolist()]).double()
    assert bool(((curve.log_z - exact).abs() < 4 * curve.log_z_se).all())
    assert bool((curve.ess > 0.6).all()) and bool((curve.log_z_se < 0.02).all())
    torch.testing.assert_close(curve.free_energy, -curve.kT * curve.log_z)


def test_the_mean_energy_is_the_slope_of_the_partition_function():
    curve = trained().curve(20_000, kT=[0.9, 2.5])
    for kT, mean, error in zip(curve.kT.tolist(), curve.mean_energy, curve.mean_energy_se, strict=True):
        # <E> = kT^2 d log Z / d kT, by a central difference of quadratures
        slope = (ManyWell(2).log_z(1.001 * kT) - ManyWell(2).log_z(0.999 * kT)) / (0.002 * kT)
        assert abs(mean.item() - kT**2 * slope) < 4 * error.item()


def test_the_states_have_their_weights_at_every_temperature():
    for kT in RANGE:
        draws = trained().sample(10_000, kT=kT)
        weights = draws.log_weights.double().softmax(0)
        found = torch.zeros(2).double().index_add_(0, ManyWell(2).modes(draws.positions), weights)
        # 10 000 draws of a relative ESS of 0.6 or more: a standard error of at most 0.5 / sqrt(6000)
        assert torch.allclose(found, torch.as_tensor(ManyWell(2).mode_weights(kT)).double(), atol=4 * 0.0065)


def test_a_generator_of_one_temperature():
    generator = trained().at(kT=1.5)
    positions, energies, log_weights = generator.sample(1000)
    assert torch.allclose(log_weights, -energies / 1.5 - generator.log_prob(positions), atol=1e-3)
    assert generator.diagnostics(1000)["ess"] > 0.5
    # fresh draws each time, and another flow at another temperature
    assert not torch.equal(trained().sample(10, kT=1.5).positions, trained().sample(10, kT=1.5).positions)
    spread = [trained().sample(4000, kT=kT).positions[:, 1].std() for kT in RANGE]
    assert spread[1] > 1.3 * spread[0]


def test_the_range_opens_from_its_hot_end():
    seen = []

    class Watched(ManyWell):
        def energy(self, x):
            seen.append(len(x))
            return super().energy(x)

    generator = SteerableGenerator(Watched(2), kT=RANGE, flow=flows.real_nvp(2, 1, (4,), context_dim=1), **QUIET)
    steering = Steering(generator.flow, generator._hot.target, RANGE, 320, generator._hot._generator)
    for opened, coldest in ((0.0, 3.0), (0.5, math.sqrt(3.0 * 0.8)), (1.0, 0.8)):
        temperatures = steering._spread(1000, opened)
        assert temperatures.min().item() == pytest.approx(coldest, rel=1e-2)
        assert temperatures.max().item() == pytest.approx(3.0, rel=1e-2)
    steering(torch.randn(16, 2), 0.0)
    # at the hot end, or colder by what samples can be reweighted for, and no colder than the range
    assert 3.0 / 1.3 - 1e-5 <= steering.kT.min() <= steering.kT.max() <= 3.0
    assert sum(seen) == steering.num_energies == 320 + 16
    steering(torch.randn(16, 2), 1.0)
    steering._renew(1.0)
    assert steering.kT.min().item() >= 0.8 - 1e-6


def test_every_energy_is_counted_and_a_seed_is_a_result():
    class Counted(Energy):
        count = 0

        def energy(self, x):
            self.count += len(x)
            return 0.5 * x.square().sum(-1)

    def trained_again():
        energy = Counted((2,))
        torch.manual_seed(0)
        flow = flows.real_nvp(2, 1, (4,), context_dim=1)
        before = torch.random.get_rng_state()
        settings = {"num_particles": 16, "buffer_size": 64, "flow": flow} | QUIET
        generator = SteerableGenerator(energy, kT=(1.0, 2.0), **settings).train(max_steps=3).train(max_steps=2)
        assert energy.count == generator.num_energies == 5 * 16 + 2 * 64
        assert torch.equal(torch.random.get_rng_state(), before)
        return generator

    first, second = (trained_again().sample(10, kT=1.2).positions for _ in range(2))
    assert torch.equal(first, second)


def test_a_molecule_in_kelvin():
    lines = (FIXTURES / "alanine_dipeptide.pdb").read_text().splitlines()
    atoms = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
    reference = 0.1 * torch.tensor([[float(line[i : i + 8]) for i in (30, 38, 46)] for line in atoms])
    energy = from_xml(FIXTURES / "aldp_ff96_obc1_system.xml")
    coordinates = InternalCoordinates(reference.double(), energy.bonds)
    generator = SteerableGenerator(energy, temperature=(300.0, 1200.0), coordinates=coordinates, **QUIET)
    assert generator.kT == pytest.approx((2.494339, 9.977355), abs=1e-6)
    positions, _, log_weights = generator.sample(100, temperature=600.0)
    assert positions.shape == (100, 22, 3) and (log_weights.isfinite()).double().mean() > 0.9


def test_particles_keep_their_centre():
    positions = SteerableGenerator(DW4(), kT=(1.0, 2.0), **QUIET).sample(10, kT=1.0).positions
    assert positions.shape == (10, 4, 2) and positions.mean(1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one of kT and temperature"),
        ({"kT": (1.0, 2.0), "temperature": (300.0, 400.0)}, "exactly one of kT and temperature"),
        ({"kT": (2.0, 1.0)}, "the coldest and the hottest temperature, got"),
        ({"kT": (1.0, 2.0, 3.0)}, "the coldest and the hottest temperature, got"),
        ({"kT": (0.0, 1.0)}, "kT must be a positive"),
        ({"kT": (1.0, 2.0), "buffer_size": 0}, "buffer_size must be a positive"),
        ({"kT": (1.0, 2.0), "flow": flows.real_nvp(2, 1, (4,))}, r"a context of shape \(1,\), got \(\)"),
    ],
)
def test_settings_that_can_not_be(settings, words):
    with pytest.raises(ValueError, match=words):
        SteerableGenerator(ManyWell(2), progress=False, **settings)


def test_temperatures_out_of_the_range():
    with pytest.raises(ValueError, match=r"kT must be in the range \[0.8, 3\], got 3.1"):
        trained().sample(10, kT=3.1)
    with pytest.raises(ValueError, match="exactly one of kT and temperature"):
        trained().at()
