"""What a flow does to the plane: a deformed grid, and clouds of points layer by layer."""

from __future__ import annotations

__all__ = ["plot_grid", "plot_layers"]

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..transforms import Bijection
from ..transforms.base import Inverse
from .passes import as_found, check, parts_of
from .style import colour, given_or_new, ink, new_figure, new_panels, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FINE = 400  # points on a line
_MASSES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)


def plot_grid(
    flow: Bijection,
    *,
    window: float = 3.0,
    lines: int = 25,
    polar: bool = False,
    context: Tensor | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Where a flow of two dimensions takes a grid over its base.

    Args:
        flow: A bijection of events of shape ``(2,)``, base to sample.
        window: Half of the width of the grid.
        lines: Number of lines in each direction, or of rays.
        polar: Draw circles that hold 10, 20 ... 90 and 99 % of a standard normal, and rays out to the last.
        context: Context of a conditional flow, of its ``context_shape``.
        axes: Where to draw; a new figure if not given.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``flow`` is no `Bijection`.
        ValueError: If it is not of two dimensions, the context has another shape, or a number is not positive.

    Example:
        >>> from pyro_coupling import flows
        >>> len(plot_grid(flows.real_nvp(2), lines=7).lines)
        14
    """
    check(flow, "flow", context)
    if flow.event_shape != (2,) or flow.output_shape != (2,):
        raise ValueError(f"flow must map events of shape (2,), got {tuple(flow.event_shape)}")
    if not window > 0 or lines < 2:
        raise ValueError(f"window must be positive and lines two at least, got {window} and {lines}")
    axes = new_figure(5.0, 5.0).subplots() if axes is None else axes
    for curves, shades, width in _rings_and_rays(lines) if polar else _grid(window, lines):
        for curve, shade in zip(to_array(_moved([flow], curves, context)[-1]), shades, strict=True):
            axes.plot(*curve.T, color=shade, linewidth=width)
    axes.set_aspect("equal")
    return axes


def plot_layers(
    flow: Bijection,
    num_samples: int = 1000,
    *,
    dims: tuple[int, int] = (0, 1),
    context: Tensor | None = None,
    seed: int = 0,
    cmap: str = "hsv",
    columns: int = 5,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Standard normal points after each layer of a flow, coloured by the direction in which they started.

    Args:
        flow: A bijection of vectors, base to sample; a chain is taken apart into its layers.
        num_samples: Number of points.
        dims: Which two entries of the vector are drawn.
        context: Context of a conditional flow, of its ``context_shape``.
        seed: Of the points.
        cmap: Matplotlib's name of a colour map that ends where it begins.
        columns: Panels in a row of a new figure.
        axes: Where to draw, one more than there are layers; a new figure if not given.

    Returns:
        Axes, ``(1 + layers,)``.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``flow`` is no `Bijection`.
        ValueError: If it does not map vectors of two entries at least, or another argument does not fit it.

    Example:
        >>> from pyro_coupling.transforms import Chain, Permutation, affine_coupling
        >>> axes = plot_layers(Chain([affine_coupling(2, permute=False), Permutation([1, 0])]))
        >>> [panel.get_title(loc="left") for panel in axes]
        ['base', '1 Coupling', '2 Permutation']
    """
    check(flow, "flow", context)
    layers = parts_of(flow)
    if any(len(part.output_shape) != 1 for part in layers) or len(flow.event_shape) != 1:
        raise ValueError(f"flow must map vectors, got events of shape {tuple(flow.event_shape)}")
    size = flow.event_shape[0]
    if len(dims) != 2 or len({*dims}) != 2 or not all(0 <= dim < size for dim in dims):
        raise ValueError(f"dims must be two of the flow's {size} entries, got {dims}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be positive, got {num_samples}")
    axes = given_or_new(axes, (1 + len(layers),), lambda: new_panels(1 + len(layers), columns, 2.5, 2.6))
    base = torch.randn(num_samples, size, generator=torch.Generator().manual_seed(seed))
    start = base[:, dims[1]].atan2(base[:, dims[0]])
    names = ["base", *(f"{i} {_name(layer)}" for i, layer in enumerate(layers, 1))]
    for panel, name, points in zip(axes, names, _moved(layers, base, context), strict=True):
        x, y = to_array(points[:, list(dims)]).T
        panel.scatter(x, y, c=start, cmap=cmap, vmin=-math.pi, vmax=math.pi, s=4, linewidths=0)
        panel.set_title(name, loc="left", fontsize="medium")
        panel.locator_params(nbins=4)
        panel.tick_params(labelsize="small")
        panel.set_aspect("equal", adjustable="datalim")
    return axes


def _moved(layers: list[Bijection], points: Tensor, context: Tensor | None) -> list[Tensor]:
    """Points before the first layer and after each, in the dtype and on the device of the flow."""
    like = next((parameter for layer in layers for parameter in layer.parameters()), points)
    clouds = [points.to(like)]
    for layer in layers:
        with as_found(layer), torch.no_grad():
            clouds.append(layer.forward_and_log_det(clouds[-1], context if layer.context_shape else None)[0])
    return clouds


def _name(layer: Bijection) -> str:
    return f"{type(layer.bijection).__name__}, inverse" if isinstance(layer, Inverse) else type(layer).__name__


def _grid(window: float, lines: int) -> list[tuple[Tensor, list, float]]:
    along = torch.linspace(-window, window, _FINE).expand(lines, _FINE)
    across = torch.linspace(-window, window, lines)[:, None].expand(lines, _FINE)
    vertical, horizontal = torch.stack([across, along], -1), torch.stack([along, across], -1)
    return [(curves, [colour(number)] * lines, 0.9) for number, curves in enumerate((vertical, horizontal))]


def _rings_and_rays(rays: int) -> list[tuple[Tensor, list, float]]:
    """A radius holds the part ``1 - exp(-radius^2 / 2)`` of a standard normal."""
    import matplotlib

    radius = torch.tensor([math.sqrt(-2 * math.log1p(-mass)) for mass in _MASSES])
    turn = torch.linspace(0, 2 * math.pi, _FINE)
    rings = radius[:, None, None] * torch.stack([turn.cos(), turn.sin()], -1)
    angle = 2 * math.pi / rays * torch.arange(rays)
    outwards = torch.linspace(0, float(radius[-1]), _FINE)[:, None]
    straight = outwards * torch.stack([angle.cos(), angle.sin()], -1)[:, None]
    shades = matplotlib.colormaps[matplotlib.rcParams["image.cmap"]](_MASSES)
    return [(straight, [ink(0.35)] * rays, 0.5), (rings, list(shades), 1.3)]
