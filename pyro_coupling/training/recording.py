"""Functions of tensors recorded as lists of operations, which are replayed without the Python that made them."""

from __future__ import annotations

__all__ = ["record"]

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten


def record(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], compile: bool = False) -> Callable:
    """Runs a function once and returns what repeats its operations on other inputs of the same shapes.

    Derivatives taken inside the function are recorded as the operations they come down to; what does not
    depend on the inputs becomes a constant. The replay is run by TorchScript's interpreter, at about a
    microsecond for an operation; or it is compiled.

    Args:
        function: Takes tensors, returns tensors. What it does must not depend on the values in them.
        inputs: An example of each input.
        compile: Whether to compile the recording with inductor, which takes half a minute or more.

    Returns:
        A function of inputs of the same shapes, dtypes and device. It returns a list; no gradients flow. It
        raises ``LinAlgError`` where the function would.

    Raises:
        Exception: Whatever keeps the function from being recorded, in general a branch on a tensor's value.

    Example:
        >>> import torch
        >>> def slope(x):
        ...     x = x.detach().requires_grad_()
        ...     return torch.autograd.grad(x.sin().sum(), [x])
        >>> record(slope, [torch.zeros(1)])(torch.tensor([torch.pi]))
        [tensor([-1.])]
    """
    with tracing(TracingContext(FakeTensorMode())):  # or every operation would make a mode of its own, for its shape
        recorded = make_fx(lambda *tensors: list(function(*tensors)), decomposition_table=_SHARED_SIGMOID)(*inputs)
    graph = recorded.graph
    _drop_copies_of_names(graph)
    num_checks = _return_checks(graph)
    _merge_equal_nodes(graph)
    graph.eliminate_dead_code()
    recorded.recompile()
    run = torch.compile(recorded, dynamic=False, fullgraph=True) if compile else _scripted(recorded, inputs)

    def replay(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            results = list(run(*inputs))
        split = len(results) - num_checks
        if any(bool(check.any()) for check in results[split:]):
            raise torch.linalg.LinAlgError("a matrix could not be factorised or inverted")
        return results[:split]

    replay(*inputs)  # compiles, if it does, and raises here what that raises
    return replay


def _scripted(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation: nothing in torch replaces it at this cost in time
        return torch.jit.trace(graph, tuple(inputs), check_trace=False)


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    y = x * gate
    return grad * torch.addcmul(gate + y, y, gate, value=-1)


# torch's own would compute a sigmoid for the value and for each of two passes back: most of the time in small networks
_SHARED_SIGMOID: dict[Any, Callable[..., Any]] = {aten.silu.default: _silu, aten.silu_backward.default: _silu_backward}


def _drop_copies_of_names(graph: fx.Graph) -> None:
    """A `detach` does nothing where there are no gradients."""
    for node in graph.find_nodes(op="call_function", target=aten.detach.default):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)


def _return_checks(graph: fx.Graph) -> int:
    """Adds what operations say of their own failure to the results, for a replay would not look at it."""
    output = next(reversed(graph.nodes))
    checks = []
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or schema.returns or schema.is_mutable:
            continue
        if node.target is not aten._linalg_check_errors.default:
            raise RuntimeError(f"{node.target} has no result, so it can't be recorded")
        checks.append(node.args[0])
    output.args = ([*output.args[0], *checks],)
    return len(checks)


def _merge_equal_nodes(graph: fx.Graph) -> None:
    """Computes once what is computed twice: the same operation on the same operands."""
    unsteady = _unsteady(graph)
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node in unsteady or not unsteady.isdisjoint(node.all_input_nodes):
            continue
        key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        earlier = known.setdefault(key, node)
        if earlier is not node:
            node.replace_all_uses_with(earlier)
            graph.erase_node(node)


def _unsteady(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that the same operation does not make again: drawn by chance, or changed in place, as a view of another."""
    memory: dict[fx.Node, fx.Node] = {}  # whose memory a node's value lies in
    changed, drawn = set(), set()
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        is_view = node.target is operator.getitem or any(value.alias_info for value in getattr(schema, "returns", ()))
        memory[node] = memory[node.args[0]] if is_view else node
        if schema is not None and schema.is_mutable:
            changed.add(memory[node.args[0]])
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            drawn.add(node)
    return drawn | {node for node, owner in memory.items() if owner in changed}


def _hashable(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        return tuple(_hashable(part) for part in argument)
    if isinstance(argument, dict):
        return tuple((name, _hashable(part)) for name, part in sorted(argument.items()))
    return type(argument), argument  # 1, 1.0 and True are equal and mean different things
