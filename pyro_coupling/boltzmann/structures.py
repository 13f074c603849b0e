"""Configurations as files that molecular viewers read: PDB and XTC, through mdtraj."""

from __future__ import annotations

__all__ = ["topology_from_bonds", "write_pdb", "write_xtc"]

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    import mdtraj


def write_pdb(path: str | os.PathLike[str], positions: Tensor, topology: Any) -> None:
    """Writes configurations as the models of a PDB file, to 1e-4 nm.

    Args:
        path: The file; one that is there is replaced.
        positions: In nm, ``(n, atoms, 3)`` or ``(atoms, 3)``.
        topology: Path of a PDB file with the same atoms, a Topology of OpenMM or mdtraj, or `topology_from_bonds`.

    Raises:
        ImportError: If mdtraj is not installed.
        TypeError: If the topology is none of these.
        ValueError: If the positions are of the wrong shape or not finite, or their atoms are not those of the topology.

    Example:
        >>> import tempfile, torch
        >>> water = topology_from_bonds(["O", "H", "H"], [(0, 1), (0, 2)])
        >>> with tempfile.NamedTemporaryFile(suffix=".pdb") as file:
        ...     write_pdb(file.name, torch.randn(5, 3, 3), water)
        ...     print(open(file.name).read().count("ENDMDL"))
        5
    """
    mdtraj = _mdtraj("write_pdb")
    frames, known = _frames(positions), _topology(mdtraj, topology)
    if known.n_atoms != frames.shape[1]:
        raise ValueError(f"topology has {known.n_atoms} atoms, but positions have {frames.shape[1]}")
    mdtraj.Trajectory(frames, known).save_pdb(os.fspath(path))


def write_xtc(path: str | os.PathLike[str], positions: Tensor) -> None:
    """Writes configurations as the frames of an XTC file, to 1e-3 nm; a viewer needs a PDB of one of them beside it.

    Args:
        path: The file; one that is there is replaced.
        positions: In nm, ``(n, atoms, 3)`` or ``(atoms, 3)``.

    Raises:
        ImportError: If mdtraj is not installed.
        ValueError: If the positions are of the wrong shape or not finite.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.NamedTemporaryFile(suffix=".xtc") as file:
        ...     write_xtc(file.name, torch.randn(100, 22, 3))
    """
    mdtraj = _mdtraj("write_xtc")
    mdtraj.Trajectory(_frames(positions), None).save_xtc(os.fspath(path))


def topology_from_bonds(elements: Sequence[str], bonds: Iterable[Sequence[int]]) -> mdtraj.Topology:
    """A topology of one residue, for molecules of which no file is at hand.

    Args:
        elements: Symbol of each atom.
        bonds: Pairs of atoms.

    Raises:
        ImportError: If mdtraj is not installed.
        ValueError: If there is no such element or atom.

    Example:
        >>> topology_from_bonds(["O", "H", "H"], [(0, 1), (0, 2)])
        <mdtraj.Topology with 1 chains, 1 residues, 3 atoms, 2 bonds at ...>
    """
    mdtraj = _mdtraj("topology_from_bonds")
    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    for number, symbol in enumerate(elements, 1):
        try:
            element = mdtraj.element.get_by_symbol(symbol.strip().capitalize())
        except KeyError:
            raise ValueError(f"elements: there is no element {symbol!r}") from None
        topology.add_atom(f"{element.symbol}{number}", element, residue)
    for i, j in bonds:
        if not 0 <= min(i, j) <= max(i, j) < topology.n_atoms:
            raise ValueError(f"bonds must join atoms from 0 to {topology.n_atoms - 1}, got the bond {i}-{j}")
        topology.add_bond(topology.atom(int(i)), topology.atom(int(j)))
    return topology


def _frames(positions: Tensor) -> np.ndarray:
    if positions.dim() not in (2, 3) or positions.size(-1) != 3:
        raise ValueError(f"positions must be (n, atoms, 3) or (atoms, 3), got shape {tuple(positions.shape)}")
    frames = positions.detach().reshape(-1, *positions.shape[-2:])
    bad = int((~frames.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise ValueError(f"positions: {bad} of {len(frames)} configurations are not finite")
    return frames.cpu().float().numpy()


def _topology(mdtraj: Any, topology: Any) -> mdtraj.Topology:
    if isinstance(topology, mdtraj.Topology):
        return topology
    if isinstance(topology, (str, os.PathLike)):
        return mdtraj.load_topology(os.fspath(topology))
    if type(topology).__module__.startswith("openmm"):
        return mdtraj.Topology.from_openmm(topology)
    raise TypeError(
        "topology must be the path of a PDB file or a Topology of OpenMM or mdtraj, such as topology_from_bonds makes, "
        f"got {type(topology).__name__}"
    )


def _mdtraj(owner: str) -> Any:
    try:
        import mdtraj
    except ImportError as error:
        raise ImportError(f'{owner} needs mdtraj: pip install "pyro-coupling[molecules]"') from error
    return mdtraj
