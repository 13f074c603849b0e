"""Free-energy difference of two systems whose partition functions are known, in five ways.

Both systems are products of wells: in the second the wells lie closer, are less deep and tilt the other way, as when
one molecule is turned into another. A generator is trained on each from its energy alone. Beside the estimates by
their draws stand those that need samples of the systems themselves, which dynamics would give and which are exact here.
Plain exponential averaging, from the first system to the second, is there for contrast.

    python examples/free_energy.py [--dim 4] [--seconds 30] [--quick] [--output free_energy.png]
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.figure import Figure

from pyro_coupling import flows
from pyro_coupling.boltzmann import BoltzmannGenerator, energies, free_energy_difference, targeted_perturbation
from pyro_coupling.boltzmann.free_energy import FreeEnergyDifference
from pyro_coupling.transforms import Chain

TILTS, DEPTHS = (-0.5, 0.7), (-6.0, -4.0)  # of the wells of either system


def systems(dim: int) -> tuple[energies.ManyWell, energies.ManyWell]:
    """The two systems."""
    first, second = (energies.ManyWell(dim, a=tilt, b=depth) for tilt, depth in zip(TILTS, DEPTHS, strict=True))
    return first, second


def trained(energy: energies.ManyWell, seed: int, progress: bool = True, **budget: float) -> BoltzmannGenerator:
    """A generator of one system."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = flows.neural_spline(energy.event_shape[0], 3, (24, 24), bound=5.0)
    settings = {"num_particles": 128, "learning_rate": 5e-3, "num_rungs": 4, "buffer_size": 2000}
    generator = BoltzmannGenerator(energy, kT=1.0, flow=flow, seed=seed, progress=progress, **settings)
    return generator.train(**budget)


def exact(a: energies.ManyWell, b: energies.ManyWell) -> float:
    """The difference by quadrature."""
    return a.log_z(1.0) - b.log_z(1.0)


def estimates(a: BoltzmannGenerator, b: BoltzmannGenerator, num_samples: int) -> dict[str, FreeEnergyDifference]:
    """The difference b less a by every method, each from as many samples of both systems or of the first."""
    sampler = torch.Generator().manual_seed(a.seed)
    of_a, of_b = (generator.energy.sample(num_samples, generator=sampler) for generator in (a, b))
    way = Chain([a.flow.inv, b.flow])  # from a by its flow to noise, and from there to b
    return {
        "generators, mixture": free_energy_difference(a, b, num_samples),
        "generators, each log Z": free_energy_difference(a, b, num_samples, method="log_z"),
        "TFEP through the flows": targeted_perturbation(a.target, b.target, of_a, map=way),
        "BAR through the flows": targeted_perturbation(a.target, b.target, of_a, of_b, map=way),
        "BAR": targeted_perturbation(a.target, b.target, of_a, of_b),
        "exponential average": targeted_perturbation(a.target, b.target, of_a),
    }


def draw(found: dict[str, FreeEnergyDifference], truth: float, path: str) -> None:
    figure = Figure((7.5, 3.6), layout="constrained")
    wide, near = figure.subplots(1, 2, sharey=True)
    for axes, names in ((wide, list(found)), (near, [name for name in found if name != "exponential average"])):
        axes.axvline(truth, color="black", linewidth=1, label="exact")
        for row, name in enumerate(names):
            axes.errorbar(found[name].value, row, xerr=1.96 * found[name].standard_error, fmt="o", capsize=3)
    near.margins(x=0.15)
    wide.set_yticks(range(len(found)), list(found))
    wide.invert_yaxis()
    wide.set(title="all", xlabel="difference (kT)")
    near.set(title="without the last", xlabel="difference (kT)")
    wide.legend(loc="upper right")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0, help="of training, for each of the two generators")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="free_energy.png")
    options = parser.parse_args()
    budget = {"max_steps": 100} if options.quick else {"max_seconds": options.seconds}
    a, b = (trained(energy, seed=0, **budget) for energy in systems(options.dim))
    print("relative ESS of the generators:", ", ".join(f"{each.diagnostics()['ess']:.3f}" for each in (a, b)))
    found, truth = estimates(a, b, options.samples), exact(a.energy, b.energy)
    print(f"{'':<24}{'difference':>11}{'95 % interval':>20}{'error':>9}{'overlap':>9}")
    for name, result in found.items():
        low, high = (result.value + sign * 1.96 * result.standard_error for sign in (-1, 1))
        interval = f"{low:.4f} to {high:.4f}"
        print(f"{name:<24}{result.value:>11.4f}{interval:>20}{result.value - truth:>9.4f}{result.overlap:>9.3f}")
    draw(found, truth, options.output)
    print(f"picture: {options.output}")
    best = found["generators, mixture"]
    print(f"from energies alone: {best.value:.4f} +- {best.standard_error:.4f} kT, exact {truth:.4f}")


if __name__ == "__main__":
    main()
