"""Constant memory: a deep classifier of reversible blocks, trained without storing what is between them.

Backpropagation stores what every layer has computed, so its memory grows with depth. Additive couplings can be run
backwards: their inputs are rebuilt from their outputs when gradients are due, and only the two ends are kept
(`reversible=True`). Gradients are the same up to rounding; what grows is what the weights' own gradients need. The
classifier reads scikit-learn's digits; memory is that of live tensors in a step on all 1297 images that train, but
parameters and images.

    python examples/constant_memory.py [--depth 64] [--epochs 20] [--quick] [--output constant_memory.png]

Reference:
    Gomez, Ren, Urtasun, Grosse. The reversible residual network: backpropagation without storing activations.
    NeurIPS 2017.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from live_memory import peak_megabytes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_coupling import flows

PIXELS, CLASSES, HIDDEN, BATCH = 64, 10, (128,), 128
MODES: dict[str, dict[str, bool]] = {
    "ordinary": {},
    "checkpoints": {"checkpoint": True},
    "reversible": {"reversible": True},
}


class Classifier(nn.Module):
    """Additive couplings of the pixels, each a residual block, and a linear layer: log odds of the classes."""

    def __init__(self, depth: int, **memory: bool) -> None:
        super().__init__()
        self.blocks = flows.nice(PIXELS, depth, HIDDEN, outer_affine=False, **memory)
        self.head = nn.Linear(PIXELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features, _ = self.blocks.forward_and_log_det(images)
        return self.head(features)


def backward(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    loss = F.cross_entropy(classifier(images), labels)
    loss.backward()
    return loss.detach()


def cost(depth: int, mode: str, images: Tensor, labels: Tensor, repeats: int = 5) -> tuple[float, float, float]:
    """Peak megabytes of a step, those of them that are gradients of weights, and its median milliseconds."""
    classifier = Classifier(depth, **MODES[mode])
    megabytes = peak_megabytes(
        lambda: backward(classifier, images, labels),
        [images, labels, *classifier.parameters(), *classifier.buffers()],
    )
    gradients = sum(p.grad.nbytes for p in classifier.parameters()) / 1e6
    times = []
    for _ in range(repeats):
        classifier.zero_grad()
        began = time.perf_counter()
        backward(classifier, images, labels)
        times.append(1e3 * (time.perf_counter() - began))
    return megabytes, gradients, statistics.median(times)


def train(classifier: Classifier, images: Tensor, labels: Tensor, epochs: int) -> list[float]:
    """Least cross entropy by the last epoch's weights; the loss of each step."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3)
    shuffle = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=shuffle).split(BATCH):
            optimizer.zero_grad()
            losses.append(backward(classifier, images[batch], labels[batch]).item())
            optimizer.step()
    return losses


def gradient(trained: Classifier, depth: int, mode: str, images: Tensor, labels: Tensor) -> Tensor:
    """Of all weights, at those of a trained classifier, in the dtype of the images."""
    classifier = Classifier(depth, **MODES[mode]).to(images.dtype)
    classifier.load_state_dict(trained.state_dict())
    backward(classifier, images, labels)
    return torch.cat([p.grad.flatten() for p in classifier.parameters()])


def draw(costs: dict[str, list[tuple]], depths: list[int], losses: dict[str, list[float]], path: str) -> None:
    """Memory and time against depth, and the loss while training."""
    figure = Figure((11.0, 3.4), layout="constrained")
    memory, duration, training = figure.subplots(1, 3)
    for mode, rows in costs.items():
        megabytes, gradients, milliseconds = zip(*rows, strict=True)
        memory.loglog(depths, megabytes, "o-", label=mode)
        duration.loglog(depths, milliseconds, "o-")
    memory.loglog(depths, gradients, "k:", lw=1, label="gradients of weights")
    for (mode, values), style in zip(losses.items(), ("-", "--"), strict=True):
        training.semilogy(values, style, color=f"C{list(costs).index(mode)}", lw=1, label=mode)
    memory.set(xlabel="couplings", title="megabytes, at most")
    duration.set(xlabel="couplings", title="milliseconds a step")
    training.set(xlabel="step", title="cross entropy of a batch")
    for axes in (memory, duration):
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.set_xticks([], minor=True)
    for axes in (memory, duration, training):
        axes.spines[["top", "right"]].set_visible(False)
    memory.margins(y=0.4)  # room for the legend
    memory.legend(frameon=False, fontsize="small")
    training.legend(frameon=False)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=64, help="couplings of the classifier that is trained")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="shallow ones and an epoch, to see that it runs")
    parser.add_argument("--output", default="constant_memory.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    depth, epochs = (8, 1) if options.quick else (options.depth, options.epochs)
    depths = [2, 4, 8] if options.quick else [8, 16, 32, 64, 128]
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images, held_out = (torch.tensor(digits.data, dtype=torch.float32)[order] / 8 - 1).split([1297, 500])
    labels, held_out_labels = torch.tensor(digits.target)[order].split([1297, 500])

    print("| couplings | backward pass | peak MB | of these gradients of weights | ms a step |\n" + "|---" * 5 + "|")
    costs: dict[str, list[tuple[float, float, float]]] = {mode: [] for mode in MODES}
    for number in depths:
        for mode, rows in costs.items():
            rows.append(cost(number, mode, images, labels))
            print("| {} | {} | {:.1f} | {:.1f} | {:.0f} |".format(number, mode, *rows[-1]), flush=True)

    losses = {}
    for mode in ("ordinary", "reversible"):
        torch.manual_seed(0)
        classifier = Classifier(depth, **MODES[mode])
        began = time.perf_counter()
        losses[mode] = train(classifier, images, labels, epochs)
        seconds = time.perf_counter() - began
        with torch.no_grad():
            right = (classifier(held_out).argmax(-1) == held_out_labels).sum()
        print(f"{mode}, {depth} couplings: {right} of {len(held_out)} held-out right, {seconds:.0f} s of training")
    draw(costs, depths, losses, options.output)
    print(f"picture: {options.output}")
    for kind in (torch.float32, torch.float64):
        ordinary, other = (gradient(classifier, depth, mode, images.to(kind), labels) for mode in losses)
        difference = ((other - ordinary).norm() / ordinary.norm()).item()
        print(f"gradients of the trained classifier differ by {difference:.0e} of their length in {kind}")
    (most, _, fast), (least, _, slow) = (costs[mode][-1] for mode in losses)
    print(f"{depths[-1]} couplings: {most / least:.0f} times less memory in {slow / fast:.1f} times the time")


if __name__ == "__main__":
    main()
