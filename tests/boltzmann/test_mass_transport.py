"""Constrained mass transport keeps to its bounds, and comes to the target."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from pyro_coupling import flows
from pyro_coupling.boltzmann import BoltzmannGenerator
from pyro_coupling.boltzmann.energies import ManyWell
from pyro_coupling.boltzmann.mass_transport import MassTransport, transport_step
from pyro_coupling.boltzmann.phases import log_density
from pyro_coupling.boltzmann.target import BoltzmannTarget


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi))


def samples(n=50_000, scale=1.0):
    return scale * torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("loc", "scale", "divergence", "loss", "binding"),
    [
        (2.0, 1.0, 0.1, 10.0, (True, False)),
        (0.0, 0.2, 10.0, 0.3, (False, True)),
        (3.0, 0.5, 0.1, 0.05, (True, True)),
        (0.3, 0.9, 10.0, 10.0, (False, False)),
    ],
)
def test_bounds_that_bind_hold_with_equality_and_others_have_no_multiplier(loc, scale, divergence, loss, binding):
    x = samples()
    step = transport_step(normal(x, loc, scale), normal(x, 0.0, 1.0), divergence, loss)
    for multiplier, value, bound, binds in zip(
        (step.trust, step.entropy), (step.divergence, step.entropy_loss), (divergence, loss), binding, strict=True
    ):
        assert (multiplier > 0) == binds
        assert value == pytest.approx(bound, abs=1e-6) if binds else value < bound
    assert step.reached == (not any(binding))
    # what it says of itself is what its weights are
    weights = step.log_weights.exp()
    assert weights.sum().item() == pytest.approx(1.0)
    assert (weights * (weights * len(x)).log()).sum().item() == pytest.approx(step.divergence)


def test_the_step_is_the_geometric_mixture_of_two_normals():
    # equal widths: (q^a p)^(1 / (1 + a)) is a normal about b = 2 / (1 + a), at a divergence of b^2 / 2
    x = samples()
    step = transport_step(normal(x, 2.0, 1.0), normal(x, 0.0, 1.0), 0.1, 10.0)
    mean = (step.log_weights.exp() * x).sum().item()
    # errors of 50 000 draws of unit variance, on a mean of sqrt(0.2)
    assert mean == pytest.approx(math.sqrt(0.2), abs=4 / math.sqrt(50_000))
    assert 2 / (1 + step.trust) == pytest.approx(math.sqrt(0.2), abs=0.02)


def test_the_entropy_bound_alone_is_a_higher_temperature():
    # p^(1 / (1 + b)) of a normal of width 0.2 has an entropy of log(width) above a constant: width exp(-0.3)
    x = samples()
    step = transport_step(normal(x, 0.0, 0.2), normal(x, 0.0, 1.0), 10.0, 0.3)
    assert 0.2 * math.sqrt(1 + step.entropy) == pytest.approx(math.exp(-0.3), rel=0.02)


def test_no_other_weights_are_closer_to_the_target():
    generator = torch.Generator().manual_seed(3)
    log_p, log_q = (torch.randn(12, generator=generator, dtype=torch.float64) for _ in range(2))
    log_p = 2 * log_q + log_p
    step = transport_step(log_p, log_q, 0.08, 0.08)
    assert step.trust > 0 and step.entropy > 0
    p, q, n = log_p.numpy(), log_q.numpy(), 12

    def excess(w):  # over the target; densities are q n w at the samples of q
        return float((w * (q + np.log(n * w) - p)).sum())

    bounds = [
        {"type": "eq", "fun": lambda w: w.sum() - 1},
        {"type": "ineq", "fun": lambda w: 0.08 - (w * np.log(n * w)).sum()},
        {"type": "ineq", "fun": lambda w: 0.08 - ((w - 1 / n) * q).sum() - (w * np.log(n * w)).sum()},
    ]
    best = minimize(
        excess, np.full(n, 1 / n), bounds=[(1e-9, 1)] * n, constraints=bounds, options={"ftol": 1e-12, "maxiter": 500}
    )
    assert best.success
    assert np.allclose(best.x, step.log_weights.exp().numpy(), atol=1e-4)


def test_energies_that_are_enormous_or_no_numbers():
    x = samples(4000)
    log_p, log_q = normal(x, 1.0, 0.5), normal(x, 0.0, 1.0)
    log_p[::2], log_p[1] = -1e12, math.nan
    step = transport_step(log_p, log_q)
    assert step.log_weights[1] == -math.inf
    # samples of -1e12 lie next to others: none may be dropped at once within 0.3 nats, so nearly a half stays
    assert step.divergence == pytest.approx(0.3, abs=1e-6)
    with pytest.raises(ValueError, match="at which both log densities are finite, got none"):
        transport_step(torch.full((5,), math.nan), torch.zeros(5))
    with pytest.raises(ValueError, match="max_divergence must be a positive"):
        transport_step(log_p, log_q, 0.0)


def test_a_rung_is_filled_with_draws_of_its_distribution():
    flow = flows.real_nvp(2, 2, (8,)).double()  # the identity: a standard normal
    target = BoltzmannTarget(ManyWell(2), 1.0, None, torch.float64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    transport = MassTransport(flow, target, 4, 5000, generator, max_divergence=0.2)
    transport.renew()
    log_q = log_density(flow, transport.samples).detach()
    (rung,) = transport.rungs
    assert rung.kT > 1.0 and 0.3 < rung.ess < 1.0 and transport.num_energies == 5000
    # a bound of 0.2 nats from the flow: the mean of log r - log q over the samples, with log r up to a constant
    power = 1 / rung.kT
    log_r = power * transport.log_p + (rung.kT - 1) * power * log_q  # no entropy is lost: the other multiplier is 0
    fresh = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    at_fresh = power * target.log_prob(fresh) + (rung.kT - 1) * power * log_density(flow, fresh).detach()
    log_z = (at_fresh - log_density(flow, fresh).detach()).logsumexp(0) - math.log(200_000)
    assert (log_r - log_z - log_q).mean().item() == pytest.approx(0.2, abs=0.05)


def test_the_transport_comes_to_the_target():
    energy = ManyWell(2)
    settings = {"num_particles": 256, "learning_rate": 5e-3, "buffer_size": 4000, "num_rungs": 16, "seed": 0}
    torch.manual_seed(0)
    flow = flows.neural_spline(2, 2, (16, 16), linear=False)
    generator = BoltzmannGenerator(energy, kT=1.0, flow=flow, method="cmt", progress=False, **settings)
    generator.train(max_steps=400)
    assert len(generator.rungs) == 16 and generator.rungs[0].kT > 1.5 and generator.rungs[-1].kT == 1.0
    assert generator.diagnostics()["num_energies"] == 16 * 4000
    found = generator.diagnostics()
    assert found["ess"] > 0.6 and abs(found["log_z"] - energy.log_z()) < 4 * found["log_z_se"]
    # the evidence is between its bounds
    assert found["elbo"] < energy.log_z() < generator.eubo(energy.sample(20_000))


def test_a_state_is_a_continuation():
    def phase():
        torch.manual_seed(0)
        target = BoltzmannTarget(ManyWell(2), 1.0, None, torch.float64, torch.device("cpu"))
        flow = flows.real_nvp(2, 1, (4,)).double()
        return MassTransport(flow, target, 4, 200, torch.Generator().manual_seed(0))

    noise = torch.zeros(20, 2, dtype=torch.float64)
    first, other = phase(), phase()
    for done in (0.0, 0.3):
        first(noise, done)
    other.restore(first.state())
    other.generator.set_state(first.generator.get_state())
    assert other.rungs == first.rungs and len(first.rungs) == 2
    assert torch.equal(first(noise, 0.4), other(noise, 0.4)) and len(other.rungs) == 2


def test_no_energy_that_is_not_a_number_ends_the_transport():
    class Nowhere(ManyWell):
        def energy(self, x):
            return super().energy(x) * math.nan

    settings = {"num_particles": 16, "buffer_size": 100, "num_rungs": 2, "seed": 0, "progress": False}
    flow = flows.real_nvp(2, 1, (4,))
    generator = BoltzmannGenerator(Nowhere(2), kT=1.0, flow=flow, method="cmt", **settings).train(max_steps=6)
    assert generator.rungs == [] and all(p.isfinite().all() for p in generator.flow.parameters())
