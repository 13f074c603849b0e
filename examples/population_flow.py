"""A population seen through noise: deconvolution of cell nuclei's measurements, the population a coupling flow.

    python examples/population_flow.py [--steps 1000] [--quick] [--output population_flow_output]

Of 569 tumours, the breast-cancer data that come with scikit-learn give the mean smoothness and the mean symmetry of the
nuclei in an image, each with its standard error, half to two thirds as large as the spread of the tumours. A
hierarchical model gives every tumour its true values, drawn from a population that is learned: a Gaussian, or a flow.
Both are judged by the log predictive density of held-out measurements, given their errors; so is a flow fitted to the
measurements as they are.
"""

import argparse
import math
from pathlib import Path

import matplotlib
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from sklearn.datasets import load_breast_cancer

from pyro_coupling import flows, transforms

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = ["smoothness", "symmetry"]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of both features, standardised, and their standard errors to first order, ``(569, 2)`` both."""
    table = load_breast_cancer()
    column = dict(zip(table.feature_names.tolist(), torch.tensor(table.data.T, dtype=torch.float32), strict=True))
    value = torch.stack([column[f"mean {name}"] for name in NAMES], 1)
    error = torch.stack([column[f"{name} error"] for name in NAMES], 1)
    x, spread = value.log(), value.log().std(0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return ((x - x.mean(0)) / spread)[order], (error / value / spread)[order]


class Deconvolution(torch.nn.Module):
    """Model and guide of measurements ``x`` with standard errors ``s``, ``(n, 2)`` both."""

    def __init__(self, population: torch.nn.Module) -> None:
        super().__init__()
        self.population = population
        self.posterior = flows.real_nvp(2, 4, (32,), context_dim=4)

    def model(self, x: torch.Tensor, s: torch.Tensor) -> None:
        pyro.module("deconvolution", self)
        with pyro.plate("tumours", len(x)):
            truth = pyro.sample("truth", flows.distribution(self.population))
            pyro.sample("x", dist.Normal(truth, s).to_event(1), obs=x)

    def guide(self, x: torch.Tensor, s: torch.Tensor) -> None:
        """The posterior under a standard normal population, bent by a flow that reads measurement and error."""
        shrink = 1 / (1 + s**2)
        base = dist.Normal(shrink * x, shrink.sqrt() * s).to_event(1)
        context = torch.cat([x, s.log()], 1)
        with pyro.plate("tumours", len(x)):
            pyro.sample("truth", dist.TransformedDistribution(base, [self.posterior.condition(context)]))


def fit(population: torch.nn.Module, x: torch.Tensor, s: torch.Tensor, steps: int) -> Deconvolution:
    pyro.clear_param_store()
    hierarchy = Deconvolution(population)
    schedule = pyro.optim.CosineAnnealingLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 3e-3, "weight_decay": 1e-4}, "T_max": steps}
    )
    svi = SVI(hierarchy.model, hierarchy.guide, schedule, Trace_ELBO())
    for _ in range(steps):
        svi.step(x, s)
        schedule.step()
    return hierarchy


@torch.no_grad()
def log_predictive(hierarchy: Deconvolution, x: torch.Tensor, s: torch.Tensor, particles: int) -> torch.Tensor:
    """``log p(x | s)`` of each measurement by importance sampling from the guide, ``(n,)``."""
    plate = pyro.plate("particles", particles, dim=-2)
    guide = poutine.trace(plate(hierarchy.guide)).get_trace(x, s)
    model = poutine.trace(plate(poutine.replay(hierarchy.model, guide))).get_trace(x, s)
    for trace in (model, guide):
        trace.compute_log_prob()
    weights = sum(model.nodes[name]["log_prob"] for name in ("truth", "x")) - guide.nodes["truth"]["log_prob"]
    return weights.logsumexp(0) - math.log(particles)


def fit_plain(flow: torch.nn.Module, x: torch.Tensor, steps: int) -> dist.TorchDistribution:
    """Maximum likelihood of the measurements, their errors left aside."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (-flows.distribution(flow).log_prob(x).mean()).backward()
        optimizer.step()
        schedule.step()
    return flows.distribution(flow)


def draw(x: torch.Tensor, hierarchy: Deconvolution, path: Path) -> None:
    with torch.no_grad():
        truth = flows.distribution(hierarchy.population).sample((len(x),))
    figure, panels = plt.subplots(1, 2, figsize=(7, 3.4), sharex=True, sharey=True, layout="constrained")
    for axes, points, title in zip(panels, (x, truth), ("measured", "draws from the flow population"), strict=True):
        axes.scatter(*points.T, s=8, alpha=0.5, lw=0)
        axes.set(title=title, xlabel=f"log {NAMES[0]}, standardised", xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
    panels[0].set_ylabel(f"log {NAMES[1]}, standardised")
    figure.savefig(path, dpi=110)
    print(f"picture: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="steps of training for each population")
    parser.add_argument("--particles", type=int, default=1000, help="importance samples for each held-out tumour")
    parser.add_argument("--quick", action="store_true", help="a short run that shows nothing but that it runs")
    parser.add_argument("--output", type=Path, default=Path("population_flow_output"), help="folder of the picture")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.particles = 30, 50
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    options.output.mkdir(parents=True, exist_ok=True)
    (x, new_x), (s, new_s) = (part.split([400, 169]) for part in data())

    gaussian = transforms.Chain([transforms.LULinear(2), transforms.DiagonalAffine(torch.zeros(2), torch.ones(2))])
    by_gaussian = fit(gaussian, x, s, options.steps)
    by_flow = fit(flows.real_nvp(2, 4, (32,)), x, s, options.steps)
    plain = fit_plain(flows.real_nvp(2, 4, (32,)), x, options.steps)
    with torch.no_grad():
        found = {
            "Gaussian population": log_predictive(by_gaussian, new_x, new_s, options.particles),
            "flow population": log_predictive(by_flow, new_x, new_s, options.particles),
            "flow of the measurements": plain.log_prob(new_x),
        }
    print("| held-out, nats a tumour | log predictive | behind the flow population |\n|---|---|---|")
    for name, scores in found.items():
        behind = found["flow population"] - scores
        error = behind.std() / len(behind) ** 0.5
        print(f"| {name} | {scores.mean():.3f} | {behind.mean():.3f} ± {error:.3f} |")
    draw(x, by_flow, options.output / "population_flow.png")


if __name__ == "__main__":
    main()
