"""Convolutions over images: Glow's plain network and gated residual blocks."""

from __future__ import annotations

__all__ = ["ConvNet", "GatedResidualConv"]

from collections.abc import Callable

from torch import Tensor, nn

from ..registry import register
from .parts import Residual, activated, check_settings, over_batch, zeroed


@register
class ConvNet(nn.Module):
    """Three convolutions, the middle one pointwise and the last one zero at the start.

    Maps ``(*batch, in_channels, height, width)`` to ``(*batch, out_channels, height, width)``.

    Args:
        in_channels: Channels that stay, and context channels.
        out_channels: Parameters of the elementwise map times the channels that move.
        hidden_channels: Channels of the hidden layers; Glow has 512.
        kernel_size: Size of the first and the last kernel, odd.
        activation: Makes an activation module.
        dropout: Fraction of the last hidden layer's units that are dropped while training.
        normalization: Makes, from a number of channels, a module that stands before each activation, such
            as ``partial(nn.GroupNorm, 8)``; it must not mix the entries of a batch.

    Raises:
        ValueError: If a size is not a positive integer, ``kernel_size`` is even, or ``dropout`` is not in [0, 1).

    Reference:
        Kingma, Dhariwal. Glow: generative flow with invertible 1x1 convolutions. NeurIPS 2018 (section 3.3).

    Example:
        >>> import torch
        >>> ConvNet(2, 4, hidden_channels=8)(torch.ones(7, 2, 5, 6)).shape
        torch.Size([7, 4, 5, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        kernel_size: int = 3,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        normalization: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_settings(
            in_channels=in_channels,
            out_channels=out_channels,
            hidden_channels=hidden_channels,
            kernel_size=kernel_size,
            dropout=dropout,
        )
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden_channels, kernel_size, padding="same"),
            *activated(hidden_channels, activation, normalization),
            nn.Conv2d(hidden_channels, hidden_channels, 1),
            *activated(hidden_channels, activation, normalization),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(hidden_channels, out_channels, kernel_size, padding="same")),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, in_channels, height, width)`` -> ``(*batch, out_channels, height, width)``."""
        return over_batch(self.layers, x, 3)


@register
class GatedResidualConv(nn.Module):
    """Residual blocks of two convolutions, half of the second's channels gating the other half.

    Maps ``(*batch, in_channels, height, width)`` to ``(*batch, out_channels, height, width)``. The last
    convolution starts at zero.

    Args:
        in_channels: Channels that stay, and context channels.
        out_channels: Parameters of the elementwise map times the channels that move.
        hidden_channels: Channels of the blocks.
        num_blocks: Number of blocks.
        kernel_size: Size of the kernels, odd.
        activation: Makes an activation module.
        dropout: Fraction of the units within a block that are dropped while training.
        normalization: Makes, from a number of channels, a module that stands before each activation, such
            as ``partial(nn.GroupNorm, 8)``; it must not mix the entries of a batch.

    Raises:
        ValueError: If a size is not a positive integer, ``kernel_size`` is even, or ``dropout`` is not in [0, 1).

    Reference:
        Salimans, Karpathy, Chen, Kingma. PixelCNN++: improving the PixelCNN with discretized logistic
        mixture likelihood and other modifications. ICLR 2017.
        Ho, Chen, Srinivas, Duan, Abbeel. Flow++: improving flow-based generative models with variational
        dequantization and architecture design. ICML 2019 (section 3.3).

    Example:
        >>> import torch
        >>> GatedResidualConv(2, 4, hidden_channels=8)(torch.ones(7, 2, 5, 6)).shape
        torch.Size([7, 4, 5, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        num_blocks: int = 2,
        kernel_size: int = 3,
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
        normalization: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_settings(
            in_channels=in_channels,
            out_channels=out_channels,
            hidden_channels=hidden_channels,
            num_blocks=num_blocks,
            kernel_size=kernel_size,
            dropout=dropout,
        )
        blocks = [
            Residual(
                *activated(hidden_channels, activation, normalization),
                nn.Conv2d(hidden_channels, hidden_channels, kernel_size, padding="same"),
                *activated(hidden_channels, activation, normalization),
                nn.Dropout(dropout),
                nn.Conv2d(hidden_channels, 2 * hidden_channels, kernel_size, padding="same"),
                nn.GLU(dim=-3),
            )
            for _ in range(num_blocks)
        ]
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden_channels, kernel_size, padding="same"),
            *blocks,
            *activated(hidden_channels, activation, normalization),
            zeroed(nn.Conv2d(hidden_channels, out_channels, kernel_size, padding="same")),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, in_channels, height, width)`` -> ``(*batch, out_channels, height, width)``."""
        return over_batch(self.layers, x, 3)
