"""Checkpoints of a run: all that is needed to go on, in one safetensors file."""

from __future__ import annotations

__all__ = ["CheckpointFile"]

import json
import os
import time
from collections import deque
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..files import read_safetensors, write_safetensors
from .trainer import Trainer, TrainingRecord

_FORMAT = "pyro_coupling.checkpoint"
_VERSION = 1


class CheckpointFile:
    """Saves a trainer every few seconds and brings it back.

    Args:
        path: The file; it is replaced in one stroke, so that it is never torn.
        interval: Seconds between two saves.
    """

    def __init__(self, path: str | os.PathLike[str], interval: float = 10.0) -> None:
        self.path = path
        self.interval = interval
        self._saved_at = time.monotonic()

    def save_if_due(self, trainer: Trainer) -> None:
        """Saves if ``interval`` has passed since the last time."""
        if time.monotonic() - self._saved_at >= self.interval:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves parameters, buffers, running averages, optimiser, random state, schedule and record."""
        tensors = {f"flow.{name}": value for name, value in trainer.flow.state_dict().items()}
        for i, (parameter, average) in enumerate(zip(trainer.parameters, trainer.averages, strict=True)):
            # the flow's own parameters are the averages once a run is over, so both are kept by number
            tensors[f"parameter.{i}"] = trainer.last[i] if trainer.last else parameter.detach()
            tensors[f"average.{i}"] = average
        for i, state in trainer.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
        tensors["generator"] = trainer.generator.get_state()
        if trainer.recent:
            tensors["recent"] = torch.stack(list(trainer.recent))
        meta = {
            "record": asdict(trainer.record),
            "decay_began": trainer.schedule.decay_began,
            "decay_steps": trainer.schedule.decay_steps,
        }
        write_safetensors(self.path, tensors, {"format": _FORMAT, "version": str(_VERSION), "state": json.dumps(meta)})
        self._saved_at = time.monotonic()

    def resume(self, trainer: Trainer) -> bool:
        """Brings a trainer to where the file left off, if there is a file.

        Raises:
            ValueError: If the file is damaged, of something else, or of another model or flow.
        """
        if not os.path.exists(self.path):
            return False
        tensors, metadata = read_safetensors(self.path, _FORMAT, _VERSION)
        flow = {name.removeprefix("flow."): value for name, value in tensors.items() if name.startswith("flow.")}
        expected = {name: tuple(value.shape) for name, value in trainer.flow.state_dict().items()}
        if {name: tuple(value.shape) for name, value in flow.items()} != expected:
            raise ValueError(
                f"checkpoint {os.fspath(self.path)!r} belongs to another model or flow: its parameters have other "
                "names or shapes. Remove the file to start anew"
            )
        try:
            _restore(trainer, flow, tensors, json.loads(metadata["state"]))
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {os.fspath(self.path)!r} is damaged ({type(error).__name__}: {error}). Remove the file to "
                "start anew"
            ) from error
        return True


def _restore(trainer: Trainer, flow: dict[str, Tensor], tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    trainer.flow.load_state_dict(flow)
    with torch.no_grad():
        for i, parameter in enumerate(trainer.parameters):
            parameter.copy_(tensors[f"parameter.{i}"])
            trainer.averages[i].copy_(tensors[f"average.{i}"])
    trainer.optimizer.load_state_dict(
        {"state": _adam_state(tensors), "param_groups": trainer.optimizer.state_dict()["param_groups"]}
    )
    trainer.generator.set_state(tensors["generator"])
    recent = tensors.get("recent", torch.empty(0, 0))
    if recent.size(-1) == trainer.num_particles:
        trainer.recent = deque(recent.unbind(0), maxlen=trainer.recent.maxlen)
    trainer.record = TrainingRecord(**state["record"])
    began = state["decay_began"]
    trainer.schedule.decay_began = None if began is None else (int(began[0]), float(began[1]))
    trainer.schedule.decay_steps = state["decay_steps"]


def _adam_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        kind, *rest = name.split(".")
        if kind == "adam":
            found.setdefault(int(rest[0]), {})[rest[1]] = value
    return found
