"""Densities on the plane with exact samples, an exact log density and a known entropy.

With all three the Kullback-Leibler divergence of any flow q from p is known up to the error of a mean:
``KL(p || q) = E_p[log p - log q]``.
"""

from __future__ import annotations

__all__ = [
    "DENSITIES",
    "Checkerboard",
    "Density",
    "EightGaussians",
    "Pinwheel",
    "SmoothedCurves",
    "Square",
    "grid",
    "moons",
    "rings",
    "spirals",
]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

#: half-width of a square that holds every density but for less than 1e-8 of its mass
WINDOW = 6.0


def grid(size: int, window: float = WINDOW) -> tuple[Tensor, float]:
    """Midpoints of ``size x size`` cells of the window, rows from below, ``(size * size, 2)``; and a cell's area."""
    middles = ((torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1) * window
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2), (2 * window / size) ** 2


class Density(ABC):
    """What each density can do. All computations are in float64."""

    @abstractmethod
    def sample(self, num_samples: int, generator: Generator | None = None) -> Tensor:
        """Independent points, ``(num_samples, 2)``."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised log density, ``(n, 2)`` -> ``(n,)``."""

    def entropy(self) -> float:
        """``-E[log p]`` in nats; if not overridden by quadrature, which converges exponentially for smooth p."""
        points, area = grid(300)
        log_prob = self.log_prob(points)
        return -area * float((log_prob.exp() * log_prob).nan_to_num(0.0).sum())


class EightGaussians(Density):
    """Eight equal Gaussians on a circle."""

    radius, noise = 2.8, 0.35

    def __init__(self) -> None:
        angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
        self.centres = self.radius * torch.stack([angle.cos(), angle.sin()], -1)

    def sample(self, num_samples: int, generator: Generator | None = None) -> Tensor:
        which = torch.randint(8, (num_samples,), generator=generator)
        return self.centres[which] + self.noise * _normal(num_samples, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        return _log_mean_gaussian(x, self.centres, torch.full((8,), 1 / 8, dtype=torch.float64), self.noise)


class SmoothedCurves(Density):
    """Points on curves, blurred by a Gaussian.

    The density is the mean over the curves of the integral over [0, 1] of ``N(x; curve(t), noise^2) dt``. Gauss and
    Legendre's rule gives it to rounding error as long as its nodes lie closer than the noise.

    Args:
        curves: ``(n,)`` positions in [0, 1] -> ``(num_curves, n, 2)``.
        noise: Standard deviation of the blur.
        num_nodes: Nodes of the quadrature on each curve.
    """

    def __init__(self, curves: Callable[[Tensor], Tensor], noise: float, num_nodes: int = 250) -> None:
        nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
        points = curves(torch.from_numpy((nodes + 1) / 2))
        self.curves, self.noise = curves, noise
        self.num_curves = len(points)
        self.points = points.reshape(-1, 2)
        self.weights = torch.from_numpy(weights / 2 / self.num_curves).repeat(self.num_curves)

    def sample(self, num_samples: int, generator: Generator | None = None) -> Tensor:
        position = torch.rand(num_samples, generator=generator, dtype=torch.float64)
        which = torch.randint(self.num_curves, (num_samples,), generator=generator)
        on_curve = self.curves(position)[which, torch.arange(num_samples)]
        return on_curve + self.noise * _normal(num_samples, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        return _log_mean_gaussian(x, self.points, self.weights, self.noise)


def moons() -> SmoothedCurves:
    """Two half circles, each reaching into the other."""

    def curves(t: Tensor) -> Tensor:
        angle = math.pi * t
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], -1)
        return 2 * torch.stack([upper, -upper])

    return SmoothedCurves(curves, noise=0.2)


def rings() -> SmoothedCurves:
    """Three concentric circles."""

    def curves(t: Tensor) -> Tensor:
        angle = 2 * math.pi * t
        circle = torch.stack([angle.cos(), angle.sin()], -1)
        return torch.stack([radius * circle for radius in (1.0, 2.0, 3.0)])

    return SmoothedCurves(curves, noise=0.15)


