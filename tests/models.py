"""Small models with known answers, shared by the tests of guides, targets, training and inference."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_coupling import flows

Y = torch.tensor([1.0, 2.0, 4.0])
small_flow = partial(flows.real_nvp, num_layers=2, hidden_dims=(8,), outer_affine=False)


def normal_mean(y: Tensor = Y, sd: float = 10.0) -> None:
    """A mean with a conjugate prior; `normal_mean_evidence` is its answer."""
    mu = pyro.sample("mu", dist.Normal(0.0, sd))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def normal_mean_evidence(y: Tensor = Y, sd: float = 10.0) -> float:
    covariance = torch.eye(len(y)).double() + sd**2
    return dist.MultivariateNormal(torch.zeros(len(y)).double(), covariance).log_prob(y.double()).item()


def normal_mean_posterior(y: Tensor = Y, sd: float = 10.0) -> tuple[float, float]:
    """Mean and standard deviation of mu."""
    precision = len(y) + 1 / sd**2
    return y.sum().item() / precision, precision**-0.5


def location_scale(y: Tensor = Y) -> None:
    """A real and a positive latent."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def groups(y: Tensor = Y) -> None:
    """A latent of each datum, in a plate, around a common mean."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("group", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def two_normals(y: Tensor = Y) -> None:
    """A discrete latent of each datum."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(mu + 3.0 * z, 1.0), obs=y)


def improper(y: Tensor = Y) -> None:
    """The same posterior as `normal_mean` with a flat prior."""
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def subsampled(y: Tensor, size: int) -> None:
    """`normal_mean` on a random minibatch."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y), subsample_size=size) as index:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def monte_carlo_error(values: Tensor, sigmas: float = 5.0) -> float:
    """Largest deviation of the mean of independent draws that chance explains."""
    return sigmas * values.double().std().item() / math.sqrt(len(values))


def groups_evidence(y: Tensor = Y) -> float:
    covariance = 2.0 * torch.eye(len(y)).double() + 9.0
    return dist.MultivariateNormal(torch.zeros(len(y)).double(), covariance).log_prob(y.double()).item()


def groups_posterior(y: Tensor = Y) -> tuple[float, float]:
    """Mean and standard deviation of mu."""
    precision = 1 / 9 + len(y) / 2
    return y.sum().item() / 2 / precision, precision**-0.5
