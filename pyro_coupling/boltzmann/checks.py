"""Checks of the numbers that energies and dynamics take."""

from __future__ import annotations

__all__ = ["check_count", "check_positive"]

import math
from numbers import Integral


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


def check_count(owner: object, name: str, value: int) -> None:
    """Refuses a value that is not a positive integer.

    Args:
        owner: The instance that takes it, or the name of what does.
        name: The argument.
        value: What came.

    Raises:
        ValueError: If it is no integer, zero or negative.

    Example:
        >>> check_count("BoltzmannGenerator", "num_particles", 256)
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        who = owner if isinstance(owner, str) else type(owner).__name__
        raise ValueError(f"{who}: {name} must be a positive integer, got {value}")
