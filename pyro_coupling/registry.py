"""The classes and functions that a file may name, and what each instance was constructed with."""

from __future__ import annotations

__all__ = ["arguments_of", "construct", "name_of", "named", "register"]

import dataclasses
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

import numpy as np
from pyro.distributions.torch_transform import ComposeTransformModule
from torch import Tensor, nn

T = TypeVar("T", bound=Callable)
_Reader = Callable[[Any], dict[str, Any]]

_targets: dict[str, Callable] = {}
_names: dict[Callable, str] = {}
_readers: dict[type, _Reader] = {}
_REMEMBERED = "_constructed_with"


@overload
def register(target: T, /, *, name: str | None = None, arguments: _Reader | None = None) -> T: ...
@overload
def register(*, name: str | None = None, arguments: _Reader | None = None) -> Callable[[T], T]: ...
def register(target=None, /, *, name=None, arguments=None):
    """Lets files name a class or a function, so that `save` and `load` know it; a decorator too.

    An instance of a registered class remembers the arguments of its construction, and `load` calls the class
    with them again. A dataclass needs no memory, its fields are its arguments (put ``@register`` above
    ``@dataclass``); nor does a module of torch, whose attributes are. A function can be an argument, such as
    ``activation=...``.

    A registered class takes arguments from files: do not register one whose constructor opens, downloads or
    runs what it is given.

    Args:
        target: Class or function; without it, the decorator with these settings is returned.
        name: What files call it; ``module.qualified_name`` if not given, and for classes of this package
            their plain name. A class that was renamed is found in older files if it is registered under its
            former name too; it is written under the first.
        arguments: Returns the constructor's arguments by name, read off an instance, for a class where
            neither memory nor attributes will do.

    Returns:
        The class or function itself.

    Raises:
        TypeError: If ``target`` is neither a class nor a function.
        ValueError: If the name belongs to another one. The same one defined anew, as in a notebook, takes the
            place of the former.

    Example:
        >>> import torch
        >>> @register(name="example.Scaled")
        ... class Scaled(torch.nn.Linear):
        ...     def __init__(self, size, factor=2.0):
        ...         super().__init__(size, size)
        ...         self.factor = factor
        >>> arguments_of(Scaled(3))
        {'size': 3, 'factor': 2.0}
    """
    if target is None:
        return functools.partial(register, name=name, arguments=arguments)
    if not isinstance(target, type) and not inspect.isroutine(target):
        raise TypeError(f"register: expected a class or a function, got {target!r}")
    if name is None:
        name = target.__name__ if _place(target).startswith("pyro_coupling.") else _place(target)
    elif not isinstance(name, str) or not name:
        raise TypeError(f"register: name must be a string, got {name!r}")
    former = _targets.get(name, target)
    if _place(former) != _place(target):
        raise ValueError(f"register: the name {name!r} belongs to {_place(former)}, choose one for {_place(target)}")
    if former is not target:
        _names.pop(former, None)
    _targets[name] = target
    if target not in _names:
        _names[target] = name
        if isinstance(target, type):
            _readers[target] = arguments or _reader(target)
    return target


def named(name: str) -> Callable:
    """The class or function of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in _targets:
        raise ValueError(
            f"{name!r} is no class that is known here; import the module that defines and registers it "
            "(pyro_coupling.register) first"
        )
    return _targets[name]


def name_of(target: Callable) -> str:
    """The name of a class or function.

    Raises:
        TypeError: If it has none.
    """
    if target not in _names:
        raise TypeError(
            f"{_place(target)} is not registered: put @pyro_coupling.register above it, or call that with it"
        )
    return _names[target]


def arguments_of(instance: Any) -> dict[str, Any]:
    """What an instance of a registered class was constructed with, by name and with the defaults.

    Raises:
        TypeError: If that is not known.
    """
    name_of(type(instance))
    return _readers[type(instance)](instance)


def construct(cls: type, arguments: dict[str, Any]) -> Any:
    """Calls a class with arguments by name.

    Raises:
        TypeError: If the class does not take them.
    """
    signature = _signature(cls)
    unknown = arguments.keys() - signature.parameters.keys()
    if unknown:
        raise TypeError(f"{cls.__name__} takes no argument {min(unknown)!r}")
    bound = inspect.BoundArguments(signature, arguments)  # type: ignore[arg-type]
    return cls(*bound.args, **bound.kwargs)


def _place(target: Callable) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def _signature(cls: type) -> inspect.Signature:
    """That of the constructor without ``self``; a metaclass may hide it from ``inspect.signature(cls)``."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _reader(cls: type) -> _Reader:
    if dataclasses.is_dataclass(cls):
        return _fields
    if cls.__module__.startswith("torch."):
        return _attributes
    _wrap(cls)
    return _remembered


def _fields(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance) if field.init}


def _attributes(module: nn.Module) -> dict[str, Any]:
    found = {}
    for name, parameter in _signature(type(module)).parameters.items():
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variable or name in ("device", "dtype") or name.startswith("_"):
            continue
        if not hasattr(module, name):
            raise TypeError(f"{type(module).__name__} keeps no attribute {name!r}: register it with arguments=...")
        value = getattr(module, name)
        found[name] = value is not None if name == "bias" else value
    return found


def _wrap(cls: type) -> None:
    """Makes instances of a class, but not of its subclasses, remember the arguments of their construction."""
    original = cls.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if type(self) is cls:
            args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)
            kwargs = {key: list(value) if isinstance(value, Iterator) else value for key, value in kwargs.items()}
            # past nn.Module, which would make children of the arguments
            self.__dict__[_REMEMBERED] = _as_now(args), _as_now(kwargs)
        original(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[misc]


def _as_now(value: Any) -> Any:
    """A value that stays as it is when a list is changed or a tensor written to, and that holds on to no graph."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(map(_as_now, value))
    if type(value) is dict:
        return {key: _as_now(item) for key, item in value.items()}
    return value


def _remembered(instance: Any) -> dict[str, Any]:
    if _REMEMBERED not in vars(instance):
        raise TypeError(f"this {type(instance).__name__} is older than the registration of its class: register first")
    args, kwargs = vars(instance)[_REMEMBERED]
    bound = _signature(type(instance)).bind(*args, **kwargs)
    bound.apply_defaults()  # stored as well, because the defaults of a later version may differ
    return dict(bound.arguments)


def _sequential(module: nn.Sequential) -> dict[str, Any]:
    numbered = list(module._modules) == [str(i) for i in range(len(module))]
    return {"args": tuple(module) if numbered else (OrderedDict(module._modules),)}


for _cls in (
    nn.AvgPool1d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.CELU, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Dropout, nn.ELU, nn.Embedding, nn.Flatten, nn.GELU, nn.GLU,
    nn.GroupNorm, nn.Hardswish, nn.Identity, nn.LayerNorm, nn.LeakyReLU, nn.Linear, nn.LogSigmoid, nn.Mish, nn.PReLU,
    nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softmax, nn.Softplus, nn.Softsign, nn.Tanh, nn.Unflatten,
    nn.Upsample,
):  # fmt: skip
    register(_cls, name=f"torch.nn.{_cls.__name__}")
register(nn.Sequential, name="torch.nn.Sequential", arguments=_sequential)
register(nn.ModuleList, name="torch.nn.ModuleList", arguments=lambda module: {"modules": list(module)})
register(nn.ModuleDict, name="torch.nn.ModuleDict", arguments=lambda module: {"modules": dict(module.items())})
register(
    ComposeTransformModule, name="pyro.ComposeTransformModule", arguments=lambda module: {"parts": list(module.parts)}
)
