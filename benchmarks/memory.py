"""Memory of one training step in each memory mode of a chain, and how exact its gradients are.

Live tensors are counted by storage while a maximum-likelihood step runs, activations and gradients and not the
parameters and the batch that were there before; the figure is the most that lived at a time. The gradient in float32
is compared with that in float64 at the same parameters: relative error of the whole vector. 64
dimensions, batches of 4096, conditioners of 2 x 128 hidden units, parameters moved off their start by noise.

    python benchmarks/memory.py [--layers 8 32 64] [--json benchmarks/results/memory.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_coupling import flows

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from live_memory import peak_megabytes

DIM, BATCH, HIDDEN, NOISE = 64, 4096, (128, 128), 0.01
FLOWS = {"affine": flows.real_nvp, "spline": flows.neural_spline}
MODES: dict[str, dict[str, bool]] = {
    "plain": {},
    "checkpoint": {"checkpoint": True},
    "reversible": {"reversible": True},
}


def backward(flow: nn.Module, x: Tensor) -> None:
    z, log_det = flow.inverse_and_log_det(x)
    (0.5 * z.square().sum(-1) - log_det).mean().backward()


def gradient(flow: nn.Module, x: Tensor) -> Tensor:
    """The gradient of one step as one vector in float64."""
    flow.zero_grad()
    backward(flow, x)
    return torch.cat([p.grad.double().flatten() for p in flow.parameters()])


def measure(kind: str, layers: int, repeats: int) -> dict[str, dict[str, float]]:
    """Megabytes, relative error of the gradient and milliseconds of a step in each mode."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, DIM)
    start = FLOWS[kind](DIM, layers, HIDDEN)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
    reference = FLOWS[kind](DIM, layers, HIDDEN, checkpoint=True)  # in float64 the modes agree, and this one is small
    reference.load_state_dict(start.state_dict())
    exact = gradient(reference.double(), x.double())
    results = {}
    for mode, setting in MODES.items():
        flow = FLOWS[kind](DIM, layers, HIDDEN, **setting)
        flow.load_state_dict(start.state_dict())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            error = (gradient(flow, x) - exact).norm() / exact.norm()
            flow.zero_grad()
            megabytes = peak_megabytes(lambda flow=flow: backward(flow, x), [x, *flow.parameters(), *flow.buffers()])
        times = []
        for _ in range(repeats):
            flow.zero_grad()
            began = time.perf_counter()
            backward(flow, x)
            times.append(1e3 * (time.perf_counter() - began))
        results[mode] = {
            "megabytes": megabytes,
            "gradient_error": error.item(),
            "milliseconds": statistics.median(times),
            "fell_back": any("checkpoint" in str(warning.message) for warning in caught),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    print("| couplings | layers | mode | peak MB | gradient error | ms a step |\n" + "|---" * 6 + "|")
    for kind in FLOWS:
        results[kind] = {layers: measure(kind, layers, options.repeats) for layers in options.layers}
        for layers, modes in results[kind].items():
            for mode, row in modes.items():
                name = f"{mode}, fell back to checkpoints" if row["fell_back"] else mode
                figures = f"{row['megabytes']:.0f} | {row['gradient_error']:.1e} | {row['milliseconds']:.0f}"
                print(f"| {kind} | {layers} | {name} | {figures} |", flush=True)
    if options.json:
        settings = {"dim": DIM, "batch": BATCH, "hidden": HIDDEN, "noise": NOISE, "torch": torch.__version__}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
