"""Free-energy differences against exact ones, and the errors that are stated with them."""

import math

import pytest
import torch
from pyro.distributions import Normal

from pyro_coupling.boltzmann import BoltzmannGenerator
from pyro_coupling.boltzmann.energies import DoubleWell, Energy, ManyWell
from pyro_coupling.boltzmann.free_energy import (
    bar,
    exponential_average,
    free_energy_difference,
    mbar,
    state_difference,
    targeted_perturbation,
)
from pyro_coupling.transforms import DiagonalAffine


class Springs(Energy):
    """Harmonic wells about a point."""

    def __init__(self, stiffness, centre=0.0, dim=2):
        super().__init__((dim,))
        self.stiffness, self.centre = stiffness, centre

    def energy(self, x):
        return 0.5 * self.stiffness * (x - self.centre).square().sum(-1)

    def log_z(self, kT=1.0):
        return 0.5 * self.event_shape[0] * math.log(2 * math.pi * kT / self.stiffness)


def with_affine_flow(energy, kT, loc, scale, seed=0, **settings):
    flow = DiagonalAffine(torch.tensor(loc), torch.tensor(scale))
    return BoltzmannGenerator(energy, kT=kT, flow=flow, seed=seed, progress=False, **settings)


def double_wells(**settings):
    """Two temperatures of one energy, with flows that know the width but neither well."""
    return [
        with_affine_flow(DoubleWell(), kT, [0.0, 0.0], [1.8, 1.2 * math.sqrt(kT)], seed=seed, **settings)
        for seed, kT in enumerate((1.0, 2.0))
    ]


def assert_covered(results, exact):
    """The intervals of 95 % hold the exact difference as often as that, and errors are as large as they are said to be.

    Of n intervals ``0.95 n`` are hit, with a standard deviation of ``sqrt(0.95 * 0.05 n)``; four of them are allowed.
    The standard deviation of n values is known to the part ``1 / sqrt(2 n)`` of it; four of them again.
    """
    n = len(results)
    hits = sum(abs(result.value - exact) < 1.96 * result.standard_error for result in results)
    assert hits >= 0.95 * n - 4 * math.sqrt(0.95 * 0.05 * n)
    values, errors = (torch.tensor(column) for column in list(zip(*results, strict=True))[:2])
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=4 / math.sqrt(2 * n))


# Two generators


@pytest.mark.parametrize("method", ["mixture", "log_z"])
def test_two_temperatures_are_covered_as_often_as_the_error_says(method):
    a, b = double_wells()
    exact = a.energy.log_z(1.0) - a.energy.log_z(2.0)
    assert_covered([free_energy_difference(a, b, 2000, method=method) for _ in range(200)], exact)


def test_the_mixture_has_the_smaller_error_where_each_flow_lacks_a_part():
    energy = DoubleWell()
    left, right = (with_affine_flow(energy, kT, [x, 0.0], [0.9, 1.1], seed=3) for kT, x in ((1.0, -1.0), (1.2, 1.0)))
    exact = energy.log_z(1.0) - energy.log_z(1.2)
    mixture = free_energy_difference(left, right, 20_000)
    assert abs(mixture.value - exact) < 4 * mixture.standard_error
    assert mixture.standard_error < 0.5 * free_energy_difference(left, right, 20_000, method="log_z").standard_error


def test_two_energies_at_one_temperature_have_a_difference_in_their_unit():
    a = with_affine_flow(Springs(1.0), 2.5, [0.1, 0.0], [1.5, 1.7])
    b = with_affine_flow(Springs(4.0, centre=1.0), 2.5, [0.9, 1.0], [0.9, 0.8], seed=1)
    found = free_energy_difference(a, b, 5000)
    exact = a.energy.log_z(2.5) - b.energy.log_z(2.5)
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.energy == pytest.approx(2.5 * found.value)
    assert found.energy_standard_error == pytest.approx(2.5 * found.standard_error)
    assert 0 < found.overlap <= 1


def test_two_temperatures_have_no_difference_in_energy():
    assert free_energy_difference(*double_wells(), 1000).energy is None


def test_flows_that_are_exact_leave_no_error():
    a, b = (with_affine_flow(Springs(4.0), kT, [0.0, 0.0], [math.sqrt(kT / 4)] * 2) for kT in (1.0, 2.0))
    for method in ("mixture", "log_z"):
        found = free_energy_difference(a, b, 1000, method=method)
        assert found.value == pytest.approx(-math.log(2), abs=1e-5)
        assert found.standard_error < 1e-6
    assert found.overlap == pytest.approx(1.0)


def test_a_result_on_few_draws_warns():
    a, b = (with_affine_flow(Springs(4.0, centre=8.0), kT, [0.0, 0.0], [1.0, 1.0]) for kT in (1.0, 2.0))
    for method in ("mixture", "log_z"):
        with pytest.warns(RuntimeWarning, match="rests on few draws"):
            free_energy_difference(a, b, 1000, method=method)


