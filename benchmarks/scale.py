"""Cost against the number of latents, particles and layers, and one fit of 5 000 latents judged by known truth.

The model is a regression with an intercept and a slope for each group, centred, of synthetic data: 2 latents a group
and 8 that all share, float64. Each row of the table is a process of its own, for its peak of resident memory; times
are of the processor, on one thread, medians over steps. The fit is given eight minutes by the clock.

    python benchmarks/scale.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

from pyro_coupling import AutoCouplingFlow, FlowVI, flows
from pyro_coupling.targets import PyroTarget
from pyro_coupling.training import Trainer

SHARED, OBSERVATIONS = 8, 20
TRUTH = {
    "mu_a": 1.0,
    "mu_b": -0.5,
    "tau_a": 0.8,
    "tau_b": 0.5,
    "sigma": 1.0,
    "beta_0": 0.3,
    "beta_1": -0.2,
    "beta_2": 0.1,
}
DIMS, PARTICLES, LAYERS = (10, 100, 1000, 5000, 10_000), (32, 128, 512), (2, 8, 16)
COLUMNS = ("latents", "particles", "layers", "parameters", "ms a step", "warm start s", "peak MB")


def model(x: torch.Tensor, z: torch.Tensor, y: torch.Tensor) -> None:
    zero = x.new_zeros(())
    mu_a, mu_b = (pyro.sample(name, dist.Normal(zero, 5.0)) for name in ("mu_a", "mu_b"))
    tau_a, tau_b, sigma = (pyro.sample(name, dist.HalfNormal(zero + 1.0)) for name in ("tau_a", "tau_b", "sigma"))
    beta = [pyro.sample(f"beta_{i}", dist.Normal(zero, 1.0)) for i in range(len(z))]
    with pyro.plate("groups", x.size(1), dim=-1):
        a = pyro.sample("a", dist.Normal(mu_a, tau_a))
        b = pyro.sample("b", dist.Normal(mu_b, tau_b))
        with pyro.plate("observations", len(x), dim=-2):
            mean = a + b * x + sum(slope * row for slope, row in zip(beta, z, strict=True))
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def data(latents: int) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Arguments of the model, and the values of its latents they were drawn with."""
    generator = torch.Generator().manual_seed(latents)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    groups = (latents - SHARED) // 2
    x, z = normal(OBSERVATIONS, groups), normal(3, OBSERVATIONS, groups)
    x = x - x.mean(0)
    truth = {name: torch.tensor(value, dtype=torch.float64) for name, value in TRUTH.items()}
    truth["a"] = truth["mu_a"] + truth["tau_a"] * normal(groups)
    truth["b"] = truth["mu_b"] + truth["tau_b"] * normal(groups)
    mean = truth["a"] + truth["b"] * x + sum(truth[f"beta_{i}"] * z[i] for i in range(3))
    return (x, z, mean + truth["sigma"] * normal(OBSERVATIONS, groups)), truth


def cost(latents: int, particles: int, layers: int, steps: int) -> dict[str, float]:
    """One row of a table."""
    torch.manual_seed(0)
    args, _ = data(latents)
    target = PyroTarget(model, args)
    guide = AutoCouplingFlow(model, partial(flows.real_nvp, num_layers=layers, outer_affine=False))
    began = time.process_time()
    guide.setup(target, args, {}, generator=torch.Generator().manual_seed(0))
    seconds = time.process_time() - began
    trainer = Trainer(guide.get_transform(), target, num_particles=particles, max_steps=steps + 5)
    at = []
    trainer.run(lambda state: at.append(time.process_time()))
    times = [1e3 * (after - before) for before, after in itertools.pairwise(at[4:])]
    parameters = sum(p.numel() for p in guide.parameters())
    row = (latents, particles, layers, parameters, statistics.median(times), seconds, _peak_megabytes())
    return dict(zip(COLUMNS, row, strict=True))


def fit(latents: int, seconds: float) -> dict[str, object]:
    """A whole run of `FlowVI`: its own verdict, and how far the posterior lies from the truth in its own widths."""
    args, truth = data(latents)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vi = FlowVI(model, seed=0, max_seconds=seconds, progress=False).run(*args)
    draws = vi.get_samples(1000)
    errors = {name: (draws[name].mean(0) - truth[name]) / draws[name].std(0) for name in truth}
    return {
        **vi.diagnostics(),
        "latents": latents,
        "warned": any("Not to be trusted" in str(warning.message) for warning in caught),
        "elbo_by_step": dict(zip(vi.record.steps, vi.record.elbo, strict=True)),
        "z_of_truth": {name: errors[name].item() for name in TRUTH},
        "rms_z_of_group_latents": torch.cat([errors["a"], errors["b"]]).square().mean().sqrt().item(),
        "peak MB": _peak_megabytes(),
        "processor seconds": time.process_time(),
    }


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _in_own_process(kind: str, *numbers: float) -> dict:
    command = [sys.executable, __file__, "--only", kind, *map(str, numbers)]
    printed = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return json.loads(printed.stdout.splitlines()[-1])


def _table(rows: list[dict]) -> str:
    lines = [" | ".join(COLUMNS), "|".join(["---", *["--:"] * (len(COLUMNS) - 1)])]
    lines += [
        " | ".join(f"{row[c]:.3g}" if isinstance(row[c], float) else f"{row[c]:,}" for c in COLUMNS) for row in rows
    ]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 1 000 latents, and a fit of 1 000 in a minute")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        kind, *numbers = options.only
        print(json.dumps(cost(*map(int, numbers)) if kind == "cost" else fit(int(numbers[0]), float(numbers[1]))))
        return
    dims, steps, trial = (DIMS[:3], 10, (1000, 60)) if options.quick else (DIMS, 20, (5000, 480))
    cells = [(dim, 128, 8) for dim in dims]
    cells += [(1000, particles, 8) for particles in PARTICLES if particles != 128]
    cells += [(1000, 128, layers) for layers in LAYERS if layers != 8]
    rows = [_in_own_process("cost", *cell, steps) for cell in cells]
    print(_table(rows), flush=True)
    trial_result = _in_own_process("fit", *trial)
    print(json.dumps({k: v for k, v in trial_result.items() if k != "elbo_by_step"}, indent=1))
    if options.json:
        settings = {"processor": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"settings": settings, "cost": rows, "fit": trial_result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
