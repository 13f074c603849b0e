"""flowjax, in a process of its own that answers one line of JSON with another: make a cell's operation, or time it."""

from __future__ import annotations

__all__: list[str] = []

import json
import sys
from collections.abc import Callable
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import paramax
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import StandardNormal, Transformed
from flowjax.flows import coupling_flow

from .cells import BINS, BOUND, HIDDEN, LEARNING_RATE, Cell, timed


def flow_of(cell: Cell) -> Transformed:
    """Its recipe."""
    spline = RationalQuadraticSpline(knots=BINS - 1, interval=BOUND)
    return coupling_flow(
        jax.random.key(0),
        base_dist=StandardNormal((cell.dim,)),
        transformer=None if cell.kind == "affine" else spline,
        flow_layers=cell.layers,
        nn_width=HIDDEN[0],
        nn_depth=len(HIDDEN),
    )


def operation(cell: Cell, flow: Transformed) -> Callable[[], object]:
    """What is timed: one compiled call, waited for."""
    params, static = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )
    data = jax.random.normal(jax.random.key(1), (cell.batch, cell.dim))
    key = jax.random.key(2)

    def evaluate(params, key, data):
        flow = paramax.unwrap(eqx.combine(params, static))
        return flow.sample_and_log_prob(key, (cell.batch,)) if cell.samples else flow.log_prob(data)

    if not cell.trains:
        compiled = jax.jit(evaluate)
        return lambda: jax.block_until_ready(compiled(params, key, data))

    optimizer = optax.adam(LEARNING_RATE)
    carry = (params, optimizer.init(params), key)

    def loss(params, key, data):
        if not cell.samples:
            return -evaluate(params, key, data).mean()
        x, log_q = evaluate(params, key, data)
        return (log_q - jax.scipy.stats.norm.logpdf(x).sum(-1)).mean()

    @partial(jax.jit, donate_argnums=0)
    def step(carry, data):
        params, state, key = carry
        key, now = jax.random.split(key)
        value, gradient = jax.value_and_grad(loss)(params, now, data)
        updates, state = optimizer.update(gradient, state)
        return (eqx.apply_updates(params, updates), state, key), value

    def run() -> None:
        nonlocal carry
        carry, value = step(carry, data)
        value.block_until_ready()  # as are then the weights: both come out of one computation

    return run


def count(flow: Transformed) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(flow, eqx.is_inexact_array)))


@cache
def check(kind: str) -> None:
    """Raises if the log density that comes with a sample is not that of the same sample scored alone."""
    flow = flow_of(Cell(kind, 8, 64, "slq"))
    x, log_q = flow.sample_and_log_prob(jax.random.key(3), (64,))
    worst = float(jnp.abs(flow.log_prob(x) - log_q).max())
    if not worst < 1e-2:
        raise RuntimeError(f"flowjax, {kind}: the two log densities of one sample differ by {worst:.1e}")


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may write between the answers
    for line in sys.stdin:
        request = json.loads(line)
        if "cell" in request:
            cell = Cell(**request["cell"])
            flow = flow_of(cell)
            check(cell.kind)
            answer = {"parameters": count(flow)}
            run = operation(cell, flow)
            run()  # compiles
        else:
            answer = {"samples": timed(run, request["calls"])}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
