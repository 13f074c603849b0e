"""What a Pyro model is made of: the one place that reads a model's sites."""

from __future__ import annotations

__all__ = ["LatentSite", "ModelStructure", "init_to_center", "read_structure", "with_fallback"]

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform


def init_to_center(site: Any) -> Tensor:
    """An ``init_loc_fn`` that puts a site at the centre of its unconstrained space.

    It reads ``fn.support`` and never samples, so it also works for ``dist.ImproperUniform``.

    Args:
        site: The site, as Pyro hands it to an ``init_loc_fn``.

    Example:
        >>> init_to_center({"name": "x", "fn": dist.Beta(8.0, 2.0)})
        tensor(0.5000)
    """
    fn = site["fn"]
    if getattr(fn.support, "is_discrete", False):
        return fn.sample()
    transform = _bijection(site)
    like = _float_like(fn)
    return transform(like.new_zeros(transform.inverse_shape(fn.shape())))


def with_fallback(init_loc_fn: Callable) -> Callable:
    """``init_loc_fn``, or `init_to_center` at a site that can't be sampled (``ImproperUniform``)."""

    def init(site: Any = None) -> Any:
        if site is None:
            return with_fallback(init_loc_fn())
        try:
            return init_loc_fn(site)
        except NotImplementedError:
            return init_to_center(site)

    return init


@dataclass(frozen=True)
class LatentSite:
    """A continuous latent site and its place in the flat unconstrained vector.

    Attributes:
        name: Name of the site.
        shape: Shape of a value.
        batch_shape: The leading part of ``shape`` that belongs to plates.
        unconstrained_shape: Shape before the bijection.
        transform: Unconstrained to constrained.
        position: Index of its first entry in the flat vector.
    """

    name: str
    shape: torch.Size
    batch_shape: torch.Size
    unconstrained_shape: torch.Size
    transform: Transform
    position: int

    @property
    def size(self) -> int:
        return self.unconstrained_shape.numel()


@dataclass(frozen=True)
class ModelStructure:
    """The static structure of a model for given arguments.

    Attributes:
        latents: Continuous latent sites, in order of appearance.
        discrete: Names of latent sites to be summed out.
        deterministic: Name -> shape of sites that follow from latents: those of `pyro.deterministic`, and those that a
            reparameteriser such as LocScaleReparam has replaced.
        observed: Names of observed sites whose data do not depend on latents.
        imputed: Names of the latents that ``obs_mask`` makes for missing data. They also have an entry for each
            datum that is there, which Pyro masks out; it is scored like the others, or it would have no density.
        plates: Site name -> ((dim, plate name), ...), dim counted from the right of the batch shape.
        subsampled: Plate name -> (minibatch, full size).
        subsamples: Plate name -> the indices the model drew when it was read.
        nesting: Number of batch dimensions the model uses.
        initial: Flat unconstrained initial point, ``(dim,)``.
    """

    latents: tuple[LatentSite, ...]
    discrete: tuple[str, ...]
    deterministic: dict[str, torch.Size]
    observed: tuple[str, ...]
    imputed: tuple[str, ...]
    plates: dict[str, tuple[tuple[int, str], ...]]
    subsampled: dict[str, tuple[int, int]]
    subsamples: dict[str, Tensor]
    nesting: int
    initial: Tensor

    @property
    def dim(self) -> int:
        return self.initial.numel()


