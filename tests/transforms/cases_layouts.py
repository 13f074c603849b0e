"""Couplings of images, sets and sound, changes of layout, nesting and memory modes, as the harness takes them."""

from __future__ import annotations

__all__ = ["LAYOUT_CASES"]

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from pyro_coupling import flows
from pyro_coupling.nn import ConvNet, DilatedConv1d, GatedResidualConv, MessagePassing, OverBatch, SetAttention, mlp
from pyro_coupling.transforms import (
    Affine,
    Bijection,
    Chain,
    Coupling,
    DiagonalAffine,
    MaskedPartition,
    OnSlice,
    Partition,
    Permutation,
    RationalQuadraticSpline,
    Reshape,
    SlicePartition,
    Squeeze,
    TanhScale,
    WithContext,
    alternating,
    checkerboard,
    halves,
)

IMAGE, SOUND, SET = (2, 2, 4), (2, 6), (3, 4)
RING = torch.tensor([[0, 1, 2], [1, 2, 0]])


def _laid_out(partition: Partition, make: Callable[[int, int], nn.Module], elementwise=None, context=0) -> Coupling:
    elementwise = elementwise or Affine()
    dim = partition.channel_dim
    size = partition.shown_shape[dim] + (context if isinstance(context, int) else context[dim])
    network = make(size, partition.answer_shape(elementwise.num_params)[dim])
    return Coupling(partition, network, elementwise, context)


def _conv(i: int, o: int) -> nn.Module:
    return ConvNet(i, o, hidden_channels=3)


def _vector(context: int = 0) -> Coupling:
    partition = Partition(halves(4))
    return Coupling(partition, mlp(2 + context, 2, 2, (6,)), Affine(), context)


def _squeezed() -> Chain:
    return Chain([Squeeze(IMAGE), _laid_out(SlicePartition((8, 1, 2), dim=-3), _conv), Squeeze(IMAGE).inv])


SPLINE = RationalQuadraticSpline(3, 3.0)
LAYOUT_CASES: dict[str, Callable[[], Bijection]] = {
    "channels": lambda: _laid_out(SlicePartition(IMAGE, dim=-3), _conv),
    "channels-last": lambda: _laid_out(SlicePartition(IMAGE, dim=-3, stays_first=False), _conv, SPLINE),
    "channels-context": lambda: _laid_out(SlicePartition(IMAGE, dim=-3), _conv, context=2),
    "channels-context-image": lambda: _laid_out(SlicePartition(IMAGE, dim=-3), _conv, context=(2, 2, 4)),
    "checkerboard": lambda: _laid_out(
        MaskedPartition(checkerboard(IMAGE)), partial(GatedResidualConv, hidden_channels=3)
    ),
    "checkerboard-context-image": lambda: _laid_out(MaskedPartition(checkerboard(IMAGE, 1)), _conv, SPLINE, (1, 2, 4)),
    "nothing-stays-context-image": lambda: _laid_out(
        MaskedPartition(torch.zeros(IMAGE, dtype=torch.bool)),
        lambda i, o: OverBatch(nn.Conv2d(i, o, 1), 3),
        context=(2, 2, 4),
    ),
    "sound": lambda: _laid_out(
        SlicePartition(SOUND, dim=-2), partial(DilatedConv1d, hidden_channels=3, num_layers=2), context=(1, 6)
    ),
    "set": lambda: _laid_out(
        SlicePartition(SET), partial(SetAttention, num_heads=2, hidden_dim=4, num_layers=1), SPLINE, 2
    ),
    "graph": lambda: _laid_out(
        SlicePartition(SET), partial(MessagePassing, edges=RING, hidden_dim=4, num_rounds=1), context=(3, 2)
    ),
    "masked-features": lambda: _laid_out(
        MaskedPartition(alternating(SET), dim=-1), partial(SetAttention, num_heads=2, hidden_dim=4, num_layers=1)
    ),
    "squeezed": _squeezed,
    "reshaped": lambda: Chain([Reshape(4, (2, 2)), DiagonalAffine(torch.ones(2, 2)), Reshape((2, 2), 4), _vector()]),
    "on-slice": lambda: OnSlice(_vector(), 6),
    "on-slice-image-context": lambda: OnSlice(
        _laid_out(SlicePartition(IMAGE, dim=-3), _conv, context=2), (3, 2, 4), dim=-3
    ),
    "with-context": lambda: WithContext(_vector(3), nn.Linear(2, 3), 2),
    "reversible": lambda: Chain([_vector(), Permutation.reverse(4), _vector()], reversible=True),
    "reversible-context": lambda: Chain([_vector(2), Permutation.reverse(4), _vector(2)], reversible=True),
    "checkpoint": lambda: Chain([_vector(2), Permutation.reverse(4), _vector(2)], checkpoint=True),
    "real_nvp_image": lambda: flows.real_nvp_image(
        (1, 2, 4), 2, context_dim=(1, 2, 4), network=_conv, scale=TanhScale(0.5)
    ),
    "glow": lambda: flows.glow((1, 2, 4), 1, 1, 3, context_dim=2).eval(),
    "wave_glow-context": lambda: flows.wave_glow(16, 1, 3, (2, 2), group=4, num_dilations=1),
    "wave_glow": lambda: flows.wave_glow(8, 2, 3, group=4, early_every=1, early_size=1, num_dilations=1),
}
