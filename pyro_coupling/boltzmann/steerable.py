"""`SteerableGenerator`: one flow for a range of temperatures, which draws at any of them with exact weights."""

from __future__ import annotations

__all__ = ["SteerableGenerator", "Steering", "TemperatureCurve"]

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..diagnostics import clip_largest, log_evidence, relative_ess, resample
from ..training import TrainingRecord, reverse_kl_backward
from ..training.progress import ProgressLine
from ..training.threads import suitable_threads
from ..transforms import Bijection
from . import units
from .checks import check_count, check_positive
from .choices import chosen_coordinates
from .energies import Energy
from .flows import default_flow
from .generator import BoltzmannGenerator, Samples
from .observables import reweighted
from .phases import CLIPPED, Phase, PhasedTrainer, drawn, log_density
from .target import BoltzmannTarget

_MAX_STEPS = 50_000
_OPENING = 0.5  # part of the budget after which the coldest temperature is reached
_RENEW_EVERY = 300  # steps for which samples serve
_GROUPS = 32  # temperatures at which samples are drawn
_REACH = 1.3  # ratio of the temperatures between which samples are reweighted, at most


class TemperatureCurve(NamedTuple):
    """Thermodynamics along temperatures; all that is a tensor is ``(temperatures,)``, in float64.

    Attributes:
        kT: Thermal energies.
        log_z: Log partition functions.
        log_z_se: Their standard errors.
        free_energy: ``-kT log Z``, in the unit of the energy.
        mean_energy: In the unit of the energy.
        mean_energy_se: Its standard error.
        ess: Relative effective sample sizes.
    """

    kT: Tensor
    log_z: Tensor
    log_z_se: Tensor
    free_energy: Tensor
    mean_energy: Tensor
    mean_energy_se: Tensor
    ess: Tensor


