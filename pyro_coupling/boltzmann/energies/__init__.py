"""Potential energies: toys with known answers, particles, a lattice field, and a guard against overflow."""

from .base import Energy
from .lattice import LatticePhi4
from .particles import DW4, LennardJones, LennardJones13, LennardJones55, PairEnergy
from .regularised import RegularisedEnergy
from .toys import DoubleWell, ManyWell, MullerBrown

__all__ = [
    "DW4",
    "DoubleWell",
    "Energy",
    "LatticePhi4",
    "LennardJones",
    "LennardJones13",
    "LennardJones55",
    "ManyWell",
    "MullerBrown",
    "PairEnergy",
    "RegularisedEnergy",
]
