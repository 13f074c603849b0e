"""Several bijections one after another, as one sweep."""

from __future__ import annotations

__all__ = ["Chain"]

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..registry import register
from .base import Bijection
from .compiled import CompiledSweeps, Sweep
from .reversible import Step, checkpointed_sweep, in_function_transform, reversible_sweep, sweep
from .tiles import in_tiles


@register(
    arguments=lambda chain: {
        "bijections": list(chain),
        "reversible": chain.reversible,
        "checkpoint": chain.checkpoint,
    }
)
class Chain(Bijection):
    """Composition of bijections: the first one listed acts first.

    Log-determinants are added up as the sweep goes, so value and log-determinant cost one pass. On a CPU a long
    batch of vectors is swept in tiles of some 2000 rows, which takes less time; layers that need the whole batch at
    once (`Bijection.mixes_batch`, and torch's batch norm) get it.

    Training stores what every part needs for its backward pass, which grows with depth. Two settings
    trade that for a second pass over each part. ``checkpoint`` keeps the input of each part (parts that store
    little share one with the part after them) and runs the part again. ``reversible`` keeps the two ends of the
    chain only and rebuilds the inputs by inversion, from the last part to the first; where rounding has made that
    inexact (a watch compares the rebuilt first input with the true one) the gradient is computed again from the
    true input, a warning says so, and the chain checkpoints from then on. Neither changes a value; gradients of
    both are once differentiable, and under ``torch.func`` and ``torch.compile`` both run as an ordinary chain.

    With ``compile`` inductor compiles the sweep in each direction when it is called the second time with inputs of
    the same shape and kind, which takes a minute or more and grows with depth. Values and gradients are the same up
    to rounding; where there is no compiler a warning tells, and the chain runs as an ordinary one. The setting is
    not saved with a flow: ``Chain([flow], compile=True)`` compiles one that was loaded.

    Args:
        bijections: At least one `Bijection`, the output of each of the shape that the next one takes.
        reversible: Memory that does not grow with depth, by inversion in the backward pass.
        checkpoint: Memory for one input a part, by running each part twice.
        compile: Time, by compiled sweeps.

    Raises:
        TypeError: If a part is not a `Bijection`.
        ValueError: If there is no part, if event shapes or context shapes do not agree, if two settings are
            chosen, or if ``reversible`` or ``compile`` meets dropout or batch norm, which no second pass repeats.

    Reference:
        Gomez, Ren, Urtasun, Grosse. The reversible residual network. NeurIPS 2017.
        Chen, Xu, Zhang, Guestrin. Training deep nets with sublinear memory cost. 2016.

    Example:
        >>> import torch
        >>> from pyro_coupling.transforms import Chain, Permutation, affine_coupling
        >>> chain = Chain([affine_coupling(3), Permutation([2, 1, 0])])
        >>> y, log_det = chain.forward_and_log_det(torch.randn(5, 3))
        >>> y.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        bijections: Iterable[Bijection],
        *,
        reversible: bool = False,
        checkpoint: bool = False,
        compile: bool = False,
    ) -> None:
        parts = list(bijections)
        for part in parts:
            if not isinstance(part, Bijection):
                raise TypeError(
                    f"Chain: every part must be a Bijection, found {type(part).__name__}; "
                    "use Pyro's ComposeTransformModule for other transforms"
                )
        if not parts:
            raise ValueError("Chain: bijections is empty, at least one is needed")
        for i, (part, following) in enumerate(itertools.pairwise(parts)):
            if part.output_shape != following.event_shape:
                raise ValueError(
                    f"Chain: all parts must share one event shape, but part {i} ({type(part).__name__}) gives "
                    f"{tuple(part.output_shape)} and part {i + 1} ({type(following).__name__}) takes "
                    f"{tuple(following.event_shape)}"
                )
        contexts = {part.context_shape for part in parts if part.context_shape}
        if len(contexts) > 1:
            found = sorted(map(tuple, contexts))
            raise ValueError(f"Chain: all parts with a context must share its shape, found {found}")
        super().__init__(parts[0].event_shape, next(iter(contexts), ()), parts[-1].output_shape)
        if reversible and checkpoint:
            raise ValueError("Chain: reversible and checkpoint exclude each other, choose one")
        self.parts = nn.ModuleList(parts)
        self.reversible = reversible
        self.checkpoint = checkpoint
        self._drifted = False
        self._compiled = CompiledSweeps() if compile else None
        for setting, chosen in (("reversible", reversible), ("compile", compile)):
            if chosen:
                self._refuse_unrepeatable(setting)
        if compile and any(isinstance(m, Chain) and (m.reversible or m.checkpoint) for m in self.modules()):
            raise ValueError("Chain: compile=True stores what every part needs, against reversible and checkpoint")

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return self[0].domain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return self[-1].codomain

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(Chain._forwards, x, context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(Chain._backwards, y, context)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return in_tiles(self._scores, self, (x, score), context)

    def _scores(self, x: Tensor, score: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        frugal = self._saves_memory(x)
        total = x.new_zeros(())
        y = x
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frugal):
            for part in self:
                y, log_det, score = part.forward_and_score(y, score, context)
                total = total + log_det
        if frugal:  # the score carries no gradient, so only value and log-determinant are swept again
            y, total = self.forward_and_log_det(x, context)
        return y, total, score

    def _run(self, direction: Sweep, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._compiled is not None:
            return self._compiled(direction, self, x, context)
        return in_tiles(partial(direction, self), self, (x,), context)

    def _forwards(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._sweep([(p, p.forward_and_log_det, p.inverse_and_log_det) for p in self], x, context)

    def _backwards(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._sweep(
            [(p, p.inverse_and_log_det, p.forward_and_log_det) for p in reversed(list(self))], y, context
        )

    def _sweep(self, steps: list[Step], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        frugal = self._saves_memory(x)
        if frugal and self.reversible and not self._drifted:
            return reversible_sweep(steps, x, context, self._give_up_reversal)
        return (checkpointed_sweep if frugal else sweep)(steps, x, context)

    def _saves_memory(self, x: Tensor) -> bool:
        wanted = (self.reversible or self.checkpoint) and torch.is_grad_enabled()
        return wanted and not torch.compiler.is_compiling() and not in_function_transform(x)

    def _give_up_reversal(self) -> None:
        self._drifted = True

    def _refuse_unrepeatable(self, setting: str) -> None:
        why = "rebuilds activations by inversion" if setting == "reversible" else "may run parts again in backward"
        instead = "; use checkpoint=True" if setting == "reversible" else ""
        for module in self.modules():
            dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
            if dropout or not getattr(module, "repeatable", True):
                raise ValueError(
                    f"Chain: {setting}=True {why}, which {type(module).__name__} does not allow in training{instead}"
                )

    @property
    def compiled(self) -> bool:
        """Whether sweeps are compiled."""
        return self._compiled is not None

    @property
    def drifted(self) -> bool:
        """Whether inversion has once been too inexact, so that checkpoints have taken its place."""
        return self._drifted

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Bijection:
        return cast(Bijection, self.parts[index])

    def __iter__(self) -> Iterator[Bijection]:
        return (cast(Bijection, part) for part in self.parts)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}=True" for name in ("reversible", "checkpoint") if getattr(self, name))
