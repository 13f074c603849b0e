"""Numbers out of the XML of an OpenMM force, each error with the name of the force."""

from __future__ import annotations

__all__ = ["atom_numbers", "check_version", "children", "numbers", "per_atom", "require", "unsupported", "value"]

import math
from collections.abc import Callable
from xml.etree.ElementTree import Element

import torch
from torch import Tensor


def unsupported(what: str) -> ValueError:
    """The error that says what can't be computed in torch, and what to use then."""
    return ValueError(f"ForceField: {what} is not supported; OpenMMEnergy(system) has OpenMM itself evaluate it")


def check_version(force: Element, newest: int) -> None:
    """Refuses a force in a later layout than the one that is read here."""
    if value(force, "version", int) > newest:
        raise unsupported(f"version {force.get('version')} of the XML of {force.get('type')}, newer than {newest},")


def require(force: Element, attribute: str, wanted: str, what: str) -> None:
    """Refuses a force whose attribute has another value. Old layouts leave out what they can't express."""
    if force.get(attribute, wanted) != wanted:
        raise unsupported(f"{force.get('type')} with {what}")


def numbers(force: Element, group: str, *keys: str) -> Tensor:
    """Attributes of the children of a group, ``(len(keys), children)``, float64."""
    rows = [[value(child, key) for child in children(force, group)] for key in keys]
    return torch.tensor(rows, dtype=torch.float64)


def per_atom(force: Element, num_atoms: int, *keys: str) -> Tensor:
    """Attributes of each atom, ``(len(keys), num_atoms)``, float64."""
    table = numbers(force, "Particles", *keys)
    if table.shape[1] != num_atoms:
        raise ValueError(f"ForceField: {_name(force)} has {table.shape[1]} particles, the System {num_atoms}")
    return table


def atom_numbers(force: Element, group: str, num_atoms: int, *keys: str) -> Tensor:
    """Attributes of the children of a group that number atoms, ``(len(keys), children)``, int64."""
    rows = [[value(child, key, int) for child in children(force, group)] for key in keys]
    atoms = torch.tensor(rows, dtype=torch.int64)
    if ((atoms < 0) | (atoms >= num_atoms)).any():
        raise ValueError(f"ForceField: {_name(force)} has an atom number outside of 0 to {num_atoms - 1}")
    return atoms


def value(element: Element, key: str, kind: Callable[[str], float] = float) -> float:
    """An attribute as a finite number."""
    text = element.get(key)
    if text is None:
        raise ValueError(f"ForceField: {_name(element)} lacks the attribute {key!r}")
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"ForceField: {_name(element)} has {key}={text!r}, which is not a finite number")
    return number


def children(force: Element, group: str) -> Element:
    """The element of this name within a force, to run through."""
    found = force.find(group)
    if found is None:
        raise ValueError(f"ForceField: {_name(force)} lacks the element <{group}>")
    return found


def _name(element: Element) -> str:
    return element.get("type") or f"<{element.tag}>"
