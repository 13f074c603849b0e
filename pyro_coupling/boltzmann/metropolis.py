"""Markov chains with the flow as their proposal, which are exact however good the flow is."""

from __future__ import annotations

__all__ = ["Walk", "metropolis"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..transforms import Bijection
from .checks import check_positive
from .observables import autocorrelation_time
from .target import BoltzmannTarget


class Walk(NamedTuple):
    """The frames of Metropolised chains.

    Attributes:
        positions: ``(steps, chains, *event_shape)``.
        energies: ``(steps, chains)``.
        flow_acceptance: Part of the flow's proposals that were accepted.
        local_acceptance: Part of the local moves that were accepted; NaN without them.
        autocorrelation_time: Integrated autocorrelation time of the energy, in steps; NaN for fewer than four steps.
    """

    positions: Tensor
    energies: Tensor
    flow_acceptance: float
    local_acceptance: float
    autocorrelation_time: float


class _State(NamedTuple):
    """Noise and coordinates ``(chains, dim)``, energies and log weights ``(chains,)``, gradient of log weights."""

    z: Tensor
    u: Tensor
    energy: Tensor
    log_weight: Tensor
    slope: Tensor


@torch.no_grad()
def metropolis(
    flow: Bijection,
    target: BoltzmannTarget,
    num_steps: int,
    num_chains: int = 256,
    *,
    start: Tensor | None = None,
    local_moves: int = 0,
    step_size: float = 0.3,
    generator: torch.Generator | None = None,
) -> Walk:
    """Runs chains whose stationary distribution is the Boltzmann distribution, as far as the flow reaches.

    At each step a fresh draw of the flow replaces a configuration with the probability ``min(1, w' / w)``, w being
    the importance weights. A configuration that the flow draws too rarely has a large weight and stays for long;
    local moves lead it on in the meantime. They are Langevin moves in the noise of the flow, where the
    distribution is nearly a standard normal whatever the molecule, and each is Metropolised as well.

    Args:
        flow: Base noise ``(dim,)`` to coordinates, such as ``generator.flow`` of a `BoltzmannGenerator`.
        target: The distribution of coordinates, such as ``generator.target``.
        num_steps: Number of steps, each of one proposal by the flow and the local moves; each is a frame.
        num_chains: Number of independent chains, which move together; that of the start if one is given.
        start: Configurations ``(chains, *event_shape)``. If not given, draws of the flow, from which some
            autocorrelation times lead to equilibrium.
        local_moves: Langevin moves after each proposal of the flow; they need the gradient of the energy.
        step_size: Of the local moves, between 0 and 1, which is a jump across the whole distribution. Half of the
            moves or more should be accepted.
        generator: Source of random numbers, on the device of the target.

    Raises:
        ValueError: If a number is out of range, or the start of the wrong shape or out of the flow's reach.

    Reference:
        Independent proposals: Tierney. Markov chains for exploring posterior distributions. Annals of Statistics
        1994. Local moves: Cotter, Roberts, Stuart, White. MCMC methods for functions: modifying old algorithms to
        make them faster. Statistical Science 2013 (pCNL). In the noise of a flow: Hoffman et al. NeuTra-lizing bad
        geometry in Hamiltonian Monte Carlo using neural transport. 2019.

    Example:
        >>> from pyro_coupling.boltzmann import BoltzmannGenerator, energies
        >>> generator = BoltzmannGenerator(energies.DoubleWell(), kT=4.0, seed=0, progress=False)
        >>> walk = metropolis(generator.flow, generator.target, 50, 16, local_moves=2)
        >>> walk.positions.shape, walk.flow_acceptance > 0, walk.local_acceptance > 0.5
        (torch.Size([50, 16, 2]), True, True)
    """
    for name, number in (("num_steps", num_steps), ("num_chains", num_chains)):
        check_positive("metropolis", name, number)
    if local_moves < 0 or not 0 < step_size < 1:
        raise ValueError(
            "metropolis: local_moves must not be negative and step_size between 0 and 1, "
            f"got {local_moves} and {step_size}"
        )
    chains = _Chains(flow, target, generator)
    noise = chains.noise(num_chains) if start is None else chains.noise_of(start)
    state = chains.state(noise, bool(local_moves))
    if start is not None and not bool(state.log_weight.isfinite().all()):
        bad = int((~state.log_weight.isfinite()).sum())
        raise ValueError(f"metropolis: start: {bad} of {len(start)} configurations are out of the flow's reach")
    frames, energies = state.u.new_empty(num_steps, *state.u.shape), state.u.new_empty(num_steps, len(noise))
    accepted = torch.zeros(2, dtype=torch.float64, device=noise.device)
    for step in range(num_steps):
        state, rate = chains.jump(state, bool(local_moves))
        accepted[0] += rate
        for _ in range(local_moves):
            state, rate = chains.shift(state, step_size)
            accepted[1] += rate
        frames[step], energies[step] = state.u, state.energy
    positions = torch.cat([target.configurations(part)[0] for part in frames.flatten(0, 1).split(target.chunk_size)])
    by_flow, local = (accepted / num_steps).tolist()
    return Walk(
        positions.unflatten(0, energies.shape),
        energies,
        by_flow,
        local / local_moves if local_moves else math.nan,
        autocorrelation_time(energies).item() if num_steps >= 4 else math.nan,
    )


class _Chains:
    """The two kinds of moves, in the noise of a flow, where the density is that of a normal times the weight."""

    def __init__(self, flow: Bijection, target: BoltzmannTarget, generator: torch.Generator | None) -> None:
        self.flow, self.target, self.generator = flow, target, generator

    def noise(self, num_chains: int) -> Tensor:
        target = self.target
        shape = (num_chains, target.dim)
        return torch.randn(shape, dtype=target.dtype, device=target.device, generator=self.generator)

    def noise_of(self, positions: Tensor) -> Tensor:
        shape = self.target.energy.event_shape
        if positions.dim() != len(shape) + 1 or positions.shape[1:] != shape:
            raise ValueError(
                f"metropolis: start must be configurations (chains, {', '.join(map(str, shape))}), "
                f"got shape {tuple(positions.shape)}"
            )
        u = self.target.coordinates_of(positions.to(self.target.device, self.target.dtype))
        return self.flow.inverse_and_log_det(u)[0]

    def state(self, z: Tensor, with_slope: bool) -> _State:
        with torch.set_grad_enabled(with_slope):
            z = z.detach().requires_grad_(with_slope)
            u, log_det = self.flow.forward_and_log_det(z)
            energy, volume = self.target.energy_and_volume(u)
            log_weight = volume - energy / self.target.kT + log_det + 0.5 * z.square().sum(-1)
            (slope,) = torch.autograd.grad(log_weight.sum(), z) if with_slope else (torch.zeros_like(z),)
        log_weight = log_weight.detach()
        log_weight = torch.where(log_weight.isfinite(), log_weight, -torch.inf)
        return _State(z.detach(), u.detach(), energy.detach(), log_weight, slope)

    def jump(self, state: _State, with_slope: bool) -> tuple[_State, Tensor]:
        """A draw of the flow, whatever the state."""
        proposed = self.state(self.noise(len(state.z)), with_slope)
        return self._accept(state, proposed, proposed.log_weight - state.log_weight)

    def shift(self, state: _State, step_size: float) -> tuple[_State, Tensor]:
        """A Langevin step, of the Crank-Nicolson kind that leaves a standard normal as it is."""
        memory = math.sqrt(1 - step_size**2)
        noise = self.noise(len(state.z))
        proposed = self.state(memory * state.z + (1 - memory) * state.slope + step_size * noise, True)
        way_back = (state.z - memory * proposed.z - (1 - memory) * proposed.slope) / step_size
        squares = noise.square() + state.z.square() - proposed.z.square() - way_back.square()
        return self._accept(state, proposed, proposed.log_weight - state.log_weight + 0.5 * squares.sum(-1))

    def _accept(self, state: _State, proposed: _State, log_ratio: Tensor) -> tuple[_State, Tensor]:
        uniform = torch.rand(log_ratio.shape, dtype=log_ratio.dtype, device=log_ratio.device, generator=self.generator)
        yes = uniform.log() < log_ratio  # NaN is a no
        pairs = zip(state, proposed, strict=True)
        kept = (torch.where(yes.reshape(-1, *[1] * (old.dim() - 1)), new, old) for old, new in pairs)
        return _State(*kept), yes.double().mean()
