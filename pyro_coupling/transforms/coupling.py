"""The coupling layer: one class, three exchangeable parts."""

from __future__ import annotations

__all__ = ["Coupling"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..nn import Constant
from ..registry import register
from .base import Bijection
from .elementwise import Elementwise
from .partitions import Partition
from .trial import trial_shape


@register
class Coupling(Bijection):
    """Leaves one part of its input alone and moves the other by a map that depends on the first.

    With x split into a and b: ``y = (a, f(b; conditioner(a, context)))``, f monotone and elementwise.
    The inverse is as cheap, the Jacobian triangular.

    Args:
        partition: A boolean mask of the event's shape (True stays), or a `Partition`, which also says how
            the part that stays is laid out for the conditioner: a vector, or slices or the whole of an
            image, a recording, a set.
        conditioner: A module that maps ``(*batch, num_staying + context_dim)`` to
            ``(*batch, elementwise.num_params * num_moving)``, parameter-major; for other layouts the
            channels take the place of the features, and all other dimensions are kept. What is the same
            for a whole batch may come without batch dimensions.
        elementwise: The map and its number of parameters, an `Elementwise`.
        context_dim: Number of context features appended to the conditioner's input, the same for all
            positions; or the shape of a context with features for each position, whose layout is that of
            the part that stays.

    Raises:
        TypeError: If the conditioner is no module, or the elementwise map no `Elementwise`.
        ValueError: If the conditioner's output has the wrong shape; this is tried at construction.

    Reference:
        Dinh, Krueger, Bengio. NICE: non-linear independent components estimation. 2014.
        Dinh, Sohl-Dickstein, Bengio. Density estimation using Real NVP. ICLR 2017.

    Example:
        >>> import torch
        >>> from pyro_coupling.transforms import Affine
        >>> layer = Coupling([True, False, False], torch.nn.Linear(1, 4), Affine())
        >>> x = torch.randn(5, 3)
        >>> y = layer(x)
        >>> bool((y[:, 0] == x[:, 0]).all()), layer.inv(y) is x
        (True, True)
    """

    def __init__(
        self,
        partition: Partition | Tensor | Sequence[bool],
        conditioner: nn.Module,
        elementwise: Elementwise,
        context_dim: int | Sequence[int] = 0,
    ) -> None:
        if not isinstance(partition, Partition):
            partition = Partition(partition)
        if not isinstance(elementwise, Elementwise):
            raise TypeError(f"Coupling: elementwise must be an Elementwise, found {type(elementwise).__name__}")
        if not isinstance(conditioner, nn.Module):
            raise TypeError(f"Coupling: conditioner must be a torch.nn.Module, found {type(conditioner).__name__}")
        super().__init__(tuple(partition.event_shape), context_dim)
        self.partition = partition
        self.conditioner = conditioner
        self.elementwise = elementwise.restricted_to(partition.moving_entries)
        self.stores_little = isinstance(conditioner, Constant)
        self._check_context_layout()
        self._try_conditioner()

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        staying, moving = self.partition.split(self._flat(x))
        moved, log_slope = self.elementwise.forward_and_log_det(moving, self._parameters_from(staying, context))
        return self._shaped(staying, moved, x.shape), _total(log_slope, moved)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        staying, moved = self.partition.split(self._flat(y))
        moving, log_slope = self.elementwise.inverse_and_log_det(moved, self._parameters_from(staying, context))
        return self._shaped(staying, moving, y.shape), _total(log_slope, moving)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        # One pass over the conditioner serves the value and, by a backward pass that stops at this
        # layer's input, the score: g = J^-T (score - d log_det / dx), J triangular.
        grad_enabled = torch.is_grad_enabled()
        with torch.enable_grad():
            flat = self._flat(x)
            if not (grad_enabled and flat.requires_grad):
                flat = flat.detach().requires_grad_()
            staying, moving = self.partition.split(flat)
            moved, log_slope = self.elementwise.forward_and_log_det(moving, self._parameters_from(staying, context))
            log_slope = log_slope.expand_as(moved)
            score_staying, score_moving = self.partition.split(score.reshape(flat.shape))
            if not self.elementwise.slope_is_constant:
                score_moving = score_moving - _grad([log_slope], [torch.ones_like(log_slope)], moving)
            new_moving = score_moving * (-log_slope.detach()).exp()
            pulled = _grad([moved, log_slope], [new_moving, torch.ones_like(log_slope)], staying)
            y = self._shaped(staying, moved, x.shape)
        new_score = self.partition.join(score_staying - pulled, new_moving)
        log_det = log_slope.sum(-1)
        if not grad_enabled:
            y, log_det = y.detach(), log_det.detach()
        return y, log_det, new_score.reshape(x.shape)

    def _parameters_from(self, staying: Tensor, context: Tensor | None) -> Tensor:
        """Parameters of the elementwise map, ``(*batch, num_params, num_moving)``, or one set for the whole batch."""
        features = self.partition.show(staying)
        if context is not None and self.context_shape:
            features = self._with_context(features, context)
        answer = self.conditioner(features)
        # a network that autocast has run in bfloat16 leaves the map itself in the precision of the input
        answer = answer.to(torch.promote_types(answer.dtype, staying.dtype))
        return self.partition.read(answer, self.elementwise.num_params)

    def _with_context(self, features: Tensor, context: Tensor) -> Tensor:
        """Appends context to the channels, at every position where it has none of its own."""
        shape, dim = self.partition.shown_shape, self.partition.channel_dim
        if len(self.context_shape) < len(shape):
            ones = [1] * len(shape)
            ones[dim] = self.context_shape[0]
            context = context.reshape(context.shape[:-1] + torch.Size(ones))
        positions = list(shape)
        positions[dim] = context.size(dim)
        batch = features.shape[: features.dim() - len(shape)]
        # a context may have batch dimensions that broadcast, such as one for a whole batch
        return torch.cat([features, context.expand(*batch, *positions)], dim)

    def _flat(self, x: Tensor) -> Tensor:
        n = len(self.event_shape)
        return x if n == 1 else x.reshape(x.shape[: x.dim() - n] + (self.event_shape.numel(),))

    def _shaped(self, staying: Tensor, moving: Tensor, shape: torch.Size) -> Tensor:
        y = self.partition.join(staying, moving)
        return y if len(self.event_shape) == 1 else y.reshape(shape)  # in a small flow even a view that is y counts

    def _check_context_layout(self) -> None:
        shown, dim = list(self.partition.shown_shape), self.partition.channel_dim
        if len(self.context_shape) > 1:
            wanted = shown.copy()
            wanted[dim] = self.context_shape[dim] if len(shown) == len(self.context_shape) else -1
            if wanted != list(self.context_shape):
                raise ValueError(
                    f"Coupling: a context of shape {tuple(self.context_shape)} does not fit the part that stays, "
                    f"{tuple(shown)}: both must agree in all dimensions but {dim}, that of the channels"
                )

    def _try_conditioner(self) -> None:
        shown, dim = list(self.partition.shown_shape), self.partition.channel_dim
        if self.context_shape:
            shown[dim] += self.context_shape[dim if len(self.context_shape) == len(shown) else 0]
        rows, moving = self.elementwise.num_params, self.partition.num_moving
        wanted = self.partition.answer_shape(rows)
        found = trial_shape(self.conditioner, shown)
        if found not in ((2, *wanted), tuple(wanted)):
            raise ValueError(
                f"Coupling: the conditioner must map (batch, {_listed(shown)}) to (batch, {_listed(wanted)}): {rows} "
                f"parameters of {self.elementwise} for each of {moving} moved entries; for a batch of 2 it returned "
                f"{found}"
            )

    def extra_repr(self) -> str:
        return f"elementwise={self.elementwise}"


def _total(log_slope: Tensor, moved: Tensor) -> Tensor:
    """Log-determinant: a map may give one slope for several of the moved entries."""
    return (log_slope if log_slope.shape == moved.shape else log_slope.expand_as(moved)).sum(-1)


def _grad(outputs: list[Tensor], weights: list[Tensor], source: Tensor) -> Tensor:
    """Vector-Jacobian product, zero where the outputs do not depend on ``source``."""
    live = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    if not live or source.numel() == 0:
        return torch.zeros_like(source)
    (found,) = torch.autograd.grad(
        [o for o, _ in live], [source], [w for _, w in live], retain_graph=True, allow_unused=True
    )
    return torch.zeros_like(source) if found is None else found


def _listed(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
