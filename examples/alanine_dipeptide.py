"""Alanine dipeptide in implicit solvent at 300 K, from its energy alone: 22 atoms, 60 internal coordinates.

Trains a Boltzmann generator (Amber ff96, OBC1), in as many sittings as one likes: a later run with the same
`--checkpoint` goes on where the last one ended. It is judged by what a high effective sample size does not show, the
Ramachandran map and the rare basin at phi > 0, beside parallel tempering on the same energy.

By default an hour on one core: few layers, small batches. `--full` is the recipe of the literature, for a GPU.

    python examples/alanine_dipeptide.py [--minutes 60] [--full] [--quick] [--checkpoint FILE] [--output alanine]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mdtraj
import torch
from matplotlib.figure import Figure

from pyro_coupling import boltzmann, flows
from pyro_coupling.boltzmann import plots
from pyro_coupling.diagnostics import resample
from pyro_coupling.transforms import Chain

DATA = Path(__file__).parents[1] / "tests" / "boltzmann" / "fixtures"
TEMPERATURE, HOTTEST = 300.0, 4.0
SMALL = {"num_layers": 8, "hidden_dims": (128, 128)}
FULL = {"num_layers": 16, "hidden_dims": (256,) * 5}
#: of the trainer: small batches take more steps in an hour, large ones fill a GPU
SMALL_TRAINING = {"num_particles": 256, "learning_rate": 1e-3, "buffer_size": 20_000}
FULL_TRAINING = {"num_particles": 4096, "learning_rate": 5e-4, "num_rungs": 10, "buffer_size": 2_000_000}


def make_generator(full: bool, device: torch.device) -> boltzmann.BoltzmannGenerator:
    """The molecule from its serialised force field and a structure, internal coordinates about its minimum, a flow."""
    energy = boltzmann.from_xml(DATA / "aldp_ff96_obc1_system.xml").to(device)
    structure = mdtraj.load(DATA / "alanine_dipeptide.pdb")
    start = torch.from_numpy(structure.xyz[0].copy()).to(device, torch.float64)
    elements = [atom.element.symbol for atom in structure.topology.atoms]
    coordinates = boltzmann.InternalCoordinates(boltzmann.minimise(energy, start), energy.bonds, elements)
    torch.manual_seed(0)
    couplings = flows.circular_spline(
        *coordinates.event_shape,
        **(FULL if full else SMALL),
        circular=coordinates.circular,
        linear_bound=coordinates.bound,
        outer_affine=False,
    )
    base = coordinates.informed_base(energy, HOTTEST * boltzmann.kT(TEMPERATURE))
    return boltzmann.BoltzmannGenerator(
        energy,
        temperature=TEMPERATURE,
        coordinates=coordinates,
        flow=Chain([base, *couplings], compile=full),
        hottest=HOTTEST,
        seed=0,
        **(FULL_TRAINING if full else SMALL_TRAINING),
    )


def reference(generator: boltzmann.BoltzmannGenerator, num_steps: int) -> torch.Tensor:
    """Frames of parallel tempering at 300 K, one every 0.1 ps of each of 64 ladders, the first tenth left out."""
    dynamics = boltzmann.ParallelTempering(
        generator.energy,
        time_step=0.001,
        friction=1.0,
        temperature=[300.0, 410.0, 560.0, 770.0],
        masses=generator.energy.masses,
    )
    start = generator.target.coordinates.reference.to(generator.target.device, generator.target.dtype)
    positions = dynamics.run(start.expand(64, -1, -1), num_steps, keep=1).positions
    return positions[len(positions) // 10 :, :, 0].flatten(0, 1)


def backbone_angles(energy: boltzmann.ForceField, positions: torch.Tensor) -> torch.Tensor:
    """Phi and psi, ``(n, 2)``."""
    elements = [atom.element.symbol for atom in mdtraj.load(DATA / "alanine_dipeptide.pdb").topology.atoms]
    backbone = boltzmann.backbone_from_bonds(elements, energy.bonds)
    return boltzmann.dihedrals(positions, torch.cat([backbone.phi, backbone.psi]).to(positions.device))


def draw(generator: boltzmann.BoltzmannGenerator, angles: torch.Tensor, log_weights: torch.Tensor,
         known: torch.Tensor, output: str) -> None:  # fmt: skip
    """The maps of flow, weighted flow and reference, free energies along both angles, and the training."""
    maps = [boltzmann.ramachandran_histogram(*which) for which in ((angles,), (known,), (angles, 64, log_weights))]
    plots.plot_ramachandran(*maps)[0].figure.savefig(f"{output}_ramachandran.png", dpi=90)

    figure = Figure((15.0, 4.4), layout="constrained")
    *profiles, training = figure.subplots(1, 3)
    for axes, name, column in zip(profiles, ("phi", "psi"), (0, 1), strict=True):
        weighted = boltzmann.free_energy_profile(angles[:, column], log_weights=log_weights)
        lines = {"flow, reweighted": weighted, "parallel tempering": boltzmann.free_energy_profile(known[:, column])}
        plots.plot_profiles(lines, coordinate=name, axes=axes)
    training.plot(generator.record.steps, generator.record.ess)
    training.set(xlabel="step", ylabel="relative ESS of a batch, at the temperature of the step", ylim=(0, 1))
    figure.savefig(f"{output}_profiles.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, over all sittings")
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--reference-steps", type=int, default=40_000, help="of parallel tempering, 1 fs each")
    parser.add_argument("--checkpoint", help="file in which the training is kept")
    parser.add_argument("--full", action="store_true", help="the large flow and large batches, for a GPU")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="alanine")
    options = parser.parse_args()
    generator = make_generator(options.full, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if options.quick:
        options.samples, options.reference_steps = 500, 400
        generator.num_particles, generator.buffer_size = 32, 200
        generator.train(max_steps=20)
    else:
        generator.train(max_seconds=60 * options.minutes, checkpoint=options.checkpoint)

    draws = generator.sample(options.samples)
    angles = backbone_angles(generator.energy, draws.positions)
    known = backbone_angles(generator.energy, reference(generator, options.reference_steps))
    found = generator.diagnostics(options.samples)
    maps = [boltzmann.ramachandran_histogram(angles, 64, w) for w in (None, draws.log_weights)]
    truth = boltzmann.ramachandran_histogram(known)
    print(f"down the ladder, ESS of each step: {', '.join(f'{rung.ess:.2f}' for rung in generator.rungs)}")
    print(f"energies evaluated  {found['num_energies']:.3g}, {found['seconds'] / 60:.0f} minutes")
    for name, histogram in zip(("flow", "reweighted"), maps, strict=True):
        distance = boltzmann.total_variation(histogram, truth)
        print(f"Ramachandran TV     {distance.value:.3f}  {name}, 64 x 64 bins, {distance.num_samples} samples")
    for name, phi, log_weights in (
        ("flow", angles[:, 0], None),
        ("reweighted", angles[:, 0], draws.log_weights),
        ("parallel tempering", known[:, 0], None),
    ):
        share = boltzmann.positive_phi(phi, log_weights, upper=2.2)
        print(f"0 < phi < 2.2       {share.value:.5f} +- {share.standard_error:.5f}  {name}")
    print(
        f"relative ESS        {found['ess']:.3f}, {found['ess_clipped']:.3f} with the largest 1e-4 of weights clipped"
    )
    draw(generator, angles, draws.log_weights, known, options.output)
    chosen = resample(draws.log_weights, 20)
    boltzmann.write_pdb(f"{options.output}.pdb", draws.positions[chosen], str(DATA / "alanine_dipeptide.pdb"))
    print(f"pictures: {options.output}_ramachandran.png, {options.output}_profiles.png; 20 draws: {options.output}.pdb")


if __name__ == "__main__":
    main()
