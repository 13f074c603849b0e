"""A Boltzmann generator on DW4: four particles in the plane, each pair in a double well, from the energy alone.

Trains a flow of the shapes of the cluster, draws from it with weights, and holds distances and energies against
parallel tempering on the same energy.

    python examples/dw4.py [--seconds 300] [--quick] [--output dw4.png]
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_coupling.boltzmann import BoltzmannGenerator, ParallelTempering, energies


def reference(energy: energies.DW4, num_steps: int) -> torch.Tensor:
    """Configurations at kT = 1 by parallel tempering from squares, the first quarter of the run left out."""
    square = 4.0 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    start = square + 0.1 * torch.randn(100, 4, 2, generator=torch.Generator().manual_seed(0))
    dynamics = ParallelTempering(energy, time_step=0.02, friction=1.0, kT=[1.0, 1.6, 2.5, 4.0], swap_every=20)
    run = dynamics.run(start, num_steps, keep=1, generator=torch.Generator().manual_seed(1))
    return run.positions[len(run.positions) // 4 :].reshape(-1, 4, 2)


def distances(energy: energies.DW4, positions: torch.Tensor) -> torch.Tensor:
    """Distances of the six pairs, ``(n, 6)``."""
    return (positions[:, energy.first] - positions[:, energy.second]).norm(dim=-1)


def compare(axes: Axes, label: str, drawn: torch.Tensor, weights: torch.Tensor, expected: torch.Tensor) -> None:
    """Histograms of the flow's draws, of the same reweighted, and of the reference."""
    limits = expected.quantile(torch.tensor([1e-4, 1 - 1e-4]))
    bins = torch.linspace(*limits.tolist(), 101)
    settings = {"bins": bins, "density": True, "histtype": "step"}
    axes.hist(expected.flatten(), **settings | {"histtype": "stepfilled"}, color="0.85", label="parallel tempering")
    axes.hist(drawn.flatten(), **settings, label="flow")
    axes.hist(drawn.flatten(), weights=weights.flatten(), **settings, label="flow, reweighted")
    axes.set(xlabel=label, yticks=[])


def draw(energy: energies.DW4, draws, known: torch.Tensor, path: str) -> None:
    weights = draws.log_weights.softmax(0)
    figure = Figure((9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    pairs = distances(energy, draws.positions)
    some = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:100_000]
    compare(left, "distance of a pair", pairs, weights.unsqueeze(-1).expand_as(pairs), distances(energy, known[some]))
    compare(right, "energy (kT)", draws.energies, weights, energy.energy(known[some]))
    left.set_ylabel("density")
    right.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="dw4.png")
    options = parser.parse_args()
    energy = energies.DW4()
    generator = BoltzmannGenerator(energy, kT=1.0, seed=0)
    if options.quick:
        generator.train(max_steps=40)
    else:
        generator.train(max_seconds=options.seconds)
    draws, found = generator.sample(50_000), generator.diagnostics(50_000)
    known = reference(energy, 1000 if options.quick else 20_000)
    print(f"coordinates    {generator.target.coordinates}")
    print(f"relative ESS   {found['ess']:.3f}   after {found['num_energies']} energies, {found['seconds']:.0f} s")
    print(f"log Z          {found['log_z']:.4f} +- {found['log_z_se']:.4f}, of labelled particles, per area")
    average = (draws.log_weights.double().softmax(0) * draws.energies.double()).sum()
    print(f"mean energy    {average:.3f}, by parallel tempering {energy.energy(known).double().mean():.3f}")
    draw(energy, draws, known, options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
