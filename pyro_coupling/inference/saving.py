"""A fit in a file: the guide's parameters, the model's arguments, the figures."""

from __future__ import annotations

__all__ = ["load_fit", "save_fit"]

import json
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files import read_safetensors, write_safetensors
from ..guides import AutoCouplingFlow

if TYPE_CHECKING:
    from .flow_vi import FlowVI

_FORMAT = "pyro_coupling.FlowVI"
_VERSION = 1
_NUMBERS = ("khat", "ess", "elbo", "log_evidence", "log_evidence_se", "num_steps", "seconds", "missed_mass")


def save_fit(vi: FlowVI, path: str | os.PathLike[str]) -> None:
    """Writes a fit to one safetensors file."""
    tensors = {f"guide.{name}": value for name, value in vi.guide.state_dict().items()}
    tensors["log_weights"] = vi._log_weights
    tensors["generator"] = vi._generator.get_state()
    try:
        arguments = _encode([list(vi.target.args), vi.target.kwargs], tensors)
    except (TypeError, ValueError) as error:
        arguments = None
        warnings.warn(
            f"the model's arguments are not stored ({error}): pass them to FlowVI.load(path, model, ...)", stacklevel=3
        )
    state = {
        "arguments": arguments,
        "default_guide": vi._default_guide,
        "figures": vi.diagnostics(),
        "latents": {site.name: list(site.shape) for site in vi.target.structure.latents},
        "num_particles": vi.num_particles,
    }
    write_safetensors(path, tensors, {"format": _FORMAT, "version": str(_VERSION), "state": json.dumps(state)})


def load_fit(
    cls: type[FlowVI], path: Any, model: Callable, guide: AutoCouplingFlow | None, args: tuple, kwargs: dict[str, Any]
) -> FlowVI:
    """Reads a fit from a file made by `save_fit`."""
    tensors, metadata = read_safetensors(path, _FORMAT, _VERSION)
    name = os.fspath(path)
    try:
        stored = _stored(tensors, metadata)
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name!r} is damaged: it can't be read ({type(error).__name__}: {error})") from error
    if not args and not kwargs:
        if stored.arguments is None:
            raise ValueError(
                f"{name!r} does not hold the model's arguments: pass them, FlowVI.load(path, model, *args)"
            )
        args, kwargs = stored.arguments
    if guide is None and not stored.default_guide:
        raise ValueError(
            f"{name!r} was fitted with a guide of your own: pass a fresh one, FlowVI.load(..., guide=guide)"
        )
    vi = cls(model, guide, num_particles=stored.num_particles)
    target = vi._read_model(args, kwargs)
    found = {site.name: list(site.shape) for site in target.structure.latents}
    if found != stored.latents:
        raise ValueError(
            f"{name!r} does not fit the model: it has the latent sites {stored.latents}, the model {found}"
        )
    try:
        vi.guide.load_state_dict(stored.parameters)
        vi.guide.setup(target, target.args, target.kwargs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name!r} does not fit the guide: {error}") from error
    vi._default_guide = stored.default_guide
    vi._figures, vi._log_weights = stored.figures, stored.log_weights
    vi._generator = torch.Generator(device=target.device)
    if stored.generator.shape == vi._generator.get_state().shape:  # else of another kind of device
        vi._generator.set_state(stored.generator)
    return vi


class _Stored(NamedTuple):
    """What a file holds, its types checked."""

    arguments: tuple[tuple, dict[str, Any]] | None
    default_guide: bool
    figures: dict[str, Any]
    latents: dict[str, list[int]]
    num_particles: int
    parameters: dict[str, Tensor]
    log_weights: Tensor
    generator: Tensor


def _stored(tensors: dict[str, Tensor], metadata: dict[str, str]) -> _Stored:
    state = json.loads(metadata["state"])
    figures, arguments = dict(state["figures"]), state["arguments"]
    wrong = [name for name in _NUMBERS if not isinstance(figures.get(name), (int, float))]
    if wrong or not isinstance(state["num_particles"], int):
        raise ValueError(f"no numbers for {wrong or 'num_particles'}")
    if arguments is not None:
        args, kwargs = _decode(arguments, tensors)
        arguments = tuple(args), dict(kwargs)
    generator = tensors["generator"]
    if generator.dtype != torch.uint8:
        raise ValueError("the random state is none")
    parameters = {k.removeprefix("guide."): v for k, v in tensors.items() if k.startswith("guide.")}
    if not parameters:
        raise ValueError("there are no parameters")
    return _Stored(
        arguments, bool(state["default_guide"]), figures, state["latents"], state["num_particles"],
        parameters, tensors["log_weights"], generator,
    )  # fmt: skip


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Arguments as JSON, their arrays put into ``tensors``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    if isinstance(value, (Tensor, np.ndarray)):
        name = f"argument.{len(tensors)}"
        tensors[name] = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        return {"tensor" if isinstance(value, Tensor) else "array": name}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_encode(v, tensors) for v in value]}
    if type(value) is dict and all(isinstance(k, str) for k in value):
        return {"dict": {k: _encode(v, tensors) for k, v in value.items()}}
    raise TypeError(f"no way to store a {type(value).__name__}")


def _decode(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = node.items()
    if kind == "plain":
        return value
    if kind in ("tensor", "array"):
        return tensors[value] if kind == "tensor" else tensors[value].numpy()
    if kind == "dict":
        return {k: _decode(v, tensors) for k, v in value.items()}
    if kind in ("list", "tuple"):
        items = [_decode(v, tensors) for v in value]
        return items if kind == "list" else tuple(items)
    raise ValueError(f"the file describes an argument of unknown kind {kind!r}")
