"""What a generator works with where nothing else is asked for: coordinates that suit the energy, and its device."""

from __future__ import annotations

__all__ = ["chosen_coordinates", "device_of"]

import math

import torch

from ..transforms import Bijection, Reshape
from .coordinates import CenterFree, PlanarCluster, SpatialCluster
from .energies import Energy, PairEnergy


def chosen_coordinates(energy: Energy, coordinates: Bijection | None, kT: float) -> Bijection | None:
    """Those given, or those that suit the energy, at the temperature at which training starts."""
    shape = energy.event_shape
    if coordinates is None:
        return _suitable(energy, kT)
    if coordinates.output_shape != shape:
        raise ValueError(
            f"BoltzmannGenerator: coordinates give configurations of shape {tuple(coordinates.output_shape)}, but the "
            f"energy takes {tuple(shape)}"
        )
    return coordinates


def _suitable(energy: Energy, kT: float) -> Bijection | None:
    shape = energy.event_shape
    if len(shape) != 2:
        return None
    clusters = {2: PlanarCluster, 3: SpatialCluster}
    if isinstance(energy, PairEnergy) and shape[0] > 2 and shape[1] in clusters:
        return clusters[shape[1]].suited_to(energy, kT)
    return CenterFree(*shape) if _moves_freely(energy) else Reshape(math.prod(shape), shape)


def _moves_freely(energy: Energy) -> bool:
    """Whether the energy stays the same as all particles move together, which that of a lattice does not."""
    x = torch.arange(1.0, math.prod(energy.event_shape) + 1, dtype=torch.float64, device=device_of(energy, None)).sin()
    with torch.no_grad():
        here, there = energy(torch.stack([x, x + 1]).reshape(2, *energy.event_shape))
    return torch.allclose(here, there, 1e-6, 1e-6, equal_nan=True)


def device_of(energy: Energy, coordinates: Bijection | None) -> torch.device:
    parts = [*(coordinates.buffers() if coordinates is not None else ()), *energy.buffers(), *energy.parameters()]
    return parts[0].device if parts else torch.device("cpu")
