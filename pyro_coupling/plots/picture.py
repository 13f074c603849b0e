"""The figures of this package: they belong to no window, and a notebook shows them."""

from __future__ import annotations

__all__ = ["Picture"]

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that is shown when it is named last in a notebook's cell, also where no backend of notebooks is set."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()
