"""Checkpoints of a run: all that is needed to go on, in one safetensors file."""

from __future__ import annotations

__all__ = ["INTERVAL", "CheckpointFile", "Snapshot", "take_snapshot"]

import json
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import pack_safetensors, remove_leftovers, unpack_safetensors, write_in_one_stroke
from .gaussians import Gaussian, GaussianStart, LowRankStart
from .schedule import Schedule
from .trainer import Trainer, TrainingRecord

INTERVAL = 10.0  #: seconds between two saves
_FORMAT = "pyro_coupling.checkpoint"
_VERSION = 1
_STARTS: dict[str, type[Gaussian]] = {kind.__name__: kind for kind in (GaussianStart, LowRankStart)}


class CheckpointFile:
    """Where snapshots of a run are kept, the last one at a time.

    Args:
        path: The file; it is replaced in one stroke, so that it is never torn.
        interval: Seconds between two saves; `INTERVAL` if not given.
    """

    def __init__(self, path: str | os.PathLike[str], interval: float | None = None) -> None:
        self.path = Path(path)
        self.interval = INTERVAL if interval is None else interval
        self._saved_at = time.monotonic()
        self._failing = False

    def read(self) -> bytes:
        """The last snapshot; nothing if there is no file. Leftovers of killed runs beside it are removed.

        Raises:
            ValueError: If there can be no such file, or it is empty.
        """
        if self.path.is_dir() or not self.path.parent.is_dir():
            what = "is a folder" if self.path.is_dir() else "is in a folder that does not exist"
            raise ValueError(f"checkpoint: {os.fspath(self.path)!r} {what}")
        remove_leftovers(self.path)
        if not self.path.exists():
            return b""
        content = self.path.read_bytes()
        if not content:
            raise ValueError(f"checkpoint {os.fspath(self.path)!r} is damaged: it is empty. {_REMOVE}")
        return content

    def save_if_due(self, take: Callable[[], bytes]) -> None:
        """Saves a new snapshot if ``interval`` has passed since the last time."""
        if time.monotonic() - self._saved_at >= self.interval:
            self.save(take())

    def save(self, snapshot: bytes, last: bool = False) -> None:
        """Saves. Where the disk is full or can't be written, what was there stays, and a warning says so once.

        Args:
            snapshot: From `take_snapshot`.
            last: Whether the run is over, so that a failure will not be made good.
        """
        try:
            write_in_one_stroke(self.path, snapshot)
            self._failing = False
        except OSError as error:
            if last or not self._failing:
                outlook = "the end of the run is not in it" if last else f"it is tried every {self.interval:g} s"
                warnings.warn(
                    f"checkpoint {os.fspath(self.path)!r} can't be written ({error}): what it held stays, {outlook}",
                    stacklevel=2,
                )
            self._failing = True
        self._saved_at = time.monotonic()


def take_snapshot(trainer: Trainer, notes: dict[str, Any] | None = None, starts: Sequence[Gaussian] = ()) -> bytes:
    """Parameters, buffers, running averages, optimiser, random states, schedule and record of a trainer.

    Args:
        trainer: The trainer, between two steps.
        notes: What else belongs to the run, for JSON.
        starts: What the warm start found.
    """
    tensors = {f"flow.{name}": value for name, value in trainer.flow.state_dict().items()}
    for i, (parameter, average) in enumerate(zip(trainer.parameters, trainer.averages, strict=True)):
        # the flow's own parameters are the averages once a run is over, so both are kept by number
        tensors[f"parameter.{i}"] = trainer.last[i] if trainer.last else parameter
        tensors[f"average.{i}"] = average
    for i, state in trainer.optimizer.state_dict().items():
        tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
    for i, start in enumerate(starts):
        tensors |= {f"start.{i}.{name}": value for name, value in start.tensors.items()}
    tensors["generator"] = trainer.generator.get_state()
    tensors["global_generator"] = torch.get_rng_state()  # dropout draws from it
    if trainer.recent:
        tensors["recent"] = torch.stack(list(trainer.recent))
    extra = trainer.extra_state()
    tensors |= {f"extra.{name}": value for name, value in extra.items() if isinstance(value, Tensor)}
    state = {
        "notes": notes or {},
        "extra": {name: value for name, value in extra.items() if not isinstance(value, Tensor)},
        "starts": [[type(start).__name__, start.elbo, start.source] for start in starts],
        "record": asdict(trainer.record),
        "limits": [trainer.schedule.max_steps, trainer.schedule.max_seconds],
        "decay_began": trainer.schedule.decay_began,
        "decay_steps": trainer.schedule.decay_steps,
    }
    return pack_safetensors(tensors, {"format": _FORMAT, "version": str(_VERSION), "state": json.dumps(state)})


