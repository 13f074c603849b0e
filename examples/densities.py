"""What additive, affine and spline couplings can express: six densities on the plane, and a circle made a square.

Each flow is fitted by maximum likelihood to samples of a density that is known exactly, so the table shows the true
Kullback-Leibler divergence from the density to the flow: 0 is perfect. With ``--steps 800`` about five minutes on
one core.

    python examples/densities.py [--steps 2000] [--quick] [--output demo_output]
"""

import argparse
import io
import math
from pathlib import Path

import matplotlib
import pyro.distributions as dist
import torch
from PIL import Image
from planar import DENSITIES, Density, Square, grid

from pyro_coupling import flows
from pyro_coupling.plots import plot_grid

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LAYERS, HIDDEN = 8, (64, 64)
FLOWS = {"additive": flows.nice, "affine": flows.real_nvp, "spline": flows.neural_spline}


def fit(flow: torch.nn.Module, density: Density, steps: int, batch: int = 512) -> dist.TransformedDistribution:
    """Trains a flow on fresh samples of a density; returns the flow as a distribution."""
    generator = torch.Generator().manual_seed(0)
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    model = dist.TransformedDistribution(base, [flow])
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -model.log_prob(density.sample(batch, generator).float()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def divergence(density: Density, model: dist.TransformedDistribution, num_samples: int = 50_000) -> tuple[float, float]:
    """``KL(density || model)`` and its standard error, from samples that training has not seen."""
    x = density.sample(num_samples, torch.Generator().manual_seed(1))
    difference = density.log_prob(x) - model.log_prob(x.float()).double()
    return difference.mean().item(), difference.std().item() / math.sqrt(num_samples)


def image(log_prob, size: int = 160, window: float = 4.5) -> torch.Tensor:
    with torch.no_grad():
        return log_prob(grid(size, window)[0].float()).exp().reshape(size, size)


def draw_disc(axes, flow: torch.nn.Module) -> None:
    """Where a flow takes circles that hold 10, 20 ... 90 % and 99 % of its Gaussian base, and 24 rays between them."""
    plot_grid(flow, polar=True, lines=24, axes=axes)
    axes.plot([-2, 2, 2, -2, -2], [-2, -2, 2, 2, -2], color="#d1701f", lw=1.2, ls="--")
    axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))


def panels(rows: int, columns: list[str]):
    figure, table = plt.subplots(
        rows, len(columns), figsize=(1.9 * len(columns), 2.0 * rows), squeeze=False, layout="constrained"
    )
    for axes, title in zip(table[0], columns, strict=True):
        axes.set_title(title)
    for axes in table.flat:
        axes.set(xticks=[], yticks=[], aspect="equal")
    return figure, table


def save(figure, path: Path) -> None:
    """As a picture of 128 colours, which no eye tells from the full one and which is a third of its size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="steps of training for each flow")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder of the two pictures")
    options = parser.parse_args()
    steps = 3 if options.quick else options.steps
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)

    densities = {**{name: make() for name, make in DENSITIES.items()}, "square": Square()}
    figure, table = panels(len(DENSITIES), ["exact", *FLOWS])
    square_figure, square_axes = panels(1, list(FLOWS))
    print("| density | entropy | " + " | ".join(f"KL, {kind}" for kind in FLOWS) + " |\n" + "|---" * 5 + "|")
    for row, (name, density) in enumerate(densities.items()):
        exact, cells = image(density.log_prob), []
        look = {"origin": "lower", "cmap": "magma", "interpolation": "bilinear", "vmin": 0, "vmax": exact.max()}
        if name != "square":
            table[row, 0].imshow(exact, **look)
            table[row, 0].set_ylabel(name)
        for column, make in enumerate(FLOWS.values()):
            torch.manual_seed(0)
            flow = make(2, LAYERS, HIDDEN).inv  # turned round, it learns densities from data faster
            model = fit(flow, density, steps)
            found, error = divergence(density, model)
            cells.append(f"{found:.3f} ± {error:.3f}")
            axes = square_axes[0, column] if name == "square" else table[row, column + 1]
            axes.set_xlabel(f"KL {found:.3f}")
            if name == "square":
                draw_disc(axes, flow)
            else:
                axes.imshow(image(model.log_prob), **look)
        print(f"| {name} | {density.entropy():.4f} | " + " | ".join(cells) + " |", flush=True)
    save(figure, options.output / "densities.png")
    save(square_figure, options.output / "circle_to_square.png")


if __name__ == "__main__":
    main()
