"""Harmonic bonds."""

from __future__ import annotations

__all__ = ["HarmonicBonds"]

from xml.etree.ElementTree import Element

from torch import Tensor

from .parts import Frames, Springs, length, take
from .records import atom_numbers, check_version, numbers, require


class HarmonicBonds(Springs):
    """``sum k/2 (r - r0)^2``.

    Args:
        atoms: The two atoms of each bond, ``(2, bonds)``.
        constants: Its length r0 in nm and stiffness k in kJ/mol/nm^2, ``(2, bonds)``, float64.
    """

    @classmethod
    def read(cls, force: Element, num_atoms: int) -> HarmonicBonds:
        """From the XML of a ``HarmonicBondForce``."""
        check_version(force, 2)
        require(force, "usesPeriodic", "0", "periodic boundary conditions")
        return cls(atom_numbers(force, "Bonds", num_atoms, "p1", "p2"), numbers(force, "Bonds", "d", "k"))

    def forward(self, frames: Frames) -> Tensor:
        a, b = (take(frames.positions, atom) for atom in self.atoms)
        return self.energy(length(a - b))
