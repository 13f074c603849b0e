"""Dequantization, bits per dimension, and back to whole numbers."""

import math

import pytest
import torch

from pyro_coupling import flows
from pyro_coupling.images import UniformDequantization, VariationalDequantization, bits_per_dimension, quantize

SHAPE = (1, 2, 4)


def variational(noise=0.0):
    torch.manual_seed(0)
    flow = flows.real_nvp_image(SHAPE, 2, hidden_channels=4, context_dim=SHAPE).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return VariationalDequantization(flow, 17)


DEQUANTIZATIONS = {"uniform": lambda: UniformDequantization(17), "variational": lambda: variational(0.1)}
every = pytest.mark.parametrize("make", DEQUANTIZATIONS.values(), ids=DEQUANTIZATIONS)


@every
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_quantizing_undoes_dequantizing(make, batch):
    image = torch.randint(17, (*batch, *SHAPE)).double()
    x, log_q = make()(image)
    assert x.shape == image.shape and log_q.shape == batch
    assert torch.equal(quantize(x, 17), image.long())


@every
def test_noise_is_repeatable_under_a_generator(make):
    dequantization, image = make(), torch.zeros(3, *SHAPE).double()
    first, again = (dequantization(image, torch.Generator().manual_seed(1))[0] for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, dequantization(image)[0])


def test_log_density_of_learned_noise_is_that_of_the_jacobian():
    dequantization, image = variational(0.1), torch.randint(17, SHAPE).double()
    x, log_q = dequantization(image)

    def noise(u):
        return dequantization.flow.inverse_and_log_det(torch.logit(u), 2 * image / 16 - 1)[0]

    u = 17 * x.detach() - image
    jacobian = torch.autograd.functional.jacobian(noise, u).reshape(8, 8)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise(u)).sum() + torch.linalg.slogdet(jacobian)[1]
    assert log_q.item() == pytest.approx(expected.item(), rel=1e-8)


def test_learned_noise_depends_on_the_image():
    dequantization = variational(0.1)
    generator = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    dark, light = (dequantization(torch.full(SHAPE, value).double(), generator())[0] for value in (0.0, 16.0))
    assert not torch.allclose(dark * 17, light * 17 - 16, atol=1e-3)


def test_variational_noise_learns_a_better_bound_than_uniform_noise():
    """A density of width far below a grey level rewards noise that gathers there."""
    torch.manual_seed(0)
    dequantization = variational()

    def log_p(x):  # mass near the middle of the first grey level
        return torch.distributions.Normal(0.5 / 17, 0.1 / 17).log_prob(x).flatten(-3).sum(-1)

    image = torch.zeros(64, *SHAPE).double()
    uniform = log_p(UniformDequantization(17)(image)[0]).mean()
    optimizer = torch.optim.Adam(dequantization.parameters(), 2e-2)
    for _ in range(100):
        x, log_q = dequantization(image)
        loss = (log_q - 8 * math.log(1 / 17) - log_p(x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert -loss.item() > uniform.item() + 8 * math.log(1 / 17) + 5


def test_bits_per_dimension_of_a_known_density():
    # density 2 per dimension on half of the cube: one bit less than a uniform guess
    assert bits_per_dimension(torch.tensor(8 * math.log(2)), SHAPE, 16).item() == pytest.approx(3.0)


def test_dtype_follows_a_real_image_and_the_default_for_integers():
    assert UniformDequantization(4)(torch.zeros(SHAPE, dtype=torch.uint8))[0].dtype == torch.get_default_dtype()
    assert UniformDequantization(4)(torch.zeros(SHAPE).double())[0].dtype == torch.float64


MISTAKES = {
    "levels": (lambda: UniformDequantization(1), "num_levels"),
    "too bright": (lambda: UniformDequantization(4)(torch.full(SHAPE, 4)), "0 to 3"),
    "not whole": (lambda: UniformDequantization(4)(torch.full(SHAPE, 0.5)), "whole numbers"),
    "nan": (lambda: UniformDequantization(4)(torch.full(SHAPE, math.nan)), "whole numbers"),
    "no image": (lambda: UniformDequantization(4)(torch.zeros(4)), "channels, height, width"),
    "no context": (lambda: VariationalDequantization(flows.real_nvp_image(SHAPE, 2, 4)), r"context shape \(\)"),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()
