"""Bijections: the coupling layer and its parts, what stands around it, and helpers in Pyro's convention."""

from .affine import DiagonalAffine, LowerTriangularAffine, LowRankAffine
from .base import Bijection
from .chain import Chain
from .coupling import Coupling
from .elementwise import (
    Affine,
    AsymmetricClampScale,
    BoundedRationalQuadraticSpline,
    CircularRationalQuadraticSpline,
    ClampScale,
    CubicSpline,
    Elementwise,
    LinearRationalSpline,
    LogisticMixture,
    PerFeature,
    PiecewiseLinear,
    PiecewiseQuadratic,
    RationalQuadraticSpline,
    Scale,
    Shift,
    SigmoidScale,
    SoftplusScale,
    TanhScale,
)
from .fixed import LOFT, LeakyReLU, SoftBound, ToUnitInterval
from .helpers import (
    additive_coupling,
    affine_coupling,
    conditional_additive_coupling,
    conditional_affine_coupling,
    conditional_spline_coupling,
    spline_coupling,
)
from .linear import HouseholderLinear, LULinear, PlainLinear, conv1x1
from .masks import alternating, checkerboard, decorrelating, from_indices, halves, random_pair
from .normalization import ActNorm, BatchNorm
from .partitions import MaskedPartition, Partition, SlicePartition
from .parts import OnSlice, WithContext
from .permutation import LearnedPermutation, Permutation
from .reshape import Reshape, Squeeze

__all__ = [
    "LOFT",
    "ActNorm",
    "Affine",
    "AsymmetricClampScale",
    "BatchNorm",
    "Bijection",
    "BoundedRationalQuadraticSpline",
    "Chain",
    "CircularRationalQuadraticSpline",
    "ClampScale",
    "Coupling",
    "CubicSpline",
    "DiagonalAffine",
    "Elementwise",
    "HouseholderLinear",
    "LULinear",
    "LeakyReLU",
    "LearnedPermutation",
    "LinearRationalSpline",
    "LogisticMixture",
    "LowRankAffine",
    "LowerTriangularAffine",
    "MaskedPartition",
    "OnSlice",
    "Partition",
    "PerFeature",
    "Permutation",
    "PiecewiseLinear",
    "PiecewiseQuadratic",
    "PlainLinear",
    "RationalQuadraticSpline",
    "Reshape",
    "Scale",
    "Shift",
    "SigmoidScale",
    "SlicePartition",
    "SoftBound",
    "SoftplusScale",
    "Squeeze",
    "TanhScale",
    "ToUnitInterval",
    "WithContext",
    "additive_coupling",
    "affine_coupling",
    "alternating",
    "checkerboard",
    "conditional_additive_coupling",
    "conditional_affine_coupling",
    "conditional_spline_coupling",
    "conv1x1",
    "decorrelating",
    "from_indices",
    "halves",
    "random_pair",
    "spline_coupling",
]
