"""Three ways to train a Boltzmann generator by its energy, on Many-Well; and one flow for a range of temperatures.

All start from the same small flow, four spline couplings, with the same batches, step size, seed and time, and default
settings of the method. Seconds are those of the processor, so that what else runs on the machine does not matter.
Modes are counted among the flow's own draws; the error of their weights is that of weighted draws.

    python -m benchmarks.boltzmann_methods [--seconds 30] [--dims 6 16] [--figure docs/images/steerable.png]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from pyro_coupling import flows
from pyro_coupling.boltzmann import BoltzmannGenerator, SteerableGenerator
from pyro_coupling.boltzmann.energies import ManyWell
from pyro_coupling.transforms import Chain

RESULTS = Path(__file__).parent / "results" / "boltzmann_methods"
METHODS = {"annealing": "annealing", "fab": "FAB", "cmt": "CMT"}
DRAWS = 100_000
RANGE = (0.5, 4.0)


def judge(generator: BoltzmannGenerator) -> dict[str, Any]:
    """What is known of Many-Well, held against draws of the flow."""
    energy = generator.energy
    found = generator.diagnostics(DRAWS)
    draws = generator.sample(DRAWS)
    modes, weights = energy.modes(draws.positions), draws.log_weights.double().softmax(0)
    exact = torch.as_tensor(energy.mode_weights(generator.kT)).double()
    mass = torch.zeros_like(exact).index_add_(0, modes, weights)
    # what the flow ought to hit: modes of which as many draws as these would show ten
    expected = exact > 10 / DRAWS
    return {
        "ess": found["ess"],
        "log_z_error": found["log_z"] - energy.log_z(generator.kT),
        "log_z_se": found["log_z_se"],
        "elbo_gap": energy.log_z(generator.kT) - found["elbo"],
        "eubo_gap": generator.eubo(energy.sample(DRAWS, generator.kT)) - energy.log_z(generator.kT),
        "modes_found": int((modes.bincount(minlength=len(exact))[expected] > 0).sum()),
        "modes_expected": int(expected.sum()),
        "mode_weights_tv": 0.5 * (mass - exact).abs().sum().item(),
        "num_energies": found["num_energies"],
        "num_steps": found["num_steps"],
        "seconds": found["seconds"],
    }


def small_flow(dim: int, context_dim: int = 0) -> Chain:
    torch.manual_seed(0)
    return flows.neural_spline(dim, 4, (32, 32), context_dim, bound=5.0, linear=False)


def compare(dim: int, method: str, seconds: float) -> dict[str, Any]:
    flow = small_flow(dim)
    generator = BoltzmannGenerator(ManyWell(dim), kT=1.0, flow=flow, method=method, seed=0, progress=False)
    with patch("time.monotonic", time.process_time):
        generator.train(max_seconds=seconds)
    rungs = {"rungs": [list(rung) for rung in generator.rungs]} if generator.rungs else {}
    return {"dim": dim, "method": method, **judge(generator), **rungs}


def steer(dim: int, seconds: float) -> dict[str, Any]:
    """The partition function along temperatures from one flow."""
    flow = small_flow(dim, context_dim=1)
    generator = SteerableGenerator(ManyWell(dim), kT=RANGE, flow=flow, seed=0, progress=False)
    with patch("time.monotonic", time.process_time):
        generator.train(max_seconds=seconds)
    grid = torch.linspace(*torch.tensor(RANGE).log(), 15).exp().clamp(*RANGE).tolist()
    curve = generator.curve(20_000, kT=grid)
    exact = [generator.energy.log_z(kT) for kT in curve.kT.tolist()]
    columns = {name: getattr(curve, name).tolist() for name in ("kT", "log_z", "log_z_se", "mean_energy", "ess")}
    return {"dim": dim, **columns, "log_z_exact": exact, "num_energies": generator.num_energies, "seconds": seconds}


def table(rows: list[dict[str, Any]], steered: dict[str, Any]) -> str:
    lines = [
        "| Many-Well | method | ESS % | log Z error | ELBO gap | EUBO gap | modes | TV of mode weights | energies "
        "| steps | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['dim']}-d | {METHODS[row['method']]} | {100 * row['ess']:.1f} "
            f"| {row['log_z_error']:+.4f} ± {row['log_z_se']:.4f} | {row['elbo_gap']:.4f} | {row['eubo_gap']:.4f} "
            f"| {row['modes_found']} of {row['modes_expected']} | {row['mode_weights_tv']:.4f} "
            f"| {row['num_energies']:,} | {row['num_steps']:,} | {row['seconds']:.0f} |"
        )
    worst = max(abs(a - b) for a, b in zip(steered["log_z"], steered["log_z_exact"], strict=True))
    lines += [
        "",
        f"One flow for kT from {RANGE[0]} to {RANGE[1]} (`SteerableGenerator`, Many-Well {steered['dim']}-d, "
        f"{steered['seconds']:.0f} s, {steered['num_energies']:,} energies): at {len(steered['kT'])} temperatures ESS "
        f"{100 * min(steered['ess']):.1f} % to {100 * max(steered['ess']):.1f} %, largest error of log Z {worst:.4f} "
        f"(largest standard error {max(steered['log_z_se']):.4f}).",
        "",
    ]
    return "\n".join(lines)


def draw(steered: dict[str, Any], path: Path) -> None:
    """The error of log Z along temperatures, and the effective sample size."""
    from matplotlib.figure import Figure

    kT = steered["kT"]
    error = [a - b for a, b in zip(steered["log_z"], steered["log_z_exact"], strict=True)]
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].plot(kT, steered["log_z_exact"], label="exact")
    axes[0].plot(kT, steered["log_z"], "o", label="one flow")
    axes[0].set_ylabel("log Z")
    axes[0].legend(frameon=False)
    axes[1].axhline(0, color="0.7")
    axes[1].errorbar(kT, error, [2 * se for se in steered["log_z_se"]], fmt="o")
    axes[1].set_ylabel("log Z less exact (2 s.e.)")
    axes[2].plot(kT, steered["ess"], "o-")
    axes[2].set(ylabel="relative ESS", ylim=(0, 1.02))
    for axis in axes:
        axis.set(xlabel="kT", xscale="log")
        axis.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
        axis.minorticks_off()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--dims", type=int, nargs="+", default=[6, 16])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    rows = [compare(dim, method, arguments.seconds) for dim in arguments.dims for method in METHODS]
    steered = steer(arguments.dims[0], arguments.seconds)
    arguments.out.with_suffix(".json").write_text(json.dumps({"rows": rows, "steerable": steered}, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table(rows, steered))
    if arguments.figure is not None:
        draw(steered, arguments.figure)


if __name__ == "__main__":
    main()
