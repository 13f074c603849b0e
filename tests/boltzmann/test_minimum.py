"""The minimum of an energy, and what is said where there is none to be found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyro_coupling.boltzmann import energies, from_xml, minimise

mdtraj = pytest.importorskip("mdtraj")
FIXTURES = Path(__file__).parent / "fixtures"


def test_the_minimum_of_alanine_dipeptide_is_known():
    energy = from_xml(FIXTURES / "aldp_ff96_obc1_system.xml")
    start = torch.from_numpy(mdtraj.load(FIXTURES / "alanine_dipeptide.pdb").xyz[0].copy()).double()
    minimum = minimise(energy, start)
    # kJ/mol, by OpenMM's own minimiser
    assert energy(minimum).item() == pytest.approx(-173.171, abs=1e-3)
    assert minimum.dtype == torch.float64


def test_dtype_and_shape_are_those_of_the_start():
    minimum = minimise(energies.LennardJones13(), torch.randn(13, 3, generator=torch.Generator().manual_seed(0)))
    assert minimum.shape == (13, 3) and minimum.dtype == torch.float32


def test_bad_input_is_refused():
    well = energies.DoubleWell()
    with pytest.raises(ValueError, match=r"positions must be of shape \(2,\), got \(3,\)"):
        minimise(well, torch.zeros(3))
    with pytest.raises(ValueError, match="finite energy, got nan"):
        minimise(well, torch.tensor([torch.nan, 0.0]))
    with pytest.raises(ValueError, match="tolerance must be a positive"):
        minimise(well, torch.zeros(2), tolerance=0.0)


def test_a_force_that_is_left_is_told():
    with pytest.raises(RuntimeError, match="is left, more than"):
        minimise(energies.LennardJones13(), torch.randn(13, 3), max_iterations=2)
