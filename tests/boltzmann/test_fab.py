"""Annealed importance sampling is exact with any flow; FAB learns from what it brings."""

import math
import signal

import pytest
import torch

from pyro_coupling import flows
from pyro_coupling.boltzmann import BoltzmannGenerator, annealed_importance_sampling
from pyro_coupling.boltzmann.annealed import Annealer
from pyro_coupling.boltzmann.energies import DoubleWell, Energy, ManyWell
from pyro_coupling.boltzmann.fab import FlowBootstrap, ReplayBuffer
from pyro_coupling.boltzmann.phases import log_density
from pyro_coupling.boltzmann.target import BoltzmannTarget
from pyro_coupling.training import Trainer
from pyro_coupling.transforms import DiagonalAffine


class Spring(Energy):
    """``stiffness x^2 / 2``, NaN beyond ``edge``; counts the configurations that it is asked for."""

    def __init__(self, stiffness=3.0, edge=math.inf):
        super().__init__((1,))
        self.stiffness, self.edge, self.count = stiffness, edge, 0

    def energy(self, x):
        self.count += x.shape[:-1].numel()
        return torch.where(x[..., 0] < self.edge, 0.5 * self.stiffness * x[..., 0] ** 2, math.nan)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def target_of(energy, kT=1.0):
    return BoltzmannTarget(energy, kT, None, torch.float64, torch.device("cpu"))


def gaussian(loc=(0.0,), scale=(1.0,)):
    """A flow that is a normal distribution."""
    return DiagonalAffine(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


def test_a_hamiltonian_move_leaves_the_density_invariant():
    # power 1: the double well itself, from exact draws; steps so long that a third is refused
    energy = DoubleWell()
    annealer = Annealer(gaussian((0.3, 0.0), (1.5, 1.2)), target_of(energy, 2.0), 1, generator=seeded())
    start = energy.sample(40_000, 2.0, seeded(1)).double()
    moved, rate = annealer._move(annealer._at(start), 1.0, torch.tensor(0.35, dtype=torch.float64))
    assert 0.2 < rate < 0.9

    def statistics(x):
        return torch.stack([energy.modes(x), x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 1] ** 2, energy(x)], -1).double()

    exact, found = statistics(energy.sample(400_000, 2.0, seeded(2)).double()), statistics(moved.u)
    error = (found.var(0) / len(found) + exact.var(0) / len(exact)).sqrt()
    assert bool(((found.mean(0) - exact.mean(0)).abs() < 4 * error).all())
    # and detailed balance: as many go from one half to the other as come back
    for of in (lambda x: x[:, 0] > 1.7, lambda x: x[:, 1] > 0.5):
        there, back = (of(moved.u) & ~of(start)).sum().item(), (of(start) & ~of(moved.u)).sum().item()
        assert there + back > 500 and abs(there - back) < 4 * math.sqrt(there + back)


def test_the_partition_function_by_annealing_is_that_of_quadrature():
    energy, flow = DoubleWell(), gaussian((0.5, 0.3), (1.5, 1.3))
    target = target_of(energy)
    short, long = (
        annealed_importance_sampling(flow, target, 4000, num_levels=levels, generator=seeded()) for levels in (1, 8)
    )
    for found in (short, long):
        assert abs(found.log_z - energy.log_z()) < 4 * found.log_z_se
    # many small steps make more even weights
    assert long.log_z_se < 0.7 * short.log_z_se
    assert long.num_energies == (4000 + 20 * 64) * 33 + 4000
    torch.testing.assert_close(energy(long.positions), long.energies)


def test_the_weights_towards_the_second_moment():
    # the integral of p^2 / q for p = exp(-3 x^2 / 2) and a standard normal q
    annealer = Annealer(gaussian(), target_of(Spring()), 3, power=2.0, generator=seeded())
    weights = annealer.run(20_000).log_weights.exp()
    exact = math.sqrt(2 * math.pi) * math.sqrt(2 * math.pi / (2 * 3.0 - 1))
    assert abs(weights.mean().item() - exact) < 4 * weights.std().item() / math.sqrt(20_000)


