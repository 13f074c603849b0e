"""Which values bonds, angles and torsions may take about a reference structure, and which torsions turn freely."""

from __future__ import annotations

__all__ = ["angle_ranges", "bond_ranges", "check_not_in_line", "torsion_ranges"]

import math
from collections.abc import Sequence

from torch import Tensor

from .geometry import angle_between
from .graph import MolecularGraph
from .z_matrix import Row

Range = tuple[float, float]  # middle and half-width, in nm or rad

_IN_LINE = 1e-3  # angles this close to 0 or pi give a torsion no direction
_MARGIN = 0.3  # from a reference torsion to the ends of its range, in rad


def check_not_in_line(reference: Tensor, rows: Sequence[Row]) -> None:
    """Refuses a reference, ``(atoms, 3)``, in which an angle of the Z-matrix, or under a torsion, is 0 or pi."""
    triples = [row[:3] for row in rows[2:]] + [row[1:] for row in rows[3:]]
    if not triples:
        return
    ends, middles, others = (reference[list(atoms)].mT for atoms in zip(*triples, strict=True))
    angles = angle_between(ends - middles, others - middles)
    for (i, j, k), angle in zip(triples, angles.tolist(), strict=True):
        if not _IN_LINE < angle < math.pi - _IN_LINE:
            raise ValueError(f"reference: atoms {i}, {j} and {k} lie in a line, which leaves torsions undefined")


def bond_ranges(rows: Sequence[Row], values: Sequence[float], width: float) -> list[Range]:
    """The range of each bond about its length in the reference, in nm.

    Raises:
        ValueError: If it reaches zero.
    """
    for (atom, bond, _, _), value in zip(rows, values, strict=True):
        if value <= width:
            raise ValueError(
                f"bond_width: atoms {bond} and {atom} are {value:.4g} nm apart in the reference, and the half-width of "
                f"the range must be less than that, got {width:g}"
            )
    return [(value, width) for value in values]


def angle_ranges(rows: Sequence[Row], values: Sequence[float], width: float) -> list[Range]:
    """The range of each angle about its value in the reference, in rad.

    Raises:
        ValueError: If it reaches 0 or pi.
    """
    for (atom, bond, angle, _), value in zip(rows, values, strict=True):
        room = min(value, math.pi - value)
        if room <= width:
            raise ValueError(
                f"angle_width: atoms {atom}, {bond} and {angle} make an angle of {value:.4g} rad in the reference, and "
                f"the half-width of the range must be less than {room:.4g} to stay within (0, pi), got {width:g}"
            )
    return [(value, width) for value in values]


def torsion_ranges(
    rows: Sequence[Row], values: Sequence[float], graph: MolecularGraph, restrict_chirality: bool
) -> list[Range]:
    """The range of each torsion, in rad; a half-width of pi where it turns freely.

    A torsion against an atom that hangs on the same third one is stiff and has half a turn. About an atom of four
    neighbours it is that on the side of the reference, so that handedness is kept; about one of three it is
    that in the middle of which they are flat. Elsewhere, and where the reference lies close to an end, it is
    the half turn about the reference.
    """
    return [_torsion_range(row, value, graph, restrict_chirality) for row, value in zip(rows, values, strict=True)]


def _torsion_range(row: Row, value: float, graph: MolecularGraph, restrict_chirality: bool) -> Range:
    atom, bond, angle, torsion = row
    around = graph.neighbours[bond]
    is_stiff = {atom, angle, torsion} <= set(around)
    if not is_stiff or (bond in graph.stereocentres and not restrict_chirality):
        return value, math.pi
    centre = value
    if len(around) == 3:
        centre = math.pi if abs(value) > math.pi / 2 else 0.0
    elif len(around) == 4:
        centre = math.copysign(math.pi / 2, value)
    if abs(math.remainder(value - centre, 2 * math.pi)) > math.pi / 2 - _MARGIN:
        centre = value
    return centre, math.pi / 2
