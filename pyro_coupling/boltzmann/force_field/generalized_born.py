"""Implicit solvent: generalized-Born electrostatics with the radii of Onufriev, Bashford and Case, a surface term."""

from __future__ import annotations

__all__ = ["GeneralizedBorn", "Rescaling"]

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .parts import Frames, all_pairs, take


class Rescaling(NamedTuple):
    """The numbers in ``tanh(a psi - b psi^2 + c psi^3)``, which turns integrals into Born radii."""

    a: float
    b: float
    c: float


class GeneralizedBorn(nn.Module):
    """``sum_i (surface_i / B_i^6 - self_i / B_i) - sum_{i<j} pair_ij / sqrt(r^2 + B_i B_j exp(-r^2 / (4 B_i B_j)))``.

    The Born radius B of an atom grows with the integral I over the spheres of the others, as far as they lie outside
    its own: ``1/B = 1/rho - tanh(a psi - b psi^2 + c psi^3) / R`` with ``psi = I rho``.

    Args:
        reduced_radii: Radii rho, nm, ``(atoms,)``, float64.
        scaled_radii: Radii of the spheres that others see, nm, ``(atoms,)``.
        radii: Radii R, nm, ``(atoms,)``.
        rescaling: a, b and c.
        surface: Coefficients of the surface term, kJ/mol nm^6, ``(atoms,)``.
        self_energy: Of each atom, kJ/mol nm, ``(atoms,)``.
        pair_energy: Of each pair, kJ/mol nm, ``(pairs,)``, in the order of `all_pairs`.
        inside: Whether an atom that lies wholly inside another's sphere also counts the shell between its own radius
            and the nearest point of that sphere, as OpenMM's GBSAOBCForce does.

    Reference:
        Onufriev, Bashford, Case. Exploring protein native states and large-scale conformational changes with a
        modified generalized Born model. Proteins 55, 2004. The integral is that of Hawkins, Cramer and Truhlar,
        J. Phys. Chem. 100, 1996.
    """

    pairs: Tensor
    atoms: Tensor
    spheres: Tensor
    pair_energy: Tensor

    def __init__(
        self,
        reduced_radii: Tensor,
        scaled_radii: Tensor,
        radii: Tensor,
        rescaling: Rescaling,
        surface: Tensor,
        self_energy: Tensor,
        pair_energy: Tensor,
        inside: bool,
    ) -> None:
        super().__init__()
        self.rescaling = rescaling
        self.inside = inside
        pairs = all_pairs(len(radii))
        atoms = torch.stack([reduced_radii, radii, surface, self_energy])
        # one half for the view of the pair's first atom, one for that of the second
        spheres = torch.stack([reduced_radii[pairs], scaled_radii[pairs.flip(0)]])
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("atoms", atoms.unsqueeze(-1), persistent=False)
        self.register_buffer("spheres", spheres.unsqueeze(-1), persistent=False)
        self.register_buffer("pair_energy", pair_energy.unsqueeze(-1), persistent=False)

    def forward(self, frames: Frames) -> Tensor:
        reduced, radius, surface, self_energy = self.atoms.to(frames.squared)
        a, b, c = self.rescaling
        psi = 0.5 * self._integrals(frames) * reduced
        inverse = 1 / reduced - (psi * (a + psi * (c * psi - b))).tanh() / radius
        i, j = self.pairs
        product = take(inverse, i) * take(inverse, j)
        smooth = torch.addcdiv(frames.squared, (-0.25 * frames.squared * product).exp(), product)
        pairs = (self.pair_energy.to(smooth) * smooth.rsqrt()).sum(0)
        return (surface * inverse**6 - self_energy * inverse).sum(0) - pairs

    def _integrals(self, frames: Frames) -> Tensor:
        """Of ``1 / (2 pi r^4)`` over the spheres of the other atoms, for each atom, ``(atoms, frames)``, 1/nm."""
        r = frames.squared * frames.inverse
        own, other = self.spheres.to(r)
        # the sphere reaches from `near` to `far`; both are `own` where it lies inside, and the integral vanishes
        near, far = (r - other).abs().clamp_min(own), (r + other).clamp_min(own)
        high, low = near.reciprocal(), far.reciprocal()
        width = high - low
        bend = torch.addcmul(r, other.square(), frames.inverse, value=-1) * (high + low)
        integral = torch.addcmul(width, width, bend, value=-0.25)
        integral = torch.addcmul(integral, (near * low).log(), frames.inverse, value=0.5)
        if self.inside:
            integral = integral + 2 / own - 2 / (other - r).clamp_min(own)
        atoms = integral.new_zeros(len(self.atoms[0]), integral.shape[-1])
        return atoms.index_add(0, self.pairs.flatten().to(r.device), integral.flatten(0, 1))

    def extra_repr(self) -> str:
        a, b, c = self.rescaling
        return f"{self.atoms.shape[1]} atoms, a={a:g}, b={b:g}, c={c:g}, inside={self.inside}"
