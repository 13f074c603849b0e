"""How many layers, how large a network in each, and why every entry has to be moved by some of them.

The first tables give the exact divergence from two densities on the plane to flows of 2 to 16 couplings with small and
large conditioners, all trained for as many steps. The last one counts the zeros in the Jacobian of flows on eight
dimensions: pairs of entries of which one has no say in the other. About fifteen minutes on one core, most of it for the
sixteen layers.

    python examples/how_many_layers.py [--steps 1000] [--quick] [--output demo_output]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from densities import divergence, fit, save
from planar import DENSITIES

from pyro_coupling import flows
from pyro_coupling.nn import mlp
from pyro_coupling.transforms import Affine, Bijection, Chain, Coupling, halves

LAYERS = (2, 4, 8, 16)
CONDITIONERS = ((16,), (64,), (64, 64), (128, 128), (64, 64, 64, 64))
DIM = 8


def deep_or_wide(name: str, steps: int) -> None:
    """KL for each depth of the flow and each conditioner, and the parameters of the flow in thousands."""
    print(f"\n{name}, splines: KL (thousands of parameters)\n")
    print("| conditioner | " + " | ".join(f"{layers} layers" for layers in LAYERS) + " |\n" + "|---" * 5 + "|")
    density = DENSITIES[name]()
    for hidden in CONDITIONERS:
        cells = []
        for layers in LAYERS:
            torch.manual_seed(0)
            flow = flows.neural_spline(2, layers, hidden, max_log_ratio=2.0).inv
            size = sum(p.numel() for p in flow.parameters())
            cells.append(f"{divergence(density, fit(flow, density, steps))[0]:.3f} ({size / 1000:.1f})")
        print(f"| {' x '.join(map(str, hidden))} | " + " | ".join(cells) + " |", flush=True)


def same_mask(layers: int) -> Chain:
    """Couplings that all leave the first half alone."""
    return Chain(Coupling(halves(DIM), mlp(DIM // 2, 2, DIM // 2, (32,)), Affine()) for _ in range(layers))


MASKS = {
    "the same half in every layer": same_mask,
    "halves in turn": lambda layers: flows.real_nvp(DIM, layers, (32,), mask="halves"),
    "random halves in turn": lambda layers: flows.real_nvp(DIM, layers, (32,), mask="random"),
}


def jacobian(flow: Bijection) -> torch.Tensor:
    """Mean size of each derivative ``dy_i / dx_j`` over some inputs, all parameters of the flow drawn at random."""
    torch.manual_seed(0)
    flow = flow.double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.normal_(0, 0.5)
    x = torch.randn(32, DIM, dtype=torch.float64)
    return torch.func.vmap(torch.func.jacrev(lambda row: flow.forward_and_log_det(row)[0]))(x).abs().mean(0).detach()


def mixing(output: Path) -> None:
    depths = (1, 2, 3, 4, 8)
    print(f"\nEntries of the {DIM} x {DIM} Jacobian that are zero\n")
    print("| what stays | " + " | ".join(f"{n} layer{'s' * (n > 1)}" for n in depths) + " |\n" + "|---" * 6 + "|")
    figure, table = plt.subplots(3, len(depths), figsize=(7, 4.6), layout="constrained")
    for axes, layers in zip(table[0], depths, strict=True):
        axes.set_title(f"{layers} layer{'s' * (layers > 1)}", fontsize=10)
    for row, (name, make) in zip(table, MASKS.items(), strict=True):
        sizes = [jacobian(make(layers)) for layers in depths]
        print(f"| {name} | " + " | ".join(str(int((size == 0).sum())) for size in sizes) + " |")
        for axes, size in zip(row, sizes, strict=True):
            axes.imshow(size != 0, cmap="Blues", vmin=0, vmax=1.4)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name.replace(" in ", "\nin "))
    print("\nBlue where an input (column) has a say in an output (row):")
    save(figure, output / "mixing.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="steps of training for each flow; 0 for the last table")
    parser.add_argument("--quick", action="store_true", help="the last table only, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder of the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.steps and not options.quick:
        deep_or_wide("spirals", options.steps)
        deep_or_wide("checkerboard", options.steps)
    mixing(options.output)


if __name__ == "__main__":
    main()
