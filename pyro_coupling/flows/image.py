"""Flows of images ``(channels, height, width)``: RealNVP with its multi-scale architecture, and Glow."""

from __future__ import annotations

__all__ = ["glow", "real_nvp_image"]

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..nn import ConvNet, GatedResidualConv, OverBatch
from ..nn.parts import zeroed
from ..transforms import (
    ActNorm,
    Affine,
    Bijection,
    Chain,
    Coupling,
    MaskedPartition,
    OnSlice,
    Partition,
    Scale,
    SigmoidScale,
    SlicePartition,
    Squeeze,
    TanhScale,
    WithContext,
    checkerboard,
    conv1x1,
)
from ..transforms.partitions import as_shape

#: Makes the network of a coupling from its numbers of input and output channels.
Network = Callable[[int, int], nn.Module]


def real_nvp_image(
    event_shape: Sequence[int],
    num_scales: int = 2,
    hidden_channels: int = 32,
    num_blocks: int = 2,
    context_dim: int | Sequence[int] = 0,
    *,
    scale: Scale | None = None,
    network: Network | None = None,
    learned_prior: bool = True,
    reversible: bool = False,
    checkpoint: bool = False,
    compile: bool = False,
) -> Bijection:
    """RealNVP for images: checkerboard couplings, squeeze, channel couplings, half factored out, again.

    Base noise has the shape of an image as well.

    Args:
        event_shape: ``(channels, height, width)``, both sizes divisible by ``2**(num_scales - 1)``.
        num_scales: Number of resolutions.
        hidden_channels: Width of the residual networks.
        num_blocks: Their number of blocks.
        context_dim: Number of context features for a whole image (such as a one-hot class), or the shape
            ``(features, height, width)`` of a context with features for each pixel; 0 for none.
        scale: Scale parameterisation, ``TanhScale(2.0)`` if not given.
        network: Makes a coupling's network from its numbers of input and output channels; gated residual
            convolutions if not given.
        learned_prior: Whether the part factored out has a Gaussian that depends on the part that goes on,
            or a standard one.
        reversible: See `transforms.Chain`; concerns the chain of each scale.
        checkpoint: See `transforms.Chain`.
        compile: See `transforms.Chain`; the whole flow is compiled at once.

    Reference:
        Dinh, Sohl-Dickstein, Bengio. Density estimation using Real NVP. ICLR 2017.

    Example:
        >>> import torch
        >>> flow = real_nvp_image((1, 8, 8), hidden_channels=4)
        >>> flow(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """
    make = network or (lambda i, o: GatedResidualConv(i, o, hidden_channels, num_blocks))
    elementwise = Affine(scale or TanhScale())

    def at_scale(shape: Sequence[int], scales: int, context: tuple[int, ...]) -> Bijection:
        outermost = compile and scales == num_scales
        boards = [
            _coupling(MaskedPartition(checkerboard(shape, phase % 2)), make, elementwise, context)
            for phase in range(4 if scales == 1 else 3)
        ]
        if scales == 1:
            return Chain(boards, reversible=reversible, checkpoint=checkpoint, compile=outermost)

        def squeezed(shape: Sequence[int], context: tuple[int, ...]) -> list[Bijection]:
            half = shape[0] // 2
            parts: list[Bijection] = [OnSlice(at_scale((half, *shape[1:]), scales - 1, context), shape)]
            if learned_prior:
                parts.append(_coupling(SlicePartition(shape, half, dim=-3), make, elementwise, context))
            for layer in range(3):
                cut = SlicePartition(shape, half, dim=-3, stays_first=layer % 2 == 1)
                parts.append(_coupling(cut, make, elementwise, context))
            return parts

        inner = _between_squeezes(squeezed, shape, context, {"reversible": reversible, "checkpoint": checkpoint})
        return Chain([inner, *boards], reversible=reversible, checkpoint=checkpoint, compile=outermost)

    shape, context = _image_shapes(event_shape, num_scales - 1, num_scales, context_dim)
    return at_scale(shape, num_scales, context)


