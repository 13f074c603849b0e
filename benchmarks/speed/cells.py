"""What is measured: kind of coupling, size, batch and operation; and how a call is timed."""

from __future__ import annotations

__all__ = ["BINS", "BOUND", "CELLS", "HIDDEN", "KINDS", "LEARNING_RATE", "OPERATIONS", "Cell", "Sample", "timed"]

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

HIDDEN, BINS, BOUND = (128, 128), 8, 5.0
#: so small that the weights stay as they are, and every call does the same work
LEARNING_RATE = 1e-8
#: numbers that a conditioner puts out for each moved entry: shift and scale; widths, heights and inner slopes
KINDS = {"affine": 2, "rational-quadratic": 3 * BINS - 1}
DIMS, BATCHES = (8, 64, 256), (256, 4096)
#: sample and log q, log_prob, reverse-KL step, maximum-likelihood step
OPERATIONS = ("slq", "lp", "rkl", "mle")
#: milliseconds by the clock, and of all cores together
Sample = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    kind: str
    dim: int
    batch: int
    operation: str
    layers: int = 8

    @property
    def name(self) -> str:
        return f"{self.kind}/D{self.dim}/B{self.batch}/{self.operation}"

    @property
    def samples(self) -> bool:
        return self.operation in ("slq", "rkl")

    @property
    def trains(self) -> bool:
        return self.operation in ("rkl", "mle")

    @property
    def num_params(self) -> int:
        return KINDS[self.kind]

    @property
    def share(self) -> float:
        """Of the time there is: set-up and compilation, then more for what takes long, though for fewer repeats."""
        return 1000 + math.sqrt(self.dim * self.batch * self.num_params) * (2 if self.trains else 1)


CELLS = sorted(
    itertools.starmap(Cell, itertools.product(KINDS, DIMS, BATCHES, OPERATIONS)), key=lambda cell: cell.share
)


def timed(run: Callable[[], object], calls: int) -> list[Sample]:
    """Each of a number of calls."""
    samples = []
    for _ in range(calls):
        cpu, wall = time.process_time(), time.perf_counter()
        run()
        samples.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    return samples
