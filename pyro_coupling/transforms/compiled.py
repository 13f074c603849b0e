"""Sweeps over a chain compiled by inductor: one function for each kind of call, the ordinary sweep elsewhere."""

from __future__ import annotations

__all__ = ["CompiledSweeps", "Sweep"]

import logging
import types
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge

from .base import Bijection
from .tiles import in_tiles

#: A chain, an input and a context or None, to value and log-determinant.
Sweep = Callable[[Any, Tensor, "Tensor | None"], tuple[Tensor, Tensor]]

_MOST_FUNCTIONS = 8  # each takes long to compile, and as many come and go with the sizes of batches
_log = logging.getLogger(__name__)


class CompiledSweeps:
    """Compiles a sweep the second time that it is called in the same way, and runs what it has compiled.

    The same way is with inputs of the same shape, dtype and device, with or without gradients, in training or
    not. The first such call is an ordinary one: what is called once is not worth a minute of compilation, and by the
    second call layers that are set by their first batch have been.

    A sweep is an ordinary one as well under ``torch.func``, ``torch.jit``, forward-mode differentiation,
    dispatch modes and another compilation; where a second derivative, or the first once more, is asked for;
    when there are too many kinds of call; and when compilation fails, of both of which a warning tells.

    What is compiled is no state: a copy starts without it.

    Attributes:
        reason: Why no sweep is compiled any more, or ``""``.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._functions: dict[Hashable, Sweep] = {}
        self._met: set[Hashable] = set()
        self._due: set[Hashable] = set()
        self._full = False

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ()

    def __call__(self, sweep: Sweep, chain: Bijection, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the sweep returns."""
        ordinary = partial(in_tiles, partial(sweep, chain), chain, (x,), context)
        if self.reason or x.numel() == 0 or _is_watched():
            return ordinary()
        kind = _kind(sweep, chain, x, context)
        if not self._is_due(kind):
            outputs = ordinary()
            self._met.add(kind)  # not before: what the user has done wrong raises
            return outputs
        try:
            return in_tiles(partial(self._run_tile, sweep, chain), chain, (x,), context)
        except Exception as error:  # whatever a compiler does
            outputs = ordinary()  # raises what is the user's to mend
            self.reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            self._functions.clear()
            warnings.warn(f"Chain: compilation failed ({self.reason}). It runs uncompiled", stacklevel=5)
            return outputs

    def _is_due(self, kind: Hashable) -> bool:
        if kind in self._due:
            return True
        if self._full or kind not in self._met:
            return False
        self._full = len(self._due) == _MOST_FUNCTIONS
        if self._full:
            warnings.warn(
                f"Chain: {_MOST_FUNCTIONS} kinds of call are compiled, others run uncompiled; keep to few batch shapes",
                stacklevel=6,
            )
        else:
            self._due.add(kind)
        return not self._full

    def _run_tile(self, sweep: Sweep, chain: Bijection, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kind = _kind(sweep, chain, x, context)  # of a tile; different batches may have the same
        if kind not in self._functions:
            self._functions[kind] = self._compile(sweep, chain, x, context)
        return _run(self._functions[kind], sweep, chain, x, context)

    def _compile(self, sweep: Sweep, chain: Bijection, x: Tensor, context: Tensor | None) -> Sweep:
        if not self._functions:
            _log.warning("compiling a flow for a batch of shape %s; it takes a minute or more, once", tuple(x.shape))
        # kernels are short, so what starts them counts: on a GPU a replayed graph, on a CPU C++ rather than Python
        how: dict[str, Any] = {"mode": "reduce-overhead"} if x.is_cuda else {"options": {"cpp_wrapper": True}}
        function = torch.compile(_with_code_of_its_own(sweep), fullgraph=True, dynamic=False, **how)
        outputs = [output for output in _run(function, sweep, chain, x, context) if output.requires_grad]
        if outputs:
            _check_reach(*cast(Any, outputs[0].grad_fn).graph)
            # the way back is compiled when it is first gone
            nothing = [torch.zeros_like(output) for output in outputs]
            torch.autograd.grad(outputs, _sources(chain, x, context), nothing, allow_unused=True)
        return function


def _is_watched() -> bool:
    """Whether something follows every operation, which a compiled function would hide."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _kind(sweep: Sweep, chain: Bijection, x: Tensor, context: Tensor | None) -> Hashable:
    """What a compiled function is made for."""
    autocast = torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type)
    gradients = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    layouts = [(t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in (x, context) if t is not None]
    return sweep.__name__, chain.training, autocast, *gradients, torch.get_num_threads(), *layouts


def _with_code_of_its_own(function: Any) -> Callable:
    """A copy, since torch keeps what it compiles beside the code object, and no more than a handful for each."""
    return types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def _sources(chain: Bijection, x: Tensor, context: Tensor | None) -> list[Tensor]:
    """What a gradient is wanted of."""
    return list(dict.fromkeys(t for t in (x, context, *chain.parameters()) if t is not None and t.requires_grad))


def _run(function: Sweep, sweep: Sweep, chain: Bijection, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    sources = _sources(chain, x, context) if torch.is_grad_enabled() else []
    if sources:
        return _Differentiable.apply(function, sweep, chain, x, context, *sources)
    value, log_det = function(chain, x, context)
    return _kept(value), _kept(log_det)


def _kept(output: Tensor) -> Tensor:
    """An output that the next call does not write over, as a replayed graph on a GPU does."""
    return output.detach().clone() if output.is_cuda else output.detach()


class _Differentiable(torch.autograd.Function):
    # A compiled function can be differentiated once, and once only. So it makes a graph of its own, from inputs that
    # are cut off; when that is used up, or is not enough, the gradient is that of the ordinary sweep.

    @staticmethod
    def forward(
        ctx: Any, function: Sweep, sweep: Sweep, chain: Bijection, x: Tensor, context: Tensor | None, *sources: Tensor
    ) -> tuple[Tensor, ...]:
        cut = {id(t): t.detach().requires_grad_(t.requires_grad) for t in (x, context) if t is not None}
        with torch.enable_grad():
            outputs = function(chain, cut[id(x)], None if context is None else cut[id(context)])
        inner = [cut.get(id(source), source) for source in sources]
        ctx.graph = outputs, inner
        ctx.sweep, ctx.chain = sweep, chain
        ctx.save_for_backward(x, context, *sources)
        ctx.set_materialize_grads(False)
        kept = tuple(map(_kept, outputs))
        ctx.mark_non_differentiable(*(k for k, output in zip(kept, outputs, strict=True) if not output.requires_grad))
        return kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, context, *sources = ctx.saved_tensors
        graph, ctx.graph = ctx.graph, None
        twice = torch.is_grad_enabled()
        if graph is None or twice or _is_watched():
            if list(map(id, _sources(ctx.chain, x, context))) != list(map(id, sources)):
                raise RuntimeError("Chain: its parameters were others in forward, so it can't run again in backward")
            with torch.enable_grad():
                graph = ctx.sweep(ctx.chain, x, context), sources
        outputs, sources = graph
        wanted = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
        values, weights = [output for output, _ in wanted], [grad for _, grad in wanted]
        found = torch.autograd.grad(values, sources, weights, create_graph=twice, allow_unused=True)
        return (None,) * 5 + found


def _check_reach(outputs: Sequence[Tensor], sources: list[Tensor]) -> None:
    """Raises if the outputs depend on a tensor with gradients that is not among the sources."""
    known = {get_gradient_edge(source).node for source in sources}
    todo = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node in known:
            continue
        known.add(node)
        if hasattr(node, "variable"):
            raise RuntimeError("a layer holds a tensor that requires gradients and is not a parameter")
        todo += [following for following, _ in node.next_functions if following is not None]
