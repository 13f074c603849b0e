"""What tells structures apart besides their shape: the handedness of centres, the labels of like hydrogens."""

from __future__ import annotations

__all__ = ["Handedness", "HydrogenOrder"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .geometry import cross, dot, norm, torsion
from .graph import MolecularGraph
from .z_matrix import Row

_FLAT = 1e-3  # sine-like measure of the volume that three edges span, below which it has no sign


class Handedness(nn.Module):
    """Compares the handedness of stereocentres with that in a reference.

    Args:
        graph: The molecule.
        reference: Positions, ``(atoms, 3)``.

    Raises:
        ValueError: If a stereocentre lies flat among its neighbours in the reference.
    """

    corners: Tensor
    signs: Tensor

    def __init__(self, graph: MolecularGraph, reference: Tensor) -> None:
        super().__init__()
        self.centres = tuple(graph.stereocentres)
        around = [graph.neighbours[atom] for atom in self.centres]
        self.register_buffer("corners", _indices(around, reference), persistent=False)
        volumes = self._volumes(reference)
        for atom, volume in zip(self.centres, volumes.tolist(), strict=True):
            if abs(volume) < _FLAT:
                raise ValueError(f"reference: atom {atom} has four different neighbours, but lies flat among them")
        self.register_buffer("signs", volumes.sign())

    def forward(self, positions: Tensor) -> Tensor:
        """1 for a centre that is as in the reference, -1 for its mirror image, ``(*batch, centres)``."""
        return self._volumes(positions).sign() * self.signs.to(positions.dtype)

    def _volumes(self, positions: Tensor) -> Tensor:
        """The signed volume that the edges from the first neighbour to the others span, relative to their lengths."""
        first, *others = (positions.index_select(-2, corner).mT for corner in self.corners.unbind(-1))
        a, b, c = (other - first for other in others)
        return dot(a, cross(b, c)) / (norm(a) * norm(b) * norm(c))

    def extra_repr(self) -> str:
        return f"centres={self.centres}"


class HydrogenOrder(nn.Module):
    """Relabels hydrogens that no energy tells apart, so that a structure has one set of labels.

    The two or three hydrogens of an atom are numbered by where they stand about the bond on which that atom
    hangs, in the sense of the reference. Where the atom has a further neighbour, the turn counts from it; a
    group that turns as a whole starts with the hydrogen that stands nearest to where the first one is in the
    reference. Of a group that belongs to the first three atoms of the Z-matrix only the sense is kept, and one
    that is their axis, as in water or methane, keeps its labels.

    Args:
        graph: The molecule, elements included.
        rows: Its Z-matrix.
        reference: Positions, ``(atoms, 3)``.
    """

    axes: Tensor
    senses: Tensor
    starts: Tensor

    def __init__(self, graph: MolecularGraph, rows: Sequence[Row], reference: Tensor) -> None:
        super().__init__()
        groups = _groups(graph, rows)
        self._sizes = [len(members) for members, _, _ in groups]
        torsions = [(member, *axis) for members, axis, _ in groups for member in members]
        self.register_buffer("axes", _indices(torsions, reference), persistent=False)
        senses, starts = [], []
        for (members, _, is_whole), angles in zip(groups, self._angles(reference).split(self._sizes), strict=True):
            zero = angles[0] if is_whole else torch.zeros_like(angles[0])
            rises = (angles - zero).remainder(2 * math.pi).diff().min() > 0
            sense = torch.where(rises, 1.0, -1.0).to(angles)
            # each hydrogen of a whole group is first for an equal part of the turn, its place in the middle of it
            start = zero - sense * math.pi / len(members) if is_whole else zero
            senses.append(sense.expand(len(members)))
            starts.append(start.expand(len(members)))
        self.register_buffer("senses", torch.cat([reference.new_empty(0), *senses]))
        self.register_buffer("starts", torch.cat([reference.new_empty(0), *starts]))

    def forward(self, positions: Tensor) -> Tensor:
        """The same structures in the order of the reference, ``(*batch, atoms, 3)``."""
        if not self._sizes:
            return positions
        members = self.axes[:, 0]
        turns = self.senses.to(positions.dtype) * (self._angles(positions) - self.starts.to(positions.dtype))
        groups = zip(members.split(self._sizes), turns.remainder(2 * math.pi).split(self._sizes, -1), strict=True)
        sources = torch.cat([labels[turn.argsort(-1)] for labels, turn in groups], -1)
        moved = positions.gather(-2, sources.unsqueeze(-1).expand(*sources.shape, positions.size(-1)))
        return positions.index_copy(-2, members, moved)

    def _angles(self, positions: Tensor) -> Tensor:
        return torsion(*(positions.index_select(-2, atoms).mT for atoms in self.axes.unbind(-1)))

    def extra_repr(self) -> str:
        return f"groups={[part.tolist() for part in self.axes[:, 0].split(self._sizes)]}"


def _indices(rows: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """Rows of four atoms, none included."""
    return torch.tensor(rows, dtype=torch.long, device=like.device).reshape(-1, 4)


def _groups(graph: MolecularGraph, rows: Sequence[Row]) -> list[tuple[list[int], tuple[int, int, int], bool]]:
    """Like hydrogens, the axis and the atom against which they turn, and whether they turn as a whole."""
    by_atom = {row[0]: row for row in rows}
    groups = []
    for atom, around in enumerate(graph.neighbours):
        members = [j for j in around if graph.is_hydrogen(j) and graph.is_terminal(j)]
        axis = by_atom[members[0]][2] if len(members) > 1 else -1
        if axis in (-1, *members) or by_atom[members[0]][1] != atom:
            continue
        others = [j for j in around if j not in (axis, *members)]
        torsions = [by_atom[j][3] for j in members]
        outside = [j for j in torsions if j not in (-1, *members)]
        if not others and not outside:  # they turn against the first among them
            others = [members.pop(torsions.index(-1))]
        if len(members) > 1:
            groups.append((members, (atom, axis, (others or outside)[0]), not others))
    return groups