def glow(
    event_shape: Sequence[int],
    num_scales: int = 3,
    num_steps: int = 8,
    hidden_channels: int = 128,
    context_dim: int | Sequence[int] = 0,
    *,
    scale: Scale | None = None,
    network: Network | None = None,
    learned_prior: bool = True,
    lu: bool = True,
    seed: int = 0,
    reversible: bool = False,
    checkpoint: bool = False,
    compile: bool = False,
) -> Bijection:
    """Glow: at each scale squeeze, steps of actnorm, 1x1 convolution and affine coupling, half factored out.

    Base noise has the shape of an image as well. With a one-hot class as context the flow is
    class-conditional: the class reaches the Gaussian of the coarsest scale and every coupling.

    Args:
        event_shape: ``(channels, height, width)``, both sizes divisible by ``2**num_scales``.
        num_scales: Number of resolutions.
        num_steps: Steps at each of them.
        hidden_channels: Width of the convolutional networks.
        context_dim: As for `real_nvp_image`.
        scale: Scale parameterisation, ``SigmoidScale()`` if not given.
        network: Makes a coupling's network from its numbers of input and output channels; three
            convolutions if not given.
        learned_prior: Whether the parts factored out have learned Gaussians, or standard ones.
        lu: Whether the 1x1 convolutions are LU-decomposed, or plain matrices.
        seed: Of the random rotations they start from.
        reversible: See `transforms.Chain`; concerns the chain of each scale.
        checkpoint: See `transforms.Chain`.
        compile: See `transforms.Chain`; the whole flow is compiled at once.

    Reference:
        Kingma, Dhariwal. Glow: generative flow with invertible 1x1 convolutions. NeurIPS 2018.

    Example:
        >>> import torch
        >>> flow = glow((1, 8, 8), num_scales=2, num_steps=2, hidden_channels=4, context_dim=10).eval()
        >>> flow.condition(torch.eye(10)[:5])(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """
    make = network or (lambda i, o: ConvNet(i, o, hidden_channels))
    elementwise = Affine(scale or SigmoidScale())
    gaussian = Affine(TanhScale(8.0))
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be a positive integer, got {num_steps!r}")

    def at_scale(shape: Sequence[int], scales: int, context: tuple[int, ...]) -> Bijection:
        def squeezed(shape: Sequence[int], context: tuple[int, ...]) -> list[Bijection]:
            half = shape[0] // 2
            parts: list[Bijection] = []
            if scales > 1:
                parts.append(OnSlice(at_scale((half, *shape[1:]), scales - 1, context), shape))
            if learned_prior:
                nothing = MaskedPartition(torch.zeros(shape, dtype=torch.bool))
                stays = SlicePartition(shape, half, dim=-3) if scales > 1 else nothing
                parts.append(_coupling(stays, _one_convolution, gaussian, context))
            for step in range(num_steps):
                parts.append(_coupling(SlicePartition(shape, half, dim=-3), make, elementwise, context))
                parts.append(conv1x1(shape, lu=lu, seed=seed + num_steps * scales + step))
                parts.append(ActNorm(shape, dim=-3))
            return parts

        settings = {"reversible": reversible, "checkpoint": checkpoint, "compile": compile and scales == num_scales}
        return _between_squeezes(squeezed, shape, context, settings)

    shape, context = _image_shapes(event_shape, num_scales, num_scales, context_dim)
    return at_scale(shape, num_scales, context)


def _coupling(partition: Partition, make: Network, elementwise: Affine, context: tuple[int, ...]) -> Coupling:
    size = partition.shown_shape[-3] + (context[0] if context else 0)
    network = make(size, partition.answer_shape(elementwise.num_params)[-3])
    return Coupling(partition, network, elementwise, context)


def _one_convolution(in_channels: int, out_channels: int) -> nn.Module:
    return OverBatch(zeroed(nn.Conv2d(in_channels, out_channels, 3, padding="same")), 3)


def _between_squeezes(
    make: Callable[[Sequence[int], tuple[int, ...]], list[Bijection]],
    shape: Sequence[int],
    context: tuple[int, ...],
    settings: dict[str, bool],
) -> Bijection:
    """What ``make`` builds at half the resolution, squeezed before and unsqueezed after.

    A context with features for each pixel is squeezed along, and brought back to as many channels.
    """
    squeeze = Squeeze(shape)
    if len(context) < 2:
        return Chain([squeeze, *make(squeeze.output_shape, context), squeeze.inv], **settings)
    smaller = (context[0], context[1] // 2, context[2] // 2)
    inner = Chain([squeeze, *make(squeeze.output_shape, smaller), squeeze.inv], **settings)
    encoder = nn.Sequential(Squeeze(context), OverBatch(nn.Conv2d(4 * context[0], context[0], 1), 3))
    return WithContext(inner, encoder, context)


def _image_shapes(
    event_shape: Sequence[int], num_squeezes: int, num_scales: int, context_dim: int | Sequence[int]
) -> tuple[Sequence[int], tuple[int, ...]]:
    shape = as_shape(event_shape)
    if not isinstance(num_scales, int) or num_scales < 1:
        raise ValueError(f"num_scales must be a positive integer, got {num_scales!r}")
    if len(shape) != 3:
        raise ValueError(f"event_shape must be (channels, height, width), got {shape}")
    if shape[1] % 2**num_squeezes or shape[2] % 2**num_squeezes:
        raise ValueError(
            f"event_shape {shape}: height and width must be divisible by {2**num_squeezes} for {num_scales} scales"
        )
    context = (context_dim,) if isinstance(context_dim, int) else tuple(context_dim)
    context = () if context == (0,) else context
    if len(context) not in (0, 1) and (len(context) != 3 or context[1:] != shape[1:]):
        raise ValueError(
            f"context_dim must be a number of features or (features, {shape[1]}, {shape[2]}), got {context_dim}"
        )
    return shape, context
