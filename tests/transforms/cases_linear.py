"""Linear and normalising layers and maps without parameters, as the harness takes them."""

from __future__ import annotations

__all__ = ["BOUNDED_CASES", "LINEAR_CASES"]

from collections.abc import Callable

import torch

from pyro_coupling.transforms import (
    LOFT,
    ActNorm,
    BatchNorm,
    Bijection,
    HouseholderLinear,
    LeakyReLU,
    LearnedPermutation,
    LULinear,
    PlainLinear,
    SoftBound,
    ToUnitInterval,
    conv1x1,
)


def _act_norm(*args) -> ActNorm:
    """Set by a batch of data that is far from normal."""
    layer = ActNorm(*args)
    layer.inverse_and_log_det(3.0 + 2.0 * torch.randn(20, *layer.event_shape))
    return layer.eval()


def _batch_norm(*args) -> BatchNorm:
    layer = BatchNorm(*args, momentum=0.5)
    layer.inverse_and_log_det(3.0 + 2.0 * torch.randn(20, *layer.event_shape))
    return layer.eval()


LINEAR_CASES: dict[str, Callable[[], Bijection]] = {
    "lu": lambda: LULinear(4),
    "lu-rotation": lambda: LULinear(4, seed=1),
    "lu-image": lambda: LULinear((3, 2, 2), -3, seed=2),
    "lu-middle": lambda: LULinear((2, 3, 2), -2, seed=2, bound=1.0),
    "lu-one": lambda: LULinear(1),
    "householder": lambda: HouseholderLinear(4),
    "householder-odd": lambda: HouseholderLinear(4, 3, seed=1),
    "householder-image": lambda: HouseholderLinear((3, 2, 2), dim=-3),
    "plain": lambda: PlainLinear(4),
    "plain-image": lambda: PlainLinear((3, 2, 2), -3, seed=1),
    "conv1x1": lambda: conv1x1((3, 2, 2)),
    "conv1x1-audio": lambda: conv1x1((3, 4), lu=False),
    "inverse-lu": lambda: LULinear(4, seed=1).inv,
    "act-norm": lambda: _act_norm(3),
    "act-norm-image": lambda: _act_norm((3, 2, 2), -3),
    "act-norm-before-the-first-batch": lambda: ActNorm(3).eval(),
    "batch-norm": lambda: _batch_norm(3),
    "batch-norm-image": lambda: _batch_norm((3, 2, 2), -3),
    "leaky-relu": lambda: LeakyReLU(3),
    "leaky-relu-matrix": lambda: LeakyReLU((2, 2), negative_slope=0.3),
    "loft": lambda: LOFT(3),
    "loft-matrix": lambda: LOFT((2, 2), threshold=1.0),
    "permutation-learned": lambda: LearnedPermutation(4),
    "permutation-learned-matrix": lambda: LearnedPermutation((2, 3), seed=1),
}

#: onto an interval: an inverse takes what a forward pass gave, not any number
BOUNDED_CASES: dict[str, Callable[[], Bijection]] = {
    "soft-bound": lambda: SoftBound(3, 1.0, 3.0),
    "soft-bound-matrix": lambda: SoftBound((2, 2), 0.0, 1.0),
    "unit-interval": lambda: ToUnitInterval(3),
    "unit-interval-image": lambda: ToUnitInterval((1, 2, 2), margin=0.01),
    "unit-interval-no-margin": lambda: ToUnitInterval(3, margin=0.0),
}
