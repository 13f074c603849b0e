"""Flow annealed importance sampling bootstrap (FAB): the alpha = 2 divergence on annealed draws that are kept."""

from __future__ import annotations

__all__ = ["FlowBootstrap", "ReplayBuffer"]

from typing import Any

import torch
from torch import Tensor

from ..diagnostics import resample
from ..transforms import Bijection
from .annealed import Annealer
from .phases import Phase, log_density
from .target import BoltzmannTarget

_UPDATES = 8  # gradient steps for each batch of annealed draws
_FIRST_FILL = 1 / 8  # part of the buffer that is filled before the first step
_LARGEST_CORRECTION = 10.0


class ReplayBuffer:
    """Annealed draws, chosen in proportion to weights that follow the flow.

    A weight belongs to the density ``p^2 / q``, q being the flow as it was when it was last looked at.

    Args:
        capacity: Largest number of draws; the oldest are dropped.
        dim: Number of coordinates.
        dtype: Of the numbers.
        device: Where they are kept.

    Attributes:
        u: Coordinates, ``(size, dim)``.
        log_weights: ``(size,)``.
        log_q: Log density of the flow when the weight was made, ``(size,)``.
    """

    def __init__(self, capacity: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.capacity = capacity
        self.u = torch.empty(0, dim, dtype=dtype, device=device)
        self.log_weights = self.log_q = self.u[:, 0]

    def __len__(self) -> int:
        return len(self.u)

    def add(self, u: Tensor, log_weights: Tensor, log_q: Tensor) -> None:
        """Takes in those draws, ``(n, dim)``, whose weights ``(n,)`` are above zero."""
        good = log_weights.isfinite()
        self.u = torch.cat([self.u, u[good]])[-self.capacity :]
        self.log_weights = torch.cat([self.log_weights, log_weights[good]])[-self.capacity :]
        self.log_q = torch.cat([self.log_q, log_q[good]])[-self.capacity :]

    def choose(self, n: int, generator: torch.Generator) -> Tensor:
        """Indices of n draws, in proportion to their weights."""
        return resample(self.log_weights, n, generator)

    def correct(self, chosen: Tensor, log_q: Tensor) -> Tensor:
        """Brings the weights of draws up to the flow as it is.

        Args:
            chosen: Their indices, ``(n,)``.
            log_q: Log density of the flow at them, now, ``(n,)``; where it is not finite nothing changes.

        Returns:
            Logarithm of the factor by which each weight has changed, ``(n,)``.
        """
        log_q = torch.where(log_q.isfinite(), log_q, self.log_q[chosen])
        change = self.log_q[chosen] - log_q
        self.log_weights = self.log_weights.index_put((chosen,), self.log_weights[chosen] + change)
        self.log_q = self.log_q.index_put((chosen,), log_q)
        return change


class FlowBootstrap(Phase):
    """FAB: minimises the alpha = 2 divergence, the second moment of the importance weights.

    Its gradient is that of ``-log q`` over the density ``p^2 / q``, which has most mass where the flow q misses the
    target p. Draws of the flow are led there by annealed importance sampling, with Hamiltonian moves whose steps adapt
    to the rate of acceptance, and go into a buffer. A gradient step takes a batch from it in proportion to the weights;
    each sample counts by ``q_then / q_now``, since its weight was made for an earlier flow, cut at 10, and the weight
    in the buffer is then corrected by that factor. Eight steps are made for each batch of annealed draws.

    Args:
        flow: Base noise to coordinates.
        target: The distribution.
        num_levels: Densities between q and ``p^2 / q``; each has one Hamiltonian move of four leapfrog steps.
        buffer_size: Largest number of draws that are kept. An eighth of it is filled before the first step.
        generator: Source of randomness.

    Reference:
        Midgley, Stimper, Simm, Schölkopf, Hernández-Lobato. Flow annealed importance sampling bootstrap. ICLR 2023.
        Algorithm 1; batch to buffer, steps to batch and the cut as in its alanine dipeptide experiment.
    """

    kept = ("num_energies", "calls", "latest")

    def __init__(
        self,
        flow: Bijection,
        target: BoltzmannTarget,
        num_levels: int,
        buffer_size: int,
        generator: torch.Generator,
    ) -> None:
        self.flow, self.generator = flow, generator
        self.annealer = Annealer(flow, target, num_levels, power=2.0, generator=generator)
        self.buffer = ReplayBuffer(buffer_size, target.dim, target.dtype, target.device)
        self.num_energies = self.calls = 0
        self.latest = self.buffer.log_q  # log weights of the flow's latest draws

    def __call__(self, z: Tensor, done: float) -> Tensor:
        new = self.calls % _UPDATES == 0
        if self.calls == 0:
            for _ in range(1, round(_FIRST_FILL * self.buffer.capacity / len(z))):
                self._anneal(len(z))
        if new:
            self._anneal(len(z))
        self.calls += 1
        for parameter in self.flow.parameters():
            parameter.grad = None
        if len(self.buffer):
            self._add_gradient(len(z))
        # draws are counted once, those that are left out as well
        return self.latest if new else self.latest[self.latest.isfinite()]

    def state(self) -> dict[str, Any]:
        buffer = self.buffer
        return super().state() | {
            "step_sizes": self.annealer.step_sizes,
            "u": buffer.u,
            "log_weights": buffer.log_weights,
            "log_q": buffer.log_q,
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.annealer.step_sizes = state["step_sizes"]
        for name in ("u", "log_weights", "log_q"):
            setattr(self.buffer, name, state[name])

    def _anneal(self, n: int) -> None:
        found = self.annealer.run(n)
        self.annealer.adapt(found.acceptance)
        self.buffer.add(found.u, found.log_weights, found.log_q)
        self.num_energies += n * self.annealer.energies_per_sample
        self.latest = found.before

    def _add_gradient(self, n: int) -> None:
        chosen = self.buffer.choose(n, self.generator)
        log_q = log_density(self.flow, self.buffer.u[chosen])
        counts = self.buffer.correct(chosen, log_q.detach()).exp().clamp(max=_LARGEST_CORRECTION)
        (-(counts * torch.where(log_q.isfinite(), log_q, 0.0)).mean()).backward()
