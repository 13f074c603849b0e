"""The scalar field with a fourth-power self-interaction on a periodic square lattice."""

from __future__ import annotations

__all__ = ["LatticePhi4"]

import math

import torch
from torch import Tensor

from ..checks import check_positive
from .base import Energy

_NEGLIGIBLE = 40.0  # in kT: a field value this far above the lowest site energy has a weight of 4e-18


class LatticePhi4(Energy):
    """The action of phi^4 theory on a periodic two-dimensional lattice, in lattice units.

    ``S = sum over sites of [sum over the 2 directions of (phi(x) - phi(x + 1))^2 + m^2 phi(x)^2 + lambda phi(x)^4]``.
    For a negative ``mass_squared`` and a small enough coupling the field orders: two modes, phi and -phi. With the
    default parameters it is close to that transition, on the disordered side.

    Args:
        shape: Height and width of the lattice.
        mass_squared: m^2, of either sign.
        coupling: lambda, 0 or more; at 0 the field is Gaussian, and ``mass_squared`` must be positive.

    Raises:
        ValueError: If shape is not two positive integers, or the density can't be normalised.

    Reference:
        Albergo, Kanwar, Shanahan. Flow-based generative models for Markov chain Monte Carlo in lattice field theory.
        Physical Review D 100, 2019.

    Example:
        >>> import torch
        >>> action = LatticePhi4((6, 6))
        >>> action(torch.ones(6, 6))  # 36 (m^2 + lambda)
        tensor(107.1000)
        >>> round(LatticePhi4((6, 6), mass_squared=1.0, coupling=0.0).log_z(), 4)
        -6.531
    """

    def __init__(self, shape: tuple[int, int], mass_squared: float = -4.0, coupling: float = 6.975) -> None:
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"LatticePhi4: shape must be the height and width of the lattice, got {shape}")
        super().__init__(shape)
        if not (coupling >= 0 and math.isfinite(coupling) and math.isfinite(mass_squared)):
            raise ValueError(
                f"LatticePhi4: coupling must be 0 or more and both parameters finite, "
                f"got mass_squared={mass_squared} and coupling={coupling}"
            )
        if coupling == 0 and mass_squared <= 0:
            raise ValueError(f"LatticePhi4: without coupling, mass_squared must be positive, got {mass_squared}")
        self.mass_squared, self.coupling = float(mass_squared), float(coupling)

    def energy(self, x: Tensor) -> Tensor:
        links = sum((x - x.roll(-1, direction)).square() for direction in (-2, -1))
        return (links + self._site(x)).sum((-2, -1))

    def log_z(self, kT: float = 1.0) -> float:
        """Logarithm of the integral of ``exp(-S / kT)`` where there is an exact way to it (to 1e-9 relative in Z).

        The free field (``coupling=0``) has a closed form; a lattice of width 1 or 2 has a transfer matrix small
        enough for quadrature.

        Raises:
            ValueError: If there is neither.
            RuntimeError: If kT is so small that the quadrature does not converge.
        """
        check_positive(self, "kT", kT)
        if self.coupling == 0:
            return self._log_z_free(kT)
        if min(self.event_shape) > 2:
            raise ValueError(
                f"LatticePhi4: log Z is known exactly without coupling, or for a lattice of width 1 or 2, "
                f"not for {tuple(self.event_shape)} with coupling={self.coupling}"
            )
        coarse = math.nan
        for nodes in (16, 24, 32, 40, 48):
            fine = self._log_z_transfer(nodes, kT)
            if abs(fine - coarse) < 1e-9:
                return fine
            coarse = fine
        raise RuntimeError(f"LatticePhi4: kT={kT} is too small for the quadrature")

    def _site(self, x: Tensor) -> Tensor:
        square = x.square()
        return square * (self.mass_squared + self.coupling * square)

    def _log_z_free(self, kT: float) -> float:
        """The Gaussian integral over Fourier modes, each of stiffness ``m^2 + 4 sin^2(k_1 / 2) + 4 sin^2(k_2 / 2)``."""
        down, across = (
            4 * torch.sin(torch.arange(n, dtype=torch.float64) * math.pi / n).square() for n in self.event_shape
        )
        stiffness = self.mass_squared + down.unsqueeze(-1) + across
        return 0.5 * (math.pi * kT / stiffness).log().sum().item()

    def _log_z_transfer(self, nodes: int, kT: float) -> float:
        """The trace of a power of the matrix that leads from one short row of the lattice to the next."""
        width, length = sorted(self.event_shape)
        # the largest field value that counts: at phi^2 = square a site is this high above its lowest energy
        m2, height = self.mass_squared, _NEGLIGIBLE * kT
        root = math.sqrt(max(m2, 0.0) ** 2 + 4 * self.coupling * height)
        square = 2 * height / (m2 + root) if m2 > 0 else (root - m2) / (2 * self.coupling)
        values = torch.linspace(-math.sqrt(square), math.sqrt(square), nodes, dtype=torch.float64)
        rows = torch.cartesian_prod(*[values] * width).reshape(-1, width)
        within = ((rows - rows.roll(-1, 1)).square() + self._site(rows)).sum(1)
        between = torch.cdist(rows, rows).square()
        exponent = -(between + 0.5 * (within.unsqueeze(1) + within)) / kT
        shift = exponent.max()
        eigenvalues = torch.linalg.eigvalsh((exponent - shift).exp())
        step = (values[1] - values[0]).item()
        largest = eigenvalues[-1]
        log_trace = (eigenvalues / largest).pow(length).sum().log() + length * (largest.log() + shift)
        return log_trace.item() + length * width * math.log(step)

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, mass_squared={self.mass_squared}, coupling={self.coupling}"
