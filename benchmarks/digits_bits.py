"""Bits per dimension of scikit-learn's digits: our Glow beside a spline coupling flow of zuko with as many parameters.

    python benchmarks/digits_bits.py [--steps 1000] [--seeds 1]

Both see the same images, classes and dequantization noise, have the same optimiser, schedule and averaging, and are
trained for the same number of steps; seconds are told. Prints a table and writes `results/digits_bits.json`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import zuko
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from digits import CLASSES, LEVELS, SHAPE, Bits, build, data, train

from pyro_coupling.images import UniformDequantization, bits_per_dimension
from pyro_coupling.transforms import ToUnitInterval

RESULTS = Path(__file__).parent / "results" / "digits_bits.json"


class ZukoBits(nn.Module):
    """Zuko's coupling flow of the 64 logits, with the class as context."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.flow = zuko.flows.NSF(64, CLASSES, transforms=6, bins=8, hidden_features=(hidden, hidden), passes=2)
        self.to_pixels = ToUnitInterval(SHAPE)

    def forward(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        x, log_q = UniformDequantization(LEVELS)(images)
        logits, log_det = self.to_pixels.inverse_and_log_det(x)
        log_density = self.flow(classes).log_prob(logits.flatten(1)) + log_det - log_q
        return bits_per_dimension(log_density, SHAPE, LEVELS)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def equal_in_size(wanted: int) -> ZukoBits:
    """The width that comes nearest to as many parameters."""
    return min((ZukoBits(hidden) for hidden in range(4, 65)), key=lambda module: abs(size(module) - wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        images, classes, held_out, held_out_classes = data(seed)
        torch.manual_seed(seed)
        ours = Bits(build("glow"))
        for name, model in (("pyro_coupling glow", ours), ("zuko NSF", equal_in_size(size(ours)))):
            torch.manual_seed(seed)
            began = time.monotonic()
            model = train(model, images, classes, arguments.steps)
            seconds = time.monotonic() - began
            with torch.no_grad():
                found = torch.stack([model(held_out, held_out_classes) for _ in range(10)])
                learned = model(images, classes).mean().item()
            error = (found.mean(0).std() / len(held_out) ** 0.5).item()
            rows.append(
                {"flow": name, "seed": seed, "parameters": size(model), "steps": arguments.steps, "seconds": seconds}
                | {"held_out": found.mean().item(), "standard_error": error, "training": learned}
            )
            print(rows[-1], flush=True)
    print("\n| flow | seed | parameters | seconds | training | held out |\n|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['flow']} | {row['seed']} | {row['parameters']} | {row['seconds']:.0f} | {row['training']:.3f} "
            f"| {row['held_out']:.3f} +- {row['standard_error']:.3f} |"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
