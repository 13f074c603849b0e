"""The time of a flow's operations beside other packages', and beside the matrix products of its networks alone.

Ours, Pyro, zuko, normflows, nflows and, where it is installed, flowjax run the same flow in turns, in random order,
until the cell's share of the time is used up: 8 couplings that move one half each, networks of 2 x 128 hidden ReLU
units, splines of 8 bins on [-5, 5], float32. The floor is what cannot be saved: those networks without a flow, in
training with their backward pass and the same fused Adam. Operations: a sample and its log density (slq), log_prob
(lp), a step on the reverse Kullback-Leibler divergence from a standard normal (rkl), a step on the likelihood (mle).
Everything runs on the same cores, as many as there are threads. Then the memory of one mle step, by live tensors.
With --compiled come two more columns: our flow compiled (compile=True), and the ordinary flow within a compiled
operation. Their compilation, a minute or two a cell each, comes on top.

    python -m benchmarks.speed [--quick] [--threads 2] [--cells 'affine/*/rkl'] [--json FILE] [--markdown FILE]
    python -m benchmarks.speed --compiled --only pyro_coupling flowjax --cells 'rational-quadratic/*' --layers
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from examples.live_memory import LiveMemory

from .cells import CELLS, KINDS, Cell, Sample, timed
from .contenders import COMPILED, COMPILED_LOSS, CONTENDERS, ours
from .operations import build, check, data, floor, loss_of, operation
from .table import markdown

MINUTES, QUICK_MINUTES = 17.0, 1.5
QUICK = ["*/D64/*/rkl", "*/D64/B4096/mle"]
#: milliseconds of calls in a row, the first not counted, before it is the next contender's turn
TURN = 50.0
LAYERS, QUICK_LAYERS = (8, 32, 64), (8,)
PACKAGES = ("torch", "pyro-ppl", "zuko", "normflows", "nflows", "flowjax", "jax")


class Flowjax:
    """The other process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", f"{__package__}.flowjax_child"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def make(self, cell: Cell) -> int:
        """Makes what `timed` times and returns the number of parameters."""
        return self._ask(cell=asdict(cell))["parameters"]

    def timed(self, calls: int) -> list[Sample]:
        return self._ask(calls=calls)["samples"]

    def _ask(self, **request) -> dict:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("flowjax's process has ended; its error is printed above")
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def take_turns(contenders: dict[str, Callable[[int], list[Sample]]], end: float) -> dict[str, list[Sample]]:
    """At least one turn each, then as many as are over by the end."""
    calls = {}
    for name, run in contenders.items():
        warm_up = run(1)
        if warm_up[0][0] < 10 * TURN:  # a first call may take several times as long as the next
            warm_up += run(2)
        calls[name] = 1 + int(TURN / min(wall for wall, _ in warm_up))
    samples = {name: [] for name in contenders}
    names, shuffle, length = list(contenders), random.Random(0).shuffle, 0.0
    while not length or time.perf_counter() + length < end:
        began = time.perf_counter()
        shuffle(names)
        for name in names:
            found = contenders[name](calls[name])
            samples[name] += found[1:] or found  # the first call after another's finds cold caches
        length = time.perf_counter() - began
    return samples


def measure(cell: Cell, seconds: float, names: list[str], flowjax: Flowjax | None) -> dict[str, dict[str, float]]:
    """Milliseconds, with quartiles, and what else there is to know of each contender."""
    end = time.perf_counter() + seconds
    torch.compiler.reset()  # torch keeps but a handful of what it compiles of one function
    runs = {"floor": partial(timed, floor(cell))}
    facts: dict[str, dict[str, float]] = {"floor": {"products": 1.0}}
    for name in names:
        flow = build(CONTENDERS[name], cell)
        checked = ours if name in COMPILED else CONTENDERS[name]  # products can't be counted in compiled code
        facts[name] = {"products": check(checked, cell), "parameters": sum(p.numel() for p in flow.module.parameters())}
        runs[name] = partial(timed, operation(cell, flow, compiled=name == COMPILED_LOSS))
        if name in COMPILED:
            facts[name]["compilation"] = max(wall for wall, _ in runs[name](2)) / 1e3
            end += facts[name]["compilation"]
    facts["floor"]["parameters"] = facts[names[0]]["parameters"]
    if flowjax:
        facts["flowjax"] = {"parameters": flowjax.make(cell)}
        runs["flowjax"] = flowjax.timed
    for name, samples in take_turns(runs, end).items():
        wall, cpu = np.array(samples).T
        low, median, high = np.quantile(wall, [0.25, 0.5, 0.75])
        facts[name] |= {"median": median, "low": low, "high": high, "calls": len(wall), "cores": cpu.sum() / wall.sum()}
    return facts


