"""`BoltzmannGenerator`: a flow trained on an energy, which draws configurations with their weights."""

from __future__ import annotations

__all__ = ["BoltzmannGenerator", "Samples"]

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..diagnostics import clip_largest, log_evidence, relative_ess
from ..training.progress import ProgressLine
from ..training.threads import suitable_threads
from ..transforms import Bijection
from . import units
from .checks import check_positive
from .coordinates import CenterFree
from .energies import Energy
from .flows import default_flow
from .phases import CLIPPED, ByEnergy, ByExample, Cooling, Phase, PhasedTrainer, Replay, Rung, drawn, log_density
from .target import BoltzmannTarget

if TYPE_CHECKING:
    from .free_energy import FreeEnergyDifference

_DRAWS = 10_000
_MAX_STEPS = 50_000
_PART = 4096  # samples that pass the flow at once
_HOT, _COOLING = 0.1, 0.3  # parts of the budget; the rest is spent at the temperature that is asked for


class Samples(NamedTuple):
    """Draws of a generator.

    Attributes:
        positions: Configurations, ``(n, *event_shape)``.
        energies: Their energies, ``(n,)``.
        log_weights: ``-energy / kT`` plus the volume element minus the flow's log density, ``(n,)``; ``-inf`` where
            the energy is not finite. The logarithm of the mean weight is the log partition function.
    """

    positions: Tensor
    energies: Tensor
    log_weights: Tensor


