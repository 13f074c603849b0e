"""Reference dynamics for a batch of walkers: Langevin, and parallel tempering upon it."""

from __future__ import annotations

__all__ = ["Langevin", "ParallelTempering", "TemperingTrajectory", "Trajectory"]

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import units
from .checks import check_positive
from .energies import Energy
from .walkers import Crowd, Walkers


class Trajectory(NamedTuple):
    """The saved frames of a Langevin run.

    Attributes:
        positions: ``(frames, walkers, *event_shape)``.
        energies: Potential energies, ``(frames, walkers)``.
        kinetic_energies: ``(frames, walkers)``; ``kT / 2`` for each coordinate on average, but for a
            discretisation error that positions do not have in a harmonic well.
        restarts: How often each walker became non-finite and was restarted from its last good frame, ``(walkers,)``.
        final: State at the end, to go on from.
    """

    positions: Tensor
    energies: Tensor
    kinetic_energies: Tensor
    restarts: Tensor
    final: Walkers


class TemperingTrajectory(NamedTuple):
    """The saved frames of a parallel-tempering run, coldest temperature first.

    Attributes:
        positions: ``(frames, ladders, kept temperatures, *event_shape)``.
        energies: Potential energies, ``(frames, ladders, kept temperatures)``.
        swap_acceptance: Part of the proposed swaps that were accepted, for each pair of neighbouring temperatures,
            ``(temperatures - 1,)``. Below 0.1 the ladder needs more rungs there.
        restarts: How often each walker became non-finite and was restarted from its last good frame,
            ``(ladders, temperatures)``.
        final: State of all temperatures at the end, to go on from.
    """

    positions: Tensor
    energies: Tensor
    swap_acceptance: Tensor
    restarts: Tensor
    final: Walkers


class _Dynamics:
    """What both kinds of dynamics have in common."""

    def __init__(self, energy: Energy, time_step: float, friction: float, masses: float | Tensor) -> None:
        check_positive(self, "time_step", time_step)
        check_positive(self, "friction", friction)
        self.energy = energy
        self.time_step, self.friction = float(time_step), float(friction)
        self.masses = torch.as_tensor(masses, dtype=torch.float64)
        if self.masses.shape not in ((), energy.event_shape[:1]) or not bool((self.masses > 0).all()):
            raise ValueError(
                f"{type(self).__name__}: masses must be one positive number or {energy.event_shape[0]} of them, "
                f"got {masses}"
            )

    def _crowd(
        self,
        start: Tensor | Walkers,
        kT: float | list[float],
        generator: torch.Generator | None,
    ) -> Crowd:
        return Crowd(self.energy, start, kT, self.masses, self.time_step, self.friction, generator)


