"""`BoltzmannGenerator`: a flow trained on an energy, which draws configurations with their weights."""

from __future__ import annotations

__all__ = ["BoltzmannGenerator", "Samples"]

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from torch import Tensor

from ..diagnostics import clip_largest, log_evidence, relative_ess
from ..training import TrainingRecord, TrainingState
from ..training.progress import ProgressLine
from ..training.threads import suitable_threads
from ..transforms import Bijection
from . import units
from .checks import check_count, check_positive
from .choices import chosen_coordinates, device_of
from .coordinates import Cluster
from .energies import Energy
from .fab import FlowBootstrap
from .flows import default_flow
from .mass_transport import MassTransport
from .phases import CLIPPED, ByEnergy, ByExample, Cooling, Phase, PhasedTrainer, Replay, Rung, drawn, log_density
from .saving import TrainingSession, load_generator, save_generator
from .target import BoltzmannTarget

if TYPE_CHECKING:
    from .free_energy import FreeEnergyDifference
    from .pyro_site import FlowGuide

_DRAWS = 10_000
_MAX_STEPS = 50_000
_PART = 4096  # samples that pass the flow at once
_RUNGS = {"annealing": 8, "fab": 4, "cmt": 32}  # of each method
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
        coordinates: Maps coordinates ``(dim,)`` to configurations. If not given: for vectors none; for a `PairEnergy`
            shapes of identical particles (`PlanarCluster`, `SpatialCluster`); for other particles Cartesian coordinates
            without the centre of mass (`CenterFree`), or with it where the energy feels it, as that of a lattice does.
            Molecules need `InternalCoordinates`.
        num_particles: Samples in each training step.
        learning_rate: Peak step size.
        hottest: Temperature at which training starts, as a multiple of the one asked for. 1 leaves annealing out:
            right where there is one state, which that finds faster.
            It matters to the method ``"annealing"`` alone, and to the base of the default flow of a molecule.
        num_rungs: Number of steps down from there: 8 if not given. Of other methods, the number of distributions that
            annealed importance sampling passes on its way from flow to target (``"fab"``, 4), or of steps of the
            transport (``"cmt"``, 32).
        buffer_size: Samples that are weighted and resampled at each rung, or that are kept for replay (``"fab"``).
        method: How to train by energy: ``"annealing"``, from hot to cold; ``"fab"``, flow annealed importance sampling
            bootstrap (`fab.FlowBootstrap`); ``"cmt"``, constrained mass transport (`mass_transport.MassTransport`).
        max_divergence: Bound on the KL divergence of each step of ``"cmt"``, nats.
        max_entropy_loss: Bound on the entropy that each step of ``"cmt"`` may lose, nats.
        dtype: Of all numbers; torch's default if not given.
        device: Where to compute; that of the coordinates' or the energy's buffers if not given.
        seed: Makes training and draws repeatable; drawn from torch's global generator if not given.
        progress: Whether to show a progress line.

    Attributes:
        flow: The flow.
        target: The distribution of its coordinates.
        rungs: The steps down the ladder of temperatures, with the effective sample size of each; for ``"cmt"`` those of
            the transport, with the temperature at which the energy enters.
        record: What happened in the latest training; None if there was none.

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

    #: arguments of training
    SETTINGS = (
        "num_particles", "learning_rate", "hottest", "num_rungs", "buffer_size",
        "method", "max_divergence", "max_entropy_loss",
    )  # fmt: skip

    def __init__(
        self,
        energy: Energy,
        *,
        kT: float | None = None,
        temperature: float | None = None,
        flow: Bijection | None = None,
        coordinates: Bijection | None = None,
        num_particles: int = 256,
        learning_rate: float = 1e-3,
        hottest: float = 4.0,
        num_rungs: int | None = None,
        buffer_size: int = 20_000,
        method: str = "annealing",
        max_divergence: float = 0.3,
        max_entropy_loss: float = 1.0,
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
        if method not in _RUNGS:
            raise ValueError(f"BoltzmannGenerator: method must be one of {', '.join(_RUNGS)}, got {method!r}")
        num_rungs = _RUNGS[method] if num_rungs is None else num_rungs
        for name, count in (("num_particles", num_particles), ("num_rungs", num_rungs), ("buffer_size", buffer_size)):
            check_count(self, name, count)
        for name, number in (("learning_rate", learning_rate), ("max_divergence", max_divergence),
                             ("max_entropy_loss", max_entropy_loss)):  # fmt: skip
            check_positive(self, name, number)
        if not hottest >= 1:
            raise ValueError(f"BoltzmannGenerator: hottest must be 1 or more, got {hottest}")
        self.kT = float(kT) if temperature is None else units.kT(temperature)  # type: ignore[arg-type]
        check_positive(self, "kT", self.kT)
        self.energy = energy
        self.num_particles, self.learning_rate = num_particles, learning_rate
        self.hottest, self.num_rungs, self.buffer_size = hottest, num_rungs, buffer_size
        self.method, self.max_divergence, self.max_entropy_loss = method, max_divergence, max_entropy_loss
        self.progress = progress
        self.seed = int(torch.randint(2**31, ())) if seed is None else seed
        self._given_seed = seed
        dtype = dtype or torch.get_default_dtype()
        device = torch.device(device) if device is not None else device_of(energy, coordinates)
        coordinates = chosen_coordinates(energy, coordinates, self.kT * hottest)
        if coordinates is not None:
            coordinates.to(device)
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
        self.record: TrainingRecord | None = None
        self._num_energies = 0
        self._seconds = 0.0

    def train(
        self,
        max_seconds: float | None = None,
        max_steps: int | None = None,
        data: Tensor | None = None,
        *,
        by_example: float = 0.6,
        checkpoint: str | os.PathLike[str] | None = None,
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
            checkpoint: File in which the training is kept; if it is there, the training goes on from it, and the
                limits count what was done before. A file for each call of a generator that is trained twice.

        Returns:
            The object itself.

        Raises:
            ValueError: If a number is out of range, the data do not fit or hold NaN, or the checkpoint is of another
                training.
        """
        if max_seconds is not None:
            check_positive(self, "max_seconds", max_seconds)
        if max_steps is not None:
            check_count(self, "max_steps", max_steps)
        if not 0 < by_example <= 1:
            raise ValueError(f"BoltzmannGenerator: by_example must be in (0, 1], got {by_example}")
        session = TrainingSession(checkpoint, self, data, by_example)
        phases, companion = self._by_energy() if data is None else self._learning(data, by_example)
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
        with (
            torch.random.fork_rng(devices=[]),
            suitable_threads(0),
            ProgressLine(self.progress, type(self).__name__) as line,
        ):
            torch.default_generator.manual_seed(self.seed)  # for dropout
            session.go_on(trainer)

            def watch(state: TrainingState) -> None:
                line.update(state)
                session.save_if_due(trainer)

            self.record = trainer.run(watch)
            line.finish(f"{self.record.num_steps} steps, {self.record.stopped_by}")
            session.save(trainer)
        self._seconds += self.record.seconds
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
        check_count(self, "num_samples", num_samples)
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
        record = self.record or TrainingRecord()
        return {
            "ess": relative_ess(log_weights),
            "ess_clipped": relative_ess(clip_largest(log_weights, CLIPPED)),
            "elbo": finite.mean().item() if len(finite) else -math.inf,
            "log_z": evidence.value,
            "log_z_se": evidence.standard_error,
            "num_energies": self._num_energies,
            "seconds": self._seconds,
            "num_steps": record.num_steps,
            "skipped_samples": record.skipped_samples,
        }

    def free_energy_difference(self, other: BoltzmannGenerator, num_samples: int = _DRAWS) -> FreeEnergyDifference:
        """Free energy of another generator's distribution less that of this one, see `free_energy_difference`."""
        from .free_energy import free_energy_difference

        return free_energy_difference(self, other, num_samples)

    @torch.no_grad()
    def eubo(self, data: Tensor) -> float:
        """Evidence upper bound: the mean log weight of configurations that are known to be the target's.

        ``elbo <= log Z <= eubo``, each off by a KL divergence: the lower bound by that of the flow from the target,
        which does not see what the flow leaves out, the upper by that of the target from the flow, which does.

        Args:
            data: Configurations of the distribution, such as thinned frames of a trajectory, ``(n, *event_shape)``.

        Returns:
            Mean of ``-energy / kT`` plus the volume element minus the flow's log density, in nats; infinite where the
            flow can't reach a configuration.

        Raises:
            ValueError: If the data do not fit or hold NaN.

        Reference:
            Blessing, Jia, Esslinger, Vargas, Neumann. Beyond ELBOs: a large-scale evaluation of variational methods
            for sampling. ICML 2024.
        """
        u, log_p = self._known(data)
        log_q = torch.cat([log_density(self.flow, part) for part in u.split(_PART)])
        return torch.where(log_q.isnan(), torch.inf, log_p - log_q).double().mean().item()

    def log_prob(self, positions: Tensor) -> Tensor:
        """Log density of the flow at configurations, in the measure of its coordinates.

        Args:
            positions: ``(n, *event_shape)``.

        Returns:
            ``(n,)``; ``-inf`` where the flow can't reach.
        """
        log_q = log_density(self.flow, self.target.coordinates_of(positions.to(self.target.dtype)))
        return torch.where(log_q.isnan(), -torch.inf, log_q)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes flow, coordinates and settings to one safetensors file; not the energy.

        Args:
            path: Where to; an existing file is replaced in one stroke.

        Warns:
            UserWarning: If flow or coordinates are of a class that is not registered (`pyro_coupling.register`), so
                that they have to be given to `load` again.
        """
        save_generator(self, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        energy: Energy,
        *,
        flow: Bijection | None = None,
        coordinates: Bijection | None = None,
        device: torch.device | str | None = None,
        progress: bool = True,
    ) -> BoltzmannGenerator:
        """Reads a generator. Nothing in the file is executed, so it may come from anywhere.

        Args:
            path: A file written by `save`.
            energy: The energy it was trained on; log densities at a few points tell one from another.
            flow: A fresh flow of the same architecture, where the file does not describe it.
            coordinates: The coordinates, likewise.
            device: Where to compute, as for a new generator.
            progress: Whether to show a progress line.

        Returns:
            The generator, with the random state it had.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no such file, or of another energy or other coordinates.
        """
        return load_generator(cls, path, energy, flow, coordinates, device, progress)

    def model(self, site: str) -> Callable[..., Tensor]:
        """The Boltzmann distribution as a Pyro model of one site: see `pyro_site.BoltzmannDistribution`.

        Args:
            site: Name of the site.

        Returns:
            Draws the site and returns the configuration, ``(*plates, *event_shape)``; to be called in a larger model,
            or to be one by itself. It takes whatever arguments the guide has.
        """
        from .pyro_site import BoltzmannDistribution  # which comes after this module

        return lambda *args, **kwargs: pyro.sample(site, BoltzmannDistribution(self))

    def guide(self, site: str) -> FlowGuide:
        """The flow as the guide of the site that `model` makes.

        ``Importance`` then has the log weights that `sample` gives; ``SVI`` trains the flow, which is the generator's
        own, for instance towards the posterior given a measurement.

        Args:
            site: Name of the site.

        Example:
            >>> import pyro
            >>> from pyro_coupling.boltzmann import energies
            >>> generator = BoltzmannGenerator(energies.DoubleWell(), kT=1.0, seed=0, progress=False)
            >>> def measured(distance):
            ...     x = generator.model("x")()
            ...     pyro.sample("distance", pyro.distributions.Normal(x.norm(dim=-1), 0.1), obs=distance)
            >>> optimiser, loss = pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO()
            >>> svi = pyro.infer.SVI(measured, generator.guide("x"), optimiser, loss)
            >>> isinstance(svi.step(torch.tensor(1.5)), float)
            True
        """
        from .pyro_site import FlowGuide

        return FlowGuide(self, site)

    def _draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        target = self.target
        u, log_q = drawn(self.flow, target, n, self._generator)
        positions, volume = target.configurations(u)
        energy = target.energy(positions)
        log_weights = volume - energy / target.kT - log_q
        return positions, energy, torch.where(log_weights.isfinite(), log_weights, -torch.inf)

    def _by_energy(self) -> tuple[list[tuple[Phase, float]], Replay | None]:
        """The phases before the last, and what goes along with the last; there is no last but in annealing."""
        if self.method == "annealing":
            return self._cooling()
        settings = (self.flow, self.target, self.num_rungs, self.buffer_size, self._generator)
        if self.method == "fab":
            return [(FlowBootstrap(*settings), 1.0)], None
        transport = MassTransport(*settings, max_divergence=self.max_divergence, max_entropy_loss=self.max_entropy_loss)
        self.rungs = transport.rungs
        return [(transport, 1.0)], None

    def _cooling(self) -> tuple[list[tuple[Phase, float]], Replay | None]:
        if self.hottest == 1:
            return [], None
        ratio = self.hottest ** (1 / self.num_rungs)
        ladder = [self.kT * ratio**level for level in reversed(range(self.num_rungs))]
        replay = Replay(self.flow, self.target, self.buffer_size, self._generator)
        if self.record is not None:
            return [], replay
        hot, cooling = ByEnergy(self.flow, self.target.at(self.kT * self.hottest)), Cooling(replay, ladder)
        self.rungs = cooling.rungs
        return [(hot, _HOT), (cooling, _COOLING)], replay

    def _learning(self, data: Tensor, share: float) -> tuple[list[tuple[Phase, float]], ByExample]:
        example = ByExample(self.flow, *self._known(data), self._generator)
        if self.method == "annealing" or share == 1:
            return [(example, share)], example
        return [(example, share), *((phase, part * (1 - share)) for phase, part in self._by_energy()[0])], example

    def _known(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of configurations that are given, and the target's log density there."""
        if data.dim() != len(self.energy.event_shape) + 1 or data.shape[1:] != self.energy.event_shape:
            raise ValueError(
                f"BoltzmannGenerator: data must be configurations (n, {', '.join(map(str, self.energy.event_shape))}), "
                f"got shape {tuple(data.shape)}"
            )
        data = data.to(self.target.device, self.target.dtype)
        if isinstance(self.target.coordinates, Cluster):
            data = self.target.coordinates.relabelled(data, self._generator)
        u = self.target.coordinates_of(data)
        if not bool(u.isfinite().all()):
            bad = int((~u.isfinite().all(-1)).sum())
            raise ValueError(
                f"BoltzmannGenerator: data: {bad} of {len(u)} configurations are not finite, or have no coordinates"
            )
        with torch.no_grad():
            log_p = torch.cat([self.target.log_prob(part) for part in u.split(self.target.chunk_size)])
        return u, log_p
