"""The flow that a generator uses if it is given none."""

from __future__ import annotations

__all__ = ["default_flow"]

import math

from torch import nn

from .. import flows
from ..transforms import Bijection, Chain
from .coordinates import Cluster, InternalCoordinates
from .energies import Energy

_LARGEST_LINEAR = 8  # dimensions up to which splines stand between learned linear maps


def default_flow(energy: Energy, coordinates: Bijection | None, kT: float, context_dim: int = 0) -> Chain:
    """Splines: of the box of internal coordinates, on a base that knows the minimum; of all space otherwise.

    Args:
        energy: The energy.
        coordinates: Maps coordinates to configurations; None where these are vectors already.
        kT: Thermal energy at which training starts.
        context_dim: Number of context features, 0 for none.
    """
    if isinstance(coordinates, InternalCoordinates):
        (dim,) = coordinates.event_shape
        couplings = flows.circular_spline(
            dim, 12, (128, 128), context_dim, circular=coordinates.circular, linear_bound=math.pi, outer_affine=False
        )
        return Chain([coordinates.informed_base(energy, kT), *couplings])
    (dim,) = energy.event_shape if coordinates is None else coordinates.event_shape
    # Numbers that are normal far out, each by itself, no longer are once they have been mixed. In many dimensions the
    # maps cost more than they help: Many-Well came to an ESS of 0.83 without and 0.54 with them in 32 dimensions, in
    # 6 to 0.92 and 0.96; Müller-Brown's surface to 0.89 and 0.99.
    linear = dim <= _LARGEST_LINEAR and not isinstance(coordinates, Cluster)
    # Rectifiers die out: after 8500 steps on the double well every unit of every second hidden layer was at zero.
    return flows.neural_spline(dim, 8, (64, 64), context_dim, bound=5.0, linear=linear, activation=nn.SiLU)
