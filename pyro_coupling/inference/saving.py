"""A fit in a file: the guide's parameters, the model's arguments, the figures."""

from __future__ import annotations

__all__ = ["load_fit", "save_fit"]

import json
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from ..codec import Node, decode, encode
from ..files import read_safetensors, write_safetensors
from ..guides import AutoCouplingFlow
from ..saving import describe_guide, fill_guide, guide_settings

if TYPE_CHECKING:
    from .flow_vi import FlowVI

_FORMAT = "pyro_coupling.FlowVI"
_VERSION = 1
_GUIDE = "guide."
_FLOW = f"{_GUIDE}transform."
_NUMBERS = ("khat", "ess", "elbo", "log_evidence", "log_evidence_se", "num_steps", "seconds", "missed_mass")


def save_fit(vi: FlowVI, path: str | os.PathLike[str]) -> None:
    """Writes a fit to one safetensors file."""
    tensors: dict[str, Any] = {}
    try:
        guide = describe_guide(cast(AutoCouplingFlow, vi.guide), tensors, _FLOW)
    except (TypeError, ValueError) as error:
        guide = None
        tensors = {_GUIDE + name: value for name, value in vi.guide.state_dict().items()}
        warnings.warn(
            f"what the guide is made of is not stored ({error}): pass a fresh one to FlowVI.load(..., guide=guide)",
            stacklevel=3,
        )
    tensors["log_weights"] = vi._log_weights
    tensors["generator"] = vi._generator.get_state()
    try:
        arguments = encode([list(vi.target.args), vi.target.kwargs], tensors)
    except (TypeError, ValueError) as error:
        arguments = None
        warnings.warn(
            f"the model's arguments are not stored ({error}): pass them to FlowVI.load(path, model, ...)", stacklevel=3
        )
    state = {
        "arguments": arguments,
        "default_guide": vi._default_guide,
        "figures": vi.diagnostics(),
        "guide": guide,
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
    if guide is None and stored.guide is None and not stored.default_guide:
        raise ValueError(
            f"{name!r} was fitted with a guide of your own: pass a fresh one, FlowVI.load(..., guide=guide)"
        )
    vi = cls(model, guide, num_particles=stored.num_particles)
    if guide is None:
        vi.guide = AutoCouplingFlow(model, **stored.settings)  # its init_loc_fn reads the model
    target = vi._read_model(args, kwargs)
    found = {site.name: list(site.shape) for site in target.structure.latents}
    if list(found.items()) != list(stored.latents.items()):  # in the order in which they lie in the flow
        raise ValueError(
            f"{name!r} does not fit the model: it has the latent sites {stored.latents}, the model {found}"
        )
    try:
        if guide is None and stored.guide is not None:
            # of the model that was read, in which discrete latents are hidden
            vi.guide = AutoCouplingFlow(vi.guide._plain_model[0], **stored.settings)
            fill_guide(vi.guide, stored.guide, tensors, _FLOW)
            foreign = [name for name in tensors if name.startswith(_GUIDE)]
            if foreign:
                raise ValueError(f"the tensor {foreign[0]!r} is not its own")
        else:
            vi.guide.load_state_dict(stored.parameters)
        vi.guide.to(target.device).setup(target, target.args, target.kwargs)
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
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
    guide: Node | None
    settings: dict[str, Any]
    latents: dict[str, list[int]]
    num_particles: int
    parameters: dict[str, Tensor]
    log_weights: Tensor
    generator: Tensor


def _stored(tensors: dict[str, Tensor], metadata: dict[str, str]) -> _Stored:
    state = json.loads(metadata["state"])
    figures, arguments, guide = dict(state["figures"]), state["arguments"], state.get("guide")
    wrong = [name for name in _NUMBERS if not isinstance(figures.get(name), (int, float))]
    if wrong or not isinstance(state["num_particles"], int):
        raise ValueError(f"no numbers for {wrong or 'num_particles'}")
    if arguments is not None:
        args, kwargs = decode(arguments, tensors)
        arguments = tuple(args), dict(kwargs)
    settings = {} if guide is None else guide_settings(guide, tensors)
    generator = tensors["generator"]
    if generator.dtype != torch.uint8:
        raise ValueError("the random state is none")
    parameters = {k.removeprefix(_GUIDE): v for k, v in tensors.items() if k.startswith(_GUIDE)}
    if not parameters:
        raise ValueError("there are no parameters")
    return _Stored(
        arguments, bool(state["default_guide"]), figures, guide, settings, state["latents"], state["num_particles"],
        parameters, tensors["log_weights"], generator,
    )  # fmt: skip
