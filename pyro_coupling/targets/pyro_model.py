"""A Pyro model as a batched log density in unconstrained coordinates."""

from __future__ import annotations

__all__ = ["PyroTarget"]

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import config_enumerate
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .structure import ModelStructure, init_to_center, read_structure

_PARTICLES = "_flow_particles"
# About what one core caches: beyond it, a batch of points is slower than its halves one after the other.
_CACHE_BYTES = 4 * 2**20
# An operation on as much takes about as long as starting it does, so smaller tensors gain nothing.
_FREE_BYTES = 8 * 2**10


class PyroTarget:
    """The joint log density of a Pyro model and its data, over the flat vector of unconstrained latents.

    All points of a batch are evaluated in one run of the model, to the left of its plates. A model that
    can't be run so is detected, and run point by point, with a warning. Discrete latents with finite
    support are summed out. A point at which the model can't be evaluated has density zero.

    Args:
        model: A Pyro model of fixed structure.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        init_loc_fn: Value of each latent site at the initial point.

    Attributes:
        dim: Number of unconstrained coordinates.
        structure: What was read of the model.
        vectorized: Whether a batch is one run of the model.
        stochastic: Whether the model draws random numbers of its own (a subsampled plate, a hidden latent
            site); they are then the same at every call, so that the density is at least a function.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> target = PyroTarget(model, (torch.zeros(3),))
        >>> target.log_prob(torch.zeros(5, 1)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: Callable,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
        init_loc_fn: Callable = init_to_center,
    ) -> None:
        self.model = model
        self.args = args
        self.kwargs = kwargs or {}
        self.structure: ModelStructure = read_structure(model, self.args, self.kwargs, init_loc_fn)
        self.dim = self.structure.dim
        self.dtype = self.structure.initial.dtype
        self.device = self.structure.initial.device
        self.initial = self.structure.initial
        self.vectorized = True
        self._frozen_seed: int | None = None
        self._check_deterministic()
        self._check_vectorized()
        self.bytes_per_point, self.num_operations = self._measure()
        least = _FREE_BYTES * self.num_operations
        self.chunk_size = max(8, max(_CACHE_BYTES, least) // max(1, self.bytes_per_point))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log joint density at points ``(n, dim)``, the Jacobian of the constraints included: ``(n,)``."""
        if x.dim() != 2 or x.size(-1) != self.dim:
            raise ValueError(f"PyroTarget: points must be (n, {self.dim}), got {tuple(x.shape)}")
        if len(x) == 0:
            return x.sum(-1)
        if not self.vectorized:
            return torch.cat([self._guarded(row, self._log_prob_alone) for row in x.split(1)])
        return self._guarded(x, self._log_prob_batch)

    def log_prob_or_raise(self, x: Tensor) -> Tensor:
        """As `log_prob`, but with the model's own error where it can't be evaluated at one of the points.

        What is done is then the same for all values of x, so that it can be recorded.

        Raises:
            RuntimeError: If the model has to be run point by point.
        """
        if not self.vectorized:
            raise RuntimeError("PyroTarget: the model is run point by point")
        return _finite_or_zero_density(self._log_prob_batch(x))

    @torch.no_grad()
    def constrain(self, x: Tensor, deterministic: bool = True) -> dict[str, Tensor]:
        """Values of the latent sites, and of deterministic ones, at points ``(n, dim)``: name -> ``(n, *shape)``."""
        values = {
            site.name: value.reshape((len(x),) + site.shape)
            for site, value, _ in self._unpack(x, self.structure.nesting)
        }
        if deterministic and self.structure.deterministic:
            values |= self._deterministic(x)
        return values

    @torch.no_grad()
    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """Points ``(n, dim)`` from values of all latent sites, name -> ``(n, *shape)``."""
        parts = [
            site.transform.inv(values[site.name]).reshape(len(values[site.name]), -1) for site in self.structure.latents
        ]
        return torch.cat(parts, -1).to(self.dtype)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor) -> dict[str, Tensor]:
        """Log likelihood of each observation at points ``(n, dim)``: site -> ``(n, *batch_shape)``.

        Masked observations have zero. Discrete latents are summed out where they belong to one observation
        each; where they do not, observations have no likelihood of their own, and the result is empty.
        """
        if self.structure.discrete:
            return self._marginal_log_likelihood(x)

        def read(site: Any) -> Tensor:
            return scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])

        return self._record(x, read, self.structure.observed)

    @torch.no_grad()
    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """A draw of each observed site at points ``(n, dim)``: site -> ``(n, *shape)``."""
        model = poutine.uncondition(self.model)
        return self._record(x, lambda site: site["value"], self.structure.observed, model)

    def observed_data(self) -> dict[str, Tensor]:
        """The data: observed site -> value."""
        with torch.no_grad(), self._aside(), _Substitute(self, self.initial):
            trace = poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        return {name: trace.nodes[name]["value"] for name in self.structure.observed}

    def _unpack(self, x: Tensor, nesting: int) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """Each latent site with its value, ``(n, 1, ..., *shape)``, and the Jacobian terms of its bijection.

        A point ``(dim,)`` gives values without a leading dimension.
        """
        batch = x.shape[:-1]
        for site in self.structure.latents:
            pad = (1,) * (nesting - len(site.batch_shape)) if batch else ()
            part = x[..., site.position : site.position + site.size]
            free = part.reshape(batch + pad + site.unconstrained_shape)
            value = site.transform(free)
            yield site, value, site.transform.log_abs_det_jacobian(free, value)

    def _guarded(self, x: Tensor, evaluate: Callable[[Tensor], Tensor]) -> Tensor:
        """Evaluates a batch; where the model raises for some point, halves it until that point is alone."""
        try:
            log_p = evaluate(x)
        except (torch.linalg.LinAlgError, ValueError, ArithmeticError):
            if len(x) == 1:
                return x.new_full((1,), -torch.inf)
            return torch.cat([self._guarded(half, evaluate) for half in x.chunk(2)])
        return _finite_or_zero_density(log_p)

    def _log_prob_batch(self, x: Tensor) -> Tensor:
        if self.structure.discrete:
            return self._log_prob_enumerated(x)
        return self._run_density(x)

    def _log_prob_alone(self, x: Tensor) -> Tensor:
        """One point ``(1, dim)``, with no batch dimension in the model."""
        if self.structure.discrete:
            trace, log_jacobian = self._trace_enumerated(x[0])
            return _sum_out(trace, list(trace.nodes), [], []).reshape(1) + log_jacobian
        return self._run_density(x[0]).reshape(1)

    def _run_density(self, x: Tensor) -> Tensor:
        messenger = _LogDensity(self, x)
        with self._aside(), messenger:
            self.model(*self.args, **self.kwargs)
        return messenger.total()

    def _log_prob_enumerated(self, x: Tensor) -> Tensor:
        trace, log_jacobian = self._trace_enumerated(x)
        return _sum_out(trace, list(trace.nodes), [_PARTICLES], [len(x)]) + log_jacobian

    def _trace_enumerated(self, x: Tensor) -> tuple[poutine.Trace, Tensor]:
        """The model run at ``(n, dim)`` or ``(dim,)`` with all values of discrete latents, and the Jacobian terms."""
        model = config_enumerate(self.model, "parallel")
        model = poutine.enum(model, first_available_dim=-x.dim() - self.structure.nesting)
        messenger = _Substitute(self, x)
        with self._aside(), messenger, self._plate(len(x)) if x.dim() == 2 else nullcontext():
            trace = poutine.trace(model).get_trace(*self.args, **self.kwargs)
            trace.compute_log_prob()
        trace.pack_tensors()
        return trace, messenger.log_jacobian

    def _marginal_log_likelihood(self, x: Tensor) -> dict[str, Tensor]:
        plates, discrete, observed = self.structure.plates, self.structure.discrete, self.structure.observed
        if len(observed) != 1 or any(plates[name] != plates[observed[0]] for name in discrete):
            return {}

        def run(points: Tensor) -> Tensor:
            trace, _ = self._trace_enumerated(points)
            size = {f.name: f.size for f in trace.nodes[observed[0]]["cond_indep_stack"] if f.vectorized}
            names = [_PARTICLES] * (points.dim() - 1) + [name for _, name in plates[observed[0]]]
            return _sum_out(trace, [*discrete, *observed], names, [size[name] for name in names])

        return {observed[0]: run(x) if self.vectorized else torch.stack([run(row) for row in x])}

    def _plate(self, n: int) -> pyro.plate:
        return pyro.plate(_PARTICLES, n, dim=-1 - self.structure.nesting)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Runs the model with validation off, hidden from handlers outside, its own randomness frozen."""
        with pyro.validation_enabled(False), poutine.block():
            if self._frozen_seed is None:
                yield
            else:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self._frozen_seed)
                    yield

    def _deterministic(self, x: Tensor) -> dict[str, Tensor]:
        shapes = self.structure.deterministic
        if self.vectorized:
            with self._aside(), _Substitute(self, x):
                trace = poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
            found = _per_draw({name: trace.nodes[name]["value"] for name in shapes}, len(x), shapes)
            # names and shapes do not tell which axis is which: hold one draw against a run of its own
            alone = self._deterministic_alone(x[-1])
            if found is not None and all(
                torch.allclose(value[-1], alone[name], rtol=1e-4, atol=1e-6, equal_nan=True)
                for name, value in found.items()
            ):
                return found
        rows = [self._deterministic_alone(row) for row in x]
        return {name: torch.stack([row[name] for row in rows]) for name in shapes}

    def _deterministic_alone(self, point: Tensor) -> dict[str, Tensor]:
        with self._aside(), _Substitute(self, point):
            trace = poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        return {name: trace.nodes[name]["value"] for name in self.structure.deterministic}

    def _record(
        self, x: Tensor, read: Callable[[Any], Tensor], names: tuple[str, ...], model: Callable | None = None
    ) -> dict[str, Tensor]:
        """Reads a tensor off the named sites for each of n points: name -> ``(n, *shape)``."""
        model = model or self.model

        def run(points: Tensor) -> dict[str, Tensor]:
            with self._aside(), _Substitute(self, points):
                if points.dim() == 1:
                    trace = poutine.trace(model).get_trace(*self.args, **self.kwargs)
                else:
                    with self._plate(len(points)):
                        trace = poutine.trace(model).get_trace(*self.args, **self.kwargs)
            return {name: read(trace.nodes[name]) for name in names}

        if self.vectorized and not self.structure.discrete and len(x):
            shapes = {name: value.shape for name, value in run(x[0]).items()}
            found = _per_draw(run(x), len(x), shapes)
            if found is not None:
                return found
        rows = [run(row) for row in x]
        return {name: torch.stack([row[name] for row in rows]) for name in names}

    @property
    def stochastic(self) -> bool:
        return self._frozen_seed is not None or bool(self.structure.subsampled)

    def _check_deterministic(self) -> None:
        """Freezes the model's own randomness where runs at one point differ."""
        point, state = self.initial.unsqueeze(0), torch.get_rng_state()
        with torch.no_grad():
            first = self._guarded(point, self._log_prob_alone)
            # a hidden discrete site may well draw the same value twice, but not 20 times
            draws = self.device.type != "cpu" or not torch.equal(state, torch.get_rng_state())
            others = (self._guarded(point, self._log_prob_alone) for _ in range(20 if draws else 1))
            if not all(torch.equal(first, other) for other in others):
                self._frozen_seed = int(torch.randint(2**31, ()))

    def _measure(self) -> tuple[int, int]:
        """Memory that autograd keeps for one more point, and the number of tensors it keeps."""

        def kept(n: int) -> dict[int, int]:
            seen: dict[int, int] = {}

            def pack(tensor: Tensor) -> Tensor:
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            x = self.initial.expand(n, -1).clone().requires_grad_()
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                log_p = self.log_prob(x)  # alive until all is counted, so that no address is used twice
            return seen if log_p.requires_grad else {}

        two, three = kept(2), kept(3)
        return max(0, sum(three.values()) - sum(two.values())), len(two)

    def _check_vectorized(self) -> None:
        """Compares a batch of two points with the same points alone; falls back to single runs where they differ."""
        offsets = torch.linspace(-0.05, 0.05, 2 * self.dim, dtype=self.dtype, device=self.device)
        x = self.initial + offsets.reshape(2, self.dim)
        with torch.no_grad():
            alone = torch.cat([self._guarded(row, self._log_prob_alone) for row in x.split(1)])
            structure, reasons = self.structure, []
            for hidden in range(3):  # plates hidden by poutine.block take up batch dimensions too
                self.structure = replace(structure, nesting=structure.nesting + hidden)
                try:
                    if self._agree(self._log_prob_batch(x), alone):
                        return
                    reasons.append("gives other values")
                except Exception as error:  # whatever the model's own code raises when its inputs gain a dimension
                    reasons.append(f"raises {type(error).__name__}: {error}")
        self.structure, self.vectorized = structure, False
        advice = "Models should index from the right: x[..., i], unsqueeze(-1), and (X * beta).sum(-1) for X @ beta"
        if self._frozen_seed is not None:
            advice = "It draws random numbers of its own, for instance at a site hidden by poutine.block"
        warnings.warn(
            f"the model can't be run on a batch of points at once (it {reasons[0]}); it is run point by point, "
            f"which is slower. {advice}",
            stacklevel=4,
        )

    def _agree(self, together: Tensor, alone: Tensor) -> bool:
        finite = alone.isfinite()
        tolerance = 1e-8 if self.dtype == torch.float64 else 1e-3
        return torch.allclose(together[finite], alone[finite], rtol=tolerance, atol=tolerance)