class Langevin(_Dynamics):
    """Langevin dynamics of many independent walkers at one temperature, by the BAOAB splitting.

    The distribution of positions is that of Boltzmann up to a discretisation error of second order in the time
    step, which vanishes for a harmonic well at any stable step (below ``2 / omega``).

    Units: for molecules nm, ps, dalton, kJ/mol and kelvin; for toys any in which ``mass length^2 / time^2`` is
    the unit of energy, with ``kT`` in place of the temperature.

    Args:
        energy: Any energy.
        time_step: Length of a step (ps); 0.001 is safe for a molecule without constraints.
        friction: Rate at which velocities are forgotten (1 / ps); 1 is usual.
        kT: Thermal energy.
        temperature: Temperature in kelvin; exactly one of ``kT`` and ``temperature``.
        masses: Masses (dalton): one number, or one for each particle (for each coordinate where the event shape
            is ``(dim,)``).

    Raises:
        ValueError: If a number is not positive, or not exactly one of ``kT`` and ``temperature`` is given.

    Reference:
        Leimkuhler, Matthews. Robust and efficient configurational molecular sampling via Langevin dynamics.
        Journal of Chemical Physics 138, 2013.

    Example:
        >>> import torch
        >>> from pyro_coupling.boltzmann.energies import DoubleWell
        >>> dynamics = Langevin(DoubleWell(), time_step=0.1, friction=1.0, kT=1.0)
        >>> start = torch.tensor([1.75, 0.0]).expand(16, 2)
        >>> dynamics.run(start, 1000, save_every=10).positions.shape
        torch.Size([100, 16, 2])
    """

    def __init__(
        self,
        energy: Energy,
        *,
        time_step: float,
        friction: float,
        kT: float | None = None,
        temperature: float | None = None,
        masses: float | Tensor = 1.0,
    ) -> None:
        super().__init__(energy, time_step, friction, masses)
        (self.kT,) = _thermal_energies(self, kT, temperature)

    @torch.no_grad()
    def run(
        self,
        start: Tensor | Walkers,
        num_steps: int,
        *,
        save_every: int = 1,
        generator: torch.Generator | None = None,
    ) -> Trajectory:
        """Moves all walkers, on the device and in the dtype of the start.

        Args:
            start: Positions ``(walkers, *event_shape)``, which get velocities at random; or where an earlier run ended.
            num_steps: Number of steps; a multiple of ``save_every``.
            save_every: Steps from one saved frame to the next.
            generator: Source of random numbers, on the device of the start.

        Returns:
            Frames, the start not among them.

        Raises:
            ValueError: If the start is of the wrong shape or has no finite energy and force.

        Warns:
            RuntimeWarning: If walkers had to be restarted.
        """
        num_frames = _num_rounds(self, num_steps, "save_every", save_every)
        crowd = self._crowd(start, self.kT, generator)
        positions = crowd.x.new_empty(num_frames, *crowd.x.shape)
        energies = crowd.x.new_empty(num_frames, *crowd.energy.shape)
        kinetic_energies = torch.empty_like(energies)
        for frame in range(num_frames):
            crowd.advance(save_every)
            positions[frame], energies[frame], kinetic_energies[frame] = crowd.x, crowd.energy, crowd.kinetic_energy()
        _warn_of_restarts(self, crowd.restarts)
        return Trajectory(positions, energies, kinetic_energies, crowd.restarts, Walkers(crowd.x, crowd.v))


