"""Value at risk: how much a portfolio may lose tomorrow, by a flow that has seen the recent past.

The market is a simulation whose exact forecast is known: four assets with volatilities that cluster and that losses
raise (GJR-GARCH), correlations that move (DCC) and Student-t shocks. A conditional flow learns from 16 years of
daily returns, four more say when to stop, and the ten that follow are forecast a day ahead. It models what an
exponentially weighted covariance leaves unexplained; its context are weighted moments of the past at several rates, its
base is a Student t with learned degrees of freedom.

    python examples/returns.py [--seed 0] [--quick] [--output returns.png]

Reference:
    Glosten, Jagannathan, Runkle. On the relation between the expected value and the volatility of the nominal excess
    return on stocks. Journal of Finance 1993.
    Engle. Dynamic conditional correlation. Journal of Business & Economic Statistics 2002.
    Kupiec. Techniques for verifying the accuracy of risk measurement models. Journal of Derivatives 1995.
    J.P. Morgan, Reuters. RiskMetrics: technical document. 1996.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass

import numpy as np
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from scipy import optimize, special, stats
from torch import Tensor, nn

from pyro_coupling import flows

ASSETS, YEAR, WARM_UP = 4, 252, 500
DEGREES = 5.0  # of freedom of the market's shocks
FAST, SLOW = 0.94, 0.97  # rates of RiskMetrics for forecasts of a day and of a month
RATES = (0.8, 0.94, 0.98)
LEVELS = [0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2]


def market(days: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Returns of each day in percent, ``(days, 4)``, and their exact covariance given the past, ``(days, 4, 4)``."""
    usual = np.array([0.8, 1.0, 1.3, 1.6]) ** 2
    mean = 0.4 + 0.6 * np.eye(ASSETS)  # of the correlations
    variance, quasi = usual, mean
    normal = random.standard_normal((days, ASSETS))
    shocks = normal * np.sqrt((DEGREES - 2) / random.chisquare(DEGREES, (days, 1)))  # of variance one
    returns, covariances = [], []
    for shock in shocks:
        scale = np.sqrt(variance / np.diag(quasi))
        covariances.append(scale[:, None] * quasi * scale)
        returns.append(np.linalg.cholesky(covariances[-1]) @ shock)
        residual = returns[-1] / np.sqrt(variance)
        arch = 0.03 + 0.1 * (returns[-1] < 0)
        variance = 0.02 * usual + arch * returns[-1] ** 2 + 0.9 * variance
        quasi = 0.02 * mean + 0.03 * np.outer(residual, residual) + 0.95 * quasi
    return torch.tensor(np.stack(returns)), torch.tensor(np.stack(covariances))


def smooth(values: Tensor, rate: float) -> Tensor:
    """Exponentially weighted mean of what came before each day."""
    means = [values[:WARM_UP].mean(0)]
    for value in values[:-1]:
        means.append(rate * means[-1] + (1 - rate) * value)
    return torch.stack(means)


def products(returns: Tensor) -> Tensor:
    """Of each day's returns with one another, ``(days, 4, 4)``."""
    return returns[:, :, None] * returns[:, None, :]


def correlations(covariance: Tensor) -> Tensor:
    return covariance / products(covariance.diagonal(dim1=1, dim2=2).sqrt())


def start(returns: Tensor) -> Tensor:
    """Covariances of a fast rate in volatilities and a slow one in correlations, ``(days, 4, 4)``."""
    return correlations(smooth(products(returns), SLOW)) * products(smooth(returns**2, FAST).sqrt())


def summaries(returns: Tensor) -> Tensor:
    """Variances of the past and those of its losses alone, at several rates, and correlations: ``(days, features)``."""
    found = []
    for rate in RATES:
        found += [smooth(returns**2, rate).log(), smooth(returns.clamp(max=0) ** 2, rate).clamp(min=1e-3).log()]
    row, column = torch.triu_indices(ASSETS, ASSETS, 1)
    return torch.cat([*found, correlations(smooth(products(returns), RATES[-1]))[:, row, column]], 1)


