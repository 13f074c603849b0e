"""Monotone maps of single numbers, one file each: the third part of a coupling."""

from .affine import Affine, Shift
from .base import Elementwise
from .rational_quadratic import RationalQuadraticSpline
from .scales import AsymmetricClampScale, ClampScale, Scale, SigmoidScale, SoftplusScale, TanhScale

__all__ = [
    "Affine",
    "AsymmetricClampScale",
    "ClampScale",
    "Elementwise",
    "RationalQuadraticSpline",
    "Scale",
    "Shift",
    "SigmoidScale",
    "SoftplusScale",
    "TanhScale",
]
