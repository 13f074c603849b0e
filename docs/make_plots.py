"""The pictures of the page on plots; ``python docs/make_plots.py`` writes ``docs/images/plots_*.png`` in some minutes.

Needs ArviZ, for its draws of eight schools, and scikit-learn, for its digits.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

from pyro_coupling import FlowVI, flows
from pyro_coupling.diagnostics import pareto_smooth
from pyro_coupling.plots import (
    plot_calibration,
    plot_fit,
    plot_grid,
    plot_images,
    plot_jacobian,
    plot_layers,
    plot_marginals,
    plot_pairs,
    plot_training,
    plot_weights,
)
from pyro_coupling.transforms import Bijection

IMAGES = Path(__file__).parent / "images"
EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
NAMES = ["mu", "tau", "theta[0]"]


def eight_schools() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, ERROR), obs=EFFECT)


def fit() -> tuple[FlowVI, dict[int, float]]:
    """A fit, and k-hat every hundred steps."""
    khat: dict[int, float] = {}

    def watch(state):
        if state.step % 100 == 0:
            khat[state.step] = pareto_smooth(state.log_weights)[1]

    return FlowVI(eight_schools, max_steps=2000, seed=0, progress=False, callback=watch).run(), khat


def moons() -> Bijection:
    """Four couplings that learn two half circles from samples."""
    torch.manual_seed(0)
    flow = flows.neural_spline(2, 4, (64, 64))
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    for _ in range(600):
        angle = torch.pi * torch.rand(512)
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], -1)
        side = torch.randint(2, (512, 1)) * 2 - 1
        loss = -flows.distribution(flow).log_prob(2 * side * upper + 0.2 * torch.randn(512, 2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return flow


def jacobian() -> np.ndarray:
    """Two and three couplings of eight entries, all parameters drawn at random."""
    axes = Figure((9.5, 3.8), layout="constrained").subplots(1, 2)
    for panel, layers in zip(axes, (2, 3), strict=True):
        torch.manual_seed(0)
        flow = flows.real_nvp(8, layers, (32,), mask="halves")
        for parameter in flow.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        plot_jacobian(flow, torch.randn(32, 8), axes=panel)
        panel.set_title(f"{layers} couplings, {panel.get_title(loc='left')}", loc="left")
    return axes


def images() -> Axes:
    digits = load_digits()
    return plot_images(digits.images[:20, None], digits.target[:20], cmap="gray_r")


def calibration() -> np.ndarray:
    """Ranks of a normal mean among 99 draws of its exact posterior, and of one that is a third too narrow."""
    generator = np.random.default_rng(0)
    truth = generator.normal(size=1000)
    data = generator.normal(truth)  # so that the posterior is Normal(data / 2, 1 / 2 ** 0.5)
    axes = Figure((9.5, 3.4), layout="constrained").subplots(1, 2)
    for panel, name, width in ((axes[0], "exact", 1.0), (axes[1], "a third too narrow", 2 / 3)):
        draws = data / 2 + width * generator.normal(scale=0.5**0.5, size=(99, 1000))
        plot_calibration((draws < truth).sum(0), num_draws=99, axes=panel)
        panel.set_title(name, loc="left")
    return axes


def save(figure: Figure, path: Path) -> None:
    """As a picture of 128 colours, which no eye tells from the full one and which is a third of its size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80, bbox_inches="tight")
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)
    print(path)


def main() -> None:
    warnings.simplefilter("ignore", UserWarning)
    IMAGES.mkdir(exist_ok=True)
    vi, khat = fit()
    print(vi)
    idata, reference = vi.to_arviz(), az.load_arviz_data("non_centered_eight")
    flow = moons()
    made = {
        "fit": plot_fit(vi, reference, names=[*NAMES, "theta[1]", "theta[2]", "theta[6]"], compare_label="NUTS"),
        "training": plot_training(vi, khat),
        "weights": plot_weights(vi.sample_with_log_weights(4000)[1]),
        "marginals": plot_marginals(idata, reference, NAMES, labels=("FlowVI", "NUTS")),
        "pairs": plot_pairs(idata, reference, NAMES, labels=("FlowVI", "NUTS")),
        "grid": plot_grid(flow, window=2.5),
        "layers": plot_layers(flow),
        "jacobian": jacobian(),
        "images": images(),
        "calibration": calibration(),
    }
    for name, axes in made.items():
        figure = axes if isinstance(axes, Figure) else np.ravel(axes)[0].figure
        save(figure, IMAGES / f"plots_{name}.png")


if __name__ == "__main__":
    main()
