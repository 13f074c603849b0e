"""Flows and guides in a file: what they are made of as JSON, their parameters as tensors, nothing to execute."""

from __future__ import annotations

__all__ = ["describe_guide", "fill_guide", "guide_settings", "load", "save"]

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide import initialization
from torch import Tensor, nn

from .codec import Node, decode, encode
from .description import describe, restore, some
from .files import read_safetensors, write_safetensors
from .guides import AutoCouplingFlow
from .registry import register
from .targets import init_to_center
from .transforms import Chain, DiagonalAffine, LowerTriangularAffine, LowRankAffine

_FORMAT = "pyro_coupling.flow"
_VERSION = 1
_STATE = "state."
_OUTER = (DiagonalAffine, LowerTriangularAffine, LowRankAffine)

for _init in (
    initialization.init_to_feasible, initialization.init_to_mean, initialization.init_to_median,
    initialization.init_to_sample, initialization.init_to_uniform, initialization.init_to_value,
):  # fmt: skip
    register(_init, name=f"pyro.{_init.__name__}")
register(init_to_center)


def save(flow: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes a flow or a guide to one safetensors file, for `load`.

    What the file describes is built before it is written, and has to give the same numbers as ``flow``.

    Args:
        flow: A bijection, a guide that has met its model, or another module of registered classes.
        path: Where to; an existing file is replaced in one stroke.

    Raises:
        TypeError: If it is of a class that is not registered, or has a part of one: see `register`.
        ValueError: If it is no longer what its constructor made, for instance because a part was replaced.

    Example:
        >>> import os, tempfile, torch
        >>> from pyro_coupling import flows
        >>> flow = flows.real_nvp(3, num_layers=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(flow, os.path.join(folder, "flow.safetensors"))
        ...     loaded = load(os.path.join(folder, "flow.safetensors"))
        >>> x = torch.randn(5, 3)
        >>> torch.equal(loaded(x), flow(x))
        True
    """
    if not isinstance(flow, nn.Module):
        raise TypeError(f"save: flow must be a bijection, a guide or another module, got {type(flow).__name__}")
    tensors: dict[str, Tensor] = {}
    if isinstance(flow, AutoCouplingFlow):
        content = {"guide": describe_guide(flow, tensors, _STATE)}
    else:
        content = {"flow": describe(flow, tensors, _STATE)}
    text = json.dumps(content)
    metadata = {"format": _FORMAT, "version": str(_VERSION), "content": text, "digest": _digest(text, tensors)}
    write_safetensors(path, tensors, metadata)


def load(path: str | os.PathLike[str], model: Callable | None = None) -> Any:
    """Reads what `save` wrote.

    Nothing in the file is executed, so it may come from anywhere: only registered classes are called. What is
    loaded is on the CPU, of the dtypes it had, and in training mode if it was. The global random state stays
    as it is.

    Args:
        path: The file.
        model: The Pyro model, if the file holds a guide. Its latents are compared with those of the file when
            the guide first meets the model's arguments.

    Returns:
        The flow or the guide.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, newer than this version of the package, or made of classes that are not
            registered here.

    Example:
        >>> import os, tempfile, pyro, torch, pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> guide = AutoCouplingFlow(model)
        >>> _ = guide()  # it meets its model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(guide, os.path.join(folder, "guide.safetensors"))
        ...     loaded = load(os.path.join(folder, "guide.safetensors"), model)
        >>> loaded()["x"].shape
        torch.Size([2])
    """
    tensors, metadata = read_safetensors(path, _FORMAT, _VERSION)
    name = os.fspath(path)
    try:
        text = metadata["content"]
        if metadata["digest"] != _digest(text, tensors):
            raise ValueError("it is not as it was written, its digest does not match")
        ((kind, content),) = json.loads(text).items()
        if (kind == "guide") != (model is not None):
            raise ValueError(f"it holds a {kind}, so load it with{'' if kind == 'guide' else 'out'} a model")
        loaded: nn.Module
        if model is None:
            loaded = restore(content, tensors, _STATE)
        else:
            loaded = AutoCouplingFlow(model, **guide_settings(content, tensors))
            fill_guide(loaded, content, tensors, _STATE)
        if tensors:
            raise ValueError(f"it holds tensors that belong to nothing: {some(tensors)}")
    except ValueError as error:
        raise ValueError(f"{name!r} can't be loaded: {error}") from error
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name!r} is damaged: it can't be read ({type(error).__name__}: {error})") from error
    return loaded


def describe_guide(guide: AutoCouplingFlow, tensors: dict[str, Tensor], prefix: str) -> Node:
    """What a guide is, without its model: as `describe`."""
    if type(guide) is not AutoCouplingFlow:
        raise TypeError(f"{type(guide).__name__}: only an AutoCouplingFlow itself can be saved; save its state_dict")
    if guide.transform is None:
        raise ValueError("AutoCouplingFlow: a guide that has not met its model has nothing to save, call it once")
    settings = {"init_loc_fn": guide._init_loc_fn, "warm_start": guide.warm_start, "num_starts": guide.num_starts}
    flow = describe(guide.transform, tensors, prefix)
    latents = [[name, list(shape)] for name, shape in guide.latents.items()]
    return {"flow": flow, "latents": latents, "settings": encode(settings, tensors)}


def guide_settings(content: Node, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The keyword arguments of the guide that `describe_guide` was given."""
    settings = decode(content["settings"], tensors)
    kinds = {name: type(value) for name, value in settings.items() if name != "init_loc_fn"}
    if kinds != {"warm_start": str, "num_starts": int} or not callable(settings.get("init_loc_fn")):
        raise ValueError("its settings are not those of a guide")
    return settings


def fill_guide(guide: AutoCouplingFlow, content: Node, tensors: dict[str, Tensor], prefix: str) -> None:
    """Gives a fresh guide the flow of the one that `describe_guide` was given."""
    transform = restore(content["flow"], tensors, prefix)
    if not isinstance(transform, Chain) or not isinstance(transform[-1], _OUTER):
        raise ValueError("its flow is not that of a guide, a chain that ends in an affine map")
    guide.transform = transform
    guide.loaded_latents = {name: tuple(shape) for name, shape in content["latents"]}
    guide.train(transform.training)


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """Tells a file that has been damaged; no protection from one made on purpose."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
