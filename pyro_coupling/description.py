"""Modules as a description and tensors, and back: checked in both directions."""

from __future__ import annotations

__all__ = ["describe", "restore", "some"]

import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .codec import Node, decode, encode
from .transforms import Bijection


def describe(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> Node:
    """What a module is, as JSON; that it can be followed is tried.

    Args:
        module: A module of registered classes.
        tensors: Takes up its state, names behind ``prefix``, and the tensors among the arguments.
        prefix: What sets the names of its state apart.

    Raises:
        TypeError: If it is of a class that is not registered, or has a part of one.
        ValueError: If what the description gives is not the same.
    """
    kind, others = type(module).__name__, set(tensors)
    node = encode(module, tensors)
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{kind}: its state_dict holds a {type(value).__name__}, {key!r}, which is no tensor")
        tensors[prefix + key] = value
    frozen = [key for key, parameter in module.named_parameters() if not parameter.requires_grad]
    content = {"module": node, "frozen": frozen, "training": module.training}
    written = {key: value.detach().cpu().clone() for key, value in tensors.items() if key not in others}
    try:
        rebuilt = decode(json.loads(json.dumps(node)), written)
        difference = _difference(module, rebuilt)
        if difference is None:
            _fill(rebuilt, content, written, prefix)
            difference = _difference_in_use(module, rebuilt)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{kind} can't be built again from the arguments of its constructors: {error}") from error
    if difference is not None:
        raise ValueError(
            f"{kind} can't be saved: {difference}. A file holds the arguments of constructors and state_dict; "
            "what was changed in other ways would be lost, so build it as it should be"
        )
    return content


def restore(content: Node, tensors: dict[str, Tensor], prefix: str) -> nn.Module:
    """The module that `describe` was given; its tensors are taken out of ``tensors``.

    Raises:
        ValueError: If the description can't be followed, or the tensors are not those of the module.
    """
    module = decode(content["module"], tensors)
    if not isinstance(module, nn.Module):
        raise ValueError(f"its description is that of a {type(module).__name__}, which is no module")
    _fill(module, content, tensors, prefix)
    return module


def some(names: Iterable[str]) -> str:
    """A list of names short enough to read."""
    shown = sorted(names)
    return (", ".join(map(repr, shown[:3])) or "none") + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _fill(module: nn.Module, content: Node, tensors: dict[str, Tensor], prefix: str) -> None:
    """Gives a module the state and the dtypes that it had."""
    state = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
    _check_state(module, state)
    real = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(real) == 1:
        module.to(dtype=real.pop())  # buffers that are not in the state as well
    for key, slot in module.state_dict(keep_vars=True).items():
        slot.data = slot.data.to(state[key].dtype)
    module.load_state_dict(state)
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(key not in content["frozen"])
    module.train(bool(content["training"]))


def _check_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    kind, slots = type(module).__name__, module.state_dict()
    if slots.keys() != state.keys():
        missing, foreign = some(slots.keys() - state.keys()), some(state.keys() - slots.keys())
        raise ValueError(f"the tensors are not those of the {kind}: missing {missing}; not its own {foreign}")
    for key, value in state.items():
        slot = slots[key]
        same_kind = slot.dtype == value.dtype or (slot.is_floating_point() and value.is_floating_point())
        if slot.shape != value.shape or not same_kind:
            raise ValueError(
                f"the tensor {key!r} of the {kind} must be {slot.dtype} of shape {tuple(slot.shape)}, found "
                f"{value.dtype} of shape {tuple(value.shape)}"
            )


def _difference(module: nn.Module, rebuilt: nn.Module) -> str | None:
    """In what a module is not like the one built from its description."""
    ours, theirs = dict(module.named_modules()), dict(rebuilt.named_modules())
    for name in ours | theirs:
        part, other = ours.get(name), theirs.get(name)
        place = f"its part {name!r}" if name else "it"
        if part is None or other is None:
            return f"{place} was {'removed' if part is None else 'added'} after construction"
        kind = type(part).__name__
        if type(part) is not type(other):
            return f"{place} is a {kind}, but was constructed as a {type(other).__name__}"
        if part.extra_repr() != other.extra_repr():
            return f"{place} is {kind}({part.extra_repr()}), but was constructed as {kind}({other.extra_repr()})"
        now, then = _settings(part), _settings(other)
        for key in now.keys() & then.keys():
            if repr(now[key]) != repr(then[key]):
                return f"{place} is a {kind} with {key}={now[key]!r}, but was constructed with {key}={then[key]!r}"
    return None


def _settings(module: nn.Module) -> dict[str, Any]:
    plain = (type(None), bool, int, float, str, torch.dtype)
    return {k: v for k, v in vars(module).items() if isinstance(v, plain) and k[0] != "_" and k != "training"}


def _difference_in_use(module: nn.Module, rebuilt: nn.Module) -> str | None:
    """Whether a bijection maps the same numbers to others than the one built from its description."""
    if not isinstance(module, Bijection):
        return None
    like = next((v for v in module.state_dict().values() if v.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x, context = (
        torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(like)
        for shape in (module.event_shape, module.context_shape)
    )
    training = [part for part in module.modules() if part.training]
    outputs = []
    try:
        for bijection in (module, rebuilt.to(like.device)):
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)  # for layers that draw noise
                outputs.append(bijection.eval().forward_and_log_det(x, context if module.context_shape else None))
    except (RuntimeError, ValueError):  # inputs of another kind, half precision that the CPU lacks: can't be tried
        return None
    finally:
        for part in training:
            part.training = True
    if all(torch.allclose(ours, theirs, 1e-3, 1e-3, equal_nan=True) for ours, theirs in zip(*outputs, strict=True)):
        return None
    return "it does not give the same numbers as one that is built anew"