def test_steps_adapt_to_the_rate_of_acceptance():
    annealer = Annealer(gaussian((0.5, 0.3), (1.5, 1.3)), target_of(DoubleWell()), 3, generator=seeded())
    for _ in range(40):
        annealer.adapt(annealer.run(200).acceptance)
    # a rate among 4000 moves is known to 0.008; the step size still wanders by the noise of runs of 200
    assert torch.allclose(annealer.run(4000).acceptance, torch.tensor(0.65).double(), atol=0.1)


def test_what_has_no_energy_gets_no_weight():
    found = annealed_importance_sampling(gaussian(), target_of(Spring(1.0, edge=0.5)), 4000, generator=seeded())
    good = found.log_weights.isfinite()
    assert bool((found.positions[good, 0] < 0.5).all()) and 0.5 < good.double().mean() < 0.8
    inside = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    assert abs(found.log_z - math.log(math.sqrt(2 * math.pi) * inside)) < 4 * found.log_z_se


def test_a_buffer_draws_in_proportion_to_its_weights_and_corrects_them():
    buffer = ReplayBuffer(4, 1, torch.float64, torch.device("cpu"))
    weights = torch.tensor([9.0, 1.0, 0.0, 2.0, 1.0, 4.0]).double()
    buffer.add(torch.arange(6.0).double().unsqueeze(-1), weights.log(), torch.zeros(6).double())
    assert buffer.u[:, 0].tolist() == [1.0, 3.0, 4.0, 5.0]  # no weight, and the oldest, left out
    counts = buffer.choose(8000, seeded()).bincount()
    assert (counts - torch.tensor([1000, 2000, 1000, 4000])).abs().max() <= 1  # systematic resampling
    chosen = torch.tensor([1, 3, 3])
    change = buffer.correct(chosen, torch.tensor([0.5, -1.0, -1.0]).double())
    assert change.tolist() == [-0.5, 1.0, 1.0]
    # p^2 / q has changed by q_then / q_now, once for each draw
    expected = torch.tensor([1.0, 2.0 * math.exp(-0.5), 1.0, 4.0 * math.e]).double().log()
    torch.testing.assert_close(buffer.log_weights, expected)
    assert buffer.log_q.tolist() == [0.0, 0.5, 0.0, -1.0]
    assert buffer.correct(torch.tensor([0]), torch.tensor([math.nan])).item() == 0.0


def test_the_gradient_is_that_of_the_second_moment():
    # of log integral p^2 / q in the location of q = N(m, 1), for p = exp(-3 x^2 / 2): p^2 / q is a normal of
    # precision 5 about -m / 5, and the gradient E[m - x] is 1.2 m
    flow = gaussian((0.5,))
    fab = FlowBootstrap(flow, target_of(Spring()), 4, 40_000, seeded())
    fab(torch.zeros(5000, 1, dtype=torch.float64), 0.0)
    # 5000 weighted draws of variance 1 / 5
    assert flow.shift.grad.item() == pytest.approx(1.2 * 0.5, abs=4 * 1.5 * math.sqrt(0.2 / 5000))


def test_later_steps_count_by_what_the_flow_was_when_the_weight_was_made():
    flow = gaussian((0.5,))
    fab = FlowBootstrap(flow, target_of(Spring()), 4, 40_000, seeded())
    noise = torch.zeros(5000, 1, dtype=torch.float64)
    fab(noise, 0.0)
    with torch.no_grad():
        flow.shift.fill_(-0.3)
    fab(noise, 0.0)
    # draws of p^2 / q for a location of 0.5, corrected to 0.2: the gradient there, times the ratio of the integrals
    ratio = math.exp(0.6 * (0.2**2 - 0.5**2))
    assert flow.shift.grad.item() == pytest.approx(1.2 * 0.2 * ratio, abs=4 * 1.5 * math.sqrt(0.2 / 5000))


@pytest.mark.parametrize("method", ["annealing", "fab", "cmt"])
def test_every_energy_is_counted(method):
    energy = Spring()
    settings = {"num_particles": 32, "buffer_size": 512, "num_rungs": 2, "seed": 0, "progress": False}
    generator = BoltzmannGenerator(energy, kT=1.0, flow=flows.real_nvp(1, 1, (4,)), method=method, **settings)
    energy.count = 0
    generator.train(max_steps=20)
    assert energy.count == generator._num_energies > 0