def memory(cell: Cell) -> dict[str, float]:
    """Megabytes of live tensors at the peak of the cell's loss and its backward pass."""
    peaks = {}
    contenders = CONTENDERS | {"pyro_coupling, checkpoint": partial(ours, checkpoint=True)}
    for name, make in contenders.items():
        if name in COMPILED:  # what it stores is out of sight
            continue
        flow, x = build(make, cell), data(cell)
        with LiveMemory([x, *flow.module.parameters(), *flow.module.buffers()]) as live:
            loss_of(cell, flow, x).backward()
        peaks[name] = live.peak / 1e6
    return peaks


def on_these_cores(threads: int) -> None:
    """For torch the number of threads; for all that is started from here, where the system can, the cores as well."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


def chosen(patterns: list[str]) -> list[Cell]:
    return [cell for cell in CELLS if any(fnmatch(cell.name, pattern) for pattern in patterns)]


def main() -> None:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="training at 64 dimensions only, memory at 8 layers")
    parser.add_argument("--minutes", type=float, help=f"for everything; {MINUTES:g}, or {QUICK_MINUTES:g} if quick")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", nargs="+", help="patterns of kind/D.../B.../operation")
    parser.add_argument("--only", nargs="+", help="names of packages; all if not given")
    parser.add_argument("--compiled", action="store_true", help="ours compiled as well")
    parser.add_argument("--layers", type=int, nargs="*", help="for memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    on_these_cores(options.threads)
    layers = (QUICK_LAYERS if options.quick else LAYERS) if options.layers is None else options.layers
    cells = chosen(options.cells or (QUICK if options.quick else ["*"]))
    minutes = options.minutes or (QUICK_MINUTES if options.quick else MINUTES)

    names = [name for name in CONTENDERS if name not in COMPILED and name in (options.only or CONTENDERS)]
    names += COMPILED * options.compiled
    flowjax = Flowjax() if find_spec("flowjax") and "flowjax" in (options.only or ["flowjax"]) else None
    peaks = [
        {"kind": kind, "layers": count, "megabytes": memory(Cell(kind, 64, 4096, "mle", count))}
        for kind in KINDS
        for count in layers
    ]
    rows, shares, end = [], sum(cell.share for cell in cells), began + 60 * minutes
    for cell in cells:
        seconds = (end - time.perf_counter()) * cell.share / shares
        rows.append({**asdict(cell), "contenders": measure(cell, seconds, names, flowjax)})
        end += sum(facts.get("compilation", 0.0) for facts in rows[-1]["contenders"].values())
        shares -= cell.share
        medians = {name: facts["median"] for name, facts in rows[-1]["contenders"].items()}
        print(f"{cell.name}: " + ", ".join(f"{name} {median:.3g}" for name, median in medians.items()), flush=True)
    if flowjax:
        flowjax.close()
    settings = {
        "processor": processor(),
        "threads": options.threads,
        "minutes": (time.perf_counter() - began) / 60,
        "versions": {package: version(package) for package in PACKAGES if flowjax or "jax" not in package},
    }
    results = {"settings": settings, "cells": rows, "memory": peaks}
    print("\n" + markdown(results))
    for path, text in ((options.json, json.dumps(results, indent=1)), (options.markdown, markdown(results))):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")


if __name__ == "__main__":
    main()
