"""Coupling-layer normalizing flows for Pyro: guides one can trust, learned priors, Boltzmann generators."""

from . import boltzmann, flows, images, transforms
from .guides import AutoCouplingFlow
from .inference import FlowVI
from .registry import register
from .saving import load, save

__all__ = ["AutoCouplingFlow", "FlowVI", "boltzmann", "flows", "images", "load", "register", "save", "transforms"]
__version__ = "0.1.0.dev0"
