"""A fit as an `xarray.DataTree` in the layout of ArviZ."""

from __future__ import annotations

__all__ = ["to_arviz", "to_datatree"]

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
import xarray
from torch import Tensor

from .targets.prior import sample_prior

if TYPE_CHECKING:
    from .inference import FlowVI
    from .targets import PyroTarget

_PRIOR_DRAWS = 500
_SAMPLE_DIMS = ("chain", "draw")
_SAMPLING = (
    "Draws are independent: drawn from the fitted flow and resampled by Pareto-smoothed importance weights. They are "
    "no Markov chain, so r_hat and the ess of chains say nothing about them: judge the fit by the attributes khat and "
    "ess (relative, 0 to 1)."
)


def to_arviz(vi: FlowVI, num_samples: int = 4000) -> Any:
    """Draws, predictions, likelihoods and data of a fit, in the object of the ArviZ that is installed.

    Args:
        vi: A fit that has been run.
        num_samples: Number of draws.

    Returns:
        ``arviz.InferenceData`` where ArviZ before 1.0 is installed; else the `xarray.DataTree` that ArviZ 1 reads,
        see `to_datatree`.

    Raises:
        RuntimeError: If ``vi`` has not been run.
        ValueError: If ``num_samples`` is not a positive integer.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_coupling import FlowVI
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> vi = FlowVI(model, max_steps=20, seed=0, progress=False).run(torch.tensor([1.0, 2.0, 3.0]))
        >>> idata = to_arviz(vi, 500)
        >>> dict(idata["log_likelihood"].sizes)
        {'chain': 1, 'draw': 500, 'data': 3}
    """
    tree = to_datatree(vi, num_samples)
    arviz = _arviz_before_1()
    return tree if arviz is None else arviz.InferenceData.from_datatree(tree)


def to_datatree(vi: FlowVI, num_samples: int = 4000) -> xarray.DataTree:
    """Draws, predictions, likelihoods and data of a fit as a tree of labelled arrays.

    Groups are ``posterior`` (latent and deterministic sites), ``posterior_predictive``, ``log_likelihood``,
    ``sample_stats`` (``lp``, the log joint density of the unconstrained draw; ``log_q``, that of the flow;
    ``log_weight``, their difference), ``prior`` and ``prior_predictive`` (at most 500 draws), ``observed_data`` and
    ``constant_data`` (tensors and arrays among the model's arguments). A group that the model does not allow is
    left out, and the attribute ``left_out`` says why. Draws have dimensions ``chain`` (of size 1) and ``draw``,
    then the names of the plates a site lies in, then ``<site>_dim_<axis>``.

    Args:
        vi: A fit that has been run.
        num_samples: Number of draws.

    Raises:
        RuntimeError: If ``vi`` has not been run.
        ValueError: If ``num_samples`` is not a positive integer.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_coupling import FlowVI
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> vi = FlowVI(model, max_steps=20, seed=0, progress=False).run(torch.tensor([1.0, 2.0, 3.0]))
        >>> list(to_datatree(vi, 500).children)  # doctest: +NORMALIZE_WHITESPACE
        ['posterior', 'posterior_predictive', 'log_likelihood', 'sample_stats', 'prior', 'prior_predictive',
         'observed_data']
    """
    x, log_q, log_p = vi._posterior_points(num_samples, True)
    target = vi.target
    assert target is not None  # _posterior_points has refused a fit that was not run
    observed = target.observed_data()
    left_out: dict[str, str] = {}
    drawn = {"posterior": vi._constrained(x), "posterior_predictive": {}}
    drawn["log_likelihood"] = _in_parts(target.log_likelihood, x, target)
    drawn["sample_stats"] = {"lp": log_p, "log_q": log_q, "log_weight": log_p - log_q}
    with _own_random_state(vi._generator):
        with _note(left_out, "posterior_predictive"):
            drawn["posterior_predictive"] = _in_parts(target.predict, x, target)
        with _note(left_out, "prior"):
            latents = sample_prior(target, min(num_samples, _PRIOR_DRAWS))
            prior = target.unconstrain(latents)
            drawn["prior"] = vi._constrained(prior) | latents
        with _note(left_out, "prior_predictive"):
            drawn["prior_predictive"] = _in_parts(target.predict, prior, target) if "prior" in drawn else {}
    if observed and not drawn["log_likelihood"]:
        left_out["log_likelihood"] = "observations share discrete latents, so none has a likelihood of its own"
    constant = _constant_data(target, observed)
    labels = _Labels(target, drawn, observed, constant)
    groups = {name: labels.drawn(values, name == "log_likelihood") for name, values in drawn.items() if values}
    fixed = {"observed_data": observed, "constant_data": constant}
    groups |= {name: labels.fixed(values) for name, values in fixed.items() if values}
    attributes = _attributes(vi, left_out)
    tree = xarray.DataTree.from_dict(groups)
    tree.attrs.update(attributes)
    tree["posterior"].attrs.update(attributes)
    return tree


