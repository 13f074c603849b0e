"""Molecular force fields: read from OpenMM and evaluated in torch, or evaluated by OpenMM itself."""

from .bridge import OpenMMEnergy
from .force_field import ForceField
from .system import from_openmm, from_xml

__all__ = ["ForceField", "OpenMMEnergy", "from_openmm", "from_xml"]
