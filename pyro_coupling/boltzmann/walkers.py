"""Walkers in motion: steps of Langevin dynamics, restarts of who got lost, swaps between temperatures."""

from __future__ import annotations

__all__ = ["Crowd", "Walkers"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .energies import Energy


class Walkers(NamedTuple):
    """Where walkers are and how fast they move; a run can start from it.

    Attributes:
        positions: ``(*batch, *event_shape)``.
        velocities: Like positions, in their unit per unit of time.
    """

    positions: Tensor
    velocities: Tensor


class Crowd:
    """Many walkers, each with its own thermal energy, moved all at once.

    Args:
        energy: The potential.
        start: Positions ``(*batch, *event_shape)``, which get velocities at random; or positions and velocities.
        kT: One thermal energy, or as many as the last batch dimension has entries.
        masses: One mass, or one for each entry of the first event dimension.
        time_step: Length of a step.
        friction: Rate at which velocities are forgotten.
        generator: Source of random numbers.

    Attributes:
        x: Positions, ``(*batch, *event_shape)``.
        v: Velocities, like positions.
        energy: Potential energies, ``(*batch,)``.
        force: Like positions.
        restarts: How often each walker was restarted, ``(*batch,)``.

    Raises:
        ValueError: If the start has no finite energy and force, or velocities of another shape.

    Example:
        >>> import torch
        >>> from pyro_coupling.boltzmann.energies import DoubleWell
        >>> crowd = Crowd(DoubleWell(), torch.zeros(5, 2), 1.0, torch.tensor(1.0), time_step=0.1, friction=1.0)
        >>> crowd.advance(100)
        >>> crowd.energy.shape
        torch.Size([5])
    """

    def __init__(
        self,
        energy: Energy,
        start: Tensor | Walkers,
        kT: float | list[float],
        masses: Tensor,
        time_step: float,
        friction: float,
        generator: torch.Generator | None = None,
    ) -> None:
        self.potential, self.generator = energy, generator
        self._event_dim = len(energy.event_shape)
        self.x = (start.positions if isinstance(start, Walkers) else start).detach().clone()
        self.energy, self.force = energy.energy_and_force(self.x)
        self._check_start(start)
        self._good = self.x.clone()
        self.restarts = torch.zeros(self.energy.shape, dtype=torch.int64, device=self.x.device)

        self._kT = torch.tensor(kT, dtype=self.x.dtype, device=self.x.device)
        self._masses = masses.to(self.x).reshape(masses.shape + (1,) * (self._event_dim - 1))
        self._speed = (self._over_event(self._kT) / self._masses).sqrt()
        self._half_step = time_step / 2
        self._half_kick = self._half_step / self._masses
        self._memory = math.exp(-friction * time_step)
        self._noise = math.sqrt(-math.expm1(-2 * friction * time_step)) * self._speed
        self.v = start.velocities.clone() if isinstance(start, Walkers) else self._thermal_velocities()

    def advance(self, num_steps: int) -> None:
        """Makes steps of BAOAB (kick, drift, thermostat, drift, kick), then restarts who got lost on the way.

        Reference:
            Leimkuhler, Matthews. Robust and efficient configurational molecular sampling via Langevin dynamics.
            Journal of Chemical Physics 138, 2013.
        """
        noise = torch.empty_like(self.x)
        for _ in range(num_steps):
            self.v.addcmul_(self.force, self._half_kick)
            self.x.add_(self.v, alpha=self._half_step)
            self.v.mul_(self._memory).addcmul_(noise.normal_(generator=self.generator), self._noise)
            self.x.add_(self.v, alpha=self._half_step)
            self.energy, self.force = self.potential.energy_and_force(self.x)
            self.v.addcmul_(self.force, self._half_kick)
        self._restart_lost()
        self._good.copy_(self.x)

    def swap(self, first: int) -> Tensor:
        """Exchanges configurations between the temperatures ``first`` and ``first + 1``, the next two, and so on.

        Temperatures are the last batch dimension of two. Velocities are rescaled.

        Returns:
            The part that was accepted, ``(temperatures - 1,)``, NaN for pairs that were not proposed.
        """
        beta = 1 / self._kT
        gain = (beta[:-1] - beta[1:]) * (self.energy[:, :-1] - self.energy[:, 1:])
        uniform = torch.rand(gain.shape, dtype=gain.dtype, device=gain.device, generator=self.generator)
        proposed = torch.arange(len(beta) - 1, device=gain.device) % 2 == first
        accepted = (uniform.log() < gain) & proposed
        order = torch.arange(len(beta), device=gain.device).repeat(len(gain), 1)
        order[:, :-1] += accepted.long()
        order[:, 1:] -= accepted.long()
        ladder = torch.arange(len(gain), device=gain.device).unsqueeze(1)
        self.x, self.energy, self.force = (t[ladder, order] for t in (self.x, self.energy, self.force))
        self.v = self.v[ladder, order] * self._over_event((self._kT / self._kT[order]).sqrt())
        self._good.copy_(self.x)
        return torch.where(proposed, accepted.to(gain).mean(0), torch.nan)

    def kinetic_energy(self) -> Tensor:
        """Kinetic energies, ``(*batch,)``."""
        return 0.5 * (self._masses * self.v.square()).flatten(self.energy.dim()).sum(-1)

    def _restart_lost(self) -> None:
        lost = ~(self._finite() & self.v.isfinite().flatten(self.energy.dim()).all(-1))
        if not bool(lost.any()):
            return
        self.restarts += lost
        self.x = torch.where(self._over_event(lost), self._good, self.x)
        self.v = torch.where(self._over_event(lost), self._thermal_velocities(), self.v)
        self.energy, self.force = self.potential.energy_and_force(self.x)

    def _check_start(self, start: Tensor | Walkers) -> None:
        if isinstance(start, Walkers) and start.velocities.shape != self.x.shape:
            raise ValueError(
                f"start must have velocities like the positions {tuple(self.x.shape)}, "
                f"got {tuple(start.velocities.shape)}"
            )
        finite = self._finite()
        if not bool(finite.all()):
            raise ValueError(
                f"start must have finite positions, energies and forces, but {int((~finite).sum())} of "
                f"{finite.numel()} walkers have not"
            )

    def _finite(self) -> Tensor:
        there = self.x.isfinite() & self.force.isfinite()
        return there.flatten(self.energy.dim()).all(-1) & self.energy.isfinite()

    def _thermal_velocities(self) -> Tensor:
        return self._speed * torch.empty_like(self.x).normal_(generator=self.generator)

    def _over_event(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape + (1,) * self._event_dim)
