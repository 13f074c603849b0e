"""Checks of the settings of elementwise maps."""

from __future__ import annotations

__all__ = ["require_count", "require_positive"]

import math


def require_count(owner: object, name: str, least: int) -> None:
    """Raises a ValueError unless the named setting of ``owner`` is an integer, at least ``least``."""
    value = getattr(owner, name)
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{type(owner).__name__}: {name} must be an integer, at least {least}, got {value!r}")


def require_positive(owner: object, *names: str) -> None:
    """Raises a ValueError unless the named settings of ``owner`` are positive, finite numbers."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{type(owner).__name__}: {name} must be positive and finite, got {value!r}")
