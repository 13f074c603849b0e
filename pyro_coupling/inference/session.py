"""A run of `FlowVI` across its processes and its restarts: what they share, and where it goes on."""

from __future__ import annotations

__all__ = ["Session"]

import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..files import pack_safetensors, unpack_safetensors
from ..guides import AutoCouplingFlow
from ..targets import PyroTarget
from ..training import Gaussian, Trainer, TrainingRecord
from ..training.checkpoint import CheckpointFile, Snapshot, take_snapshot
from ..training.distribution import Ranks

_RESULT = "pyro_coupling.result"


class Session:
    """The beginning, the checkpoint and the end of a run. Rank 0 alone reads and writes files.

    Args:
        ranks: The processes of the run.
        path: The checkpoint file, if there is one.
        seed: The run's seed; if not given that of the checkpoint, or else drawn by rank 0.

    Attributes:
        seed: The seed.
        saved: What an earlier process saved, if any.
    """

    def __init__(self, ranks: Ranks, path: str | os.PathLike[str] | None, seed: int | None) -> None:
        self.ranks = ranks
        self.file = None if path is None or ranks.rank else CheckpointFile(path)
        self._name = "of rank 0" if path is None else os.fspath(path)
        self._notes: dict[str, Any] = {}
        self._starts: list[Gaussian] = []
        self._began = time.monotonic()
        content = ranks.share(b"" if self.file is None else self.file.read())
        self.saved = Snapshot(content, self._name) if content else None
        if self.saved and set(self.saved.notes) != {"run", "guide", "seconds"}:
            raise ValueError(f"checkpoint {self._name!r} is not one of FlowVI. Remove the file to start anew")
        if seed is None:
            seed = self.saved.notes["run"]["seed"] if self.saved else int(torch.randint(2**31, ()))
        self.seed = int(ranks.share(str(seed).encode()))

    @property
    def seconds(self) -> float:
        """Time the run has taken, earlier processes included."""
        return time.monotonic() - self._began

    def start(
        self,
        target: PyroTarget,
        guide: AutoCouplingFlow,
        set_up: Callable[[bool], None],
        make_trainer: Callable[[float], Trainer],
    ) -> Trainer:
        """A trainer where the run begins, or where it left off.

        Args:
            target: The model.
            guide: The guide, perhaps without parameters.
            set_up: Gives the guide parameters if it has none, and runs a warm start for them if True.
            make_trainer: Makes the trainer, given the seconds that went before the training.

        Raises:
            ValueError: If the checkpoint, or rank 0, is of another run.
        """
        if self.file is None and self.ranks.size == 1:
            set_up(True)
            return make_trainer(self.seconds)
        run = _describe(self.seed, target)
        if self.saved is None:
            if self.ranks.rank == 0:
                set_up(True)
                before = self.seconds
                trainer = make_trainer(before)
                self._notes = {"run": run, "guide": _architecture(guide), "seconds": before}
                self._starts = guide.starts
                self.save(trainer)
                if self.ranks.size == 1:
                    return trainer
            content = self.ranks.share(self._snapshot(trainer) if self.ranks.rank == 0 else b"")
            self.saved = Snapshot(content, self._name)
        return self._resume(self.saved, run, target, guide, set_up, make_trainer)

    def save_if_due(self, trainer: Trainer) -> None:
        """Saves the trainer every few seconds, if there is a file to save it to."""
        if self.file is not None:
            self.file.save_if_due(lambda: self._snapshot(trainer))

    def save(self, trainer: Trainer, last: bool = False) -> None:
        """Saves the trainer, if there is a file to save it to."""
        if self.file is not None:
            self.file.save(self._snapshot(trainer), last)

    def share_result(
        self, tensors: dict[str, Tensor], figures: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Rank 0's tensors and figures, for every rank."""
        if self.ranks.size == 1:
            return tensors, figures
        metadata = {"format": _RESULT, "version": "1", "figures": json.dumps(figures)}
        content = self.ranks.share(pack_safetensors(tensors, metadata) if self.ranks.rank == 0 else b"")
        tensors, metadata = unpack_safetensors(content, "result", _RESULT, 1)
        return tensors, json.loads(metadata["figures"])

    def _snapshot(self, trainer: Trainer) -> bytes:
        return take_snapshot(trainer, self._notes, self._starts)

    def _resume(
        self,
        saved: Snapshot,
        run: dict[str, Any],
        target: PyroTarget,
        guide: AutoCouplingFlow,
        set_up: Callable[[bool], None],
        make_trainer: Callable[[float], Trainer],
    ) -> Trainer:
        self._check(run, saved.notes.get("run", {}))
        had_parameters = guide.prototype_trace is not None
        try:
            set_up(False)
            self._check({"guide": _architecture(guide)}, saved.notes)
            trainer = make_trainer(saved.notes["seconds"])
            saved.restore(trainer)
        except ValueError:
            if not had_parameters:  # or a later run would take them for trained ones
                guide.prototype_trace = guide.transform = None
            raise
        self._notes, self._starts = saved.notes, saved.starts
        guide.starts = [start.to(target.device) for start in saved.starts]
        record = trainer.record
        self._began = time.monotonic() - saved.notes["seconds"] - record.seconds
        if record.stopped_by not in ("", "interrupt") and trainer.schedule.over(record.num_steps, record.seconds):
            self._say_finished(record)
        return trainer

    def _check(self, here: dict[str, Any], there: dict[str, Any]) -> None:
        for name, value in here.items():
            if not _same(there.get(name), value):
                found = "" if name == "guide" else f" {there.get(name)} there, {value} here"
                raise ValueError(
                    f"checkpoint {self._name!r} belongs to another run: the {name} is not the same,{found}. Remove "
                    "the file, or choose another, to start anew"
                )

    def _say_finished(self, record: TrainingRecord) -> None:
        if self.ranks.rank == 0:
            warnings.warn(
                f"FlowVI: checkpoint {self._name!r} holds a run that was finished ({record.stopped_by} after "
                f"{record.num_steps} steps): it is not trained any more. Raise max_steps or max_seconds to go on with "
                "one that reached them, or remove the file to start anew",
                stacklevel=6,
            )


def _describe(seed: int, target: PyroTarget) -> dict[str, Any]:
    """What tells a run from another, by the words in which an error names it."""
    with torch.no_grad(), torch.random.fork_rng():  # discrete latents are drawn where the data are read
        height = target.log_prob(target.initial.unsqueeze(0)).item()
        data = target.observed_data()
    return {
        "seed": seed,
        "set of latent sites": {site.name: list(site.shape) for site in target.structure.latents},
        "shape of the data": {name: list(torch.as_tensor(value).shape) for name, value in data.items()},
        "log density at the initial point": height,
    }


def _architecture(guide: AutoCouplingFlow) -> list[Any]:
    """Flow and settings of a guide, without the addresses that a repr may hold."""
    return [re.sub(" at 0x[0-9a-f]+", "", repr(guide.transform)), guide.warm_start, guide.num_starts]


def _same(there: Any, here: Any) -> bool:
    # a sum over data may be rounded in another way on another machine
    return math.isclose(there, here, rel_tol=1e-5) if isinstance(there, float) else there == here
