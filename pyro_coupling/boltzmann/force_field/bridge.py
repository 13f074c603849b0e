"""The bridge to OpenMM itself, for what is not evaluated in torch."""

from __future__ import annotations

__all__ = ["OpenMMEnergy"]

import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..energies import Energy
from .serialized import to_xml

if TYPE_CHECKING:
    import openmm

_FRAMES_AT_ONCE = 64  # that a process is given; so many take some milliseconds


class OpenMMEnergy(Energy):
    """Potential energy of a System as OpenMM evaluates it, frame by frame, in kJ/mol of positions in nm.

    Whatever forces OpenMM has are supported. The gradient is that of OpenMM's forces; there is no second derivative.
    Positions go to OpenMM in float64, and energies come back in the dtype and on the device of the input. A frame
    with coordinates that are not finite, or for which OpenMM raises an error, has energy and forces NaN; it does
    not harm the others. Results do not depend on the number of processes or on the other frames.

    Args:
        system: The System; it is copied.
        platform: Name of OpenMM's platform: ``"Reference"``, ``"CPU"`` (one thread per process), ``"CUDA"``, ...
        processes: Number of processes among which frames are shared; None evaluates them in this one. Processes
            are started at the first evaluation and end with the object. A script that uses them has its work under
            ``if __name__ == "__main__":``, as always with Python's ``multiprocessing``.

    Raises:
        ImportError: If OpenMM is not installed.
        TypeError: If system is not a System.
        ValueError: If there is no such platform, the System has virtual sites, or processes is not positive.
        RuntimeError: By `energy`, if a process died.

    Example:
        >>> import openmm, torch
        >>> system = openmm.System()
        >>> bond = openmm.HarmonicBondForce()
        >>> system.addParticle(1.0), system.addParticle(16.0), bond.addBond(0, 1, 0.1, 4e5), system.addForce(bond)
        (0, 1, 0, 0)
        >>> OpenMMEnergy(system, platform="Reference")(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.11]]))
        tensor(20.0000)
    """

    def __init__(self, system: openmm.System, platform: str = "CPU", processes: int | None = None) -> None:
        xml = to_xml(system, "OpenMMEnergy")
        import openmm

        names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
        if platform not in names:
            raise ValueError(f"OpenMMEnergy: platform must be one of {', '.join(names)}, got {platform!r}")
        if any(system.isVirtualSite(i) for i in range(system.getNumParticles())):
            raise ValueError("OpenMMEnergy: virtual sites are not supported, whose positions follow from other atoms")
        if processes is not None and processes < 1:
            raise ValueError(f"OpenMMEnergy: processes must be None or positive, got {processes}")
        super().__init__((system.getNumParticles(), 3))
        self.platform = platform
        self.processes = processes
        self._xml = xml
        self._evaluator: _Evaluator | None = _Evaluator(xml, platform)
        self._pool: ProcessPoolExecutor | None = None

    def energy(self, x: Tensor) -> Tensor:
        return _Evaluation.apply(x, self._evaluate)[0]

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _Evaluation.apply(x.detach(), self._evaluate)

    @torch.compiler.disable
    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        frames = x.detach().reshape(-1, *self.event_shape).to("cpu", torch.float64).numpy()
        parts = [frames[i : i + _FRAMES_AT_ONCE] for i in range(0, len(frames), _FRAMES_AT_ONCE)]
        results = self._map(parts)
        energy = torch.from_numpy(np.concatenate([np.empty(0), *(energy for energy, _ in results)]))
        force = torch.from_numpy(np.concatenate([frames[:0], *(force for _, force in results)]))
        return energy.to(x).reshape(x.shape[:-2]), force.to(x).reshape(x.shape)

    def _map(self, parts: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        if self.processes is None:
            self._evaluator = self._evaluator or _Evaluator(self._xml, self.platform)
            return [self._evaluator(part) for part in parts]
        if self._pool is None:
            # spawned, because a fork of a process with threads may hang
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes, context, _start, (self._xml, self.platform))
        try:
            return list(self._pool.map(_evaluate_part, parts))
        except BrokenProcessPool as error:
            self._pool = None
            raise RuntimeError("OpenMMEnergy: a process died (is there enough memory?)") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_evaluator": None, "_pool": None}

    def extra_repr(self) -> str:
        return f"{self.event_shape[0]} atoms, platform={self.platform!r}, processes={self.processes}"


class _Evaluation(torch.autograd.Function):
    """Energies and forces; the first have minus the second as gradient, the second none."""

    @staticmethod
    def forward(x: Tensor, evaluate: Any) -> tuple[Tensor, Tensor]:
        return evaluate(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, by_energy: Tensor, _: Tensor) -> tuple[Tensor, None]:
        return -by_energy[..., None, None] * _Force.apply(*ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, evaluate: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return _Evaluation.apply(x.movedim(in_dims[0], 0), evaluate), (0, 0)


class _Force(torch.autograd.Function):
    """The forces at x, of which no derivative is known: else they would silently pass for constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, force: Tensor) -> Tensor:
        return force.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, by_force: Tensor) -> tuple[Tensor, None]:
        raise RuntimeError("OpenMMEnergy: there is no second derivative; OpenMM gives forces, but not theirs")


class _Evaluator:
    """A Context of OpenMM, to which frames are given one after the other."""

    def __init__(self, xml: str, name: str) -> None:
        import openmm

        platform = openmm.Platform.getPlatformByName(name)
        wanted = {"Threads": "1", "DeterministicForces": "true"}
        properties = {key: text for key, text in wanted.items() if key in platform.getPropertyNames()}
        system = openmm.XmlSerializer.deserialize(xml)
        self._context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform, properties)
        self._error = openmm.OpenMMException

    def __call__(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energy = np.full(len(frames), np.nan)
        force = np.full_like(frames, np.nan)
        for i in np.flatnonzero(np.isfinite(frames).all((1, 2))):
            try:
                self._context.setPositions(frames[i])
                state = self._context.getState(getEnergy=True, getForces=True)
            except self._error:
                continue
            energy[i] = state.getPotentialEnergy()._value
            force[i] = state.getForces(asNumpy=True)._value
        return energy, force


_evaluator: _Evaluator  # of a process that `_start` has begun


def _start(xml: str, platform: str) -> None:
    global _evaluator
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    torch.set_num_threads(1)
    _evaluator = _Evaluator(xml, platform)


def _evaluate_part(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _evaluator(frames)