def spirals() -> SmoothedCurves:
    """Two spirals of one and a half turns, each the other's mirror image."""

    def curves(t: Tensor) -> Tensor:
        along = (0.02 + 0.98 * t).sqrt()  # the further out, the faster: even along the arc
        angle = 3 * math.pi * along
        spiral = 3.2 * along.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)
        return torch.stack([spiral, -spiral])

    return SmoothedCurves(curves, noise=0.12)


class Pinwheel(Density):
    """Five arms, each a Gaussian along a ray, turned the more the further out; such a turn leaves areas as they are."""

    num_arms, twist = 5, 0.45
    centre = torch.tensor([2.0, 0.0], dtype=torch.float64)
    scale = torch.tensor([0.6, 0.2], dtype=torch.float64)

    def sample(self, num_samples: int, generator: Generator | None = None) -> Tensor:
        straight = self.centre + self.scale * _normal(num_samples, generator)
        arm = torch.randint(self.num_arms, (num_samples,), generator=generator)
        return _rotate(straight, 2 * math.pi / self.num_arms * arm + self.twist * straight.norm(dim=-1))

    def log_prob(self, x: Tensor) -> Tensor:
        arms = 2 * math.pi / self.num_arms * torch.arange(self.num_arms)
        x = x.double()
        straight = _rotate(x.unsqueeze(1), -arms - self.twist * x.norm(dim=-1, keepdim=True))
        normal = torch.distributions.Normal(self.centre, self.scale)
        return normal.log_prob(straight).sum(-1).logsumexp(-1) - math.log(self.num_arms)


class Checkerboard(Density):
    """Uniform on the eight squares of one colour of a 4 x 4 board, each two wide."""

    def sample(self, num_samples: int, generator: Generator | None = None) -> Tensor:
        column = torch.randint(4, (num_samples,), generator=generator)
        row = 2 * torch.randint(2, (num_samples,), generator=generator) + column % 2
        inside = torch.rand(num_samples, 2, generator=generator, dtype=torch.float64)
        return 2 * (torch.stack([column, row], -1) + inside) - 4

    def log_prob(self, x: Tensor) -> Tensor:
        cell = (x / 2 + 2).floor()
        held = ((cell >= 0) & (cell < 4)).all(-1) & (cell.sum(-1) % 2 == 0)
        return _uniform(held, self.entropy())

    def entropy(self) -> float:
        return math.log(32)


class Square(Density):
    """Uniform on the square of side four about the origin."""

    def sample(self, num_samples: int, generator: Generator | None = None) -> Tensor:
        return 4 * torch.rand(num_samples, 2, generator=generator, dtype=torch.float64) - 2

    def log_prob(self, x: Tensor) -> Tensor:
        return _uniform((x.abs() <= 2).all(-1), self.entropy())

    def entropy(self) -> float:
        return math.log(16)


DENSITIES: dict[str, Callable[[], Density]] = {
    "two moons": moons,
    "rings": rings,
    "checkerboard": Checkerboard,
    "pinwheel": Pinwheel,
    "spirals": spirals,
    "8 Gaussians": EightGaussians,
}


def _normal(num_samples: int, generator: Generator | None) -> Tensor:
    return torch.randn(num_samples, 2, generator=generator, dtype=torch.float64)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1)


def _uniform(held: Tensor, entropy: float) -> Tensor:
    return torch.full(held.shape, -entropy, dtype=torch.float64).masked_fill(~held, -math.inf)


def _log_mean_gaussian(x: Tensor, centres: Tensor, weights: Tensor, noise: float) -> Tensor:
    """Log density of a mixture of equally round Gaussians, a thousand points at a time to spare memory."""
    constant = weights.log() - math.log(2 * math.pi * noise**2) - centres.square().sum(-1) / (2 * noise**2)

    def log_prob(part: Tensor) -> Tensor:
        inner = torch.addmm(constant, part, centres.T, alpha=1 / noise**2)
        return inner.logsumexp(-1) - part.square().sum(-1) / (2 * noise**2)

    return torch.cat([log_prob(part) for part in x.double().split(1024)])
