"""Gaussians for many dimensions, in O(dim) memory: Pathfinder's and Laplace's, diagonal plus low rank."""

from __future__ import annotations

__all__ = ["RANK", "low_rank_along", "low_rank_init", "low_rank_laplace"]

from collections import deque
from collections.abc import Container, Iterator

import torch
from torch import Tensor

from ..targets import Target, log_prob_and_score
from .gaussians import LowRankStart
from .lockstep import Path

RANK = 40  #: Columns of every basis: twice the pairs of steps that Pathfinder reads the curvature from.
_PROBES = 3 * RANK
_MAX_SWEEPS, _SETTLED = 30, 1e-4
_LEAST = 1e-3  # part of an entry on the diagonal that is not counted as of low rank


def low_rank_init(loc: Tensor, width: float) -> LowRankStart:
    """Independent normals of one width."""
    basis, _ = torch.linalg.qr(_padded(loc.new_zeros(len(loc), 0)))
    core = torch.eye(basis.size(-1), dtype=loc.dtype, device=loc.device)
    return LowRankStart(loc, torch.full_like(loc, width), basis, core, -torch.inf, "init")


def low_rank_along(path: Path, steps: Container[int], like: Tensor) -> Iterator[LowRankStart]:
    """Pathfinder's Gaussians at steps of a path: at the iterate, and one quasi-Newton step further on.

    Args:
        path: A run of L-BFGS.
        steps: Which iterates are wanted, counted from 0.
        like: A tensor of the dtype and device that is wanted.

    Reference:
        Zhang, Carpenter, Gelman, Vehtari. Pathfinder: parallel quasi-Newton variational inference.
        JMLR 2022 (algorithms 3 and 4).
        Gilbert, Lemarechal. Some numerical experiments with variable-storage quasi-Newton algorithms.
        Mathematical Programming 1989 (the diagonal).
    """
    dim = path.points[0].size if path.points else 0
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=min(RANK, dim) // 2)
    diagonal = None
    for step in range(1, len(path.points)):
        s = torch.as_tensor(path.points[step] - path.points[step - 1])
        y = torch.as_tensor(path.gradients[step] - path.gradients[step - 1])
        curvature = s @ y
        if curvature > 1e-12 * (y @ y) and curvature.isfinite():
            # the pair's length says nothing, so give it curvature one
            s, y = s / curvature.sqrt(), y / curvature.sqrt()
            pairs.append((s, y))
            diagonal = _updated(torch.ones_like(y) / (y @ y) if diagonal is None else diagonal, s, y)
        if diagonal is None or step not in steps:
            continue
        root = _inverse_hessian_root(diagonal, pairs)
        if root is None:
            continue
        scale, basis, core = root
        point, gradient = torch.as_tensor(path.points[step]), scale * torch.as_tensor(path.gradients[step])
        inside = basis.mT @ gradient
        newton = point - scale * (gradient + basis @ (core @ (core.mT @ inside) - inside))
        for loc in (point, newton):
            yield LowRankStart(loc.to(like), scale.to(like), basis.to(like), core.to(like), -torch.inf, "pathfinder")


def low_rank_laplace(target: Target, point: Tensor, units: Tensor, generator: torch.Generator) -> LowRankStart | None:
    """Gaussian at the mode near a point, one Newton step away; None where the curvature can't be had.

    The precision is taken to be diagonal plus low rank, as that of a hierarchical model is: units are independent
    given the few numbers that they share. It is then known, digit for digit, from its products with a few random
    vectors, and its D^2 entries are never asked for. Where it is not of that kind this is a poor Gaussian.

    Args:
        target: The density.
        point: Point near a mode, ``(dim,)``.
        units: About the width of the target in each coordinate, ``(dim,)``.
        generator: Source of randomness.

    Reference:
        Bekas, Kokiopoulou, Saad. An estimator for the diagonal of a matrix. Applied Numerical Mathematics 2007.
        Baston, Nakatsukasa. Stochastic diagonal estimation: probabilistic bounds and an improved algorithm. 2022
        (the low-rank part is found first, so that what is left has nearly nothing off its diagonal).
    """
    signs = torch.randint(2, (_PROBES, len(point)), dtype=point.dtype, device=point.device, generator=generator)
    probes = 2 * signs - 1
    try:
        products = -_hessian_times(target, point, units * probes) * units
        split = _diagonal_and_low_rank(probes.double(), products.double(), min(RANK, len(point)))
    except RuntimeError:  # an operation of the model has no second derivative, or a factorisation failed
        return None
    if split is None:
        return None
    scale, basis, excess = (tensor.to(point) for tensor in split)
    scale = scale * units
    score = scale * log_prob_and_score(target, point.unsqueeze(0))[1].squeeze(0)
    inside = score @ basis
    newton = point + scale * (score + basis @ (inside / (1 + excess) - inside))
    return LowRankStart(newton, scale, basis, torch.diag((1 + excess).rsqrt()), -torch.inf, "laplace")


