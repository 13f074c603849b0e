"""What the conditioners share: checked settings, batches of any shape, linear layers, residual blocks, zero starts."""

from __future__ import annotations

__all__ = ["Linear", "Residual", "activated", "check_settings", "over_batch", "zeroed"]

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from ..registry import register

Layer = TypeVar("Layer", bound=nn.Module)

_FEW = 16  # columns of a product from which on it takes no longer than that of the transposed matrices


def zeroed(layer: Layer) -> Layer:
    """The layer with parameters of zero: at the end of a conditioner it makes a coupling start as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def over_batch(function: Callable[[Tensor], Tensor], x: Tensor, event_dim: int) -> Tensor:
    """Applies a function of one batch dimension to ``(*batch, *event)``, whatever the batch shape."""
    if x.dim() < event_dim:
        raise ValueError(f"the input must have at least {event_dim} dimensions, but has shape {tuple(x.shape)}")
    y = function(x.unsqueeze(0).flatten(0, -event_dim - 1))
    return y.reshape(x.shape[: x.dim() - event_dim] + y.shape[1:])


def check_settings(*, dropout: float = 0.0, kernel_size: int = 1, **sizes: int) -> None:
    """Refuses settings no network can have; every one of ``sizes`` must be a positive integer."""
    for name, size in {**sizes, "kernel_size": kernel_size}.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that the output has the size of the input, got {kernel_size}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and less than 1, got {dropout!r}")


def activated(
    size: int, activation: Callable[[], nn.Module], normalization: Callable[[int], nn.Module] | None
) -> list[nn.Module]:
    """What stands before a layer of a pre-activation network: a normalisation, if there is one, and the activation."""
    return [activation()] if normalization is None else [normalization(size), activation()]


@register
class Linear(nn.Linear):
    """``nn.Linear``, its gradient faster where it has few inputs, as the first layer of a small problem's network.

    Autograd takes the gradient of the weight as a product with one column for each input, or as that of the
    transposed matrices, according to the layout of the weight. On a CPU few columns can be slow: MKL needs 40
    microseconds for 128 x 256 by 256 x 4 on an AMD EPYC, and 8 for the transposed matrices.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.in_features < _FEW and weight.device.type == "cpu":
            weight = weight.mT.contiguous().mT  # no parameter of that layout, which safetensors refuses
        return nn.functional.linear(x, weight, self.bias)


@register
class Residual(nn.Sequential):
    """``x + f(x)``, where f is the given modules in turn."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)