@dataclass
class Elliptical:
    """Forecasts by a covariance of each day, ``(days, 4, 4)``, with Student-t tails or Gaussian ones."""

    covariance: Tensor
    degrees: float | None = None

    def scores(self, returns: Tensor) -> Tensor:
        """Log density of each day's returns, ``(days,)``, in nats."""
        root, zero = torch.linalg.cholesky(self.covariance), returns.new_zeros(ASSETS)
        if self.degrees is None:
            return dist.MultivariateNormal(zero, scale_tril=root).log_prob(returns)
        shrunk = root * ((self.degrees - 2) / self.degrees) ** 0.5
        return dist.MultivariateStudentT(returns.new_tensor(self.degrees), zero, shrunk).log_prob(returns)

    def quantiles(self) -> np.ndarray:
        """Of the portfolio's returns, ``(levels, days)``."""
        unit = stats.norm.ppf(LEVELS)
        if self.degrees is not None:
            unit = stats.t.ppf(LEVELS, self.degrees) * ((self.degrees - 2) / self.degrees) ** 0.5
        return unit[:, None] * self.covariance.mean((1, 2)).sqrt().numpy()


def with_tails(returns: Tensor, covariance: Tensor) -> tuple[float, float]:
    """Factor of the covariance and degrees of freedom under which returns are likeliest."""

    def loss(x: np.ndarray) -> float:
        return -Elliptical(covariance * float(np.exp(x[0])), 2 + float(np.exp(x[1]))).scores(returns).mean().item()

    factor, excess = np.exp(optimize.minimize(loss, [0.0, 1.0], method="Nelder-Mead").x)
    return float(factor), 2 + float(excess)


class FlowForecast(nn.Module):
    """Tomorrow's returns, by a flow of what a covariance leaves unexplained."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.flow = flows.real_nvp(ASSETS, 4, (32, 32), context_dim=features)
        self.excess = nn.Parameter(torch.tensor(1.0))  # log of the base's degrees of freedom beyond two

    def forward(self, context: Tensor) -> dist.TorchDistribution:
        base = dist.MultivariateStudentT(2 + self.excess.exp(), torch.zeros(ASSETS), torch.eye(ASSETS))
        return dist.TransformedDistribution(base.expand(context.shape[:-1]), [self.flow.condition(context)])


def residuals(returns: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Returns without scale and correlation, and Cholesky factors that give both back."""
    root = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(root, returns[:, :, None], upper=False)[:, :, 0], root


