"""Which entries of its input each entry of a transform's output depends on."""

from __future__ import annotations

__all__ = ["plot_jacobian"]

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..transforms import Bijection
from .passes import as_found, check
from .style import new_figure, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_jacobian(transform: Bijection, x: Tensor, *, context: Tensor | None = None, axes: Axes | None = None) -> Axes:
    """Size of each derivative ``dy_i / dx_j`` on a logarithmic scale, exact zeros white.

    A coupling shows its triangle: ones on the diagonal for the part that stays, a block below for what moves with it.

    Args:
        transform: A coupling, a chain, any bijection.
        x: Where: ``event_shape``, or ``(n, *event_shape)`` for the mean size over n points. Images and other
            events of several dimensions are flattened.
        context: Context of a conditional transform, of its ``context_shape``.
        axes: Where to draw; a new figure if not given.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``transform`` is no `Bijection`.
        ValueError: If x or context have other shapes, or a derivative is not finite.

    Example:
        >>> import torch
        >>> from pyro_coupling.transforms import affine_coupling
        >>> axes = plot_jacobian(affine_coupling(4, permute=False), torch.randn(4))
        >>> axes.get_title(loc="left")  # a new coupling is the identity
        '75% zeros'
    """
    check(transform, "transform", context)
    shape = transform.event_shape
    if x.shape not in (shape, x.shape[:1] + shape) or not x.numel():
        raise ValueError(f"x must be of shape {tuple(shape)} or (n, *{tuple(shape)}), got {tuple(x.shape)}")
    size = to_array(_mean_size(transform, x.reshape(-1, *shape), context))
    if not np.isfinite(size).all():
        raise ValueError("x: a derivative is not finite there")
    axes = new_figure(5.2, 4.4).subplots() if axes is None else axes
    _draw(axes, size)
    return axes


def _mean_size(transform: Bijection, x: Tensor, context: Tensor | None) -> Tensor:
    """``(outputs, inputs)``: a backward pass for each entry of the output serves all points."""

    def total(points: Tensor) -> Tensor:
        return transform.forward_and_log_det(points, context)[0].flatten(1).sum(0)

    with as_found(transform):
        derivatives = torch.autograd.functional.jacobian(total, x.detach())
    return derivatives.flatten(2).abs().mean(1)


def _draw(axes: Axes, size: np.ndarray) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator

    known = size[size > 0]
    low, high = (known.min(), known.max()) if len(known) else (1.0, 1.0)
    if not high > 1.01 * low:
        low, high = low / 10, high * 10  # a scale needs two ends
    image = axes.imshow(np.ma.masked_equal(size, 0.0), norm=LogNorm(low, high), interpolation="nearest", aspect="equal")
    axes.grid(False)
    axes.set_facecolor("white")
    axes.set_xlabel("input")
    axes.set_ylabel("output")
    axes.locator_params(integer=True)
    axes.set_title(f"{np.mean(size == 0):.0%} zeros", loc="left")
    few = high < 100 * low  # then powers of ten are too few to tell the scale
    scale: dict[str, Any] = {"ticks": LogLocator(subs=(1.0, 2.0, 5.0)), "format": "%g"} if few else {}
    bar = axes.figure.colorbar(image, ax=axes, label="size of the derivative", fraction=0.046, pad=0.03, **scale)
    bar.minorticks_off()