def test_coordinates_that_scale_differently_have_one_measure():
    energy, tripled = Springs(1.0), DiagonalAffine(torch.zeros(2), torch.full((2,), 3.0))
    plain = with_affine_flow(energy, 1.0, [-0.5, 0.0], [1.1, 1.1])
    scaled = with_affine_flow(energy, 2.0, [0.3, 0.0], [0.6, 0.6], seed=1, coordinates=tripled)
    found = free_energy_difference(plain, scaled, 5000)
    assert abs(found.value + math.log(2)) < 4 * found.standard_error


def test_particles_with_the_centre_of_mass_removed():
    class Pair(Energy):
        def energy(self, x):
            return 0.5 * (x[..., 0, :] - x[..., 1, :]).square().sum(-1)

    a, b = (BoltzmannGenerator(Pair((2, 3)), kT=kT, seed=0, progress=False) for kT in (1.0, 2.0))
    found = free_energy_difference(a, b, 5000)
    assert abs(found.value + 1.5 * math.log(2)) < 4 * found.standard_error


def test_dtypes_of_two_generators_may_differ():
    a = with_affine_flow(Springs(1.0), 1.0, [0.0, 0.0], [1.0, 1.2], dtype=torch.float64)
    b = with_affine_flow(Springs(1.0), 2.0, [0.0, 0.0], [1.3, 1.5])
    found = free_energy_difference(a, b, 5000)
    assert abs(found.value + math.log(2)) < 4 * found.standard_error


def test_draws_that_neither_flow_has_a_density_for_are_counted_with_a_warning(monkeypatch):
    a, b = double_wells()

    def lossy(flow, u):
        return torch.where(u[:, 0] > 0, math.nan, 0.0)

    monkeypatch.setattr("pyro_coupling.boltzmann.free_energy.log_density", lossy)
    with pytest.warns(RuntimeWarning, match="draws have no finite density"):
        free_energy_difference(a, b, 1000)


def test_a_nan_energy_counts_as_zero_weight():
    class Cliff(Springs):
        def energy(self, x):
            return torch.where(x[..., 0] > 0, super().energy(x), math.nan)

    whole = with_affine_flow(Springs(1.0), 1.0, [0.0, 0.0], [1.1, 1.1])
    half = with_affine_flow(Cliff(1.0), 1.0, [0.0, 0.0], [1.1, 1.1], seed=1)
    found = free_energy_difference(whole, half, 5000)
    assert abs(found.value - math.log(2)) < 4 * found.standard_error


