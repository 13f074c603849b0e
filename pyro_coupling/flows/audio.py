"""Flows of recordings ``(time,)``: WaveGlow."""

from __future__ import annotations

__all__ = ["wave_glow"]

from collections.abc import Sequence

from torch import nn

from ..nn import DilatedConv1d, OverBatch
from ..transforms import (
    Affine,
    Bijection,
    Chain,
    Coupling,
    OnSlice,
    Reshape,
    Scale,
    SlicePartition,
    Squeeze,
    TanhScale,
    WithContext,
    conv1x1,
)


def wave_glow(
    num_samples: int,
    num_layers: int = 12,
    hidden_channels: int = 64,
    context_dim: Sequence[int] | int = 0,
    *,
    group: int = 8,
    early_every: int = 4,
    early_size: int = 2,
    num_dilations: int = 8,
    scale: Scale | None = None,
    seed: int = 0,
    reversible: bool = False,
    checkpoint: bool = False,
    compile: bool = False,
) -> Bijection:
    """WaveGlow: groups of samples as channels, 1x1 convolutions, affine couplings with dilated convolutions.

    Every few layers some channels are left as they are, so that they reach the base early.

    Args:
        num_samples: Length of a piece of sound, divisible by ``group``.
        num_layers: Number of couplings.
        hidden_channels: Width of the dilated convolutions.
        context_dim: Shape ``(mel_bands, frames)`` of a spectrogram to speak after, ``frames`` a divisor of
            ``num_samples / group``; or a number of features for the whole piece; 0 for none.
        group: Samples that become channels.
        early_every: Layers between two early outputs.
        early_size: Channels that leave at each of them.
        num_dilations: Layers of each dilated stack; the last sees ``2**num_dilations`` groups.
        scale: Scale parameterisation, ``TanhScale(2.0)`` if not given.
        seed: Of the random rotations of the 1x1 convolutions.
        reversible: See `transforms.Chain`.
        checkpoint: See `transforms.Chain`.
        compile: See `transforms.Chain`.

    Reference:
        Prenger, Valle, Catanzaro. WaveGlow: a flow-based generative network for speech synthesis.
        ICASSP 2019.

    Example:
        >>> import torch
        >>> flow = wave_glow(64, num_layers=2, hidden_channels=4, context_dim=(5, 4), num_dilations=2)
        >>> flow.condition(torch.randn(3, 5, 4))(torch.randn(3, 64)).shape
        torch.Size([3, 64])
    """
    for name, value in (("num_samples", num_samples), ("num_layers", num_layers), ("group", group)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if num_samples % group:
        raise ValueError(f"num_samples {num_samples} must be divisible by group {group}")
    if early_every < 1 or early_size < 1 or group - early_size * ((num_layers - 1) // early_every) < 2:
        raise ValueError(
            f"early_size {early_size} every {early_every} of {num_layers} layers leaves less than 2 of {group} channels"
        )
    time = num_samples // group
    context = (context_dim,) if isinstance(context_dim, int) else tuple(context_dim)
    context = () if context == (0,) else context
    if len(context) > 2 or (len(context) == 2 and time % context[1]):
        raise ValueError(
            f"context_dim must be a number or (bands, frames), frames a divisor of {time}, got {context_dim}"
        )
    inner_context = (hidden_channels, time) if len(context) == 2 else context
    elementwise = Affine(scale or TanhScale())
    memory = {"reversible": reversible, "checkpoint": checkpoint}

    def layers(channels: int, first: int) -> Bijection:
        """The layers from the one numbered ``first``, counted from the sound, to the base."""
        shape = (channels, time)
        last = min(first + early_every, num_layers)
        parts: list[Bijection] = []
        if last < num_layers:
            parts.append(OnSlice(layers(channels - early_size, last), shape))
        for layer in reversed(range(first, last)):
            cut = SlicePartition(shape, dim=-2)
            size = cut.shown_shape[0] + (inner_context[0] if inner_context else 0)
            network = DilatedConv1d(size, cut.answer_shape(2)[0], hidden_channels, num_dilations)
            parts += [Coupling(cut, network, elementwise, inner_context), conv1x1(shape, seed=seed + layer)]
        return Chain(parts, **memory)

    squeeze = Squeeze((1, num_samples), group)
    whole: Bijection = Chain(
        [Reshape(num_samples, (1, num_samples)), squeeze, layers(group, 0), squeeze.inv]
        + [Reshape((1, num_samples), num_samples)],
        compile=compile,
    )
    if len(context) == 2:
        whole = WithContext(whole, _spectrogram_encoder(context[0], hidden_channels, time // context[1]), context)
    return whole


def _spectrogram_encoder(bands: int, channels: int, factor: int) -> nn.Module:
    """``(*batch, bands, frames)`` -> ``(*batch, channels, frames * factor)``."""
    layers = nn.Sequential(
        nn.Conv1d(bands, channels, 3, padding="same"),
        nn.SiLU(),
        nn.Upsample(scale_factor=factor, mode="linear"),
        nn.Conv1d(channels, channels, 3, padding="same"),
    )
    return OverBatch(layers, 2)
