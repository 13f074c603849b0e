"""Multi-layer perceptrons, for events that are vectors, and the helper that builds the one a coupling needs."""

from __future__ import annotations

__all__ = ["MLP", "Constant", "SeparateMLPs", "mlp"]

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..registry import register
from .parts import Linear, check_settings, zeroed


@register
class MLP(nn.Sequential):
    """A multi-layer perceptron whose last layer starts at zero, so that a coupling starts as the identity.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        hidden_dims: Sizes of the hidden layers.
        activation: Makes an activation module.
        dropout: Fraction of the hidden units that are dropped while training.

    Raises:
        ValueError: If a size is not a positive integer, or ``dropout`` is not in [0, 1).

    Example:
        >>> import torch
        >>> MLP(3, 4, hidden_dims=(8,))(torch.ones(2, 3)).abs().max().item()
        0.0
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
    ) -> None:
        check_settings(in_features=in_features, out_features=out_features, dropout=dropout)
        sizes = [in_features, *_checked(hidden_dims)]
        layers: list[nn.Module] = []
        for size, next_size in pairwise(sizes):
            active = activation()
            if type(active) is nn.ReLU:  # needs its result alone for the gradient, and the layer's output is nobody's
                active = nn.ReLU(inplace=True)
            # one module with the activation, so that weights load whether or not there is dropout
            layers += [Linear(size, next_size), nn.Sequential(active, nn.Dropout(dropout)) if dropout else active]
        super().__init__(*layers, zeroed(Linear(sizes[-1], out_features)))


@register
class SeparateMLPs(nn.ModuleList):
    """One `MLP` for each parameter of the elementwise map, as in the first RealNVP, in place of a joint one.

    Args:
        in_features: Size of the input.
        num_params: Number of networks.
        num_moving: Size of the output of each.
        hidden_dims: Sizes of the hidden layers.
        activation: Makes an activation module.
        dropout: Fraction of the hidden units that are dropped while training.

    Example:
        >>> import torch
        >>> network = SeparateMLPs(3, num_params=2, num_moving=5)
        >>> len(network), network(torch.ones(7, 3)).shape
        (2, torch.Size([7, 10]))
    """

    def __init__(
        self,
        in_features: int,
        num_params: int,
        num_moving: int,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(MLP(in_features, num_moving, hidden_dims, activation, dropout) for _ in range(num_params))

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, in_features)`` -> ``(*batch, num_params * num_moving)``."""
        return torch.cat([network(x) for network in self], -1)


@register
class Constant(nn.Module):
    """Learned numbers that depend on nothing: what a conditioner with no input comes down to.

    Args:
        out_features: How many.
        rate: How far they move for a step of the parameter. A network's output moves by the steps of all its
            weights together, a bare number by one, so beside networks it falls behind.

    Example:
        >>> import torch
        >>> Constant(2)(torch.empty(7, 0))
        tensor([0., 0.], grad_fn=<MulBackward0>)
    """

    def __init__(self, out_features: int, rate: float = 1.0) -> None:
        super().__init__()
        self.rate = rate
        self.value = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, 0)`` -> ``(out_features,)``: the same for the whole batch, and computed once."""
        return self.rate * self.value

    def extra_repr(self) -> str:
        return f"{self.value.numel()}, rate={self.rate}"


def mlp(
    in_features: int,
    num_params: int,
    num_moving: int,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Callable[[], nn.Module] = nn.SiLU,
    separate: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """The conditioner for a coupling that moves ``num_moving`` entries by a map of ``num_params`` parameters.

    Args:
        in_features: Entries that stay, and context features. With none the parameters are learned directly.
        num_params: Parameters of the elementwise map.
        num_moving: Entries that are moved.
        hidden_dims: Sizes of the hidden layers, each at least 1.
        activation: Makes an activation module.
        separate: One network for each parameter in place of a joint one.
        dropout: Fraction of the hidden units that are dropped while training.

    Raises:
        ValueError: If a size is not a positive integer, or ``dropout`` is not in [0, 1).

    Example:
        >>> import torch
        >>> from pyro_coupling.transforms import Affine, Coupling, halves
        >>> layer = Coupling(halves(5), mlp(2, num_params=2, num_moving=3), Affine())
        >>> layer(torch.zeros(7, 5)).shape
        torch.Size([7, 5])
    """
    sizes = _checked(hidden_dims)
    if in_features == 0:
        return Constant(num_params * num_moving)
    if separate:
        return SeparateMLPs(in_features, num_params, num_moving, sizes, activation, dropout)
    return MLP(in_features, num_params * num_moving, sizes, activation, dropout)


def _checked(hidden_dims: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(hidden_dims)
    if any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"hidden_dims must hold positive integers, got {hidden_dims!r}")
    return sizes
