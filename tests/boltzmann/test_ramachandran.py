"""Backbone torsions of real molecules, histograms of them, and divergences with what they depend on."""

import math
from pathlib import Path

import pytest
import torch

from pyro_coupling.boltzmann.measurements import dihedrals
from pyro_coupling.boltzmann.ramachandran import (
    backbone,
    backbone_from_bonds,
    kl_divergence,
    positive_phi,
    ramachandran_histogram,
    total_variation,
)

FIXTURES = Path(__file__).parent / "fixtures"


def angles(n, seed=0, spread=1.0):
    random = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(n, 2, generator=random)).clamp(-3.1, 3.1)


# Backbones


@pytest.mark.parametrize("name", ["alanine_dipeptide.pdb", "ace_ala3_nme.pdb"])
def test_backbone_is_that_of_mdtraj(name):
    mdtraj = pytest.importorskip("mdtraj")
    frame = mdtraj.load(str(FIXTURES / name))
    atoms = list(frame.topology.atoms)
    by_name = backbone([atom.name for atom in atoms], [atom.residue.index for atom in atoms])
    bonds = [(one.index, other.index) for one, other in frame.topology.bonds]
    by_bonds = backbone_from_bonds([atom.element.symbol for atom in atoms], bonds)
    (phi_atoms, phi), (psi_atoms, psi) = mdtraj.compute_phi(frame), mdtraj.compute_psi(frame)
    for found in (by_name, by_bonds):
        assert found.phi.tolist() == phi_atoms.tolist()
        assert found.psi.tolist() == psi_atoms.tolist()
    measured = dihedrals(torch.from_numpy(frame.xyz), torch.cat([by_name.phi, by_name.psi]))
    expected = torch.cat([torch.from_numpy(phi), torch.from_numpy(psi)], -1)
    # equal as angles: pi and -pi are one
    torch.testing.assert_close((measured - expected).cos(), torch.ones_like(expected), atol=1e-6, rtol=0)


def test_residues_are_in_the_order_of_the_chain_whatever_the_numbers_of_atoms():
    # C-N-CA-C-N-CA-C-N with an oxygen on each carbonyl, numbered at random
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3)).tolist()
    symbols = ["C", "N", "C", "C", "N", "C", "C", "N", "O", "O", "O"]
    bonds = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (0, 8), (3, 9), (6, 10)]
    symbols, bonds = [*symbols, "C"], [*bonds, (0, 11)]  # the methyl before the first carbonyl
    place = [*order, 11]
    elements = [""] * 12
    for old, new in enumerate(place):
        elements[new] = symbols[old]
    found = backbone_from_bonds(elements, [(place[i], place[j]) for i, j in bonds])
    assert found.phi.tolist() == [[place[i] for i in (0, 1, 2, 3)], [place[i] for i in (3, 4, 5, 6)]]
    assert found.psi.tolist() == [[place[i] for i in (1, 2, 3, 4)], [place[i] for i in (4, 5, 6, 7)]]


def test_a_molecule_without_peptide_bonds_has_no_backbone():
    assert backbone_from_bonds(["C", "O", "H"], [(0, 1), (1, 2)]).phi.shape == (0, 4)
    assert backbone(["CA"], [0]).psi.shape == (0, 4)


def test_names_that_do_not_tell_residues_apart_are_refused():
    with pytest.raises(ValueError, match="has CA twice"):
        backbone(["CA", "CA"], [1, 1])
    with pytest.raises(ValueError, match="residues must be one for each"):
        backbone(["CA"], [])


# Histograms


def test_histogram_has_phi_in_rows_and_both_ends_in_one_bin():
    ends = torch.tensor([[-math.pi, 0.1], [math.pi, 0.1], [0.1, -3.0], [0.1, -3.0]], dtype=torch.float64)
    found = ramachandran_histogram(ends, bins=4)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[0, 2], expected[2, 0] = 0.5, 0.5
    assert torch.equal(found.probabilities, expected)
    assert (found.bins, found.num_samples, found.ess) == (4, 4, 1.0)


def test_weights_count():
    x = angles(1000)
    twice = ramachandran_histogram(torch.cat([x, x[:500]]), 16).probabilities
    log_weights = torch.where(torch.arange(1000) < 500, math.log(2), 0.0)
    torch.testing.assert_close(ramachandran_histogram(x, 16, log_weights).probabilities, twice)


def test_nan_is_refused_unless_it_has_no_weight():
    x = angles(10)
    x[3] = math.nan
    with pytest.raises(ValueError, match="phi_psi: 1 of 10 are not finite"):
        ramachandran_histogram(x)
    log_weights = torch.zeros(10)
    log_weights[3] = -math.inf
    assert ramachandran_histogram(x, 8, log_weights).probabilities.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("phi_psi", "settings", "message"),
    [
        (torch.zeros(3), {}, "phi_psi must be"),
        (torch.zeros(3, 2), {"bins": 0}, "bins must be"),
        (torch.zeros(3, 2), {"log_weights": torch.zeros(2)}, "log_weights must be of shape"),
        (torch.zeros(3, 2), {"log_weights": torch.full((3,), -math.inf)}, "all are -inf"),
    ],
)
def test_misuse_is_refused(phi_psi, settings, message):
    with pytest.raises(ValueError, match=message):
        ramachandran_histogram(phi_psi, **settings)


def test_population_of_positive_phi():
    phi = torch.tensor([-1.0, 1.0, 3.0, 2.0])
    assert positive_phi(phi).value.item() == 0.75
    assert positive_phi(phi, upper=2.2).value.item() == 0.5
    estimate = positive_phi(phi, torch.tensor([0.0, 0.0, -math.inf, math.log(2)]))
    assert estimate.value.item() == pytest.approx(0.75)
    assert estimate.num_samples == 4 and estimate.standard_error > 0
    with pytest.raises(ValueError, match="not finite"):
        positive_phi(torch.tensor([1.0, math.nan]))


# Divergences


def test_divergences_of_equal_histograms_are_zero_and_those_of_disjoint_ones_as_large_as_can_be():
    p = ramachandran_histogram(angles(1000), 8)
    assert total_variation(p, p).value == kl_divergence(p, p).value == 0.0
    left, right = (ramachandran_histogram(torch.full((5, 2), x), 8) for x in (-1.0, 1.0))
    assert total_variation(left, right).value == 1.0
    assert kl_divergence(left, right, 1e-10).value == pytest.approx(-math.log(1e-10), rel=1e-6)


def test_divergences_state_what_they_depend_on():
    p, q = ramachandran_histogram(angles(1000), 8), ramachandran_histogram(angles(500, 1), 8)
    assert total_variation(p, q)[1:] == (8, (1000, 500), 0.0)
    assert kl_divergence(p, q, 1e-6)[1:] == (8, (1000, 500), 1e-6)
    with pytest.raises(ValueError, match="same bins"):
        total_variation(p, ramachandran_histogram(angles(10), 16))
    with pytest.raises(ValueError, match="epsilon"):
        kl_divergence(p, q, 0.0)


def test_kl_divergence_is_the_formula():
    p, q = (ramachandran_histogram(angles(20_000, seed, spread), 4) for seed, spread in ((0, 1.0), (1, 1.5)))
    expected = torch.nn.functional.kl_div(q.probabilities.log(), p.probabilities, reduction="none").nansum()
    assert kl_divergence(p, q, 1e-14).value == pytest.approx(expected.item(), rel=1e-6)
