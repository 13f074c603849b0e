"""Linear coordinates of Cartesian systems: the centre of mass removed, or the principal axes of samples."""

from __future__ import annotations

__all__ = ["CenterFree", "Whitening"]

from typing import TypeVar

import torch
from torch import Tensor

from ...registry import register
from ...transforms import Bijection

Self = TypeVar("Self", bound="Whitening")


@register
class CenterFree(Bijection):
    """Particles whose centre stays in the origin, from coordinates without constraint.

    ``y = Q x`` for each direction of space, the columns of Q orthonormal and orthogonal to a shift of all
    particles, so that lengths are kept and the log-determinant is zero: densities are with respect to the
    volume of the subspace of configurations whose mean is zero. All particles count alike. The inverse drops
    the centre of what it is given.

    Args:
        particles: Number of particles, two or more.
        dims: Number of directions of space.

    Raises:
        ValueError: If there are fewer than two particles or no direction.

    Reference:
        Köhler, Klein, Noé. Equivariant flows: exact likelihood generative learning for symmetric densities.
        ICML 2020 (densities on the subspace).

    Example:
        >>> import torch
        >>> x = CenterFree(4, 2)(torch.randn(100, 6))
        >>> x.shape, bool(x.mean(-2).abs().max() < 1e-6)
        (torch.Size([100, 4, 2]), True)
    """

    basis: Tensor

    def __init__(self, particles: int, dims: int) -> None:
        if particles < 2 or dims < 1:
            raise ValueError(
                f"CenterFree: needs two particles or more in one direction or more, got {particles} in {dims}"
            )
        super().__init__(((particles - 1) * dims,), output_shape=(particles, dims))
        self.register_buffer("basis", _contrasts(particles), persistent=False)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        particles, dims = self.output_shape
        y = self.basis.to(x.dtype) @ x.unflatten(-1, (particles - 1, dims))
        return y, x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (self.basis.mT.to(y.dtype) @ y).flatten(-2), y.new_zeros(y.shape[:-2])

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x)
        return y, log_det, self.forward_and_log_det(score.detach())[0]

    def extra_repr(self) -> str:
        return f"particles={self.output_shape[0]}, dims={self.output_shape[1]}"


@register
class Whitening(Bijection):
    """The principal axes of samples, each in units of its standard deviation.

    ``y = loc + components (scale * x)``. With fewer components than entries, y lies in the subspace that they
    span about ``loc``: densities are with respect to its volume, and the inverse drops what is orthogonal to it.

    Args:
        loc: Location, of the shape of a sample.
        components: Orthonormal columns, ``(entries, dim)``.
        scale: Positive standard deviations along them, ``(dim,)``.

    Raises:
        ValueError: If shapes do not agree, columns are not orthonormal, or a scale is not positive.

    Example:
        >>> import torch
        >>> samples = torch.randn(1000, 3, 2) * torch.tensor([1.0, 100.0]) + 5.0
        >>> whitening = Whitening.from_samples(samples)
        >>> white = whitening.inv(samples)
        >>> white.shape, bool((white.T.cov() - torch.eye(6)).abs().max() < 1e-3)
        (torch.Size([1000, 6]), True)
    """

    loc: Tensor
    components: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, components: Tensor, scale: Tensor) -> None:
        entries = loc.numel()
        if components.dim() != 2 or components.size(0) != entries or scale.shape != components.shape[1:]:
            raise ValueError(
                f"Whitening: for loc of shape {tuple(loc.shape)} components must be ({entries}, dim) and scale (dim,), "
                f"got {tuple(components.shape)} and {tuple(scale.shape)}"
            )
        if not bool((scale > 0).all()):
            raise ValueError(f"Whitening: scale must be positive, got {scale.min().item():g}")
        identity = torch.eye(len(scale), dtype=components.dtype, device=components.device)
        if not torch.allclose(components.mT @ components, identity, atol=1e-4):
            raise ValueError("Whitening: components must have orthonormal columns")
        super().__init__(scale.shape, output_shape=loc.shape)
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("components", components.detach().clone(memory_format=torch.contiguous_format))
        self.register_buffer("scale", scale.detach().clone())

    @classmethod
    def from_samples(cls: type[Self], samples: Tensor, dropped: int = 0) -> Self:
        """The whitening of a set of samples.

        Args:
            samples: ``(num_samples, *shape)``, of a batch that has been superposed where ``dropped`` modes are
                those of rotation and translation.
            dropped: Number of modes of least variance to leave out: 3 for particles in space with their centre
                removed, 6 for molecules with their rotation removed too.

        Raises:
            ValueError: If there are fewer than two samples, more modes are dropped than there are, or samples do
                not vary along a mode that is kept.
        """
        flat = samples.detach().reshape(len(samples), -1).double()
        entries = flat.size(1)
        if len(flat) < 2 or not bool(flat.isfinite().all()):
            raise ValueError(f"Whitening: samples must be two or more and finite, got shape {tuple(samples.shape)}")
        if not 0 <= dropped < entries:
            raise ValueError(f"Whitening: dropped must be from 0 to {entries - 1}, got {dropped}")
        variances, components = torch.linalg.eigh(flat.T.cov().reshape(entries, entries))
        variances, components = variances.flip(0), components.flip(1)
        varied = int((variances > variances[0] * entries * torch.finfo(samples.dtype).eps).sum())
        if varied < entries - dropped:
            raise ValueError(
                f"Whitening: {len(flat)} samples of {entries} entries vary along {varied} modes only; drop "
                f"{entries - varied} modes, or give more samples"
            )
        kept = entries - dropped
        return cls(flat.mean(0).reshape(samples.shape[1:]), components[:, :kept], variances[:kept].sqrt())

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        loc, components, scale = self._settings(x)
        y = (x * scale) @ components.mT
        return y.reshape(x.shape[:-1] + self.output_shape) + loc, self._log_det(scale, x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        loc, components, scale = self._settings(y)
        batch = y.shape[: y.dim() - len(self.output_shape)]
        x = (y - loc).reshape(*batch, len(components)) @ components / scale
        return x, -self._log_det(scale, batch)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det = self.forward_and_log_det(x)
        _, components, scale = self._settings(x)
        return y, log_det, ((score.detach() / scale) @ components.mT).reshape(y.shape)

    def _settings(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.loc.to(like.dtype), self.components.to(like.dtype), self.scale.to(like.dtype)

    def _log_det(self, scale: Tensor, batch: torch.Size) -> Tensor:
        return scale.log().sum().expand(batch)

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)} -> {tuple(self.output_shape)}"


def _contrasts(n: int) -> Tensor:
    """Orthonormal columns orthogonal to the vector of ones, ``(n, n - 1)``: Helmert's."""
    k = torch.arange(1, n, dtype=torch.float64)
    rows = torch.arange(n, dtype=torch.float64).unsqueeze(-1)
    columns = torch.where(rows < k, 1.0, 0.0) - torch.where(rows == k, k, 0.0)
    return columns / (k * (k + 1)).sqrt()
