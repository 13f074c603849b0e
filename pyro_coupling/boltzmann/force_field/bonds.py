"""Harmonic bonds."""

from __future__ import annotations

__all__ = ["HarmonicBonds"]

from xml.etree.ElementTree import Element

from torch import Tensor, nn

from .parts import Frames, length, take
from .records import atom_numbers, check_version, numbers, require


class HarmonicBonds(nn.Module):
    """``sum k/2 (r - r0)^2``.

    Args:
        atoms: The two atoms of each bond, ``(2, bonds)``.
        constants: Its length r0 in nm and stiffness k in kJ/mol/nm^2, ``(2, bonds)``, float64.
    """

    atoms: Tensor
    constants: Tensor

    def __init__(self, atoms: Tensor, constants: Tensor) -> None:
        super().__init__()
        self.register_buffer("atoms", atoms, persistent=False)
        self.register_buffer("constants", constants.unsqueeze(-1), persistent=False)

    @classmethod
    def read(cls, force: Element, num_atoms: int) -> HarmonicBonds:
        """From the XML of a ``HarmonicBondForce``."""
        check_version(force, 2)
        require(force, "usesPeriodic", "0", "periodic boundary conditions")
        return cls(atom_numbers(force, "Bonds", num_atoms, "p1", "p2"), numbers(force, "Bonds", "d", "k"))

    def forward(self, frames: Frames) -> Tensor:
        a, b = (take(frames.positions, atom) for atom in self.atoms)
        rest, stiffness = self.constants.to(a)
        return (0.5 * stiffness * (length(a - b) - rest).square()).sum(0)

    def extra_repr(self) -> str:
        return f"{self.atoms.shape[1]}"