class _Substitute(Messenger):
    """Puts given values in place of the latent sites, and the recorded indices in place of subsamples."""

    def __init__(self, target: PyroTarget, x: Tensor) -> None:
        super().__init__()
        structure = target.structure
        self.known: dict[str, Tensor] = dict(structure.subsamples)
        self.discrete = structure.discrete
        self.imputed = structure.imputed
        self.jacobian_terms: list[Tensor] = []
        self.batched = x.dim() > 1
        self.size = len(x) if self.batched else 1
        for site, value, log_jacobian in target._unpack(x, structure.nesting):
            self.known[site.name] = value
            self.jacobian_terms.append(log_jacobian)

    @property
    def log_jacobian(self) -> Tensor:
        rows = self.size if self.batched else 1
        return torch.stack([term.reshape(rows, -1).sum(-1) for term in self.jacobian_terms]).sum(0)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["name"] == _PARTICLES:
            return
        value = self.known.get(msg["name"])
        if msg["name"] in self.imputed:
            msg["mask"] = None
        if value is not None:
            msg["value"] = value
        elif msg["value"] is None and msg["name"] not in self.discrete and not site_is_subsample(msg):
            self._unknown(msg)

    def _unknown(self, msg: Any) -> None:
        """A site that was observed when the model was read, now to be predicted: sample it."""


