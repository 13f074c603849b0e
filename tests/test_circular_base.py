"""The base noise of flows with angles: uniform on their circles, normal elsewhere."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_coupling import flows
from pyro_coupling.transforms import affine_coupling

ANGLES = [True, False, True]


def base(temperature=1.0, bound=math.pi):
    flow = flows.circular_spline(3, 2, (8,), circular=ANGLES)
    return flows.base_distribution(flow, temperature=temperature, circular=ANGLES, bound=bound)


def test_draws_of_angles_are_uniform_and_of_numbers_normal():
    x = base(temperature=0.5, bound=2.0).sample((5000,)).double().numpy()
    # seeds are fixed: p-values of true distributions lie below 1e-3 once in a thousand
    for entry, expected in enumerate([stats.uniform(-2, 4), stats.norm(scale=0.5), stats.uniform(-2, 4)]):
        assert stats.kstest(x[:, entry], expected.cdf).pvalue > 1e-3


def test_the_density_is_the_product_of_its_parts():
    x = torch.tensor([3.0, 0.7, -3.0])
    expected = -2 * math.log(2 * math.pi) + dist.Normal(0.0, 0.5).log_prob(x[1])
    torch.testing.assert_close(base(temperature=0.5).log_prob(x), expected)


def test_an_expanded_base_draws_each_of_its_batch_anew():
    expanded = base().expand([4])
    x = expanded.sample((2,))
    assert expanded.batch_shape == (4,) and x.shape == (2, 4, 3)
    assert len(x.reshape(8, 3).unique(dim=0)) == 8
    torch.testing.assert_close(expanded.log_prob(x), base().log_prob(x))


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_the_density_of_an_event_is_one_number_whatever_its_shape(shape):
    flow = affine_coupling(shape, dim=-len(shape))
    noise = flows.base_distribution(flow, circular=torch.ones(shape, dtype=torch.bool))
    log_p = noise.log_prob(noise.sample((5,)))
    torch.testing.assert_close(log_p, torch.full((5,), -math.prod(shape) * math.log(2 * math.pi)))


def test_gradients_pass_through_draws():
    flow = flows.circular_spline(3, 2, (8,), circular=ANGLES)
    x = dist.TransformedDistribution(base(), [flow]).rsample((10,))
    x.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
