"""The densities of `examples/planar.py` are what the pages about them build on: normalised, and sampled as they say."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, special

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    """A script of the examples as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


planar = load("planar")
ALL = {**planar.DENSITIES, "square": planar.Square}
each_density = pytest.mark.parametrize("density", [make() for make in ALL.values()], ids=list(ALL))


@each_density
def test_density_integrates_to_one(density):
    # other cells than those of entropy(), and as there the edges of the uniform densities are edges of cells
    points, area = planar.grid(360)
    assert area * density.log_prob(points).exp().sum().item() == pytest.approx(1, abs=1e-7)


@each_density
def test_samples_have_the_density(density):
    # the cells of a coarse grid are filled in proportion to their integrals: chi-squared, 5 standard deviations
    num_samples, cells, fine = 200_000, 24, 16
    x = density.sample(num_samples, torch.Generator().manual_seed(1))
    edges = np.linspace(-planar.WINDOW, planar.WINDOW, cells + 1)
    found = np.histogram2d(x[:, 1].numpy(), x[:, 0].numpy(), bins=(edges, edges))[0]
    points, area = planar.grid(cells * fine)
    expected = num_samples * area * density.log_prob(points).exp().reshape(cells, fine, cells, fine).sum((1, 3)).numpy()
    assert found.sum() == num_samples
    assert found[expected < 1e-6].sum() == 0
    frequent = expected > 5
    chi_squared = ((found - expected) ** 2 / expected.clip(1e-300))[frequent].sum()
    assert chi_squared < frequent.sum() + 5 * math.sqrt(2 * frequent.sum())


@each_density
def test_entropy_is_minus_the_mean_log_density_of_samples(density):
    log_prob = density.log_prob(density.sample(100_000, torch.Generator().manual_seed(2)))
    error = log_prob.std().item() / math.sqrt(len(log_prob))
    assert density.entropy() == pytest.approx(-log_prob.mean().item(), abs=5 * error + 1e-12)


@each_density
def test_entropy_equals_a_finer_quadrature(density):
    points, area = planar.grid(420)
    log_prob = density.log_prob(points)
    log_prob = log_prob[log_prob > -math.inf]
    assert density.entropy() == pytest.approx(-area * (log_prob.exp() * log_prob).sum().item(), abs=1e-6)


def test_rings_equal_their_closed_form():
    # a blurred circle has a Rice density along the radius
    radius = np.linspace(0.05, 4, 50)

    def closed_form(r):
        bessel = special.ive(0, r * np.array([1, 2, 3]) / 0.15**2)
        return np.mean(bessel * np.exp(-((r - np.array([1, 2, 3])) ** 2) / (2 * 0.15**2))) / (2 * math.pi * 0.15**2)

    x = torch.from_numpy(np.stack([0.6 * radius, 0.8 * radius], -1))
    exact = np.array([closed_form(r) for r in radius])
    np.testing.assert_allclose(planar.rings().log_prob(x).exp().numpy(), exact, rtol=1e-10)
    entropy = integrate.quad(
        lambda r: -2 * math.pi * r * special.xlogy(closed_form(r), closed_form(r)), 0, 6, limit=500, epsabs=1e-10
    )[0]
    assert planar.rings().entropy() == pytest.approx(entropy, abs=1e-6)


def test_eight_gaussians_have_nearly_the_entropy_of_eight_that_do_not_overlap():
    # overlap can only lower it, and neighbours are six standard deviations apart
    apart = math.log(8) + math.log(2 * math.pi * math.e * 0.35**2)
    assert apart - 0.02 < planar.EightGaussians().entropy() < apart


def test_samples_are_repeated_by_the_generator_seed():
    for make in ALL.values():
        first, second = (make().sample(5, torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, second)
