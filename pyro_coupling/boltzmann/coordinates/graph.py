"""The bond graph of a molecule: who is bonded to whom, which atoms are alike, which are stereocentres."""

from __future__ import annotations

__all__ = ["MolecularGraph"]

import functools
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path


class MolecularGraph:
    """Atoms and bonds of one molecule.

    Args:
        num_atoms: Number of atoms.
        bonds: Pairs of atoms, each pair once.
        elements: Symbol of each atom, if known.

    Attributes:
        neighbours: For each atom, the atoms bonded to it in ascending order.

    Raises:
        ValueError: If a bond names an atom that does not exist, joins an atom to itself or stands there twice,
            if the bonds leave the molecule in several pieces, or if there is not one element for each atom.
    """

    def __init__(self, num_atoms: int, bonds: Iterable[Sequence[int]], elements: Sequence[str] | None = None) -> None:
        pairs = _checked_bonds(num_atoms, bonds)
        if elements is not None and len(elements) != num_atoms:
            raise ValueError(f"elements must name one element for each of {num_atoms} atoms, got {len(elements)}")
        self.num_atoms = num_atoms
        self.elements = None if elements is None else tuple(str(symbol).strip().upper() for symbol in elements)
        self.neighbours: list[list[int]] = [[] for _ in range(num_atoms)]
        for i, j in sorted(pairs):
            self.neighbours[i].append(j)
            self.neighbours[j].append(i)
        for around in self.neighbours:
            around.sort()
        stray = np.flatnonzero(np.isinf(self.distances[0]))
        if len(stray):
            raise ValueError(
                f"bonds must join all {num_atoms} atoms into one molecule, but none lead from atom 0 to {stray[0]}"
            )

    @functools.cached_property
    def distances(self) -> np.ndarray:
        """Number of bonds between each two atoms, ``(num_atoms, num_atoms)``."""
        ends = np.array([(i, j) for i, around in enumerate(self.neighbours) for j in around]).reshape(-1, 2).T
        shape = (self.num_atoms, self.num_atoms)
        return shortest_path(coo_array((np.ones(ends.shape[1]), tuple(ends)), shape).tocsr(), unweighted=True)

    def is_hydrogen(self, atom: int) -> bool:
        """Whether an atom is known to be a hydrogen."""
        return self.elements is not None and self.elements[atom] in ("H", "D", "T")

    def is_terminal(self, atom: int) -> bool:
        """Whether an atom has no neighbour, or one only."""
        return len(self.neighbours[atom]) < 2

    @functools.cached_property
    def classes(self) -> list[int]:
        """A number for each atom, the same for two atoms that bonds and elements do not tell apart.

        Reference:
            Morgan. The generation of a unique machine description for chemical structures. J. Chem. Doc. 1965.
        """
        keys: list = list(self.elements or [""] * self.num_atoms)
        count = 0
        while True:
            numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
            found = [numbers[key] for key in keys]
            if len(numbers) == count:
                return found
            count = len(numbers)
            keys = [(own, tuple(sorted(found[j] for j in self.neighbours[i]))) for i, own in enumerate(found)]

    @functools.cached_property
    def stereocentres(self) -> list[int]:
        """Atoms with four neighbours, no two of them alike."""
        return [
            atom
            for atom, around in enumerate(self.neighbours)
            if len(around) == 4 and len({self.classes[j] for j in around}) == 4
        ]


def _checked_bonds(num_atoms: int, bonds: Iterable[Sequence[int]]) -> set[tuple[int, int]]:
    pairs: set[tuple[int, int]] = set()
    for bond in bonds:
        if len(bond) != 2:
            raise ValueError(f"bonds must be pairs of atoms, got {tuple(bond)}")
        first, second = (int(atom) for atom in bond)
        if not (0 <= first < num_atoms and 0 <= second < num_atoms):
            raise ValueError(f"bonds must join atoms from 0 to {num_atoms - 1}, got the bond {first}-{second}")
        if first == second:
            raise ValueError(f"bonds must join two atoms, got one from atom {first} to itself")
        pair = min(first, second), max(first, second)
        if pair in pairs:
            raise ValueError(f"bonds must name each bond once, got {pair[0]}-{pair[1]} twice")
        pairs.add(pair)
    return pairs
