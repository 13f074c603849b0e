"""Gradients of the reverse Kullback-Leibler divergence: total, sticking the landing, and path."""

from __future__ import annotations

__all__ = ["ESTIMATORS", "reverse_kl", "reverse_kl_backward"]

import math

import torch
from torch import Tensor

from ..targets import Target, log_prob_and_score
from ..transforms import Bijection
from .distribution import Ranks

_POWERS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.0)
_LEAST_ESS = 0.65
ESTIMATORS = ("path", "stl", "total")


def reverse_kl_backward(
    flow: Bijection,
    target: Target,
    z: Tensor,
    estimator: str = "path",
    covering: bool | Tensor = False,
    ranks: Ranks | None = None,
    balanced: bool = False,
) -> Tensor:
    """Adds the gradient of KL(flow || target), estimated from base noise z, to the parameters' ``.grad``.

    Args:
        flow: Base noise to sample.
        target: The density to be learned.
        z: Standard normal base noise, ``(n, dim)``.
        estimator: One of `ESTIMATORS`: ``"path"`` and ``"stl"`` (sticking the landing) vanish where flow and target
            agree, ``"total"`` differentiates ``log q(x) - log p(x)`` through everything.
        covering: Whether samples of large weight count more, which draws the flow over the target's tails; not for
            ``"total"``.
        ranks: Processes that each take their part of the samples; their gradients have to be added up.
        balanced: Whether a covering gradient minds how probable separate modes are; not for ``"total"``.

    Returns:
        Log weights ``log p(x) - log q(x)``, ``(n,)``, ``-inf`` for samples that were left out because
        the target or its gradient is not finite there.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_coupling import flows
        >>> from pyro_coupling.targets import PyroTarget
        >>> target = PyroTarget(lambda: pyro.sample("x", dist.Normal(torch.ones(2), 0.1).to_event(1)))
        >>> flow = flows.real_nvp(2, num_layers=2)
        >>> optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     log_weights = reverse_kl_backward(flow, target, torch.randn(64, 2))
        ...     optimizer.step()
        >>> log_weights.shape
        torch.Size([64])
    """
    log_weights, outputs, forces = reverse_kl(flow, target, z, estimator, covering, ranks, balanced)
    torch.autograd.backward(outputs, forces)
    return log_weights


def reverse_kl(
    flow: Bijection,
    target: Target,
    z: Tensor,
    estimator: str = "path",
    covering: bool | Tensor = False,
    ranks: Ranks | None = None,
    balanced: bool = False,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """What the gradient of KL(flow || target) comes from: outputs of the flow, and the force on each.

    With x the flow's sample and q its density:

    * ``"total"`` differentiates ``log q(x) - log p(x)`` through everything;
    * ``"stl"`` (sticking the landing) leaves out the dependence of log q on the parameters, whose
      expectation is zero; the score of q comes from a pass backwards through the flow;
    * ``"path"`` is the same gradient, its score gathered on the way forward.

    The last two vanish where q = p. They can be the noisier ones far from it (Dhaka et al. 2021).

    With ``covering`` each sample's part of a path gradient counts by a power of its importance weight. The
    full power makes it a path gradient of the forward divergence KL(target || flow) (Tucker et al. 2019,
    doubly-reparameterised wake phase), which minds the tails that the reverse one neglects and that spoil
    importance weights; the power is as large as the weights are even enough for.

    The score is the same whatever the probability of a mode, so that these gradients see between which modes weights
    differ only by the few samples that lie between them. ``balanced`` adds the forward divergence's gradient of the
    density at fixed samples, each with its covering weight less the mean one (Richter et al. 2020, there for the
    reverse divergence). It is noise where weights are uneven by chance, and vanishes as well where q = p.

    Args:
        flow: Base noise to sample.
        target: The density to be learned.
        z: Standard normal base noise, ``(n, dim)``.
        estimator: One of the above.
        covering: Whether to weight samples, not for ``"total"``.
        ranks: Processes that each take their part of the samples; their gradients have to be added up.
        balanced: Whether a covering gradient minds how probable separate modes are; not for ``"total"``.

    Returns:
        Log weights ``log p(x) - log q(x)``, ``(n,)``, ``-inf`` for samples that were left out because
        the target or its gradient is not finite there; outputs that depend on the parameters; forces of the
        same shapes. The gradient is the vector-Jacobian product of the outputs with the forces.

    Reference:
        Roeder, Wu, Duvenaud. Sticking the landing. NeurIPS 2017.
        Vaitl et al. Fast and unified path gradient estimators for normalizing flows. ICLR 2024.
        Tucker, Lawson, Gu, Maddison. Doubly reparameterized gradient estimators for Monte Carlo objectives.
        ICLR 2019.
        Richter, Boustati, Nuesken, Ruiz, Akyildiz. VarGrad: a low-variance gradient estimator for variational
        inference. NeurIPS 2020.
    """
    ranks = ranks or Ranks()
    n, z = len(z), ranks.part(z)
    if estimator == "path":
        x, log_det, score_q = flow.forward_and_score(z, -z)
    else:
        x, log_det = flow.forward_and_log_det(z)
    samples = x.detach()
    log_p, score_p = log_prob_and_score(target, samples)
    log_q = -0.5 * z.square().sum(-1) - 0.5 * z.size(-1) * math.log(2 * math.pi) - log_det.detach()
    good = log_p.isfinite() & log_q.isfinite() & samples.isfinite().all(-1)
    log_weights = torch.where(good, log_p - log_q, -torch.inf)
    log_weights = ranks.gather(log_weights, n)
    weights = ranks.part(_weights(log_weights, estimator != "total" and covering))
    if estimator == "total":
        return log_weights, [x, log_det], [-score_p * weights.unsqueeze(-1), -weights]
    if estimator == "stl":
        score_q = _score_backwards(flow, samples)
    force = torch.where(good.unsqueeze(-1), (score_q - score_p) * weights.unsqueeze(-1), 0.0)
    if not balanced:
        return log_weights, [x], [force]
    # the gradient of log q at a fixed sample is that of -log_det less score_q times what moves the sample
    excess = weights - ranks.part(_weights(log_weights, False))
    force = force + torch.where(good.unsqueeze(-1), score_q * excess.unsqueeze(-1), 0.0)
    return log_weights, [x, log_det], [force, excess]


def _weights(log_weights: Tensor, covering: bool | Tensor) -> Tensor:
    """Weights of the good samples that sum to one: equal, or covering ones."""
    good = log_weights.isfinite()
    equal = good.to(log_weights.dtype) / good.sum().clamp(min=1)
    if covering is False:
        return equal
    return torch.where(torch.as_tensor(covering, device=good.device), _covering_weights(log_weights), equal)


def _covering_weights(log_weights: Tensor) -> Tensor:
    """Importance weights to the largest power that leaves the effective sample size large, summing to one."""
    good = log_weights.isfinite()
    powers = torch.tensor(_POWERS, dtype=log_weights.dtype, device=log_weights.device)
    # masked after the product: a stand-in number for -inf would outweigh good samples of very low density
    tempered = torch.softmax(torch.where(good, powers.unsqueeze(-1) * log_weights, -torch.inf), -1)
    ess = 1 / (tempered.square().sum(-1) * good.sum())
    # the index stays a tensor: a step without a branch on numbers can be recorded
    first = (ess >= _LEAST_ESS).to(torch.uint8).argmax(0, keepdim=True)
    return tempered.index_select(0, first).squeeze(0)


def _score_backwards(flow: Bijection, samples: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = samples.detach().requires_grad_()
        z, log_det = flow.inverse_and_log_det(leaf)
        (score,) = torch.autograd.grad((log_det - 0.5 * z.square().sum(-1)).sum(), leaf)
    return score
