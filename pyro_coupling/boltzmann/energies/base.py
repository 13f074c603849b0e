"""The base class of every potential energy: one formula in, checked shapes and forces out."""

from __future__ import annotations

__all__ = ["Energy"]

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def _checked(method: Callable) -> Callable:
    """Adds the check of the input to a method of a subclass."""

    @functools.wraps(method)
    def checked(self: Energy, x: Tensor) -> Any:
        self._check(x)
        return method(self, x)

    return checked


class Energy(nn.Module):
    """A potential energy on a batch of configurations.

    A subclass implements `energy`, differentiable by autograd; where it has a faster way to forces, also
    `energy_and_force`. Inputs are checked here, once, for every subclass. The computation is of the dtype
    and on the device of the input.

    Args:
        event_shape: Shape of one configuration: ``(dim,)`` or ``(particles, dims)``.

    Example:
        >>> import torch
        >>> class Spring(Energy):
        ...     def energy(self, x):
        ...         return 0.5 * x.square().sum(-1)
        >>> energy, force = Spring((2,)).energy_and_force(torch.tensor([[3.0, 4.0]]))
        >>> energy, force
        (tensor([12.5000]), tensor([[-3., -4.]]))
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("energy", "energy_and_force"):
            if name in cls.__dict__:
                setattr(cls, name, _checked(cls.__dict__[name]))

    def energy(self, x: Tensor) -> Tensor:
        """Potential energy, differentiable.

        Args:
            x: Configurations, ``(*batch, *event_shape)``.

        Returns:
            Energies, ``(*batch,)``.

        Raises:
            ValueError: If x does not end in the event shape.
            TypeError: If x is not of a real floating-point dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement energy")

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Potential energy and minus its gradient, on no graph.

        Args:
            x: Configurations, ``(*batch, *event_shape)``.

        Returns:
            Energies ``(*batch,)`` and forces ``(*batch, *event_shape)``, detached.
        """
        self._check(x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            energy = self.energy(leaf)
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return energy.detach(), -gradient

    def forward(self, x: Tensor) -> Tensor:
        """The same as `energy`."""
        return self.energy(x)

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"

    def _check(self, x: Tensor) -> None:
        batch_dim = x.dim() - len(self.event_shape)
        if batch_dim < 0 or x.shape[batch_dim:] != self.event_shape:
            raise ValueError(
                f"{type(self).__name__}: configurations must end in the event shape {tuple(self.event_shape)}, "
                f"but have shape {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise TypeError(f"{type(self).__name__}: configurations must be of a floating-point dtype, got {x.dtype}")
