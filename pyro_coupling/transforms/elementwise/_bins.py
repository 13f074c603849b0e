"""Bins: from raw numbers to their sizes and edges, and to the one that holds a position.

Tables are ``(*batch, num_bins, features)``, like the raw numbers; positions are ``(*batch, features)``.
"""

from __future__ import annotations

__all__ = ["edges", "find", "fraction", "pick", "replace_value", "sizes", "squash"]

import torch
from torch import Tensor
from torch.nn import functional as F


def squash(raw: Tensor, limit: float, unit: float = 1.0) -> Tensor:
    """Any real number into ``(-limit, limit)``, with slope one at zero; and that times ``unit``."""
    # limit * tanh(raw / limit), by the function that is three times as fast on a CPU
    return torch.rsub((raw * (-2 / limit)).sigmoid_(), limit * unit, alpha=2 * limit * unit)


def sizes(raw: Tensor, total: float) -> Tensor:
    """Sizes in proportion to ``exp(raw)`` that add up to ``total``."""
    return total * torch.softmax(raw, -2)


def edges(widths: Tensor, first: float) -> Tensor:
    """Lower edge of each bin, the first of them given."""
    return F.pad(widths[..., :-1, :].cumsum(-2) + first, (0, 0, 1, 0), value=first)


def find(position: Tensor, edges: Tensor) -> Tensor:
    """Number of the bin that holds each position; the outermost bins hold all that lies beyond."""
    return (position.unsqueeze(-2) >= edges[..., 1:, :]).sum(-2, keepdim=True)


def pick(index: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
    """The entry of each table for the bin that was found."""
    batch = index.shape[:-2]
    return tuple(table.expand(batch + table.shape[-2:]).gather(-2, index).squeeze(-2) for table in tables)


def fraction(position: Tensor, edge: Tensor, size: Tensor) -> Tensor:
    """How far into its bin a position lies, from 0 to 1."""
    t = (position - edge) / size
    return replace_value(t, t.clamp(0, 1))


def replace_value(x: Tensor, value: Tensor) -> Tensor:
    """A value with the gradient of x: for x that rounding carried over a limit."""
    return value.detach() + (x - x.detach())
