"""The two forms in which OpenMM states the implicit solvent OBC: as a force of its own, and as formulas."""

from __future__ import annotations

__all__ = ["read_custom_gb", "read_gbsa_obc"]

import math
from collections.abc import Container
from xml.etree.ElementTree import Element

import torch
from torch import Tensor

from .expressions import match
from .generalized_born import GeneralizedBorn, Rescaling
from .nonbonded import COULOMB
from .parts import all_pairs
from .records import check_version, children, per_atom, require, unsupported, value

_OFFSET, _PROBE = 0.009, 0.14  # nm; of GBSAOBCForce, where they are fixed
_OBC2 = Rescaling(1.0, 0.8, 4.85)

_SINGLE, _PAIR, _ANY_PAIR = "0", "1", "2"  # a formula is for atoms, pairs but exclusions, or all pairs

_INTEGRAL = (
    "select(step(r+sr2-or1), 0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r), 0);"
    "U=r+sr2; L=max(or1, D); D=abs(r-sr2)"
)
_BORN_RADII = (
    "1/(1/or-tanh({a}*psi+{c}*psi^3)/radius); psi=I*or; radius=or+{offset}",
    "1/(1/or-tanh(psi-{b}*psi^2+{c}*psi^3)/radius); psi=I*or; radius=or+{offset}",
)
_SELF = "-0.5*{k}*(1/{solute}-1/{solvent})*charge^2/B"
_SURFACE = "{surface}*(radius+{probe})^2*(radius/B)^6; radius=or+{offset}"
_PAIRS = "-{k}*(1/{solute}-1/{solvent})*charge1*charge2/f; f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))"


def read_gbsa_obc(force: Element, num_atoms: int) -> GeneralizedBorn:
    """From the XML of a ``GBSAOBCForce``, which is OBC2."""
    check_version(force, 2)
    require(force, "method", "0", "a cutoff or periodic boundary conditions")
    charge, radius, scale = per_atom(force, num_atoms, "q", "r", "scale")
    reduced = radius - _OFFSET
    strength = _strength(COULOMB, value(force, "soluteDielectric"), value(force, "solventDielectric"))
    return GeneralizedBorn(
        reduced,
        scale * reduced,
        radius,
        _OBC2,
        surface=_surface(4 * math.pi * value(force, "surfaceAreaEnergy"), radius, _PROBE),
        self_energy=0.5 * strength * charge**2,
        pair_energy=strength * _pair_products(charge),
        inside=True,
    )


def read_custom_gb(force: Element, num_atoms: int) -> GeneralizedBorn:
    """From the XML of a ``CustomGBForce`` whose formulas are those of OBC1 or OBC2, whatever their numbers."""
    check_version(force, 2)
    require(force, "method", "0", "a cutoff or periodic boundary conditions")
    formulas = _Formulas(force)
    rescaling, offset = formulas.born_radii()
    charge, reduced, scaled = (formulas.parameter(name, num_atoms) for name in ("charge", "or", "sr"))
    surface, self_strength, pair_strength = torch.zeros_like(charge), 0.0, 0.0
    for term in children(force, "EnergyTerms"):
        if found := formulas.match(term, _SELF, {_SINGLE}):
            self_strength += _strength(**found)
        elif found := formulas.match(term, _PAIRS, formulas.all_pairs):
            pair_strength += _strength(**found)
        elif found := formulas.match(term, _SURFACE, {_SINGLE}):
            surface += _surface(found["surface"], reduced + found["offset"], found["probe"])
        else:
            raise _unknown(term)
    return GeneralizedBorn(
        reduced,
        scaled,
        reduced + offset,
        rescaling,
        surface=surface,
        self_energy=0.5 * self_strength * charge**2,
        pair_energy=pair_strength * _pair_products(charge),
        inside=False,
    )


class _Formulas:
    """What a ``CustomGBForce`` computes, and from which parameters."""

    def __init__(self, force: Element) -> None:
        self.force = force
        self.globals = {str(p.get("name")): value(p, "default") for p in children(force, "GlobalParameters")}
        self.all_pairs = {_ANY_PAIR} if len(children(force, "Exclusions")) else {_PAIR, _ANY_PAIR}

    def match(self, element: Element, template: str, kinds: Container[str]) -> dict[str, float] | None:
        if element.get("type") not in kinds:
            return None
        return match(template, element.get("expression", ""), self.globals)

    def born_radii(self) -> tuple[Rescaling, float]:
        """How Born radii follow from the integrals, and the difference of a radius and its reduced radius."""
        integral, radii = self._computed("I"), self._computed("B")
        if self.match(integral, _INTEGRAL, self.all_pairs) is None:
            raise _unknown(integral)
        for template in _BORN_RADII:
            if found := self.match(radii, template, {_SINGLE}):
                return Rescaling(found.get("a", 1.0), found.get("b", 0.0), found["c"]), found["offset"]
        raise _unknown(radii)

    def parameter(self, name: str, num_atoms: int) -> Tensor:
        names = [child.get("name") for child in children(self.force, "PerParticleParameters")]
        if name not in names:
            raise unsupported(f"CustomGBForce without the parameter {name!r}")
        return per_atom(self.force, num_atoms, f"param{names.index(name) + 1}")[0]

    def _computed(self, name: str) -> Element:
        for element in children(self.force, "ComputedValues"):
            if element.get("name") == name:
                return element
        raise unsupported(f"CustomGBForce without the computed value {name!r}")


def _unknown(formula: Element) -> ValueError:
    return unsupported(
        f"CustomGBForce with the formula {formula.get('expression')!r}, which is none of OBC1 or OBC2 without salt "
        "(models such as HCT, GBn and GBn2 have others),"
    )


def _strength(k: float, solute: float, solvent: float) -> float:
    return k * (1 / solute - 1 / solvent)


def _surface(tension: float, radii: Tensor, probe: float) -> Tensor:
    return tension * (radii + probe) ** 2 * radii**6


def _pair_products(charge: Tensor) -> Tensor:
    i, j = all_pairs(len(charge))
    return charge[i] * charge[j]
