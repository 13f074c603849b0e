"""Periodic torsions, proper and improper."""

from __future__ import annotations

__all__ = ["PeriodicTorsions"]

from xml.etree.ElementTree import Element

import torch
from torch import Tensor, nn

from .parts import Frames, cross, length, take
from .records import atom_numbers, check_version, numbers, require


class PeriodicTorsions(nn.Module):
    """``sum k (1 + cos(n phi - phase))``.

    Terms on the same four atoms share the computation of phi.

    Args:
        atoms: The four atoms of each term, ``(4, terms)``.
        constants: Its periodicity n, phase in rad and height k in kJ/mol, ``(3, terms)``, float64.
    """

    atoms: Tensor
    torsion: Tensor
    constants: Tensor

    def __init__(self, atoms: Tensor, constants: Tensor) -> None:
        super().__init__()
        distinct, torsion = atoms.unique(dim=1, return_inverse=True)
        self.register_buffer("atoms", distinct, persistent=False)
        self.register_buffer("torsion", torsion, persistent=False)
        self.register_buffer("constants", constants.unsqueeze(-1), persistent=False)

    @classmethod
    def read(cls, force: Element, num_atoms: int) -> PeriodicTorsions:
        """From the XML of a ``PeriodicTorsionForce``."""
        check_version(force, 2)
        require(force, "usesPeriodic", "0", "periodic boundary conditions")
        atoms = atom_numbers(force, "Torsions", num_atoms, "p1", "p2", "p3", "p4")
        return cls(atoms, numbers(force, "Torsions", "periodicity", "phase", "k"))

    def forward(self, frames: Frames) -> Tensor:
        phi = take(self._angles(frames.positions), self.torsion)
        periodicity, phase, height = self.constants.to(phi)
        return (height * (1 + (periodicity * phi - phase).cos())).sum(0)

    def _angles(self, positions: Tensor) -> Tensor:
        """Torsion angles of the distinct quadruples, zero where cis."""
        a, b, c, d = (take(positions, atom) for atom in self.atoms)
        first, axis, last = b - a, c - b, d - c
        left, right = cross(first, axis), cross(axis, last)
        return torch.atan2((first * right).sum(1) * length(axis), (left * right).sum(1))

    def extra_repr(self) -> str:
        return f"{len(self.torsion)} on {self.atoms.shape[1]} quadruples"
