"""Many runs of SciPy's L-BFGS-B side by side, all their function values from one batched call."""

from __future__ import annotations

__all__ = ["Path", "minimize_in_lockstep"]

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize

_HUGE = 1e30  # in place of an infinite value, which the line search cannot interpolate


class _StoppedError(Exception):
    pass


@dataclass
class Path:
    """Accepted iterates of one run, from the starting point on.

    Attributes:
        points: Iterates, each ``(dim,)``.
        gradients: Gradients of the minimised function at them.
    """

    points: list[np.ndarray] = field(default_factory=list)
    gradients: list[np.ndarray] = field(default_factory=list)


def minimize_in_lockstep(
    value_and_gradient: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    starts: np.ndarray,
    max_evaluations: int,
    out_of_time: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """Minimises one function from several starting points.

    A model in Python costs much the same for one point as for ten, so the runs wait for each other:
    every run is a thread that asks for a value, and the calling thread, the only one to call the
    function, answers all of them at once.

    Args:
        value_and_gradient: ``(n, dim)`` -> values ``(n,)`` and gradients ``(n, dim)``; a value may be infinite.
        starts: Starting points, ``(runs, dim)``.
        max_evaluations: Largest number of calls.
        out_of_time: Asked before each call; True ends all runs where they are.

    Returns:
        One `Path` for each run.
    """
    asked: queue.Queue[tuple[int, np.ndarray | None]] = queue.Queue()
    answers: list[queue.Queue] = [queue.Queue() for _ in starts]
    paths = [Path() for _ in starts]

    def run(k: int) -> None:
        seen: dict[bytes, np.ndarray] = {}

        def function(x: np.ndarray) -> tuple[float, np.ndarray]:
            asked.put((k, x.copy()))
            answer = answers[k].get()
            if answer is None:
                raise _StoppedError
            value, gradient = answer
            seen[x.tobytes()] = gradient
            if not paths[k].points and value < _HUGE:
                paths[k].points.append(x.copy())
                paths[k].gradients.append(gradient)
            return value, gradient

        def accept(x: np.ndarray) -> None:
            gradient = seen.get(x.tobytes())
            if gradient is not None:
                paths[k].points.append(x.copy())
                paths[k].gradients.append(gradient)
            seen.clear()

        options = {"maxcor": 20, "maxiter": max_evaluations, "maxfun": max_evaluations, "ftol": 1e-13, "gtol": 1e-8}
        try:
            optimize.minimize(function, starts[k], jac=True, method="L-BFGS-B", callback=accept, options=options)
        except _StoppedError:
            pass
        finally:
            asked.put((k, None))

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(len(starts))]
    for thread in threads:
        thread.start()
    running, calls = set(range(len(starts))), 0
    try:
        while running:
            waiting: dict[int, np.ndarray] = {}
            while len(waiting) < len(running):
                k, x = asked.get()
                if x is None:
                    running.discard(k)
                else:
                    waiting[k] = x
            if not waiting:
                break
            if calls >= max_evaluations or out_of_time():
                break
            calls += 1
            values, gradients = value_and_gradient(np.stack(list(waiting.values())))
            values = np.where(np.isfinite(values), values, _HUGE)
            for row, k in enumerate(waiting):
                answers[k].put((float(values[row]), gradients[row]))
    finally:
        for answer in answers:
            answer.put(None)
        for thread in threads:
            thread.join()
    return paths
