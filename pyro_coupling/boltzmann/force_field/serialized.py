"""Systems of OpenMM as text, which holds every digit of their numbers."""

from __future__ import annotations

__all__ = ["to_xml"]

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openmm


def to_xml(system: openmm.System, owner: str) -> str:
    """The XML of a System.

    Args:
        system: The System.
        owner: Who asks, for errors.

    Raises:
        ImportError: If OpenMM is not installed.
        TypeError: If it is not a System.
    """
    try:
        import openmm
    except ImportError as error:
        raise ImportError(f'{owner} needs OpenMM: pip install "pyro-coupling[molecules]"') from error
    if not isinstance(system, openmm.System):
        raise TypeError(f"{owner}: system must be an openmm.System, got {type(system).__name__}")
    return openmm.XmlSerializer.serialize(system)
