"""Where a training step's time goes: FlowVI's, recorded and not, and Pyro's SVI with AutoNormalizingFlow, side by side.

Pyro's is timed as it stands, `SVI.step` with either of its usual optimisers, and by hand: its traces with torch's
fused Adam, which is the least that Pyro's handlers can take.

Eight schools, non-centred (10 latents), 128 particles, 8 affine couplings of 2 x 64 hidden units, float64, one thread.
All are timed in turns within one run; figures are medians with the 10 % and 90 % quantiles.

    python benchmarks/step_time.py [--steps 200] [--compile] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.distributions.transforms import affine_coupling, iterated
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow

from pyro_coupling import AutoCouplingFlow
from pyro_coupling.targets import PyroTarget, log_prob_and_score
from pyro_coupling.training import Trainer

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)
PARTICLES, LAYERS, HIDDEN = 128, 8, (64, 64)
IN_A_ROW = 10  # steps of one before it is another's turn, so that its tensors are in the cache as in a run of its own
RECORDED = 101  # number of a step that is recorded, and not one at which the recording is checked


def eight_schools(y: torch.Tensor, sigma: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta, sigma), obs=y)


class Stopwatch:
    """Milliseconds between calls, by label."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self.restart()

    def restart(self) -> None:
        self._at = time.perf_counter()

    def lap(self, label: str) -> None:
        now = time.perf_counter()
        self.times[label].append(1e3 * (now - self._at))
        self._at = now

    def row(self) -> dict[str, tuple[float, float, float]]:
        labels = {**self.times, "whole step": [sum(parts) for parts in zip(*self.times.values(), strict=True)]}
        levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        return {k: tuple(torch.tensor(v, dtype=torch.float64).quantile(levels).tolist()) for k, v in labels.items()}


def our_trainer(**settings) -> Trainer:
    guide = AutoCouplingFlow(eight_schools)
    guide(Y, SIGMA)
    return Trainer(guide.get_transform(), PyroTarget(eight_schools, (Y, SIGMA)), num_particles=PARTICLES, **settings)


def ordinary_step() -> Callable[[Stopwatch], None]:
    trainer = our_trainer()

    def step(watch: Stopwatch) -> None:
        watch.restart()
        for parameter in trainer.parameters:
            parameter.grad = None
        z = torch.randn(PARTICLES, trainer.target.dim)
        x, _, score_q = trainer.flow.forward_and_score(z, -z)
        watch.lap("flow (with score)")
        _, score_p = log_prob_and_score(trainer.target, x)
        watch.lap("model (with score)")
        torch.autograd.backward([x], [(score_q - score_p) / PARTICLES])
        watch.lap("backward")
        trainer.clip_and_step()
        trainer.record.num_steps += 1  # averages are not taken in every step
        watch.lap("optimiser")

    return step


def replayed_step(compile: bool) -> Callable[[Stopwatch], None]:
    """The step as FlowVI takes it, once it is recorded."""
    trainer = our_trainer(compile=compile)

    def step(watch: Stopwatch) -> None:
        watch.restart()
        trainer.gradient_step(torch.randn(PARTICLES, trainer.target.dim), covering=False, step=RECORDED)
        watch.lap("flow, model, backward")
        trainer.clip_and_step()
        trainer.record.num_steps += 1  # averages are not taken in every step
        watch.lap("optimiser")

    return step


def pyro_guide() -> AutoNormalizingFlow:
    return AutoNormalizingFlow(eight_schools, partial(iterated, LAYERS, affine_coupling, hidden_dims=list(HIDDEN)))


def svi_step(optimizer: pyro.optim.PyroOptim) -> Callable[[Stopwatch], None]:
    """Pyro's step as its tutorials take it."""
    svi = SVI(eight_schools, pyro_guide(), optimizer, Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True))

    def step(watch: Stopwatch) -> None:
        watch.restart()
        svi.step(Y, SIGMA)
        watch.lap("everything")

    return step


def fastest_pyro_step() -> Callable[[Stopwatch], None]:
    """Pyro's traces with the fused Adam of torch, on all parameters at once."""
    guide = pyro_guide()
    guide(Y, SIGMA)
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-3, fused=True)

    def particles() -> pyro.plate:
        return pyro.plate("particles", PARTICLES, dim=-2)

    def step(watch: Stopwatch) -> None:
        watch.restart()
        optimizer.zero_grad(set_to_none=True)
        with particles():
            guide_trace = poutine.trace(guide).get_trace(Y, SIGMA)
            guide_trace.compute_log_prob()
        watch.lap("flow (with log q)")
        with particles():
            model_trace = poutine.trace(poutine.replay(eight_schools, guide_trace)).get_trace(Y, SIGMA)
            model_trace.compute_log_prob()
        loss = (guide_trace.log_prob_sum() - model_trace.log_prob_sum()) / PARTICLES
        watch.lap("model")
        loss.backward()
        watch.lap("backward")
        torch.nn.utils.clip_grad_norm_(guide.parameters(), 10.0)
        optimizer.step()
        watch.lap("optimiser")

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--compile", action="store_true", help="the compiled step too; half a minute more")
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    contenders = {
        "pyro_coupling, as FlowVI steps": replayed_step(compile=False),
        "pyro_coupling, not recorded": ordinary_step(),
        "Pyro, SVI.step with Adam": svi_step(pyro.optim.Adam({"lr": 1e-3})),
        "Pyro, SVI.step with ClippedAdam": svi_step(pyro.optim.ClippedAdam({"lr": 1e-3})),
        "Pyro, traces and fused Adam by hand": fastest_pyro_step(),
    }
    if options.compile:
        contenders["pyro_coupling, compiled"] = replayed_step(compile=True)
    watches = {name: Stopwatch() for name in contenders}
    for turn in range(options.steps // IN_A_ROW + 2):
        if turn == 2:  # past the warm-up
            watches = {name: Stopwatch() for name in contenders}
        for name, step in contenders.items():
            for _ in range(IN_A_ROW):
                step(watches[name])
    rows = {name: watch.row() for name, watch in watches.items()}
    for name, row in rows.items():
        print(f"\n{name}\n| part | median ms | 10 % | 90 % |\n|---|---|---|---|")
        for part, (low, median, high) in row.items():
            print(f"| {part} | {median:.2f} | {low:.2f} | {high:.2f} |")
    print("\ntimes of each, over ours (ours have the path gradient, Pyro's the total one):")
    ours = [name for name in rows if name.startswith("pyro_coupling")]
    print(f"| | {' | '.join(ours)} |\n|---|{'--:|' * len(ours)}")
    for name, row in rows.items():
        ratios = [f"{row['whole step'][1] / rows[our]['whole step'][1]:.2f}" for our in ours]
        print(f"| {name} | {' | '.join(ratios)} |")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
