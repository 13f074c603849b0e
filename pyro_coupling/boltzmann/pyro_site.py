"""A generator in Pyro: its Boltzmann distribution as a site of a model, its flow as the guide of that site."""

from __future__ import annotations

__all__ = ["BoltzmannDistribution", "FlowGuide", "flow_distribution"]

import math
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from ..diagnostics import resample
from ..transforms import Bijection
from .target import BoltzmannTarget

if TYPE_CHECKING:
    from .generator import BoltzmannGenerator

_CANDIDATES = 100  # for each call of `sample`, beside four for each draw


class BoltzmannDistribution(dist.TorchDistribution):
    """The Boltzmann distribution of a generator over configurations, not normalised.

    ``log_prob`` is ``-energy / kT``, and the partition function is not known to it. That is all that inference needs
    as long as nothing the energy depends on is itself a latent: the posterior of a parameter of the energy would be
    multiplied by the partition function at that parameter, and needs its logarithm taken off by ``pyro.factor``.

    Draws are resampled by importance from the flow's, at least a hundred candidates and four for each draw. That is
    enough for a generator with a fair effective sample size; inference with a guide does not need them.

    Args:
        generator: The generator.

    Example:
        >>> from pyro_coupling.boltzmann import BoltzmannGenerator, energies
        >>> generator = BoltzmannGenerator(energies.DoubleWell(), kT=1.0, seed=0, progress=False)
        >>> distribution = BoltzmannDistribution(generator).expand([3])
        >>> x = distribution.sample()
        >>> x.shape, bool((distribution.log_prob(x) == -generator.energy(x)).all())
        (torch.Size([3, 2]), True)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, generator: BoltzmannGenerator, *, validate_args: bool | None = None) -> None:
        self.generator = generator
        super().__init__(torch.Size(), generator.energy.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        coordinates = self.generator.target.coordinates
        return constraints.real_vector if coordinates is None else coordinates.codomain

    def expand(self, batch_shape: Any, _instance: BoltzmannDistribution | None = None) -> BoltzmannDistribution:
        expanded = self._get_checked_instance(BoltzmannDistribution, _instance)
        expanded.generator = self.generator
        super(BoltzmannDistribution, expanded).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the reduced energy of configurations ``(*batch, *event_shape)``; ``-inf`` where it is NaN."""
        if self._validate_args:
            self._validate_sample(value)
        reduced = self.generator.energy(value) / self.generator.kT
        log_p = torch.where(reduced.isnan(), -torch.inf, -reduced)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        count = math.prod(shape[: len(shape) - len(self.event_shape)])
        flow = flow_distribution(self.generator.flow, self.generator.target)
        candidates = flow.sample(torch.Size([_CANDIDATES + 4 * count]))
        log_weights = -self.generator.energy(candidates) / self.generator.kT - flow.log_prob(candidates)
        chosen = resample(torch.where(log_weights.isfinite(), log_weights, -torch.inf), count)
        return candidates[chosen[torch.randperm(count, device=chosen.device)]].reshape(shape)


class FlowGuide(PyroModule):
    """A guide that draws the site of a `BoltzmannDistribution` from a generator's flow.

    The flow is the generator's own: what trains the guide, trains the generator. Train a ``copy.deepcopy`` of the
    generator where it should stay as it is.

    Args:
        generator: The generator.
        site: Name of the site, and of the module among Pyro's parameters.

    Example:
        >>> from pyro_coupling.boltzmann import BoltzmannGenerator, energies
        >>> generator = BoltzmannGenerator(energies.DoubleWell(), kT=1.0, seed=0, progress=False)
        >>> guide = FlowGuide(generator, "x")  # as by generator.guide("x")
        >>> guide()["x"].shape
        torch.Size([2])
    """

    def __init__(self, generator: BoltzmannGenerator, site: str) -> None:
        super().__init__(site)
        self.site, self.flow = site, generator.flow
        self._target = generator.target

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws the site, and returns it by its name; takes whatever arguments the model has."""
        return {self.site: pyro.sample(self.site, flow_distribution(self.flow, self._target))}


def flow_distribution(flow: Bijection, target: BoltzmannTarget) -> dist.TransformedDistribution:
    """A flow as a distribution over configurations, normalised.

    Its density is that of configurations, which differs from the flow's density of coordinates by the volume element:
    the difference from ``-energy / kT`` is the log weight of a draw.

    Args:
        flow: Base noise to coordinates.
        target: What tells the coordinates, the dtype and the device.
    """
    noise = torch.zeros(target.dim, dtype=target.dtype, device=target.device)
    maps = [flow] if target.coordinates is None else [flow, target.coordinates]
    return dist.TransformedDistribution(dist.Normal(noise, 1.0).to_event(1), maps)
