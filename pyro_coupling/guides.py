"""Pyro autoguides: a coupling flow over all continuous latents of a model."""

from __future__ import annotations

__all__ = ["AutoCouplingFlow"]

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor
from torch.distributions import Transform, biject_to

from . import flows
from .targets import PyroTarget, Target, init_to_center
from .targets.structure import with_fallback
from .training import Gaussian, warm_start
from .training.gaussians import LARGEST_DENSE
from .training.low_rank import low_rank_init
from .training.warm_start import METHODS
from .transforms import Bijection, Chain, LowerTriangularAffine, LowRankAffine

_QUANTILE_DRAWS = 10_000
_CHUNK = 10**7  # numbers in a batch of draws, so that one of many latents does not fill the memory


def _default_flow(dim: int) -> Bijection:
    if dim == 1:  # with nothing to depend on, an affine coupling would be one more location and scale
        return flows.neural_spline(dim, num_layers=2, bound=5.0, outer_affine=False)
    return flows.real_nvp(dim, outer_affine=False)


class AutoCouplingFlow(AutoContinuous):
    """A coupling flow as a drop-in guide: it starts as the best Gaussian found, and learns from there.

    Parameters are made, and the warm start is run, when the guide first meets the model's arguments;
    or, without a model run, when a state dict is loaded.

    Args:
        model: A Pyro model of fixed structure.
        flow: Makes the flow from the latent dimension, for instance
            ``partial(flows.neural_spline, num_layers=4)`` or
            ``partial(iterated, 4, transforms.affine_coupling)``; or a bijection of that dimension. A
            learned affine map, set by the warm start, always follows. ``flows.real_nvp`` if not given
            (splines for a single latent dimension).
        init_loc_fn: Value of each site at the first starting point; sites that can't be sampled
            (``ImproperUniform``) start at the centre of their support.
        warm_start: ``"pathfinder"``, ``"laplace"`` or ``"init"`` (the initial point and standard
            deviations of 0.1), see `training.warm_start`.
        num_starts: Optimisation paths of the warm start.
        compile: Whether to compile the flow, see `transforms.Chain`. `FlowVI` compiles whole training steps instead,
            by a setting of its own.

    Raises:
        ValueError: For a model it can't serve, with what to do instead: see `targets.structure`.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> guide = AutoCouplingFlow(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> loss = svi.step(torch.tensor([1.0, 2.0, 3.0]))
        >>> guide.median()["mu"].shape
        torch.Size([])
    """

    def __init__(
        self,
        model: Callable,
        flow: Callable[[int], Bijection] | Bijection | None = None,
        *,
        init_loc_fn: Callable = init_to_center,
        warm_start: str = "pathfinder",
        num_starts: int = 8,
        compile: bool = False,
    ) -> None:
        if not callable(model):
            raise TypeError(f"AutoCouplingFlow: model must be callable, got {type(model).__name__}")
        if flow is not None and not callable(flow):
            raise TypeError(f"AutoCouplingFlow: flow must be callable or a Bijection, got {type(flow).__name__}")
        if warm_start not in METHODS:
            raise ValueError(f"AutoCouplingFlow: warm_start must be one of {METHODS}, got {warm_start!r}")
        if num_starts < 1:
            raise ValueError(f"AutoCouplingFlow: num_starts must be at least 1, got {num_starts}")
        super().__init__(model, init_loc_fn=with_fallback(init_loc_fn))
        self.transform: Chain | None = None
        #: names and unconstrained shapes of the latents that parameters loaded from a file are for
        self.loaded_latents: dict[str, tuple[int, ...]] = {}
        self.starts: list[Gaussian] = []
        self._flow = (flow or _default_flow,)  # in a tuple, so that a bijection is not yet a child
        self._init_loc_fn = init_loc_fn
        self._plain_model = (model,)
        self.warm_start = warm_start
        self.num_starts = num_starts
        self._compile = compile

    def setup(
        self,
        target: Target,
        args: tuple,
        kwargs: dict[str, Any],
        *,
        generator: torch.Generator | None = None,
        max_seconds: float = math.inf,
        run_warm_start: bool = True,
    ) -> None:
        """Reads the model, makes the parameters and runs the warm start on a given target.

        Args:
            target: Density over the flat unconstrained latents, for the warm start.
            args: The model's positional arguments.
            kwargs: The model's keyword arguments.
            generator: Source of randomness of the warm start.
            max_seconds: Time for the warm start.
            run_warm_start: False where the parameters are to be replaced by those of an earlier run.
        """
        with torch.no_grad():
            super()._setup_prototype(*args, **kwargs)
        if self.master is None:
            with poutine.block():
                self._create_plates(*args, **kwargs)  # NeuTraReparam reads them, also where no call went before
        initial = self._init_loc().to(dtype=target.dtype, device=target.device)
        if self.transform is not None:  # loaded
            self._check_loaded(self.transform)
            return
        self._build(self.latent_dim, initial)
        if not run_warm_start:
            return
        self.starts = warm_start(
            target, initial, self.warm_start, num_starts=self.num_starts, generator=generator, max_seconds=max_seconds
        )
        self.transform[-1].set(**self.starts[0].tensors)

    def _check_loaded(self, transform: Chain) -> None:
        wanted, found, size = self.loaded_latents, self.latents, transform.event_shape[0]
        if wanted and list(wanted.items()) != list(found.items()):  # their order counts as well
            message = f"the latents {wanted}, the model has {found}"
        elif size != self.latent_dim:
            message = f"{size} latent dimensions, the model has {self.latent_dim}"
        else:
            return
        self.prototype_trace = None  # or a second call would get past
        raise ValueError(f"AutoCouplingFlow: the loaded parameters are for {message}")

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        if self._plain_model is None:
            raise ValueError(
                "AutoCouplingFlow: this guide was pickled before it had met its model, and a model is not pickled with "
                "its guide: make a new guide and load the state dict into it"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the model has a pyro.param")  # SVI learns it along with the guide
            target = PyroTarget(self._plain_model[0], args, kwargs, self._init_loc_fn)
        seed = int(torch.randint(2**31, ()))  # of the global state, so that pyro.set_rng_seed governs it
        self.setup(target, args, kwargs, generator=torch.Generator(device=target.device).manual_seed(seed))

    def _build(self, dim: int, like: Tensor) -> None:
        flow = self._flow[0]
        if not isinstance(flow, Bijection):
            flow = _as_bijection(flow if isinstance(flow, Transform) else flow(dim))
        if flow.event_shape != (dim,) or flow.context_shape:
            raise ValueError(
                f"AutoCouplingFlow: flow must be a bijection of ({dim},) without context, found event shape "
                f"{tuple(flow.event_shape)} and a context of shape {tuple(flow.context_shape)}"
            )
        chain = Chain([flow, _outer(like.new_zeros(dim))], compile=self._compile)
        self.transform = chain.to(dtype=like.dtype, device=like.device)

    @property
    def latents(self) -> dict[str, tuple[int, ...]]:
        """Names and unconstrained shapes of the latents, in the order in which they lie in the flow's output."""
        if self.prototype_trace is None:
            return self.loaded_latents
        return {name: tuple(shape) for name, shape in self._unconstrained_shapes.items()}

    def get_base_dist(self) -> dist.TorchDistribution:
        """Standard normal, ``(latent_dim,)``."""
        loc = torch.zeros_like(self._outer_loc())
        return dist.Normal(loc, torch.ones_like(loc), validate_args=False).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> Bijection:
        """The flow, base noise to unconstrained latents."""
        transform = self._require_transform()
        if torch.jit.is_tracing() and not any(p.requires_grad for p in transform.parameters()):
            return _frozen_copy(transform)
        return transform

    def _outer_loc(self) -> Tensor:
        """Location of the outer affine map, a tensor of the guide's dtype and device."""
        return cast(Tensor, self._require_transform()[-1].loc)

    def _require_transform(self) -> Chain:
        if self.transform is None:
            raise ValueError(
                "AutoCouplingFlow has not met its model yet: call guide(*args, **kwargs) with the model's arguments "
                "once, or load a state dict, before it is used"
            )
        return self.transform

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Median of each latent variable, coordinate by coordinate in unconstrained space.

        Returns:
            Site name to tensor, of the shape of the site.
        """
        return {name: value[0] for name, value in self.quantiles([0.5]).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Quantiles of each latent variable from 10 000 draws, the same ones at every call.

        Args:
            quantiles: Numbers from 0 to 1.

        Returns:
            Site name to tensor ``(len(quantiles), *shape)``.
        """
        transform = self._require_transform()
        if self.prototype_trace is None:
            raise ValueError("AutoCouplingFlow: call guide(*args, **kwargs) once before median or quantiles")
        like = self._outer_loc()
        levels = torch.as_tensor(quantiles, dtype=like.dtype, device=like.device)
        if levels.dim() != 1 or bool(((levels < 0) | (levels > 1)).any()):
            raise ValueError(f"quantiles must be a list of numbers from 0 to 1, got {quantiles}")
        generator = torch.Generator(device=like.device).manual_seed(0)
        z = torch.randn(_QUANTILE_DRAWS, len(like), dtype=like.dtype, device=like.device, generator=generator)
        draws = torch.cat([transform.forward_and_log_det(part)[0] for part in z.split(max(1, _CHUNK // len(like)))])
        # by columns, because torch.quantile takes no more than 16 million entries
        latents = torch.cat([part.quantile(levels, dim=0) for part in draws.split(1000, dim=1)], dim=1)
        found: dict[str, list[Tensor]] = {}
        for latent in latents:
            for site, value in self._unpack_latent(latent):
                found.setdefault(site["name"], []).append(biject_to(site["fn"].support)(value))
        return {name: torch.stack(values) for name, values in found.items()}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loc = state_dict.get(f"{prefix}transform.parts.1.loc")
        if self.transform is None and loc is not None:
            self._build(loc.numel(), loc)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        model, master = self._model, self.master
        state = dict(super().__getstate__())
        self._model, self.master = model, master  # Pyro clears them on the guide itself
        state["_plain_model"] = None
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoCouplingFlow:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        copied._model, copied._plain_model = self._model, self._plain_model  # unlike a pickle, a copy has its model
        return copied


def _outer(loc: Tensor) -> Bijection:
    """The affine map that a guide ends in, of the form that its starts have."""
    if len(loc) <= LARGEST_DENSE:
        return LowerTriangularAffine(loc)
    return LowRankAffine(**low_rank_init(loc, 1.0).tensors)


def _frozen_copy(transform: Chain) -> Chain:
    """A copy for the compiled NUTS of Pyro: it freezes the parameters only while it traces, and its trace then
    holds parameters that require a gradient, which TorchScript can't run."""
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return copy.deepcopy(transform)
    finally:
        torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]


def _as_bijection(flow: Any) -> Bijection:
    """A bijection, or Pyro's composition of bijections (what ``iterated`` makes) as a chain."""
    if isinstance(flow, Bijection):
        return flow
    parts = getattr(flow, "parts", None)
    if parts and all(isinstance(part, Bijection) for part in parts):
        return Chain(parts)
    raise TypeError(
        f"AutoCouplingFlow: flow must make a Bijection of pyro_coupling.transforms, found {type(flow).__name__}; "
        "Pyro's AutoNormalizingFlow takes any transform"
    )
