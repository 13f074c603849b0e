"""Draws as pictures take them: from dictionaries of tensors or ArviZ objects, one scalar after another."""

from __future__ import annotations

__all__ = ["Scalar", "choose", "entry", "label", "read"]

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .style import to_array

#: a site and the index of one of its entries
Scalar = tuple[str, tuple[int, ...]]
_SAMPLE_DIMS = ("chain", "draw", "sample")


def read(samples: Any, argument: str) -> dict[str, np.ndarray]:
    """Site -> ``(draws, *shape)``.

    Args:
        samples: Site -> ``(draws, *shape)``; or an ``arviz.InferenceData`` or `xarray.DataTree`, of which the group
            ``posterior`` is taken; or an `xarray.Dataset` of draws.
        argument: What the user calls it, for messages.
    """
    if not isinstance(samples, Mapping):
        raise TypeError(f"{argument} must be a dict of tensors or an ArviZ object, got {type(samples).__name__}")
    posterior = samples.get("posterior")
    group = posterior if hasattr(posterior, "data_vars") else samples
    found = {
        str(name): _draws_first(value, name, argument) for name, value in getattr(group, "data_vars", group).items()
    }
    if not found:
        raise ValueError(f"{argument} holds no draws")
    for name, values in found.items():
        if values.ndim == 0 or len(values) == 0:
            raise ValueError(f"{argument} has {name!r} of shape {values.shape}, expected (draws, *shape)")
    return found


def choose(draws: Mapping[str, np.ndarray], names: Sequence[str] | None, most: int) -> list[Scalar]:
    """Up to so many scalars, those asked for; else scalar sites first, then the entries of others."""
    if names is None:
        ordered = sorted(draws, key=lambda name: draws[name].ndim > 1)
        return list(itertools.islice(itertools.chain.from_iterable(_entries(name, draws) for name in ordered), most))
    if isinstance(names, str) or not names:
        raise ValueError(f"names must be a sequence of names with one entry at least, got {names!r}")
    return [scalar for name in names for scalar in _parse(name, draws, most)][:most]


def label(scalar: Scalar) -> str:
    """``effect[3]``."""
    name, index = scalar
    return name + (f"[{','.join(map(str, index))}]" if index else "")


def entry(draws: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    """Draws of one scalar."""
    return draws[(slice(None),) + index].astype(float)


def _draws_first(value: Any, name: Any, argument: str) -> np.ndarray:
    if not hasattr(value, "dims"):
        return to_array(value)
    first = [dim for dim in _SAMPLE_DIMS if dim in value.dims]
    if not first:
        raise ValueError(f"{argument} has {name!r} with dimensions {value.dims}, expected chain and draw among them")
    ordered = value.transpose(*first, ...).to_numpy()
    return ordered.reshape(-1, *ordered.shape[len(first) :])


def _entries(name: str, draws: Mapping[str, np.ndarray]) -> Iterator[Scalar]:
    return ((name, index) for index in np.ndindex(draws[name].shape[1:]))


def _parse(name: str, draws: Mapping[str, np.ndarray], most: int) -> list[Scalar]:
    if name in draws:
        return list(itertools.islice(_entries(name, draws), most))
    match = re.fullmatch(r"(.+)\[([\d,\s]+)\]", name)
    site = match[1] if match else name
    if site not in draws:
        raise ValueError(f"names has {name!r}, but the sites are {sorted(draws)}")
    index = tuple(int(part) for part in match[2].split(",")) if match else ()
    shape = draws[site].shape[1:]
    if len(index) != len(shape) or any(i >= n for i, n in zip(index, shape, strict=True)):
        raise ValueError(f"names has {name!r}, but {site!r} has shape {shape}")
    return [(site, index)]
