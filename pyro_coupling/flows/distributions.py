"""A flow as a distribution: its base, its temperature."""

from __future__ import annotations

__all__ = ["base_distribution", "distribution"]

import math
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import constraints

from ..transforms import Bijection


def base_distribution(
    flow: Bijection,
    *,
    temperature: float = 1.0,
    circular: Sequence[bool] | Tensor | None = None,
    bound: float = math.pi,
) -> dist.TorchDistribution:
    """The base noise that belongs to a flow, in the dtype and on the device of its parameters.

    Args:
        flow: The flow.
        temperature: Standard deviation of the noise; below 1 samples are likelier and less varied.
        circular: Which entries of an event are angles, uniform on ``[-bound, bound)``; none if not given.
        bound: Half of the circle's length.

    Raises:
        ValueError: If the temperature is not positive, or ``circular`` has the wrong length.

    Example:
        >>> from pyro_coupling import flows
        >>> base_distribution(flows.real_nvp(3)).event_shape
        torch.Size([3])
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    like = next(flow.parameters(), torch.empty(0))
    shape = flow.event_shape
    zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
    if circular is None:
        return dist.Normal(zeros, temperature).to_event(len(shape))
    angles = torch.as_tensor(circular, dtype=torch.bool, device=like.device)
    if angles.shape != shape:
        raise ValueError(f"circular must be of the event's shape {tuple(shape)}, got {tuple(angles.shape)}")
    return _NormalAndUniform(zeros, temperature, angles, bound)


def distribution(
    flow: Bijection, *, context: Tensor | None = None, temperature: float = 1.0
) -> dist.TransformedDistribution:
    """Standard normal noise sent through a flow.

    Args:
        flow: The flow, base to sample.
        context: Context of a conditional flow, ``(*batch, *context_shape)``.
        temperature: Standard deviation of the noise.

    Example:
        >>> import torch
        >>> from pyro_coupling import flows
        >>> d = distribution(flows.glow((1, 4, 4), 1, 1, 4).eval(), temperature=0.7)
        >>> d.sample((5,)).shape, d.log_prob(torch.zeros(5, 1, 4, 4)).shape
        (torch.Size([5, 1, 4, 4]), torch.Size([5]))
    """
    base = base_distribution(flow, temperature=temperature)
    if context is None:
        return dist.TransformedDistribution(base, [flow])
    batch = context.shape[: context.dim() - len(flow.context_shape)]
    return dist.TransformedDistribution(base.expand(batch), [flow.condition(context)])


class _NormalAndUniform(dist.TorchDistribution):
    """Some entries of an event normal, the others uniform on a circle."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, zeros: Tensor, scale: float, angles: Tensor, bound: float, batch: Sequence[int] = ()) -> None:
        self._settings = (zeros, scale, angles, bound)
        self._angles = angles
        expanded = zeros.expand(*batch, *zeros.shape)
        self._normal = dist.Normal(expanded, scale)
        self._uniform = dist.Uniform(expanded - bound, expanded + bound, validate_args=False)
        super().__init__(torch.Size(batch), zeros.shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> _NormalAndUniform:
        return _NormalAndUniform(*self._settings, batch=tuple(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        return torch.where(self._angles, self._uniform.rsample(shape), self._normal.rsample(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        # the base of an angle that rounding has put on the other end of its circle is as likely
        uniform = -(2 * self._settings[3] * torch.ones_like(value)).log()
        return sum_rightmost(torch.where(self._angles, uniform, self._normal.log_prob(value)), len(self.event_shape))
