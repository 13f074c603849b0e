"""What pictures of molecules show, and files that viewers read."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_coupling.boltzmann import structures
from pyro_coupling.boltzmann.observables import free_energy_profile
from pyro_coupling.boltzmann.ramachandran import ramachandran_histogram

pytest.importorskip("matplotlib")
from pyro_coupling.boltzmann import plots

PDB = Path(__file__).parent / "fixtures" / "alanine_dipeptide.pdb"


def angles(n=2000, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)).clamp(-3.1, 3.1)


def rendered(axes):
    """Draws the whole figure, which finds mistakes that only show then."""
    figure = (axes if not isinstance(axes, np.ndarray) else axes[0]).figure
    figure.savefig("/dev/null", format="png", dpi=20)
    return figure


# Pictures


def test_ramachandran_panels_share_one_scale_and_tell_the_total_variation():
    flow, reference = (ramachandran_histogram(angles(seed=seed), 16) for seed in (0, 1))
    reweighted = ramachandran_histogram(angles(), 16, 0.1 * angles()[:, 0])
    panels = plots.plot_ramachandran(flow, reference, reweighted)
    rendered(panels)
    titles = [axes.get_title(loc="left") for axes in panels]
    assert [title.split()[0].strip(",") for title in titles] == ["flow", "reweighted", "reference", "reweighted"]
    assert "TV 0." in titles[0] and "TV 0." in titles[1] and "16 x 16" in titles[3]
    assert len({axes.images[0].get_clim() for axes in panels[:3]}) == 1


def test_ramachandran_map_has_phi_to_the_right():
    point = ramachandran_histogram(torch.tensor([[2.0, -1.0]]), 8)
    shown = plots.plot_ramachandran(point, point)[0].images[0].get_array()
    row, column = np.argwhere(~np.ma.getmaskarray(np.ma.masked_invalid(shown)))[0]
    assert (column, row) == (int((2 + math.pi) / math.pi * 4), int((-1 + math.pi) / math.pi * 4))


def test_profiles_have_a_band_each():
    made = {name: free_energy_profile(angles(seed=seed)[:, 0], 24) for seed, name in enumerate("ab")}
    axes = plots.plot_profiles(made, coordinate="psi")
    rendered(axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert len(axes.collections) == 4  # bounded and unbounded part of each band
    assert axes.get_xlabel() == "psi"


def test_energies_tell_what_lies_beyond_the_picture():
    reference = torch.randn(2000)
    flow = torch.cat([torch.randn(1000), torch.tensor([math.inf] * 10 + [1e9] * 40)])
    axes = plots.plot_energies(flow, -flow.clamp(max=100.0), reference, kT=1.0)
    rendered(axes)
    assert axes.get_xlim()[1] < 20
    assert "4.8 % beyond" in axes.get_legend().get_texts()[0].get_text()


def test_energies_are_drawn_into_axes_that_are_given():
    axes = plots.plot_energies(torch.randn(100))
    assert plots.plot_energies(torch.randn(100), axes=axes) is axes


def test_marginals_have_a_panel_each():
    panels = plots.plot_marginals(torch.randn(300, 8), torch.randn(200, 8), log_weights=torch.randn(300), columns=3)
    rendered(panels)
    assert len(panels) == 8 and len(panels[0].figure.axes) == 8


def test_conformations_are_turned_onto_the_first():
    molecule = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    turn = turn * turn.det()
    placed = plots._aligned(torch.stack([molecule, molecule @ turn + 3.0]).numpy())
    np.testing.assert_allclose(placed[0], placed[1], atol=1e-12)
    # a mirror image stays one
    mirrored = plots._aligned(torch.stack([molecule, -molecule]).numpy())
    assert np.abs(mirrored[0] - mirrored[1]).max() > 0.1
    # and the first lies flat
    spread = placed[0].var(0)
    assert spread[0] > spread[1] > spread[2]


def test_sheet_has_an_axes_for_each_molecule():
    bonds = [(0, 1), (1, 2), (2, 3)]
    panels = plots.plot_conformations(torch.randn(7, 4, 3), bonds, ["C", "N", "O", "H"], columns=4)
    rendered(panels)
    assert len(panels) == 7
    assert len(panels[0].collections[0].get_segments()) == 6  # each bond is two halves


def test_what_can_not_be_drawn_is_refused():
    for draw, message in (
        (lambda: plots.plot_profiles({}), "profiles"),
        (lambda: plots.plot_energies(torch.zeros(3), torch.zeros(4)), "log_weights"),
        (lambda: plots.plot_energies(torch.full((3,), math.nan)), "none is finite"),
        (lambda: plots.plot_marginals(torch.zeros(3, 2), torch.zeros(3, 3)), "flow and reference"),
        (lambda: plots.plot_marginals(torch.zeros(3, 2), names=["a"]), "names"),
        (lambda: plots.plot_conformations(torch.zeros(4, 3), []), "positions"),
        (lambda: plots.plot_conformations(torch.full((2, 4, 3), math.nan), []), "finite"),
        (lambda: plots.plot_conformations(torch.zeros(2, 4, 3), [], ["C"]), "elements"),
    ):
        with pytest.raises(ValueError, match=message):
            draw()


def test_without_matplotlib_the_error_says_what_to_install(no_matplotlib):
    with pytest.raises(ImportError, match=r"pyro-coupling\[plots\]"):
        plots.plot_energies(torch.zeros(3))


# Files


def test_pdb_and_xtc_come_back_as_they_were(tmp_path):
    mdtraj = pytest.importorskip("mdtraj")
    positions = 0.3 * torch.randn(5, 22, 3, dtype=torch.float64)
    structures.write_pdb(tmp_path / "frames.pdb", positions, PDB)
    structures.write_xtc(tmp_path / "frames.xtc", positions)
    # a PDB has 1e-3 angstrom, an XTC 1e-3 nm; half of that is rounding
    for name, tolerance in (("frames.pdb", 0.6e-4), ("frames.xtc", 0.6e-3)):
        back = mdtraj.load(str(tmp_path / name), top=str(PDB))
        np.testing.assert_allclose(back.xyz, positions.numpy(), atol=tolerance)


def test_pdb_takes_every_kind_of_topology(tmp_path):
    mdtraj = pytest.importorskip("mdtraj")
    frame = mdtraj.load(str(PDB))
    elements = [atom.element.symbol for atom in frame.topology.atoms]
    bonds = [(one.index, other.index) for one, other in frame.topology.bonds]
    kinds = [PDB, frame.topology, structures.topology_from_bonds(elements, bonds)]
    try:
        from openmm.app import PDBFile

        kinds.append(PDBFile(str(PDB)).topology)
    except ImportError:
        pass
    for topology in kinds:
        structures.write_pdb(tmp_path / "one.pdb", torch.from_numpy(frame.xyz[0]), topology)
        back = mdtraj.load(str(tmp_path / "one.pdb"))
        assert [atom.element.symbol for atom in back.topology.atoms] == elements


def test_files_that_would_be_wrong_are_refused(tmp_path):
    pytest.importorskip("mdtraj")
    path = tmp_path / "frames.pdb"
    with pytest.raises(ValueError, match="topology has 22 atoms, but positions have 3"):
        structures.write_pdb(path, torch.zeros(3, 3), PDB)
    with pytest.raises(TypeError, match="topology must be"):
        structures.write_pdb(path, torch.zeros(3, 3), 3)
    with pytest.raises(ValueError, match="positions: 1 of 2"):
        structures.write_xtc(path, torch.tensor([[[math.nan] * 3], [[0.0] * 3]]))
    with pytest.raises(ValueError, match="positions must be"):
        structures.write_xtc(path, torch.zeros(3))
    with pytest.raises(ValueError, match="no element 'Xx'"):
        structures.topology_from_bonds(["Xx"], [])
    with pytest.raises(ValueError, match="bonds must join"):
        structures.topology_from_bonds(["O", "H"], [(0, 2)])


def test_without_mdtraj_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mdtraj", None)
    with pytest.raises(ImportError, match=r"pyro-coupling\[molecules\]"):
        structures.write_xtc("frames.xtc", torch.zeros(3, 3))