class BoltzmannGenerator:
    """Learns the Boltzmann distribution of an energy, and draws independent configurations with exact weights.

    Args:
        energy: The energy: `energies`, `from_openmm`, or a subclass of `energies.Energy`.
        kT: Thermal energy in the units of the energy.
        temperature: Temperature in kelvin, for energies in kJ/mol; exactly one of ``kT`` and ``temperature``.
        flow: Base noise ``(dim,)`` to coordinates; a suitable one if not given.
        coordinates: Maps coordinates ``(dim,)`` to configurations. If not given: for vectors none, for particles
            Cartesian coordinates without the centre of mass (`CenterFree`). Molecules need `InternalCoordinates`.
        num_particles: Samples in each training step.
        learning_rate: Peak step size.
        hottest: Temperature at which training starts, as a multiple of the one asked for. 1 leaves annealing out:
            right where there is one state, which that finds faster.
        num_rungs: Number of steps down from there.
        buffer_size: Samples that are weighted and resampled at each rung.
        dtype: Of all numbers; torch's default if not given.
        device: Where to compute; that of the coordinates' or the energy's buffers if not given.
        seed: Makes training and draws repeatable; drawn from torch's global generator if not given.
        progress: Whether to show a progress line.

    Attributes:
        flow: The flow.
        target: The distribution of its coordinates.
        rungs: The steps down the ladder of temperatures, with the effective sample size of each.

    Raises:
        TypeError: If ``energy`` is no `Energy` or ``flow`` or ``coordinates`` no `Bijection`.
        ValueError: If not exactly one of ``kT`` and ``temperature`` is given, a number is out of range, or the
            shapes of energy, coordinates and flow do not fit.

    Reference:
        Noe, Olsson, Koehler, Wu. Boltzmann generators. Science 365, 2019.

    Example:
        >>> from pyro_coupling.boltzmann.energies import DoubleWell
        >>> generator = BoltzmannGenerator(DoubleWell(), kT=1.0, seed=0, progress=False).train(max_steps=30)
        >>> generator.sample(100).positions.shape
        torch.Size([100, 2])
    """

    def __init__(
        self,
        energy: Energy,
        *,
        kT: float | None = None,
        temperature: float | None = None,
        flow: Bijection | None = None,
        coordinates: Bijection | None = None,
        num_particles: int = 256,
        learning_rate: float = 2e-3,
        hottest: float = 4.0,
        num_rungs: int = 8,
        buffer_size: int = 20_000,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
        progress: bool = True,
    ) -> None:
        if not isinstance(energy, Energy):
            raise TypeError(f"BoltzmannGenerator: energy must be an Energy, got {type(energy).__name__}")
        for name, part in (("flow", flow), ("coordinates", coordinates)):
            if part is not None and not isinstance(part, Bijection):
                raise TypeError(f"BoltzmannGenerator: {name} must be a Bijection, got {type(part).__name__}")
        if (kT is None) == (temperature is None):
            raise ValueError(
                f"BoltzmannGenerator: give exactly one of kT and temperature, got kT={kT}, temperature={temperature}"
            )
        for name, number in (("num_particles", num_particles), ("learning_rate", learning_rate),
                             ("num_rungs", num_rungs), ("buffer_size", buffer_size)):  # fmt: skip
            check_positive(self, name, number)
        if not hottest >= 1:
            raise ValueError(f"BoltzmannGenerator: hottest must be 1 or more, got {hottest}")
        self.kT = float(kT) if temperature is None else units.kT(temperature)  # type: ignore[arg-type]
        check_positive(self, "kT", self.kT)
        self.energy = energy
        self.num_particles, self.learning_rate = num_particles, learning_rate
        self.hottest, self.num_rungs, self.buffer_size = hottest, num_rungs, buffer_size
        self.progress = progress
        self.seed = int(torch.randint(2**31, ())) if seed is None else seed
        dtype = dtype or torch.get_default_dtype()
        device = torch.device(device) if device is not None else _device(energy, coordinates)
        coordinates = _coordinates(energy, coordinates)
        self.target = BoltzmannTarget(energy, self.kT, coordinates, dtype, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            flow = default_flow(energy, coordinates, self.kT * hottest) if flow is None else flow
        self.flow = flow.to(device, dtype)
        if self.flow.event_shape != (self.target.dim,) or self.flow.output_shape != (self.target.dim,):
            raise ValueError(
                f"BoltzmannGenerator: the flow must map ({self.target.dim},) to ({self.target.dim},), but maps "
                f"{tuple(self.flow.event_shape)} to {tuple(self.flow.output_shape)}"
            )
        self._generator = torch.Generator(device=device).manual_seed(self.seed)
        self.rungs: list[Rung] = []
        self._trainer: PhasedTrainer | None = None
        self._num_energies = 0
        self._seconds = 0.0

    def train(
        self,
        max_seconds: float | None = None,
        max_steps: int | None = None,
        data: Tensor | None = None,
        *,
        by_example: float = 0.6,
    ) -> BoltzmannGenerator:
        """Trains the flow; called again, it goes on at the temperature asked for.

        By energy alone the flow first learns the distribution at a high temperature, is then led down to the one
        asked for, and is refined there; with data it learns these first.

        Args:
            max_seconds: Longest time.
            max_steps: Largest number of steps; 50 000 if neither is given.
            data: Configurations of the distribution, such as frames of a trajectory, ``(n, *event_shape)``.
            by_example: Part of the budget that goes into the data alone; the rest goes into data and energy together.
                With 1 the energy is asked for once at each configuration, and never trained by.

        Returns:
            The object itself.

        Raises:
            ValueError: If a number is out of range, or the data do not fit or hold NaN.
        """
        for name, number in (("max_seconds", max_seconds), ("max_steps", max_steps)):
            if number is not None:
                check_positive(self, name, number)
        if not 0 < by_example <= 1:
            raise ValueError(f"BoltzmannGenerator: by_example must be in (0, 1], got {by_example}")
        phases, companion = self._cooling() if data is None else self._learning(data, by_example)
        trainer = PhasedTrainer(
            self.flow,
            self.target,
            phases,
            companion,
            num_particles=self.num_particles,
            learning_rate=self.learning_rate,
            max_steps=max_steps or _MAX_STEPS,
            max_seconds=max_seconds or math.inf,
            generator=self._generator,
        )
        self._trainer = trainer
        began = time.monotonic()
        with suitable_threads(0), ProgressLine(self.progress, type(self).__name__) as line:
            trainer.run(line.update)
            line.finish(f"{trainer.record.num_steps} steps, {trainer.record.stopped_by}")
        self._seconds += time.monotonic() - began
        self._num_energies += trainer.num_energies
        return self

    @torch.no_grad()
    def sample(self, num_samples: int) -> Samples:
        """Draws of the flow, with weights that make them draws of the Boltzmann distribution.

        Args:
            num_samples: Number of draws.

        Returns:
            Positions, energies and log weights.
        """
        check_positive(self, "num_samples", num_samples)
        parts = [self._draw(min(_PART, num_samples - done)) for done in range(0, num_samples, _PART)]
        return Samples(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def diagnostics(self, num_samples: int = _DRAWS) -> dict[str, Any]:
        """Figures of the fit, from fresh draws.

        Args:
            num_samples: Number of draws.

        Returns:
            ``ess`` (relative, of the raw weights), ``ess_clipped`` (the largest 1e-4 of the weights cut to the least
            of them), ``elbo`` (mean log weight), ``log_z`` with ``log_z_se`` (nats), ``num_energies`` (evaluations in
            training), ``seconds``, ``num_steps``, ``skipped_samples``. A high ``ess`` says nothing of states that
            the flow never reaches: hold ``log_z`` and populations against what else is known.
        """
        log_weights = self.sample(num_samples).log_weights.double()
        evidence = log_evidence(log_weights)
        finite = log_weights[log_weights.isfinite()]
        record = None if self._trainer is None else self._trainer.record
        return {
            "ess": relative_ess(log_weights),
            "ess_clipped": relative_ess(clip_largest(log_weights, CLIPPED)),
            "elbo": finite.mean().item() if len(finite) else -math.inf,
            "log_z": evidence.value,
            "log_z_se": evidence.standard_error,
            "num_energies": self._num_energies,
            "seconds": self._seconds,
            "num_steps": 0 if record is None else record.num_steps,
            "skipped_samples": 0 if record is None else record.skipped_samples,
        }

    def free_energy_difference(self, other: BoltzmannGenerator, num_samples: int = _DRAWS) -> FreeEnergyDifference:
        """Free energy of another generator's distribution less that of this one, see `free_energy_difference`."""
        from .free_energy import free_energy_difference

        return free_energy_difference(self, other, num_samples)

    def log_prob(self, positions: Tensor) -> Tensor:
        """Log density of the flow at configurations, in the measure of its coordinates.

        Args:
            positions: ``(n, *event_shape)``.

        Returns:
            ``(n,)``; ``-inf`` where the flow can't reach.
        """
        log_q = log_density(self.flow, self.target.coordinates_of(positions.to(self.target.dtype)))
        return torch.where(log_q.isnan(), -torch.inf, log_q)

    def _draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        target = self.target
        u, log_q = drawn(self.flow, target, n, self._generator)
        positions, volume = target.configurations(u)
        energy = target.energy(positions)
        log_weights = volume - energy / target.kT - log_q
        return positions, energy, torch.where(log_weights.isfinite(), log_weights, -torch.inf)

    def _cooling(self) -> tuple[list[tuple[Phase, float]], Replay | None]:
        """The phases before the last, and what goes along with the last."""
        if self.hottest == 1:
            return [], None
        ratio = self.hottest ** (1 / self.num_rungs)
        ladder = [self.kT * ratio**level for level in reversed(range(self.num_rungs))]
        replay = Replay(self.flow, self.target, self.buffer_size, self._generator)
        if self._trainer is not None:
            return [], replay
        hot, cooling = ByEnergy(self.flow, self.target.at(self.kT * self.hottest)), Cooling(replay, ladder)
        self.rungs = cooling.rungs
        return [(hot, _HOT), (cooling, _COOLING)], replay

    def _learning(self, data: Tensor, share: float) -> tuple[list[tuple[Phase, float]], ByExample]:
        example = self._example(data)
        return [(example, share)], example

    def _example(self, data: Tensor) -> ByExample:
        if data.dim() != len(self.energy.event_shape) + 1 or data.shape[1:] != self.energy.event_shape:
            raise ValueError(
                f"BoltzmannGenerator: data must be configurations (n, {', '.join(map(str, self.energy.event_shape))}), "
                f"got shape {tuple(data.shape)}"
            )
        u = self.target.coordinates_of(data.to(self.target.device, self.target.dtype))
        if not bool(u.isfinite().all()):
            bad = int((~u.isfinite().all(-1)).sum())
            raise ValueError(f"BoltzmannGenerator: data: {bad} of {len(u)} configurations are not finite")
        with torch.no_grad():
            log_p = torch.cat([self.target.log_prob(part) for part in u.split(self.target.chunk_size)])
        return ByExample(self.flow, u, log_p, self._generator)


def _coordinates(energy: Energy, coordinates: Bijection | None) -> Bijection | None:
    shape = energy.event_shape
    if coordinates is None:
        return CenterFree(*shape) if len(shape) == 2 else None
    if coordinates.output_shape != shape:
        raise ValueError(
            f"BoltzmannGenerator: coordinates give configurations of shape {tuple(coordinates.output_shape)}, but the "
            f"energy takes {tuple(shape)}"
        )
    return coordinates


def _device(energy: Energy, coordinates: Bijection | None) -> torch.device:
    parts = [*(coordinates.buffers() if coordinates is not None else ()), *energy.buffers(), *energy.parameters()]
    return parts[0].device if parts else torch.device("cpu")
