"""Handwritten digits: a class-conditional Glow, its bits per dimension on held-out images, a sheet of samples.

    python examples/digits.py [--steps 1000] [--quick] [--flow glow|real_nvp] [--output digits_output]

The 1797 images of 8 x 8 pixels with 17 grey levels come with scikit-learn.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from pyro_coupling import flows
from pyro_coupling.images import UniformDequantization, bits_per_dimension, quantize
from pyro_coupling.nn import ConvNet, GatedResidualConv
from pyro_coupling.plots import plot_images
from pyro_coupling.transforms import Bijection, Chain, ToUnitInterval

LEVELS, SHAPE, CLASSES = 17, (1, 8, 8), 10
TEMPERATURE = 0.8


def data(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Images and one-hot classes, 1500 to learn from and 297 held out."""
    digits = load_digits()
    order = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[order]
    classes = nn.functional.one_hot(torch.tensor(digits.target), CLASSES).float()[order]
    return images[:1500], classes[:1500], images[1500:], classes[1500:]


def build(name: str) -> Bijection:
    """A flow from noise to images in [0, 1], given the class."""
    if name == "glow":
        network = partial(ConvNet, hidden_channels=48, dropout=0.2)  # 1500 images are few
        flow = flows.glow(SHAPE, num_scales=2, num_steps=6, context_dim=CLASSES, network=network)
    else:
        network = partial(GatedResidualConv, hidden_channels=24, dropout=0.2)
        flow = flows.real_nvp_image(SHAPE, num_scales=2, context_dim=CLASSES, network=network)
    return Chain([flow, ToUnitInterval(SHAPE)])


class Bits(nn.Module):
    """Bits per dimension of each image, a bound by uniform dequantization."""

    def __init__(self, flow: Bijection) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        x, log_q = UniformDequantization(LEVELS)(images)
        log_density = flows.distribution(self.flow, context=classes).log_prob(x) - log_q
        return bits_per_dimension(log_density, SHAPE, LEVELS)


def train(bits: nn.Module, images: torch.Tensor, classes: torch.Tensor, steps: int) -> nn.Module:
    """Least bits; returns the running average of the module, which does better than its last step."""
    optimizer = torch.optim.AdamW(bits.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    average = torch.optim.swa_utils.AveragedModel(
        bits, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    began = time.monotonic()
    for step in range(1, steps + 1):
        batch = torch.randint(len(images), (128,))
        loss = bits(images[batch], classes[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(bits.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(bits)
        if step % max(1, steps // 10) == 0:
            print(
                f"step {step:5d}  {loss.item():.3f} bits per dimension  {time.monotonic() - began:5.1f} s", flush=True
            )
    return average.module.eval()


def draw(flow: Bijection, real: torch.Tensor, classes: torch.Tensor, path: Path) -> None:
    """Ten samples of every class beside real images."""
    context = torch.eye(CLASSES).repeat_interleave(10, 0)
    with torch.no_grad():
        samples = quantize(flows.distribution(flow, context=context, temperature=TEMPERATURE).sample(), LEVELS)
    shown = torch.cat([real[classes.argmax(1) == digit][:10] for digit in range(CLASSES)])
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
    for axis, images, title in ((axes[0], samples, f"samples at temperature {TEMPERATURE}"), (axes[1], shown, "data")):
        plot_images(images, value_range=(0, LEVELS - 1), cmap="gray_r", axes=axis).set_title(title)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--flow", choices=["glow", "real_nvp"], default="glow")
    parser.add_argument("--output", type=Path, default=Path("digits_output"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    arguments.output.mkdir(parents=True, exist_ok=True)
    images, classes, held_out, held_out_classes = data()
    bits = Bits(build(arguments.flow))
    print(f"{arguments.flow} with {sum(p.numel() for p in bits.parameters()):,} parameters")
    bits = train(bits, images, classes, 5 if arguments.quick else arguments.steps)
    with torch.no_grad():
        for name, x, c in (("training", images, classes), ("held-out", held_out, held_out_classes)):
            found = torch.stack([bits(x, c) for _ in range(10)])
            error = found.mean(0).std() / len(x) ** 0.5
            print(f"{name} images: {found.mean():.3f} +- {error:.3f} bits per dimension (a uniform guess: 4.087)")
    path = arguments.output / f"{arguments.flow}.png"
    draw(bits.flow, held_out, held_out_classes, path)
    print(f"samples: {path}")


if __name__ == "__main__":
    main()
