"""Monotone maps of single numbers, one file each: the third part of a coupling."""

from .affine import Affine, Shift
from .base import Elementwise
from .circular import CircularRationalQuadraticSpline
from .cubic import CubicSpline
from .linear_rational import LinearRationalSpline
from .logistic_mixture import LogisticMixture
from .per_feature import PerFeature
from .piecewise_polynomial import PiecewiseLinear, PiecewiseQuadratic
from .rational_quadratic import BoundedRationalQuadraticSpline, RationalQuadraticSpline
from .scales import AsymmetricClampScale, ClampScale, Scale, SigmoidScale, SoftplusScale, TanhScale

__all__ = [
    "Affine",
    "AsymmetricClampScale",
    "BoundedRationalQuadraticSpline",
    "CircularRationalQuadraticSpline",
    "ClampScale",
    "CubicSpline",
    "Elementwise",
    "LinearRationalSpline",
    "LogisticMixture",
    "PerFeature",
    "PiecewiseLinear",
    "PiecewiseQuadratic",
    "RationalQuadraticSpline",
    "Scale",
    "Shift",
    "SigmoidScale",
    "SoftplusScale",
    "TanhScale",
]
