"""Recipes: whole flows composed from the parts in `transforms`, and no mathematics of their own.

Each returns one bijection in Pyro's direction, base noise to sample, that starts as the identity (but
for the fixed rotations between the layers of Glow and WaveGlow). All share one vocabulary: what comes
in, how many layers, how large their networks are, ``context_dim``.
"""

from .audio import wave_glow
from .distributions import base_distribution, distribution
from .image import glow, real_nvp_image
from .vector import circular_spline, neural_spline, nice, real_nvp

__all__ = [
    "base_distribution",
    "circular_spline",
    "distribution",
    "glow",
    "neural_spline",
    "nice",
    "real_nvp",
    "real_nvp_image",
    "wave_glow",
]
