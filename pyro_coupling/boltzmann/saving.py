"""A generator in a file, and its training in a checkpoint that it goes on from."""

from __future__ import annotations

__all__ = ["TrainingSession", "load_generator", "save_generator"]

import json
import os
import re
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..codec import Node, decode, encode
from ..description import describe, restore
from ..files import read_safetensors, write_safetensors
from ..training import TrainingRecord
from ..training.checkpoint import CheckpointFile, Snapshot, take_snapshot
from ..transforms import Bijection
from .energies import Energy
from .phases import PhasedTrainer, Rung
from .target import BoltzmannTarget

if TYPE_CHECKING:
    from .generator import BoltzmannGenerator

_FORMAT = "pyro_coupling.BoltzmannGenerator"
_VERSION = 1
_POINTS = 8  # at which log densities are compared


class TrainingSession:
    """The checkpoint of a training: where it goes on, and where it is kept.

    If there is a file, the generator is given what was behind it when that training began.

    Args:
        path: The checkpoint file, if there is one.
        generator: The generator that is trained.
        data: Configurations to learn from.
        share: Part of the budget that goes into them alone.

    Raises:
        ValueError: If the file is of another training, or damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        generator: BoltzmannGenerator,
        data: Tensor | None,
        share: float,
    ) -> None:
        self._file = self._saved = None
        if path is None:
            return
        self._file, self._name = CheckpointFile(path), os.fspath(path)
        self._notes = {"training": _training(generator, data, share), "before": _history(generator)}
        content = self._file.read()
        if content:
            self._saved = Snapshot(content, self._name)
            self._check(self._saved.notes)
            self._notes = self._saved.notes
            _recall(generator, self._notes["before"])

    def go_on(self, trainer: PhasedTrainer) -> None:
        """Brings a fresh trainer to where the file left off, if there is one."""
        if self._saved is None:
            return
        self._saved.restore(trainer)
        record = trainer.record
        if record.stopped_by not in ("", "interrupt") and trainer.schedule.over(record.num_steps, record.seconds):
            warnings.warn(
                f"BoltzmannGenerator: checkpoint {self._name!r} holds a training that was finished "
                f"({record.stopped_by} after {record.num_steps} steps): it is not trained any more. Raise max_steps or "
                "max_seconds to go on with one that reached them, call train again without the checkpoint, or remove "
                "the file to start anew",
                stacklevel=3,
            )

    def save_if_due(self, trainer: PhasedTrainer) -> None:
        """Saves the trainer every few seconds."""
        if self._file is not None:
            self._file.save_if_due(lambda: take_snapshot(trainer, self._notes))

    def save(self, trainer: PhasedTrainer) -> None:
        """Saves the trainer at its end."""
        if self._file is not None:
            self._file.save(take_snapshot(trainer, self._notes), last=True)

    def _check(self, notes: dict[str, Any]) -> None:
        if set(notes) != set(self._notes):
            raise ValueError(
                f"checkpoint {self._name!r} is not one of BoltzmannGenerator. Remove the file to start anew"
            )
        different = _difference(self._notes["training"], notes["training"])
        if different:
            raise ValueError(
                f"checkpoint {self._name!r} belongs to another training: {different}. Remove the file, or choose "
                "another, to start anew"
            )


def _training(generator: BoltzmannGenerator, data: Tensor | None, share: float) -> dict[str, Any]:
    """What tells a training from others, by the words in which an error names it."""
    found: dict[str, Any] = {
        "seed": generator._given_seed,
        "flow": re.sub(" at 0x[0-9a-f]+", "", repr(generator.flow)),
        **_problem(generator.target),
        **_settings(generator),
        "shape of the data": None,
    }
    if data is not None:
        found |= {
            "shape of the data": list(data.shape),
            "mean square of the data": data.double().square().mean().item(),
            "by_example": share,
        }
    return found


def _history(generator: BoltzmannGenerator) -> dict[str, Any]:
    """What a generator has behind it, for JSON."""
    return {
        "num_energies": generator._num_energies,
        "seconds": generator._seconds,
        "rungs": list(generator.rungs),
        "record": None if generator.record is None else asdict(generator.record),
    }


def _recall(generator: BoltzmannGenerator, past: dict[str, Any]) -> None:
    """Gives a generator what another had behind it."""
    generator._num_energies, generator._seconds = int(past["num_energies"]), float(past["seconds"])
    generator.rungs[:] = [Rung(*map(float, rung)) for rung in past["rungs"]]
    generator.record = None if past["record"] is None else TrainingRecord(**past["record"])


def save_generator(generator: BoltzmannGenerator, path: str | os.PathLike[str]) -> None:
    """Writes a generator to one safetensors file."""
    tensors: dict[str, Tensor] = {"generator": generator._generator.get_state()}
    coordinates = generator.target.coordinates
    state = {
        "flow": _described("flow", generator.flow, tensors),
        "coordinates": coordinates is not None and _described("coordinates", coordinates, tensors),
        "problem": _problem(generator.target),
        "dtype": encode(generator.target.dtype, tensors),
        "seed": generator.seed,
        "settings": _settings(generator),
        "history": _history(generator),
    }
    write_safetensors(path, tensors, {"format": _FORMAT, "version": str(_VERSION), "state": json.dumps(state)})


def load_generator(
    cls: type[BoltzmannGenerator],
    path: str | os.PathLike[str],
    energy: Energy,
    flow: Bijection | None,
    coordinates: Bijection | None,
    device: torch.device | str | None,
    progress: bool,
) -> BoltzmannGenerator:
    """Reads a generator from a file made by `save_generator`."""
    tensors, metadata = read_safetensors(path, _FORMAT, _VERSION)
    name = os.fspath(path)
    try:
        state = json.loads(metadata["state"])
        if coordinates is None and state["coordinates"] is not False:
            coordinates = _restored("coordinates", state["coordinates"], tensors)
        if flow is None:
            flow = _restored("flow", state["flow"], tensors)
        else:
            flow.load_state_dict({k.removeprefix("flow."): v for k, v in tensors.items() if k.startswith("flow.")})
        settings = {key: state["settings"][key] for key in cls.SETTINGS}
        generator = cls(
            energy, kT=state["problem"]["kT"], flow=flow, coordinates=coordinates, device=device,
            dtype=decode(state["dtype"], tensors), seed=int(state["seed"]), progress=progress, **settings,
        )  # fmt: skip
        _recall(generator, state["history"])
        if tensors["generator"].shape == generator._generator.get_state().shape:  # else of another kind of device
            generator._generator.set_state(tensors["generator"])
        different = _difference(_problem(generator.target), state["problem"])
    except ValueError as error:
        raise ValueError(f"{name!r} can't be loaded: {error}") from error
    except (AttributeError, KeyError, OverflowError, RecursionError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name!r} is damaged: it can't be read ({type(error).__name__}: {error})") from error
    if different:
        raise ValueError(f"{name!r} is of another energy, or of other coordinates: {different}")
    return generator


def _described(name: str, part: Bijection, tensors: dict[str, Tensor]) -> Node | None:
    """What a part is made of; None where there is no way to tell, with its state alone in the tensors."""
    found: dict[str, Tensor] = dict(tensors)  # the arguments in it are numbered after those of other parts
    try:
        content = describe(part, found, f"{name}.")
    except (TypeError, ValueError) as error:
        warnings.warn(
            f"what the {name} is made of is not stored ({error}): pass it to "
            f"BoltzmannGenerator.load(..., {name}={name})",
            stacklevel=4,
        )
        tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        return None
    tensors |= found
    return content


def _restored(name: str, content: Node | None, tensors: dict[str, Tensor]) -> Bijection:
    if content is None:
        raise ValueError(
            f"it does not tell what its {name} is made of, pass that: BoltzmannGenerator.load(..., {name}={name})"
        )
    part = restore(content, tensors, f"{name}.")
    if not isinstance(part, Bijection):
        raise ValueError(f"its {name} is a {type(part).__name__}, which is no bijection")
    return part


def _settings(generator: BoltzmannGenerator) -> dict[str, Any]:
    return {name: getattr(generator, name) for name in generator.SETTINGS}


def _problem(target: BoltzmannTarget) -> dict[str, Any]:
    """What tells one target from another: among it log densities, which see the energy and the coordinates."""
    count = torch.arange(1.0, _POINTS * target.dim + 1, dtype=torch.float64)
    widths = torch.linspace(0.1, 1.0, _POINTS, dtype=torch.float64).unsqueeze(-1)  # from the middle outwards
    points = widths * count.sin().reshape(_POINTS, target.dim)
    with torch.no_grad():
        heights = target.log_prob(points.to(target.device, target.dtype))
    return {
        "kT": target.kT,
        "shape of a configuration": list(target.energy.event_shape),
        "number of coordinates": target.dim,
        "dtype": str(target.dtype),
        "log density at fixed points": heights.tolist(),
    }


def _difference(here: dict[str, Any], there: dict[str, Any]) -> str:
    """The first in which two descriptions differ, in words; nothing if they agree or one does not tell."""
    for name, value in here.items():
        other = there.get(name)
        if name == "seed" and None in (value, other):
            continue
        if not _same(other, value):
            values = "" if name == "flow" else f", {other} there, {value} here"
            return f"the {name} is not the same{values}"
    return ""


def _same(there: Any, here: Any) -> bool:
    first, second = (value if isinstance(value, list) else [value] for value in (there, here))
    if len(first) != len(second) or not all(isinstance(value, (int, float)) for value in (*first, *second)):
        return there == here
    # sums are rounded in another way on another machine
    expected, found = (torch.tensor(values, dtype=torch.float64) for values in (first, second))
    return torch.allclose(expected, found, 1e-4, 1e-3, equal_nan=True)
