"""Boltzmann generators: energies, coordinates, and flows that draw configurations with exact weights."""

from . import energies
from .annealed import annealed_importance_sampling
from .coordinates import CenterFree, InformedBase, InternalCoordinates, PlanarCluster, SpatialCluster, Whitening
from .dynamics import Langevin, ParallelTempering
from .force_field import ForceField, OpenMMEnergy, from_openmm, from_xml
from .free_energy import bar, free_energy_difference, mbar, state_difference, targeted_perturbation
from .generator import BoltzmannGenerator, Samples
from .measurements import bond_angles, bond_lengths, dihedrals
from .metropolis import metropolis
from .minimum import minimise
from .observables import free_energy_profile, histogram, populations, reweighted
from .pyro_site import BoltzmannDistribution
from .ramachandran import (
    backbone,
    backbone_from_bonds,
    kl_divergence,
    positive_phi,
    ramachandran_histogram,
    total_variation,
)
from .steerable import SteerableGenerator
from .structures import topology_from_bonds, write_pdb, write_xtc
from .units import kT

__all__ = [
    "BoltzmannDistribution",
    "BoltzmannGenerator",
    "CenterFree",
    "ForceField",
    "InformedBase",
    "InternalCoordinates",
    "Langevin",
    "OpenMMEnergy",
    "ParallelTempering",
    "PlanarCluster",
    "Samples",
    "SpatialCluster",
    "SteerableGenerator",
    "Whitening",
    "annealed_importance_sampling",
    "backbone",
    "backbone_from_bonds",
    "bar",
    "bond_angles",
    "bond_lengths",
    "dihedrals",
    "energies",
    "free_energy_difference",
    "free_energy_profile",
    "from_openmm",
    "from_xml",
    "histogram",
    "kT",
    "kl_divergence",
    "mbar",
    "metropolis",
    "minimise",
    "populations",
    "positive_phi",
    "ramachandran_histogram",
    "reweighted",
    "state_difference",
    "targeted_perturbation",
    "topology_from_bonds",
    "total_variation",
    "write_pdb",
    "write_xtc",
]
