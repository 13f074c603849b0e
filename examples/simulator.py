"""Inference without a likelihood: an epidemic simulator, and a conditional flow that learns its posterior.

A stochastic SIR epidemic among 1000 people, by binomial steps of a day (chain-binomial model). Its likelihood sums over
all hidden courses, but it is easily simulated: a flow q(theta | x) is trained on pairs of parameters from the prior
and what they lead to (neural posterior estimation). New simulations then tell whether its posteriors are calibrated.

    python examples/simulator.py [--simulations 20000] [--quick] [--output simulator.png]

Reference:
    Papamakarios, Murray. Fast epsilon-free inference of simulation models with Bayesian conditional density estimation.
    NeurIPS 2016.
    Greenberg, Nonnenmacher, Macke. Automatic posterior transformation for likelihood-free inference. ICML 2019.
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_coupling import flows
from pyro_coupling.plots import plot_calibration
from pyro_coupling.transforms import Bijection

PEOPLE, DAYS, INFECTED = 1000, 60, 5
NAMES = ("infections a day", "recoveries a day")
LOCATION, SCALE = torch.tensor([0.4, 0.15]).log(), torch.tensor([0.4, 0.3])  # of the log-normal prior
DRAWS = 199


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
    return torch.cat([weeks.log1p(), cases.sum(-1, keepdim=True).log1p()], -1) / 3 - 1


def train(theta: Tensor, x: Tensor, steps: int) -> Bijection:
    """Maximum likelihood of the parameters given what they led to."""
    flow = flows.neural_spline(2, 4, (64, 64), context_dim=x.size(-1)).inv
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(theta), (256,))
        optimizer.zero_grad()
        loss = -flows.distribution(flow, context=x[batch]).log_prob(theta[batch]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return flow.eval()


@torch.no_grad()
def calibrate(flow: Bijection, num: int) -> tuple[Tensor, Tensor]:
    """Of new simulations: ranks of the truth among draws, ``(num, 2)``, and the part of draws that are denser."""
    theta = torch.randn(num, 2)
    posterior = flows.distribution(flow, context=summaries(simulate(theta)))
    draws = posterior.sample((DRAWS,))
    denser = posterior.log_prob(draws) > posterior.log_prob(theta)
    return (draws < theta).sum(0), denser.double().mean(0)


def draw(flow: Bijection, ranks: Tensor, path: str) -> None:
    """Ranks of both parameters, and the posterior after one epidemic with its true rates."""
    figure = Figure((11.0, 3.5), layout="constrained")
    table = figure.subplots(1, 3)
    for axes, name, column in zip(table, NAMES, ranks.T, strict=False):
        plot_calibration(column, DRAWS, axes=axes).set_title(name)
    truth = torch.tensor([[0.5, -0.5]])
    with torch.no_grad():
        drawn = flows.distribution(flow, context=summaries(simulate(truth))).sample((2000,)).squeeze(1)
    for values, style, label in (
        (torch.randn(2000, 2), "C7.", "prior"),
        (drawn, "C0.", "posterior"),
        (truth, "C1*", "truth"),
    ):
        table[2].loglog(
            *(LOCATION + SCALE * values).exp().T, style, ms=12 if "*" in style else 2, alpha=0.7, label=label
        )
    table[2].set(xlabel=NAMES[0], ylabel=NAMES[1], title="one epidemic")
    table[2].legend(frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=20_000)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="simulator.png")
    options = parser.parse_args()
    torch.manual_seed(0)
    theta = torch.randn(500 if options.quick else options.simulations, 2)
    flow = train(theta, summaries(simulate(theta)), 10 if options.quick else 2000)
    num = 100 if options.quick else 2000
    ranks, denser = calibrate(flow, num)
    draw(flow, ranks, options.output)
    for level in (0.5, 0.9):
        covered = (denser < level).double().mean().item()
        error = (level * (1 - level) / num) ** 0.5
        print(f"{level:.0%} regions hold the truth in {covered:.1%} of {num} epidemics (if exact, +- {error:.1%})")
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
