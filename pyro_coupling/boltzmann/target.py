"""A Boltzmann distribution as a target: the density of the coordinates that a flow works in."""

from __future__ import annotations

__all__ = ["BoltzmannTarget"]

import torch
from torch import Tensor

from ..transforms import Bijection
from .energies import Energy

_CHUNK = 4096


class BoltzmannTarget:
    """``exp(-energy / kT)`` of positions, as a density of coordinates u: a `targets.Target`.

    Args:
        energy: The energy.
        kT: Thermal energy, in the units of the energy.
        coordinates: Maps ``u (dim,)`` to positions; None where a configuration is a vector already.
        dtype: Of the points.
        device: Of the points.

    Example:
        >>> from pyro_coupling.boltzmann.energies import DoubleWell
        >>> target = BoltzmannTarget(DoubleWell(), 1.0, None, torch.float32, torch.device("cpu"))
        >>> target.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    chunk_size = _CHUNK

    def __init__(
        self,
        energy: Energy,
        kT: float,
        coordinates: Bijection | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.energy, self.kT, self.coordinates = energy, kT, coordinates
        self.dtype, self.device = dtype, device
        self.dim = (energy.event_shape if coordinates is None else coordinates.event_shape)[0]

    def at(self, kT: float) -> BoltzmannTarget:
        """The same energy at another temperature."""
        return BoltzmannTarget(self.energy, kT, self.coordinates, self.dtype, self.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Unnormalised log density of coordinates ``(n, dim)``: ``(n,)``."""
        energy, log_det = self.energy_and_volume(x)
        return log_det - energy / self.kT

    def energy_and_volume(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and the logarithm of the volume element, each ``(n,)``: both the same at all temperatures."""
        positions, log_det = self.configurations(u)
        return self.energy(positions), log_det

    def configurations(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Configurations ``(n, *event_shape)`` of coordinates, and the logarithm of the volume element ``(n,)``."""
        if self.coordinates is None:
            return u, u.new_zeros(u.shape[:-1])
        return self.coordinates.forward_and_log_det(u)

    def coordinates_of(self, positions: Tensor) -> Tensor:
        """Coordinates of configurations."""
        return positions if self.coordinates is None else self.coordinates.inverse_and_log_det(positions)[0]
