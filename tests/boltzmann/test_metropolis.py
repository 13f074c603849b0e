"""Metropolised chains leave the Boltzmann distribution as it is, also with a flow that is poor."""

import math

import pytest
import torch

from pyro_coupling.boltzmann import CenterFree
from pyro_coupling.boltzmann.energies import DoubleWell, Energy
from pyro_coupling.boltzmann.metropolis import _Chains, metropolis
from pyro_coupling.boltzmann.target import BoltzmannTarget
from pyro_coupling.transforms import Chain, DiagonalAffine, LeakyReLU


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def case(kT=2.0, loc=(0.5, 0.3), scale=(1.6, 1.8)):
    """A double well, and a flow that is off its place, of another width and bent."""
    energy = DoubleWell()
    target = BoltzmannTarget(energy, kT, None, torch.float32, torch.device("cpu"))
    return energy, target, Chain([LeakyReLU(2, 0.8), DiagonalAffine(torch.tensor(loc), torch.tensor(scale))])


def statistics(energy, x):
    """Some that a wrong rule of acceptance would change: ``(n, 5)``."""
    columns = [energy.modes(x).double(), x[:, 0], x[:, 1], x[:, 1] ** 2, energy(x)]
    return torch.stack([column.double() for column in columns], -1)


@pytest.mark.parametrize(("local_moves", "step_size"), [(0, 0.3), (2, 0.3), (2, 0.8)])
def test_the_boltzmann_distribution_is_stationary(local_moves, step_size):
    energy, target, flow = case()
    start = energy.sample(20_000, 2.0, generator())
    walk = metropolis(
        flow, target, 4, start=start, local_moves=local_moves, step_size=step_size, generator=generator(1)
    )
    exact = statistics(energy, energy.sample(400_000, 2.0, generator(2)))
    found = statistics(energy, walk.positions[-1])
    # chains are independent; the exact averages have an error sqrt(20) times smaller
    error = (found.var(0) / len(found) + exact.var(0) / len(exact)).sqrt()
    assert bool(((found.mean(0) - exact.mean(0)).abs() < 4 * error).all())


def test_local_moves_alone_leave_the_distribution_and_detailed_balance_as_they_are():
    energy, target, flow = case()
    chains = _Chains(flow, target, generator(1))
    first = chains.state(chains.noise_of(energy.sample(40_000, 2.0, generator())), True)
    last, rate = chains.shift(first, 0.6)
    assert 0.1 < rate.item() < 0.99
    # in equilibrium a move from one half to the other is as frequent as that back, for any halves
    for of in (lambda s: s.u[:, 0] > 1.7, lambda s: s.u[:, 1] > 0.5, lambda s: s.energy > -4.0):
        there, back = (of(last) & ~of(first)).sum().item(), (of(first) & ~of(last)).sum().item()
        assert there + back > 500
        assert abs(there - back) < 4 * math.sqrt(there + back)


def test_chains_from_the_flow_come_to_the_right_weights():
    energy, target, flow = case(kT=1.0)
    walk = metropolis(flow, target, 300, 400, local_moves=1, generator=generator())
    in_right = energy.modes(walk.positions[100:].reshape(-1, 2)).reshape(200, 400).double().mean(0)
    error = in_right.std().item() / math.sqrt(400)
    assert abs(in_right.mean().item() - energy.mode_weights()[1].item()) < 4 * error


def test_a_perfect_flow_is_always_accepted_and_forgets_at_once():
    class Spring(Energy):
        def energy(self, x):
            return 0.5 * x.square().sum(-1)

    target = BoltzmannTarget(Spring((3,)), 4.0, None, torch.float64, torch.device("cpu"))
    flow = DiagonalAffine(torch.zeros(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64))
    walk = metropolis(flow, target, 500, 20, generator=generator())
    assert walk.flow_acceptance == pytest.approx(1.0, abs=1e-12)
    assert math.isnan(walk.local_acceptance)
    # of 10 000 independent draws the time is known to a few per cent
    assert walk.autocorrelation_time == pytest.approx(1.0, abs=0.1)
    # and a Langevin move is one of the standard normal
    assert metropolis(flow, target, 5, 20, local_moves=3).local_acceptance == pytest.approx(1.0, abs=1e-12)


def test_local_moves_help_a_flow_that_is_too_narrow():
    _, target, flow = case(kT=2.0, loc=(1.6, 0.0), scale=(0.25, 0.8))
    energy = target.energy
    start = energy.sample(300, 2.0, generator())
    start = start[energy.modes(start) == 1]
    without, with_moves = (
        metropolis(flow, target, 200, start=start, local_moves=moves, generator=generator(1)) for moves in (0, 5)
    )
    assert with_moves.autocorrelation_time < 0.7 * without.autocorrelation_time
    assert 0.3 < with_moves.local_acceptance < 1


def test_particles_keep_their_shape_and_runs_repeat():
    class Pair(Energy):
        def energy(self, x):
            return 0.5 * (x[..., 0, :] - x[..., 1, :]).square().sum(-1)

    coordinates = CenterFree(2, 3)
    target = BoltzmannTarget(Pair((2, 3)), 1.0, coordinates, torch.float32, torch.device("cpu"))
    flow = DiagonalAffine(torch.zeros(3), torch.ones(3))
    one, other = (metropolis(flow, target, 6, 5, local_moves=1, generator=generator(4)) for _ in range(2))
    assert one.positions.shape == (6, 5, 2, 3) and one.energies.shape == (6, 5)
    assert torch.equal(one.positions, other.positions)
    torch.testing.assert_close(target.energy(one.positions), one.energies)


def test_what_can_not_be_computed_is_never_accepted():
    class Cliff(Energy):
        def energy(self, x):
            return torch.where(x[..., 0] > 0, 0.5 * x.square().sum(-1), math.nan)

    target = BoltzmannTarget(Cliff((2,)), 1.0, None, torch.float32, torch.device("cpu"))
    flow = DiagonalAffine(torch.zeros(2), torch.ones(2))
    walk = metropolis(flow, target, 30, start=torch.ones(50, 2), local_moves=2, generator=generator())
    assert bool((walk.positions[..., 0] > 0).all())
    # half of the flow's draws lie beyond the cliff; 1500 proposals tell this to 0.013
    assert walk.flow_acceptance == pytest.approx(0.5, abs=0.06)


def test_misuse_is_refused():
    _, target, flow = case()
    for settings, message in (
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 1, "num_chains": 0}, "num_chains"),
        ({"num_steps": 1, "step_size": 1.0}, "step_size"),
        ({"num_steps": 1, "local_moves": -1}, "local_moves"),
        ({"num_steps": 1, "start": torch.zeros(3)}, "start must be"),
        ({"num_steps": 1, "start": torch.full((3, 2), math.nan)}, "3 configurations|3 of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            metropolis(flow, target, **settings)
