"""Wells of known depth and weight: double well, Many-Well, Müller-Brown."""

from __future__ import annotations

__all__ = ["DoubleWell", "ManyWell", "MullerBrown"]

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import check_positive
from .base import Energy

_NEGLIGIBLE = 45.0  # in kT: what lies higher above the minimum is less than the last digit of float64
_MAX_MODES = 2**20
_MAX_GRID = 2000  # points along an axis


class _Cells(NamedTuple):
    """The Boltzmann factor of the double well, cell by cell; the barrier's top is an edge."""

    edges: np.ndarray  # (cells + 1,)
    masses: np.ndarray  # (cells,), in units of the factor at the deepest point
    lowest: float  # energy of that point


class _Wells(Energy):
    """Independent coordinates: some in ``a x + b x^2 + c x^4``, the others in ``y^2 / 2``."""

    def __init__(self, dim: int, wells: slice, springs: slice, a: float, b: float, c: float) -> None:
        super().__init__((dim,))
        self.a, self.b, self.c = float(a), float(b), float(c)
        self._wells, self._springs = wells, springs
        self._num_wells = len(range(*wells.indices(dim)))
        self._bends = _bends(type(self).__name__, self.a, self.b, self.c)

    def energy(self, x: Tensor) -> Tensor:
        square, tilted = x[..., self._wells].square(), self.a * x[..., self._wells]
        wells = (square * (self.c * square + self.b) + tilted).sum(-1)
        return wells + 0.5 * x[..., self._springs].square().sum(-1)

    def log_z(self, kT: float = 1.0) -> float:
        """Logarithm of the integral of ``exp(-energy / kT)``, by quadrature (relative error of Z below 1e-12)."""
        cells = self._cells(kT)
        springs = self.event_shape[0] - self._num_wells
        log_well = math.log(cells.masses.sum()) - cells.lowest / kT
        return self._num_wells * log_well + 0.5 * springs * math.log(2 * math.pi * kT)

    def modes(self, x: Tensor) -> Tensor:
        """Which mode each configuration is in.

        Args:
            x: Configurations, ``(*batch, dim)``.

        Returns:
            Number of the mode, ``(*batch,)``, int64: bit i says whether double well i is on its right side.
        """
        self._check(x)
        right = x[..., self._wells] > self._bends[1]
        return (right << torch.arange(self._num_wells, device=x.device)).sum(-1)

    def mode_weights(self, kT: float = 1.0) -> Tensor:
        """Probability of each mode, by quadrature, in the numbering of `modes`.

        Returns:
            Weights, ``(2^wells,)``, float64.

        Raises:
            ValueError: If there are more than 2^20 modes.
        """
        if 2**self._num_wells > _MAX_MODES:
            raise ValueError(f"{type(self).__name__}: 2^{self._num_wells} modes are too many for a table of weights")
        cells = self._cells(kT)
        right = cells.masses[cells.edges[:-1] >= self._bends[1]].sum() / cells.masses.sum()
        weights = torch.ones(1, dtype=torch.float64)
        for _ in range(self._num_wells):
            weights = torch.cat([weights * (1 - right), weights * right])
        return weights

    def sample(self, num_samples: int, kT: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws from the Boltzmann distribution, by inversion of the tabulated distribution function.

        Args:
            num_samples: Number of draws.
            kT: Thermal energy.
            generator: Source of random numbers; draws are made on its device.

        Returns:
            Configurations, ``(num_samples, dim)``, of the default dtype.
        """
        device = None if generator is None else generator.device
        cells = self._cells(kT)
        edges = torch.from_numpy(cells.edges).to(device)
        cdf = torch.from_numpy(np.append(0.0, cells.masses.cumsum())).to(device)
        x = torch.empty(num_samples, self.event_shape[0], dtype=torch.float64, device=device)
        x.normal_(generator=generator).mul_(math.sqrt(kT))
        u = cdf[-1] * torch.rand(num_samples, self._num_wells, dtype=x.dtype, device=device, generator=generator)
        cell = torch.searchsorted(cdf, u, right=True).clamp(1, len(cdf) - 1) - 1
        within = (u - cdf[cell]) / (cdf[cell + 1] - cdf[cell])
        x[:, self._wells] = torch.lerp(edges[cell], edges[cell + 1], within)
        return x.to(torch.get_default_dtype())

    def extra_repr(self) -> str:
        return f"{self.event_shape[0]}, a={self.a}, b={self.b}, c={self.c}"

    def _well(self, x: np.ndarray) -> np.ndarray:
        return x * (self.a + x * (self.b + self.c * x * x))

    def _cells(self, kT: float, num: int = 2**14) -> _Cells:
        check_positive(self, "kT", kT)
        left, top, right = self._well(np.array(self._bends)).tolist()
        lowest = min(left, right)
        if kT < 1e-6 * (top - lowest):
            raise ValueError(
                f"{type(self).__name__}: kT={kT} is too small for quadrature of a well {top - lowest} deep"
            )
        ends = np.roots([self.c, 0.0, self.b, self.a, -max(left, right) - _NEGLIGIBLE * kT])
        ends = ends.real[abs(ends.imag) < 1e-9 * abs(ends).max()]
        halves = [np.linspace(end, self._bends[1], num + 1) for end in (ends.min(), ends.max())]
        edges = np.concatenate([halves[0], halves[1][-2::-1]])
        nodes, weights = np.polynomial.legendre.leggauss(5)
        middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
        factor = np.exp((lowest - self._well(middle[:, None] + half[:, None] * nodes)) / kT)
        return _Cells(edges, half * (factor @ weights), lowest)


def _bends(name: str, a: float, b: float, c: float) -> tuple[float, float, float]:
    """The left minimum, the top of the barrier, and the right minimum of ``a x + b x^2 + c x^4``."""
    roots = np.sort(np.roots([4 * c, 0.0, 2 * b, a])) if c > 0 else np.empty(0)
    if len(roots) < 3 or np.iscomplexobj(roots) or not np.diff(roots).min() > 0:
        raise ValueError(f"{name}: a x + b x^2 + c x^4 must have two minima, but has not for a={a}, b={b}, c={c}")
    return tuple(roots.tolist())


class DoubleWell(_Wells):
    """The asymmetric double well ``E = a x_1 + b x_1^2 + c x_1^4 + (x_2^2 + ... + x_dim^2) / 2``, in reduced units.

    With the default parameters the minima are at -1.71 and 1.75, the barrier is 9.9 above the deeper one, and at
    kT = 1 the right well has 84 % of the probability.

    Args:
        dim: Number of coordinates.
        a: Tilt.
        b: Coefficient of the square; negative.
        c: Coefficient of the fourth power; positive.

    Raises:
        ValueError: If there are not two minima, or no coordinate.

    Reference:
        Noé, Olsson, Köhler, Wu. Boltzmann generators. Science 365, 2019. The parameters are those of one block
        of `ManyWell`.

    Example:
        >>> import torch
        >>> energy = DoubleWell()
        >>> energy(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        tensor([ 0.5000, -9.0000])
        >>> round(energy.log_z(), 4), energy.mode_weights().round(decimals=4)
        (10.2935, tensor([0.1557, 0.8443], dtype=torch.float64))
    """

    def __init__(self, dim: int = 2, a: float = -0.5, b: float = -6.0, c: float = 1.0) -> None:
        if dim < 1:
            raise ValueError(f"DoubleWell: dim must be 1 or more, got {dim}")
        super().__init__(dim, slice(0, 1), slice(1, None), a, b, c)


class ManyWell(_Wells):
    """Independent pairs (x, y), each with ``E = a x + b x^2 + c x^4 + y^2 / 2``, in reduced units.

    Coordinates are ordered ``x_1, y_1, x_2, y_2, ...``. There are ``2^(dim / 2)`` modes, of unequal and known weights.

    Args:
        dim: Number of coordinates; even.
        a: Tilt.
        b: Coefficient of the square; negative.
        c: Coefficient of the fourth power; positive.

    Raises:
        ValueError: If dim is not even and positive, or there are not two minima.

    Reference:
        Midgley, Stimper, Simm, Schölkopf, Hernández-Lobato. Flow annealed importance sampling bootstrap. ICLR 2023.

    Example:
        >>> import torch
        >>> energy = ManyWell(6)
        >>> x = energy.sample(1000, generator=torch.Generator().manual_seed(0))
        >>> energy.modes(x).unique().numel(), energy.mode_weights().shape
        (8, torch.Size([8]))
    """

    def __init__(self, dim: int, a: float = -0.5, b: float = -6.0, c: float = 1.0) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"ManyWell: dim must be even and positive, got {dim}")
        super().__init__(dim, slice(0, None, 2), slice(1, None, 2), a, b, c)


class MullerBrown(Energy):
    """The Müller-Brown surface ``E = scale * sum_k A_k exp(a_k dx^2 + b_k dx dy + c_k dy^2)``, in reduced units.

    ``dx = x - x_k`` and ``dy = y - y_k``, with the parameters of the paper. With the default scale and kT = 1 the
    barrier is 10.6 kT seen from the deepest basin and 6.8 kT from the second; unscaled it would be 106 kT.

    Args:
        scale: Factor on the energy of the paper.

    Attributes:
        minima: The three minima, deepest first, ``(3, 2)``; their energies divided by ``scale`` are -146.700,
            -108.167 and -80.768.

    Raises:
        ValueError: If scale is not positive.

    Reference:
        Müller, Brown. Location of saddle points and minimum energy paths by a constrained simplex optimization
        procedure. Theoretica Chimica Acta 53, 1979.

    Example:
        >>> energy = MullerBrown()
        >>> energy(energy.minima)
        tensor([-14.6700, -10.8167,  -8.0768], dtype=torch.float64)
        >>> round(energy.log_z(), 4)
        11.7296
    """

    minima: Tensor
    amplitude: Tensor
    quadratic: Tensor
    centre: Tensor

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__((2,))
        check_positive(self, "scale", scale)
        self.scale = float(scale)
        constants = {
            "amplitude": (-200.0, -100.0, -170.0, 15.0),
            "quadratic": ((-1.0, 0.0, -10.0), (-1.0, 0.0, -10.0), (-6.5, 11.0, -6.5), (0.7, 0.6, 0.7)),
            "centre": ((1.0, 0.0), (0.0, 0.5), (-0.5, 1.5), (-1.0, 1.0)),
            "minima": ((-0.5582236346, 1.4417258418), (0.6234994049, 0.0280377585), (-0.0500108230, 0.4666941049)),
        }
        for name, value in constants.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64), persistent=False)

    def energy(self, x: Tensor) -> Tensor:
        dx, dy = (x.unsqueeze(-2) - self.centre.to(x)).unbind(-1)
        a, b, c = self.quadratic.to(x).unbind(-1)
        exponent = dx * (a * dx + b * dy) + c * dy.square()
        return self.scale * (self.amplitude.to(x) * exponent.exp()).sum(-1)

    def log_z(self, kT: float = 1.0) -> float:
        """Logarithm of the integral of ``exp(-energy / kT)``, by quadrature (relative error of Z below 1e-12).

        Raises:
            ValueError: If kT is not positive, or so far below ``scale`` that the grid would be too large.
        """
        check_positive(self, "kT", kT)
        # The three pits are at most 470 deep, and the last term grows at least as 15 exp(0.4 r^2) about its centre.
        radius = math.sqrt(math.log((_NEGLIGIBLE * kT / self.scale + 470.0) / 15.0) / 0.4)
        # Curvatures reach about 4500. With half the width of such a Gaussian as the step, the trapezoidal rule is exact
        # to the last digits; at high temperature the step must resolve the edge of the box instead.
        step = min(0.5 * math.sqrt(kT / self.scale / 4500.0), 0.05)
        num = math.ceil(2 * radius / step)
        if num > _MAX_GRID:
            raise ValueError(f"MullerBrown: kT={kT} is too small for the quadrature with scale={self.scale}")
        offsets = torch.linspace(-radius, radius, num + 1, dtype=torch.float64, device=self.centre.device)
        grid = torch.cartesian_prod(offsets, offsets) + self.centre[-1]
        return torch.logsumexp(-self(grid) / kT, 0).item() + 2 * math.log(2 * radius / num)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"
