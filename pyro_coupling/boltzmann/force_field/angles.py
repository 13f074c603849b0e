"""Harmonic angles."""

from __future__ import annotations

__all__ = ["HarmonicAngles"]

from xml.etree.ElementTree import Element

import torch
from torch import Tensor

from .parts import Frames, Springs, cross, length, take
from .records import atom_numbers, check_version, numbers, require


class HarmonicAngles(Springs):
    """``sum k/2 (theta - theta0)^2``.

    Args:
        atoms: The three atoms of each angle, the vertex in the middle, ``(3, angles)``.
        constants: Its size theta0 in rad and stiffness k in kJ/mol/rad^2, ``(2, angles)``, float64.
    """

    @classmethod
    def read(cls, force: Element, num_atoms: int) -> HarmonicAngles:
        """From the XML of a ``HarmonicAngleForce``."""
        check_version(force, 2)
        require(force, "usesPeriodic", "0", "periodic boundary conditions")
        return cls(atom_numbers(force, "Angles", num_atoms, "p1", "p2", "p3"), numbers(force, "Angles", "a", "k"))

    def forward(self, frames: Frames) -> Tensor:
        a, vertex, b = (take(frames.positions, atom) for atom in self.atoms)
        a, b = a - vertex, b - vertex
        # the arc tangent keeps all digits near 0 and 180 degrees, where the arc cosine loses half of them
        return self.energy(torch.atan2(length(cross(a, b)), (a * b).sum(1)))
