"""Clusters of identical particles that act on each other in pairs: DW4 and Lennard-Jones."""

from __future__ import annotations

__all__ = ["DW4", "LennardJones", "LennardJones13", "LennardJones55", "PairEnergy"]

import torch
from torch import Tensor

from ..checks import check_positive
from .base import Energy


class PairEnergy(Energy):
    """A sum over all pairs of particles of a function of their distance.

    Such an energy does not change when the cluster is moved or turned as a whole: its density can only be
    normalised once the centre of mass has been taken out. A subclass implements `pair_energy`.

    Args:
        particles: Number of particles, at least 2.
        dims: Dimension of space.

    Example:
        >>> import torch
        >>> class Springs(PairEnergy):
        ...     def pair_energy(self, squared_distance):
        ...         return 0.5 * squared_distance
        >>> Springs(3, 2)(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        tensor(2.)
    """

    first: Tensor
    second: Tensor

    def __init__(self, particles: int, dims: int = 3) -> None:
        if particles < 2 or dims < 1:
            raise ValueError(
                f"{type(self).__name__}: there must be 2 particles or more in 1 dimension or more, "
                f"got particles={particles} and dims={dims}"
            )
        super().__init__((particles, dims))
        for name, index in zip(("first", "second"), torch.triu_indices(particles, particles, 1), strict=True):
            self.register_buffer(name, index.contiguous(), persistent=False)

    def pair_energy(self, squared_distance: Tensor) -> Tensor:
        """Energy of a pair.

        Args:
            squared_distance: Squares of distances, of any shape.

        Returns:
            Energies, of the same shape.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement pair_energy")

    def energy(self, x: Tensor) -> Tensor:
        # with the batch last, choosing a particle copies whole rows, forwards and backwards
        rows = x.reshape(-1, *self.event_shape).movedim(0, -1).contiguous()
        first, second = self.first.to(x.device), self.second.to(x.device)
        between = rows.index_select(0, first) - rows.index_select(0, second)
        return self.pair_energy(between.square().sum(1)).sum(0).reshape(x.shape[:-2])


class DW4(PairEnergy):
    """Four particles in the plane, each pair in a double well, in reduced units.

    ``E = 1 / (2 tau) * sum over i != j of [a (d_ij - d0) + b (d_ij - d0)^2 + c (d_ij - d0)^4]``: each pair counts once
    per tau. At kT = 1 the pair has its minima at distances 2.51 and 5.49, 4.4 below the barrier at 4.

    Args:
        a: Linear coefficient.
        b: Coefficient of the square.
        c: Coefficient of the fourth power.
        d0: Distance at the barrier.
        tau: Divisor of the energy.

    Raises:
        ValueError: If c or tau is not positive.

    Reference:
        Köhler, Klein, Noé. Equivariant flows: exact likelihood generative learning for symmetric densities.
        ICML 2020.

    Example:
        >>> import torch
        >>> square = 4.0 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> DW4()(square)  # four sides at the barrier, two diagonals beyond it
        tensor(-8.3966)
    """

    def __init__(self, a: float = 0.0, b: float = -4.0, c: float = 0.9, d0: float = 4.0, tau: float = 1.0) -> None:
        super().__init__(4, 2)
        check_positive(self, "c", c)
        check_positive(self, "tau", tau)
        self.a, self.b, self.c, self.d0, self.tau = a, b, c, d0, tau

    def pair_energy(self, squared_distance: Tensor) -> Tensor:
        offset = _sqrt(squared_distance) - self.d0
        square = offset.square()
        return (self.a * offset + square * (self.b + self.c * square)) / self.tau

    def extra_repr(self) -> str:
        return f"a={self.a}, b={self.b}, c={self.c}, d0={self.d0}, tau={self.tau}"


class LennardJones(PairEnergy):
    """A Lennard-Jones cluster held together by springs to its centre of mass, in reduced units.

    ``E = epsilon / 2 * sum over i != j of [(r_m / d_ij)^12 - 2 (r_m / d_ij)^6] + oscillator / 2 * sum_i |x_i - c|^2``,
    where c is the centre of mass: each pair counts once. Some published codes count it twice, which is
    ``epsilon=2``. The springs keep particles from evaporating; without them (``oscillator=0``) the Boltzmann
    distribution can't be normalised.

    Args:
        particles: Number of particles.
        epsilon: Depth of the well of a pair.
        r_m: Distance at its bottom.
        oscillator: Stiffness of the springs, 0 for none.
        dims: Dimension of space.

    Raises:
        ValueError: If epsilon or r_m is not positive, or oscillator is negative.

    Reference:
        Köhler, Klein, Noé. Equivariant flows: exact likelihood generative learning for symmetric densities.
        ICML 2020.

    Example:
        >>> import torch
        >>> LennardJones(2, oscillator=0.0)(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
        tensor(-1.)
    """

    def __init__(
        self, particles: int, epsilon: float = 1.0, r_m: float = 1.0, oscillator: float = 1.0, dims: int = 3
    ) -> None:
        super().__init__(particles, dims)
        check_positive(self, "epsilon", epsilon)
        check_positive(self, "r_m", r_m)
        if not oscillator >= 0:
            raise ValueError(f"{type(self).__name__}: oscillator must be 0 or more, got {oscillator}")
        self.epsilon, self.r_m, self.oscillator = epsilon, r_m, oscillator

    def pair_energy(self, squared_distance: Tensor) -> Tensor:
        sixth = (self.r_m**2 / squared_distance) ** 3
        # sum_i |x_i - c|^2 is the sum of all pairs' squared distances over the number of particles
        spring = 0.5 * self.oscillator / self.event_shape[0]
        return self.epsilon * sixth * (sixth - 2) + spring * squared_distance

    def extra_repr(self) -> str:
        settings = f"epsilon={self.epsilon}, r_m={self.r_m}, oscillator={self.oscillator}"
        return f"event_shape={tuple(self.event_shape)}, {settings}"


class LennardJones13(LennardJones):
    """`LennardJones` with 13 particles; the lowest energy of the bare cluster, an icosahedron, is -44.3268.

    Args:
        epsilon: Depth of the well of a pair.
        oscillator: Stiffness of the springs to the centre of mass.

    Reference:
        Hoare, Pal. Physical cluster mechanics: statics and energy surfaces for monatomic systems. Advances in Physics
        20, 1971.

    Example:
        >>> LennardJones13().event_shape
        torch.Size([13, 3])
    """

    def __init__(self, epsilon: float = 1.0, oscillator: float = 1.0) -> None:
        super().__init__(13, epsilon, oscillator=oscillator)


class LennardJones55(LennardJones):
    """`LennardJones` with 55 particles; the lowest energy of the bare cluster, a Mackay icosahedron, is -279.2485.

    Args:
        epsilon: Depth of the well of a pair.
        oscillator: Stiffness of the springs to the centre of mass.

    Reference:
        Wales, Doye. Global optimization by basin-hopping and the lowest energy structures of Lennard-Jones clusters
        containing up to 110 atoms. Journal of Physical Chemistry A 101, 1997.

    Example:
        >>> LennardJones55().event_shape
        torch.Size([55, 3])
    """

    def __init__(self, epsilon: float = 1.0, oscillator: float = 1.0) -> None:
        super().__init__(55, epsilon, oscillator=oscillator)


def _sqrt(squared_distance: Tensor) -> Tensor:
    """The root, with a finite gradient where two particles coincide."""
    return squared_distance.clamp(min=torch.finfo(squared_distance.dtype).tiny).sqrt()
