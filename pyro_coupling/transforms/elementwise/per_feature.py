"""A map for each entry of an event: some columns circular, others linear."""

from __future__ import annotations

__all__ = ["PerFeature"]

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...registry import register
from .base import Elementwise


@register
@dataclass(frozen=True)
class PerFeature(Elementwise):
    """Moves each entry of an event by a map of its own.

    Entries with equal maps are moved together, by one call.

    Args:
        maps: A map for each entry. Every entry gets as many parameters as the largest map needs; a smaller
            one reads the first of them.

    Raises:
        TypeError: If a map is no `Elementwise`, or itself one for several entries.
        ValueError: If there are no maps; when called, if the input has another number of features.

    Example:
        >>> import torch
        >>> from pyro_coupling.transforms.elementwise import CircularRationalQuadraticSpline, RationalQuadraticSpline
        >>> maps = PerFeature([CircularRationalQuadraticSpline(num_bins=4), RationalQuadraticSpline(num_bins=4)])
        >>> maps.forward_and_log_det(torch.tensor([4.0, 4.0]), torch.zeros(maps.num_params, 2))[0]
        tensor([-2.2832,  4.0000])
    """

    maps: Sequence[Elementwise]
    #: each distinct map and the entries that it moves
    _groups: tuple[tuple[Elementwise, tuple[int, ...]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        maps = tuple(self.maps)
        if not maps:
            raise ValueError("PerFeature: maps must hold a map for each entry of an event, got none")
        groups: list[tuple[Elementwise, list[int]]] = []
        for entry, kind in enumerate(maps):
            if not isinstance(kind, Elementwise) or isinstance(kind, PerFeature):
                raise TypeError(f"PerFeature: maps must hold an Elementwise for each single entry, got {kind!r}")
            alike = next((entries for other, entries in groups if other == kind), None)
            if alike is None:
                groups.append((kind, [entry]))
            else:
                alike.append(entry)
        object.__setattr__(self, "maps", maps)
        object.__setattr__(self, "_groups", tuple((kind, tuple(entries)) for kind, entries in groups))

    @property
    def num_params(self) -> int:
        return max(kind.num_params for kind in self.maps)

    @property
    def slope_is_constant(self) -> bool:
        return all(kind.slope_is_constant for kind in self.maps)

    @property
    def period(self) -> tuple[float | None, ...]:
        return tuple(kind.period for kind in self.maps)

    def restricted_to(self, entries: tuple[int, ...]) -> PerFeature:
        missing = [entry for entry in entries if not 0 <= entry < len(self.maps)]
        if missing:
            raise ValueError(f"PerFeature: there are maps for {len(self.maps)} entries, none for entry {missing[0]}")
        return PerFeature([self.maps[entry] for entry in entries])

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply("forward_and_log_det", x, params)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply("inverse_and_log_det", y, params)

    def _apply(self, method: str, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        if x.size(-1) != len(self.maps):
            raise ValueError(
                f"PerFeature: the input must end in {len(self.maps)} features, one for each map, but has shape "
                f"{tuple(x.shape)}"
            )
        # columns are picked by cutting and joining, which asks for no index on the device
        columns, tables = x.split(1, -1), params.split(1, -1)
        moved: dict[int, tuple[Tensor, Tensor]] = {}
        for kind, entries in self._groups:
            column = torch.cat([columns[entry] for entry in entries], -1)
            table = torch.cat([tables[entry][..., : kind.num_params, :] for entry in entries], -1)
            value, log_slope = getattr(kind, method)(column, table)
            moved.update(
                zip(entries, zip(value.split(1, -1), log_slope.expand_as(value).split(1, -1), strict=True), strict=True)
            )
        values, log_slopes = zip(*(moved[entry] for entry in range(len(columns))), strict=True)
        return torch.cat(values, -1), torch.cat(log_slopes, -1)
