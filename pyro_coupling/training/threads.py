"""How many threads a fit runs on, decided for the problem and undone afterwards."""

from __future__ import annotations

__all__ = ["suitable_threads"]

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Below this many bytes of intermediate values a second thread gains little, and where another program uses the
# machine it loses much: threads wait for each other.
_SMALL_STEP = 64 * 2**20


@contextmanager
def suitable_threads(step_bytes: int) -> Iterator[None]:
    """Runs a block on one thread if a step is small, on as many as torch has been told otherwise.

    The choice depends on sizes alone, so that a run under one seed is the same every time.

    Args:
        step_bytes: Memory for the intermediate values of one evaluation of the target on all particles.
    """
    before = torch.get_num_threads()
    if step_bytes < _SMALL_STEP and before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
