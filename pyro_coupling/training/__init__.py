"""Fitting a flow to an unnormalised density: warm starts, gradient estimators, the loop."""

from .gaussians import Gaussian, GaussianStart, LowRankStart
from .objectives import ESTIMATORS, reverse_kl_backward
from .trainer import Trainer, TrainingRecord, TrainingState
from .warm_start import warm_start

__all__ = [
    "ESTIMATORS",
    "Gaussian",
    "GaussianStart",
    "LowRankStart",
    "Trainer",
    "TrainingRecord",
    "TrainingState",
    "reverse_kl_backward",
    "warm_start",
]
