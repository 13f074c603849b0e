"""An energy that stays finite, with a finite gradient, where atoms overlap."""

from __future__ import annotations

__all__ = ["RegularisedEnergy"]

import math
from typing import Any

import torch
from torch import Tensor

from .base import Energy


class _FiniteGradient(torch.autograd.Function):
    """The identity, whose gradient is zero for every configuration that has an entry which is not finite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, event_dim: int) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.event_dim = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _zero_if_bad(gradient, ctx.event_dim), None


class RegularisedEnergy(Energy):
    """An energy as it is up to a cut, logarithmic above it, and constant beyond a cap.

    Above the cut it is ``cut + ln(1 + E - cut)``, which is continuous with its gradient, and it never exceeds
    ``cut + ln(1 + cap - cut)``. An energy that is NaN or minus infinity counts as the cap. The gradient is zero
    beyond the cap, and where it can't be computed.

    The cut should be so high that no configuration above it has any weight at the temperatures used: the
    distribution below the cut is then exactly that of the energy itself.

    Args:
        energy: Any energy.
        cut: Energy up to which nothing changes, in the units of the energy (kJ/mol, or reduced).
        cap: Energy beyond which all configurations are equal, in the same units.

    Raises:
        ValueError: If not ``cut < cap``, both finite.

    Reference:
        Midgley, Stimper, Simm, Schölkopf, Hernández-Lobato. Flow annealed importance sampling bootstrap. ICLR 2023
        (1e8 and 1e20, in units of kT).

    Example:
        >>> import torch
        >>> from pyro_coupling.boltzmann.energies import LennardJones
        >>> energy = RegularisedEnergy(LennardJones(2), cut=100.0, cap=1e6)
        >>> at = lambda r: torch.tensor([[0.0, 0.0, 0.0], [r, 0.0, 0.0]])
        >>> energy(torch.stack([at(1.0), at(0.5), at(0.0)]))
        tensor([ -0.7500, 108.2608, 113.8154])
    """

    def __init__(self, energy: Energy, cut: float = 1e8, cap: float = 1e20) -> None:
        super().__init__(energy.event_shape)
        if not -math.inf < cut < cap < math.inf:
            raise ValueError(f"RegularisedEnergy: cut < cap must be finite numbers, got cut={cut} and cap={cap}")
        self.inner = energy
        self.cut, self.cap = float(cut), float(cap)

    def energy(self, x: Tensor) -> Tensor:
        return self._compressed(self.inner(_FiniteGradient.apply(x, len(self.event_shape))))

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, force = self.inner.energy_and_force(x)
        slope = torch.where(energy > self.cut, 1 / (1 + energy - self.cut), 1.0)
        slope = torch.where(energy.abs() <= self.cap, slope, 0.0)
        force = slope.reshape(slope.shape + (1,) * len(self.event_shape)) * force
        return self._compressed(energy), _zero_if_bad(force, len(self.event_shape))

    def extra_repr(self) -> str:
        return f"cut={self.cut:g}, cap={self.cap:g}"

    def _compressed(self, energy: Tensor) -> Tensor:
        energy = energy.nan_to_num(self.cap, self.cap, self.cap).clamp(max=self.cap)
        excess = (energy - self.cut).clamp(min=0)
        return torch.where(excess > 0, self.cut + excess.log1p(), energy)


def _zero_if_bad(gradient: Tensor, event_dim: int) -> Tensor:
    finite = gradient.isfinite().flatten(gradient.dim() - event_dim).all(-1)
    return torch.where(finite.reshape(finite.shape + (1,) * event_dim), gradient, 0.0)
