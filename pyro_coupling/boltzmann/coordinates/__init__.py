"""Coordinates of molecules and particles: internal, free of the centre of mass, whitened; and the noise of a flow."""

from .base_map import InformedBase
from .cartesian import CenterFree, Whitening
from .internal import InternalCoordinates
from .particles import Cluster, PlanarCluster, SpatialCluster

__all__ = [
    "CenterFree",
    "Cluster",
    "InformedBase",
    "InternalCoordinates",
    "PlanarCluster",
    "SpatialCluster",
    "Whitening",
]
