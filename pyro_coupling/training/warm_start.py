"""Warm starts: a Gaussian where the posterior is, by multi-path Pathfinder and by Laplace's method."""

from __future__ import annotations

__all__ = ["GaussianStart", "warm_start"]

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..targets import Target, log_prob_and_score
from .lockstep import Path, minimize_in_lockstep

METHODS = ("pathfinder", "laplace", "init")
_LARGEST_DENSE = 1000
_ITERATES_SCORED = 40
_DRAWS, _DRAWS_FINAL = 10, 300


@dataclass(frozen=True)
class GaussianStart:
    """A Gaussian approximation of a target.

    Attributes:
        loc: Mean, ``(dim,)``.
        scale_tril: Cholesky factor of the covariance, ``(dim, dim)``.
        elbo: Evidence lower bound in nats, -inf if unknown or hopeless.
        source: Where it comes from: ``"pathfinder"``, ``"laplace"`` or ``"init"``.
    """

    loc: Tensor
    scale_tril: Tensor
    elbo: float
    source: str

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n draws ``(n, dim)`` and their log densities ``(n,)``."""
        z = torch.randn(n, len(self.loc), dtype=self.loc.dtype, device=self.loc.device, generator=generator)
        x = self.loc + z @ self.scale_tril.mT
        return x, -0.5 * z.square().sum(-1) + self._log_normalizer()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at points ``(n, dim)``."""
        z = torch.linalg.solve_triangular(self.scale_tril.mT, x - self.loc, upper=True, left=False)
        return -0.5 * z.square().sum(-1) + self._log_normalizer()

    def _log_normalizer(self) -> Tensor:
        return -self.scale_tril.diagonal().log().sum() - 0.5 * len(self.loc) * math.log(2 * math.pi)


