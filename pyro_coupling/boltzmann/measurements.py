"""Lengths and angles that are measured in configurations: bonds, bond angles, dihedral angles."""

from __future__ import annotations

__all__ = ["bond_angles", "bond_lengths", "dihedrals"]

from collections.abc import Sequence

import torch
from torch import Tensor

from .coordinates.geometry import angle_between, norm, torsion


def bond_lengths(positions: Tensor, bonds: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Distances of pairs of atoms.

    Args:
        positions: ``(*batch, atoms, 3)``.
        bonds: Pairs of atoms, ``(n, 2)``.

    Returns:
        Lengths in the unit of the positions, ``(*batch, n)``.

    Raises:
        ValueError: If a shape is wrong or there is no such atom.

    Example:
        >>> bond_lengths(torch.tensor([[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]]), [(0, 1)])
        tensor([5.])
    """
    first, second = _points(positions, bonds, 2)
    return norm(second - first)


def bond_angles(positions: Tensor, angles: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Angles between the two bonds of three atoms.

    Args:
        positions: ``(*batch, atoms, 3)``.
        angles: Triples of atoms, the one in the middle second, ``(n, 3)``.

    Returns:
        Angles in radians, 0 to pi, ``(*batch, n)``.

    Raises:
        ValueError: If a shape is wrong or there is no such atom.

    Example:
        >>> bond_angles(torch.eye(3) - torch.eye(3)[1], [(0, 1, 2)])
        tensor([1.0472])
    """
    first, middle, last = _points(positions, angles, 3)
    return angle_between(first - middle, last - middle)


def dihedrals(positions: Tensor, atoms: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Dihedral angles of four atoms each: zero is cis, and a clockwise turn of the far bond is positive.

    Args:
        positions: ``(*batch, atoms, 3)``.
        atoms: Four atoms for each angle, the axis in the middle, ``(n, 4)``.

    Returns:
        Angles in radians, -pi to pi, ``(*batch, n)``.

    Raises:
        ValueError: If a shape is wrong or there is no such atom.

    Reference:
        IUPAC-IUB. Abbreviations and symbols for the description of the conformation of polypeptide chains.
        Biochemistry 1970 (the sign).

    Example:
        >>> positions = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
        >>> dihedrals(positions, [(0, 1, 2, 3)]).rad2deg()
        tensor([90.])
    """
    return torsion(*_points(positions, atoms, 4))


def _points(positions: Tensor, atoms: Tensor | Sequence[Sequence[int]], per_row: int) -> tuple[Tensor, ...]:
    """The first atom of each row, the second and so on, each ``(*batch, 3, rows)``."""
    rows = torch.as_tensor(atoms, dtype=torch.long, device=positions.device).reshape(len(atoms), -1)
    if positions.dim() < 2 or positions.size(-1) != 3:
        raise ValueError(f"positions must be (*batch, atoms, 3), got shape {tuple(positions.shape)}")
    if rows.size(-1) != per_row:
        raise ValueError(f"atoms must be rows of {per_row}, got shape {tuple(rows.shape)}")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < positions.size(-2):
        raise ValueError(
            f"atoms must be from 0 to {positions.size(-2) - 1}, got {int(rows.min())} to {int(rows.max())}"
        )
    return tuple(positions[..., column, :].transpose(-1, -2) for column in rows.unbind(-1))
