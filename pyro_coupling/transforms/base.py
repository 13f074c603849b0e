"""The base class of every bijection: two methods in, Pyro's whole transform protocol out."""

from __future__ import annotations

__all__ = ["Bijection"]

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints
from torch.utils.weak import WeakIdKeyDictionary

from ..registry import register

#: methods whose arguments are checked, and where context stands after x
_CHECKED = {"forward_and_log_det": 0, "inverse_and_log_det": 0, "forward_and_score": 1}


def _checked(method: Callable) -> Callable:
    """Adds the check of input and context to a method of a subclass; context is its last argument."""
    position = _CHECKED[method.__name__]
    inverse = method.__name__ == "inverse_and_log_det"

    @functools.wraps(method)
    def checked(self: Bijection, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        context = kwargs.get("context", args[position] if len(args) > position else None)
        _check(self, x, self.output_shape if inverse else self.event_shape, context)
        if torch.compiler.is_compiling():
            return method(self, x, *args, **kwargs)
        try:
            return method(self, x, *args, **kwargs)
        except RuntimeError as error:  # asked for only now, since walking all parameters takes time
            found = _mixture(self, x, context)
            if found is None:
                raise
            raise ValueError(f"{type(self).__name__}: {found}") from error

    return checked


def _check(bijection: Bijection, x: Tensor, shape: torch.Size, context: Tensor | None) -> None:
    batch_dim = x.dim() - len(shape)
    if batch_dim < 0 or x.shape[batch_dim:] != shape:
        raise ValueError(
            f"{type(bijection).__name__}: the input must end in the event shape {tuple(shape)}, "
            f"but has shape {tuple(x.shape)}"
        )
    if not bijection.context_shape:
        return
    context = _check_context(bijection, context)
    batch, found = x.shape[:batch_dim], context.shape[: context.dim() - len(bijection.context_shape)]
    if len(found) > batch_dim or any(c not in (1, b) for c, b in zip(found[::-1], batch[::-1], strict=False)):
        raise ValueError(
            f"{type(bijection).__name__}: context of batch shape {tuple(found)} does not broadcast to the input's "
            f"batch shape {tuple(batch)}; expand the input first"
        )


def _check_context(bijection: Bijection, context: Tensor | None) -> Tensor:
    name, shape = type(bijection).__name__, bijection.context_shape
    if context is None:
        raise ValueError(
            f"{name}: context of shape {tuple(shape)} is missing; pass context=... or use condition(context)"
        )
    if context.dim() < len(shape) or context.shape[context.dim() - len(shape) :] != shape:
        raise ValueError(f"{name}: context must end in the shape {tuple(shape)}, but has shape {tuple(context.shape)}")
    return context


def _mixture(bijection: Bijection, x: Tensor, context: Tensor | None) -> str | None:
    """Says which devices or dtypes meet in a call, if there are several."""
    own = [p for p in itertools.chain(bijection.parameters(), bijection.buffers()) if p.is_floating_point()]
    given = [("the input", x)] + ([] if context is None else [("the context", context)])
    for what in ("device", "dtype"):
        kinds = {f"the parameters ({getattr(p, what)})": getattr(p, what) for p in own}
        kinds |= {f"{name} ({getattr(t, what)})": getattr(t, what) for name, t in given}
        if len(set(kinds.values())) > 1:
            return f"all must be of one {what}, found {', '.join(sorted(kinds))}"
    return None


def _context_shape(name: str, context_dim: int | Sequence[int]) -> torch.Size:
    shape = (context_dim,) if isinstance(context_dim, int) else tuple(context_dim)
    if shape in ((), (0,)):
        return torch.Size()
    if min(shape) < 1:
        raise ValueError(f"{name}: context_dim must be 0 or more, or a shape, got {context_dim}")
    return torch.Size(shape)


class Bijection(TransformModule, ConditionalTransformModule):
    """An invertible map that states its value and its log-determinant together.

    A subclass implements `forward_and_log_det` and `inverse_and_log_det`; this class turns the two
    into the protocol of ``torch.distributions.Transform`` and of Pyro's ``TransformModule`` and
    ``ConditionalTransformModule``. Inputs are checked here, once, for every subclass.

    Scoring a sample that was just drawn costs no second pass: the call leaves a note of its input and
    log-determinant, keyed weakly by its output. The note is gone as soon as the caller lets go of the
    output, when it has been used, or when the input, the output, a parameter or a buffer has changed
    since. Only the opposite call reads it: the same call for the same input is always computed anew.

    Args:
        event_shape: Shape of one input, ``()`` for maps of single numbers.
        context_dim: Number of context features the map depends on, 0 for none; or the shape of a
            context, such as ``(features, height, width)`` where each pixel has its own.
        output_shape: Shape of one output where it differs from that of an input.

    Raises:
        ValueError: If a size is negative. Calls raise it where shapes, dtypes or devices do not fit.

    Example:
        >>> import pyro.distributions as dist
        >>> class Stretch(Bijection):
        ...     def forward_and_log_det(self, x, context=None):
        ...         return 2 * x, torch.full(x.shape[:-1], x.size(-1) * 0.6931)
        ...
        ...     def inverse_and_log_det(self, y, context=None):
        ...         return y / 2, torch.full(y.shape[:-1], y.size(-1) * -0.6931)
        >>> flow = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [Stretch((3,))])
        >>> flow.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    bijective = True
    #: Whether a second pass in training mode repeats the first, which reversible backpropagation needs.
    repeatable = True
    #: Whether what becomes of an event depends on the others of its batch, which then may not be run in parts.
    mixes_batch = False
    #: Whether backward needs about as little as the input, so that checkpoints leave it to a neighbour.
    stores_little = False

    def __init__(
        self,
        event_shape: Sequence[int],
        context_dim: int | Sequence[int] = 0,
        output_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(cache_size=0)
        self.event_shape = torch.Size(event_shape)
        self.output_shape = self.event_shape if output_shape is None else torch.Size(output_shape)
        self.context_shape = _context_shape(type(self).__name__, context_dim)
        self._notes: WeakIdKeyDictionary | None = None  # of one note; made with it, since a compiler can't make one

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _CHECKED:
            if name in cls.__dict__:
                setattr(cls, name, _checked(cls.__dict__[name]))

    @property
    def context_dim(self) -> int:
        """Number of entries of a context, 0 for none."""
        return self.context_shape.numel() if self.context_shape else 0

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps base noise to a sample.

        Args:
            x: Input, ``(*batch, *event_shape)``.
            context: Context, broadcastable to ``(*batch, *context_shape)``.

        Returns:
            The output ``(*batch, *output_shape)`` and ``log|det dy/dx|``, ``(*batch,)``.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement forward_and_log_det")

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps a sample back to base noise.

        Args:
            y: Output of the map, ``(*batch, *output_shape)``.
            context: Context, broadcastable to ``(*batch, *context_shape)``.

        Returns:
            The input ``(*batch, *event_shape)`` and ``log|det dx/dy|``, ``(*batch,)``.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement inverse_and_log_det")

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps a sample forward together with the gradient of its log density.

        If x has the density q_x and ``score`` is its gradient at x, then the density of y is
        log q_y(y) = log q_x(x(y)) + log|det dx/dy|; its gradient in y is what a path gradient needs.
        The score is a plain number to autograd: no gradient flows through it.

        Args:
            x: Input, ``(*batch, *event_shape)``.
            score: Gradient of the log density at x, like x.
            context: Context, broadcastable to ``(*batch, *context_shape)``.

        Returns:
            Output, ``log|det dy/dx|``, and the score at the output.

        Reference:
            Vaitl, Winkler, Richter, Kessel. Fast and unified path gradient estimators for normalizing
            flows. ICLR 2024 (proposition 3.2).
        """
        y, log_det = self.forward_and_log_det(x, context)
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            back, inverse_log_det = self.inverse_and_log_det(leaf, context)
            ones = torch.ones_like(inverse_log_det)
            outputs, weights = [back], [score]
            if inverse_log_det.requires_grad:
                outputs, weights = [back, inverse_log_det], [score, ones]
            (new_score,) = torch.autograd.grad(outputs, [leaf], weights)
        return y, log_det, new_score

    # Pyro's protocol. A layer overrides nothing below but its domain and codomain.

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.output_shape))

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """The shape of the output for an input of this shape."""
        return torch.Size(shape[: len(shape) - len(self.event_shape)]) + self.output_shape

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """The shape of the input for an output of this shape."""
        return torch.Size(shape[: len(shape) - len(self.output_shape)]) + self.event_shape

    @property
    def inv(self) -> Bijection:
        """The inverse as a bijection of its own; ``t.inv.inv is t``."""
        if torch.compiler.is_compiling():  # a compiled function is made anew when what it has read changes
            return Inverse(self)
        if self._inv is None:
            # past nn.Module's registration: an inverse has the bijection as its child, not the reverse
            object.__setattr__(self, "_inv", Inverse(self))
        return cast(Bijection, self._inv)

    def condition(self, context: Tensor) -> Bijection:
        """This map with its context fixed: a plain Pyro transform.

        Args:
            context: Context, ``(*batch, *context_shape)``.
        """
        return Conditioned(self, context) if self.context_shape else self

    def with_cache(self, cache_size: int = 1) -> Bijection:
        """Returns the bijection itself, which needs no cache of Pyro's to score its own samples."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The value alone, for use as an ``nn.Module``."""
        return self._call(x)

    def _call(self, x: Tensor) -> Tensor:
        note = self._noted(x)  # left by the inverse: a flow used backwards draws with it and scores with this
        if note is not None:
            return note[0]
        y, log_det = self.forward_and_log_det(x)
        self._note(y, x, log_det)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        note = self._noted(y)
        if note is not None:
            return note[0]
        x, log_det = self.inverse_and_log_det(y)
        self._note(x, y, -log_det)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log|det dy/dx|``, ``(*batch,)``, of an input and the output that belongs to it."""
        for output, source in ((y, x), (x, y)):
            note = self._noted(output)
            if note is not None and note[0] is source:
                # used up: a second backward through the same graph would fail
                self._notes = None
                return note[1]
        return self.forward_and_log_det(x)[1]

    def _note(self, output: Tensor, source: Tensor, log_det: Tensor) -> None:
        if output is source or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        self._notes = None  # one note at a time, so that memory cannot pile up
        state = self._state(source)
        try:
            marks = _marks([output, *state])
        except RuntimeError:  # tensors of inference mode or torch.func cannot tell whether they have changed
            return
        self._notes = WeakIdKeyDictionary()
        self._notes[output] = (source, log_det, torch.is_grad_enabled(), state, marks)

    def _noted(self, output: Tensor) -> tuple[Tensor, Tensor] | None:
        """Input and log-determinant of the call that made ``output``, if they still hold."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or self._notes is None:
            return None
        note = self._notes.get(output)
        if note is None:
            return None
        source, log_det, with_grad, state, marks = note
        now = self._state(source)
        same = len(now) == len(state) and all(a is b for a, b in zip(now, state, strict=True))
        if not same or _marks([output, *now]) != marks or (torch.is_grad_enabled() and not with_grad):
            return None
        return source, log_det

    def _state(self, source: Tensor) -> list[Tensor]:
        """Everything that the output of a call depends on."""
        state = [source]
        for module in self.modules():  # parameters and buffers in one walk, half the time of two
            state.extend(t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
        return state

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_notes"] = None  # notes belong to tensors, not to the module
        return state

    def __repr__(self) -> str:
        return torch.nn.Module.__repr__(self)


def _marks(tensors: list[Tensor]) -> list[tuple[int, int, bool]]:
    """What changes when a tensor is written to, given other data (``p.data = ...``) or frozen."""
    return [(t._version, t.data_ptr(), t.requires_grad) for t in tensors]


@register(arguments=lambda inverse: {"bijection": inverse.bijection})
class Inverse(Bijection):
    """A bijection run backwards."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__(bijection.output_shape, bijection.context_shape, bijection.event_shape)
        self.bijection = bijection

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return self.bijection.codomain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return self.bijection.domain

    @property
    def inv(self) -> Bijection:
        return self.bijection

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse_and_log_det(x, context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.forward_and_log_det(y, context)

    # A sample drawn forwards and scored backwards meets its note in the original, which keeps it.

    def _call(self, x: Tensor) -> Tensor:
        return self.bijection._inverse(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.bijection._call(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.bijection.log_abs_det_jacobian(y, x)


@register(arguments=lambda fixed: {"bijection": fixed.bijection, "context": fixed.context})
class Conditioned(Bijection):
    """A bijection with its context fixed. It lives as long as the context does."""

    def __init__(self, bijection: Bijection, context: Tensor) -> None:
        super().__init__(bijection.event_shape, output_shape=bijection.output_shape)
        _check_context(bijection, context)
        self.bijection = bijection
        self.context = context

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return self.bijection.domain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return self.bijection.codomain

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.forward_and_log_det(self._expanded(x, self.event_shape), self.context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse_and_log_det(self._expanded(y, self.output_shape), self.context)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, score = self._expanded(x, self.event_shape), self._expanded(score, self.event_shape)
        return self.bijection.forward_and_score(x, score, self.context)

    def _expanded(self, x: Tensor, event: torch.Size) -> Tensor:
        """One event meets many contexts, as one value does in a batch of distributions."""
        batch = x.shape[: x.dim() - len(event)]
        contexts = self.context.shape[: self.context.dim() - len(self.bijection.context_shape)]
        try:
            return x.expand(torch.broadcast_shapes(batch, contexts) + event)
        except RuntimeError:
            return x  # the bijection says what does not fit