def train(forecast: FlowForecast, context: Tensor, events: Tensor, days: int, epochs: int) -> None:
    """Maximum likelihood on the first days; the weights under which the later ones were likeliest are kept."""
    optimizer = torch.optim.AdamW(forecast.parameters(), lr=1e-3, weight_decay=0.1)
    best, weights = -torch.inf, forecast.state_dict()
    for _ in range(epochs):
        for batch in torch.randperm(days).split(128):
            optimizer.zero_grad()
            (-forecast(context[batch]).log_prob(events[batch]).mean()).backward()
            torch.nn.utils.clip_grad_norm_(forecast.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            score = forecast(context[days:]).log_prob(events[days:]).mean().item()
        if score > best:
            best, weights = score, copy.deepcopy(forecast.state_dict())
    forecast.load_state_dict(weights)


@torch.no_grad()
def draw_portfolio(forecast: FlowForecast, context: Tensor, root: Tensor, draws: int) -> np.ndarray:
    """Draws of the portfolio's return on each day, ``(draws, days)``."""
    found = []
    for some, roots in zip(context.split(100), root.split(100), strict=True):
        events = forecast(some).sample((draws,)).to(roots)
        found.append((roots @ events[..., None]).mean((-2, -1)))
    return torch.cat(found, 1).numpy()


def kupiec(hits: int, days: int, level: float) -> float:
    """p-value of Kupiec's test that losses pass the value at risk on as many days as they should."""

    def log_likelihood(rate: float) -> float:
        return float(special.xlogy(hits, rate) + special.xlog1py(days - hits, -rate))

    return float(stats.chi2.sf(2 * (log_likelihood(hits / days) - log_likelihood(level)), 1))


def report(scores: dict[str, Tensor], quantiles: dict[str, np.ndarray], portfolio: np.ndarray) -> None:
    """For each forecast: log score behind the exact one, days beyond the value at risk, by how much that is off."""
    print("| forecast | log score behind | beyond 5 % | p | beyond 1 % | p | 1 % off by |\n" + "|---" * 7 + "|")
    days = len(portfolio)
    for name, score in scores.items():
        behind = scores["exact"] - score
        cells = [f"{behind.mean():.3f} ± {behind.std() / days**0.5:.3f}"]
        for level in (0.05, 0.01):
            hits = int((portfolio < quantiles[name][LEVELS.index(level)]).sum())
            error = (level * (1 - level) / days) ** 0.5
            cells += [f"{hits / days:.2%} ± {error:.2%}", f"{kupiec(hits, days, level):.2g}"]
        ratio = quantiles[name][LEVELS.index(0.01)] / quantiles["exact"][LEVELS.index(0.01)]
        print(f"| {name} | " + " | ".join([*cells, f"{np.mean((ratio - 1) ** 2) ** 0.5:.0%}"]) + " |")


def draw(quantiles: dict[str, np.ndarray], portfolio: np.ndarray, path: str) -> None:
    """A year around the greatest risk with its value at risk of 1 %, and how often losses pass each level."""
    figure = Figure((11.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
    exact = quantiles["exact"][LEVELS.index(0.01)]
    middle = int(exact.argmin().clip(YEAR // 2, len(exact) - YEAR // 2))
    year = slice(middle - YEAR // 2, middle + YEAR // 2)
    left.plot(portfolio[year], ".", color="C7", ms=4, label="return of the portfolio")
    levels = np.array(LEVELS)
    error = 1.96 * np.sqrt((1 - levels) / levels / len(portfolio))
    right.fill_between(levels, 1 - error, 1 + error, color="C7", alpha=0.25, lw=0, label="95 %, if exact")
    for (name, found), style in zip(quantiles.items(), ("k-", "C2-", "C1-", "C0-"), strict=True):
        passed = (portfolio < found).mean(1)
        right.semilogx(levels, passed / levels, style, lw=1.5, label=name)
        if name != "two rates, Student t":
            left.plot(found[LEVELS.index(0.01)][year], style, lw=1.3, label=name)
    left.set(xlabel="day", ylabel="percent", title="value at risk of 1 %, year of the greatest risk")
    right.set(xlabel="level", ylabel="days beyond it / expected", title="coverage")
    right.set_xticks(LEVELS[::2], [f"{level:.1%}" for level in LEVELS[::2]], minor=False)
    right.set_xticks([], minor=True)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the market and of the training")
    parser.add_argument("--quick", action="store_true", help="few years, draws and epochs, to see that it runs")
    parser.add_argument("--output", default="returns.png")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    years, epochs, draws = ((2, 1, 1), 2, 199) if options.quick else ((16, 4, 10), 12, 3999)
    learned, stop = years[0] * YEAR, (years[0] + years[1]) * YEAR

    returns, exact = market(WARM_UP + sum(years) * YEAR, np.random.default_rng(options.seed))
    series = (returns, exact, smooth(products(returns), FAST), start(returns), summaries(returns))
    returns, exact, weighted, covariance, context = (x[WARM_UP:] for x in series)
    context = ((context - context[:learned].mean(0)) / context[:learned].std(0)).float()
    events, root = residuals(returns, covariance)
    forecast = FlowForecast(context.size(1))
    train(forecast, context[:stop], events[:stop].float(), learned, epochs)

    factor, degrees = with_tails(returns[:stop], covariance[:stop])
    known = {
        "exact": Elliptical(exact[stop:], DEGREES),
        "RiskMetrics": Elliptical(weighted[stop:]),
        "two rates, Student t": Elliptical(factor * covariance[stop:], degrees),
    }
    scores = {name: model.scores(returns[stop:]) for name, model in known.items()}
    quantiles = {name: model.quantiles() for name, model in known.items()}
    volume = root[stop:].diagonal(dim1=1, dim2=2).log().sum(1)
    with torch.no_grad():
        scores["flow"] = forecast(context[stop:]).log_prob(events[stop:].float()).double() - volume
    drawn = draw_portfolio(forecast, context[stop:], root[stop:], draws)
    quantiles["flow"] = np.quantile(drawn, LEVELS, axis=0, method="weibull")  # the k-th of n draws is k / (n + 1)
    portfolio = returns[stop:].mean(1).numpy()
    report(scores, quantiles, portfolio)
    draw(quantiles, portfolio, options.output)
    print(f"picture: {options.output}")
    gain = scores["flow"] - scores["RiskMetrics"]
    error = gain.std() / len(gain) ** 0.5
    print(f"The log score of the flow is {gain.mean():.3f} ± {error:.3f} nats a day above that of RiskMetrics")


if __name__ == "__main__":
    main()
