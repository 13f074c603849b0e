"""Reads a molecular System of OpenMM, as an object or as the XML that it is serialised to."""

from __future__ import annotations

__all__ = ["from_openmm", "from_xml"]

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from torch import nn

from .angles import HarmonicAngles
from .bonds import HarmonicBonds
from .born_forces import read_custom_gb, read_gbsa_obc
from .force_field import ForceField
from .nonbonded import Nonbonded
from .records import atom_numbers, check_version, children, numbers, unsupported
from .serialized import to_xml
from .torsions import PeriodicTorsions

if TYPE_CHECKING:
    import openmm

_READERS: dict[str, Callable[[Element, int], nn.Module]] = {
    "HarmonicBondForce": HarmonicBonds.read,
    "HarmonicAngleForce": HarmonicAngles.read,
    "PeriodicTorsionForce": PeriodicTorsions.read,
    "NonbondedForce": Nonbonded.read,
    "GBSAOBCForce": read_gbsa_obc,
    "CustomGBForce": read_custom_gb,
}
_WITHOUT_ENERGY = "CMMotionRemover"


def from_openmm(system: openmm.System, names: Sequence[str] | None = None) -> ForceField:
    """The energy of a System of OpenMM, evaluated in torch.

    Harmonic bonds and angles, periodic torsions, Lennard-Jones and Coulomb terms with exceptions, and the implicit
    solvents OBC1 and OBC2 are read, all without cutoff. Constraints are kept as an attribute; they have no energy.

    Args:
        system: The System; it is not changed, and not needed afterwards.
        names: Of the atoms, to be kept.

    Raises:
        ImportError: If OpenMM is not installed.
        TypeError: If it is not a System.
        ValueError: If it has a force or an option that is not read; `OpenMMEnergy` serves then.

    Example:
        >>> import openmm, torch
        >>> system = openmm.System()
        >>> bond = openmm.HarmonicBondForce()
        >>> system.addParticle(1.0), system.addParticle(16.0), bond.addBond(0, 1, 0.1, 4e5), system.addForce(bond)
        (0, 1, 0, 0)
        >>> from_openmm(system)(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.11]]))
        tensor(20.0000)
    """
    return _read(ElementTree.fromstring(to_xml(system, "from_openmm")), names)


def from_xml(path: str | os.PathLike, names: Sequence[str] | None = None) -> ForceField:
    """The energy of a System of OpenMM that was serialised to a file; OpenMM is not needed.

    ``openmm.XmlSerializer.serialize(system)`` makes the file's text.

    Args:
        path: The file.
        names: Of the atoms, to be kept.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not the XML of a System, or the System has what is not read (see `from_openmm`).

    Example:
        >>> import tempfile, torch
        >>> text = '''<System type="System" version="1">
        ...     <Particles> <Particle mass="1"/> <Particle mass="16"/> </Particles>
        ...     <Constraints/>
        ...     <Forces> <Force type="HarmonicBondForce" version="2" usesPeriodic="0">
        ...         <Bonds> <Bond d=".1" k="400000" p1="0" p2="1"/> </Bonds>
        ...     </Force> </Forces>
        ... </System>'''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "system.xml"
        ...     _ = path.write_text(text)
        ...     energy = from_xml(path)
        >>> energy(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.11]]))
        tensor(20.0000)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"from_xml: there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8")
        if "<!DOCTYPE" in text:
            raise ValueError("it has a document type, which a System never has")
        root = ElementTree.fromstring(text)
    except (ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"from_xml: {path} is not the XML of an OpenMM System: {error}") from error
    if root.tag != "System":
        raise ValueError(f"from_xml: {path} is not the XML of an OpenMM System, but of a {root.get('type', root.tag)}")
    return _read(root, names)


def _read(system: Element, names: Sequence[str] | None) -> ForceField:
    check_version(system, 1)
    for particle in children(system, "Particles"):
        for site in particle:
            raise unsupported(f"a virtual site ({site.tag})")
    (masses,) = numbers(system, "Particles", "mass")
    forces = [force for force in children(system, "Forces") if force.get("type") != _WITHOUT_ENERGY]
    pairs = atom_numbers(system, "Constraints", len(masses), "p1", "p2").T.tolist()
    distances = numbers(system, "Constraints", "d")[0].tolist()
    terms = [_read_force(force, len(masses)) for force in forces]
    bonds = [pair for term in terms if isinstance(term, HarmonicBonds) for pair in term.atoms.T.tolist()]
    constraints = [(i, j, d) for (i, j), d in zip(pairs, distances, strict=True)]
    return ForceField(terms, masses, [*bonds, *pairs], constraints, names)


def _read_force(force: Element, num_atoms: int) -> nn.Module:
    kind = force.get("type", force.tag)
    if kind not in _READERS:
        raise unsupported(kind)
    return _READERS[kind](force, num_atoms)
