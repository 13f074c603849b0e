"""How far importance weights can be trusted: Pareto smoothing, effective sample size, evidence."""

from __future__ import annotations

__all__ = ["Evidence", "clip_largest", "log_evidence", "pareto_smooth", "relative_ess", "resample"]

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Evidence(NamedTuple):
    """An estimate of the log evidence, in nats.

    Attributes:
        value: The estimate.
        standard_error: Its standard error.
    """

    value: float
    standard_error: float


def relative_ess(log_weights: Tensor) -> float:
    """Effective sample size of importance weights as a part of their number, 0 to 1.

    Args:
        log_weights: Unnormalised log weights, ``(n,)``; ``-inf`` is a weight of zero.

    Reference:
        Kong. A note on importance sampling using standardized weights. 1992: ``(sum w)^2 / (n sum w^2)``.

    Example:
        >>> import torch
        >>> relative_ess(torch.zeros(100))
        1.0
    """
    log_weights = _checked(log_weights)
    if not bool(log_weights.isfinite().any()):
        return 0.0
    log_ess = 2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)
    return min(1.0, log_ess.exp().item() / len(log_weights))


def log_evidence(log_weights: Tensor) -> Evidence:
    """Logarithm of the mean weight, with its standard error by the delta method.

    Args:
        log_weights: Log weights ``log p - log q`` of draws from a normalised q, ``(n,)``.

    Example:
        >>> import torch
        >>> log_evidence(torch.full((100,), 2.0))
        Evidence(value=2.0, standard_error=0.0)
    """
    log_weights = _checked(log_weights)
    n = len(log_weights)
    if not bool(log_weights.isfinite().any()):
        return Evidence(-math.inf, math.inf)
    value = (torch.logsumexp(log_weights, 0) - math.log(n)).item()
    relative = (log_weights - value).exp()
    return Evidence(value, (relative.std() / math.sqrt(n)).item() if n > 1 else math.inf)


def pareto_smooth(log_weights: Tensor) -> tuple[Tensor, float]:
    """Pareto-smoothed importance weights and their shape k-hat.

    The largest weights are replaced by the expected order statistics of a generalised Pareto
    distribution fitted to them; none exceeds the largest raw weight.

    Args:
        log_weights: Unnormalised log weights, ``(n,)``.

    Returns:
        Smoothed log weights, normalised to sum to one, and k-hat: below 0.5 good, below 0.7 usable. It is
        infinite where fewer than five weights make a tail.

    Reference:
        Vehtari, Simpson, Gelman, Yao, Gabry. Pareto smoothed importance sampling. JMLR 2024.

    Example:
        >>> import torch
        >>> smoothed, khat = pareto_smooth(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
        >>> round(smoothed.exp().sum().item(), 4), khat < 0.7
        (1.0, True)
    """
    log_weights = _checked(log_weights)
    n = len(log_weights)
    if not bool(log_weights.isfinite().any()):
        return torch.full_like(log_weights, -math.log(n)), math.inf
    shifted = (log_weights - log_weights.max()).double()
    tail_size = math.ceil(min(0.2 * n, 3 * math.sqrt(n)))
    khat = math.inf
    if tail_size >= 5 and n > tail_size:
        ordered, order = shifted.sort()
        # a floor for the cut keeps the logarithms of the tail in range
        cut = max(ordered[-tail_size - 1].item(), math.log(torch.finfo(torch.float64).tiny))
        in_tail = ordered > cut
        size = int(in_tail.sum())
        if size >= 5:
            exceedances = ordered[in_tail].exp() - math.exp(cut)
            khat, sigma = _fit_generalized_pareto(exceedances)
            if math.isfinite(khat):
                rank = (torch.arange(size, dtype=torch.float64, device=shifted.device) + 0.5) / size
                quantiles = math.exp(cut) + _generalized_pareto_quantile(rank, khat, sigma)
                shifted = shifted.index_put((order[-size:],), quantiles.log().clamp(max=0.0))
    smoothed = shifted - torch.logsumexp(shifted, 0)
    return smoothed.to(log_weights.dtype), khat


def clip_largest(log_weights: Tensor, part: float) -> Tensor:
    """Cuts the largest weights to the least of them.

    Args:
        log_weights: Log weights, ``(n,)``; ``-inf`` is a weight of zero.
        part: Part of the weights above zero that are cut; at least one is.

    Returns:
        Log weights, ``(n,)``.

    Example:
        >>> import torch
        >>> clip_largest(torch.tensor([0.0, 5.0, 9.0, 1.0]), 0.5)
        tensor([0., 5., 5., 1.])
    """
    log_weights = _checked(log_weights)
    finite = log_weights[log_weights.isfinite()]
    return log_weights.clamp(max=finite.topk(math.ceil(part * len(finite))).values[-1]) if len(finite) else log_weights


def resample(log_weights: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws in proportion to weights, by systematic resampling: one uniform number, the least noise.

    Args:
        log_weights: Log weights, ``(samples,)``; ``-inf`` is a weight of zero.
        n: Number of draws.
        generator: Source of randomness, on the device of the weights.

    Returns:
        Indices, ``(n,)``, in rising order.

    Raises:
        ValueError: If all weights are zero.

    Reference:
        Douc, Cappe, Moulines. Comparison of resampling schemes for particle filtering. ISPA 2005.

    Example:
        >>> import torch
        >>> resample(torch.tensor([0.25, 0.0, 0.75]).log(), 8).bincount()
        tensor([2, 0, 6])
    """
    log_weights = _checked(log_weights)
    if not bool(log_weights.isfinite().any()):
        raise ValueError("resample: log_weights has no finite entry, there is nothing to draw from")
    edges = (log_weights - log_weights.max()).double().exp().cumsum(0)
    offset = torch.rand((), dtype=edges.dtype, device=edges.device, generator=generator)
    comb = (torch.arange(n, dtype=edges.dtype, device=edges.device) + offset) / n
    return torch.searchsorted(edges, comb * edges[-1]).clamp(max=len(edges) - 1)


def _fit_generalized_pareto(x: Tensor) -> tuple[float, float]:
    """Shape and scale for sorted exceedances: the profile posterior mean of Zhang and Stephens (2009).

    The shape is drawn towards 0.5 as by ten prior observations (Vehtari et al. 2024, appendix C).
    """
    n = len(x)
    grid = 30 + int(math.sqrt(n))
    j = torch.arange(1, grid + 1, dtype=x.dtype, device=x.device)
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - torch.sqrt(grid / (j - 0.5))) / (3 * quartile)
    k = torch.log1p(-theta[:, None] * x).mean(1)
    profile = n * (torch.log(-theta / k) - k - 1)
    weights = torch.softmax(profile, 0)
    theta_mean = (theta * weights).sum()
    shape = torch.log1p(-theta_mean * x).mean().item()
    sigma = -shape / theta_mean.item()
    return (n * shape + 10 * 0.5) / (n + 10), sigma


def _generalized_pareto_quantile(rank: Tensor, shape: float, scale: float) -> Tensor:
    if abs(shape) < 1e-12:
        return -scale * torch.log1p(-rank)
    return scale * torch.expm1(-shape * torch.log1p(-rank)) / shape


def _checked(log_weights: Tensor) -> Tensor:
    if log_weights.dim() != 1 or len(log_weights) == 0:
        raise ValueError(f"log_weights must be one-dimensional and not empty, got shape {tuple(log_weights.shape)}")
    if bool((log_weights.isnan() | (log_weights == math.inf)).any()):
        raise ValueError("log_weights must not hold NaN or +inf; a draw of density zero has -inf")
    return log_weights.detach()
