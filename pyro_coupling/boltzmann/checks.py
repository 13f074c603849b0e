"""Checks of the numbers that energies and dynamics take."""

from __future__ import annotations

__all__ = ["check_positive"]

import math


def check_positive(owner: object, name: str, value: float) -> None:
    """Refuses a value that is not a positive finite number.

    Args:
        owner: The instance that takes it, or the name of what does.
        name: The argument.
        value: What came.

    Raises:
        ValueError: If it is zero, negative, infinite or NaN.

    Example:
        >>> check_positive("MullerBrown", "kT", 1.0)
    """
    if not (value > 0 and math.isfinite(value)):
        who = owner if isinstance(owner, str) else type(owner).__name__
        raise ValueError(f"{who}: {name} must be a positive finite number, got {value}")