class ParallelTempering(_Dynamics):
    """Many independent ladders of Langevin walkers, whose neighbours in temperature exchange configurations.

    Swaps are proposed in turn to the even and to the odd pairs of neighbours, and accepted by the rule of Metropolis;
    velocities are rescaled to the new temperature.

    Args:
        energy: Any energy.
        time_step: Length of a step (ps); it must suit the hottest walker.
        friction: Rate at which velocities are forgotten (1 / ps).
        kT: Thermal energies, rising, at least two.
        temperature: Temperatures in kelvin; exactly one of ``kT`` and ``temperature``. A geometric series is usual.
        masses: Masses (dalton): one number, or one for each particle or coordinate.
        swap_every: Steps from one proposal of swaps to the next.

    Raises:
        ValueError: If a number is not positive, the temperatures do not rise, or not exactly one of ``kT`` and
            ``temperature`` is given.

    Reference:
        Sugita, Okamoto. Replica-exchange molecular dynamics method for protein folding. Chemical Physics Letters 314,
        1999. Even and odd pairs in turn: Okabe, Kawata, Okamoto, Mikami. Replica-exchange Monte Carlo method for the
        isobaric-isothermal ensemble. Chemical Physics Letters 335, 2001.

    Example:
        >>> import torch
        >>> from pyro_coupling.boltzmann.energies import DoubleWell
        >>> dynamics = ParallelTempering(DoubleWell(), time_step=0.05, friction=1.0, kT=[1.0, 2.0, 4.0], swap_every=10)
        >>> run = dynamics.run(torch.tensor([1.75, 0.0]).expand(16, 2), 1000)
        >>> run.positions.shape, run.swap_acceptance.shape
        (torch.Size([100, 16, 3, 2]), torch.Size([2]))
    """

    def __init__(
        self,
        energy: Energy,
        *,
        time_step: float,
        friction: float,
        kT: Sequence[float] | None = None,
        temperature: Sequence[float] | None = None,
        masses: float | Tensor = 1.0,
        swap_every: int = 100,
    ) -> None:
        super().__init__(energy, time_step, friction, masses)
        self.kT = _thermal_energies(self, kT, temperature)
        if len(self.kT) < 2 or any(cold >= hot for cold, hot in zip(self.kT, self.kT[1:], strict=False)):
            raise ValueError(f"ParallelTempering: there must be two temperatures or more, rising, got kT={self.kT}")
        if swap_every < 1:
            raise ValueError(f"ParallelTempering: swap_every must be 1 or more, got {swap_every}")
        self.swap_every = swap_every

    @torch.no_grad()
    def run(
        self,
        start: Tensor | Walkers,
        num_steps: int,
        *,
        keep: int | None = None,
        generator: torch.Generator | None = None,
    ) -> TemperingTrajectory:
        """Moves all ladders, on the device and in the dtype of the start, and saves a frame after each round of swaps.

        Args:
            start: Positions ``(ladders, *event_shape)``, the same for all temperatures, or
                ``(ladders, temperatures, *event_shape)``; or where an earlier run ended.
            num_steps: Number of steps; a multiple of ``swap_every``.
            keep: Number of temperatures, from the coldest, whose frames are saved; all if not given.
            generator: Source of random numbers, on the device of the start.

        Returns:
            Frames, the start not among them.

        Raises:
            ValueError: If the start is of the wrong shape or has no finite energy and force, or keep is not
                between 1 and the number of temperatures.

        Warns:
            RuntimeWarning: If walkers had to be restarted.
        """
        num_frames = _num_rounds(self, num_steps, "swap_every", self.swap_every)
        if keep is not None and not 1 <= keep <= len(self.kT):
            raise ValueError(f"ParallelTempering: keep must be between 1 and {len(self.kT)}, got {keep}")
        crowd = self._crowd(self._on_ladders(start), self.kT, generator)
        positions = crowd.x.new_empty(num_frames, *crowd.x[:, :keep].shape)
        energies = crowd.x.new_empty(num_frames, *crowd.energy[:, :keep].shape)
        rates = []
        for frame in range(num_frames):
            crowd.advance(self.swap_every)
            rates.append(crowd.swap(first=frame % 2))
            positions[frame], energies[frame] = crowd.x[:, :keep], crowd.energy[:, :keep]
        _warn_of_restarts(self, crowd.restarts)
        acceptance = torch.stack(rates).nanmean(0)
        return TemperingTrajectory(positions, energies, acceptance, crowd.restarts, Walkers(crowd.x, crowd.v))

    def _on_ladders(self, start: Tensor | Walkers) -> Tensor | Walkers:
        positions = start.positions if isinstance(start, Walkers) else start
        batch = positions.shape[: positions.dim() - len(self.energy.event_shape)]
        if isinstance(start, Tensor) and len(batch) == 1:
            return start.unsqueeze(1).expand(-1, len(self.kT), *start.shape[1:])
        if len(batch) != 2 or batch[1] != len(self.kT):
            raise ValueError(
                f"ParallelTempering: start must have the batch shape (ladders,) or (ladders, {len(self.kT)}), "
                f"got {tuple(batch)}"
            )
        return start


def _thermal_energies(
    owner: object,
    kT: float | Sequence[float] | None,
    temperature: float | Sequence[float] | None,
) -> list[float]:
    if (kT is None) == (temperature is None):
        raise ValueError(f"{type(owner).__name__}: exactly one of kT and temperature must be given")
    values = np.atleast_1d(np.asarray(temperature if kT is None else kT, dtype=float)).tolist()
    if kT is None:
        return [units.kT(value) for value in values]
    for value in values:
        check_positive(owner, "kT", value)
    return values


def _num_rounds(owner: object, num_steps: int, name: str, every: int) -> int:
    if every < 1 or num_steps < every or num_steps % every:
        raise ValueError(f"{type(owner).__name__}: num_steps must be a multiple of {name}={every}, got {num_steps}")
    return num_steps // every


def _warn_of_restarts(owner: object, restarts: Tensor) -> None:
    times = int(restarts.sum())
    if times:
        warnings.warn(
            f"{type(owner).__name__}: {int((restarts > 0).sum())} of {restarts.numel()} walkers became non-finite and "
            f"were restarted from their last good frame, {times} times in all; a smaller time step may help",
            RuntimeWarning,
            stacklevel=4,
        )
