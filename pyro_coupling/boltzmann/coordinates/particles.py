"""Shapes of clusters of identical particles, free of place and turn and in an order of their own."""

from __future__ import annotations

__all__ = ["Cluster", "PlanarCluster", "SpatialCluster"]

import itertools
import math
from typing import TypeVar

import torch
from torch import Tensor

from ...registry import register
from ...transforms import Bijection
from ..checks import check_count, check_positive
from ..energies import PairEnergy

Self = TypeVar("Self", bound="Cluster")

_PLANAR_SPREAD, _SPATIAL_SPREAD = 0.3, 0.2  # of the logarithm of a distance, for a standard normal
_CHOOSINESS = 10.0  # per radian, of who is first in a planar cluster
_TRIALS = 500
_LOG_NORMAL = -0.5 * math.log(2 * math.pi)


class Cluster(Bijection):
    """What both have in common: a length, and orders in which the particles of a shape may stand.

    Args:
        particles: Number of particles, three or more.
        dims: Dimension of space.
        length: Unit of distances.
        sizes: Numbers of inputs of each kind.
        led_by: How many particles an order lays down; the others follow as they come.
    """

    orders: Tensor

    def __init__(self, particles: int, dims: int, length: float, sizes: list[int], led_by: int) -> None:
        check_count(self, "particles", particles)
        if particles < 3:
            raise ValueError(f"{type(self).__name__}: there must be three particles or more, got {particles}")
        super().__init__((sum(sizes),), output_shape=(particles, dims))
        check_positive(self, "length", length)
        self.length = float(length)
        self._sizes = sizes
        leaders = itertools.permutations(range(particles), led_by)
        orders = [[*lead, *(other for other in range(particles) if other not in lead)] for lead in leaders]
        self.register_buffer("orders", torch.tensor(orders), persistent=False)

    def log_shares(self, positions: Tensor) -> Tensor:
        """Logarithm of the part that each of the orders has of a shape.

        Args:
            positions: ``(*batch, particles, dims)``.

        Returns:
            ``(*batch, len(orders))``; that of the order in which the particles stand comes first.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement log_shares")

    @torch.no_grad()
    def relabelled(self, positions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The same shapes in orders drawn by their shares, as samples of the target have them.

        Frames of a trajectory are in an order that means nothing, and often in one and the same.

        Args:
            positions: ``(n, particles, dims)``.
            generator: Source of randomness.
        """
        shares = self.log_shares(positions).exp().nan_to_num(1.0)
        order = self.orders[torch.multinomial(shares, 1, generator=generator).squeeze(-1)]
        return positions.gather(-2, order.unsqueeze(-1).expand_as(positions))

    @classmethod
    def suited_to(cls: type[Self], energy: PairEnergy, kT: float) -> Self:
        """Coordinates of the length at which clusters placed at random weigh most: the heaviest of fifty, usually.

        Args:
            energy: The energy, of as many particles.
            kT: Thermal energy.

        Raises:
            ValueError: If no length between 1e-3 and 1e3 gives energies that are finite.
        """
        particles = energy.event_shape[0]
        generator = torch.Generator().manual_seed(0)
        unit = cls(particles)  # type: ignore[call-arg]
        noise = torch.randn(_TRIALS, *unit.event_shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            shapes = unit.forward_and_log_det(noise)[0].to(energy.first.device)
            volume = (particles - 1) * unit.output_shape[1]
            log_lengths = torch.linspace(math.log(1e-3), math.log(1e3), 277, dtype=torch.float64)
            weights = [volume * log - energy.energy(shapes * log.exp()).cpu() / kT for log in log_lengths]
        heavy = torch.stack(weights).nan_to_num(-torch.inf, -torch.inf, -torch.inf).sort(-1).values[:, -_TRIALS // 50]
        if not bool(heavy.isfinite().any()):
            raise ValueError(f"{cls.__name__}: the energy is finite at no length between 1e-3 and 1e3")
        return cls(particles, float(log_lengths[heavy.argmax()].exp()))  # type: ignore[call-arg, arg-type]

    def extra_repr(self) -> str:
        return f"particles={self.output_shape[0]}, length={self.length:g}"


@register
class PlanarCluster(Cluster):
    """Clusters of identical particles in the plane, free of place and turn, each shape written about once.

    One particle comes first, the others follow in the order of the angles under which it sees them, counter-clockwise
    and from one of them on. Where to begin is not laid down by a rule, which would cut through the density, but shared
    out: with ``gap`` the empty angle at the first particle, from the last of the others to the first of them, a
    beginning counts ``exp(10 gap)`` over the sum of that over all ``particles (particles - 1)`` beginnings of a
    shape. So most of the weight is with the corner that sticks out most. A flow has to find one copy of a shape and
    sometimes a few, not the ``particles!`` of Cartesian coordinates, and weights stay exact. Mirror images are shapes
    of their own.

    Inputs are ``(*batch, 2 particles - 3)`` without constraint:

    * ``particles - 1`` distances from the first particle: their logarithms over ``length``, in units of 0.3;
    * ``particles - 2`` angles from the direction of the second particle. Standard normals make them uniform on the
      circle: with ``a_k`` the k-th in rising order and the last one followed by 2 pi, ``(a_k / a_(k+1))^k`` is the
      normal distribution function of the k-th entry.

    Outputs are positions ``(*batch, particles, 2)`` with their mean in the origin. The inverse takes a cluster wherever
    it is and however it is turned. It begins where the labels do: the first particle is the first, the second one has
    the angle zero, and the others are put in order; where particles coincide or two lie in one direction from the
    first, coordinates are infinite.

    **Measure.** If u has the density ``exp(log_det - energy / kT)``, shapes are Boltzmann distributed, for an energy
    that does not change by shifts, turns and exchanges of particles. What is left out is in the log-determinant: the
    integral over u is that of ``exp(-energy / kT)`` over all positions of labelled particles, turned in every way,
    divided by the area in which the cluster as a whole moves. In the measure of `CenterFree` the integral is smaller
    by a factor ``particles``; for particles without labels divide by ``particles!``.

    Args:
        particles: Number of particles, three or more.
        length: Usual distance between particles.

    Raises:
        ValueError: If there are fewer than three particles, or length is not positive.

    Example:
        >>> import torch
        >>> coordinates = PlanarCluster(4, length=4.0)
        >>> u = torch.randn(100, 5)
        >>> x = coordinates(u)
        >>> x.shape
        torch.Size([100, 4, 2])
        >>> elsewhere = x[:, [0, 1, 3, 2]].flip(-1) * torch.tensor([1.0, -1.0]) + 3.0  # other labels, turned, shifted
        >>> bool((coordinates.inv(elsewhere) - u).abs().max() < 1e-2)
        True
    """

    def __init__(self, particles: int, length: float = 1.0) -> None:
        super().__init__(particles, 2, length, [particles - 1, particles - 2], led_by=2)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        distances, angles = x.split(self._sizes, -1)
        log_distances = math.log(self.length) + _PLANAR_SPREAD * distances
        angles = 2 * math.pi * _rising(angles, 1).exp()
        angles = torch.cat([torch.zeros_like(angles[..., :1]), angles], -1)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        positions = _with_first(log_distances.exp().unsqueeze(-1) * directions)
        return positions, self._log_det(x, positions)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        around = y[..., 1:, :] - y[..., :1, :]
        angles = torch.atan2(around[..., 1], around[..., 0])
        angles, order = (angles - angles[..., :1]).remainder(2 * math.pi).sort(-1)
        log_distances = around.square().sum(-1).sqrt().gather(-1, order).log()
        distances = (log_distances - math.log(self.length)) / _PLANAR_SPREAD
        fractions = angles[..., 1:] / torch.cat([angles[..., 2:], torch.full_like(angles[..., :1], 2 * math.pi)], -1)
        x = torch.cat([distances, torch.special.ndtri(fractions ** _exponents(fractions, 1))], -1)
        return x, -self._log_det(x, y)

    def log_shares(self, positions: Tensor) -> Tensor:
        first, *others = positions[..., self.orders, :].unbind(-2)
        around = torch.stack(others, -2) - first.unsqueeze(-2)
        angles = torch.atan2(around[..., 1], around[..., 0])
        seen = (angles - angles[..., :1]).remainder(2 * math.pi).amax(-1)
        return (-_CHOOSINESS * seen).log_softmax(-1)

    def _log_det(self, x: Tensor, positions: Tensor) -> Tensor:
        """Of log-normal distances and uniform angles, times the share of this order among all of them."""
        particles = self.output_shape[0]
        log_distances = math.log(self.length) + _PLANAR_SPREAD * x[..., : self._sizes[0]]
        radial = (2 * log_distances + math.log(2 * math.pi * _PLANAR_SPREAD)).sum(-1)
        angular = (_LOG_NORMAL - 0.5 * x[..., self._sizes[0] :].square()).sum(-1)
        return radial + angular + self.log_shares(positions)[..., 0] + math.log(particles * (particles - 1))


@register
class SpatialCluster(Cluster):
    """Clusters of identical particles in space, free of place, turn and mirror image, ordered by distance.

    One particle comes first, the others follow in the order of their distance from it. The first of them gives the
    axis, the second the direction from which angles about the axis count, and the third lies on the side where they
    are positive. Of the ``2 particles!`` copies that a shape has in Cartesian coordinates there remain as many as
    there are particles that can come first.

    Inputs are ``(*batch, 3 particles - 6)`` without constraint, such that standard normals place particles
    independently of each other, uniformly in a ball about the first one whose size is log-normal:

    * ``particles - 2`` shells: with r_k the k-th distance, ``(r_k / r_(k+1))^(3 k)`` is the normal distribution
      function of the k-th entry;
    * the logarithm of the largest distance over ``length``, in units of 0.2;
    * for the second of the others and those after it, the cosine of the angle to the axis, which is ``2 P - 1``, P the
      normal distribution function;
    * for the third of the others and those after it, the angle about the axis: P times pi, then P times 2 pi.

    Outputs are positions ``(*batch, particles, 3)`` with their mean in the origin. The inverse takes a cluster wherever
    it is, however it is turned, reflected or labelled, but for the first particle. Where particles coincide or lie
    in one line with the first, coordinates are infinite or not numbers.

    **Measure.** If u has the density ``exp(log_det - energy / kT)``, shapes are Boltzmann distributed, for an energy
    that does not change by shifts, turns, reflections and exchanges of particles. What is left out is in the
    log-determinant: the integral over u is that of ``exp(-energy / kT)`` over all positions of labelled particles,
    turned and reflected in every way, divided by the volume in which the cluster as a whole moves. In the measure of
    `CenterFree` the integral is smaller by ``particles^(3 / 2)``; for particles without labels divide by
    ``particles!``.

    Args:
        particles: Number of particles, three or more.
        length: Usual distance of a particle from the one that is farthest from it.

    Raises:
        ValueError: If there are fewer than three particles, or length is not positive.

    Example:
        >>> import torch
        >>> coordinates = SpatialCluster(13, length=2.0)
        >>> u = torch.randn(100, 33, dtype=torch.float64)
        >>> x = coordinates(u)
        >>> x.shape, bool((coordinates.inv(3.0 - x.flip(-1)) - u).abs().max() < 1e-6)
        (torch.Size([100, 13, 3]), True)
    """

    arcs: Tensor

    def __init__(self, particles: int, length: float = 1.0) -> None:
        # shells, size, cosines, angles
        super().__init__(particles, 3, length, [particles - 2, 1, particles - 2, particles - 3], led_by=1)
        arcs = [math.pi, *[2 * math.pi] * (particles - 4)][: self._sizes[3]]
        self.register_buffer("arcs", torch.tensor(arcs, dtype=torch.float64), persistent=False)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shells, size, cosines, angles = x.split(self._sizes, -1)
        log_size = math.log(self.length) + _SPATIAL_SPREAD * size
        log_distances = torch.cat([log_size + _rising(shells, 3), log_size], -1)
        directions = self._directions(cosines, angles)
        return _with_first(log_distances.exp().unsqueeze(-1) * directions), self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        around = y[..., 1:, :] - y[..., :1, :]
        distances, order = around.square().sum(-1).sqrt().sort(-1)
        directions = around.gather(-2, order.unsqueeze(-1).expand_as(around)) / distances.unsqueeze(-1)
        shells = (distances[..., :-1] / distances[..., 1:]) ** _exponents(distances[..., 1:], 3)
        size = (distances[..., -1:].log() - math.log(self.length)) / _SPATIAL_SPREAD
        cosines, angles = self._angles(directions)
        x = torch.cat([torch.special.ndtri(shells), size, cosines, angles], -1)
        return x, -self._log_det(x)

    def log_shares(self, positions: Tensor) -> Tensor:
        particles = self.output_shape[0]
        return positions.new_full((*positions.shape[:-2], particles), -math.log(particles))

    def _log_det(self, x: Tensor) -> Tensor:
        """Of particles in a ball about the first: its volume for each of them, and the change of its size."""
        others = self.output_shape[0] - 1
        size = x[..., others - 1]
        log_ball = math.log(4 * math.pi / 3) + 3 * (math.log(self.length) + _SPATIAL_SPREAD * size)
        uniforms = (_LOG_NORMAL - 0.5 * x.square()).sum(-1) - (_LOG_NORMAL - 0.5 * size.square())
        return others * log_ball + math.log(3 * others * _SPATIAL_SPREAD) + uniforms

    def _directions(self, cosines: Tensor, angles: Tensor) -> Tensor:
        """Unit vectors from the first particle to the others, ``(*batch, particles - 1, 3)``."""
        below, above = torch.special.ndtr(cosines), torch.special.ndtr(-cosines)
        along, beside = below - above, 2 * (below * above).sqrt()
        turns = self.arcs.to(angles.dtype) * torch.special.ndtr(angles)
        turns = torch.cat([torch.zeros_like(cosines[..., :1]), turns], -1)
        off_axis = torch.stack([along, beside * turns.cos(), beside * turns.sin()], -1)
        axis = torch.eye(3, dtype=cosines.dtype, device=cosines.device)[:1]
        return torch.cat([axis.expand(*cosines.shape[:-1], 1, 3), off_axis], -2)

    def _angles(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and angles of unit vectors, as normals."""
        along, x, y = (directions[..., 1:, :] @ _axes(directions).mT).unbind(-1)
        side = torch.where(y[..., 1:2] < 0, -1.0, 1.0).to(y)
        turns = torch.atan2(side * y[..., 1:], x[..., 1:]).remainder(2 * math.pi)
        return torch.special.ndtri(0.5 * (1 + along)), torch.special.ndtri(turns / self.arcs.to(turns.dtype))


def _rising(x: Tensor, dims: int) -> Tensor:
    """Logarithms of distances of uniform points in the unit ball, in rising order and below a last one of 1."""
    return (torch.special.log_ndtr(x) / _exponents(x, dims)).flip(-1).cumsum(-1).flip(-1)


def _exponents(like: Tensor, dims: int) -> Tensor:
    """The power of its ratio to the next one that makes the k-th distance uniform: k for each dimension."""
    return dims * torch.arange(1, like.size(-1) + 1, dtype=like.dtype, device=like.device)


def _with_first(around: Tensor) -> Tensor:
    """The first particle and those about it, their mean in the origin."""
    positions = torch.cat([torch.zeros_like(around[..., :1, :]), around], -2)
    return positions - positions.mean(-2, keepdim=True)


def _axes(directions: Tensor) -> Tensor:
    """Orthonormal rows, the first along the first direction, the second as near as can be to the second one."""
    first, second = directions[..., :2, :].unbind(-2)
    across = second - (second * first).sum(-1, keepdim=True) * first
    across = across / across.square().sum(-1, keepdim=True).sqrt()
    return torch.stack([first, across, torch.linalg.cross(first, across)], -2)
