"""`FlowVI`: variational inference with a coupling flow, used where one would use ``MCMC(NUTS(model))``."""

from __future__ import annotations

__all__ = ["FlowVI"]

import math
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pyro.poutine as poutine
import torch
from torch import Tensor

from ..diagnostics import log_evidence, pareto_smooth, relative_ess, resample
from ..guides import AutoCouplingFlow
from ..targets import PyroTarget
from ..training import Trainer, TrainingRecord, TrainingState
from ..training.distribution import joined_ranks
from ..training.progress import ProgressLine
from ..training.threads import suitable_threads
from .assessment import assess, missed_mass
from .saving import load_fit, save_fit
from .session import Session

if TYPE_CHECKING:
    import pandas

_PARTICLES = 128
_MORE_PARTICLES = 512  # where they cost little more
_LONG_COMPUTATION = 2000  # operations that take longer to start than a flow of default size takes in all
_MAX_STEPS = 50_000
_DIAGNOSTIC_DRAWS = 4000
_MOST_ENTRIES = 4_000_000  # of draws that pass the flow at once
_WARM_START_SHARE = 0.2  # of max_seconds, at most


def _suitable_particles(target: PyroTarget) -> int:
    """More where a long chain of small operations, such as an ODE's or a filter's steps, costs the same for more."""
    cheap = target.num_operations >= _LONG_COMPUTATION and target.chunk_size >= _MORE_PARTICLES
    return _MORE_PARTICLES if cheap else _PARTICLES


def _learning_rate(dim: int) -> float:
    """Step size of Adam: larger where few dimensions make little gradient noise."""
    return min(6e-3, max(3e-3, 12e-3 / dim))