class _LogDensity(_Substitute):
    """Adds up the log density as the model runs: a trace without the bookkeeping of one."""

    def __init__(self, target: PyroTarget, x: Tensor) -> None:
        super().__init__(target, x)
        self.nesting = target.structure.nesting
        self.terms: list[Tensor] = []
        self.constant: Tensor | float = 0.0

    def _unknown(self, msg: Any) -> None:
        raise RuntimeError(
            f"the model has dynamic structure: the latent site {msg['name']!r} was not there when the model was read"
        )

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        log_p = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        log_p = scale_and_mask(log_p, msg["scale"], msg["mask"])
        if not self.batched or not torch.is_tensor(log_p) or log_p.dim() <= self.nesting:
            self.constant = self.constant + (log_p.sum() if torch.is_tensor(log_p) else log_p)
            return
        if log_p.dim() > 1 + self.nesting:
            raise ValueError(f"site {msg['name']!r} has more batch dimensions in a batch of points than alone")
        self.terms.append(log_p.reshape(len(log_p), -1).sum(-1))

    def total(self) -> Tensor:
        total = self.log_jacobian + self.constant
        for term in self.terms:
            total = total + term
        return total


def _finite_or_zero_density(log_p: Tensor) -> Tensor:
    return torch.where(log_p.isnan() | (log_p == torch.inf), -torch.inf, log_p)


