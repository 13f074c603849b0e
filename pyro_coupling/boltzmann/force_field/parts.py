"""What the terms of a force field share: frames with their distances, springs, rows by number, vectors in space."""

from __future__ import annotations

__all__ = ["Frames", "Springs", "all_pairs", "cross", "length", "take"]

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Frames(NamedTuple):
    """A batch of conformations, frames last, so that each operation runs along contiguous memory.

    Args:
        positions: Of the atoms, nm, ``(atoms, 3, frames)``.
        squared: Squared distances of `all_pairs`, nm^2, ``(pairs, frames)``.
        inverse: Inverse distances, 1/nm, ``(pairs, frames)``.
    """

    positions: Tensor
    squared: Tensor
    inverse: Tensor


class Springs(nn.Module):
    """``sum k/2 (x - x0)^2``, x a function of the positions of a few atoms.

    Args:
        atoms: The atoms of each spring, ``(atoms of one, springs)``.
        constants: Its rest x0 and stiffness k, ``(2, springs)``, float64.
    """

    atoms: Tensor
    constants: Tensor

    def __init__(self, atoms: Tensor, constants: Tensor) -> None:
        super().__init__()
        self.register_buffer("atoms", atoms, persistent=False)
        self.register_buffer("constants", constants.unsqueeze(-1), persistent=False)

    def energy(self, x: Tensor) -> Tensor:
        """Where the springs are, ``(springs, frames)`` -> ``(frames,)``."""
        rest, stiffness = self.constants.to(x)
        return (0.5 * stiffness * (x - rest).square()).sum(0)

    def extra_repr(self) -> str:
        return f"{self.atoms.shape[1]}"


def all_pairs(num_atoms: int) -> Tensor:
    """Every pair of atoms once, the smaller number first, ``(2, pairs)``."""
    return torch.triu_indices(num_atoms, num_atoms, 1)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """The rows of these numbers. No matrix product does it, which TF32 or autocast would round."""
    return rows.index_select(0, index.to(rows.device))


def length(vectors: Tensor) -> Tensor:
    """Lengths of vectors ``(n, 3, frames)``, ``(n, frames)``, with gradient zero at zero."""
    return vectors.square().sum(1).clamp_min(1e-24).sqrt()


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Vector products of ``(n, 3, frames)``; faster with its gradient than torch's own."""
    (a1, a2, a3), (b1, b2, b3) = a.unbind(1), b.unbind(1)
    return torch.stack([a2 * b3 - a3 * b2, a3 * b1 - a1 * b3, a1 * b2 - a2 * b1], 1)