class SteerableGenerator:
    """A Boltzmann generator for all temperatures of a range: its flow depends on the temperature.

    Draws at any temperature of the range have exact weights, and errors of one temperature are not those of another, so
    that one training gives free energies and averages along the whole range.

    Args:
        energy: The energy: `energies`, `from_openmm`, or a subclass of `energies.Energy`.
        kT: The coldest and the hottest thermal energy, in the units of the energy.
        temperature: The coldest and the hottest temperature in kelvin, for energies in kJ/mol; exactly one of ``kT``
            and ``temperature``. The hot end should be where no barrier matters: states are found there, and kept on
            the way down.
        flow: Base noise ``(dim,)`` to coordinates, given a context of one number (``context_dim=1``), which runs from
            -1 to 1 with the logarithm of the temperature; a suitable one if not given.
        coordinates: Maps coordinates ``(dim,)`` to configurations, as for `BoltzmannGenerator`.
        num_particles: Samples in each training step.
        learning_rate: Peak step size.
        buffer_size: Samples that are weighted and resampled at a time.
        dtype: Of all numbers; torch's default if not given.
        device: Where to compute; that of the coordinates' or the energy's buffers if not given.
        seed: Makes training and draws repeatable; drawn from torch's global generator if not given.
        progress: Whether to show a progress line.

    Attributes:
        flow: The flow.
        kT: The coldest and the hottest thermal energy.
        record: What happened in the latest training; None if there was none.

    Raises:
        TypeError: If ``energy`` is no `Energy` or ``flow`` or ``coordinates`` no `Bijection`.
        ValueError: If not exactly one of ``kT`` and ``temperature`` is given, these are not two rising positive
            numbers, a number is out of range, or the shapes of energy, coordinates and flow do not fit.

    Reference:
        Dibak, Klein, Krämer, Noé. Temperature steerable flows and Boltzmann generators. Physical Review Research 4,
        2022. A flow with the temperature as its context: Schebek, Invernizzi, Noé, Rogal. Efficient mapping of phase
        diagrams with conditional Boltzmann generators. Machine Learning: Science and Technology 5, 2024.

    Example:
        >>> from pyro_coupling.boltzmann.energies import DoubleWell
        >>> generator = SteerableGenerator(DoubleWell(), kT=(1.0, 4.0), seed=0, progress=False).train(max_steps=5)
        >>> generator.sample(100, kT=2.5).positions.shape
        torch.Size([100, 2])
        >>> generator.curve(num_samples=200, kT=[1.0, 2.0, 4.0]).log_z.shape
        torch.Size([3])
    """

    def __init__(
        self,
        energy: Energy,
        *,
        kT: tuple[float, float] | None = None,
        temperature: tuple[float, float] | None = None,
        flow: Bijection | None = None,
        coordinates: Bijection | None = None,
        num_particles: int = 256,
        learning_rate: float = 2e-3,
        buffer_size: int = 20_000,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
        progress: bool = True,
    ) -> None:
        self.kT = _range(kT, temperature)
        if flow is not None and isinstance(flow, Bijection) and flow.context_shape != (1,):
            raise ValueError(
                f"SteerableGenerator: the flow must take a context of shape (1,), got {tuple(flow.context_shape)}"
            )
        self.seed = int(torch.randint(2**31, ())) if seed is None else seed
        if flow is None and isinstance(energy, Energy):
            coordinates = chosen_coordinates(energy, coordinates, self.kT[1])
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                flow = default_flow(energy, coordinates, self.kT[1], context_dim=1)
        # a generator of the hot end checks the arguments, and is what those of other temperatures are made from
        self._hot = BoltzmannGenerator(
            energy,
            kT=self.kT[1],
            flow=flow,
            coordinates=coordinates,
            num_particles=num_particles,
            learning_rate=learning_rate,
            hottest=1.0,
            buffer_size=buffer_size,
            dtype=dtype,
            device=device,
            seed=self.seed,
            progress=False,
        )
        self.energy, self.flow = energy, self._hot.flow
        self.num_particles, self.learning_rate, self.buffer_size = num_particles, learning_rate, buffer_size
        self.progress = progress
        self.record: TrainingRecord | None = None
        self.num_energies = 0

    def train(self, max_seconds: float | None = None, max_steps: int | None = None) -> SteerableGenerator:
        """Trains the flow at all temperatures at once, see `Steering`.

        Args:
            max_seconds: Longest time.
            max_steps: Largest number of steps; 50 000 if neither is given.

        Returns:
            The object itself.

        Raises:
            ValueError: If a number is out of range.
        """
        if max_seconds is not None:
            check_positive(self, "max_seconds", max_seconds)
        if max_steps is not None:
            check_count(self, "max_steps", max_steps)
        generator = self._hot._generator
        steering = Steering(self.flow, self._hot.target, self.kT, self.buffer_size, generator)
        steering.open = self.record is not None
        trainer = PhasedTrainer(
            self.flow,
            self._hot.target,
            [(steering, 1.0)],
            num_particles=self.num_particles,
            learning_rate=self.learning_rate,
            max_steps=max_steps or _MAX_STEPS,
            max_seconds=max_seconds or math.inf,
            generator=generator,
        )
        with suitable_threads(0), ProgressLine(self.progress, type(self).__name__) as line:
            self.record = trainer.run(line.update)
            line.finish(f"{self.record.num_steps} steps, {self.record.stopped_by}")
        self.num_energies += trainer.num_energies
        return self

    def at(self, *, kT: float | None = None, temperature: float | None = None) -> BoltzmannGenerator:
        """The generator of one temperature, with all that a `BoltzmannGenerator` can do.

        Args:
            kT: Thermal energy, within the range.
            temperature: Temperature in kelvin; exactly one of the two.

        Returns:
            A generator that shares this one's flow: training it would train the flow at that temperature alone, and
            spoil it at others.

        Raises:
            ValueError: If not exactly one of the two is given, or the temperature is out of the range.
        """
        (value,) = _thermal_energies(kT, temperature)
        cold, hot = self.kT
        if not cold * (1 - 1e-9) <= value <= hot * (1 + 1e-9):
            raise ValueError(f"SteerableGenerator: kT must be in the range [{cold:g}, {hot:g}], got {value:g}")
        target = self._hot.target
        context = _context(torch.tensor([value], dtype=target.dtype, device=target.device), self.kT)[0]
        generator = BoltzmannGenerator(
            self.energy,
            kT=value,
            flow=self.flow.condition(context),
            coordinates=target.coordinates,
            num_particles=self.num_particles,
            dtype=target.dtype,
            device=target.device,
            seed=self.seed,
            progress=self.progress,
        )
        generator._generator = self._hot._generator  # or all temperatures would draw the same noise
        return generator

    def sample(self, num_samples: int, *, kT: float | None = None, temperature: float | None = None) -> Samples:
        """Draws at one temperature, with weights that make them draws of the Boltzmann distribution.

        Args:
            num_samples: Number of draws.
            kT: Thermal energy, within the range.
            temperature: Temperature in kelvin; exactly one of the two.
        """
        return self.at(kT=kT, temperature=temperature).sample(num_samples)

    def curve(
        self,
        num_samples: int = 10_000,
        *,
        kT: Sequence[float] | None = None,
        temperature: Sequence[float] | None = None,
    ) -> TemperatureCurve:
        """Free energy and mean energy along temperatures, each from draws of its own.

        Args:
            num_samples: Draws at each temperature.
            kT: Thermal energies, within the range.
            temperature: Temperatures in kelvin; exactly one of the two.

        Returns:
            The curve; its points have independent errors.
        """
        rows = []
        for value in _thermal_energies(kT, temperature):
            _, energies, log_weights = self.sample(num_samples, kT=value)
            evidence = log_evidence(log_weights.double())
            mean = reweighted(energies, log_weights, generator=self._hot._generator)
            numbers = (value, *evidence, -value * evidence.value, mean.value, mean.standard_error, mean.ess)
            rows.append([float(number) for number in numbers])
        return TemperatureCurve(*torch.tensor(rows, dtype=torch.float64, device=self._hot.target.device).unbind(1))


