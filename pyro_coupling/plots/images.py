"""Sheets of images."""

from __future__ import annotations

__all__ = ["plot_images"]

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .style import new_figure, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP, _LABEL = 0.12, 0.3  # of an image's height


def plot_images(
    images: Any,
    labels: Sequence[Any] | None = None,
    *,
    columns: int = 10,
    value_range: tuple[float, float] | None = None,
    cmap: str = "gray",
    axes: Axes | None = None,
) -> Axes:
    """Images side by side, row by row, all on one scale.

    Args:
        images: ``(n, channels, height, width)``, one channel for grey, three for red, green and blue.
        labels: What stands above each image, ``(n,)``.
        columns: Images in a row.
        value_range: Values that are black and white; least and largest of all images if not given. What lies outside
            is clipped.
        cmap: Matplotlib's name of the colours of grey images; ``"gray_r"`` for black on white.
        axes: Where to draw; a new figure if not given.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If shapes do not fit, or a pixel is not finite.

    Example:
        >>> import torch
        >>> axes = plot_images(torch.rand(12, 3, 8, 8), labels=range(12), columns=6)
        >>> len(axes.images), axes.texts[7].get_text()
        (12, '7')
    """
    array = to_array(images).astype(float)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
        raise ValueError(f"images must be (n, 1 or 3 channels, height, width), got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("images must be finite")
    if labels is not None and len(labels) != len(array):
        raise ValueError(f"labels must be one for each of {len(array)} images, got {len(labels)}")
    if columns < 1:
        raise ValueError(f"columns must be positive, got {columns}")
    low, high = (array.min(), array.max()) if value_range is None else value_range
    if value_range is not None and not low < high:
        raise ValueError(f"value_range must be rising, got {value_range}")
    scaled = ((array - low) / max(high - low, 1e-12)).clip(0.0, 1.0).transpose(0, 2, 3, 1)
    height, width = scaled.shape[1:3]
    columns = min(columns, len(scaled))
    rows = math.ceil(len(scaled) / columns)
    across, down = width + _GAP * height, height * (1 + (_GAP if labels is None else _LABEL))
    if axes is None:
        inch = (1.0 if labels is not None else 0.75) / height
        axes = new_figure(inch * columns * across, inch * rows * down).subplots()
    for i, image in enumerate(scaled):
        row, column = divmod(i, columns)
        left, top = column * across, row * down
        shown = image[..., 0] if image.shape[-1] == 1 else image
        extent = (left, left + width, top + height, top)
        axes.imshow(shown, cmap=cmap, vmin=0.0, vmax=1.0, extent=extent, interpolation="nearest")
        if labels is not None:
            place = (left + width / 2, top - 0.03 * height)
            axes.text(*place, str(labels[i]), ha="center", va="bottom", fontsize="small")
    above = 0 if labels is None else _LABEL * height
    axes.set(xlim=(0, columns * across - (across - width)), ylim=(rows * down - (down - height), -above))
    axes.set_axis_off()
    return axes