def read_structure(
    model: Callable, args: tuple, kwargs: dict, init_loc_fn: Callable = init_to_center
) -> ModelStructure:
    """Runs a model once and reads its sites.

    Args:
        model: A Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        init_loc_fn: Value of each latent site at the initial point.

    Raises:
        ValueError: If the model has no continuous latent site, a latent that can be neither transformed
            nor enumerated, data that are NaN or outside their distribution's support, a local latent in
            a subsampled plate, or a latent whose support depends on another.
    """
    trace = _trace(model, args, kwargs, init_loc_fn)
    shaken = _trace(model, args, kwargs, _shake(trace))
    _check_static(trace, shaken)
    for name, site in trace.nodes.items():
        if site["type"] == "param":
            warnings.warn(
                f"the model has a pyro.param, {name!r}: its value is kept as it is, only latent variables are inferred",
                stacklevel=3,
            )
    samples: dict[str, Any] = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    subsamples = {name: site["value"] for name, site in samples.items() if site_is_subsample(site)}
    deterministic = {n: s["value"].shape for n, s in samples.items() if _follows_from_latents(s, shaken.nodes[n])}
    scored = {n: s for n, s in samples.items() if n not in subsamples and not s["infer"].get("_deterministic")}
    data = {n: s for n, s in scored.items() if s["is_observed"] and _is_data(s, shaken.nodes[n])}
    hidden = {name: site for name, site in scored.items() if not site["is_observed"]}
    discrete = {name: site for name, site in hidden.items() if getattr(site["fn"].support, "is_discrete", False)}
    for site in data.values():
        _check_data(site)
    for site in discrete.values():
        _check_enumerable(site)

    dtype, device = _float_type(trace)
    latents: list[LatentSite] = []
    initial: list[Tensor] = []
    for name, site in hidden.items():
        if name in discrete:
            continue
        _check_not_subsampled(site)
        transform = _transform(site, shaken.nodes[name])
        free = transform.inv(site["value"].to(device=device, dtype=dtype)).detach()
        position = sum(part.numel() for part in initial)
        latents.append(LatentSite(name, site["value"].shape, site["fn"].batch_shape, free.shape, transform, position))
        initial.append(free.reshape(-1))
    if sum(part.numel() for part in initial) == 0:
        raise ValueError("the model has no continuous latent site: there is nothing for a flow to infer")
    sites = {name: site for name, site in samples.items() if name not in subsamples}
    return ModelStructure(
        latents=tuple(latents),
        discrete=tuple(discrete),
        deterministic=deterministic,
        observed=tuple(data),
        imputed=tuple(name for name in hidden if _is_imputed(name, samples)),
        plates={name: tuple(sorted((f.dim, f.name) for f in _plates(site))) for name, site in sites.items()},
        subsampled={f.name: (f.size, f.full_size) for site in sites.values() for f in _subsampled(site)},
        subsamples=subsamples,
        nesting=max(
            [0]
            + [len(site["fn"].batch_shape) for site in scored.values()]
            + [-f.dim for site in sites.values() for f in _plates(site)]
        ),
        initial=torch.cat(initial),
    )


def _follows_from_latents(site: Any, shaken: Any) -> bool:
    if site["infer"].get("_deterministic"):
        return True
    # a reparameteriser leaves a Delta at the value of the site it replaced; some give it a density, which counts
    return site["is_observed"] and isinstance(_innermost(site["fn"]), dist.Delta) and not _is_data(site, shaken)


def _is_imputed(name: str, samples: dict[str, Any]) -> bool:
    stem, found, _ = name.rpartition("_unobserved")
    return bool(found) and name == f"{stem}_unobserved" and stem in samples and f"{stem}_observed" in samples


def _plates(site: Any) -> list[Any]:
    return [f for f in site["cond_indep_stack"] if f.vectorized]


def _subsampled(site: Any) -> list[Any]:
    return [f for f in _plates(site) if f.full_size not in (None, f.size)]


def _check_not_subsampled(site: Any) -> None:
    for plate in _subsampled(site):
        raise ValueError(
            f"the latent site {site['name']!r} lies in the plate {plate.name!r}, which is subsampled ({plate.size} of "
            f"{plate.full_size}): a flow has no variable for the others. Run on the full data, or amortise the local "
            "latents and give the flow guide poutine.block(model, expose=[the global sites])"
        )


def _check_enumerable(site: Any) -> None:
    if not site["fn"].has_enumerate_support:
        raise ValueError(
            f"the model's latent site {site['name']!r} ({_name(site['fn'])}) is discrete and has no finite support to "
            "sum over: marginalise it by hand or give it a continuous relaxation"
        )


def _trace(model: Callable, args: tuple, kwargs: dict, init_loc_fn: Callable) -> poutine.Trace:
    initialized = InitMessenger(with_fallback(init_loc_fn))(model)
    with torch.no_grad():
        return poutine.block(poutine.trace(initialized).get_trace)(*args, **kwargs)


def _shake(trace: poutine.Trace) -> Callable:
    """An ``init_loc_fn`` for a second run, at another value of each continuous latent site."""

    def init(site: Any = None) -> Any:
        first: Any = trace.nodes.get(site["name"])
        fn = site["fn"]
        if first is None or first["fn"].shape() != fn.shape() or getattr(fn.support, "is_discrete", False):
            return init_to_center(site)
        transform = biject_to(fn.support)
        free = transform.inv(first["value"])
        # fixed and uneven, so that neither an ordering nor a symmetric branch hides a difference
        return transform(free + torch.linspace(0.3, 0.9, max(free.numel(), 1)).to(free).reshape(free.shape))

    return init


