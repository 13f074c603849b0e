"""Coordinates of molecules and particles: internal, free of the centre of mass, whitened; and the noise of a flow."""

from .base_map import InformedBase
from .cartesian import CenterFree, Whitening
from .internal import InternalCoordinates

__all__ = ["CenterFree", "InformedBase", "InternalCoordinates", "Whitening"]
