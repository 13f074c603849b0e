"""A molecular force field as a batched energy in torch."""

from __future__ import annotations

__all__ = ["ForceField"]

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..energies import Energy
from .nonbonded import Nonbonded
from .parts import Frames, all_pairs, take

_NEAREST = 1e-4  # nm; where there is no Lennard-Jones term
_NUMBERS_AT_ONCE = {"cpu": 2**18}  # distances; so many fit the cache of a core
_NUMBERS_ON_A_DEVICE = 2**24


class ForceField(Energy):
    """Potential energy of a molecule, in kJ/mol of positions in nm; `from_openmm` and `from_xml` make it.

    Energies and forces are those of OpenMM to rounding, in float64 as in float32, for many frames at once and
    on any device. Constants stay in float64 whatever dtype the module is moved to, and take that of the input.
    Two atoms nearer to each other than 1/200 of the largest Lennard-Jones diameter count as at this distance, so
    that the energy of a frame is finite, also in float32.

    Constraints of a System have no part in the energy. They narrow the ensemble: it is for the coordinates
    to keep them.

    Args:
        terms: The parts of the sum: modules that take `Frames` to energies.
        masses: Of the atoms, dalton, ``(atoms,)``.
        bonds: Pairs of bonded atoms.
        constraints: Pairs of atoms held at a distance, and the distance in nm.
        names: Of the atoms.

    Attributes:
        terms: As given.
        masses: Dalton, ``(atoms,)``, float64.
        bonds: Pairs of atoms with a harmonic bond or a constraint between them, the smaller number first, sorted.
        constraints: Triples of two atoms and their distance in nm.
        names: Names of the atoms, or None.

    Raises:
        ValueError: If there is no term, or not one name for each atom; and by `energy`, if frames don't end
            in ``(atoms, 3)``.
        TypeError: By `energy`, if positions are neither of float32 nor of float64.

    Example:
        >>> import torch
        >>> from pyro_coupling.boltzmann.force_field.bonds import HarmonicBonds
        >>> bond = HarmonicBonds(torch.tensor([[0], [1]]), torch.tensor([[0.1], [4e5]], dtype=torch.float64))
        >>> molecule = ForceField([bond], masses=torch.tensor([1.0, 16.0]), bonds=[(0, 1)])
        >>> energy, force = molecule.energy_and_force(torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 0.11]]]))
        >>> energy.round(), force.round()
        (tensor([20.]), tensor([[[   -0.,    -0.,  4000.], [   -0.,    -0., -4000.]]]))
    """

    masses: Tensor
    pairs: Tensor

    def __init__(
        self,
        terms: Iterable[nn.Module],
        masses: Tensor,
        bonds: Iterable[tuple[int, int]] = (),
        constraints: Iterable[tuple[int, int, float]] = (),
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__((len(masses), 3))
        self.terms = nn.ModuleList(terms)
        self.bonds = tuple(sorted({(min(pair), max(pair)) for pair in bonds}))
        self.constraints = tuple(constraints)
        self.names = None if names is None else tuple(names)
        if not self.terms:
            raise ValueError("ForceField: needs a term that gives an energy, but got none")
        if self.names is not None and len(self.names) != len(masses):
            raise ValueError(f"ForceField: names must be one for each of {len(masses)} atoms, got {len(self.names)}")
        diameters = [term.sigma for term in self.terms if isinstance(term, Nonbonded)]
        self._nearest = max(_NEAREST, max(diameters, default=0.0) / 200)
        self.register_buffer("masses", masses.to(torch.float64), persistent=False)
        self.register_buffer("pairs", all_pairs(len(masses)), persistent=False)

    def energy(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"ForceField: positions must be of float32 or float64, got {x.dtype}")
        frames = x.reshape(-1, *self.event_shape)
        energies = [self._energy(part) for part in frames.split(self._frames_at_once(frames))]
        return torch.cat(energies).reshape(x.shape[:-2])

    def _energy(self, x: Tensor) -> Tensor:
        positions = x.permute(1, 2, 0).contiguous()
        i, j = self.pairs
        squared = (take(positions, i) - take(positions, j)).square().sum(1).clamp_min(self._nearest**2)
        frames = Frames(positions, squared, squared.rsqrt())
        return torch.stack([term(frames) for term in self.terms]).sum(0)

    def _frames_at_once(self, frames: Tensor) -> int:
        """How many to go through together: no more than what fits the memory near to the processor."""
        if torch.compiler.is_compiling():
            return len(frames)  # one kernel keeps its intermediate values to itself
        numbers = _NUMBERS_AT_ONCE.get(frames.device.type, _NUMBERS_ON_A_DEVICE)
        return max(1, numbers // max(1, self.pairs.shape[1]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # constants follow to another device, and are never rounded
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    def extra_repr(self) -> str:
        return f"{len(self.masses)} atoms, {len(self.bonds)} bonds, {len(self.constraints)} constraints"
