"""When a run that is not good ends: once neither its bound nor its effective sample size improves."""

import pytest
import torch
from densities import standard_normal

from pyro_coupling import flows
from pyro_coupling.training import Trainer, trainer

WINDOW = 20
SPREAD = torch.randn(20, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def short_windows(monkeypatch):
    monkeypatch.setattr(trainer, "_WINDOW", WINDOW)


class Scripted(Trainer):
    """Training that leaves the flow as it is, with log weights that are made up for each window."""

    def __init__(self, log_weights, **settings):
        super().__init__(flows.nice(1, 1, ()), standard_normal(1), num_particles=20, **settings)
        self.log_weights = log_weights

    def gradients(self, z, seconds):
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return self.log_weights(self.record.num_steps // WINDOW)


def test_a_fit_that_stands_still_ends_by_itself():
    record = Scripted(lambda window: SPREAD, max_steps=20_000).run()
    # judged over 20 windows, then as many steps of decay
    assert record.stopped_by == "converged" and record.num_steps == 2 * 20 * WINDOW


@pytest.mark.parametrize(
    "log_weights",
    [lambda window: SPREAD + 0.01 * window, lambda window: SPREAD / (1 + 0.05 * window) ** 0.5],
    ids=["bound", "effective-sample-size"],
)
def test_a_fit_that_improves_goes_on(log_weights):
    record = Scripted(log_weights, max_steps=2 * 20 * WINDOW + 1).run()
    assert record.stopped_by == "max_steps"
