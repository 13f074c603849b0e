"""Values as JSON and tensors, and back: how a file says what a module is made of, with nothing to execute.

A value becomes a node that tells its kind: ``{"plain": 3}``, ``{"tuple": [...]}``, ``{"tensor": "argument.0"}``,
``{"name": "torch.nn.SiLU"}`` for a registered class or function itself, and
``{"class": "Permutation", "arguments": {...}}`` for an instance of a registered class. A module that occurs
once more is ``{"again": number}``, counted in the order in which modules are complete.
"""

from __future__ import annotations

__all__ = ["Node", "decode", "encode"]

import functools
import inspect
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .registry import arguments_of, construct, name_of, named

Node = dict[str, Any]

_SEQUENCES = {"list": list, "tuple": tuple, "Size": torch.Size}
_MAPPINGS = {"dict": dict, "OrderedDict": OrderedDict}
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
#: kind of a node, and what JSON holds for it
_CONTENT: dict[str, Any] = {
    "plain": (type(None), bool, int, float, str),
    **dict.fromkeys(("array", "dtype", "float", "name", "tensor"), str),
    **dict.fromkeys(("partial", *_SEQUENCES), list),
    **dict.fromkeys(_MAPPINGS, dict),
    "again": int,
}
#: functions that make a tensor of a given shape from nothing
_SHAPED = {
    *(torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros),
    *(Tensor.new_empty, Tensor.new_full, Tensor.new_ones, Tensor.new_zeros),
}
_DEEPEST = 100  # nodes within nodes
_MOST_MODULES = 100_000  # a shared one counted wherever it occurs


def encode(value: Any, tensors: dict[str, Tensor]) -> Node:
    """A value as JSON.

    Args:
        value: A number, string, tensor, array or dtype; a list, tuple or dict of such; a registered class or
            function, a ``functools.partial`` of it, or an instance of a registered class. A module can only
            be part of a module, which has its state.
        tensors: Takes up the tensors in it, as ``argument.<number>``.

    Raises:
        TypeError: If there is no way to store it, or its class is not registered.
    """
    return _Encoder(tensors, with_modules=isinstance(value, nn.Module)).encode(value)


def decode(node: Node, tensors: dict[str, Tensor]) -> Any:
    """The value that `encode` was given.

    Nothing but registered classes is called. What they make is bounded by what the file holds, and the global
    random state is left as it was.

    Args:
        node: What `encode` returned.
        tensors: The tensors of the file; those that belong to the value are taken out.

    Raises:
        ValueError: If it is no such node, or if a class does not accept the arguments in it.
    """
    random_state = get_rng_state()
    try:
        with torch.device("cpu"), _Budget(tensors):
            return _Decoder(tensors).decode(node)
    except TypeError as error:
        raise ValueError(f"its description can't be followed: {error}") from error
    finally:
        set_rng_state(random_state)


class _Encoder:
    def __init__(self, tensors: dict[str, Tensor], with_modules: bool) -> None:
        self._tensors = tensors
        self._with_modules = with_modules
        self._modules: dict[int, tuple[int, nn.Module]] = {}

    def encode(self, value: Any, place: str = "") -> Node:
        kind = type(value).__name__
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(float(value))}  # JSON has no number for it
        if value is None or isinstance(value, (bool, int, float, str)):
            return {"plain": value}
        if isinstance(value, (Tensor, np.ndarray)):
            return self._tensor(value)
        if isinstance(value, torch.dtype):
            return {"dtype": str(value)}
        if type(value) in _SEQUENCES.values():
            return {kind: [self.encode(item, place) for item in value]}
        if type(value) in _MAPPINGS.values():
            if not all(isinstance(key, str) for key in value):
                raise TypeError(f"{place}no way to store a {kind} whose keys are not strings")
            return {kind: {key: self.encode(item, place) for key, item in value.items()}}
        if type(value) is functools.partial:
            return {"partial": [self.encode(part, place) for part in (value.func, value.args, value.keywords)]}
        if isinstance(value, nn.Module) and not self._with_modules:
            raise TypeError(f"{place}no way to store a {kind}, which is a module, outside another")
        try:
            if isinstance(value, type) or inspect.isroutine(value):
                return {"name": name_of(value)}
            if id(value) in self._modules:
                return {"again": self._modules[id(value)][0]}
            name, arguments = name_of(type(value)), arguments_of(value)
        except TypeError as error:
            raise TypeError(f"{place}{error}") from None
        node = {"class": name, "arguments": {k: self.encode(v, f"{kind}.{k}: ") for k, v in arguments.items()}}
        if isinstance(value, nn.Module):
            self._modules[id(value)] = len(self._modules), value  # kept, or its id might be given away
        return node

    def _tensor(self, value: Tensor | np.ndarray) -> Node:
        name = f"argument.{len(self._tensors)}"
        self._tensors[name] = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        return {"tensor" if isinstance(value, Tensor) else "array": name}


