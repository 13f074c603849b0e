"""Boltzmann generators: energies, coordinates, and flows that draw configurations with exact weights."""

from . import energies
from .annealed import AnnealedEstimate, annealed_importance_sampling
from .coordinates import CenterFree, InformedBase, InternalCoordinates, PlanarCluster, SpatialCluster, Whitening
from .dynamics import Langevin, ParallelTempering, TemperingTrajectory, Trajectory
from .force_field import ForceField, OpenMMEnergy, from_openmm, from_xml
from .free_energy import (
    FreeEnergies,
    FreeEnergyDifference,
    bar,
    free_energy_difference,
    mbar,
    state_difference,
    targeted_perturbation,
)
from .generator import BoltzmannGenerator, Samples
from .measurements import bond_angles, bond_lengths, dihedrals
from .metropolis import Walk, metropolis
from .minimum import minimise
from .observables import Estimate, Histogram, Profile, free_energy_profile, histogram, populations, reweighted
from .phases import Rung
from .pyro_site import BoltzmannDistribution, FlowGuide
from .ramachandran import (
    Backbone,
    Divergence,
    Ramachandran,
    backbone,
    backbone_from_bonds,
    kl_divergence,
    positive_phi,
    ramachandran_histogram,
    total_variation,
)
from .steerable import SteerableGenerator, TemperatureCurve
from .structures import topology_from_bonds, write_pdb, write_xtc
from .target import BoltzmannTarget
from .units import kT
from .walkers import Walkers

__all__ = [
    "AnnealedEstimate",
    "Backbone",
    "BoltzmannDistribution",
    "BoltzmannGenerator",
    "BoltzmannTarget",
    "CenterFree",
    "Divergence",
    "Estimate",
    "FlowGuide",
    "ForceField",
    "FreeEnergies",
    "FreeEnergyDifference",
    "Histogram",
    "InformedBase",
    "InternalCoordinates",
    "Langevin",
    "OpenMMEnergy",
    "ParallelTempering",
    "PlanarCluster",
    "Profile",
    "Ramachandran",
    "Rung",
    "Samples",
    "SpatialCluster",
    "SteerableGenerator",
    "TemperatureCurve",
    "TemperingTrajectory",
    "Trajectory",
    "Walk",
    "Walkers",
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
