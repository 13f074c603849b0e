"""Adam for flows, which have many small parameters: these are joined and moved as one."""

from __future__ import annotations

__all__ = ["JoinedAdam"]

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

_SMALL = 2**16  # entries up to which starting an operation takes longer than what it does


class JoinedAdam:
    """Adam with a bound on the norm of the gradient: that of `torch.optim.Adam`, in half of the time.

    The parameters stay tensors of their own, which others may change between two steps. One without a gradient
    counts as one whose gradient is zero.

    Args:
        parameters: What is moved, in place.
        learning_rate: Step size; may be set anew before each step.
        betas: Decay of the averages of the gradient and of its square.
        max_norm: The gradient is scaled down to this norm where it is larger.

    Example:
        >>> import torch
        >>> parameter = torch.ones(3, requires_grad=True)
        >>> parameter.square().sum().backward()
        >>> JoinedAdam([parameter], learning_rate=0.1).step()
        True
        >>> parameter
        tensor([0.9000, 0.9000, 0.9000], requires_grad=True)
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.99),
        max_norm: float = 10.0,
    ) -> None:
        self.learning_rate, self.max_norm = learning_rate, max_norm
        groups = _grouped(parameters)
        self._parameters = [parameter for group in groups for parameter in group]
        self._joined = [_join(group).requires_grad_() for group in groups]
        # where each parameter and its gradient lie among the joined ones: found once, since a view takes microseconds
        self._places, self._gradients = [], []
        for group, joined in zip(groups, self._joined, strict=True):
            joined.grad = torch.zeros_like(joined)
            self._places += _parts(joined.detach(), group)
            self._gradients += _parts(joined.grad, group)
        self._adam = torch.optim.Adam(self._joined, betas=betas, fused=True)

    @torch.no_grad()
    def step(self) -> bool:
        """Moves the parameters by their ``.grad``; where that is not finite it does nothing, and returns False."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        torch._foreach_copy_(self._gradients, gradients)
        joined = [cast(Tensor, tensor.grad) for tensor in self._joined]
        norm = math.hypot(*torch.stack(torch._foreach_norm(joined)).tolist())
        if not math.isfinite(norm):
            return False
        if norm > self.max_norm:
            torch._foreach_mul_(joined, self.max_norm / norm)
        for settings in self._adam.param_groups:
            settings["lr"] = self.learning_rate
        torch._foreach_copy_(self._places, self._parameters)  # others may have changed them
        self._adam.step()
        torch._foreach_copy_(self._parameters, self._places)
        return True

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """The averages and the number of steps, for each group of parameters."""
        return self._adam.state_dict()["state"]

    def load_state_dict(self, state: dict[int, dict[str, Any]]) -> None:
        """Takes up what `state_dict` returned, for parameters of the same shapes.

        Raises:
            ValueError: If an average has another number of entries.
        """
        for i, averages in state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if averages[name].shape != self._joined[i].shape:
                    raise ValueError(
                        f"JoinedAdam: {name} must have {self._joined[i].numel()} entries, got {averages[name].numel()}"
                    )
        self._adam.load_state_dict({"state": state, "param_groups": self._adam.state_dict()["param_groups"]})


def _grouped(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Small ones together, by dtype and device, and large ones by themselves."""
    groups: dict[Any, list[Tensor]] = {}
    for i, parameter in enumerate(parameters):
        kind = (parameter.dtype, parameter.device) if parameter.numel() <= _SMALL else i
        groups.setdefault(kind, []).append(parameter)
    return list(groups.values())


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _parts(joined: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of what `_join` has joined, in the shapes of the tensors."""
    parts = joined.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
