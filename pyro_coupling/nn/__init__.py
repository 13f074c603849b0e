"""Conditioners: networks that read the part of an event that stays and return an elementwise map's parameters."""

from .adapters import OverBatch
from .attention import SetAttention
from .convolution import ConvNet, GatedResidualConv
from .dilated import DilatedConv1d
from .graph import MessagePassing, OnGraph
from .mlp import MLP, Constant, SeparateMLPs, mlp
from .periodic import PeriodicFeatures
from .positions import LearnedPositions, SinusoidalPositions
from .residual import ResidualMLP

__all__ = [
    "MLP",
    "Constant",
    "ConvNet",
    "DilatedConv1d",
    "GatedResidualConv",
    "LearnedPositions",
    "MessagePassing",
    "OnGraph",
    "OverBatch",
    "PeriodicFeatures",
    "ResidualMLP",
    "SeparateMLPs",
    "SetAttention",
    "SinusoidalPositions",
    "mlp",
]
