"""Langevin dynamics and parallel tempering against distributions that are known exactly."""

import math

import pytest
import torch

from pyro_coupling.boltzmann.dynamics import Langevin, ParallelTempering
from pyro_coupling.boltzmann.energies import DW4, DoubleWell, Energy, ManyWell
from pyro_coupling.boltzmann.units import GAS_CONSTANT, kT
from pyro_coupling.boltzmann.walkers import Walkers


class Springs(Energy):
    """Independent harmonic wells of stiffness 1 and 4."""

    def __init__(self):
        super().__init__((2,))
        self.stiffness = torch.tensor([1.0, 4.0])

    def energy(self, x):
        return 0.5 * (self.stiffness.to(x) * x.square()).sum(-1)


class Cliff(Energy):
    """A harmonic well around 0 that can't be computed beyond 3."""

    def __init__(self):
        super().__init__((1,))

    def energy(self, x):
        return 0.5 * torch.where(x.abs() < 3, x, math.nan).square().sum(-1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mean_and_error(values):
    """Mean of ``(frames, walkers, ...)``, and its standard error from the spread among the independent walkers."""
    per_walker = values.double().mean(0)
    return per_walker.mean(0), per_walker.std(0) / math.sqrt(len(per_walker))


# Units


def test_thermal_energy_is_that_of_the_exact_constants():
    assert pytest.approx(1.380649e-23 * 6.02214076e23 / 1000, rel=1e-15) == GAS_CONSTANT
    assert kT(300.0) == pytest.approx(2.4943387854, rel=1e-10)


@pytest.mark.parametrize("temperature", [0.0, -300.0, math.nan, math.inf])
def test_temperatures_that_are_none_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        kT(temperature)
    with pytest.raises(ValueError, match="temperature"):
        Langevin(Springs(), time_step=0.1, friction=1.0, temperature=temperature)
    with pytest.raises(ValueError, match="kT"):
        ParallelTempering(Springs(), time_step=0.1, friction=1.0, kT=[temperature, 1.0])


# Langevin


@pytest.mark.parametrize("time_step", [0.1, 0.5, 0.9])  # times the fastest frequency: 0.2, 1.0 and 1.8; stable below 2
def test_harmonic_variance_is_exact_at_any_stable_step(time_step):
    dynamics = Langevin(Springs(), time_step=time_step, friction=1.0, kT=0.7)
    run = dynamics.run(0.5 * torch.randn(400, 2, generator=generator()), 1000, generator=generator(1))
    settled = run.positions[int(20 / time_step) :]
    variance, error = mean_and_error(settled.square())
    assert ((variance - torch.tensor([0.7, 0.7 / 4])).abs() < 4 * error).all()
    # Leimkuhler, Matthews 2013: velocities are too slow by the factor 1 - (time_step frequency)^2 / 4
    expected = 0.5 * 0.7 * sum(1 - (time_step * frequency) ** 2 / 4 for frequency in (1.0, 2.0))
    kinetic, error = mean_and_error(run.kinetic_energies[int(20 / time_step) :])
    assert (kinetic - expected).abs() < 4 * error
    energies = Springs()(run.positions)
    assert torch.allclose(run.energies, energies, rtol=1e-5)


@pytest.mark.parametrize("friction", [0.1, 10.0])
def test_distribution_does_not_depend_on_masses_and_friction(friction):
    dynamics = Langevin(Springs(), time_step=0.4, friction=friction, kT=0.7, masses=torch.tensor([0.5, 4.0]))
    # with 400 walkers that start from the distribution, later frames only lower the error
    start = torch.randn(400, 2, generator=generator()) * torch.tensor([0.7, 0.7 / 4]).sqrt()
    variance, error = mean_and_error(dynamics.run(start, 1000, generator=generator(1)).positions.square())
    assert ((variance - torch.tensor([0.7, 0.7 / 4])).abs() < 4 * error).all()


def test_masses_belong_to_particles():
    masses = torch.tensor([1.0, 2.0, 4.0, 8.0])
    dynamics = Langevin(DW4(), time_step=0.001, friction=1.0, kT=2.0, masses=masses)
    start = 3.0 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]).expand(2000, 4, 2)
    velocities = dynamics.run(start, 1, generator=generator()).final.velocities
    twice_kinetic = masses * velocities.square().mean((0, 2))
    assert ((twice_kinetic - 2.0).abs() < 4 * 2.0 * math.sqrt(2 / 4000)).all()  # the variance of a square is 2