class Snapshot:
    """What `take_snapshot` took.

    Args:
        content: Its bytes.
        name: Where they are from, for errors.

    Attributes:
        notes: The notes it was taken with.
        record: The record of the run so far.
        starts: The starts, on the CPU.

    Raises:
        ValueError: If they are damaged, or of something else.
    """

    def __init__(self, content: bytes, name: str = "checkpoint") -> None:
        self.name = name
        self._tensors, metadata = unpack_safetensors(content, name, _FORMAT, _VERSION)
        try:
            self._state = json.loads(metadata["state"])
            self.notes = dict(self._state["notes"])
            self.record = TrainingRecord(**self._state["record"])
            self.starts = [
                _STARTS[kind](**_under(f"start.{i}.", self._tensors), elbo=elbo, source=source)  # type: ignore[call-arg]
                for i, (kind, elbo, source) in enumerate(self._state["starts"])
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(error) from error

    def restore(self, trainer: Trainer) -> None:
        """Brings a trainer to where the snapshot was taken.

        If the trainer may take longer than the one that was saved, a step size that decayed because the end
        was near goes up again.

        Raises:
            ValueError: If it is damaged, or of another model or flow.
        """
        flow = _under("flow.", self._tensors)
        if _layout(flow) != _layout(trainer.flow.state_dict()):
            raise ValueError(
                f"checkpoint {self.name!r} belongs to another model or flow: its parameters have other names, "
                f"shapes or dtypes. {_REMOVE}"
            )
        try:
            _restore(trainer, flow, self._tensors, self._state)
            trainer.record = replace(self.record)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(f"checkpoint {self.name!r} is damaged ({type(error).__name__}: {error}). {_REMOVE}")


_REMOVE = "Remove the file to start anew"


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _layout(tensors: dict[str, Tensor]) -> dict[str, tuple]:
    return {name: (value.shape, value.dtype) for name, value in tensors.items()}


def _restore(trainer: Trainer, flow: dict[str, Tensor], tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    trainer.flow.load_state_dict(flow)
    with torch.no_grad():
        for i, parameter in enumerate(trainer.parameters):
            parameter.copy_(tensors[f"parameter.{i}"])
            trainer.averages[i].copy_(tensors[f"average.{i}"])
    trainer.optimizer.load_state_dict(_adam_state(tensors))
    trainer.generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["global_generator"])
    recent = tensors.get("recent", torch.empty(0, 0))
    if recent.size(-1) == trainer.num_particles:
        trainer.recent = deque(recent.to(trainer.target.device).unbind(0), maxlen=trainer.recent.maxlen)
    began = state["decay_began"]
    began = None if began is None else (int(began[0]), float(began[1]))
    max_steps, max_seconds = state["limits"]
    planned = replace(trainer.schedule, max_steps=max_steps, max_seconds=max_seconds)
    if began is not None and _near_end(planned, began) and not _near_end(trainer.schedule, began):
        began = None
    trainer.schedule.decay_began = began
    trainer.schedule.decay_steps = state["decay_steps"]
    trainer.load_extra_state(
        state.get("extra", {})
        | {name: value.to(trainer.target.device) for name, value in _under("extra.", tensors).items()}
    )


def _near_end(schedule: Schedule, began: tuple[int, float]) -> bool:
    """Whether a decay has to begin there for it to be over in time."""
    return schedule.progress(*began) >= 1 - schedule.decay_fraction


def _adam_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        kind, *rest = name.split(".")
        if kind == "adam":
            found.setdefault(int(rest[0]), {})[rest[1]] = value
    return found
