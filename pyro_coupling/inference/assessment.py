"""Judging a fit: whether its draws can be trusted, and a sentence that says what to do if not."""

from __future__ import annotations

__all__ = ["Assessment", "assess", "missed_mass"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..targets import Target
from ..training import Gaussian
from ..transforms import Bijection

GOOD_ESS, USABLE_ESS, USABLE_KHAT = 0.95, 0.5, 0.7


class Assessment(NamedTuple):
    """Whether a fit can be trusted, and why."""

    trusted: bool
    message: str


def assess(khat: float, ess: float, missed: float, num_modes: int, stopped_by: str) -> Assessment:
    """Puts the figures of a fit into words.

    Args:
        khat: Pareto shape of the weights.
        ess: Relative effective sample size.
        missed: Part of the posterior mass, as far as the starts know, that the flow does not cover.
        num_modes: Number of separate modes that the starts found.
        stopped_by: Why training ended, see `TrainingRecord`.
    """
    figures = f"relative ESS {ess:.2f}, k-hat {khat:.2f}"
    ended = {
        "interrupt": " Training was interrupted.",
        "max_seconds": " Training ended at max_seconds.",
        "max_steps": " Training ended at max_steps.",
    }.get(stopped_by, "")
    longer = "train longer (max_seconds, max_steps)" if ended else "give the flow more layers"
    remedies = (
        f"{longer}, reparameterise the model (for instance LocScaleReparam for hierarchical scales), "
        "or run NUTS through NeuTraReparam(vi.guide)"
    )
    if missed > 0.05:
        return Assessment(
            False,
            f"Not to be trusted: of {num_modes} separate modes found by the starts the flow misses some, with about "
            f"{missed:.0%} of the known posterior mass ({figures} speak only of the mass it covers). Fit a "
            f"better-identified model (order or constrain exchangeable parameters), or use tempered MCMC.{ended}",
        )
    if ess >= GOOD_ESS:
        # with weights as even as this the tail shape is fitted to noise
        return Assessment(True, f"Good: {figures}; the draws are nearly exact.{ended}")
    if ess >= USABLE_ESS and khat <= USABLE_KHAT:
        return Assessment(True, f"Good with importance resampling, the default of get_samples: {figures}.{ended}")
    if khat <= USABLE_KHAT and ess >= 0.05:
        return Assessment(
            False,
            f"Rough: {figures}; importance resampling still corrects means, at the cost of many draws. "
            f"To improve, {remedies}.{ended}",
        )
    return Assessment(False, f"Not to be trusted: {figures}. To improve, {remedies}.{ended}")


@torch.no_grad()
def missed_mass(
    flow: Bijection,
    target: Target,
    starts: list[Gaussian],
    x: Tensor,
    log_q: Tensor,
    log_p: Tensor,
    generator: torch.Generator,
    draws: int = 100,
) -> float:
    """Part of the posterior mass near the starts' Gaussians that a flow leaves out.

    The evidence from draws of the flow alone, which sees only what the flow covers, is held against the
    evidence from a mixture of the flow and the Gaussians of all starts (balance heuristic: each draw is
    weighted by the density of the whole mixture). A difference within the noise counts as none.

    Args:
        flow: The fitted flow.
        target: The density.
        starts: Gaussians at separate places.
        x: Draws of the flow, ``(n, dim)``.
        log_q: Their log density.
        log_p: Log density of the target at them.
        generator: Source of randomness.
        draws: Draws of each Gaussian.

    Reference:
        Veach, Guibas. Optimally combining sampling techniques for Monte Carlo rendering. 1995.
    """
    if len(starts) < 2:
        return 0.0
    n = len(x)
    extra = torch.cat([start.sample(draws, generator)[0] for start in starts])
    points = torch.cat([x, extra])
    z, log_det = flow.inverse_and_log_det(extra)
    log_q_extra = -0.5 * z.square().sum(-1) - 0.5 * z.size(-1) * math.log(2 * math.pi) + log_det
    log_q_extra = torch.where(log_q_extra.isnan(), -torch.inf, log_q_extra)
    total = n + draws * len(starts)
    parts = [torch.cat([log_q, log_q_extra]) + math.log(n / total)]
    parts += [start.log_prob(points) + math.log(draws / total) for start in starts]
    log_mixture = torch.logsumexp(torch.stack(parts), 0)
    log_w = torch.cat([log_p, target.log_prob(extra)]) - log_mixture
    weights = (log_w - log_w.max()).exp()
    flow_only = ((log_p - log_q) - log_w.max()).exp()
    both, alone = weights.mean(), flow_only.mean()
    noise = 4 * math.hypot((weights.std() / math.sqrt(total)).item(), (flow_only.std() / math.sqrt(n)).item())
    gap = (both - alone).item()
    return gap / both.item() if gap > noise else 0.0
