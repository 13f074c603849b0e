"""Densities to be learned: the protocol, and a Pyro model as one."""

from .base import Target, log_prob_and_score
from .pyro_model import PyroTarget
from .structure import init_to_center

__all__ = ["PyroTarget", "Target", "init_to_center", "log_prob_and_score"]