class _Decoder:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._modules: list[tuple[nn.Module, int]] = []  # with the number of modules that each is made of
        self._count = 0

    def decode(self, node: Any, depth: int = 0) -> Any:
        if depth > _DEEPEST:
            raise ValueError(f"its description is nested deeper than {_DEEPEST} levels")
        if not isinstance(node, dict):
            raise ValueError(f"its description has a {type(node).__name__} where a node should be")
        if node.keys() == {"class", "arguments"}:
            return self._instance(node["class"], node["arguments"], depth + 1)
        kind, value = next(iter(node.items()), ("", None))
        if len(node) != 1 or not isinstance(value, _CONTENT.get(kind, ())):
            raise ValueError(f"its description has a node that is none: {', '.join(node):.60}")
        if kind in _SEQUENCES:
            return _SEQUENCES[kind]([self.decode(item, depth + 1) for item in value])
        if kind in _MAPPINGS:
            return _MAPPINGS[kind]((key, self.decode(item, depth + 1)) for key, item in value.items())
        if kind == "partial":
            function, arguments, keywords = (self.decode(item, depth + 1) for item in value)
            return functools.partial(function, *arguments, **keywords)
        return value if kind == "plain" else getattr(self, f"_{kind}")(value)

    def _instance(self, name: Any, arguments: Any, depth: int) -> Any:
        cls = named(name) if isinstance(name, str) else None
        if not isinstance(cls, type) or not isinstance(arguments, dict):
            raise ValueError("its description has an instance without a class or without arguments")
        before = self._count
        values = {key: self.decode(node, depth) for key, node in arguments.items()}
        try:
            instance = construct(cls, values)
        except Exception as error:  # whatever a constructor raises for arguments it does not expect
            raise ValueError(f"{cls.__name__} can't be made: {error}") from error
        if isinstance(instance, nn.Module):
            self._count += 1
            self._modules.append((instance, self._count - before))
        return instance

    def _again(self, number: int) -> nn.Module:
        if not 0 <= number < len(self._modules):
            raise ValueError(f"its description repeats module {number}, of {len(self._modules)}")
        module, count = self._modules[number]
        self._count += count
        if self._count > _MOST_MODULES:  # repetitions of repetitions: few bytes, and endless to walk through
            raise ValueError(f"its description unfolds to more than {_MOST_MODULES} modules")
        return module

    def _name(self, name: str) -> Any:
        return named(name)

    def _float(self, text: str) -> float:
        return float(text)

    def _dtype(self, name: str) -> torch.dtype:
        if name not in _DTYPES:
            raise ValueError(f"its description names a dtype {name!r}, which there is not")
        return _DTYPES[name]

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise ValueError(f"its tensor {name!r} is missing")
        return self._tensors.pop(name)

    def _array(self, name: str) -> np.ndarray:
        return self._tensor(name).numpy()


class _Budget(TorchFunctionMode):
    """Ends constructors that make far more than the file holds: a few bytes could ask for a terabyte."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._largest = 2**26 + 4 * sum(tensor.numel() for tensor in tensors.values())
        self._numbers: float = self._largest
        self._calls = 10_000 + 100 * len(tensors)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        self._calls -= 1
        self._numbers -= _size(func, args, kwargs)
        self._refuse_if(min(self._numbers, self._calls) < 0)
        result = func(*args, **kwargs)
        self._refuse_if(isinstance(result, Tensor) and result.numel() > self._largest)  # a view, so far
        return result

    def _refuse_if(self, too_much: bool) -> None:
        if too_much:
            raise ValueError("it asks for far more numbers than there are in the file")


def _size(func: Any, args: tuple, kwargs: dict[str, Any]) -> float:
    """How many numbers a function that makes a tensor from nothing is going to make."""
    if func in _SHAPED:
        sizes = [kwargs["size"]] if "size" in kwargs else [size for size in args if not isinstance(size, Tensor)]
        return math.prod(sizes[0] if sizes and isinstance(sizes[0], Sequence) else sizes)
    if func is torch.randperm and args:
        return args[0]
    if func is torch.eye and args:
        return args[0] * args[-1]
    if func is torch.arange and args:
        start, end, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
        return (end - start) / step
    return 0
