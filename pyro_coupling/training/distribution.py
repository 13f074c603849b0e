"""Training on several processes at once: what they tell each other, and nothing where there is only one."""

from __future__ import annotations

__all__ = ["ProcessRanks", "Ranks", "joined_ranks"]

import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_STEP_TIMEOUT = timedelta(minutes=5)  # a process that is killed is noticed at once, a machine that vanishes after this
_WAIT_TIMEOUT = timedelta(hours=6)  # for rank 0, which alone runs the warm start and the diagnosis


class Ranks:
    """The processes that train a flow together. Here it is one, which has nobody to talk to.

    All ranks draw the base noise of all particles from the same random state, and each takes its part. So
    what they learn together is what one process learns, up to rounding, on however many it runs.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    rank = 0
    size = 1

    def part(self, x: Tensor) -> Tensor:
        """This rank's rows of what all ranks have, ``(n, ...)``."""
        return x

    def gather(self, part: Tensor, n: int) -> Tensor:
        """Every rank's `part` of a vector of n numbers."""
        return part

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors by their sum over the ranks, in one message."""

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """Rank 0's clock, and whether any rank is to stop."""
        return seconds, stop

    def share(self, content: bytes) -> bytes:
        """Rank 0's content."""
        return content


class ProcessRanks(Ranks):
    """The ranks of a process group of torch.distributed, which has to be initialised.

    Every method has to be called by all ranks, in the same order.

    Raises:
        RuntimeError: From every method, if another rank is gone.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        with self._contact():
            self._group = dist.new_group(backend=_backend(), timeout=_STEP_TIMEOUT)
            self._patient_group = dist.new_group(backend="gloo", timeout=_WAIT_TIMEOUT)

    def part(self, x: Tensor) -> Tensor:
        return x.tensor_split(self.size)[self.rank]

    def gather(self, part: Tensor, n: int) -> Tensor:
        whole = part.new_zeros(n)
        self.part(whole).copy_(part)
        self._sum(whole)
        return whole

    def add(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._sum(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        told = torch.tensor([seconds if self.rank == 0 else 0.0, float(stop)], dtype=torch.float64)
        self._sum(told)
        return told[0].item(), bool(told[1] > 0)

    def share(self, content: bytes) -> bytes:
        size = torch.tensor(len(content))
        with self._contact():
            dist.broadcast(size, 0, group=self._patient_group)
            data = torch.empty(int(size), dtype=torch.uint8)
            if self.rank == 0 and content:
                data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            if len(data):
                dist.broadcast(data, 0, group=self._patient_group)
        return data.numpy().tobytes()

    def wait(self) -> None:
        """Until all ranks have come here."""
        with self._contact():
            dist.barrier(group=self._patient_group)

    def leave(self) -> None:
        """Ends the contact; ranks that still wait for this one learn that it is gone."""
        dist.destroy_process_group(self._group)
        dist.destroy_process_group(self._patient_group)

    def _sum(self, tensor: Tensor) -> None:
        with self._contact():
            dist.all_reduce(tensor, group=self._group)

    @contextmanager
    def _contact(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            # without the place in gloo's source, and its advice
            reason = re.sub(r"^\[[^]]*] ", "", str(error)).partition("\n")[0].partition(". ")[0]
            raise RuntimeError(
                f"rank {self.rank} of {self.size} has lost the others: a process was killed, ended with an error of "
                f"its own, or did not answer in time ({reason}). Start the same command again; with "
                "FlowVI(..., checkpoint=path) it goes on from the last save"
            ) from error


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks that torchrun has started, for as long as a run lasts; a single one where there is no torchrun.

    A process group that has been initialised is used. Else one is made from the environment
    (``WORLD_SIZE``, ``RANK``, ``MASTER_ADDR``, ``MASTER_PORT``) if ``WORLD_SIZE`` is more than one, and
    is destroyed in the end.
    """
    initialised = dist.is_available() and dist.is_initialized()
    size = dist.get_world_size() if initialised else int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    if not initialised:
        _initialise(size)
    try:
        ranks = ProcessRanks()
        try:
            yield ranks
            ranks.wait()  # or one would be gone that another still listens to
        finally:
            ranks.leave()
    finally:
        if not initialised:
            dist.destroy_process_group()


def _initialise(size: int) -> None:
    # under a name of its own: torchrun's store still has what earlier groups, and killed processes, wrote there
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"pyro_coupling/{attempt}/{size}/{next(_numbers)}", _store())
    rank = int(os.environ["RANK"])
    dist.init_process_group(_backend(), store=store, rank=rank, world_size=size, timeout=_STEP_TIMEOUT)


_numbers = itertools.count()


@functools.cache
def _store() -> dist.Store:
    """By which the processes find each other; there is one for as long as they live."""
    from torch.distributed.rendezvous import rendezvous  # not there where torch was built without distribution

    return next(rendezvous("env://", timeout=_STEP_TIMEOUT))[0]


def _backend() -> str:
    """Gloo for tensors on the CPU, NCCL for those on a GPU."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