class FlowVI:
    """Fits a coupling flow to the posterior of a Pyro model, and says how far it can be trusted.

    Started by torchrun, its processes share the particles and end with the same fit.

    Args:
        model: A Pyro model of fixed structure. Discrete latents with finite support are summed out.
        guide: An `AutoCouplingFlow` of the model; one with default settings if not given. A guide that has
            been trained is trained further.
        num_particles: Samples in each training step, over all processes; if not given 128, or 512 for a
            model that computes in thousands of small steps, which take as long for more samples.
        max_steps: Largest number of training steps. If neither this nor ``max_seconds`` is given, training
            ends by itself when the fit no longer improves (at the latest after 50 000 steps).
        max_seconds: Longest time for warm start and training. Runs with it end by the clock, so they
            repeat exactly only if they end by themselves.
        seed: Makes a run repeatable; one number drawn from torch's global generator if not given. Nothing
            else of a run touches the global random state.
        progress: Whether to show a progress line.
        checkpoint: Path of a file to which the run is saved when its warm start is done, every few seconds
            from then on, and when its training is over. A later run with the same path goes on from there, bit for
            bit as if it had not been stopped; one that was finished is not trained any more.
        compile: Whether to compile the training step with inductor. That takes half a minute or more, once
            for a model, and pays in long runs; without a C++ compiler there is a warning, and nothing changes.
        callback: Called after every training step with a `training.TrainingState`, for logging of one's own. An
            exception that it raises ends the run.

    Raises:
        TypeError: If ``model`` or ``callback`` is not callable or ``guide`` is no `AutoCouplingFlow`.
        ValueError: If a number is out of range.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> vi = FlowVI(model, max_steps=100, seed=0, progress=False).run(torch.tensor([1.0, 2.0, 3.0]))
        >>> vi.get_samples(1000)["mu"].shape
        torch.Size([1000])
        >>> vi.diagnostics()["ess"] > 0.9
        True
    """

    def __init__(
        self,
        model: Callable,
        guide: AutoCouplingFlow | None = None,
        *,
        num_particles: int | None = None,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        seed: int | None = None,
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        compile: bool = False,
        callback: Callable[[TrainingState], Any] | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"FlowVI: model must be callable, got {type(model).__name__}")
        if callback is not None and not callable(callback):
            raise TypeError(f"FlowVI: callback must be callable, got {type(callback).__name__}")
        if guide is not None and not isinstance(guide, AutoCouplingFlow):
            raise TypeError(f"FlowVI: guide must be an AutoCouplingFlow, got {type(guide).__name__}")
        for name, number in (("num_particles", num_particles), ("max_steps", max_steps)):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise ValueError(f"FlowVI: {name} must be a positive integer, got {number!r}")
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"FlowVI: max_seconds must be positive, got {max_seconds!r}")
        self.model = model
        self.guide = guide
        self.num_particles = num_particles or _PARTICLES
        self._choose_particles = num_particles is None
        self.max_steps = max_steps or _MAX_STEPS
        self.max_seconds = max_seconds or math.inf
        self.progress = progress
        self.checkpoint = checkpoint
        self.compile = compile
        self.callback = callback
        self.seed = seed
        self.record = TrainingRecord()
        self.target: PyroTarget | None = None
        self._default_guide = guide is None
        self._generator = torch.Generator()
        self._figures: dict[str, Any] | None = None
        self._log_weights: Tensor | None = None
        self._step = ""

    def run(self, *args: Any, **kwargs: Any) -> FlowVI:
        """Fits the guide to the model's posterior given its arguments.

        Ctrl-C ends the training early and keeps what was learned; a warning tells of a fit that should not
        be trusted. Run again, a FlowVI without a guide of the user's own starts anew.

        Args:
            *args: The model's positional arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            The object itself.

        Raises:
            ValueError: If the model or its data can't be served: see `targets.structure`. If the checkpoint is of
                another model, guide or seed, or of other data.
            RuntimeError: If another process of the run is gone.
        """
        with joined_ranks() as ranks:
            session = Session(ranks, self.checkpoint, self.seed)
            with torch.random.fork_rng(), ProgressLine(self.progress and ranks.rank == 0) as line:
                torch.manual_seed(session.seed)
                line.say("reading the model")
                target = self._read_model(args, kwargs)
                self._generator = torch.Generator(device=target.device).manual_seed(session.seed)
                with suitable_threads(target.bytes_per_point * self.num_particles // ranks.size):
                    self._fit(target, session, line)
                    line.say("diagnosing the fit")
                    self._diagnose(target, session)
                line.finish(self._figures["message"])
        if ranks.rank == 0 and not self._figures["converged"]:
            warnings.warn(self._figures["message"], stacklevel=2)
        return self

    def _read_model(self, args: tuple, kwargs: dict[str, Any]) -> PyroTarget:
        init = {} if self.guide is None else {"init_loc_fn": self.guide._init_loc_fn}
        target = PyroTarget(self.model, args, kwargs, **init)
        if target.structure.subsampled:
            plates = ", ".join(f"{name!r} ({n} of {full})" for name, (n, full) in target.structure.subsampled.items())
            raise ValueError(
                f"FlowVI: the model subsamples its data in the plate {plates}; evidence and importance weights need "
                "the full data. Pass all data, or train AutoCouplingFlow with pyro.infer.SVI"
            )
        if target.stochastic:
            raise ValueError(
                "FlowVI: the model's log density changes from run to run at the same values: it draws random numbers "
                "of its own, for instance at a site hidden by poutine.block. Unhide these sites, or condition on them"
            )
        if self._default_guide:  # a new one for each run: what an earlier run learned is of other data
            discrete = list(target.structure.discrete)
            self.guide = AutoCouplingFlow(poutine.block(self.model, hide=discrete) if discrete else self.model)
        if self._choose_particles:
            self.num_particles = _suitable_particles(target)
        self.target = target
        return target

    def _fit(self, target: PyroTarget, session: Session, line: ProgressLine) -> None:
        guide = cast(AutoCouplingFlow, self.guide)

        def set_up(run_warm_start: bool) -> None:
            if guide.prototype_trace is None:
                line.say("looking for starting points" if run_warm_start else "going on from the checkpoint")
                guide.setup(
                    target, target.args, target.kwargs, generator=self._generator, run_warm_start=run_warm_start,
                    max_seconds=_WARM_START_SHARE * self.max_seconds,
                )  # fmt: skip

        def make_trainer(seconds_before: float) -> Trainer:
            return Trainer(
                guide.get_transform(),
                target,
                num_particles=self.num_particles,
                learning_rate=_learning_rate(target.dim),
                max_steps=self.max_steps,
                max_seconds=max(1e-3, self.max_seconds - seconds_before),
                generator=self._generator,
                ranks=session.ranks,
                compile=self.compile,
            )

        def watch(state: TrainingState) -> None:
            line.update(state)
            session.save_if_due(trainer)
            if self.callback is not None:
                self.callback(state)

        trainer = session.start(target, guide, set_up, make_trainer)
        self.record = trainer.run(watch)
        self._step = trainer.gradient_step.mode
        session.save(trainer, last=True)

    def _diagnose(self, target: PyroTarget, session: Session) -> None:
        """Judges the fit on rank 0; every rank then has rank 0's flow, random state and figures."""
        flow = self.guide.get_transform()
        tensors: dict[str, Tensor] = {}
        figures: dict[str, Any] = {}
        if session.ranks.rank == 0:
            log_weights, figures = self._judge(target, session)
            tensors = {"log_weights": log_weights, "generator": self._generator.get_state(), **flow.state_dict()}
        tensors, self._figures = session.share_result(tensors, figures)
        self._log_weights = tensors.pop("log_weights").to(target.device)
        self._generator.set_state(tensors.pop("generator"))
        flow.load_state_dict(tensors)

    def _judge(self, target: PyroTarget, session: Session) -> tuple[Tensor, dict[str, Any]]:
        """Log weights of fresh draws, and the figures of `diagnostics`."""
        x, log_q, log_p = self._draw(_DIAGNOSTIC_DRAWS)
        log_weights = log_p - log_q
        khat = pareto_smooth(log_weights)[1]
        ess = relative_ess(log_weights)
        evidence = log_evidence(log_weights)
        finite = log_weights.isfinite()
        starts = self.guide.starts
        missed = missed_mass(self.guide.get_transform(), target, starts, x, log_q, log_p, self._generator)
        assessment = assess(khat, ess, missed, len(starts), self.record.stopped_by)
        return log_weights, {
            "khat": khat,
            "ess": ess,
            "elbo": log_weights[finite].mean().item() if bool(finite.any()) else -math.inf,
            "log_evidence": evidence.value,
            "log_evidence_se": evidence.standard_error,
            "num_steps": self.record.num_steps,
            "step": self._step,
            "seconds": session.seconds,
            "converged": assessment.trusted,
            "message": assessment.message,
            "missed_mass": missed,
            "num_modes": len(starts),
            "skipped_samples": self.record.skipped_samples,
            "skipped_steps": self.record.skipped_steps,
            "stopped_by": self.record.stopped_by,
        }

    def diagnostics(self) -> dict[str, Any]:
        """Figures of the fit, from 4000 fresh draws.

        Returns:
            ``khat`` (Pareto shape of the weights; below 0.7 usable), ``ess`` (relative effective sample size,
            0 to 1), ``elbo`` and ``log_evidence`` with ``log_evidence_se`` (nats), ``num_steps``, ``seconds``,
            ``converged`` (whether the draws can be trusted), ``message`` (why, and what to do),
            ``step`` (how training steps were done: ``"ordinary"``, ``"recorded"`` or ``"compiled"``),
            ``missed_mass`` (part of the known posterior mass that the flow leaves out), ``num_modes``,
            ``skipped_samples``, ``skipped_steps``, ``stopped_by``.
        """
        return dict(self._require_fit())

    def get_samples(self, num_samples: int = 1000, importance: bool = True) -> dict[str, Tensor]:
        """Draws of the posterior, in the model's own (constrained) space.

        Args:
            num_samples: Number of draws.
            importance: Whether to resample a larger set of the guide's draws by Pareto-smoothed
                importance weights; else the draws are the guide's own.

        Returns:
            Name of each latent and deterministic site -> ``(num_samples, *shape)``. Of a reparameterised model the
            sites that were replaced count as deterministic.
        """
        return self._constrained(self._posterior_points(num_samples, importance)[0])

    def sample_with_log_weights(self, num_samples: int = 1000) -> tuple[dict[str, Tensor], Tensor]:
        """Draws of the guide with the logarithm of their importance weights.

        Args:
            num_samples: Number of draws.

        Returns:
            Site -> ``(num_samples, *shape)``, and ``log p - log q``, ``(num_samples,)``. The logarithm of the
            mean weight is the log evidence.
        """
        self._check_number(num_samples)
        x, log_q, log_p = self._draw(num_samples)
        return self._constrained(x), log_p - log_q

    def summary(self, num_samples: int = 4000) -> pandas.DataFrame:
        """Mean, standard deviation and quantiles of every scalar, from importance-resampled draws.

        Args:
            num_samples: Number of draws.

        Returns:
            A table with a row for each scalar; ``mcse`` is the Monte-Carlo error of the mean.
        """
        import pandas

        levels = torch.tensor([0.05, 0.5, 0.95])
        rows: dict[str, list[float]] = {}
        for name, value in self.get_samples(num_samples).items():
            flat = value.reshape(len(value), -1).double().cpu()
            quantiles = flat.quantile(levels.double(), dim=0)
            for j, index in enumerate(
                torch.cartesian_prod(*[torch.arange(s) for s in value.shape[1:]]).reshape(flat.size(1), -1)
                if value.dim() > 1
                else [[]]
            ):
                label = name if value.dim() == 1 else f"{name}[{','.join(str(int(i)) for i in index)}]"
                sd = flat[:, j].std().item()
                rows[label] = [flat[:, j].mean().item(), sd, *quantiles[:, j].tolist(), sd / math.sqrt(len(value))]
        return pandas.DataFrame.from_dict(rows, orient="index", columns=["mean", "sd", "5%", "50%", "95%", "mcse"])

    def to_arviz(self, num_samples: int = 4000) -> Any:
        """The fit as ArviZ reads it.

        Args:
            num_samples: Number of draws.

        Returns:
            ``arviz.InferenceData`` where ArviZ before 1.0 is installed, else the ``xarray.DataTree`` of the same
            content: see `pyro_coupling.arviz`.
        """
        from ..arviz import to_arviz

        return to_arviz(self, num_samples)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the fit, with the model's arguments, to one safetensors file.

        Args:
            path: Where to; an existing file is replaced in one stroke.
        """
        self._require_fit()
        save_fit(self, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Callable,
        *args: Any,
        guide: AutoCouplingFlow | None = None,
        **kwargs: Any,
    ) -> FlowVI:
        """Reads a fit. Nothing in the file is executed, so it may come from anywhere.

        Args:
            path: A file written by `save`.
            model: The model the fit is of.
            *args: The model's arguments, where the file does not hold them.
            guide: A fresh guide of the same architecture, where the fit had one of your own.
            **kwargs: The model's keyword arguments, likewise.

        Raises:
            ValueError: If the file is no such file, or does not fit the model.
        """
        return load_fit(cls, path, model, guide, args, kwargs)

    def __repr__(self) -> str:
        if self._figures is None:
            return "FlowVI(not run yet)"
        f = self._figures
        return (
            f"FlowVI({self.target.dim} latents, {f['num_steps']} steps in {f['seconds']:.1f} s, "
            f"log evidence {f['log_evidence']:.3f} +- {f['log_evidence_se']:.3f})\n{f['message']}"
        )

    def _require_fit(self) -> dict[str, Any]:
        if self._figures is None or self.target is None or self.guide is None:
            raise RuntimeError("FlowVI: call run(...) with the model's arguments first")
        return self._figures

    def _check_number(self, num_samples: int) -> None:
        self._require_fit()
        if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
            raise ValueError(f"FlowVI: num_samples must be a positive integer, got {num_samples!r}")

    def _constrained(self, x: Tensor) -> dict[str, Tensor]:
        parts = [self.target.constrain(part) for part in x.split(max(self.target.chunk_size, 500))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def _draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """n draws of the guide in unconstrained space ``(n, dim)``, and log q and log p there, each ``(n,)``."""
        target, flow = self.target, self.guide.get_transform()
        z = torch.randn(n, target.dim, dtype=target.dtype, device=target.device, generator=self._generator)
        # in parts, so that intermediate values of thousands of latents do not fill the memory
        parts = [flow.forward_and_log_det(part) for part in z.split(max(100, _MOST_ENTRIES // target.dim))]
        x, log_det = (torch.cat(values) for values in zip(*parts, strict=True))
        log_q = -0.5 * z.square().sum(-1) - 0.5 * target.dim * math.log(2 * math.pi) - log_det
        log_p = torch.cat([target.log_prob(part) for part in x.split(max(target.chunk_size, 100))])
        return x, log_q, log_p

    def _posterior_points(self, num_samples: int, importance: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Points in unconstrained space with log q and log p, resampled by importance or not."""
        self._check_number(num_samples)
        if not importance:
            return self._draw(num_samples)
        # twice as many as asked for, more where few carry weight, so that hardly a draw is repeated
        x, log_q, log_p = self._draw(math.ceil(2 * num_samples / max(0.2, self._figures["ess"])))
        log_weights, _ = pareto_smooth(log_p - log_q)
        chosen = resample(log_weights, num_samples, self._generator)
        shuffled = torch.randperm(num_samples, device=chosen.device, generator=self._generator)
        chosen = chosen[shuffled]
        return x[chosen], log_q[chosen], log_p[chosen]
