"""Energies with gradients per second of a molecule in implicit solvent: our force field beside OpenMM's platforms.

Alanine dipeptide, Amber ff96 with OBC1, one thread each. All are timed in turns within one run, by the processor
time that they take; figures are medians. The last column is the largest difference in energy from OpenMM's Reference
platform, so that one sees that all do the same.

    python benchmarks/molecular_energies.py [--batch 1024] [--repeats 11] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import openmm
import torch
from torch import Tensor

from pyro_coupling.boltzmann.force_field import from_xml

FIXTURES = Path(__file__).parent.parent / "tests" / "boltzmann" / "fixtures"
SYSTEM = FIXTURES / "aldp_ff96_obc1_system.xml"
FRAMES = FIXTURES / "openmm_reference.json"
FEW = 128  # frames for OpenMM, which takes them one by one

Contender = Callable[[Tensor], Tensor]


def frames(batch: int) -> Tensor:
    """Frames of a simulation, each with a little noise, ``(batch, 22, 3)``, float64."""
    found = torch.tensor(json.loads(FRAMES.read_text())["positions"], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    found = found[torch.arange(batch) % len(found)]
    return found + 0.002 * torch.randn(found.shape, dtype=found.dtype, generator=generator)


def by_openmm(platform: str) -> Contender:
    options = {"Threads": "1"} if platform == "CPU" else {}
    system = openmm.XmlSerializer.deserialize(SYSTEM.read_text())
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), options)

    def evaluate(x: Tensor) -> Tensor:
        energies = []
        for frame in x.numpy():
            context.setPositions(frame)
            state = context.getState(getEnergy=True, getForces=True)
            state.getForces(asNumpy=True)
            energies.append(state.getPotentialEnergy()._value)
        return torch.tensor(energies, dtype=torch.float64)

    return evaluate


def by_torch(dtype: torch.dtype, compiled: bool = False) -> Contender:
    force_field = from_xml(SYSTEM)
    energy_of = torch.compile(force_field, dynamic=False, fullgraph=True) if compiled else force_field

    def evaluate(x: Tensor) -> Tensor:
        leaf = x.to(dtype).detach().requires_grad_()
        energy = energy_of(leaf)
        torch.autograd.grad(energy.sum(), leaf)
        return energy.detach()

    return evaluate


def measure(contenders: dict[str, Contender], x: Tensor, repeats: int) -> list[dict]:
    """A row for each, in the order given."""
    inputs = {name: x[:FEW] if name.startswith("OpenMM") else x for name in contenders}
    energies = {name: evaluate(inputs[name]) for name, evaluate in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, evaluate in contenders.items():
            began = time.process_time()
            evaluate(inputs[name])
            seconds[name].append((time.process_time() - began) / len(inputs[name]))
    exact = energies["OpenMM Reference"]
    rate = {name: 1 / statistics.median(times) for name, times in seconds.items()}
    return [
        {"what": name, "per_second": rate[name], "beside_openmm_cpu": rate[name] / rate["OpenMM CPU"]}
        | {"error": (energies[name][: len(exact)] - exact).abs().max().item()}
        for name in contenders
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    contenders = {
        "OpenMM Reference": by_openmm("Reference"),
        "OpenMM CPU": by_openmm("CPU"),
        "torch float64": by_torch(torch.float64),
        "torch float32": by_torch(torch.float32),
        "torch float32, compiled": by_torch(torch.float32, compiled=True),
    }
    rows = measure(contenders, frames(options.batch), options.repeats)
    print("| | energies and gradients per second | beside OpenMM CPU | largest error, kJ/mol |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['what']} | {row['per_second']:.0f} | {row['beside_openmm_cpu']:.2f} | {row['error']:.1e} |")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"batch": options.batch, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
