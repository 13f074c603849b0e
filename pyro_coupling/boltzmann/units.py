"""The units of molecules: nm, ps, dalton, kJ/mol and kelvin, which need no conversion factors among themselves."""

from __future__ import annotations

__all__ = ["GAS_CONSTANT", "kT"]

from .checks import check_positive

#: Boltzmann's constant per mole, in kJ/mol/K: the product of two constants that are exact in the SI since 2019.
GAS_CONSTANT = 0.00831446261815324


def kT(temperature: float) -> float:
    """Thermal energy of a temperature.

    Args:
        temperature: Temperature in kelvin.

    Returns:
        Energy in kJ/mol.

    Raises:
        ValueError: If the temperature is not positive and finite.

    Example:
        >>> round(kT(300.0), 6)
        2.494339
    """
    check_positive("kT", "temperature (kelvin)", temperature)
    return GAS_CONSTANT * temperature
