"""A Boltzmann generator on the Müller-Brown surface: a barrier of 10 kT, from the energy alone.

Trains a flow, draws from it with weights, and holds the partition function and the populations of the basins against
quadrature. The picture shows the flow's density beside the exact one.

    python examples/mueller_brown.py [--seconds 300] [--quick] [--output mueller_brown.png]
"""

from __future__ import annotations

import argparse

import matplotlib
import torch
from matplotlib.figure import Figure

from pyro_coupling.boltzmann import BoltzmannGenerator, energies, reweighted

WINDOW = ((-1.7, 1.3), (-0.6, 2.2))


def exact_population(energy: energies.MullerBrown, kT: float) -> float:
    """Probability of the lower right half of the plane, where the two smaller basins are, by a sum over a grid."""
    grid = [torch.linspace(low - 1, high + 1, 1201, dtype=torch.float64) for low, high in WINDOW]
    points = torch.cartesian_prod(*grid)
    weights = (-energy.energy(points) / kT).softmax(0)
    return float(weights[right(points)].sum())


def right(x: torch.Tensor) -> torch.Tensor:
    """Whether a point lies on the other side of the saddle at (-0.82, 0.62) than the deepest basin."""
    return x[..., 1] - 0.62 < 0.9 * (x[..., 0] + 0.82)


def draw(generator: BoltzmannGenerator, positions: torch.Tensor, path: str) -> None:
    grid = [torch.linspace(low, high, 200) for low, high in WINDOW]
    points = torch.cartesian_prod(*grid)
    exact = generator.energy.energy(points) / generator.kT + generator.energy.log_z(generator.kT)
    with torch.no_grad():
        learned = -generator.log_prob(points)
    figure = Figure((10.5, 3.6), layout="constrained")
    exact_axes, learned_axes, draws_axes = figure.subplots(1, 3, sharey=True)
    for axes, title, height in ((exact_axes, "exact", exact), (learned_axes, "flow", learned)):
        height = height.clamp(-3, 12).reshape(200, 200).T
        image = axes.contourf(*grid, height, levels=torch.linspace(-3, 12, 31), cmap=matplotlib.colormaps["viridis_r"])
        axes.set(title=title, xlabel="x")
    figure.colorbar(image, ax=learned_axes, label="minus log density (nats)")
    draws_axes.scatter(*positions[:2000].T, s=2, alpha=0.4, linewidths=0)
    draws_axes.set(title="draws of the flow", xlim=WINDOW[0], ylim=WINDOW[1], xlabel="x")
    exact_axes.set_ylabel("y")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="mueller_brown.png")
    options = parser.parse_args()
    energy = energies.MullerBrown()
    generator = BoltzmannGenerator(energy, kT=1.0, seed=0)
    if options.quick:
        generator.train(max_steps=60)
    else:
        generator.train(max_seconds=options.seconds)
    draws = generator.sample(20_000)
    found, exact = generator.diagnostics(20_000), energy.log_z(1.0)
    population = reweighted(right(draws.positions).double(), draws.log_weights)
    print(f"down the ladder, ESS of each step: {', '.join(f'{rung.ess:.2f}' for rung in generator.rungs)}")
    print(f"relative ESS   {found['ess']:.3f}   after {found['num_energies']} energies, {found['seconds']:.0f} s")
    print(f"log Z          {found['log_z']:.4f} +- {found['log_z_se']:.4f}, by quadrature {exact:.4f}")
    of_grid = exact_population(energy, 1.0)
    print(f"other basins   {population.value:.4f} +- {population.standard_error:.4f}, by quadrature {of_grid:.4f}")
    draw(generator, draws.positions, options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
