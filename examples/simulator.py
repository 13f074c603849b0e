"""Inference without a likelihood: an epidemic simulator, and a conditional flow that learns its posterior.

A stochastic SIR epidemic among 1000 people, by binomial steps of a day (chain-binomial model). Its likelihood sums over
all hidden courses, but it is easily simulated: a flow q(theta | x) is trained on pairs of parameters from the prior
and what they lead to (neural posterior estimation). New simulations then tell whether its posteriors are calibrated.

    python examples/simulator.py [--simulations 50000] [--quick] [--output simulator.png]

Reference:
    Papamakarios, Murray. Fast epsilon-free inference of simulation models with Bayesian conditional density estimation.
    NeurIPS 2016.
    Greenberg, Nonnenmacher, Macke. Automatic posterior transformation for likelihood-free inference. ICML 2019.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_coupling import flows
from pyro_coupling.plots import plot_calibration

PEOPLE, DAYS, INFECTED = 1000, 60, 5
NAMES = ("infections a day", "recoveries a day")
LOCATION, SCALE = torch.tensor([0.4, 0.15]).log(), torch.tensor([0.4, 0.3])  # of the log-normal prior
DRAWS = 199

Posterior = Callable[[Tensor], TorchDistribution]  # of the cases of each day


def simulate(theta: Tensor) -> Tensor:
    """New cases of each day, ``(n, DAYS)``, for standardised log rates ``(n, 2)``."""
    infection, recovery = (LOCATION + SCALE * theta).exp().unbind(-1)
    susceptible = torch.full_like(infection, PEOPLE - INFECTED)
    infected = torch.full_like(infection, INFECTED)
    cases = []
    for _ in range(DAYS):
        new = torch.binomial(susceptible, -torch.expm1(-infection * infected / PEOPLE))
        recovered = torch.binomial(infected, -torch.expm1(-recovery))
        susceptible, infected = susceptible - new, infected + new - recovered
        cases.append(new)
    return torch.stack(cases, -1)


def summaries(cases: Tensor) -> Tensor:
    """Logarithms of the cases of each five days, and of all, ``(n, DAYS // 5 + 1)``."""
    weeks = cases.unflatten(-1, (-1, 5)).sum(-1)
    return torch.cat([weeks, cases.sum(-1, keepdim=True)], -1).log1p()


def train(theta: Tensor, cases: Tensor, steps: int) -> Posterior:
    """The flow under which parameters are likeliest given what they led to."""
    x = summaries(cases)
    mean, scale = x.mean(0), x.std(0)
    flow = flows.real_nvp(2, 6, (64, 64), context_dim=x.size(-1))

    def posterior(cases: Tensor) -> TorchDistribution:
        return flows.distribution(flow, context=(summaries(cases) - mean) / scale)

    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(theta), (256,))
        optimizer.zero_grad()
        loss = -posterior(cases[batch]).log_prob(theta[batch]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return posterior


@torch.no_grad()
def calibrate(posterior: Posterior, num: int) -> tuple[Tensor, Tensor]:
    """Of new simulations: ranks of the truth among draws, ``(num, 2)``, and the part of draws that are denser."""
    theta = torch.randn(num, 2)
    found = posterior(simulate(theta))
    draws = found.sample((DRAWS,))
    denser = found.log_prob(draws) > found.log_prob(theta)
    return (draws < theta).sum(0), denser.double().mean(0)


def draw(posterior: Posterior, ranks: Tensor, path: str) -> None:
    """Ranks of both parameters, and the posterior after one epidemic with its true rates."""
    figure = Figure((11.0, 3.6), layout="constrained")
    table = figure.subplots(1, 3)
    for axes, name, column in zip(table, NAMES, ranks.T, strict=False):
        plot_calibration(column, DRAWS, axes=axes).set_title(name)
        axes.legend(loc="lower center", frameon=False)
    truth = torch.tensor([[0.5, -0.5]])
    with torch.no_grad():
        drawn = posterior(simulate(truth)).sample((1000,)).squeeze(1)
    groups = {"prior": (torch.randn(1000, 2), "C7."), "posterior": (drawn, "C0."), "truth": (truth, "C1*")}
    for label, (values, style) in groups.items():
        rates = (LOCATION + SCALE * values).exp()
        table[2].plot(*rates.T, style, ms=10 if label == "truth" else 3, mec="none", label=label)
    table[2].set(xlabel=NAMES[0], ylabel=NAMES[1], title="one epidemic")
    figure.legend(*table[2].get_legend_handles_labels(), loc="outside right center", frameon=False, markerscale=1.5)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=50_000)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="simulator.png")
    options = parser.parse_args()
    torch.manual_seed(0)
    theta = torch.randn(500 if options.quick else options.simulations, 2)
    posterior = train(theta, simulate(theta), 10 if options.quick else 2000)
    num = 100 if options.quick else 2000
    ranks, denser = calibrate(posterior, num)
    draw(posterior, ranks, options.output)
    for level in (0.5, 0.9):
        covered = (denser < level).double().mean().item()
        error = (level * (1 - level) / num) ** 0.5
        print(f"{level:.0%} regions hold the truth in {covered:.1%} of {num} epidemics (if exact, +- {error:.1%})")
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
