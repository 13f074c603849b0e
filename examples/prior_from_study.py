"""What one study has learned is the next one's prior: a flow carries the posterior over, in FlowVI and in NUTS.

    python examples/prior_from_study.py [--first 60] [--quick] [--output prior_from_study_output]

Republican or Democrat? A logistic regression on the survey of `demo.py`, cut at random into a small first study and a
second one. By Bayes' rule the second study's posterior under the first one's as prior is that of both together, and the
evidence of the first times that of the second given the first is that of both: two checks of what was carried over.
"""

import argparse
from pathlib import Path

import matplotlib
import pyro
import pyro.distributions as dist
import torch
from demo import load
from pyro.infer import MCMC, NUTS

from pyro_coupling import FlowVI
from pyro_coupling.plots import plot_marginals

NAMES = ["intercept", "ideology", "black", "female"]
DRAWS = 4000


def model(prior: dist.TorchDistribution, x: torch.Tensor, y: torch.Tensor) -> None:
    beta = pyro.sample("beta", prior)
    with pyro.plate("respondents", len(y)):
        pyro.sample("republican", dist.Bernoulli(logits=(x * beta).sum(-1)), obs=y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=60, help="respondents of the first study")
    parser.add_argument("--quick", action="store_true", help="a short run that shows nothing but that it runs")
    parser.add_argument("--output", type=Path, default=Path("prior_from_study_output"), help="folder of the picture")
    options = parser.parse_args()
    matplotlib.use("Agg")
    options.output.mkdir(parents=True, exist_ok=True)
    steps, warmup, chain = (50, 5, 5) if options.quick else (1000, 100, 300)

    column = load()
    x = torch.stack([torch.ones_like(column["black"])] + [column[name] for name in NAMES[1:]], 1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order][:400], column["republican"][order][:400]
    first, second = (x[: options.first], y[: options.first]), (x[options.first :], y[options.first :])

    def fit(prior: dist.TorchDistribution, study: tuple[torch.Tensor, torch.Tensor]) -> FlowVI:
        return FlowVI(model, max_steps=steps, seed=0, progress=False).run(prior, *study)

    vague = dist.Normal(torch.zeros(4), 2.0).to_event(1)
    study = fit(vague, first)
    for parameter in study.guide.parameters():
        parameter.requires_grad_(False)  # the flow is a fixed distribution from here on
    informative = study.guide.get_posterior()

    following, pooled = fit(informative, second), fit(vague, (x, y))
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model), num_samples=chain, warmup_steps=warmup, disable_progbar=True)
    mcmc.run(informative, *second)

    draws = {
        "first study": study.get_samples(DRAWS),
        "both, pooled": pooled.get_samples(DRAWS),
        "second after first, FlowVI": following.get_samples(DRAWS),
        "second after first, NUTS": mcmc.get_samples(),
    }
    print("| mean ± sd | " + " | ".join(NAMES) + " |\n" + "|---" * 5 + "|")
    for name, found in draws.items():
        beta = found["beta"]
        cells = [f"{mean:.2f} ± {sd:.2f}" for mean, sd in zip(beta.mean(0), beta.std(0), strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")
    labels = ("both, pooled", "second after first, FlowVI")
    panels = plot_marginals(*(draws[label] for label in labels), labels=labels, columns=2)
    for panel, name in zip(panels, NAMES, strict=True):
        panel.set_title(name, loc="left")
    panels[0].figure.savefig(options.output / "prior_from_study.png", dpi=90)
    print(f"picture: {options.output / 'prior_from_study.png'}")

    one, two, both = (vi.diagnostics() for vi in (study, following, pooled))
    error = sum(found["log_evidence_se"] ** 2 for found in (one, two, both)) ** 0.5
    print(
        f"log evidence: first {one['log_evidence']:.3f} + second given first {two['log_evidence']:.3f} = "
        f"{one['log_evidence'] + two['log_evidence']:.3f}, pooled {both['log_evidence']:.3f}; "
        f"standard error {error:.3f} without that of the carried-over prior"
    )


if __name__ == "__main__":
    main()
