"""Bijections: the coupling layer and its parts, what stands around it, and helpers in Pyro's convention."""

from .affine import DiagonalAffine, LowerTriangularAffine
from .base import Bijection
from .chain import Chain
from .coupling import Coupling
from .elementwise import (
    Affine,
    AsymmetricClampScale,
    ClampScale,
    Elementwise,
    RationalQuadraticSpline,
    Scale,
    Shift,
    SigmoidScale,
    SoftplusScale,
    TanhScale,
)
from .helpers import (
    additive_coupling,
    affine_coupling,
    conditional_additive_coupling,
    conditional_affine_coupling,
    conditional_spline_coupling,
    spline_coupling,
)
from .partitions import Partition, alternating, halves, random_pair
from .permutation import Permutation

__all__ = [
    "Affine",
    "AsymmetricClampScale",
    "Bijection",
    "Chain",
    "ClampScale",
    "Coupling",
    "DiagonalAffine",
    "Elementwise",
    "LowerTriangularAffine",
    "Partition",
    "Permutation",
    "RationalQuadraticSpline",
    "Scale",
    "Shift",
    "SigmoidScale",
    "SoftplusScale",
    "TanhScale",
    "additive_coupling",
    "affine_coupling",
    "alternating",
    "conditional_additive_coupling",
    "conditional_affine_coupling",
    "conditional_spline_coupling",
    "halves",
    "random_pair",
    "spline_coupling",
]
