"""Varying intercepts and slopes on a real survey: FlowVI, then Pyro's NUTS on the same model, side by side.

Which Americans called themselves Republicans in 1972, and which Democrats? 1207 respondents of the American National
Election Study; a logistic regression on ideology whose intercept and slope vary over the 80 cells of age x education x
income, as in multilevel regression with post-stratification (Gelman and Hill 2006, chapter 14). Most cells have few
respondents, eight have none, and partial pooling decides how far each may stand apart. 166 latent variables.

Run it with ``make demo`` or ``python examples/demo.py [--quick] [--output demo_output]``; it takes about three minutes.
"""

import argparse
import csv
import time
from pathlib import Path

import arviz as az
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

from pyro_coupling import FlowVI
from pyro_coupling.plots import plot_fit
from pyro_coupling.training.threads import suitable_threads

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "demo_output"
TOP = ["intercept", "ideology", "black", "female", "sd_intercept", "sd_slope"]
AGES, EDUCATIONS, INCOMES = 4, 4, 5
DRAWS = 4000


def load() -> dict[str, torch.Tensor]:
    with open(HERE / "data" / "nes1972.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["party"] != "4"]  # without the independents
    column = {name: torch.tensor([float(row[name]) for row in rows]) for name in rows[0]}
    age, education, income = (column[name].long() - 1 for name in ("age", "education", "income"))
    return {
        "ideology": (column["ideology"] - 4) / 2,  # -1.5 very liberal ... 1.5 very conservative
        "black": column["race"] - 1,  # 1 Black, 0.5 other, 0 White, as Gelman and Hill have it
        "female": column["gender"] - 1,
        "cell": (age * EDUCATIONS + education) * INCOMES + income,
        "republican": (column["party"] > 4).float(),
    }


def model(ideology, black, female, cell, republican):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    slope = pyro.sample("ideology", dist.Normal(0.0, 1.0))
    of_black = pyro.sample("black", dist.Normal(0.0, 1.0))
    of_female = pyro.sample("female", dist.Normal(0.0, 1.0))
    sd_intercept = pyro.sample("sd_intercept", dist.HalfNormal(1.0))
    sd_slope = pyro.sample("sd_slope", dist.HalfNormal(1.0))
    with pyro.plate("cells", AGES * EDUCATIONS * INCOMES):
        intercepts = intercept + sd_intercept * pyro.sample("intercept_offset", dist.Normal(0.0, 1.0))
        slopes = slope + sd_slope * pyro.sample("slope_offset", dist.Normal(0.0, 1.0))
    logit = intercepts[..., cell] + slopes[..., cell] * ideology + of_black * black + of_female * female
    with pyro.plate("respondents", len(republican)):
        pyro.sample("republican", dist.Bernoulli(logits=logit), obs=republican)


class OutOfTime(Exception):  # noqa: N818
    """Raised in NUTS to end it early."""


def run_nuts(data: dict[str, torch.Tensor], warmup: int = 200, draws: int = 300, max_seconds: float = 110.0):
    """One chain of Pyro's NUTS: draws by site, as many as fit in the time, and the seconds it took."""
    pyro.set_rng_seed(0)
    kernel, kept, began = NUTS(model), [], time.monotonic()

    def keep(kernel, point, stage, step):
        if stage == "Sample":
            kept.append({name: kernel.transforms[name].inv(value) for name, value in point.items()})
        if time.monotonic() - began > max_seconds:
            raise OutOfTime

    try:
        with suitable_threads(0):  # one thread, as FlowVI takes for a model of this size; NUTS is faster on it too
            MCMC(kernel, draws, warmup, hook_fn=keep).run(**data)
    except OutOfTime:
        print(f"NUTS was stopped after {max_seconds:.0f} s with {len(kept)} of {draws} draws")
    seconds = time.monotonic() - began
    return {name: torch.stack([point[name] for point in kept]) for name in kept[0]} if kept else {}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of picture and draws")
    options = parser.parse_args()
    data = load()
    print(f"{len(data['republican'])} respondents in {len(data['cell'].unique())} of 80 cells\n")

    print("FlowVI")
    began = time.monotonic()
    vi = FlowVI(model, max_seconds=3 if options.quick else 60, seed=0).run(**data)
    fitted = time.monotonic()
    samples = vi.get_samples(DRAWS)
    flow_seconds = time.monotonic() - began
    print(f"fit {fitted - began:.1f} s, {DRAWS} draws {flow_seconds - (fitted - began):.1f} s\n")
    table = vi.summary(DRAWS)
    print(table.loc[TOP].round(3).to_string(), f"\n... and {len(table) - len(TOP)} offsets of cells\n")
    fit = vi.diagnostics()
    print(f"k-hat         {fit['khat']:.2f}      (below 0.7: importance weights can be trusted)")
    print(f"relative ESS  {fit['ess']:.2f}      (1: the flow is the posterior)")
    print(f"log evidence  {fit['log_evidence']:.3f} +- {fit['log_evidence_se']:.3f}")
    print(fit["message"], "\n")

    print("NUTS (Pyro), one chain, 200 steps of warm-up and 300 draws")
    chain, nuts_seconds = run_nuts(data, max_seconds=3.0 if options.quick else 110.0)
    print(f"{nuts_seconds:.1f} s\n")
    report(samples, flow_seconds, fit["ess"], chain, nuts_seconds)

    options.output.mkdir(parents=True, exist_ok=True)
    plot_fit(vi, chain or None, TOP, compare_label="NUTS").savefig(options.output / "posterior.png")
    vi.to_arviz(DRAWS).to_netcdf(str(options.output / "posterior.nc"))
    print(f"\nPicture:  {options.output / 'posterior.png'}")
    print(f"Draws, predictions, log likelihoods, data:  {options.output / 'posterior.nc'} (arviz.from_netcdf)")


def report(samples, flow_seconds, relative_ess, chain, nuts_seconds) -> None:
    """Means, standard deviations and speed, side by side."""
    if not chain:
        print("NUTS made no draw in its time: nothing to compare")
        return
    print(f"{'mean +- sd':<14}{'FlowVI':>18}{'NUTS':>18}")
    for name in TOP:
        columns = [f"{draws[name].mean():.3f} +- {draws[name].std():.3f}" for draws in (samples, chain)]
        print(f"{name:<14}{columns[0]:>18}{columns[1]:>18}")
    effective = relative_ess * DRAWS
    latents = torch.cat([draws.reshape(len(draws), -1) for draws in chain.values()], 1).numpy()
    nuts_effective = min(float(az.ess(latent[None])) for latent in latents.T)
    print(f"{'seconds':<14}{flow_seconds:>18.1f}{nuts_seconds:>18.1f}")
    print(f"{'draws':<14}{DRAWS:>18}{len(chain['ideology']):>18}")
    print(f"{'effective':<14}{effective:>18.0f}{nuts_effective:>18.0f}")
    print(f"{'... a second':<14}{effective / flow_seconds:>18.1f}{nuts_effective / nuts_seconds:>18.1f}")
    print("Effective draws: of FlowVI, draws x relative ESS; of NUTS, the least bulk ESS of any latent.")


if __name__ == "__main__":
    main()