def warm_start(
    target: Target,
    initial: Tensor,
    method: str = "pathfinder",
    *,
    num_starts: int = 8,
    generator: torch.Generator | None = None,
    max_evaluations: int = 2000,
    max_seconds: float = math.inf,
) -> list[GaussianStart]:
    """Gaussian approximations of a target, the best by ELBO first.

    Optimisers run from ``initial`` and from random points in [-2, 2]^dim. ``"pathfinder"`` scores a
    Gaussian at many points of each path, with the covariance that the path's curvature suggests, and
    besides it Laplace's approximation at the end of each path; ``"laplace"`` only the latter;
    ``"init"`` takes the initial point with standard deviations of 0.1.

    Args:
        target: The density.
        initial: Initial point, ``(dim,)``.
        method: ``"pathfinder"``, ``"laplace"`` or ``"init"``.
        num_starts: Number of paths.
        generator: Source of randomness.
        max_evaluations: Largest number of batched evaluations spent on the paths.
        max_seconds: Time after which no further work is begun.

    Returns:
        The best start, followed by the best start of every other path that ended elsewhere.

    Reference:
        Zhang, Carpenter, Gelman, Vehtari. Pathfinder: parallel quasi-Newton variational inference.
        JMLR 2022. Here with the inverse Hessian of the whole path in dense form, and a line search with
        Wolfe conditions (SciPy's L-BFGS-B).
    """
    if method not in METHODS:
        raise ValueError(f"warm_start must be one of {METHODS}, got {method!r}")
    generator = generator or torch.Generator(device=initial.device)
    began = time.monotonic()

    def out_of_time() -> bool:
        return time.monotonic() - began > max_seconds

    dim = target.dim
    fallback = GaussianStart(
        initial, 0.1 * torch.eye(dim, dtype=initial.dtype, device=initial.device), -math.inf, "init"
    )
    if method == "init":
        return [fallback]
    half = torch.rand(num_starts // 2, dim, dtype=initial.dtype, device=initial.device, generator=generator)
    away = 4 * half - 2
    # in mirror pairs, so that of two modes on either side of the centre neither is left out by chance
    starts = torch.cat([initial.unsqueeze(0), initial + away, initial - away])[:num_starts]
    paths = minimize_in_lockstep(_as_numpy(target), starts.double().cpu().numpy(), max_evaluations, out_of_time)

    candidates: list[list[GaussianStart]] = [[] for _ in paths]
    if method == "pathfinder":
        for found, path in zip(candidates, paths, strict=True):
            found += _score(target, _along(path, initial), _DRAWS, generator)[:2]
    ends = [torch.as_tensor(path.points[-1]).to(initial) if path.points else initial for path in paths]
    for k in _distinct(target, ends):
        if dim <= _LARGEST_DENSE and not (out_of_time() and any(candidates)):
            laplace = _laplace(target, ends[k])
            if laplace is not None:
                candidates[k].append(laplace)
    best = [_score(target, found, _DRAWS_FINAL, generator)[:1] for found in candidates]
    ranked = sorted([b[0] for b in best if b and b[0].elbo > -math.inf], key=lambda s: -s.elbo)
    return _apart(ranked) or [fallback]


def _as_numpy(target: Target) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def value_and_gradient(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_p, score = log_prob_and_score(target, torch.as_tensor(x).to(dtype=target.dtype, device=target.device))
        return -log_p.double().cpu().numpy(), -score.double().cpu().numpy()

    return value_and_gradient


def _along(path: Path, like: Tensor) -> list[GaussianStart]:
    """Gaussians along a path: at an iterate, and one quasi-Newton step further on."""
    if len(path.points) < 2:
        return []
    last = len(path.points) - 1
    early = np.linspace(1, last, min(last, _ITERATES_SCORED)).round().astype(int)
    wanted = set(early.tolist()) | set(range(max(1, last - 5), last + 1))
    found: list[GaussianStart] = []
    for step, covariance in _inverse_hessians(path):
        if step not in wanted:
            continue
        root, info = torch.linalg.cholesky_ex(torch.as_tensor(covariance))
        if int(info) != 0 or not bool(root.isfinite().all()):
            continue
        point = path.points[step]
        for loc in (point, point - covariance @ path.gradients[step]):
            found.append(GaussianStart(torch.as_tensor(loc).to(like), root.to(like), -math.inf, "pathfinder"))
    return found


def _inverse_hessians(path: Path):
    """BFGS estimates of the inverse Hessian at each iterate, from the second on."""
    dim = path.points[0].size
    matrix: np.ndarray | None = None
    for step in range(1, len(path.points)):
        s = path.points[step] - path.points[step - 1]
        y = path.gradients[step] - path.gradients[step - 1]
        curvature = s @ y
        if curvature > 1e-12 * (y @ y) and np.isfinite(curvature):
            if matrix is None:
                matrix = np.eye(dim) * (curvature / (y @ y))
            hy = matrix @ y
            matrix = matrix + ((curvature + y @ hy) / curvature**2) * np.outer(s, s)
            cross = np.outer(hy, s) / curvature
            matrix = matrix - cross - cross.T
            matrix = 0.5 * (matrix + matrix.T)
        if matrix is not None:
            yield step, matrix


def _score(target: Target, found: list[GaussianStart], draws: int, generator: torch.Generator) -> list[GaussianStart]:
    """The same Gaussians with their ELBO, best first."""
    scored: list[GaussianStart] = []
    for start in _in_chunks(found, max(1, 512 // draws)):
        drawn = [gaussian.sample(draws, generator) for gaussian in start]
        with torch.no_grad():
            log_p = target.log_prob(torch.cat([x for x, _ in drawn])).reshape(len(start), draws)
        log_ratio = log_p - torch.stack([log_q for _, log_q in drawn])
        for gaussian, row in zip(start, log_ratio, strict=True):
            finite = row[row.isfinite()]
            # a Gaussian that often leaves the model's domain is no start; a stray draw may
            elbo = finite.mean().item() if len(finite) >= 0.9 * draws else -math.inf
            scored.append(GaussianStart(gaussian.loc, gaussian.scale_tril, elbo, gaussian.source))
    return sorted(scored, key=lambda s: -s.elbo)


def _in_chunks(items: list, size: int):
    for i in range(0, len(items), size):
        yield items[i : i + size]


def _distinct(target: Target, ends: list[Tensor]) -> list[int]:
    """Indices of end points, the highest of each group of equal log density, at most four."""
    with torch.no_grad():
        heights = target.log_prob(torch.stack(ends)).tolist()
    kept: list[int] = []
    for k in sorted(range(len(ends)), key=lambda k: -heights[k]):
        near = [i for i in kept if abs(heights[i] - heights[k]) < 1e-4 * (1 + abs(heights[k])) ** 0.5]
        if not any((ends[i] - ends[k]).norm() < 1e-2 * (1 + ends[k].norm()) for i in near):
            kept.append(k)
    return kept[:4]


def _laplace(target: Target, point: Tensor, max_iterations: int = 25) -> GaussianStart | None:
    """Gaussian at the mode near a point: damped Newton steps with the exact Hessian."""
    steps = 0.5 ** torch.arange(12, dtype=point.dtype, device=point.device)
    precision, units = None, None
    for _ in range(max_iterations):
        score, hessian = _score_and_hessian(target, point)
        if hessian is None:
            return None
        # in units of each coordinate's own curvature: scales of 1e-3 beside 1e5 leave digits to their correlation
        curvature = hessian.diagonal().abs()
        units = torch.where(curvature > 0, curvature, 1.0).rsqrt()
        # absolute eigenvalues: away from a mode, a direction of ascent still
        curvatures, vectors = torch.linalg.eigh(-units.unsqueeze(-1) * hessian * units)
        values = curvatures.abs().clamp(min=1e-12 * curvatures.abs().max())
        precision = (vectors * values) @ vectors.mT
        step = units * (vectors @ ((vectors.mT @ (units * score)) / values))
        gain = float(score @ step)
        if gain < 1e-8:
            if bool(curvatures.min() < -1e-6 * curvatures.abs().max()):
                return None  # a saddle, between modes
            break
        with torch.no_grad():
            log_p = target.log_prob(torch.cat([point.unsqueeze(0), point + steps[:, None] * step]))
        enough = log_p[1:] >= log_p[0] + 1e-4 * steps * gain
        if not bool(enough.any()):
            break
        point = point + steps[int(enough.nonzero()[0])] * step
    if precision is None:
        return None
    # covariance = precision^-1; flipping the order of coordinates turns one Cholesky factor into the other
    flipped, info = torch.linalg.cholesky_ex(precision.flip(0, 1))
    if int(info) != 0:
        return None
    identity = torch.eye(len(point), dtype=point.dtype, device=point.device)
    root = torch.linalg.solve_triangular(flipped, identity, upper=False).mT.flip(0, 1)
    scale_tril, info = torch.linalg.cholesky_ex(root @ root.mT)
    scale_tril = units.unsqueeze(-1) * scale_tril
    if int(info) != 0 or not bool(scale_tril.isfinite().all()):
        return None
    return GaussianStart(point, scale_tril, -math.inf, "laplace")


def _score_and_hessian(target: Target, point: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradient and Hessian of the log density, the latter from one batched second backward pass."""
    dim = len(point)
    identity = torch.eye(dim, dtype=point.dtype, device=point.device)
    try:
        with torch.enable_grad():
            leaf = point.expand(dim, dim).clone().requires_grad_()
            (scores,) = torch.autograd.grad(target.log_prob(leaf).sum(), leaf, create_graph=True)
            (hessian,) = torch.autograd.grad((scores * identity).sum(), leaf)
        score = scores[0].detach()
    except RuntimeError:  # some operation of the model has no second derivative
        width = 1e-5 * (1 + point.abs())
        shifts = torch.cat([torch.diag(width), -torch.diag(width)])
        _, scores = log_prob_and_score(target, torch.cat([point.unsqueeze(0), point + shifts]))
        score, up, down = scores.split([1, dim, dim])
        score, hessian = score[0], (up - down) / (2 * width.unsqueeze(-1))
    hessian = 0.5 * (hessian + hessian.mT)
    return score, hessian if bool(hessian.isfinite().all() and score.isfinite().all()) else None


def _apart(ranked: list[GaussianStart]) -> list[GaussianStart]:
    """Drops a Gaussian that lies within another, better one: the same mode."""
    kept: list[GaussianStart] = []
    for start in ranked:
        gap = 3 * math.sqrt(len(start.loc))
        away = all(
            torch.linalg.solve_triangular(k.scale_tril, (start.loc - k.loc).unsqueeze(-1), upper=False).norm() > gap
            for k in kept
        )
        if away:
            kept.append(start)
    return kept
