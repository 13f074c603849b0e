"""A learned prior: a variational autoencoder of handwritten digits, its prior a coupling flow or a standard normal.

    python examples/vae_prior.py [--steps 800] [--seeds 3] [--quick] [--output vae_prior_output]

Encoder (a conditional flow), decoder (binomial, 17 grey levels), data and schedule are the same for both priors. Of the
1797 images of 8 x 8 pixels that come with scikit-learn, 1300 train, 200 say when to stop, 297 are for the figures: the
evidence lower bound (ELBO) and the importance-weighted bound (IWAE; Burda, Grosse, Salakhutdinov 2016) on log p(image).
"""

import argparse
import copy
import math
import statistics
from pathlib import Path

import matplotlib
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from sklearn.datasets import load_digits
from torch import nn

from pyro_coupling import flows
from pyro_coupling.plots import plot_images

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GREYS, PIXELS, LATENTS, FEATURES = 16, 64, 10, 32
BATCH, CHECKS = 256, 20


class Autoencoder(nn.Module):
    """Model and guide of images ``(n, 64)`` of grey levels from 0 to 16."""

    def __init__(self, prior: nn.Module | None) -> None:
        super().__init__()
        self.prior = prior
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 128), nn.SiLU(), nn.Dropout(0.1), nn.Linear(128, PIXELS))
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, 128), nn.SiLU(), nn.Dropout(0.1), nn.Linear(128, 2 * LATENTS + FEATURES)
        )
        self.posterior = flows.real_nvp(LATENTS, 4, (32,), context_dim=FEATURES)

    def code(self) -> dist.TorchDistribution:
        if self.prior is None:
            return dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1)
        return flows.distribution(self.prior)

    def pixels(self, code: torch.Tensor) -> dist.TorchDistribution:
        return dist.Binomial(GREYS, logits=self.decoder(code), validate_args=False).to_event(1)

    def model(self, images: torch.Tensor) -> None:
        pyro.module("autoencoder", self)
        with pyro.plate("images", len(images)):
            code = pyro.sample("code", self.code())
            pyro.sample("pixels", self.pixels(code), obs=images)

    def guide(self, images: torch.Tensor) -> None:
        """A Gaussian for each image, bent by a flow that reads the image's features."""
        features, loc, log_scale = self.encoder(images / GREYS).split([FEATURES, LATENTS, LATENTS], -1)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        with pyro.plate("images", len(images)):
            pyro.sample("code", dist.TransformedDistribution(base, [self.posterior.condition(features)]))


@torch.no_grad()
def log_weights(autoencoder: Autoencoder, images: torch.Tensor, particles: int) -> torch.Tensor:
    """``log p(image, code) - log q(code | image)`` for codes drawn from the guide, ``(particles, images)``."""
    autoencoder.eval()
    particles_plate = pyro.plate("particles", particles, dim=-2)
    guide = poutine.trace(particles_plate(autoencoder.guide)).get_trace(images)
    model = poutine.trace(particles_plate(poutine.replay(autoencoder.model, guide))).get_trace(images)
    for trace in (model, guide):
        trace.compute_log_prob()
    found = model.nodes["code"]["log_prob"] + model.nodes["pixels"]["log_prob"] - guide.nodes["code"]["log_prob"]
    autoencoder.train()
    return found


def train(autoencoder: Autoencoder, images: torch.Tensor, check: torch.Tensor, steps: int) -> None:
    """Greatest ELBO; the weights that did best on images set aside are kept."""
    pyro.clear_param_store()
    schedule = pyro.optim.OneCycleLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 3e-3}, "max_lr": 4e-3, "total_steps": steps}
    )
    svi = SVI(autoencoder.model, autoencoder.guide, schedule, Trace_ELBO())
    best, weights = -math.inf, None
    for step in range(1, steps + 1):
        svi.step(images[torch.randint(len(images), (BATCH,))])
        schedule.step()
        if step % max(1, steps // CHECKS) == 0:
            elbo = log_weights(autoencoder, check, 10).mean().item()
            if elbo > best:
                best, weights = elbo, copy.deepcopy(autoencoder.state_dict())
    autoencoder.load_state_dict(weights)


def bounds(autoencoder: Autoencoder, images: torch.Tensor, particles: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ELBO and IWAE bound of each image in nats, ``(images,)`` both."""
    weights = torch.cat([log_weights(autoencoder, part, particles) for part in images.split(33)], 1)
    return weights.mean(0), weights.logsumexp(0) - math.log(particles)


@torch.no_grad()
def draw(found: dict[str, Autoencoder], real: torch.Tensor, path: Path) -> None:
    """A sheet of samples for each prior, beside real images."""
    sheets = {
        name: autoencoder.eval().pixels(autoencoder.code().sample((60,))).mean for name, autoencoder in found.items()
    }
    figure, panels = plt.subplots(1, 3, figsize=(9, 2.2), layout="constrained")
    for axes, (title, images) in zip(panels, {**sheets, "data": real[:60]}.items(), strict=True):
        sheet = images.reshape(-1, 1, 8, 8)
        plot_images(sheet, value_range=(0, GREYS), cmap="gray_r", columns=12, axes=axes).set_title(title)
    figure.savefig(path, dpi=130)
    print(f"mean images of codes drawn from each prior: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="steps of training for each prior and seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings of each prior")
    parser.add_argument("--particles", type=int, default=500, help="importance samples for each held-out image")
    parser.add_argument("--quick", action="store_true", help="a short run that shows nothing but that it runs")
    parser.add_argument("--output", type=Path, default=Path("vae_prior_output"), help="folder of the picture")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.seeds, options.particles = 20, 2, 20
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    pixels = torch.tensor(load_digits().data, dtype=torch.float32)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    images, check, held_out = pixels[order].split([1300, 200, 297])

    priors = {"standard normal": lambda: None, "flow": lambda: flows.real_nvp(LATENTS, 6, (64, 64))}
    differences, found = [], {}
    print("| seed | prior | ELBO | IWAE |\n|---|---|---|---|")
    for seed in range(options.seeds):
        iwae = {}
        for name, make in priors.items():
            pyro.set_rng_seed(seed)
            found[name] = Autoencoder(make())
            train(found[name], images, check, options.steps)
            elbo, iwae[name] = bounds(found[name], held_out, options.particles)
            print(f"| {seed} | {name} | {elbo.mean():.2f} | {iwae[name].mean():.2f} |", flush=True)
        differences.append(iwae["flow"] - iwae["standard normal"])
    draw(found, held_out, options.output / "vae_prior.png")

    margins = [difference.mean().item() for difference in differences]
    between_seeds = statistics.stdev(margins) / math.sqrt(len(margins)) if len(margins) > 1 else math.nan
    between_images = torch.stack(differences).mean(0).std().item() / math.sqrt(len(held_out))
    print(
        f"The flow prior is better by {statistics.mean(margins):.2f} nats an image on the held-out IWAE bound "
        f"(standard error {between_seeds:.2f} over seeds, {between_images:.2f} over images)"
    )


if __name__ == "__main__":
    main()
