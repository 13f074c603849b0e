"""Images as densities: from whole numbers to real ones and back, and bits per dimension."""

from __future__ import annotations

__all__ = ["UniformDequantization", "VariationalDequantization", "bits_per_dimension", "quantize"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .registry import register
from .transforms import Bijection


@register
class UniformDequantization(nn.Module):
    """Adds uniform noise to whole numbers and scales them to the unit interval.

    The density of the result bounds the probability of the image: ``E[log p(x)] <= log P(image)`` with
    the log densities of `bits_per_dimension`.

    Args:
        num_levels: Number of values that a pixel can have, 0 to ``num_levels - 1``.

    Reference:
        Theis, van den Oord, Bethge. A note on the evaluation of generative models. ICLR 2016.

    Example:
        >>> import torch
        >>> x, log_q = UniformDequantization(16)(torch.full((5, 1, 2, 2), 15))
        >>> bool((x >= 15 / 16).all()), log_q.shape
        (True, torch.Size([5]))
    """

    def __init__(self, num_levels: int = 256) -> None:
        super().__init__()
        self.num_levels = _check_levels(num_levels)

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws the real image.

        Args:
            image: Whole numbers, ``(*batch, channels, height, width)``, of any dtype.
            generator: Of the noise.

        Returns:
            Numbers in [0, 1), of the default dtype where ``image`` holds integers, and the log density of
            the noise, zero, ``(*batch,)``.
        """
        x = _check_image(image, self.num_levels)
        noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return (x + noise) / self.num_levels, x.new_zeros(x.shape[:-3])


@register
class VariationalDequantization(nn.Module):
    """Adds noise that a conditional flow learns to fit each image, so that the bound is tighter.

    Args:
        flow: A bijection of images whose context is the image (scaled to [-1, 1]), for instance
            ``real_nvp_image(shape, context_dim=shape)``. Its output is squashed to the unit interval.
        num_levels: Number of values that a pixel can have.

    Raises:
        ValueError: If the context of the flow has not the shape of its event.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel. Flow++: improving flow-based generative models with variational
        dequantization and architecture design. ICML 2019 (section 3.1).

    Example:
        >>> import torch
        >>> from pyro_coupling import flows
        >>> flow = flows.real_nvp_image((1, 2, 2), 1, hidden_channels=4, context_dim=(1, 2, 2))
        >>> x, log_q = VariationalDequantization(flow, 16)(torch.full((5, 1, 2, 2), 15))
        >>> bool((x >= 15 / 16).all()), log_q.shape
        (True, torch.Size([5]))
    """

    def __init__(self, flow: Bijection, num_levels: int = 256) -> None:
        super().__init__()
        if flow.context_shape != flow.event_shape or len(flow.event_shape) != 3:
            raise ValueError(
                "VariationalDequantization: flow must map images and have an image of the same shape as context, found "
                f"event shape {tuple(flow.event_shape)} and context shape {tuple(flow.context_shape)}"
            )
        self.flow = flow
        self.num_levels = _check_levels(num_levels)

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws the real image; arguments and result as for `UniformDequantization`, the log density learned."""
        x = _check_image(image, self.num_levels)
        noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        raw, log_det = self.flow.forward_and_log_det(noise, 2 * x / (self.num_levels - 1) - 1)
        log_noise = -0.5 * (noise.square() + math.log(2 * math.pi))
        log_slope = nn.functional.logsigmoid(raw) + nn.functional.logsigmoid(-raw)
        log_q = (log_noise - log_slope).flatten(-3).sum(-1) - log_det
        return (x + torch.sigmoid(raw)) / self.num_levels, log_q


def bits_per_dimension(log_density: Tensor, event_shape: Sequence[int], num_levels: int = 256) -> Tensor:
    """Bits that it takes to name an image, per pixel and channel.

    Args:
        log_density: Log density of the real image in [0, 1], less the log density of its noise,
            ``(*batch,)``: ``flow.log_prob(x) - log_q``.
        event_shape: Shape of an image.
        num_levels: Number of values that a pixel can have.

    Returns:
        Bits per dimension, ``(*batch,)``; a uniform guess has ``log2(num_levels)``.

    Example:
        >>> import torch
        >>> bits_per_dimension(torch.zeros(3), (1, 8, 8), num_levels=16)
        tensor([4., 4., 4.])
    """
    return math.log2(_check_levels(num_levels)) - log_density / (math.prod(event_shape) * math.log(2))


def quantize(x: Tensor, num_levels: int = 256) -> Tensor:
    """Real images in [0, 1] as whole numbers from 0 to ``num_levels - 1``; what lies outside is clamped.

    Example:
        >>> import torch
        >>> quantize(torch.tensor([-0.1, 0.5, 1.0]), 16)
        tensor([ 0,  8, 15])
    """
    return (x * _check_levels(num_levels)).floor().clamp(0, num_levels - 1).long()


def _check_levels(num_levels: int) -> int:
    if not isinstance(num_levels, int) or num_levels < 2:
        raise ValueError(f"num_levels must be an integer, at least 2, got {num_levels!r}")
    return num_levels


def _check_image(image: Tensor, num_levels: int) -> Tensor:
    if image.dim() < 3:
        raise ValueError(f"image must be (*batch, channels, height, width), got shape {tuple(image.shape)}")
    x = image if image.is_floating_point() else image.to(torch.get_default_dtype())
    if bool(((x < 0) | (x >= num_levels) | (x != x.floor())).any()):
        raise ValueError(f"image must hold whole numbers from 0 to {num_levels - 1}")
    return x
