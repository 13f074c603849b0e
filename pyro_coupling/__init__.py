"""Coupling-layer normalizing flows for Pyro: guides one can trust, learned priors, Boltzmann generators."""

from . import flows, transforms
from .guides import AutoCouplingFlow
from .inference import FlowVI

__all__ = ["AutoCouplingFlow", "FlowVI", "flows", "transforms"]
__version__ = "0.1.0.dev0"
