"""Averages, populations, histograms and profiles of weighted samples, and measurements in configurations."""

import math

import pytest
import torch

from pyro_coupling.boltzmann.measurements import bond_angles, bond_lengths, dihedrals
from pyro_coupling.boltzmann.observables import (
    autocorrelation_time,
    free_energy_profile,
    histogram,
    populations,
    reweighted,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(n, seed=0):
    return torch.randn(n, dtype=torch.float64, generator=generator(seed))


# Averages


def test_equal_weights_give_the_mean():
    values = normals(60).reshape(20, 3)
    torch.testing.assert_close(reweighted(values, torch.full((20,), 7.0)).value, values.mean(0))


def test_weights_lead_to_the_other_distribution():
    x = normals(20_000)
    estimate = reweighted(torch.stack([x, x**2], -1), 0.8 * x, generator=generator(1))  # to a normal about 0.8
    exact = torch.tensor([0.8, 1 + 0.8**2], dtype=torch.float64)
    assert bool(((estimate.value - exact).abs() < 4 * estimate.standard_error).all())


def test_bootstrap_error_is_that_of_the_mean():
    values = normals(2000)
    estimate = reweighted(values, num_bootstrap=800, generator=generator(1))
    # the standard deviation of 800 replicates is known to 1 / sqrt(1600) = 2.5 %
    assert estimate.standard_error.item() == pytest.approx(values.std().item() / math.sqrt(2000), rel=0.1)


def test_error_of_a_weighted_mean_covers_the_truth_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        x = normals(500, seed)
        estimate = reweighted(x, 0.5 * x, num_bootstrap=100, generator=generator(seed))
        hits += bool((estimate.value - 0.5).abs() < 1.96 * estimate.standard_error)
    # of 200 intervals of 95 % 190 +- 3.1 are hit; 4 deviations either way
    assert 178 <= hits <= 200


def test_errors_are_repeatable_and_those_of_replicates_in_parts(monkeypatch):
    values = normals(100)
    first = reweighted(values, generator=generator(3)).standard_error
    assert torch.equal(first, reweighted(values, generator=generator(3)).standard_error)
    monkeypatch.setattr("pyro_coupling.boltzmann.observables._AT_ONCE", 700)
    assert torch.equal(first, reweighted(values, generator=generator(3)).standard_error)


def test_a_sample_without_weight_may_hold_anything():
    values, log_weights = torch.tensor([1.0, math.nan, 3.0]), torch.tensor([0.0, -math.inf, 0.0])
    assert reweighted(values, log_weights).value.item() == 2.0
    assert histogram(values, 2, (0.0, 4.0), log_weights).probabilities.tolist() == [0.5, 0.5]


def test_where_replicates_have_no_weight_the_error_is_infinite():
    estimate = reweighted(torch.arange(3.0), torch.tensor([0.0, -math.inf, -math.inf]), generator=generator())
    assert estimate.value.item() == 0.0
    assert estimate.standard_error.item() == math.inf


@pytest.mark.parametrize(
    ("values", "log_weights", "message"),
    [
        (torch.zeros(3), torch.zeros(4), "log_weights must be of shape"),
        (torch.zeros(3), torch.tensor([0.0, math.nan, 0.0]), "log_weights must not hold NaN"),
        (torch.zeros(3), torch.full((3,), -math.inf), "log_weights: all are -inf"),
        (torch.tensor([0.0, math.nan]), None, "values: 1 of 2 are not finite"),
        (torch.zeros(0), None, "values must be"),
    ],
)
def test_what_can_not_be_averaged_is_refused(values, log_weights, message):
    with pytest.raises(ValueError, match=message):
        reweighted(values, log_weights)


# States and bins


def test_populations_and_their_errors_are_those_of_a_multinomial():
    states = torch.multinomial(torch.tensor([0.1, 0.3, 0.6]), 4000, replacement=True, generator=generator())
    found = populations(states, 4, num_bootstrap=800, generator=generator(1))
    torch.testing.assert_close(found.value, states.bincount(minlength=4).double() / 4000)
    # the standard deviation of 800 replicates is known to 2.5 %
    torch.testing.assert_close(found.standard_error, (found.value * (1 - found.value) / 4000).sqrt(), rtol=0.1, atol=0)


def test_states_that_are_none_are_refused():
    with pytest.raises(ValueError, match="states must be from 0 to 1, got 0 to 2"):
        populations(torch.tensor([0, 2]), 2)
    with pytest.raises(TypeError, match="states must be integers"):
        populations(torch.tensor([0.0, 1.0]))


def test_bins_agree_with_torch_and_count_what_is_outside_in_the_total():
    values = normals(3000).float()
    found = histogram(values, 20, (-2.0, 1.0))
    torch.testing.assert_close(found.probabilities.float(), torch.histc(values, 20, -2.0, 1.0) / 3000)


def test_both_ends_belong_to_the_histogram_also_in_float32():
    ends = torch.tensor([-math.pi, math.pi])
    assert histogram(ends, 4).probabilities.tolist() == [0.5, 0.0, 0.0, 0.5]


def test_band_of_a_profile_covers_the_truth_as_often_as_it_says():
    edges = torch.linspace(-2, 2, 11, dtype=torch.float64)
    exact, inside = -torch.special.ndtr(edges).diff().log(), 0
    for seed in range(20):
        x = normals(5000, seed)
        profile = free_energy_profile(x, 10, (-2.0, 2.0), generator=generator(seed))
        lowest = -histogram(x, 10, (-2.0, 2.0), num_bootstrap=2).probabilities.max().log()
        inside += int(((profile.low <= exact - lowest) & (exact - lowest <= profile.high)).sum())
    # of 200 bands of 95 % 190 are hit; bins of one sample are hardly correlated, so the deviation is 3.1; five of them
    assert inside >= 174


def test_an_empty_bin_is_infinitely_high():
    profile = free_energy_profile(torch.tensor([0.5, 0.5, 2.5]), 3, (0.0, 3.0), generator=generator())
    assert profile.free_energy.tolist() == [0.0, math.inf, pytest.approx(math.log(2))]
    assert profile.high[1] == math.inf
    with pytest.raises(ValueError, match="limits: no sample"):
        free_energy_profile(torch.zeros(3), 3, (1.0, 2.0))


# Chains


def test_autocorrelation_time_of_an_autoregression():
    memory, steps, chains = 0.8, 4000, 32
    noise = math.sqrt(1 - memory**2) * normals(steps * chains).reshape(steps, chains)
    chain = noise.clone()
    chain[0] /= math.sqrt(1 - memory**2)
    for i in range(1, steps):
        chain[i] += memory * chain[i - 1]
    # (1 + 0.8) / (1 - 0.8) = 9; summed over a window of some 10 times, 14 000 independent draws give it to about 4 %
    assert autocorrelation_time(chain).item() == pytest.approx(9.0, rel=0.15)


def test_a_chain_that_never_moves_has_an_infinite_time():
    values = torch.stack([torch.ones(10, 2), normals(20).reshape(10, 2).float()], -1)
    times = autocorrelation_time(values)
    assert times[0] == math.inf and times[1].isfinite()
    with pytest.raises(ValueError, match="four steps"):
        autocorrelation_time(torch.zeros(3, 2))


# Measurements


def test_lengths_angles_and_torsions_of_a_known_structure():
    length, angle, turn = 1.5, 1.9, -2.2
    points = torch.tensor(
        [[math.cos(angle), math.sin(angle), 0.0], [0.0, 0.0, 0.0], [length, 0.0, 0.0], [length, 1.0, 0.0]],
        dtype=torch.float64,
    )
    # seen from the second atom along the axis, x points away, and a clockwise turn leads from y to z
    points[3] = torch.tensor([length, math.cos(turn), math.sin(turn)])
    torch.testing.assert_close(bond_lengths(points, [(1, 2), (0, 1)]), torch.tensor([length, 1.0]).double())
    torch.testing.assert_close(bond_angles(points, [(0, 1, 2)]), torch.tensor([angle]).double())
    torch.testing.assert_close(dihedrals(points, [(0, 1, 2, 3)]), torch.tensor([turn]).double())


def test_measurements_keep_the_batch_and_are_those_of_mdtraj():
    mdtraj = pytest.importorskip("mdtraj")
    positions = torch.randn(3, 5, 7, 3, generator=generator())
    rows = torch.tensor([[0, 1, 2, 3], [6, 2, 4, 1], [5, 4, 3, 2]])
    frames = mdtraj.Trajectory(positions.reshape(-1, 7, 3).numpy(), None)
    for ours, theirs, size in (
        (bond_lengths, mdtraj.compute_distances, 2),
        (bond_angles, mdtraj.compute_angles, 3),
        (dihedrals, mdtraj.compute_dihedrals, 4),
    ):
        found = ours(positions, rows[:, :size])
        assert found.shape == (3, 5, 3)
        # arccos in float32, as mdtraj has it, loses half the digits near 0 and pi
        expected = torch.from_numpy(theirs(frames, rows[:, :size].numpy()))
        torch.testing.assert_close(found.reshape(-1, 3), expected, atol=2e-3, rtol=1e-4)


def test_atoms_that_are_none_are_refused():
    with pytest.raises(ValueError, match="atoms must be from 0 to 2"):
        bond_lengths(torch.zeros(3, 3), [(0, 3)])
    with pytest.raises(ValueError, match="rows of 4"):
        dihedrals(torch.zeros(3, 3), [(0, 1, 2)])
    with pytest.raises(ValueError, match="positions must be"):
        bond_lengths(torch.zeros(3, 2), [(0, 1)])
