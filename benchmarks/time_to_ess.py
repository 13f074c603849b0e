"""How long FlowVI takes to a relative effective sample size of 0.9, where that time goes, and NUTS beside it.

Every posterior of a folder laid out as the evaluation's runs in a process of its own, with default settings. While
it trains, the weights of the latest 100 steps (of a flow that still moves, so they are more uneven than those
of the result) are read every 20 steps; the run ends as soon as their ESS reaches the goal. Then the parts of a step
are timed: on the model, and on a density that costs nothing. "rest" is what these do not account for: Python, the
ordinary steps before the recording, the recording itself. NUTS is Pyro's, one chain.

    python benchmarks/time_to_ess.py --root ../shared/evaluation [--nuts 400] [--json FILE] [--markdown FILE] [NAME ...]

"seconds" is from the call of run, warm start included; "NUTS" is the time to the same least bulk ESS over all latents
as ``--nuts`` says, and to as many as FlowVI's 4000 draws are worth, extrapolated from the draws that fit into
``--nuts-seconds``. A posterior of several modes has no such time: effective draws there speak of one mode alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyro
import torch

from pyro_coupling import FlowVI
from pyro_coupling.diagnostics import relative_ess
from pyro_coupling.targets import Target
from pyro_coupling.training import Trainer, TrainingState

GOAL = 0.9
READ_EVERY, READINGS = 20, 5
DRAWS = 4000
RECORDED = 101  # number of a step that comes after the recording, and not one at which that is checked


class GoalReached(Exception):  # noqa: N818
    """Ends a run."""


class Watch:
    """Reads the weights of a run as it goes, and notes when they were good enough."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first: float | None = None
        self.reached: float | None = None
        self.steps = 0
        self.ess = 0.0
        self._recent: list[torch.Tensor] = []

    def __call__(self, state: TrainingState) -> None:
        now = time.perf_counter() - self.began
        self.first = self.first or now
        self.steps = state.step
        if state.step % READ_EVERY == 0:
            self._recent = [*self._recent, state.log_weights][-READINGS:]
            self.ess = relative_ess(torch.cat(self._recent))
            if len(self._recent) == READINGS and self.ess >= GOAL:
                self.reached = now
                raise GoalReached


def flow_row(name: str, seconds: float, seed: int) -> dict:
    module, arguments = _load(name)
    watch = Watch()
    vi = FlowVI(module.model, max_seconds=seconds, seed=seed, progress=False, callback=watch)
    with contextlib.suppress(GoalReached):
        vi.run(**arguments)
    parts = step_parts(vi)
    return {
        "dims": vi.target.dim, "reached": watch.reached, "ess": watch.ess, "steps": watch.steps,
        "warm_start": watch.first, "training": (watch.reached or seconds) - watch.first, **parts,
    }  # fmt: skip


class Flat:
    """A target that costs nothing: a step on it is the flow's share of a step."""

    chunk_size = 1_000_000

    def __init__(self, target: Target) -> None:
        self.dim, self.dtype, self.device = target.dim, target.dtype, target.device

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return 0.0 * x.sum(-1)


def step_parts(vi: FlowVI) -> dict:
    """Milliseconds of a step, once it is recorded: in the flow, in the model, in the optimiser."""
    flow = vi.guide.get_transform()
    z = torch.randn(vi.num_particles, vi.target.dim)
    on_model, on_nothing = (Trainer(flow, target) for target in (vi.target, Flat(vi.target)))
    for step in range(RECORDED + 1):
        on_model.gradient_step(z, False, step)
        on_nothing.gradient_step(z, False, step)
    whole = _median_ms(lambda: on_model.gradient_step(z, False, RECORDED))
    flow_ms = _median_ms(lambda: on_nothing.gradient_step(z, False, RECORDED))
    return {
        "step": on_model.gradient_step.mode, "flow_ms": flow_ms, "model_ms": max(0.0, whole - flow_ms),
        "optimizer_ms": _median_ms(on_model.clip_and_step),
    }  # fmt: skip


