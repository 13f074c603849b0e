"""A field on a lattice: independent configurations near a phase transition, and what they say of the material.

The field of phi^4 theory is a model of a magnet with continuous spins. A flow of convolutions, which know that all
sites are alike, is trained on the action alone. Reweighted draws give the distribution of the magnetisation, the
susceptibility and the correlation of distant sites, and stand beside those of Langevin dynamics on the same action.

    python examples/lattice_phi4.py [--side 6] [--seconds 240] [--quick] [--output lattice_phi4.png]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_coupling.boltzmann import BoltzmannGenerator, Langevin, energies, histogram, reweighted
from pyro_coupling.boltzmann.observables import Estimate, Histogram
from pyro_coupling.transforms import (
    Chain,
    Coupling,
    DiagonalAffine,
    MaskedPartition,
    RationalQuadraticSpline,
    Reshape,
    checkerboard,
)

LIMITS, BINS = (-1.0, 1.0), 25  # of the magnetisation
WALKERS = 512


def lattice_flow(side: int, num_layers: int = 6, channels: int = 16) -> Chain:
    """Splines on the black and the white sites in turn, set by convolutions on the torus."""
    shape, spline = (1, side, side), RationalQuadraticSpline(8, bound=5.0)
    board = checkerboard(shape)

    def network() -> nn.Module:
        settings = {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}
        last = nn.Conv2d(channels, spline.num_params, **settings)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first, second = nn.Conv2d(1, channels, **settings), nn.Conv2d(channels, channels, **settings)
        return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)

    layers = [Coupling(MaskedPartition(board ^ bool(i % 2)), network(), spline) for i in range(num_layers)]
    narrow = DiagonalAffine(torch.zeros(side**2), torch.full((side**2,), 0.4)).requires_grad_(False)
    return Chain([narrow, Reshape(side**2, shape), *layers, Reshape(shape, side**2)])


def magnetisation(field: Tensor) -> Tensor:
    """Mean over the sites, ``(n, side, side)`` -> ``(n,)``."""
    return field.mean((-2, -1))


def correlations(field: Tensor) -> Tensor:
    """Product of the field with itself 0, 1, ... sites further along either axis, ``(n, side // 2 + 1)``."""
    distances = range(field.size(-1) // 2 + 1)
    return torch.stack(
        [sum((field * field.roll(r, axis)).mean((-2, -1)) for axis in (-2, -1)) / 2 for r in distances], -1
    )


def observables(field: Tensor, log_weights: Tensor | None = None) -> tuple[Histogram, Estimate, Estimate]:
    """Distribution of the magnetisation, susceptibility and correlations, with bootstrap errors."""
    bootstrap = torch.Generator().manual_seed(0)
    m = magnetisation(field)
    susceptibility = reweighted(field[0].numel() * m.square(), log_weights, generator=bootstrap)
    along = reweighted(correlations(field), log_weights, generator=bootstrap)
    return histogram(m, BINS, LIMITS, log_weights, generator=bootstrap), susceptibility, along


def dynamics(energy: energies.LatticePhi4, num_steps: int) -> Tensor:
    """The last configurations of many walkers, one each, so that they are independent."""
    generator = torch.Generator().manual_seed(1)
    start = 0.5 * torch.randn(WALKERS, *energy.event_shape, generator=generator, dtype=torch.float64)
    walk = Langevin(energy, time_step=0.05, friction=1.0, kT=1.0)
    return walk.run(start, num_steps, save_every=num_steps // 2, generator=generator).positions[-1]


def draw(flow: tuple, reference: tuple, field: Tensor, path: str) -> None:
    figure = Figure((11, 3.4), layout="constrained")
    fields, left, right = figure.subplots(1, 3)
    side = field.size(-1)
    sheet = nn.functional.pad(field[:9], (0, 1, 0, 1), value=float("nan")).reshape(3, 3, side + 1, side + 1)
    fields.imshow(sheet.movedim(1, 2).reshape(3 * side + 3, -1), cmap="RdBu", vmin=-1.2, vmax=1.2)
    fields.set(title="nine draws of the flow", xticks=[], yticks=[])
    for (density, _, along), style, name in ((flow, "-", "flow, reweighted"), (reference, "o", "Langevin")):
        middles, width = density.edges.unfold(0, 2, 1).mean(-1), density.edges[1] - density.edges[0]
        heights, errors = density.probabilities / width, density.standard_error / width
        line = left.plot(middles, heights, style, markersize=3, label=name)[0]
        left.fill_between(middles, heights - 1.96 * errors, heights + 1.96 * errors, alpha=0.3, color=line.get_color())
        right.errorbar(
            range(len(along.value)), along.value, 1.96 * along.standard_error, fmt=style, capsize=3, label=name
        )
    left.set(title="magnetisation", xlabel="mean of the field", ylabel="density", ylim=(0, None))
    right.set(title="correlation", xlabel="distance (sites)", yscale="log")
    right.legend()
    figure.savefig(path, dpi=130)


def show(name: str, *columns: Sequence) -> None:
    """Prints a row of values with their standard errors."""
    print(f"{name:<22}" + "".join(f"{value:>11.4f} +- {error:.4f}" for value, error, *_ in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=6, help="even")
    parser.add_argument("--seconds", type=float, default=240.0, help="of training")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="lattice_phi4.png")
    options = parser.parse_args()
    energy = energies.LatticePhi4((options.side, options.side))
    torch.manual_seed(0)
    settings = {"num_particles": 128, "num_rungs": 4, "buffer_size": 2000, "seed": 0}
    generator = BoltzmannGenerator(energy, kT=1.0, flow=lattice_flow(options.side), **settings)
    generator.train(**({"max_steps": 40} if options.quick else {"max_seconds": options.seconds}))
    field, _, log_weights = generator.sample(4000 if options.quick else 20_000)
    began = time.monotonic()
    walked = dynamics(energy, 200 if options.quick else 2000)
    seconds = time.monotonic() - began
    flow, reference = observables(field, log_weights), observables(walked)
    print(f"Langevin: {len(walked)} independent configurations in {seconds:.0f} s")
    print(f"{'':<22}{'flow, reweighted':>20}{'Langevin':>20}")
    show("susceptibility", flow[1], reference[1])
    for r, row in enumerate(zip(*flow[2][:2], *reference[2][:2], strict=True)):
        show(f"correlation at {r}", row[:2], row[2:])
    draw(flow, reference, field, options.output)
    print(f"picture: {options.output}")
    figures = generator.diagnostics(20_000)
    print(f"relative ESS {figures['ess']:.3f} after {figures['num_energies']} energies, {figures['seconds']:.0f} s")


if __name__ == "__main__":
    main()
