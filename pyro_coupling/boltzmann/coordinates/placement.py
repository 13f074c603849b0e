"""Positions of atoms from the bonds, angles and torsions of a Z-matrix, many atoms at a time."""

from __future__ import annotations

__all__ = ["Placement"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .geometry import cross, norm
from .z_matrix import Row

_Axis = tuple[int, int, int]  # from its first atom away from the second, torsions against the third


class Placement(nn.Module):
    """Places the atoms of a Z-matrix level by level: together all those whose references stand already.

    Atoms that turn about the same axis share a frame: unit vectors e along the axis, m across it on the side of
    the torsion's reference, and ``n = e x m``. An atom at a distance r, an angle t and a torsion p lies at
    ``r (sin(t) cos(p) m + sin(t) sin(p) n - cos(t) e)`` from the frame's origin. Where an axis is the bond by
    which its first atom was placed, its frame is the one of that atom turned by t and p; others come from the
    positions of three atoms.

    Args:
        rows: A checked Z-matrix.

    Attributes:
        rows: Its rows in the order of placement, which is that of the bonds, angles and torsions to come.
        num_levels: How many times atoms are placed, the first three included.

    Reference:
        Parsons, Holmes, Rojas, Tsai, Strauss. Practical conversion from torsion space to Cartesian space for in
        silico protein synthesis. J. Comput. Chem. 2005.
    """

    order: Tensor
    sums: Tensor

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        by_atom = {row[0]: row for row in rows}
        levels = _levels(rows, by_atom)
        num_heads = [0] * len(levels)
        for number, following in enumerate(levels[1:]):
            bonds = {row[1] for row in following if _is_turned(_axis(row, by_atom), by_atom)}
            levels[number], num_heads[number] = _heads_first(levels[number], bonds)
        self.rows = [*rows[:3], *(row for level in levels for row in level)]
        self.num_levels = len(levels) + 1
        self._sizes = [len(level) for level in levels]
        self._num_heads = num_heads
        self._third_hangs_on_first = len(rows) > 2 and rows[2][1] == rows[0][0]
        place = {row[0]: k for k, row in enumerate(self.rows)}
        self._add_buffer("order", [place[atom] for atom in range(len(rows))])
        for number, level in enumerate(levels):
            self._add_level(number, [_axis(row, by_atom) for row in level], by_atom, place)
        self.register_buffer("sums", _sums(self.rows[3:]), persistent=False)

    def forward(self, bonds: Tensor, cos: Tensor, sin: Tensor, torsions: Tensor) -> Tensor:
        """Positions with the first atom in the origin, the second on the x axis, the third in the xy plane.

        Args:
            bonds: Distances in nm, ``(atoms - 1, batch)``.
            cos: Cosines of the angles, ``(atoms - 2, batch)``.
            sin: Their sines.
            torsions: In rad, ``(atoms - 3, batch)``.

        Returns:
            Positions in nm in the order of the atoms' numbers, ``(atoms, 3, batch)``.
        """
        torsions = self.sums.to(torsions.dtype) @ torsions
        placed = [self._first_atoms(bonds, cos, sin)]
        given = bonds[2:], cos[1:], sin[1:], torsions.cos(), torsions.sin()
        columns = zip(*(part.unsqueeze(1).split(self._sizes) for part in given), strict=True)
        frames: list[Tensor] = []
        for number, (r, ct, st, cp, sp) in enumerate(columns):
            references = getattr(self, f"references{number}")
            if len(references):
                frames.append(_frames(torch.cat(placed).index_select(0, references)))
            family = getattr(self, f"family{number}")
            e, m, n, origin = torch.cat(frames).index_select(0, family).split(3, 1)
            across = cp * m + sp * n
            outwards = st * across - ct * e
            placed.append(origin + r * outwards)
            h = self._num_heads[number]
            turned = -(ct[:h] * across[:h] + st[:h] * e[:h]), cp[:h] * n[:h] - sp[:h] * m[:h]
            frames = [torch.cat([outwards[:h], *turned, placed[-1][:h]], 1)]
        return torch.cat(placed).index_select(0, self.order)

    def _first_atoms(self, bonds: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        zero = torch.zeros_like(bonds[0])
        positions = [torch.stack([zero, zero, zero]), torch.stack([bonds[0], zero, zero])]
        if len(bonds) > 1:
            along, across = bonds[1] * cos[0], bonds[1] * sin[0]
            along = along if self._third_hangs_on_first else bonds[0] - along
            positions.append(torch.stack([along, across, zero]))
        return torch.stack(positions)

    def _add_level(self, number: int, axes: list[_Axis], by_atom: dict[int, Row], place: dict[int, int]) -> None:
        """Notes which frame each atom of a level uses: those of the heads before it, then those of new axes."""
        start = 3 + sum(self._sizes[: number - 1])  # of the level before
        num_heads = self._num_heads[number - 1] if number else 0
        new = list(dict.fromkeys(axis for axis in axes if not _is_turned(axis, by_atom)))
        self._add_buffer(
            f"family{number}",
            [num_heads + new.index(axis) if axis in new else place[axis[0]] - start for axis in axes],
        )
        self._add_buffer(f"references{number}", [place[axis[k]] for k in range(3) for axis in new])

    def _add_buffer(self, name: str, indices: list[int]) -> None:
        self.register_buffer(name, torch.tensor(indices, dtype=torch.long), persistent=False)

    def __repr__(self) -> str:
        return f"Placement({len(self.rows)} atoms in {self.num_levels} levels)"


def _frames(positions: Tensor) -> Tensor:
    """Frames ``(axes, 12, batch)`` of e, m, n and the origin, from the three atoms of each axis."""
    origin, second, third = positions.chunk(3)
    along = origin - second
    across = cross(second - third, along)
    e, n = along / norm(along).unsqueeze(1), across / norm(across).unsqueeze(1)
    return torch.cat([e, cross(n, e), n, origin], 1)


def _axis(row: Row, by_atom: dict[int, Row]) -> _Axis:
    """The axis about which an atom turns, with the reference that it shares with all who turn about it."""
    _, bond, angle, torsion = row
    while by_atom[torsion][1:3] == (bond, angle) and by_atom[torsion][3] != -1:
        torsion = by_atom[torsion][3]
    return bond, angle, torsion


def _is_turned(axis: _Axis, by_atom: dict[int, Row]) -> bool:
    """Whether the frame of an axis follows from the one by which its first atom was placed."""
    row = by_atom[axis[0]]
    return row[1:3] == axis[1:] and row[3] != -1


def _levels(rows: Sequence[Row], by_atom: dict[int, Row]) -> list[list[Row]]:
    """All rows but the first three, in groups that need earlier groups only."""
    depth = dict.fromkeys((row[0] for row in rows[:3]), 0)
    levels: list[list[Row]] = []
    for row in rows[3:]:
        level = depth[row[0]] = 1 + max(depth[atom] for atom in _axis(row, by_atom))
        if level > len(levels):
            levels.append([])
        levels[level - 1].append(row)
    return levels


def _heads_first(level: list[Row], bonds: set[int]) -> tuple[list[Row], int]:
    """A level with those in front whose frames are used in the next, and how many these are.

    They take along whom their torsions refer to, so that each row still stands behind its references.
    """
    in_front = set(bonds)
    for atom, _, _, torsion in reversed(level):
        if atom in in_front:
            in_front.add(torsion)
    ordered = sorted(level, key=lambda row: row[0] not in in_front)
    return ordered, sum(row[0] in in_front for row in level)


def _sums(rows: Sequence[Row]) -> Tensor:
    """The matrix that adds to a torsion against an atom of the same axis the torsion of that atom."""
    sums = torch.eye(len(rows), dtype=torch.float64)
    place = {row[0]: k for k, row in enumerate(rows)}
    for k, (_, bond, angle, torsion) in enumerate(rows):
        before = place.get(torsion)
        if before is not None and rows[before][1:3] == (bond, angle):
            sums[k] += sums[before]
    return sums
