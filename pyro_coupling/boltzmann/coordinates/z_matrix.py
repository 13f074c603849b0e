"""Z-matrices: for each atom the three others that a bond length, an angle and a torsion refer to.

A row is ``(atom, bond, angle, torsion)``: its atom lies at a distance from ``bond``, at an angle
atom-bond-angle, and turned about the axis from ``bond`` to ``angle`` against ``torsion``. What the first three
rows have no use for is -1.
"""

from __future__ import annotations

__all__ = ["Row", "build_z_matrix", "check_z_matrix"]

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from .graph import MolecularGraph

Row = tuple[int, int, int, int]


def build_z_matrix(graph: MolecularGraph) -> list[Row]:
    """A Z-matrix of all atoms, always the same one for a graph.

    It starts from three atoms in a row in the middle of the molecule, from where bonds lead outwards, so that
    few atoms have to wait for others. Of the atoms that one atom carries, that with the largest part of the
    molecule behind it turns freely about the bond before; the others are held against it. So one torsion for
    each rotatable bond is free, and all others are stiff.

    Args:
        graph: The molecule, of two atoms or more.

    Returns:
        A row for each atom, those that it refers to before it.

    Example:
        >>> ethanol = [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5), (1, 6), (1, 7), (2, 8)]
        >>> for row in build_z_matrix(MolecularGraph(9, ethanol, "CCOHHHHHH")):
        ...     print(row)
        (1, -1, -1, -1)
        (0, 1, -1, -1)
        (2, 1, 0, -1)
        (6, 1, 0, 2)
        (7, 1, 0, 2)
        (3, 0, 1, 2)
        (4, 0, 1, 3)
        (5, 0, 1, 3)
        (8, 2, 1, 0)
    """
    if graph.num_atoms == 2:
        return [(0, -1, -1, -1), (1, 0, -1, -1)]
    middle, first, second = _middle(graph)
    rows = [(middle, -1, -1, -1), (first, middle, -1, -1), (second, middle, first, -1)]
    parents, order = _outwards(graph, middle, first, second)
    behind = _behind(graph, parents, order)
    for atom in order:
        children = [child for child in graph.neighbours[atom] if parents[child] == atom and child not in order[:3]]
        axis = parents[atom]
        if atom == middle:
            lead = second
        elif children:
            lead = max(children, key=lambda child: (behind[child], -child))
            rows.append((lead, atom, axis, second if atom == first else parents[axis]))
        rows += [(child, atom, axis, lead) for child in children if child != lead]
    return rows


def check_z_matrix(rows: Iterable[Sequence[int]], num_atoms: int) -> list[Row]:
    """The rows of a Z-matrix as tuples.

    Raises:
        ValueError: If an atom is missing or stands there twice, or a row refers to an atom that is not placed
            before it, or to the same atom twice.
    """
    checked: list[Row] = []
    placed: list[int] = []
    for number, row in enumerate(rows):
        entries = tuple(int(entry) for entry in row)
        if len(entries) != 4:
            raise ValueError(f"z_matrix: row {number} must be (atom, bond, angle, torsion), got {entries}")
        atom, needed, unused = entries[0], entries[1 : 1 + min(number, 3)], entries[1 + min(number, 3) :]
        if not 0 <= atom < num_atoms or atom in placed:
            raise ValueError(
                f"z_matrix: row {number} must place one of {num_atoms} atoms for the first time, got {atom}"
            )
        if len(set(needed)) < len(needed) or not set(needed) <= set(placed):
            raise ValueError(f"z_matrix: row {number} must refer to {len(needed)} atoms placed before it, got {needed}")
        if any(entry != -1 for entry in unused):
            raise ValueError(f"z_matrix: row {number} must end in {len(unused)} times -1, got {entries}")
        checked.append(entries)
        placed.append(atom)
    if len(placed) < num_atoms:
        missing = min(set(range(num_atoms)).difference(placed))
        raise ValueError(f"z_matrix must place all {num_atoms} atoms, but atom {missing} has no row")
    return checked


def _middle(graph: MolecularGraph) -> tuple[int, int, int]:
    """Three atoms in a row: not at an end if that can be, with as few bonds as possible to the farthest atom."""

    def key(path: tuple[int, int, int]) -> tuple:
        _, first, second = path
        ends = sum(graph.is_terminal(atom) for atom in path)
        farthest = int(graph.distances[list(path)].min(0).max())
        return ends, farthest, sum(map(graph.is_hydrogen, path)), graph.is_terminal(first), (first, second)

    paths = (
        (middle, *pair)
        for middle in range(graph.num_atoms)
        for pair in itertools.permutations(graph.neighbours[middle], 2)
    )
    return min(paths, key=key)


def _outwards(graph: MolecularGraph, middle: int, first: int, second: int) -> tuple[dict[int, int], list[int]]:
    """The atom that each is reached from, breadth first, and the order in which they are reached."""
    parents = {middle: first, first: middle, second: middle}
    order = [middle, first, second]
    for atom in order:
        for child in graph.neighbours[atom]:
            if child not in parents:
                parents[child] = atom
                order.append(child)
    return parents, order


def _behind(graph: MolecularGraph, parents: dict[int, int], order: list[int]) -> dict[int, tuple[int, int]]:
    """Of each atom and those reached through it: how many are no hydrogen, and how many there are."""
    counts = {atom: np.array([not graph.is_hydrogen(atom), 1]) for atom in order}
    for atom in reversed(order[3:]):
        counts[parents[atom]] += counts[atom]
    return {atom: (int(heavy), int(all_)) for atom, (heavy, all_) in counts.items()}