def test_kelvin_is_the_gas_constant_times_kelvin():
    start = torch.zeros(3, 2)
    in_kelvin = Langevin(Springs(), time_step=0.1, friction=1.0, temperature=300.0)
    in_energy = Langevin(Springs(), time_step=0.1, friction=1.0, kT=300.0 * GAS_CONSTANT)
    runs = [dynamics.run(start, 10, generator=generator()).positions for dynamics in (in_kelvin, in_energy)]
    assert runs[0].equal(runs[1])


def test_a_run_goes_on_where_another_ended():
    dynamics = Langevin(DW4(), time_step=0.02, friction=1.0, kT=1.0)
    start = 3.0 * torch.randn(5, 4, 2, generator=generator())
    source = generator(1)
    whole = dynamics.run(start, 20, save_every=5, generator=source)
    source = generator(1)
    first = dynamics.run(start, 10, save_every=5, generator=source)
    second = dynamics.run(first.final, 10, save_every=5, generator=source)
    assert torch.cat([first.positions, second.positions]).equal(whole.positions)
    assert whole.positions.shape == (4, 5, 4, 2)
    assert whole.positions[-1].equal(whole.final.positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_start_are_kept(dtype):
    start = torch.full((4, 2), 0.3, dtype=dtype)
    run = Langevin(Springs(), time_step=0.1, friction=1.0, kT=1.0).run(start, 6, save_every=2)
    assert run.positions.dtype == run.energies.dtype == run.final.velocities.dtype == dtype
    assert (start == 0.3).all()


def test_lost_walkers_restart_from_their_last_good_frame_and_are_counted():
    dynamics = Langevin(Cliff(), time_step=0.2, friction=1.0, kT=1.0)
    with pytest.warns(RuntimeWarning, match=r"Langevin: \d+ of 50 walkers became non-finite"):
        run = dynamics.run(torch.zeros(50, 1), 1000, save_every=10, generator=generator())
    assert run.positions.isfinite().all() and run.energies.isfinite().all()
    repeated = (run.positions[1:] == run.positions[:-1]).squeeze(-1).sum(0)
    first = (run.positions[0] == 0).squeeze(-1).long()
    assert run.restarts.sum() > 0
    assert (repeated + first).equal(run.restarts)


def test_other_walkers_do_not_notice_a_lost_one():
    dynamics = Langevin(Cliff(), time_step=0.01, friction=1.0, kT=0.01)
    calm = dynamics.run(torch.zeros(3, 1), 5, generator=generator())
    assert calm.restarts.sum() == 0
    with pytest.warns(RuntimeWarning, match="1 of 3"):
        fast = torch.tensor([[0.0], [1e6], [0.0]])
        lost = dynamics.run(calm.final._replace(velocities=fast), 5, generator=generator())
    assert lost.restarts.tolist() == [0, 1, 0]


# Parallel tempering


@pytest.mark.parametrize("energy", [DoubleWell(), ManyWell(2)], ids=lambda energy: type(energy).__name__)
def test_tempering_finds_the_weights_of_modes(energy):
    ladder = [1.0, 1.8, 3.2, 6.0]
    dynamics = ParallelTempering(energy, time_step=0.1, friction=1.0, kT=ladder, swap_every=5)
    start = energy.sample(128, ladder[-1], generator())
    run = dynamics.run(start, 1500, keep=2, generator=generator(1))
    assert run.positions.shape == (300, 128, 2, 2)
    right = energy.modes(run.positions[100:]).double()
    weight, error = mean_and_error(right)
    assert (error < 0.02).all()  # the rarer mode has 0.16
    for rung in range(2):
        assert (weight[rung] - energy.mode_weights(ladder[rung])[1]).abs() < 4 * error[rung]
    assert (run.swap_acceptance > 0.5).all() and (run.restarts == 0).all()


@pytest.mark.slow
def test_long_tempering_finds_the_weights_of_eight_modes():
    energy, ladder = ManyWell(6), [1.0, 1.5, 2.3, 3.5, 5.5]
    dynamics = ParallelTempering(energy, time_step=0.1, friction=1.0, kT=ladder, swap_every=10)
    run = dynamics.run(energy.sample(256, ladder[-1], generator()), 20_000, keep=1, generator=generator(1))
    occupied = torch.nn.functional.one_hot(energy.modes(run.positions[200:, :, 0]), 8)
    weights, errors = mean_and_error(occupied)
    assert ((weights - energy.mode_weights()).abs() < 4 * errors).all()


def test_swap_acceptance_is_that_of_exponential_energies():
    class Bowl(Energy):
        def energy(self, x):
            return 0.5 * x.square().sum(-1)

    # in two dimensions energies are exponential, and a swap is accepted with probability 2 cold / (cold + hot)
    ladder = torch.tensor([1.0, 3.0, 4.0])
    dynamics = ParallelTempering(Bowl((2,)), time_step=0.5, friction=1.0, kT=ladder.tolist(), swap_every=4)
    start = torch.randn(2000, 3, 2, generator=generator()) * ladder.sqrt().unsqueeze(-1)
    run = dynamics.run(start, 40, generator=generator(1))
    expected = 2 * ladder[:-1] / (ladder[:-1] + ladder[1:])
    # as if the five proposals of one ladder told no more than one
    assert ((run.swap_acceptance - expected).abs() < 4 * math.sqrt(0.25 / 2000)).all()
    variance, error = mean_and_error(run.positions.square().mean(-1))
    assert ((variance - ladder).abs() < 4 * error).all()


def test_a_run_of_ladders_goes_on_where_another_ended():
    dynamics = ParallelTempering(DoubleWell(), time_step=0.05, friction=1.0, kT=[1.0, 2.0], swap_every=2)
    source = generator()
    first = dynamics.run(torch.ones(4, 2), 8, generator=source)
    second = dynamics.run(first.final, 8, generator=source)
    assert first.positions[-1].equal(first.final.positions)
    whole = dynamics.run(torch.ones(4, 2), 16, generator=generator())
    assert torch.cat([first.positions, second.positions]).equal(whole.positions)


def test_lost_walkers_of_ladders_are_counted():
    dynamics = ParallelTempering(Cliff(), time_step=0.2, friction=1.0, kT=[0.01, 4.0], swap_every=5)
    with pytest.warns(RuntimeWarning, match="ParallelTempering"):
        run = dynamics.run(torch.zeros(10, 1), 200, generator=generator())
    assert run.positions.isfinite().all()
    assert run.restarts.shape == (10, 2)
    assert run.restarts[:, 1].sum() > 0


# Bad input


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"time_step": 0.0}, "time_step"),
        ({"friction": -1.0}, "friction"),
        ({"kT": None}, "exactly one"),
        ({"temperature": 300.0}, "exactly one"),
        ({"masses": 0.0}, "masses"),
        ({"masses": torch.ones(3)}, "masses"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, says):
    settings = {"time_step": 0.1, "friction": 1.0, "kT": 1.0} | change
    with pytest.raises(ValueError, match=f"Langevin: .*{says}"):
        Langevin(Springs(), **settings)


