"""Dilated convolutions over time, for audio and other long series."""

from __future__ import annotations

__all__ = ["DilatedConv1d"]

import torch
from torch import Tensor, nn

from ..registry import register
from .parts import check_settings, over_batch, zeroed


@register
class DilatedConv1d(nn.Module):
    """A stack of gated convolutions whose reach doubles from layer to layer, into past and future alike.

    Maps ``(*batch, in_channels, time)`` to ``(*batch, out_channels, time)``. Each layer computes
    ``tanh(a) * sigmoid(b)`` from its input, adds it to its input, and sends it to the output as well; the
    last convolution starts at zero. An output depends on `receptive_field` time steps around it.

    Args:
        in_channels: Channels that stay, and context channels.
        out_channels: Parameters of the elementwise map times the channels that move.
        hidden_channels: Channels of every layer.
        num_layers: Number of layers; number i, counted from 0, has the dilation ``2**i``.
        kernel_size: Size of the kernels, odd.
        dropout: Fraction of each layer's units that are dropped while training.

    Raises:
        ValueError: If a size is not a positive integer, there are more than 62 layers, ``kernel_size`` is even,
            or ``dropout`` is not in [0, 1).

    Reference:
        van den Oord, Dieleman, Zen, Simonyan, Vinyals, Graves, Kalchbrenner, Senior, Kavukcuoglu. WaveNet:
        a generative model for raw audio. 2016.
        Prenger, Valle, Catanzaro. WaveGlow: a flow-based generative network for speech synthesis.
        ICASSP 2019 (section 2.1).

    Example:
        >>> import torch
        >>> network = DilatedConv1d(2, 4, hidden_channels=8, num_layers=3)
        >>> network(torch.ones(7, 2, 20)).shape, network.receptive_field
        (torch.Size([7, 4, 20]), 15)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        num_layers: int = 8,
        kernel_size: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_settings(
            in_channels=in_channels,
            out_channels=out_channels,
            hidden_channels=hidden_channels,
            num_layers=num_layers,
            kernel_size=kernel_size,
            dropout=dropout,
        )
        if num_layers > 62:
            raise ValueError(f"num_layers must be at most 62, a dilation of 2**61 steps, got {num_layers}")
        self.receptive_field = 1 + (kernel_size - 1) * (2**num_layers - 1)
        self.first = nn.Conv1d(in_channels, hidden_channels, 1)
        self.gated = nn.ModuleList(_Gated(hidden_channels, kernel_size, 2**i, dropout) for i in range(num_layers))
        self.residual = nn.ModuleList(nn.Conv1d(hidden_channels, hidden_channels, 1) for _ in range(num_layers - 1))
        self.last = nn.Sequential(
            nn.Conv1d(num_layers * hidden_channels, hidden_channels, 1),
            nn.SiLU(),
            zeroed(nn.Conv1d(hidden_channels, out_channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, in_channels, time)`` -> ``(*batch, out_channels, time)``."""
        return over_batch(self._of_batch, x, 2)

    def _of_batch(self, x: Tensor) -> Tensor:
        first, *following = self.gated
        x = self.first(x)
        outputs = [first(x)]
        for residual, gated in zip(self.residual, following, strict=True):
            x = x + residual(outputs[-1])
            outputs.append(gated(x))
        # one pointwise convolution of all outputs is the sum of one for each: the skip connections
        return self.last(torch.cat(outputs, -2))


class _Gated(nn.Module):
    """``tanh(a) * sigmoid(b)`` of a dilated convolution's two halves a and b."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, 2 * channels, kernel_size, padding="same", dilation=dilation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.convolution(x).chunk(2, -2)
        return self.dropout(a.tanh() * b.sigmoid())