class Steering(Phase):
    """The reverse divergence at random temperatures, and the forward one on samples reweighted from hotter ones.

    Temperatures begin at the hot end of the range, which opens towards the cold end over half of the training. In
    each batch they are spread evenly in their logarithm, one for each sample. Beside, the flow learns samples of its
    own by maximum likelihood: drawn at some temperature, weighted for one that is colder by a factor of up to 1.3, and
    resampled, which hands down the states of high temperatures. They count by the relative effective sample size.

    Args:
        flow: Base noise to coordinates, with a context of one number.
        target: The distribution at any temperature.
        limits: The coldest and the hottest thermal energy.
        buffer_size: Samples drawn at a time.
        generator: Source of randomness.

    Attributes:
        open: Whether the whole range is open from the first step on.
    """

    kept = ("num_energies", "calls", "samples", "kT", "worth")

    def __init__(
        self,
        flow: Bijection,
        target: BoltzmannTarget,
        limits: tuple[float, float],
        buffer_size: int,
        generator: torch.Generator,
    ) -> None:
        self.flow, self.target, self.limits, self.generator = flow, target, limits, generator
        self.group_size = math.ceil(buffer_size / _GROUPS)
        self.num_energies = self.calls = 0
        self.open = False
        self.samples = torch.empty(0, target.dim, dtype=target.dtype, device=target.device)
        self.kT = self.worth = self.samples[:, 0]

    def __call__(self, z: Tensor, done: float) -> Tensor:
        opened = 1.0 if self.open else min(1.0, done / _OPENING)
        if self.calls % _RENEW_EVERY == 0:
            self._renew(opened)
        self.calls += 1
        self.num_energies += len(z)
        for parameter in self.flow.parameters():
            parameter.grad = None
        kT = self._spread(len(z), opened)
        # while the range opens the flow is far from the target, where the path gradient is no less noisy
        estimator = "path" if opened == 1 else "total"
        log_weights = reverse_kl_backward(self._at(kT), _ManyTemperatures(self.target, kT), z, estimator)
        self._add_gradient(len(z))
        return log_weights

    def _add_gradient(self, n: int) -> None:
        chosen = torch.randint(len(self.samples), (n,), generator=self.generator, device=self.samples.device)
        log_q = log_density(self._at(self.kT[chosen]), self.samples[chosen])
        good = log_q.isfinite()
        (-(self.worth[chosen] * torch.where(good, log_q, 0.0)).sum() / good.sum().clamp(min=1)).backward()

    @torch.no_grad()
    def _renew(self, opened: float) -> None:
        """Draws groups of samples, each at a temperature of its own, and weights them for a colder one."""
        drawn_at = self._spread(_GROUPS, opened)
        reach = torch.rand(_GROUPS, dtype=drawn_at.dtype, device=drawn_at.device, generator=self.generator)
        weighted_for = (drawn_at / _REACH**reach).clamp(min=self.limits[0])
        groups = [self._group(*pair) for pair in zip(drawn_at, weighted_for, strict=True)]
        self.samples, self.kT, self.worth = (torch.cat(parts) for parts in zip(*groups, strict=True))

    def _group(self, drawn_at: Tensor, weighted_for: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, log_q = drawn(self._at(drawn_at), self.target, self.group_size, self.generator)
        log_weights = _ManyTemperatures(self.target, weighted_for).log_prob(u) - log_q
        log_weights = torch.where(log_weights.isfinite(), log_weights, -torch.inf)
        self.num_energies += len(u)
        worth = relative_ess(log_weights)
        if worth:
            u = u[resample(clip_largest(log_weights, CLIPPED), len(u), self.generator)]
        return u, weighted_for.expand(len(u)), torch.full_like(log_q, worth)

    def _spread(self, n: int, opened: float) -> Tensor:
        """Random temperatures from the hot end to where the range is open, one from each of n equal parts."""
        cold, hot = self.limits
        options: dict[str, Any] = {"dtype": self.target.dtype, "device": self.target.device}
        place = (torch.arange(n, **options) + torch.rand(n, generator=self.generator, **options)) / n
        return hot * (cold / hot) ** (opened * place)

    def _at(self, kT: Tensor) -> Bijection:
        return self.flow.condition(_context(kT, self.limits))


class _ManyTemperatures(BoltzmannTarget):
    """The target with a temperature for each point."""

    def __init__(self, target: BoltzmannTarget, kT: Tensor) -> None:
        super().__init__(target.energy, target.kT, target.coordinates, target.dtype, target.device)
        self.each = kT
        self.chunk_size = max(self.chunk_size, kT.numel())  # or points would part from their temperatures

    def log_prob(self, x: Tensor) -> Tensor:
        energy, log_det = self.energy_and_volume(x)
        return log_det - energy / self.each


def _context(kT: Tensor, limits: tuple[float, float]) -> Tensor:
    """From -1 at the cold end to 1 at the hot end, ``(n,)`` -> ``(n, 1)``."""
    cold, hot = limits
    return (2 * (kT / cold).log() / math.log(hot / cold) - 1).unsqueeze(-1)


def _range(kT: tuple[float, float] | None, temperature: tuple[float, float] | None) -> tuple[float, float]:
    values = _thermal_energies(kT, temperature)
    if len(values) != 2 or not values[0] < values[1]:
        raise ValueError(f"SteerableGenerator: give the coldest and the hottest temperature, got {kT or temperature}")
    return values[0], values[1]


def _thermal_energies(kT: float | Sequence[float] | None, temperature: float | Sequence[float] | None) -> list[float]:
    if (kT is None) == (temperature is None):
        raise ValueError(
            f"SteerableGenerator: give exactly one of kT and temperature, got kT={kT}, temperature={temperature}"
        )
    given = torch.as_tensor(kT if temperature is None else temperature, dtype=torch.float64).reshape(-1).tolist()
    for value in given:
        check_positive("SteerableGenerator", "kT" if temperature is None else "temperature", value)
    return given if temperature is None else [units.kT(value) for value in given]
