"""How often the stated 95 % interval of a free-energy difference holds the exact one.

Twenty repetitions of `examples/free_energy.py`, each with two generators that are trained anew from a fresh seed, for
a few seconds, and with fresh samples. Beside the difference of the two systems that of two conformers of the first, by
the weighted draws of its generator.

    python benchmarks/free_energy_coverage.py [--repetitions 20] [--steps 150] [--dim 4] [--samples 5000]
        [--json FILE] [--markdown FILE]

If the intervals are right, the number of misses among twenty is binomial: 0 to 3 in 98.4 % of cases, 4 in 1.3 %.
The error that is stated is compared with the one that was made, too: the root mean square of ``(estimate - exact) /
standard error`` should be 1, within 0.32 (two standard deviations for twenty).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from scipy.stats import binom

from pyro_coupling.boltzmann import BoltzmannGenerator, state_difference
from pyro_coupling.boltzmann.free_energy import FreeEnergyDifference

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from free_energy import estimates, exact, systems, trained


def conformers(generator: BoltzmannGenerator, num_samples: int) -> FreeEnergyDifference:
    """Left less right of the first well, by weighted draws."""
    positions, _, log_weights = generator.sample(num_samples)
    return state_difference(positions[:, 0] > 0, positions[:, 0] < 0, log_weights)


def exact_conformers(a: BoltzmannGenerator) -> float:
    """By quadrature; the wells of the system are independent and alike."""
    x = torch.linspace(-6, 6, 120_001, dtype=torch.float64)
    points = torch.stack([x, torch.zeros_like(x)], -1)
    log_weights = -systems(2)[0].energy(points)
    return (log_weights[x > 0].logsumexp(0) - log_weights[x < 0].logsumexp(0)).item()


def repetition(seed: int, dim: int, steps: int, num_samples: int) -> dict[str, tuple[float, float, float]]:
    """Estimate, standard error and exact value by the name of the method."""
    torch.manual_seed(seed)
    a, b = (trained(energy, seed, progress=False, max_steps=steps) for energy in systems(dim))
    truth = exact(a.energy, b.energy)
    found = {name: (result, truth) for name, result in estimates(a, b, num_samples).items()}
    found["two conformers, weighted draws"] = conformers(a, num_samples), exact_conformers(a)
    sizes = ", ".join(f"{each.diagnostics()['ess']:.2f}" for each in (a, b))
    print(f"seed {seed}: relative ESS of the generators {sizes}", flush=True)
    return {name: (result.value, result.standard_error, truth) for name, (result, truth) in found.items()}


def summary(rows: list[tuple[float, float, float]]) -> dict[str, float]:
    """Of one method over the repetitions."""
    scores = [(value - truth) / error for value, error, truth in rows]
    misses = sum(abs(score) > 1.96 for score in scores)
    return {
        "exact": rows[0][2],
        "misses": misses,
        "probability_of_as_many": binom.sf(misses - 1, len(rows), 0.05),
        "rms_score": math.sqrt(statistics.fmean(score**2 for score in scores)),
        "rms_error": math.sqrt(statistics.fmean((value - truth) ** 2 for value, _, truth in rows)),
        "median_standard_error": statistics.median(error for _, error, _ in rows),
    }


def table(result: dict) -> str:
    """As Markdown."""
    n = result["repetitions"]
    lines = [
        "| method | exact (kT) | intervals that hold it | rms error | stated error, median | rms of error / stated |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["methods"].items():
        lines.append(
            f"| {name} | {row['exact']:.4f} | {n - row['misses']} of {n} | {row['rms_error']:.4f} | "
            f"{row['median_standard_error']:.4f} | {row['rms_score']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--dim", type=int, default=4)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    began, rows = time.monotonic(), []
    for seed in range(options.repetitions):
        rows.append(repetition(seed, options.dim, options.steps, options.samples))
    result = {
        "repetitions": options.repetitions,
        "steps": options.steps,
        "dim": options.dim,
        "samples": options.samples,
        "seconds": time.monotonic() - began,
        "torch": torch.__version__,
        "methods": {name: summary([row[name] for row in rows]) for name in rows[0]},
        "estimates": {name: [row[name] for row in rows] for name in rows[0]},
    }
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(table(result))


if __name__ == "__main__":
    main()
