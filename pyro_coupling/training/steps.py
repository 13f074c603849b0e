"""Gradients of one training step, by a recording of it where there can be one."""

from __future__ import annotations

__all__ = ["GradientStep"]

import warnings

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..targets import Target
from ..transforms import Bijection
from .distribution import Ranks
from .objectives import reverse_kl, reverse_kl_backward
from .recording import record

_RECORD_AT = 100  # a run that ends before gains nothing
_CHECK_EVERY = 1000
_MOST_FAILURES = 20
# Recording takes milliseconds for an operation of the model, and parts of a batch are recorded one by one. A step of
# more operations spends its time in them rather than in Python, or takes longer to record than it would save.
_MOST_OPERATIONS = 500


class GradientStep:
    """Adds the gradient of a step to the parameters, as `objectives.reverse_kl_backward` does, but faster.

    A step of a small model spends most of its time in Python: Pyro's handlers, distributions, autograd's
    bookkeeping. After the first steps one is recorded with flow, model and both derivatives, checked
    against the ordinary one, and replayed from then on. Every thousand steps it is checked again, so that a
    model that has changed does not go unnoticed; a step in which the replay fails is done the ordinary way.

    A model that branches on the values of its latents can't be recorded; one that takes very many
    operations would gain little by it. There every step is an ordinary one.

    Args:
        flow: The flow that is trained.
        target: The density.
        estimator: Gradient estimator, see `objectives.reverse_kl`.
        compile: Whether to compile the recording with inductor, which needs a C++ compiler and half a minute
            or more; without a compiler there is a warning, and an ordinary recording.
        ranks: The processes that train together; with more than one, every step is an ordinary one, as they
            talk in the midst of it.
        balanced: See `objectives.reverse_kl`.

    Attributes:
        mode: ``"ordinary"``, ``"recorded"`` or ``"compiled"``: how steps are done at present.
        reason: Why a recording was not possible, or ``""``.
    """

    def __init__(
        self,
        flow: Bijection,
        target: Target,
        estimator: str,
        compile: bool = False,
        ranks: Ranks | None = None,
        balanced: bool = False,
    ) -> None:
        self.flow = flow
        self.target = target
        self.estimator = estimator
        self.balanced = balanced
        self.compile = compile
        self.ranks = ranks or Ranks()
        self.mode = "ordinary"
        self.reason = ""
        self._replay: _Replay | None = None
        self._failures = 0  # replays in a row that failed

    def __call__(self, z: Tensor, covering: bool, step: int) -> Tensor:
        """Sets the parameters' ``.grad`` and returns the log weights ``(n,)``.

        Args:
            z: Base noise, ``(n, dim)``.
            covering: See `objectives.reverse_kl`.
            step: Number of the step; what is recorded and checked when depends on it alone.
        """
        if self._replay is None and step >= _RECORD_AT and not self.reason:
            self._start(z)
        elif self._replay is not None and step % _CHECK_EVERY == 0:
            self._check(z, covering)
        if self._replay is None or self._replay.shape != z.shape:
            return self._ordinary(z, covering)
        try:
            log_weights = self._replay(z, covering)
        except RuntimeError as error:  # the model raised, for instance in a Cholesky factorisation
            self._failures += 1
            if self._failures == _MOST_FAILURES:
                self._stop(f"replays fail ({type(error).__name__})")
            return self._ordinary(z, covering)
        self._failures = 0
        return log_weights

    def _ordinary(self, z: Tensor, covering: bool) -> Tensor:
        for parameter in self.flow.parameters():
            parameter.grad = None
        return reverse_kl_backward(self.flow, self.target, z, self.estimator, covering, self.ranks, self.balanced)

    def _start(self, z: Tensor) -> None:
        parts = -(-len(z) // self.target.chunk_size)
        operations = parts * getattr(self.target, "num_operations", 1)
        if self.ranks.size > 1:
            return self._stop("several processes train together")
        if operations > _MOST_OPERATIONS:
            return self._stop(f"the model takes {operations} operations, more than {_MOST_OPERATIONS}")
        if self.compile and not self._try(z, compile=True):
            warnings.warn(f"the training step can't be compiled: {self.reason}. It runs uncompiled", stacklevel=3)
        if self._replay is None and not self._try(z, compile=False):
            return None
        # at other points than the recorded ones: what was wrongly taken for a constant shows
        return self._check(0.9 * z.roll(1, 0), covering=False)

    def _try(self, z: Tensor, compile: bool) -> bool:
        try:
            objective = _Objective(self.flow, self.target, self.estimator, self.balanced)
            self._replay = _Replay(objective, z, compile)
        except Exception as error:  # whatever a model or a compiler does; a true error shows in the ordinary step
            self._stop(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            return False
        self.mode, self.reason = "compiled" if compile else "recorded", ""
        return True

    def _check(self, z: Tensor, covering: bool) -> None:
        """Compares a replay with an ordinary step; where they differ, goes back to ordinary steps."""
        expected = self._ordinary(z, covering)
        gradient = _flat_gradient(self.flow)
        try:
            found = self._replay(z, covering)
        except RuntimeError:
            return
        tolerance = 10 * torch.finfo(z.dtype).eps ** 0.5
        shared = expected.isfinite()
        same = (
            bool((shared == found.isfinite()).all())
            and torch.allclose(found[shared], expected[shared], rtol=tolerance, atol=tolerance)
            and bool((_flat_gradient(self.flow) - gradient).norm() <= tolerance * (1 + gradient.norm()))
        )
        if not same:
            self._stop("a replay differs from an ordinary step; the model may have changed, or draw random numbers")
            warnings.warn(f"training goes on without the recording of a step: {self.reason}", stacklevel=2)

    def _stop(self, reason: str) -> None:
        self._replay, self.mode, self.reason = None, "ordinary", reason


class _Replay:
    """A recorded step for base noise of one shape."""

    def __init__(self, objective: _Objective, z: Tensor, compile: bool) -> None:
        trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        fixed = {name: p for name, p in objective.named_parameters() if not p.requires_grad}
        tensors = trained | fixed | dict(objective.named_buffers())
        self.shape = z.shape
        self._state = list(tensors.values())
        self._moved: list[Tensor] = []

        def step(z: Tensor, covering: Tensor, *values: Tensor) -> list[Tensor]:
            leaves = [value.detach().requires_grad_() for value in values[: len(trained)]]
            state = dict(zip(tensors, [*leaves, *values[len(trained) :]], strict=True))
            log_weights, outputs, forces = functional_call(objective, state, (z, covering))
            gradients = torch.autograd.grad(outputs, leaves, forces, allow_unused=True)
            pairs = zip(trained.values(), gradients, strict=True)
            self._moved = [parameter for parameter, gradient in pairs if gradient is not None]
            return [log_weights, *(gradient for gradient in gradients if gradient is not None)]

        with torch.enable_grad():
            self._run = record(step, [z, z.new_zeros((), dtype=torch.bool), *self._state], compile)

    def __call__(self, z: Tensor, covering: bool) -> Tensor:
        log_weights, *gradients = self._run(z, torch.tensor(covering, device=z.device), *self._state)
        for parameter, gradient in zip(self._moved, gradients, strict=True):
            parameter.grad = gradient
        return log_weights


class _Objective(nn.Module):
    """`reverse_kl` as a module, so that the flow's parameters can be handed in."""

    def __init__(self, flow: Bijection, target: Target, estimator: str, balanced: bool) -> None:
        super().__init__()
        self.flow = flow
        # in a tuple, lest a target that is a module becomes a part
        self._settings = (_Strict(target), estimator, balanced)

    def forward(self, z: Tensor, covering: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        target, estimator, balanced = self._settings
        return reverse_kl(self.flow, target, z, estimator, covering, balanced=balanced)


class _Strict:
    """A target that raises where it has no value: what it does about a batch with a bad point depends on numbers."""

    def __init__(self, target: Target) -> None:
        self.dim, self.dtype, self.device, self.chunk_size = target.dim, target.dtype, target.device, target.chunk_size
        self.log_prob = getattr(target, "log_prob_or_raise", target.log_prob)


def _flat_gradient(flow: Bijection) -> Tensor:
    return torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])
