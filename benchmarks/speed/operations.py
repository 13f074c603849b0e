"""The operations on a flow, the same matrix products without a flow, and what makes sure that both do as they say."""

from __future__ import annotations

__all__ = ["build", "check", "data", "floor", "loss_of", "operation"]

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .cells import LEARNING_RATE, Cell
from .contenders import Flow, conditioners

#: inductor's, with C++ in place of Python where that is on offer, and torch's noise as everywhere else
COMPILATION = {"fullgraph": True, "dynamic": False, "options": {"cpp_wrapper": True, "fallback_random": True}}


def build(make: Callable[[Cell], Flow], cell: Cell) -> Flow:
    """A flow with the weights that every contender gets; raises where its networks are other than the floor's."""
    flow = make(cell)
    weights, found = list(_weights(cell).parameters()), list(flow.module.parameters())
    if _sizes(found) != _sizes(weights):
        raise ValueError(f"{cell.name}: parameters must have sizes {_sizes(weights)}, got {_sizes(found)}")
    with torch.no_grad():
        for parameter, weight in zip(found, weights, strict=True):
            parameter.copy_(weight)
    return flow


def operation(cell: Cell, flow: Flow, compiled: bool = False) -> Callable[[], object]:
    """What is timed; ``compiled`` makes one function of what comes before the gradients, and one of these."""
    x = data(cell)
    whole = partial(torch.compile, **COMPILATION) if compiled else lambda function: function
    if cell.trains:
        loss = whole(lambda x: loss_of(cell, flow, x))
        return _training_step(flow.module, lambda: loss(x).backward())
    return torch.no_grad()(partial(whole(lambda x: _draw(cell, flow) if cell.samples else _log_prob(flow, x)), x))


def loss_of(cell: Cell, flow: Flow, x: Tensor) -> Tensor:
    """Reverse Kullback-Leibler divergence from a standard normal, or minus the log likelihood of ``x``."""
    if not cell.samples:
        return -_log_prob(flow, x).mean()
    sample, log_q = _draw(cell, flow)
    return (log_q - _log_normal(sample)).mean()


def floor(cell: Cell) -> Callable[[], object]:
    """The conditioners alone, each on numbers that are there already; in training their backward pass, and Adam."""
    networks = _weights(cell)
    staying = data(cell)[:, : cell.dim // 2].contiguous()
    if not cell.trains:
        return torch.no_grad()(lambda: [network(staying) for network in networks])
    # what enters the first layer of a flow needs no gradient
    inputs = [staying, *(staying.clone().requires_grad_() for _ in networks[1:])]
    weight = torch.full((cell.batch, cell.num_params * staying.shape[1]), 1 / cell.batch)

    def backward() -> None:
        for x in inputs:
            x.grad = None
        outputs = [network(x) for network, x in zip(networks, inputs, strict=True)]
        torch.autograd.backward(outputs, [weight] * len(outputs))

    return _training_step(networks, backward)


def data(cell: Cell) -> Tensor:
    return torch.randn(cell.batch, cell.dim, generator=torch.Generator().manual_seed(1))


def check(make: Callable[[Cell], Flow], cell: Cell) -> float:
    """Matrix products of an operation, relative to the floor's.

    Raises if the log density that comes with a sample is not that of the same sample scored alone, or if there
    are fewer products than the conditioners need, as when an operation answers from a cache.
    """
    small = replace(cell, batch=64)
    flow = build(make, small)
    with torch.no_grad():
        x, log_q = _draw(small, flow)
        torch.testing.assert_close(_log_prob(flow, x), log_q, rtol=1e-5, atol=1e-2)
    products = _products(operation(small, flow)) / _products(floor(small))
    if products < 1:
        raise RuntimeError(f"{cell.name}: {products:.2f} of the matrix products that its networks need")
    return products


def _training_step(module: nn.Module, backward: Callable[[], None]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward()
        optimizer.step()

    return step


def _draw(cell: Cell, flow: Flow) -> tuple[Tensor, Tensor]:
    z = torch.randn(cell.batch, cell.dim)
    x, log_det = flow.forward(z)
    return x, _log_normal(z) - log_det


def _log_prob(flow: Flow, x: Tensor) -> Tensor:
    z, log_det = flow.inverse(x)
    return _log_normal(z) + log_det


def _log_normal(x: Tensor) -> Tensor:
    return -0.5 * x.square().sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]


def _weights(cell: Cell) -> nn.ModuleList:
    torch.manual_seed(0)
    return conditioners(cell)


def _products(run: Callable[[], object]) -> int:
    run()  # what the first call alone computes does not count
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _sizes(tensors: list[nn.Parameter]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]