def nuts_row(name: str, goal: int, seconds: float, warmup: int = 300) -> dict:
    """Time of one chain to the least bulk ESS, and effective draws a second after the warm-up."""
    import arviz as az
    from pyro.infer import MCMC, NUTS

    module, arguments = _load(name)
    pyro.set_rng_seed(0)
    # improper priors can be sampled neither for a start nor to count plates
    kernel = NUTS(module.model, init_strategy=_common().init_loc_fn, max_plate_nesting=1)
    kept: list[torch.Tensor] = []
    began = time.perf_counter()
    warm = ess = 0.0

    def keep(_kernel: object, point: dict, stage: str, _step: int) -> None:
        nonlocal warm, ess
        now = time.perf_counter() - began
        if stage != "Sample":
            if now > seconds:
                raise GoalReached
            return
        warm = warm or now
        kept.append(torch.cat([value.reshape(-1) for value in point.values()]))
        if len(kept) % 50 == 0 or now > seconds:
            columns = torch.stack(kept).numpy().T
            ess = min(float(az.ess(column[None])) for column in columns) if len(kept) > 10 else 0.0
            if ess >= goal or now > seconds:
                raise GoalReached

    with contextlib.suppress(GoalReached):
        MCMC(kernel, 100_000, warmup, hook_fn=keep, disable_progbar=True).run(**arguments)
    wall = time.perf_counter() - began
    rate = ess / (wall - warm) if warm and ess == ess else 0.0
    return {"nuts_wall": wall, "nuts_warmup": warm, "nuts_ess": ess, "nuts_draws": len(kept), "nuts_rate": rate}


def nuts_time(row: dict, effective: float) -> float | None:
    """Seconds in which NUTS makes so many effective draws, if it made any."""
    return row["nuts_warmup"] + effective / row["nuts_rate"] if row.get("nuts_rate") else None


def table(rows: dict[str, dict], goal: int) -> str:
    head = ["posterior", "latents", "mode", "steps", "ESS", "seconds", "warm start", "model", "flow", "optimiser",
            "rest", f"NUTS, {goal} effective s", f"NUTS, {int(GOAL * DRAWS)} effective s"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---|" * (len(head) - 1)]
    for name, row in rows.items():
        lines.append("| " + " | ".join([name, *_cells(row, goal)]) + " |")
    reached = [row["reached"] or float("inf") for row in rows.values()]
    return "\n".join([*lines, "", f"Median over {len(rows)} posteriors: {statistics.median(reached):.1f} s."])


def _cells(row: dict, goal: int) -> list[str]:
    total = row["warm_start"] + row["training"]
    parts = [1e-3 * row["steps"] * row[part] for part in ("model_ms", "flow_ms", "optimizer_ms")]
    parts.append(max(0.0, row["training"] - sum(parts)))
    nuts = [nuts_time(row, goal), nuts_time(row, GOAL * DRAWS)]
    return [
        str(row["dims"]), row["step"], str(row["steps"]), f"{row['ess']:.2f}",
        "not reached" if row["reached"] is None else f"{row['reached']:.1f}", f"{row['warm_start'] / total:.0%}",
        *(f"{part / total:.0%}" for part in parts), *("-" if value is None else f"{value:.0f}" for value in nuts),
    ]  # fmt: skip


def _median_ms(function: Callable[[], object], calls: int = 15) -> float:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def _common():
    import common

    return common


def _load(name: str):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    return _common().load(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nuts", type=int, default=0, help="effective draws to run NUTS to; 0 leaves it out")
    parser.add_argument("--nuts-seconds", type=float, default=90.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", choices=("flow", "nuts"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.path.insert(0, str(options.root))
        (name,) = options.names
        row = (
            flow_row(name, options.seconds, options.seed) if options.one == "flow"
            else nuts_row(name, options.nuts, options.nuts_seconds)
        )  # fmt: skip
        print("ROW " + json.dumps(row))
        return
    rows: dict[str, dict] = {}
    for name in options.names or sorted(path.stem for path in (options.root / "models").glob("[!_]*.py")):
        rows[name] = {}
        for kind in ("flow", "nuts") if options.nuts else ("flow",):
            command = [sys.executable, "-W", "ignore", __file__, name, "--one", kind, "--root", str(options.root)]
            command += ["--seconds", str(options.seconds), "--seed", str(options.seed)]
            command += ["--nuts", str(options.nuts), "--nuts-seconds", str(options.nuts_seconds)]
            environment = os.environ | {"POSTERIORS": str(options.root)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            found = [line for line in done.stdout.splitlines() if line.startswith("ROW ")]
            if not found:
                raise SystemExit(f"{name} ({kind}):\n{done.stderr}")
            rows[name] |= json.loads(found[-1][4:])
        print(f"| {name} | " + " | ".join(_cells(rows[name], options.nuts)) + " |", flush=True)
    print("\n" + table(rows, options.nuts))
    if options.markdown:
        options.markdown.write_text(table(rows, options.nuts) + "\n")
    if options.json:
        options.json.write_text(json.dumps({"nuts": options.nuts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
