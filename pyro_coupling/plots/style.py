"""What all pictures share: figures without windows, panels, and the colours of the style that is set."""

from __future__ import annotations

__all__ = ["Colour", "colour", "given_or_new", "ink", "new_figure", "new_panels", "tidy", "to_array"]

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: red, green, blue, opacity
Colour = tuple[float, float, float, float]


def new_figure(width: float, height: float, dpi: float = 120) -> Figure:
    """An empty figure of so many inches, laid out so that labels do not overlap."""
    try:
        from .picture import Picture
    except ImportError as error:
        raise ImportError('pictures are drawn with matplotlib: pip install "pyro-coupling[plots]"') from error
    # not pyplot, which keeps every figure in a global list
    return Picture(figsize=(width, height), dpi=dpi, layout="constrained")


def new_panels(num: int, columns: int, width: float, height: float) -> np.ndarray:
    """Axes of a new figure, ``(num,)``, each of about so many inches."""
    columns = min(columns, num)
    rows = math.ceil(num / columns)
    found = new_figure(width * columns, height * rows + 0.3).subplots(rows, columns, squeeze=False).ravel()
    for empty in found[num:]:
        empty.remove()
    return found[:num]


def given_or_new(axes: Any, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
    """The axes that the user has given, checked, or new ones."""
    if axes is None:
        return make()
    given = np.asarray(axes, dtype=object)
    if given.shape != shape:
        raise ValueError(f"axes must be an array of axes of shape {shape}, got shape {given.shape}")
    return given


def colour(number: int) -> Colour:
    """A colour of the style's cycle, looked up now: artists look up ``"C0"`` only when the figure is saved."""
    from matplotlib.colors import to_rgba

    return to_rgba(f"C{number}")


def ink(alpha: float = 1.0) -> Colour:
    """The colour of text, which stands out from the style's background."""
    import matplotlib
    from matplotlib.colors import to_rgba

    return to_rgba(matplotlib.rcParams["text.color"], alpha)


def tidy(axes: Axes, right: bool = False) -> None:
    """Leaves the lines of the two axes that have a scale, below and on the left (or right)."""
    for side in ("top", "left" if right else "right"):
        axes.spines[side].set_visible(False)


def to_array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