def _arviz_before_1() -> Any:
    """The module ``arviz`` where it is installed and has ``InferenceData``, else None."""
    try:
        arviz = importlib.import_module("arviz")
    except ImportError:
        return None
    return arviz if int(arviz.__version__.split(".")[0]) < 1 else None


def _in_parts(function: Callable[[Tensor], dict[str, Tensor]], x: Tensor, target: PyroTarget) -> dict[str, Tensor]:
    """A function of points, evaluated on so many at a time as the model's size allows."""
    parts = [function(part) for part in x.split(max(target.chunk_size, 100))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@contextmanager
def _note(left_out: dict[str, str], group: str) -> Iterator[None]:
    """Notes why a group can't be had, where the model's own code fails at it."""
    try:
        yield
    except (NotImplementedError, ValueError, RuntimeError, ArithmeticError) as error:
        left_out[group] = str(error).partition("\n")[0] or type(error).__name__


@contextmanager
def _own_random_state(generator: torch.Generator) -> Iterator[None]:
    """Seeds torch's global generators from the given one, and puts them back afterwards."""
    device = generator.device
    seed = int(torch.randint(2**31, (), generator=generator, device=device))
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # not torch.manual_seed, which also seeds the devices that are not put back
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _constant_data(target: PyroTarget, observed: dict[str, Tensor]) -> dict[str, Any]:
    """Tensors and arrays among the model's arguments that are not its observed data."""
    arguments = _named_arguments(target).items()
    arrays = {name: _to_numpy(value) for name, value in arguments if isinstance(value, (Tensor, np.ndarray))}
    data = [_to_numpy(value) for value in observed.values()]
    return {
        name: array for name, array in arrays.items()
        if array.dtype.kind in "biuf" and not any(np.array_equal(array, d, equal_nan=True) for d in data)
    }  # fmt: skip


def _named_arguments(target: PyroTarget) -> dict[str, Any]:
    model = target.model
    call = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        signature = inspect.signature(call)
        arguments = signature.bind(*target.args, **target.kwargs).arguments
    except (TypeError, ValueError):  # a callable that does not tell its parameters
        return dict(target.kwargs)
    named: dict[str, Any] = {}
    for name, value in arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            named[name] = value
    return named


class _Labels:
    """Names of variables and dimensions, the same in all groups and without clashes."""

    def __init__(
        self,
        target: PyroTarget,
        drawn: dict[str, dict[str, Tensor]],
        observed: dict[str, Tensor],
        constant: dict[str, Any],
    ) -> None:
        structure = target.structure
        self.plates = structure.plates
        self.variables: dict[str, str] = {}
        for name in [*drawn["posterior"], *observed, *constant, *drawn["sample_stats"]]:
            if name not in self.variables:
                # xarray's trees read a slash as a path
                self.variables[name] = _unused(name.replace("/", "."), {*self.variables.values(), *_SAMPLE_DIMS}, "_")
        likelihood, predictive = drawn["log_likelihood"], drawn["posterior_predictive"]
        self.event_dims = {s.name: len(s.shape) - len(s.batch_shape) for s in structure.latents}
        self.event_dims |= {n: predictive[n].dim() - likelihood[n].dim() for n in likelihood if n in predictive}
        sizes = {s.name: s.batch_shape for s in structure.latents}
        sizes |= {name: value.shape[1:] for name, value in likelihood.items()}
        self.sizes: dict[str, int] = {}
        self.dimensions: dict[str, str] = {}
        for name, shape in sizes.items():
            for dim, plate in self.plates[name]:
                if -dim <= len(shape):
                    self.sizes.setdefault(plate, shape[dim])
        for plate in self.sizes:
            taken = {*self.variables.values(), *self.dimensions.values(), *_SAMPLE_DIMS}
            self.dimensions[plate] = _unused(plate.replace("/", "."), taken, "_dim")

    def drawn(self, values: dict[str, Tensor], pointwise: bool = False) -> xarray.Dataset:
        """A group of draws, name -> ``(draws, *shape)``; ``pointwise`` if shapes are without event dimensions."""
        arrays = {name: _to_numpy(value) for name, value in values.items()}
        return _dataset({
            self.variables[name]: ([*_SAMPLE_DIMS, *self._dims(name, array.shape[1:], pointwise)], array[None])
            for name, array in arrays.items()
        })  # fmt: skip

    def fixed(self, values: dict[str, Any]) -> xarray.Dataset:
        """A group of data, name -> ``shape``."""
        arrays = {name: _to_numpy(value) for name, value in values.items()}
        return _dataset({self.variables[name]: (self._dims(name, a.shape), a) for name, a in arrays.items()})

    def _dims(self, name: str, shape: tuple[int, ...], pointwise: bool = False) -> list[str]:
        taken = {*self.variables.values(), *self.dimensions.values()}
        dims = [_unused(f"{self.variables[name]}_dim_{axis}", taken, "_") for axis in range(len(shape))]
        for axis, plate in self._plate_axes(name, shape, 0 if pointwise else self.event_dims.get(name)).items():
            dims[axis] = self.dimensions[plate]
        return dims

    def _plate_axes(self, name: str, shape: tuple[int, ...], event_dim: int | None) -> dict[int, str]:
        """Axis -> plate, for the axes that are as long as the plate is elsewhere."""
        plates = [(dim, plate) for dim, plate in self.plates.get(name, ()) if plate in self.sizes]
        # a deterministic site does not tell how many of its dimensions are the event's: the fewest that fit
        for number in range(len(shape)) if event_dim is None else [event_dim]:
            axes = {len(shape) - number + dim: plate for dim, plate in plates}
            fitting = {axis: plate for axis, plate in axes.items() if axis >= 0 and shape[axis] == self.sizes[plate]}
            if event_dim is not None or len(fitting) == len(axes):
                return fitting
        return {}


def _dataset(variables: dict[str, tuple[list[str], np.ndarray]]) -> xarray.Dataset:
    sizes = {dim: n for dims, array in variables.values() for dim, n in zip(dims, array.shape, strict=True)}
    return xarray.Dataset(variables, coords={dim: np.arange(n) for dim, n in sizes.items()})


def _unused(name: str, taken: Iterable[str], suffix: str) -> str:
    while name in taken:
        name += suffix
    return name


def _to_numpy(value: Any) -> np.ndarray:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()


def _attributes(vi: FlowVI, left_out: dict[str, str]) -> dict[str, Any]:
    """Figures of the fit, in types that netCDF knows."""
    from . import __version__

    figures = vi.diagnostics()
    named = {
        **figures,
        "sampling": _SAMPLING,
        "left_out": "; ".join(f"{group}: {reason}" for group, reason in left_out.items()),
        "created_at": datetime.now(timezone.utc).isoformat(),
        "inference_library": "pyro_coupling",
        "inference_library_version": __version__,
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
    }
    return {name: _plain(value) for name, value in named.items()}


def _plain(value: Any) -> int | float | str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, (int, float, str)) else str(value)
