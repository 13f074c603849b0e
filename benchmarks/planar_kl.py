"""How close a spline flow comes to six densities on the plane: this package and zuko, side by side.

``KL(p || flow)`` in nats, exact up to the error of a mean, for ``flows.neural_spline`` and zuko's ``NSF(passes=2)``,
its coupling setting, of as many layers, bins and hidden units. Both move one half by splines that depend on the other
and the other half by splines that depend on nothing, in every layer. ``--flows`` adds zuko's ``NICE`` with spline maps,
which leaves the other half as it is. All take the same steps on the same batches in turns, with one optimiser setting
for all densities and flows, and are judged on the same fresh points. Each density is scaled to unit variance first.

    python benchmarks/planar_kl.py [--steps 2000] [--seeds 3] [--json benchmarks/results/planar_kl.json]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pyro_coupling import flows

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from planar import DENSITIES, Density

LAYERS, BINS, HIDDEN = 5, 8, (64, 64)
MAX_LOG_RATIO = 2.0  # of ours, for sharp densities; zuko's corresponds to 3.5
BATCH, RATE, TEST_SAMPLES = 512, 3e-3, 50_000
BASE = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)


def ours() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    flow = flows.neural_spline(2, LAYERS, HIDDEN, num_bins=BINS, max_log_ratio=MAX_LOG_RATIO)
    flow = flow.inv  # as zuko's, which maps data to base noise

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = flow.inverse_and_log_det(x)
        return BASE.log_prob(z) + log_det

    return flow, log_prob


def zuko_nsf() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    flow = zuko.flows.NSF(2, transforms=LAYERS, bins=BINS, hidden_features=HIDDEN, passes=2)
    return flow, lambda x: flow().log_prob(x)


def zuko_couplings() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    flow = zuko.flows.NICE(
        2,
        transforms=LAYERS,
        univariate=zuko.transforms.MonotonicRQSTransform,
        shapes=[(BINS,), (BINS,), (BINS - 1,)],
        hidden_features=HIDDEN,
    )
    return flow, lambda x: flow().log_prob(x)


CONTENDERS = {"pyro_coupling": ours, "zuko NSF": zuko_nsf, "zuko NICE": zuko_couplings}


class Contender:
    """A flow with its optimiser and the seconds it has taken."""

    def __init__(self, make: Callable, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.flow, self.log_prob = make()
        self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=RATE, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.seconds = 0.0

    def step(self, x: Tensor) -> None:
        began = time.perf_counter()
        self.optimizer.zero_grad()
        (-self.log_prob(x).mean()).backward()
        nn.utils.clip_grad_norm_(self.flow.parameters(), 10.0)
        self.optimizer.step()
        self.schedule.step()
        self.seconds += time.perf_counter() - began


def race(density: Density, names: list[str], seed: int, steps: int) -> dict[str, dict[str, float]]:
    """KL, its standard error and the seconds of training of each contender."""
    scale = density.sample(100_000, torch.Generator().manual_seed(0)).std(0)
    contenders = {name: Contender(CONTENDERS[name], seed, steps) for name in names}
    generator = torch.Generator().manual_seed(1000 + seed)
    for _ in range(steps):
        x = (density.sample(BATCH, generator) / scale).float()
        for contender in contenders.values():
            contender.step(x)
    test = density.sample(TEST_SAMPLES, torch.Generator().manual_seed(1))
    log_p = density.log_prob(test) + scale.log().sum()
    results = {}
    for name, contender in contenders.items():
        with torch.no_grad():
            difference = log_p - contender.log_prob((test / scale).float()).double()
        results[name] = {
            "kl": difference.mean().item(),
            "error": difference.std().item() / math.sqrt(TEST_SAMPLES),
            "seconds": contender.seconds,
            "parameters": sum(p.numel() for p in contender.flow.parameters()),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--densities", nargs="+", default=list(DENSITIES), choices=list(DENSITIES))
    parser.add_argument("--flows", nargs="+", default=["pyro_coupling", "zuko NSF"], choices=list(CONTENDERS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    print("| density | " + " | ".join(options.flows) + " |\n" + "|---" * (1 + len(options.flows)) + "|")
    for name in options.densities:
        rows[name] = [race(DENSITIES[name](), options.flows, seed, options.steps) for seed in range(options.seeds)]
        cells = (" ".join(f"{run[flow]['kl']:.4f}" for run in rows[name]) for flow in options.flows)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    runs = [run for seeds in rows.values() for run in seeds]
    largest = max(cell["error"] for run in runs for cell in run.values())
    print(f"\nOne number for each seed; standard errors of the means up to {largest:.4f}, mostly shared by a row.")
    for flow in options.flows:
        seconds = statistics.mean(run[flow]["seconds"] for run in runs) * 1e3 / options.steps
        mean = statistics.mean(run[flow]["kl"] for run in runs)
        print(f"{flow}: mean KL {mean:.4f}, {runs[0][flow]['parameters']} parameters, {seconds:.1f} ms a step")
    if options.json:
        settings = {
            "layers": LAYERS,
            "bins": BINS,
            "hidden": HIDDEN,
            "batch": BATCH,
            "rate": RATE,
            "max_log_ratio": MAX_LOG_RATIO,
        }
        settings |= {"steps": options.steps, "torch": torch.__version__, "zuko": zuko.__version__}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"settings": settings, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