def test_generators_that_do_not_fit_are_refused():
    a = with_affine_flow(Springs(1.0), 1.0, [0.0, 0.0], [1.0, 1.0])
    b = with_affine_flow(Springs(1.0, dim=3), 1.0, [0.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match="one shape"):
        free_energy_difference(a, b)
    with pytest.raises(ValueError, match="method must be"):
        free_energy_difference(a, a, method="magic")


# States


def test_states_of_a_double_well_are_covered():
    energy, random = DoubleWell(), torch.Generator().manual_seed(0)
    left, right = energy.mode_weights().tolist()

    def estimate():
        x = energy.sample(1000, kT=1.5, generator=random)
        # equal weights at another temperature become unequal at the one asked for
        return state_difference(x[:, 0] < energy._bends[1], x[:, 0] > energy._bends[1], -energy(x) * (1 - 1 / 1.5))

    assert_covered([estimate() for _ in range(100)], -math.log(right / left))


def test_a_state_without_samples_is_infinitely_high():
    nobody = torch.zeros(5, dtype=torch.bool)
    found = state_difference(~nobody, nobody)
    assert (found.value, found.standard_error, found.overlap) == (math.inf, math.inf, 0.0)
    with pytest.raises(TypeError, match="boolean"):
        state_difference(torch.zeros(3), nobody)


# Perturbation and BAR


def many_well_samples(random, n=400):
    energy = ManyWell(6)
    return energy, energy.sample(n, 1.0, random), energy.sample(n, 2.0, random)


class Boltzmann:
    def __init__(self, energy, kT):
        self.energy, self.kT = energy, kT

    def log_prob(self, x):
        return -self.energy(x) / self.kT


@pytest.mark.parametrize("mapped", [False, True])
def test_bar_between_two_temperatures_is_covered(mapped):
    random = torch.Generator().manual_seed(1)
    energy = ManyWell(6)
    cold, hot = Boltzmann(energy, 1.0), Boltzmann(energy, 2.0)
    # springs are wider by sqrt(2) when hot
    scale = torch.tensor([1.0, math.sqrt(2)]).repeat(3)
    widening = DiagonalAffine(torch.zeros(6), scale) if mapped else None

    def estimate():
        _, x, y = many_well_samples(random)
        return targeted_perturbation(cold, hot, x, y, map=widening)

    assert_covered([estimate() for _ in range(100)], energy.log_z(1.0) - energy.log_z(2.0))


def test_a_better_map_gives_a_smaller_error():
    energy, x, y = many_well_samples(torch.Generator().manual_seed(2), 4000)
    cold, hot = Boltzmann(energy, 1.0), Boltzmann(energy, 2.0)
    widening = DiagonalAffine(torch.zeros(6), torch.tensor([1.0, math.sqrt(2)]).repeat(3))
    with_map, without = (targeted_perturbation(cold, hot, x, y, map=map) for map in (widening, None))
    assert with_map.overlap > without.overlap
    assert with_map.standard_error < without.standard_error


def test_an_exact_map_needs_one_way_only_and_leaves_no_error():
    a, b = Normal(torch.zeros(2), 1.0).to_event(1), Boltzmann(Springs(4.0, centre=3.0), 1.0)
    exact_map = DiagonalAffine(torch.full((2,), 3.0), torch.full((2,), 0.5))
    found = targeted_perturbation(a, b, torch.randn(100, 2), map=exact_map, kT=2.0)
    assert found.value == pytest.approx(-b.energy.log_z(), abs=1e-5)
    assert found.energy == pytest.approx(-2 * b.energy.log_z(), abs=1e-5)
    assert found.standard_error < 1e-6


def test_exponential_average_of_gaussian_work_is_covered():
    random = torch.Generator().manual_seed(3)

    def estimate():
        return exponential_average(1.0 + 0.7 * torch.randn(1000, generator=random))

    assert_covered([estimate() for _ in range(200)], 1.0 - 0.7**2 / 2)


def gaussian_work(distance=2.0, n=700, m=300, offset=0.0):
    x, y = torch.randn(n, dtype=torch.float64), torch.randn(m, dtype=torch.float64)
    half = distance**2 / 2
    return half - distance * x + offset, half + distance * y - offset


def test_bar_is_that_of_pymbar():
    pymbar = pytest.importorskip("pymbar")
    forward, reverse = gaussian_work()
    found, expected = bar(forward, reverse), pymbar.bar(forward.numpy(), reverse.numpy(), uncertainty_method="MBAR")
    assert found.value == pytest.approx(expected["Delta_f"], abs=1e-8)
    assert found.standard_error == pytest.approx(expected["dDelta_f"], rel=1e-6)
    assert found.overlap == pytest.approx(pymbar.bar_overlap(forward.numpy(), reverse.numpy()), abs=1e-6)


def test_bar_of_two_states_is_mbar():
    pytest.importorskip("pymbar")
    forward, reverse = gaussian_work()
    reduced = torch.zeros(2, 1000, dtype=torch.float64)
    reduced[1, :700], reduced[0, 700:] = forward, reverse
    found, table = bar(forward, reverse), mbar(reduced, [700, 300])
    assert table.values[0, 1].item() == pytest.approx(found.value, abs=1e-7)
    assert table.standard_errors[0, 1].item() == pytest.approx(found.standard_error, rel=1e-5)
    assert table.overlap == pytest.approx(found.overlap, abs=1e-7)


def test_bar_swapped_is_the_negative():
    forward, reverse = gaussian_work()
    one, other = bar(forward, reverse), bar(reverse, forward)
    assert one.value == pytest.approx(-other.value, abs=1e-10)
    assert one.standard_error == pytest.approx(other.standard_error, rel=1e-8)


def test_infinite_work_weighs_nothing_and_an_offset_changes_nothing():
    forward, reverse = gaussian_work(n=500, m=500)
    shifted = bar(forward + 1e4, reverse - 1e4)
    assert shifted.value - 1e4 == pytest.approx(bar(forward, reverse).value, abs=1e-8)
    walled = bar(torch.cat([forward, torch.full((500,), math.inf)]), reverse)
    assert walled.value == pytest.approx(bar(forward, reverse).value + math.log(2), abs=6 * walled.standard_error)


def test_without_overlap_the_error_is_endless():
    assert bar(*gaussian_work(distance=100.0)).standard_error == math.inf
    nothing = bar(torch.full((3,), math.inf), torch.zeros(3))
    assert (nothing.value, nothing.standard_error) == (math.inf, math.inf)


@pytest.mark.parametrize("work", [torch.tensor([0.0, math.nan]), torch.tensor([-math.inf]), torch.zeros(0)])
def test_work_that_is_none_is_refused(work):
    with pytest.raises(ValueError, match="forward_work must"):
        bar(work, torch.zeros(3))
    with pytest.raises(ValueError, match="work must"):
        exponential_average(work)


def test_mbar_finds_harmonic_differences_beyond_large_offsets_also_of_states_that_were_not_sampled():
    pytest.importorskip("pymbar")
    stiffness = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    offsets = torch.tensor([0.0, 300.0, -500.0], dtype=torch.float64)
    x = torch.randn(3000, dtype=torch.float64)
    x[2000:] /= 2
    reduced = 0.5 * stiffness.unsqueeze(1) * x.square() + offsets.unsqueeze(1)
    found = mbar(reduced, [2000, 0, 1000])
    exact = 0.5 * stiffness.log() + offsets
    off = (found.values - (exact - exact.unsqueeze(1))).abs()
    assert bool((off <= 4 * found.standard_errors + 1e-9).all())


def test_mbar_refuses_numbers_that_do_not_add_up():
    with pytest.raises(ValueError, match="add up"):
        mbar(torch.zeros(2, 10), [5, 4])
    with pytest.raises(ValueError, match="NaN"):
        mbar(torch.full((2, 10), math.nan), [5, 5])
