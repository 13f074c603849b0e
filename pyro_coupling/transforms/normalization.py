"""Layers that bring each channel to mean zero and variance one: activation and batch normalisation."""

from __future__ import annotations

__all__ = ["ActNorm", "BatchNorm"]

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import register
from .linear import AlongDim
from .reversible import in_function_transform


@register
class ActNorm(AlongDim):
    """``y = loc + scale * (shift + s * x)`` for each channel, loc and scale set by the first batch.

    The first batch in training mode, in whichever direction it comes, sets ``loc`` and ``scale`` so
    that the output of that call has mean zero and variance one in each channel; a channel that is
    constant, or a batch of one number a channel, is only centred. Until that batch the layer is the
    identity, in eval mode too. An empty batch, or one with a number that is not finite, sets nothing: the
    next one does. ``shift`` and ``s = exp(asinh(raw))`` are learned and start as zero and one.

    Whether the layer has been set is part of ``state_dict``. To set it is a side effect, which
    ``torch.func``, ``torch.jit.trace`` and ``torch.compile(fullgraph=True)`` can't record: there a layer
    that is not set yet raises an error. Call it once before on a batch, or ``eval()``.

    Args:
        event_shape: Shape of an event, or its size.
        dim: The channel dimension, negative: -3 for images ``(channels, height, width)``.

    Raises:
        ValueError: If ``dim`` is no dimension of the event.
        RuntimeError: If the first batch comes under a function transform or a tracer.

    Reference:
        Kingma, Dhariwal. Glow: generative flow with invertible 1x1 convolutions. NeurIPS 2018 (section 3.1).

    Example:
        >>> import torch
        >>> layer = ActNorm((3, 8, 8), dim=-3)
        >>> noise = layer.inv(100.0 + 5.0 * torch.randn(20, 3, 8, 8))
        >>> bool(noise.mean().abs() < 1e-4), round(noise.var().item(), 2)
        (True, 1.0)
    """

    stores_little = True

    loc: Tensor
    scale: Tensor
    initialised: Tensor

    def __init__(self, event_shape: int | Sequence[int], dim: int = -1) -> None:
        super().__init__(event_shape, dim)
        self.register_buffer("loc", torch.zeros(self.size))
        self.register_buffer("scale", torch.ones(self.size))
        self.register_buffer("initialised", torch.tensor(False))
        self.shift = nn.Parameter(torch.zeros(self.size))
        self.raw_scale = nn.Parameter(torch.zeros(self.size))
        # read at every call in place of the buffer, which would wait for the device and break a graph
        self._is_initialised = False
        self.register_load_state_dict_post_hook(_read_flag)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = self._rows(x)
        self._set_by_first(rows, forward=True)
        log_scale = self.raw_scale.asinh()
        y = torch.addcmul(self.loc + self.scale * self.shift, self.scale * log_scale.exp(), rows)
        return self._back(y), self._for_batch(self._log_det(log_scale), x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = self._rows(y)
        self._set_by_first(rows, forward=False)
        log_scale = self.raw_scale.asinh()
        x = ((rows - self.loc) / self.scale - self.shift) * (-log_scale).exp()
        return self._back(x), self._for_batch(-self._log_det(log_scale), y)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x)
        slope = self.scale * self.raw_scale.detach().asinh().exp()
        return y, log_det, self._back(self._rows(score) / slope)

    @property
    def mixes_batch(self) -> bool:
        return self.training and not self._is_initialised

    def _log_det(self, log_scale: Tensor) -> Tensor:
        return (self.scale.log() + log_scale).sum()

    def _set_by_first(self, rows: Tensor, forward: bool) -> None:
        if self._is_initialised or not self.training:
            return
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or in_function_transform(rows):
            raise RuntimeError(
                "ActNorm: the first batch in training mode sets location and scale, which torch.func, torch.jit and "
                "torch.compile can't record; call the layer on a batch before, or eval()"
            )
        if not rows.numel():
            return
        with torch.no_grad():
            flat = rows.reshape(-1, self.size)
            variance, mean = torch.var_mean(flat, 0, correction=0)
            # what a constant channel has is rounding, not spread
            rounding = 8 * torch.finfo(flat.dtype).eps * flat.abs().amax(0)
            deviation = variance.sqrt()
            deviation = torch.where(deviation > rounding, deviation, 1.0)
            loc, scale = (-mean / deviation, 1 / deviation) if forward else (mean, deviation)
            if not bool((loc.isfinite() & scale.isfinite()).all()):
                return
            self.loc.copy_(loc)
            self.scale.copy_(scale)
            self.shift.zero_()
            self.raw_scale.zero_()
            self.initialised.fill_(True)
        self._is_initialised = True