@pytest.mark.parametrize("ladder", [[1.0], [2.0, 1.0], [1.0, 1.0]])
def test_ladders_that_do_not_rise_are_refused(ladder):
    with pytest.raises(ValueError, match="rising"):
        ParallelTempering(Springs(), time_step=0.1, friction=1.0, kT=ladder)


def test_starts_that_are_none_are_refused():
    langevin = Langevin(Springs(), time_step=0.1, friction=1.0, kT=1.0)
    tempering = ParallelTempering(Springs(), time_step=0.1, friction=1.0, kT=[1.0, 2.0], swap_every=10)
    bad = torch.zeros(4, 2)
    bad[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"^start .* 1 of 4 walkers"):
        langevin.run(bad, 10)
    with pytest.raises(ValueError, match=r"^start .* 2 of 8 walkers"):
        tempering.run(bad, 10)
    for dynamics in (langevin, tempering):
        with pytest.raises(ValueError, match=r"Springs.*\(2,\)"):
            dynamics.run(torch.zeros(4, 3), 10)
    with pytest.raises(ValueError, match="velocities"):
        langevin.run(Walkers(torch.zeros(4, 2), torch.zeros(3, 2)), 10)
    with pytest.raises(ValueError, match="keep"):
        tempering.run(torch.zeros(4, 2), 10, keep=3)
    with pytest.raises(ValueError, match="batch shape"):
        tempering.run(torch.zeros(4, 3, 2), 10)
    with pytest.raises(ValueError, match="multiple of save_every"):
        langevin.run(torch.zeros(4, 2), 10, save_every=3)
    with pytest.raises(ValueError, match="multiple of swap_every"):
        tempering.run(torch.zeros(4, 2), 5)
