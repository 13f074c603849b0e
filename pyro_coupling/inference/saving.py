"""A fit in a file: the guide's parameters, the model's arguments, the figures."""

from __future__ import annotations

__all__ = ["load_fit", "save_fit"]

import json
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..files import read_safetensors, write_safetensors
from ..guides import AutoCouplingFlow

if TYPE_CHECKING:
    from .flow_vi import FlowVI

_FORMAT = "pyro_coupling.FlowVI"
_VERSION = 1


def save_fit(vi: FlowVI, path: str | os.PathLike[str]) -> None:
    """Writes a fit to one safetensors file."""
    tensors = {f"guide.{name}": value for name, value in vi.guide.state_dict().items()}
    tensors["log_weights"] = vi._log_weights
    tensors["generator"] = vi._generator.get_state()
    try:
        arguments = _encode([list(vi.target.args), vi.target.kwargs], "argument", tensors)
    except TypeError as error:
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
        state = json.loads(metadata["state"])
        figures, latents, arguments = state["figures"], state["latents"], state["arguments"]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{name!r} is damaged: its description can't be read") from error
    if not args and not kwargs:
        if arguments is None:
            raise ValueError(
                f"{name!r} does not hold the model's arguments: pass them, FlowVI.load(path, model, *args)"
            )
        args, kwargs = _decode(arguments, tensors)
    if guide is None and not state["default_guide"]:
        raise ValueError(
            f"{name!r} was fitted with a guide of your own: pass a fresh one, FlowVI.load(..., guide=guide)"
        )
    vi = cls(model, guide, num_particles=state["num_particles"])
    target = vi._read_model(tuple(args), kwargs)
    found = {site.name: list(site.shape) for site in target.structure.latents}
    if found != latents:
        raise ValueError(f"{name!r} does not fit the model: it has the latent sites {latents}, the model {found}")
    parameters = {k.removeprefix("guide."): v for k, v in tensors.items() if k.startswith("guide.")}
    try:
        vi.guide.load_state_dict(parameters)
    except RuntimeError as error:
        raise ValueError(f"{name!r} does not fit the guide: {error}") from error
    vi.guide.setup(target, target.args, target.kwargs)
    vi._default_guide = state["default_guide"]
    vi._figures, vi._log_weights = figures, tensors["log_weights"]
    vi._generator = torch.Generator(device=target.device)
    if target.device.type == "cpu":
        vi._generator.set_state(tensors["generator"])
    return vi


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Arguments as JSON, their arrays put into ``tensors``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    if isinstance(value, (Tensor, np.ndarray)):
        tensors[name] = torch.as_tensor(value)
        return {"tensor" if isinstance(value, Tensor) else "array": name}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _encode(v, f"{name}.{k}", tensors) for k, v in value.items()}}
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
