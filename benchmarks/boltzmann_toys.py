"""Boltzmann generators with default settings on the toy energies: weights, partition functions, populations.

    python benchmarks/boltzmann_toys.py [--seconds 300] [--seeds 0 1] [NAME ...]

Names are double_well, muller_brown, many_well_6, many_well_32, dw4 and lj13; all if none is given. Each is trained
from its energy alone, at kT = 1, on one thread. ESS is the relative effective sample size of 50 000 fresh draws, and
log Z their estimate with its standard error; the exact value is by quadrature, for DW4 by importance sampling that
shares nothing with the flow, and for LJ13 there is none. "worst mode" is the largest relative error of a mode's
reweighted probability, from a million draws: the least of Many-Well's modes has 0.4 % of them, so that chance alone
makes 1.6 %. Results are added to those that the files hold already.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pyro_coupling.boltzmann import BoltzmannGenerator, energies

RESULTS = Path(__file__).parent / "results"
NUM_DRAWS, MODE_DRAWS = 50_000, 1_000_000
MOST_MODES = 1000
ENERGIES: dict[str, Callable[[], energies.Energy]] = {
    "double_well": energies.DoubleWell,
    "muller_brown": energies.MullerBrown,
    "many_well_6": lambda: energies.ManyWell(6),
    "many_well_32": lambda: energies.ManyWell(32),
    "dw4": energies.DW4,
    "lj13": energies.LennardJones13,
}


def dw4_log_z(energy: energies.DW4, num_draws: int = 10_000_000, seed: int = 0) -> tuple[float, float]:
    """Log of the integral over all positions about the first particle, and its standard error.

    Three distances from that particle are drawn from the density of a pair, by inversion of its distribution function,
    their directions uniformly; the weight is what the three other pairs contribute.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(0, 12, 200_001, dtype=torch.float64)
    density = 2 * math.pi * grid * (-energy.pair_energy(grid.square())).exp()
    cumulated = torch.cumulative_trapezoid(density, grid)
    pair = cumulated[-1]
    first = second = 0.0
    for part in [500_000] * (num_draws // 500_000):
        uniform = pair * torch.rand(3 * part, dtype=torch.float64, generator=generator)
        cell = torch.searchsorted(cumulated, uniform).clamp(max=len(cumulated) - 1)
        distances = grid[cell] + grid[1] * torch.rand(3 * part, dtype=torch.float64, generator=generator)
        angles = 2 * math.pi * torch.rand(3 * part, dtype=torch.float64, generator=generator)
        x, y = ((distances * wave).reshape(3, part) for wave in (angles.cos(), angles.sin()))
        others = sum(
            energy.pair_energy((x[i] - x[j]).square() + (y[i] - y[j]).square()) for i, j in ((0, 1), (0, 2), (1, 2))
        )
        weights = (-others).exp()
        first, second = first + weights.sum().item(), second + weights.square().sum().item()
    mean = first / num_draws
    return math.log(mean) + 3 * math.log(pair), math.sqrt((second / num_draws / mean**2 - 1) / num_draws)


def exact_log_z(energy: energies.Energy) -> float | None:
    if isinstance(energy, energies.DW4):
        return dw4_log_z(energy)[0]
    return energy.log_z(1.0) if hasattr(energy, "log_z") else None


def worst_mode(energy: energies.Energy, generator: BoltzmannGenerator) -> float | None:
    """Largest relative error of the probability of a mode."""
    if not hasattr(energy, "mode_weights") or len(exact := energy.mode_weights(1.0)) > MOST_MODES:
        return None
    draws = generator.sample(MODE_DRAWS)
    weights = draws.log_weights.double().softmax(0)
    found = torch.zeros_like(exact).index_add_(0, energy.modes(draws.positions), weights)
    return float((found / exact - 1).abs().max())


def measure(name: str, seconds: float, seed: int) -> dict:
    energy = ENERGIES[name]()
    began, cpu = time.perf_counter(), time.process_time()
    generator = BoltzmannGenerator(energy, kT=1.0, seed=seed, progress=False).train(max_seconds=seconds)
    row = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    found = generator.diagnostics(NUM_DRAWS)
    kept = ("ess", "ess_clipped", "log_z", "log_z_se", "num_energies", "num_steps")
    return {
        "name": name, "seed": seed, "dims": generator.target.dim, **{key: found[key] for key in kept},
        "exact_log_z": exact_log_z(energy), "worst_mode": worst_mode(energy, generator), **row,
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    head = ["energy", "coordinates", "seed", "ESS", "log Z", "exact", "worst mode", "energies", "steps", "seconds",
            "of them on the core"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---|" * (len(head) - 1)]
    for row in rows:
        exact, mode = row["exact_log_z"], row["worst_mode"]
        cells = [
            row["name"], row["dims"], row["seed"], f"{row['ess']:.3f}", f"{row['log_z']:.4f} ± {row['log_z_se']:.4f}",
            "-" if exact is None else f"{exact:.4f}", "-" if mode is None else f"{mode:.1%}",
            f"{row['num_energies']:,}", row["num_steps"], f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ENERGIES))
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "boltzmann_toys.json")
    parser.add_argument("--markdown", type=Path, default=RESULTS / "boltzmann_toys.md")
    options = parser.parse_args()
    if unknown := set(options.names) - set(ENERGIES):
        parser.error(f"unknown energies: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    rows = {(row["name"], row["seed"]): row for row in (json.loads(options.json.read_text())["rows"]
                                                         if options.json.exists() else [])}  # fmt: skip
    for name in options.names or ENERGIES:
        for seed in options.seeds:
            rows[name, seed] = measure(name, options.seconds, seed)
            print(rows[name, seed], flush=True)
            order = sorted(rows, key=lambda key: (list(ENERGIES).index(key[0]), key[1]))
            found = {"cores": os.cpu_count(), "torch": torch.__version__, "rows": [rows[key] for key in order]}
            options.json.write_text(json.dumps(found, indent=1) + "\n")
            options.markdown.write_text(table(found["rows"]))


if __name__ == "__main__":
    main()
