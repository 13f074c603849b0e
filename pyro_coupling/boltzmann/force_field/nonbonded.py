"""Lennard-Jones and Coulomb interactions of all pairs, without a cutoff."""

from __future__ import annotations

__all__ = ["COULOMB", "Nonbonded"]

from xml.etree.ElementTree import Element

import torch
from torch import Tensor, nn

from .parts import Frames, all_pairs
from .records import atom_numbers, check_version, numbers, per_atom, require, unsupported

COULOMB = 138.93545764438198  # 1 / (4 pi epsilon_0) in kJ/mol nm/e^2, with the digits of OpenMM


class Nonbonded(nn.Module):
    """``sum 4 eps ((sigma/r)^12 - (sigma/r)^6) + 138.9 q/r`` over all pairs.

    Args:
        charges: Products of charges q, e^2, ``(pairs,)``, float64, in the order of `all_pairs`.
        sigma: Diameters, nm, ``(pairs,)``.
        epsilon: Depths, kJ/mol, ``(pairs,)``.

    Attributes:
        sigma: The largest diameter of a pair that has a depth, nm; zero if there is none.
    """

    constants: Tensor

    def __init__(self, charges: Tensor, sigma: Tensor, epsilon: Tensor) -> None:
        super().__init__()
        self.sigma = (sigma * (epsilon != 0)).amax().item() if len(sigma) else 0.0
        constants = torch.stack([4 * epsilon * sigma**12, 4 * epsilon * sigma**6, COULOMB * charges])
        self.register_buffer("constants", constants.unsqueeze(-1), persistent=False)

    @classmethod
    def read(cls, force: Element, num_atoms: int) -> Nonbonded:
        """From the XML of a ``NonbondedForce``: Lorentz-Berthelot rules, and exceptions in their place."""
        check_version(force, 4)
        require(force, "method", "0", "a cutoff or periodic boundary conditions")
        if any(len(force.find(group) or ()) for group in ("ParticleOffsets", "ExceptionOffsets")):
            raise unsupported("NonbondedForce with parameter offsets")
        charge, sigma, epsilon = per_atom(force, num_atoms, "q", "sig", "eps")
        pair_table = torch.stack(
            [torch.outer(charge, charge), (sigma[:, None] + sigma) / 2, torch.outer(epsilon, epsilon).sqrt()]
        )
        i, j = atom_numbers(force, "Exceptions", num_atoms, "p1", "p2").sort(0).values
        pair_table[:, i, j] = numbers(force, "Exceptions", "q", "sig", "eps")
        i, j = all_pairs(num_atoms)
        return cls(*pair_table[:, i, j])

    def forward(self, frames: Frames) -> Tensor:
        repulsion, attraction, coulomb = self.constants.to(frames.inverse)
        second = frames.inverse.square()
        sixth = second * second * second
        return torch.addcmul((repulsion * sixth - attraction) * sixth, coulomb, frames.inverse).sum(0)

    def extra_repr(self) -> str:
        return f"{self.constants.shape[1]} pairs"