def _per_draw(values: dict[str, Any], n: int, shapes: dict[str, torch.Size]) -> dict[str, Tensor] | None:
    """Values computed for n points at once, each as ``(n, *shape)``; None if one does not fit."""
    found = {}
    for name, shape in shapes.items():
        value = values[name]
        if value.numel() == n * shape.numel():
            found[name] = value.reshape((n,) + shape)
        elif value.numel() == shape.numel():
            found[name] = value.reshape(shape).expand((n,) + shape)
        else:
            return None
    return found


def _sum_out(trace: poutine.Trace, names: list[str], plates: list[str], sizes: list[int]) -> Tensor:
    """Log density of the named sites with the enumerated ones summed out, over plates of the given sizes."""
    symbols = trace.plate_to_symbol
    factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
    for site in (trace.nodes[name] for name in names):
        if site["type"] == "sample" and not site_is_subsample(site):
            ordinal = frozenset(symbols[f.name] for f in site["cond_indep_stack"] if f.vectorized)
            factors.setdefault(ordinal, []).append(site["packed"]["log_prob"])
    summed = set(trace.symbol_to_dim) - set(symbols.values())
    kept = [symbols[name] for name in plates]
    # packing drops dimensions of size one: the ring has to know how large they are
    ring = LogRing(dim_to_size=dict(zip(kept, sizes, strict=True)))
    total = contract_to_tensor(factors, summed, target_ordinal=frozenset(kept), ring=ring)
    return total.permute([total._pyro_dims.index(symbol) for symbol in kept])