def _check_static(trace: poutine.Trace, shaken: poutine.Trace) -> None:
    def shapes(t: poutine.Trace) -> dict[str, tuple]:
        nodes: dict[str, Any] = t.nodes
        return {
            k: (tuple(v["value"].shape), tuple(v["fn"].shape())) for k, v in nodes.items()
            if v["type"] == "sample" and torch.is_tensor(v["value"]) and not site_is_subsample(v)
        }  # fmt: skip

    first, second = shapes(trace), shapes(shaken)
    if first != second:
        differing = sorted(k for k in first.keys() | second.keys() if first.get(k) != second.get(k))
        raise ValueError(
            f"the model has dynamic structure: the sites {differing} appear, vanish or change their shape with the "
            "values of other latents; a flow needs a fixed set of variables"
        )
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
            continue
        if any(not f.vectorized for f in site["cond_indep_stack"]):
            raise ValueError(
                f"the latent site {name!r} lies in a sequential plate (for i in pyro.plate(...)); "
                "use a vectorised plate (with pyro.plate(...)), or a plain Python loop"
            )


def _transform(site: Any, shaken: Any) -> Transform:
    transform = _bijection(site)
    free = transform.inv(site["value"])
    if not torch.allclose(transform(free), _bijection(shaken)(free), rtol=1e-6, atol=0.0, equal_nan=True):
        raise ValueError(
            f"the support of the latent site {site['name']!r} depends on another latent; sample a fraction in a fixed "
            "range, for instance dist.Uniform(0, 1), and scale it with pyro.deterministic"
        )
    return transform


def _bijection(site: Any) -> Transform:
    try:
        return biject_to(site["fn"].support)
    except NotImplementedError as error:
        raise ValueError(
            f"the latent site {site['name']!r} ({_name(site['fn'])}) has a support without a known bijection from the "
            "real numbers; sample it from dist.ImproperUniform and score it with obs=... instead"
        ) from error


def _is_data(site: Any, shaken: Any) -> bool:
    """Whether an observed value stays the same when the latents change; factors and priors by obs= do not."""
    value, other = site["value"], shaken["value"]
    if type(site["fn"]).__name__ == "Unit" or not torch.is_tensor(value):
        return False
    return bool(((value == other) | ((value != value) & (other != other))).all())


def _check_data(site: Any) -> None:
    value, fn = site["value"], site["fn"]
    masks = [(site["mask"], fn.event_dim)]
    while isinstance(fn, (dist.MaskedDistribution, dist.Independent)):
        masks.append((getattr(fn, "_mask", None), fn.event_dim))
        fn = fn.base_dist
    if any(mask is False for mask, _ in masks):
        return
    seen = torch.tensor(True, device=value.device)
    for mask, event_dim in masks:
        if torch.is_tensor(mask):
            seen = seen & mask.reshape(mask.shape + (1,) * event_dim).to(value.device)
    if value.is_floating_point() and bool((value.isnan() & seen).any()):
        count = int((value.isnan() & seen).sum())
        raise ValueError(
            f"the data observed at site {site['name']!r} contain {count} NaN; leave them out, or mask them "
            "with poutine.mask or obs_mask"
        )
    if all(mask is None or mask is True for mask, _ in masks):
        try:
            inside = fn.support.check(value)
        except (NotImplementedError, ValueError, RuntimeError):
            return
        if not bool(inside.all()):
            raise ValueError(
                f"the data observed at site {site['name']!r} lie outside the support of {_name(fn)} "
                f"({fn.support}) in {int((~inside).sum())} places"
            )


def _float_type(trace: poutine.Trace) -> tuple[torch.dtype, torch.device]:
    """The widest floating dtype among values of sites, so that float64 data stay float64; and the device."""
    values = [
        v["value"] for v in trace.nodes.values()
        if v["type"] == "sample" and torch.is_tensor(v["value"]) and v["value"].is_floating_point()
    ]  # fmt: skip
    dtype = torch.get_default_dtype() if not values else values[0].dtype
    device = values[0].device if values else torch.get_default_device()
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype)
        device = value.device if value.device.type != "cpu" else device
    return dtype, device


def _float_like(fn: Any) -> Tensor:
    """An empty tensor of the dtype and device of a distribution's parameters."""
    for value in vars(fn).values():
        if torch.is_tensor(value) and value.is_floating_point():
            return value.new_empty(0)
    base = getattr(fn, "base_dist", None)
    return torch.empty(0) if base is None else _float_like(base)


def _name(fn: Any) -> str:
    return type(_innermost(fn)).__name__


def _innermost(fn: Any) -> Any:
    while isinstance(fn, (dist.MaskedDistribution, dist.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn
