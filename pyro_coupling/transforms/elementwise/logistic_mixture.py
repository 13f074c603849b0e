"""The distribution function of a mixture of logistics, made a map of the line."""

from __future__ import annotations

__all__ = ["LogisticMixture"]

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ...registry import register
from ._bins import squash
from ._settings import require_count, require_positive
from ._solve import solve_increasing
from .affine import Affine
from .base import Elementwise
from .scales import Scale, TanhScale

_STEPS = 18


@register
@dataclass(frozen=True)
class LogisticMixture(Elementwise):
    """``y = shift + scale * logit F(x)``, F the distribution function of a mixture of logistics.

    Smooth everywhere and of linear tails. Everything is computed from log probabilities, so neither tail
    saturates. Means, log scales and mixing weights are bounded for every real parameter, because between
    components that are narrow and far apart the map is too flat to be inverted in float32: there its
    slope is about ``4 / s * exp(-max_mean / s)``, s = ``exp(-max_log_scale)``. Whatever the parameters, a
    round trip of the default map in float32 is off by no more than a few 1e-3.

    At the start all components are equal, and by themselves would remain so, since all would get the same
    gradient. The raw numbers of each therefore act with a factor of their own, between 1/2 and 3/2, so that the
    first step of training tells the components apart.

    The inverse is found numerically. Its bracket is exact: each component alone would put the root at
    ``mean + scale * (y - shift) / scale``, and the root of the mixture lies between the least and the
    largest of these. Its gradients are those of the implicit function theorem, first derivatives only.

    Args:
        num_components: Number of logistics.
        max_mean: Bound of the size of a component's mean.
        max_log_scale: Bound of the size of the logarithm of a component's scale.
        max_log_ratio: Bound of the raw mixing weights: a component has at most ``exp(2 * max_log_ratio)``
            times the weight of another.
        scale: How the last raw parameter becomes the scale of y, one of `transforms.elementwise.scales`.

    Raises:
        TypeError: If ``scale`` is no `Scale`.
        ValueError: If another setting is out of range.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel. Flow++: improving flow-based generative models with variational
        dequantization and architecture design. ICML 2019 (section 3.2).

    Example:
        >>> import torch
        >>> mixture = LogisticMixture(num_components=2)
        >>> x, params = torch.tensor([-1e6, 0.5]), torch.linspace(-1, 1, mixture.num_params)[:, None].expand(-1, 2)
        >>> y, log_slope = mixture.forward_and_log_det(x, params)
        >>> mixture.inverse_and_log_det(y, params)[0]
        tensor([-1.0000e+06,  5.0000e-01])
    """

    num_components: int = 4
    max_mean: float = 3.0
    max_log_scale: float = 1.0
    max_log_ratio: float = 2.0
    scale: Scale = field(default_factory=TanhScale)

    def __post_init__(self) -> None:
        require_count(self, "num_components", 1)
        require_positive(self, "max_mean", "max_log_scale", "max_log_ratio")
        if not isinstance(self.scale, Scale):
            raise TypeError(f"LogisticMixture: scale must be a Scale such as TanhScale(), got {self.scale!r}")

    @property
    def num_params(self) -> int:
        return 3 * self.num_components + 2

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        mixture, affine = self._split(params)
        z, slope = _logit_cdf(x, *self._components(mixture))
        y, log_scale = Affine(self.scale).forward_and_log_det(z, affine)
        return y, slope.log() + log_scale

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        mixture, affine = self._split(params)
        z, log_scale = Affine(self.scale).inverse_and_log_det(y, affine)
        log_weights, means, log_scales = self._components(mixture)
        alone = means + log_scales.exp() * z.unsqueeze(-2)
        start = (log_weights.exp() * alone).sum(-2)
        function = partial(_logit_cdf, log_weights=log_weights, means=means, log_scales=log_scales)
        x = solve_increasing(function, z, alone.amin(-2), alone.amax(-2), start, _STEPS)
        return x, log_scale - function(x)[1].log()

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        mixture, affine = params.split([3 * self.num_components, 2], -2)
        return mixture, affine

    def _components(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and log scales, each ``(*batch, num_components, features)``."""
        n = self.num_components
        raw_weights, raw_means, raw_log_scales = raw.split([n, n, n], -2)
        factor = 0.5 + (torch.arange(n, dtype=raw.dtype, device=raw.device).unsqueeze(-1) + 0.5) / n
        log_weights = torch.log_softmax(squash(raw_weights, self.max_log_ratio), -2)
        # in opposite order, so that scales do not go with means
        log_scales = squash(raw_log_scales * factor.flip(0), self.max_log_scale)
        return log_weights, squash(raw_means * factor, self.max_mean), log_scales


def _logit_cdf(x: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Log odds of the mixture's distribution function, and their derivative."""
    precisions = (-log_scales).exp()
    z = (x.unsqueeze(-2) - means) * precisions
    below, above = log_weights + F.logsigmoid(z), log_weights + F.logsigmoid(-z)
    value = below.logsumexp(-2) - above.logsumexp(-2)
    # f / F + f / (1 - F) as two weighted means: sums of positive terms, with no cancellation in the tails
    slopes = torch.softmax(below, -2) * torch.sigmoid(-z) + torch.softmax(above, -2) * torch.sigmoid(z)
    return value, (slopes * precisions).sum(-2)