def _read_flag(module: ActNorm, _: Any) -> None:
    module._is_initialised = bool(module.initialised)


@register
class BatchNorm(AlongDim):
    """Normalises data by the statistics of the batch, in the direction from data to noise.

    The inverse is ``x = bias + gain * (y - mean) / sqrt(variance + eps)`` for each channel. In training
    mode, mean and variance are those of the batch, gradients flow through them, and running averages
    follow them. Forward, from noise to data, and in eval mode it is the running averages that count. So
    in training mode the two directions are not each other's inverse, and the log-determinant of the
    inverse treats the statistics as constants, as is usual; use ``eval()`` to judge densities. ``bias``
    and ``gain = exp(asinh(raw))`` are learned and start as zero and one.

    In training mode ``log_prob`` of a compiled or traced distribution takes the log-determinant from the
    running averages; ``inverse_and_log_det`` always takes that of the batch.

    Args:
        event_shape: Shape of an event, or its size.
        dim: The channel dimension, negative: -3 for images ``(channels, height, width)``.
        momentum: Weight of a new batch in the running averages.
        eps: Added to variances.

    Raises:
        ValueError: If ``dim`` is no dimension of the event, ``momentum`` not in (0, 1], or ``eps`` not positive.

    Reference:
        Dinh, Sohl-Dickstein, Bengio. Density estimation using Real NVP. ICLR 2017 (section 3.7).

    Example:
        >>> import torch
        >>> layer = BatchNorm(2)
        >>> x, log_det = layer.inverse_and_log_det(7.0 + torch.randn(100, 2))
        >>> bool(x.mean(0).abs().max() < 1e-4), layer.running_mean.round().tolist()
        (True, [1.0, 1.0])
    """

    repeatable = False
    running_mean: Tensor
    running_variance: Tensor

    def __init__(
        self, event_shape: int | Sequence[int], dim: int = -1, *, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__(event_shape, dim)
        if not 0 < momentum <= 1:
            raise ValueError(f"BatchNorm: momentum must be greater than 0 and at most 1, got {momentum}")
        if not 0 < eps < math.inf:
            raise ValueError(f"BatchNorm: eps must be positive and finite, got {eps}")
        self.momentum = momentum
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(self.size))
        self.register_buffer("running_variance", torch.ones(self.size))
        self.bias = nn.Parameter(torch.zeros(self.size))
        self.raw_gain = nn.Parameter(torch.zeros(self.size))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale = self._log_scale(self.running_variance)
        y = self.running_mean + (self._rows(x) - self.bias) * log_scale.exp()
        return self._back(y), self._for_batch(log_scale.sum(), x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = self._rows(y)
        mean, variance = self._statistics(rows)
        log_scale = self._log_scale(variance)
        x = self.bias + (rows - mean) * (-log_scale).exp()
        return self._back(x), self._for_batch(-log_scale.sum(), y)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x)
        slope = self._log_scale(self.running_variance).detach().exp()
        return y, log_det, self._back(self._rows(score) / slope)

    @property
    def mixes_batch(self) -> bool:
        return self.training

    def _log_scale(self, variance: Tensor) -> Tensor:
        """Log slope from noise to data."""
        return 0.5 * (variance + self.eps).log() - self.raw_gain.asinh()

    def _statistics(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training or not rows.numel():
            return self.running_mean, self.running_variance
        if not torch.compiler.is_compiling() and in_function_transform(rows):
            raise RuntimeError(
                "BatchNorm: torch.func hides the batch, whose statistics training mode needs; use eval()"
            )
        variance, mean = torch.var_mean(rows.reshape(-1, self.size), 0, correction=0)
        with torch.no_grad():
            finite = (mean.isfinite() & variance.isfinite()).all()  # one bad batch must not spoil all later ones
            for running, new in ((self.running_mean, mean), (self.running_variance, variance)):
                running.copy_(torch.where(finite, running.lerp(new, self.momentum), running))
        return mean, variance

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, momentum={self.momentum}, eps={self.eps}"
