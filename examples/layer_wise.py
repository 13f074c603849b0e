"""Layer by layer: a deep flow trained one block at a time, against all blocks jointly, with equally many steps.

Two ways to hold the gradients of one block only: to add blocks where the flow ends, each trained while those before it
stay as they are, so that it sees what they have made of the data; or to train the blocks of the whole flow in turn,
round and round (block-coordinate descent). Each step draws new points of a density on the plane whose entropy is
known, so the divergence from the density to the flow is known, too. Memory is that of live tensors in the step that
needs most, but parameters and points, by ordinary backpropagation and by inverting layers (`reversible=True`).

    python examples/layer_wise.py [--steps 3000] [--quick] [--output layer_wise.png]

Reference:
    Laparra, Camps-Valls, Malo. Iterative Gaussianization: from ICA to random rotations. IEEE Transactions on Neural
    Networks 2011.
    Bengio, Lamblin, Popovici, Larochelle. Greedy layer-wise training of deep networks. NeurIPS 2006.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from live_memory import peak_megabytes
from matplotlib.figure import Figure
from planar import DENSITIES, Density, grid
from torch import Tensor

from pyro_coupling import flows
from pyro_coupling.transforms import Bijection, Chain, LULinear

BLOCKS, COUPLINGS, HIDDEN, ROUNDS, BATCH, RATE = 8, 2, (64, 64), 4, 512, 3e-3
NAMES = ("checkerboard", "pinwheel", "spirals")
METHODS = ("jointly", "a new block at a time", "one block in turn")

#: blocks in use, from data to noise; those of them that are trained; the part of all steps
Phase = tuple[list[Bijection], list[Bijection], float]


def make_blocks() -> list[Bijection]:
    """From data to noise, each a turn of the plane and affine couplings of both coordinates."""
    return [Chain([LULinear(2, seed=seed), flows.real_nvp(2, COUPLINGS, HIDDEN, seed=seed)]) for seed in range(BLOCKS)]


def phases(method: str, blocks: list[Bijection]) -> Iterator[Phase]:
    if method == "jointly":
        yield blocks, blocks, 1.0
    elif method == "a new block at a time":
        for number, block in enumerate(blocks, 1):
            yield blocks[:number], [block], 1 / BLOCKS
    else:
        for _ in range(ROUNDS):
            for block in blocks:
                yield blocks, [block], 1 / BLOCKS / ROUNDS


def loss(blocks: list[Bijection], x: Tensor, reversible: bool = False) -> Tensor:
    """Negative log-likelihood in nats, the mean over points ``(n, 2)``."""
    return -flows.distribution(Chain(blocks, reversible=reversible).inv).log_prob(x).mean()


def choose(blocks: list[Bijection], trained: list[Bijection]) -> list[Tensor]:
    """The parameters of the trained blocks; all others get no gradient."""
    for block in blocks:
        block.requires_grad_(any(block is one for one in trained))
    return [p for block in trained for p in block.parameters()]


def train(method: str, density: Density, steps: int) -> tuple[list[Bijection], list[tuple[float, float]]]:
    """The blocks, and seconds and divergence on the way, sixteen times or after each new block."""
    torch.manual_seed(0)
    points = torch.Generator().manual_seed(0)
    blocks, curve, seconds, done = make_blocks(), [], 0.0, 0
    for used, trained, part in phases(method, blocks):
        optimizer = torch.optim.Adam(choose(used, trained), lr=RATE)
        length = round(part * steps)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)
        for _ in range(length):
            began = time.perf_counter()
            optimizer.zero_grad()
            loss(used, density.sample(BATCH, points).float()).backward()
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 10.0)
            optimizer.step()
            schedule.step()
            seconds += time.perf_counter() - began
            done += 1
            if done % max(1, steps // (2 * BLOCKS)) == 0:
                curve.append((seconds, divergence(used, density)))
    return blocks, curve


@torch.no_grad()
def divergence(blocks: list[Bijection], density: Density, num: int = 20_000) -> float:
    """``KL(density || flow)`` in nats, by points that training has not seen; its standard error is below 0.01."""
    x = density.sample(num, torch.Generator().manual_seed(1))
    return (density.log_prob(x).mean() + loss(blocks, x.float())).item()


def memory(method: str, reversible: bool, num: int = 4096) -> float:
    """Megabytes of the step that needs most."""
    found = []
    x = torch.randn(num, 2)
    for used, trained, _ in phases(method, make_blocks()):
        choose(used, trained)
        everything = [x, *(tensor for block in used for tensor in (*block.parameters(), *block.buffers()))]
        found.append(peak_megabytes(lambda used=used: loss(used, x, reversible).backward(), everything))
        Chain(used).zero_grad()
    return max(found)


@torch.no_grad()
def image(blocks: list[Bijection], size: int = 160) -> Tensor:
    """The density of the flow on the square of half-width 4.5."""
    points = grid(size, 4.5)[0].float()
    return flows.distribution(Chain(blocks).inv).log_prob(points).exp().reshape(size, size)


def draw(density: Density, found: dict[str, list[Bijection]], curves: dict[str, list], path: str) -> None:
    """The divergence against the time of training, and densities: as blocks are added, and of all jointly."""
    figure = Figure((11.0, 3.0), layout="constrained")
    left, *panels = figure.subplots(1, 5, width_ratios=[1.6, 1, 1, 1, 1])
    for method, curve in curves.items():
        left.plot(*zip(*curve, strict=True), ".-", label=method)
    left.set(xlabel="seconds of training", title="divergence in nats", ylim=(0, None))
    left.legend(frameon=False, fontsize="small")
    left.spines[["top", "right"]].set_visible(False)
    exact = density.log_prob(grid(160, 4.5)[0]).exp().reshape(160, 160)
    added = found["a new block at a time"]
    pictures = {f"{number} of {BLOCKS} blocks": image(added[:number]) for number in (1, BLOCKS // 2, BLOCKS)}
    for axes, (title, values) in zip(panels, {**pictures, "jointly": image(found["jointly"])}.items(), strict=True):
        axes.imshow(values, origin="lower", cmap="magma", vmin=0, vmax=exact.max())
        axes.set(xticks=[], yticks=[], title=title)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="of each method, over all of its blocks")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="layer_wise.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps, names = (BLOCKS * ROUNDS, NAMES[-1:]) if options.quick else (options.steps, NAMES)
    divergences: dict[str, list[float]] = {method: [] for method in METHODS}
    print("| density | trained | divergence | s |\n|---|---|---|---|")
    for name in names:
        density, found, curves = DENSITIES[name](), {}, {}
        for method in METHODS:
            found[method], curves[method] = train(method, density, steps)
            seconds, reached = curves[method][-1]
            divergences[method].append(reached)
            print(f"| {name} | {method} | {reached:.3f} | {seconds:.0f} |", flush=True)
    draw(density, found, curves, options.output)
    print(f"picture: {options.output}")
    for method, reached in divergences.items():
        ordinary, reversible = memory(method, False), memory(method, True)
        megabytes = f"{ordinary:.0f} MB by ordinary backpropagation, {reversible:.0f} by inversion"
        print(f"{method}: divergence {sum(reached) / len(reached):.3f} nats in the mean, {megabytes}")


if __name__ == "__main__":
    main()
