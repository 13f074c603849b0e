"""Flows as pictures run them: checked, in evaluation mode, without a trace left in them."""

from __future__ import annotations

__all__ = ["as_found", "check", "parts_of"]

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..transforms import Bijection, Chain
from ..transforms.base import Inverse


def check(flow: Bijection, argument: str, context: Tensor | None) -> None:
    """Refuses what is no bijection, and a context for several inputs."""
    if not isinstance(flow, Bijection):
        raise TypeError(f"{argument} must be a Bijection of pyro_coupling.transforms, got {type(flow).__name__}")
    if context is not None and context.shape != flow.context_shape:
        raise ValueError(f"context must be one, of shape {tuple(flow.context_shape)}, got {tuple(context.shape)}")


@contextmanager
def as_found(flow: Bijection) -> Iterator[None]:
    """Evaluation mode for a while: a picture must not set an `ActNorm`, draw dropout or move running statistics."""
    training = [part for part in flow.modules() if part.training]
    flow.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def parts_of(flow: Bijection) -> list[Bijection]:
    """The layers of a chain in the order they act, chains within chains and inverses of chains taken apart."""
    if isinstance(flow, Chain):
        return [layer for part in flow for layer in parts_of(part)]
    if isinstance(flow, Inverse) and isinstance(flow.bijection, Chain):
        return [part.inv for part in reversed(parts_of(flow.bijection))]
    return [flow]
