"""Sweeps over bijections: the plain one, and two that store less and compute the rest again in backward."""

from __future__ import annotations

__all__ = ["Step", "checkpointed_sweep", "in_function_transform", "reversible_sweep", "sweep"]

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .base import Conditioned

#: A module with parameters, its map, and the inverse of that; both return value and log-determinant.
Step = tuple[nn.Module, Callable[..., tuple[Tensor, Tensor]], Callable[..., tuple[Tensor, Tensor]]]

_STORED = 16  # by a coupling for backward, in units of its input; about


def reversible_sweep(
    steps: list[Step], x: Tensor, context: Tensor | None, on_drift: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """Runs the steps one after another and adds up their log-determinants.

    Args:
        steps: The maps.
        x: Input, ``(*batch, *event_shape)``.
        context: Context, or None.
        on_drift: Called when the input could not be rebuilt to two fifths of the dtype's digits (2e-3 in
            float32). The gradient is then computed from the true input.

    Returns:
        The output and the log-determinant ``(*batch,)``.
    """
    # each once: a part that stands in two places gets the sum of its gradients
    held = dict.fromkeys(tensor for module, _, _ in steps for tensor in _held(module))
    return _ReversibleSweep.apply(steps, on_drift, x, context, *held)


def sweep(steps: Iterable[Step], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Runs the steps one after another and adds up their log-determinants."""
    total = x.new_zeros(())
    for _, step, _ in steps:
        x, log_det = step(x, context)
        total = total + log_det
    return x, total


def checkpointed_sweep(steps: list[Step], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Like `sweep`, but keeps the input of each segment alone, and runs the segment again in backward."""
    total = x.new_zeros(())
    for segment in _segments(steps):
        x, log_det = _checkpointed(segment, x, context)
        total = total + log_det
    return x, total


def _segments(steps: list[Step]) -> Iterator[list[Step]]:
    """Neighbours that are run again together: a part that stores little goes with the one that follows.

    n segments keep n inputs, and of one of them all that backward needs: least memory with as many parts in each as
    the root of their number over what a part stores, in units of its input.
    """
    heavy = sum(not module.stores_little for module, _, _ in steps)
    size = max(1, round(math.sqrt(heavy / _STORED)))
    segment: list[Step] = []
    found = 0
    for step in steps:
        segment.append(step)
        found += not step[0].stores_little
        if found == size:
            yield segment
            segment, found = [], 0
    if segment:
        yield segment


def _checkpointed(steps: list[Step], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    parameters = [p for module, _, _ in steps for p in module.parameters()]
    versions = [p._version for p in parameters]

    def run(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if [p._version for p in parameters] != versions:
            raise RuntimeError("a parameter was modified between forward and backward, the gradient would be wrong")
        return sweep(steps, x, context)

    return checkpoint(run, x, context, use_reentrant=False)


def in_function_transform(x: Tensor) -> bool:
    """Whether ``x`` belongs to ``torch.func``, whose transforms look inside a sweep themselves."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def _held(module: nn.Module) -> list[Tensor]:
    """What a module has gradients of: its parameters, and contexts that parts of it were conditioned on."""
    contexts = [part.context for part in module.modules() if isinstance(part, Conditioned)]
    return [tensor for tensor in (*module.parameters(), *contexts) if tensor.requires_grad]


class _ReversibleSweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: list[Step], on_drift: Callable, x: Tensor, context: Tensor | None, *held: Tensor):
        y, total = sweep(steps, x, context)
        if y is x:  # of identities only; autograd asks for an output of its own
            y = y.clone()
        ctx.save_for_backward(x, context, y, *held)  # saving checks that none is changed before backward
        ctx.steps, ctx.on_drift, ctx.held = steps, on_drift, held
        return y, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_total: Tensor):
        x, context, y, *_ = ctx.saved_tensors
        gradients = _Gradients(context, ctx.held)
        rebuilt = _rebuilt_inputs(ctx.steps, y, context)
        grad_x, last = gradients.pull(ctx.steps, rebuilt, grad_y, grad_total)
        if _drifted(last, x):
            warnings.warn(
                "Chain: inverting its parts did not give the input back, the error is "
                f"{_error(last, x):.1e}; gradients come from checkpoints instead, from now on",
                stacklevel=2,
            )
            ctx.on_drift()
            gradients = _Gradients(context, ctx.held)
            grad_x, _ = gradients.pull(ctx.steps, reversed(_inputs(ctx.steps, x, context)), grad_y, grad_total)
        return None, None, grad_x, gradients.of_context, *(gradients.of_held[id(tensor)] for tensor in ctx.held)


class _Gradients:
    """Adds up gradients of the context, and of what the steps hold, over the steps."""

    def __init__(self, context: Tensor | None, held: Sequence[Tensor]) -> None:
        self.context = context
        self.of_context: Tensor | None = None
        self.of_held: dict[int, Tensor | None] = {id(tensor): None for tensor in held}

    def pull(
        self, steps: list[Step], inputs: Iterable[Tensor], grad: Tensor, grad_total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradient at the first input, and that input, from the inputs of the steps, last step first."""
        x = grad
        for (module, step, _), x in zip(reversed(steps), inputs, strict=True):
            grad = self._pull_one(module, step, x, grad, grad_total)
        return grad, x

    def _pull_one(self, module: nn.Module, step: Callable, x: Tensor, grad: Tensor, grad_total: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            context = self.context
            if context is not None and context.is_floating_point():
                context = context.detach().requires_grad_()
            y, log_det = step(leaf, context)
        own = [tensor for tensor in _held(module) if id(tensor) in self.of_held]
        sources = [leaf, *own] + ([] if context is None else [context])
        outputs = [(y, grad)] + ([(log_det, grad_total.expand_as(log_det))] if log_det.requires_grad else [])
        found = torch.autograd.grad([o for o, _ in outputs], sources, [g for _, g in outputs], allow_unused=True)
        for tensor, gradient in zip(own, found[1:], strict=False):
            self.of_held[id(tensor)] = _add(self.of_held[id(tensor)], gradient)
        if context is not None:
            self.of_context = _add(self.of_context, found[-1])
        return torch.zeros_like(x) if found[0] is None else found[0]


@torch.no_grad()
def _inputs(steps: list[Step], x: Tensor, context: Tensor | None) -> list[Tensor]:
    """The input of every step, first step first."""
    inputs = [x]
    for _, step, _ in steps[:-1]:
        inputs.append(step(inputs[-1], context)[0])
    return inputs


def _rebuilt_inputs(steps: list[Step], y: Tensor, context: Tensor | None) -> Iterable[Tensor]:
    """The inputs of the steps, last step first, each by inversion when it is asked for."""
    for _, _, undo in reversed(steps):
        with torch.no_grad():
            y, _ = undo(y, context)
        yield y


def _drifted(found: Tensor, x: Tensor) -> bool:
    return not _error(found, x) <= torch.finfo(x.dtype).eps ** 0.4  # true of a NaN as well


def _error(found: Tensor, x: Tensor) -> float:
    return ((found - x).abs() / (1 + x.abs())).max().item() if x.numel() else 0.0


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
