"""Fitting a flow to an unnormalised density: warm starts, gradient estimators, the loop."""

from .objectives import ESTIMATORS, reverse_kl_backward
from .trainer import Trainer, TrainingRecord, TrainingState
from .warm_start import GaussianStart, warm_start

__all__ = [
    "ESTIMATORS",
    "GaussianStart",
    "Trainer",
    "TrainingRecord",
    "TrainingState",
    "reverse_kl_backward",
    "warm_start",
]
