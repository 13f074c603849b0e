"""The minimum of an energy near a configuration: where internal coordinates have their reference."""

from __future__ import annotations

__all__ = ["minimise"]

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from .checks import check_count, check_positive
from .energies import Energy


def minimise(energy: Energy, positions: Tensor, *, tolerance: float = 1e-3, max_iterations: int = 10_000) -> Tensor:
    """Goes downhill from a configuration, by L-BFGS in float64.

    Args:
        energy: The energy.
        positions: Where to start, ``(*event_shape)``, such as the coordinates of a PDB file in nm.
        tolerance: Largest entry of the force that may be left, in the units of the energy over those of positions.
        max_iterations: Largest number of iterations.

    Returns:
        The configuration of the minimum, of the start's dtype and device.

    Raises:
        ValueError: If the start has another shape than the energy takes, or no finite energy, or an argument is out of
            range.
        RuntimeError: If a larger force is left.

    Reference:
        Liu, Nocedal. On the limited memory BFGS method for large scale optimization. Mathematical Programming 45, 1989.

    Example:
        >>> import torch
        >>> from pyro_coupling.boltzmann.energies import DoubleWell
        >>> minimum = minimise(DoubleWell(), torch.tensor([1.0, 0.5]))
        >>> bool(DoubleWell().energy_and_force(minimum)[1].abs().max() < 1e-2)
        True
    """
    check_positive("minimise", "tolerance", tolerance)
    check_count("minimise", "max_iterations", max_iterations)
    if positions.shape != energy.event_shape:
        raise ValueError(
            f"minimise: positions must be of shape {tuple(energy.event_shape)}, got {tuple(positions.shape)}"
        )
    if not bool(energy(positions).isfinite()):
        raise ValueError(f"minimise: positions must have a finite energy, got {energy(positions).item()}")

    def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        where = torch.from_numpy(x).to(positions.device).reshape(positions.shape)
        value, force = energy.energy_and_force(where)
        return value.item(), -force.flatten().cpu().numpy()

    start = positions.detach().double().flatten().cpu().numpy()
    settings = {"maxiter": max_iterations, "maxfun": 2 * max_iterations, "gtol": tolerance, "ftol": 0.0, "maxcor": 30}
    found = minimize(value_and_slope, start, jac=True, method="L-BFGS-B", options=settings)
    largest = float(np.abs(found.jac).max())
    if not largest <= 10 * tolerance:  # its last line search may end at what rounding lets it see
        raise RuntimeError(f"minimise: a force of {largest:.3g} is left, more than {tolerance:g} ({found.message})")
    return torch.from_numpy(found.x).to(positions).reshape(positions.shape)
