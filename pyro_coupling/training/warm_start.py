"""Warm starts: a Gaussian where the posterior is, by multi-path Pathfinder and by Laplace's method."""

from __future__ import annotations

__all__ = ["METHODS", "warm_start"]

import itertools
import math
import time
from collections.abc import Callable, Container, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..targets import Target, log_prob_and_score
from .gaussians import LARGEST_DENSE, Gaussian, GaussianStart, LowRankStart
from .lockstep import Path, minimize_in_lockstep
from .low_rank import low_rank_along, low_rank_init, low_rank_laplace

METHODS = ("pathfinder", "laplace", "init")
_DRAWS = 10


class _Effort(NamedTuple):
    """How closely the paths are looked at."""

    spread: int  # Gaussians spread over a path
    last: int  # and at its end
    final_draws: int  # from each of the best


_THOROUGH, _FRUGAL = _Effort(40, 6, 300), _Effort(10, 3, 100)


def warm_start(
    target: Target,
    initial: Tensor,
    method: str = "pathfinder",
    *,
    num_starts: int = 8,
    generator: torch.Generator | None = None,
    max_evaluations: int = 2000,
    max_seconds: float = math.inf,
) -> list[Gaussian]:
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

    Raises:
        ValueError: If there is no such method.

    Reference:
        Zhang, Carpenter, Gelman, Vehtari. Pathfinder: parallel quasi-Newton variational inference.
        JMLR 2022. Here with a line search with Wolfe conditions (SciPy's L-BFGS-B), and up to 500 dimensions
        with the inverse Hessian of the whole path in dense form.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_coupling.targets import PyroTarget
        >>> target = PyroTarget(lambda: pyro.sample("x", dist.Normal(torch.tensor([5.0, -5.0]), 0.1).to_event(1)))
        >>> best = warm_start(target, torch.zeros(2))[0]
        >>> best.loc.round(decimals=2), best.scale_tril.diagonal().round(decimals=2)
        (tensor([ 5., -5.]), tensor([0.1000, 0.1000]))
    """
    if method not in METHODS:
        raise ValueError(f"warm_start must be one of {METHODS}, got {method!r}")
    generator = generator or torch.Generator(device=initial.device)
    began = time.monotonic()

    def out_of_time() -> bool:
        return time.monotonic() - began > max_seconds

    dim = target.dim
    fallback = _around(initial)
    if method == "init":
        return [fallback]
    half = torch.rand(num_starts // 2, dim, dtype=initial.dtype, device=initial.device, generator=generator)
    away = 4 * half - 2
    # in mirror pairs, so that of two modes on either side of the centre neither is left out by chance
    starts = torch.cat([initial.unsqueeze(0), initial + away, initial - away])[:num_starts]
    paths = minimize_in_lockstep(_as_numpy(target), starts.double().cpu().numpy(), max_evaluations, out_of_time)
    ends = [torch.as_tensor(path.points[-1]).to(initial) if path.points else initial for path in paths]
    distinct = _distinct(target, ends)

    dense, effort = (True, _THOROUGH) if dim <= LARGEST_DENSE else (False, _FRUGAL)
    candidates: list[list[Gaussian]] = [[] for _ in paths]
    if method == "pathfinder":
        # where a draw is dear, a second path to the same place is not looked at
        for k in range(len(paths)) if dense else distinct:
            if dense or not (out_of_time() and any(candidates)):
                candidates[k] += _best(target, _along(paths[k], initial, effort), _DRAWS, generator, keep=2)
    for k in distinct:
        if not (out_of_time() and any(candidates)):
            laplace = _laplace(target, ends[k]) if dense else _low_rank_laplace(target, paths[k], ends[k], generator)
            if laplace is not None:
                candidates[k].append(laplace)
    best = [_best(target, found, effort.final_draws, generator, keep=1) for found in candidates]
    ranked = sorted([b[0] for b in best if b and b[0].elbo > -math.inf], key=lambda s: -s.elbo)
    return _apart(ranked) or [fallback]


def _as_numpy(target: Target) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def value_and_gradient(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_p, score = log_prob_and_score(target, torch.as_tensor(x).to(dtype=target.dtype, device=target.device))
        return -log_p.double().cpu().numpy(), -score.double().cpu().numpy()

    return value_and_gradient


def _around(point: Tensor, width: float = 0.1) -> Gaussian:
    if len(point) > LARGEST_DENSE:
        return low_rank_init(point, width)
    return GaussianStart(point, torch.diag(torch.full_like(point, width)), -math.inf, "init")


def _along(path: Path, like: Tensor, effort: _Effort) -> Iterator[Gaussian]:
    """Gaussians along a path, few enough of them to be scored."""
    last = len(path.points) - 1
    if last < 1:
        return iter(())
    spread = np.linspace(1, last, min(last, effort.spread)).round().astype(int)
    wanted = set(spread.tolist()) | set(range(max(1, last + 1 - effort.last), last + 1))
    return (_dense_along if len(like) <= LARGEST_DENSE else low_rank_along)(path, wanted, like)


def _dense_along(path: Path, steps: Container[int], like: Tensor) -> Iterator[GaussianStart]:
    """Gaussians at steps of a path: at the iterate, and one quasi-Newton step further on."""
    for step, covariance in _inverse_hessians(path):
        if step not in steps:
            continue
        root, info = torch.linalg.cholesky_ex(torch.as_tensor(covariance))
        if int(info) != 0 or not bool(root.isfinite().all()):
            continue
        point = path.points[step]
        for loc in (point, point - covariance @ path.gradients[step]):
            yield GaussianStart(torch.as_tensor(loc).to(like), root.to(like), -math.inf, "pathfinder")


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


def _best(
    target: Target, found: Iterable[Gaussian], draws: int, generator: torch.Generator, keep: int
) -> list[Gaussian]:
    """The best of some Gaussians with their ELBO, best first; few of them live at a time."""
    kept: list[Gaussian] = []
    remaining = iter(found)
    while chunk := list(itertools.islice(remaining, max(1, 512 // draws))):
        drawn = [gaussian.sample(draws, generator) for gaussian in chunk]
        with torch.no_grad():
            log_p = target.log_prob(torch.cat([x for x, _ in drawn])).reshape(len(chunk), draws)
        log_ratio = log_p - torch.stack([log_q for _, log_q in drawn])
        for gaussian, row in zip(chunk, log_ratio, strict=True):
            finite = row[row.isfinite()]
            # a Gaussian that often leaves the model's domain is no start; a stray draw may
            elbo = finite.mean().item() if len(finite) >= 0.9 * draws else -math.inf
            kept.append(gaussian.with_elbo(elbo))
        kept = sorted(kept, key=lambda s: -s.elbo)[:keep]
    return kept


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


def _low_rank_laplace(target: Target, path: Path, end: Tensor, generator: torch.Generator) -> LowRankStart | None:
    """Gaussian at the mode near the end of a path, in the units that the path suggests."""
    last = next(low_rank_along(path, {len(path.points) - 1}, end), None)
    return low_rank_laplace(target, end, torch.ones_like(end) if last is None else last.scale, generator)


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


def _apart(ranked: list[Gaussian]) -> list[Gaussian]:
    """Drops a Gaussian that lies within another, better one: the same mode."""
    kept: list[Gaussian] = []
    for start in ranked:
        gap = 3 * math.sqrt(len(start.loc))
        if all(k.whiten(start.loc.unsqueeze(0)).norm() > gap for k in kept):
            kept.append(start)
    return kept