def _hessian_times(target: Target, point: Tensor, vectors: Tensor) -> Tensor:
    """Hessian of the log density at a point times each row, ``(n, dim)``."""
    if len(vectors) > target.chunk_size:
        return torch.cat([_hessian_times(target, point, part) for part in vectors.split(target.chunk_size)])
    with torch.enable_grad():
        leaf = point.expand_as(vectors).clone().requires_grad_()
        (scores,) = torch.autograd.grad(target.log_prob(leaf).sum(), leaf, create_graph=True)
        (products,) = torch.autograd.grad((scores * vectors).sum(), leaf)
    return products


def _diagonal_and_low_rank(probes: Tensor, products: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Splits a symmetric matrix as ``diag(1/scale) (I + basis diag(excess) basis^T) diag(1/scale)``.

    Diagonal and low-rank part are estimated in turns, each from what the other leaves of the products.

    Args:
        probes: Rows of random signs, ``(n, dim)``.
        products: The matrix times each of them, ``(n, dim)``.
        rank: Columns of the basis.

    Returns:
        ``scale``, ``basis`` and ``excess``; None if the matrix is not positive definite.
    """
    if not bool(products.isfinite().all() and products.any()):
        return None
    least = 1e-12 * products.abs().max()
    size = (probes * products).mean(0).abs().clamp(min=least)
    diagonal = torch.zeros_like(size)  # what is large and of low rank is found first
    for _ in range(_MAX_SWEEPS):
        basis, excess = _low_rank_part(probes, products, diagonal, size.rsqrt(), rank)
        low_rank = ((probes * size.sqrt()) @ basis * excess) @ basis.mT * size.sqrt()
        before, diagonal = diagonal, (probes * (products - low_rank)).mean(0)
        size = (diagonal + size * (basis.square() @ excess)).abs().clamp(min=least)
        if bool(((diagonal - before).abs() < _SETTLED * size).all()):
            break
    # an entry in a row of its own may count as either part, and may have come out negative
    scale = torch.maximum(diagonal, _LEAST * size).rsqrt()
    basis, excess = _low_rank_part(probes, products, scale**-2, scale, rank)
    return (scale, basis, excess) if bool((excess > -1).all()) else None


def _low_rank_part(
    probes: Tensor, products: Tensor, diagonal: Tensor, scale: Tensor, rank: int
) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues of ``scale (matrix - diagonal) scale``."""
    rest, directions = (products - diagonal * probes) * scale, probes / scale
    basis = torch.linalg.svd(rest.mT, full_matrices=False)[0][:, :rank]
    inside = torch.linalg.lstsq(directions @ basis, rest @ basis).solution
    excess, turn = torch.linalg.eigh(0.5 * (inside + inside.mT))
    return basis @ turn, excess


def _updated(diagonal: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """The diagonal of the inverse Hessian after a pair of unit curvature (Gilbert and Lemarechal's BFGS update)."""
    a, c = y @ (diagonal * y), s @ (s / diagonal)
    return 1 / (a / diagonal + y.square() - (a / c) * (s / diagonal).square())


def _inverse_hessian_root(
    diagonal: Tensor, pairs: deque[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The L-BFGS matrix as ``root root^T``, by Byrd, Nocedal and Schnabel's compact form; None where digits fail."""
    s, y = (torch.stack(columns, -1) for columns in zip(*pairs, strict=True))
    n, scale = s.size(-1), diagonal.sqrt()
    upper = (s.mT @ y).triu()
    inverse = torch.linalg.solve_triangular(upper, torch.eye(n).to(upper), upper=True)
    columns = _padded(torch.cat([scale.unsqueeze(-1) * y, s / scale.unsqueeze(-1)], -1))
    gamma = columns.new_zeros(columns.size(-1), columns.size(-1))
    gamma[:n, n : 2 * n] = -inverse
    gamma[n : 2 * n, :n] = -inverse.mT
    middle = torch.diag(upper.diagonal()) + y.mT @ (diagonal.unsqueeze(-1) * y)
    gamma[n : 2 * n, n : 2 * n] = inverse.mT @ middle @ inverse
    basis, triangle = torch.linalg.qr(columns)
    core, info = torch.linalg.cholesky_ex(torch.eye(len(gamma)).to(gamma) + triangle @ gamma @ triangle.mT)
    good = int(info) == 0 and bool(core.isfinite().all() and (scale > 0).all() and scale.isfinite().all())
    return (scale, basis, core) if good else None


def _padded(columns: Tensor) -> Tensor:
    """Columns filled up to `RANK` with random ones, so that an orthonormal basis of that size can be made of them."""
    dim, found = columns.shape
    generator = torch.Generator().manual_seed(0)
    more = torch.randn(dim, min(RANK, dim) - found, dtype=columns.dtype, generator=generator).to(columns.device)
    return torch.cat([columns, more], -1)
