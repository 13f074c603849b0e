"""Angles among points: bond angles, torsions, and the point of a circle that an angle stands for.

Points are laid out ``(..., 3, batch)``, which keeps each component of a batch in one piece of memory.
"""

from __future__ import annotations

__all__ = ["angle_between", "cross", "dot", "norm", "torsion", "wrap"]

import math

import torch
from torch import Tensor


def wrap(angle: Tensor) -> Tensor:
    """The same direction in ``[-pi, pi)``; an angle that lies there already is left as it is."""
    turned = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    # the remainder of a tiny negative number rounds to the whole turn
    turned = torch.where(turned < math.pi, turned, turned - 2 * math.pi)
    return torch.where((angle >= -math.pi) & (angle < math.pi), angle, turned)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross product of vectors ``(..., 3, batch)``; several times faster than ``torch.linalg.cross`` on a CPU."""
    ax, ay, az = a.unbind(-2)
    bx, by, bz = b.unbind(-2)
    return torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -2)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of vectors ``(..., 3, batch)``."""
    return (a * b).sum(-2)


def norm(a: Tensor) -> Tensor:
    """Length of vectors ``(..., 3, batch)``; of a vector that is zero, the root of the least number of its dtype."""
    return dot(a, a).clamp_min(torch.finfo(a.dtype).tiny).sqrt()


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Angle of two vectors, from 0 to pi, accurate at both ends."""
    return torch.atan2(norm(cross(a, b)), dot(a, b))


def torsion(p0: Tensor, p1: Tensor, p2: Tensor, p3: Tensor) -> Tensor:
    """Torsion angle of four points about the axis from ``p1`` to ``p2``, in ``[-pi, pi]``; zero where it is cis.

    Reference:
        IUPAC-IUB. Abbreviations and symbols for the description of the conformation of polypeptide chains.
        Biochemistry 1970 (the sign).
    """
    axis = p2 - p1
    first, second = cross(p1 - p0, axis), cross(axis, p3 - p2)
    return torch.atan2(norm(axis) * dot(p1 - p0, second), dot(first, second))