def test_fab_learns_both_states_of_a_double_well():
    energy = ManyWell(2)
    settings = {"num_particles": 256, "learning_rate": 5e-3, "buffer_size": 4000, "seed": 0, "progress": False}
    torch.manual_seed(0)
    flow = flows.neural_spline(2, 2, (16, 16), linear=False)
    generator = BoltzmannGenerator(energy, kT=1.0, flow=flow, method="fab", num_rungs=2, **settings).train(
        max_steps=160
    )
    found, draws = generator.diagnostics(), generator.sample(10_000)
    assert found["ess"] > 0.6 and abs(found["log_z"] - energy.log_z()) < 4 * found["log_z_se"]
    share = (energy.modes(draws.positions) == 0).double()
    # as draws of the flow, unweighted: 0.156 exactly, and a flow of this ESS is not far off
    assert 0.1 < share.mean() < 0.25


def test_a_state_is_a_continuation():
    def phase():
        torch.manual_seed(0)
        return FlowBootstrap(flows.real_nvp(1, 1, (4,)).double(), target_of(Spring()), 2, 400, seeded())

    noise = torch.zeros(50, 1, dtype=torch.float64)
    first, other = phase(), phase()
    for _ in range(3):
        first(noise, 0.0)
    other.restore(first.state())
    other.generator.set_state(first.generator.get_state())
    assert torch.equal(first(noise, 0.0), other(noise, 0.0))
    pairs = zip(first.flow.parameters(), other.flow.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None)
    assert torch.equal(first.buffer.log_weights, other.buffer.log_weights)


def test_misuse_is_refused():
    target = target_of(Spring())
    with pytest.raises(ValueError, match="num_levels must be a positive"):
        Annealer(gaussian(), target, 0)
    with pytest.raises(ValueError, match="num_samples must be a positive"):
        annealed_importance_sampling(gaussian(), target, 0)
    with pytest.raises(ValueError, match="method must be one of annealing, fab, cmt, got 'reinforce'"):
        BoltzmannGenerator(Spring(), kT=1.0, method="reinforce")


def test_a_flow_that_can_not_reach_the_target_ends_nothing():
    fab = FlowBootstrap(flows.real_nvp(1, 1, (4,)).double(), target_of(Spring(edge=-1e9)), 2, 400, seeded())
    found = fab(torch.zeros(50, 1, dtype=torch.float64), 0.0)
    assert not found.isfinite().any() and len(fab.buffer) == 0
    assert log_density(fab.flow, torch.zeros(1, 1).double()).isfinite().all()


@pytest.mark.parametrize("method", ["fab", "cmt"])
def test_a_training_goes_on_from_its_checkpoint_and_a_file_knows_the_method(method, tmp_path, monkeypatch):
    def generator():
        torch.manual_seed(0)
        settings = {"num_particles": 32, "buffer_size": 512, "num_rungs": 3, "seed": 0, "progress": False}
        flow = flows.real_nvp(2, 1, (4,))
        return BoltzmannGenerator(ManyWell(2), kT=1.0, flow=flow, method=method, max_divergence=0.2, **settings)

    def interrupted(self):
        if self.record.num_steps == 13:
            signal.raise_signal(signal.SIGINT)
        step(self)

    path, step = tmp_path / "training.safetensors", Trainer.clip_and_step
    whole = generator().train(max_steps=30)
    monkeypatch.setattr(Trainer, "clip_and_step", interrupted)
    assert generator().train(max_steps=30, checkpoint=path).record.num_steps == 14
    monkeypatch.undo()
    resumed = generator().train(max_steps=30, checkpoint=path)
    assert resumed.rungs == whole.rungs and len(whole.rungs) == (3 if method == "cmt" else 0)
    assert resumed._num_energies == whole._num_energies
    resumed.save(tmp_path / "generator.safetensors")
    loaded = BoltzmannGenerator.load(tmp_path / "generator.safetensors", ManyWell(2), progress=False)
    assert (loaded.method, loaded.max_divergence, loaded.num_rungs) == (method, 0.2, 3)
    drawn = whole.sample(10).positions
    assert torch.equal(drawn, resumed.sample(10).positions) and torch.equal(drawn, loaded.sample(10).positions)
