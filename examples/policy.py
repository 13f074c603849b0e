"""A policy that is a flow: maximum-entropy reinforcement learning, against a Gaussian policy.

Soft actor-critic wants return and entropy, the discounted sum of r - alpha log pi(a | s), and so needs actions with
their exact log density: a conditional flow has it, and may have several modes. A Gaussian and a flow, both squashed by
a tanh, learn in equal steps on two tasks: a boat that starts amid four equal buoys and must keep its speed, made so
that many actions are as good as the best, where soft value iteration on a grid tells the optimum; and Pendulum-v1. The
temperature alpha starts ten times too high and falls over the first half of the steps: with the final one all along,
tried with a seed that is not used here, both policies settled on the first buoy that they found.

    python examples/policy.py [--seeds 3] [--quick] [--output policy.png]

Reference:
    Haarnoja, Zhou, Abbeel, Levine. Soft actor-critic. ICML 2018.
    Haarnoja, Hartikainen, Abbeel, Levine. Latent space policies for hierarchical reinforcement learning. ICML 2018.
    Ward, Smofsky, Bose. Improving exploration in soft-actor-critic with normalizing flows policies. 2019.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import pyro.distributions as dist
import torch
from gymnasium.vector import SyncVectorEnv
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_coupling import flows
from pyro_coupling.nn import MLP
from pyro_coupling.transforms import Affine, Chain, Coupling, TanhScale

BUOYS = 0.7 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
BATCH, RATE, SLOWNESS, RANDOM_STEPS = 256, 1e-3, 0.995, 500
EPISODES, CHECKS = 100, 16  # that judge a policy; checks on the way, by a fifth of the episodes

#: what acts: a batch of states ``(n, states)`` -> actions ``(n, actions)`` and their log densities ``(n,)``
Acts = Callable[[Tensor], tuple[Tensor, Tensor]]


class Boat(gym.Env):
    """A boat on the square [-1, 1]^2; rewarded near a buoy, punished off its speed of 0.7."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    @staticmethod
    def move(position: Tensor, action: Tensor) -> Tensor:
        return (position + 0.3 * action).clamp(-1, 1)

    @staticmethod
    def reward(position: Tensor, action: Tensor) -> Tensor:
        """For the position that an action led to."""
        squared = (position.unsqueeze(-2) - BUOYS).square().sum(-1).amin(-1)
        return (-squared / (2 * 0.2**2)).exp() - 3 * (action.norm(dim=-1) - 0.7).square()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.position = torch.tensor(0.05 * self.np_random.standard_normal(2), dtype=torch.float32)
        return self.position.numpy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        chosen = torch.as_tensor(action)
        self.position = self.move(self.position, chosen)
        return self.position.numpy(), self.reward(self.position, chosen).item(), False, False, {}


@dataclass
class Task:
    """An environment with actions in [-1, 1], how far it is foreseen, how much entropy counts, and the budget."""

    name: str
    make: Callable[[], gym.Env]
    length: int  # of an episode
    discount: float
    temperature: float
    steps: int


BOAT = Task("boat", lambda: gym.wrappers.TimeLimit(Boat(), 40), 40, 0.8, 0.1, 6000)
PENDULUM = Task("Pendulum-v1", lambda: gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), -1, 1), 200, 0.99, 0.2, 8000)


class Policy(nn.Module):
    """Actions as noise sent through a flow, whose context is the state, and a tanh."""

    def __init__(self, flow: Chain) -> None:
        super().__init__()
        self.flow = flow

    def given(self, state: Tensor) -> dist.TorchDistribution:
        unbounded = flows.distribution(self.flow, context=state)
        return dist.TransformedDistribution(unbounded, [dist.transforms.TanhTransform(cache_size=1)])

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        actions = self.given(state)
        action = actions.rsample()
        return action, actions.log_prob(action)


def gaussian(states: int, actions: int, hidden: int) -> Coupling:
    """Mean and standard deviation of each action from a network that reads the state alone."""
    return Coupling([False] * actions, MLP(states, 2 * actions, (hidden, hidden)), Affine(TanhScale(5.0)), states)


def spline(states: int, actions: int) -> list[Coupling]:
    return list(flows.neural_spline(actions, 4, (64, 64), states, both=False, linear=False, outer_affine=False))


POLICIES: dict[str, Callable[[int, int], Policy]] = {
    "Gaussian": lambda states, actions: Policy(Chain([gaussian(states, actions, 192)])),  # larger than the flow
    "flow": lambda states, actions: Policy(Chain([*spline(states, actions), gaussian(states, actions, 64)])),
}


class Critic(nn.Module):
    """The lesser of two estimates of what an action is worth in a state."""

    def __init__(self, states: int, actions: int) -> None:
        super().__init__()
        self.estimates = nn.ModuleList(MLP(states + actions, 1, (128, 128)) for _ in range(2))

    def both(self, state: Tensor, action: Tensor) -> Tensor:
        features = torch.cat([state, action], -1)
        return torch.stack([estimate(features).squeeze(-1) for estimate in self.estimates])

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.both(state, action).amin(0)


class Learner:
    """Soft actor-critic with a given temperature."""

    def __init__(self, task: Task, policy: Policy, states: int, actions: int) -> None:
        self.task, self.policy, self.critic = task, policy, Critic(states, actions)
        self.slow = copy.deepcopy(self.critic).requires_grad_(False)
        self.policy_optimizer = torch.optim.Adam(policy.parameters(), lr=RATE, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=RATE, fused=True)

    def learn(self, batch: Sequence[Tensor], temperature: float) -> None:
        """A step on states, actions, rewards, the states after, and whether these are ends; rows ``(n, columns)``."""
        state, action, reward, following, ended = batch
        with torch.no_grad():
            next_action, log_prob = self.policy(following)
            worth = self.slow(following, next_action) - temperature * log_prob
            target = (reward + self.task.discount * (1 - ended) * worth.unsqueeze(1)).squeeze(1)
        self._descend(self.critic_optimizer, (self.critic.both(state, action) - target).square().mean())
        chosen, log_prob = self.policy(state)
        self._descend(self.policy_optimizer, (temperature * log_prob - self.critic(state, chosen)).mean())
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, 1 - SLOWNESS)

    @staticmethod
    def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train(task: Task, make: Callable[[int, int], Policy], seed: int) -> tuple[Policy, list[list[float]]]:
    """A policy after as many steps of learning as of the environment; its figures on the way."""
    torch.manual_seed(seed)
    env = task.make()
    env.action_space.seed(seed)
    states, actions = env.observation_space.shape[0], env.action_space.shape[0]
    policy = make(states, actions)
    learner = Learner(task, policy, states, actions)
    columns = [states, actions, 1, states, 1]
    memory, curve = torch.zeros(task.steps, sum(columns)), []
    state, _ = env.reset(seed=seed)
    for step in range(task.steps):
        if step < RANDOM_STEPS:
            action = env.action_space.sample()
        else:
            with torch.no_grad():
                action = policy(torch.as_tensor(state))[0].numpy()
        following, reward, ended, cut, _ = env.step(action)
        memory[step] = torch.as_tensor(np.concatenate([state, action, [reward], following, [ended]]))
        state = env.reset()[0] if ended or cut else following
        batch = memory[torch.randint(step + 1, (BATCH,))]
        temperature = task.temperature * 10 ** max(0.0, 1 - 2 * step / task.steps)
        learner.learn(batch.split(columns, 1), temperature)
        if (step + 1) % (task.steps // CHECKS) == 0:
            curve.append(figures(task, policy, EPISODES // 5)[0])
    return policy, curve


@torch.no_grad()
def figures(task: Task, acts: Acts, num: int = EPISODES) -> tuple[list[float], Tensor]:
    """Return of an episode, entropy, and the discounted sum of both; paths ``(num, length + 1, states)``."""
    envs = SyncVectorEnv([task.make] * num)
    state = torch.as_tensor(envs.reset(seed=1000)[0])
    path, rewards, log_probs = [state], [], []
    for _ in range(task.length):
        action, log_prob = acts(state)
        following, reward, *_ = envs.step(action.numpy())
        state = torch.as_tensor(following)
        path.append(state)
        rewards.append(torch.as_tensor(reward))
        log_probs.append(log_prob)
    rewards, surprise = torch.stack(rewards, 1), -torch.stack(log_probs, 1)
    soft = (rewards + task.temperature * surprise) * task.discount ** torch.arange(task.length)
    return [rewards.sum(1).mean().item(), surprise.mean().item(), soft.sum(1).mean().item()], torch.stack(path, 1)


class SoftOptimal:
    """The boat's best policy: soft values by iteration on a grid, actions from cells of theirs.

    ``V(s) = alpha log of the integral of exp(Q(s, a) / alpha) da``, ``pi(a | s) = exp((Q(s, a) - V(s)) / alpha)``
    (Haarnoja, Tang, Abbeel, Levine. Reinforcement learning with deep energy-based policies. ICML 2017).
    """

    def __init__(self, positions: int = 41, cells: int = 31, tolerance: float = 1e-3) -> None:
        axis = torch.linspace(-1, 1, positions)
        middles = (torch.arange(cells) + 0.5) / cells * 2 - 1
        self.width = 2 / cells
        self.actions = torch.cartesian_prod(middles, middles)
        self.values = torch.zeros(positions, positions)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # a row for each height
        for _ in range(math.ceil(math.log(tolerance) / math.log(BOAT.discount))):
            self.values = self._soft_values(grid)

    def _soft_values(self, states: Tensor) -> Tensor:
        return torch.stack([BOAT.temperature * self._exponents(row).logsumexp(-1) for row in states])

    def _exponents(self, states: Tensor) -> Tensor:
        """``Q / alpha`` and the logarithm of a cell's area, ``(n, 2)`` -> ``(n, cells^2)``."""
        following = Boat.move(states.unsqueeze(-2), self.actions)
        later = F.grid_sample(self.values[None, None], following[None], align_corners=True)[0, 0]
        worth = Boat.reward(following, self.actions) + BOAT.discount * later
        return worth / BOAT.temperature + 2 * math.log(self.width)

    def __call__(self, state: Tensor) -> tuple[Tensor, Tensor]:
        log_masses = self._exponents(state).log_softmax(-1)
        cell = dist.Categorical(logits=log_masses).sample()
        within = self.width * (torch.rand(len(state), 2) - 0.5)
        log_mass = log_masses.gather(-1, cell.unsqueeze(-1)).squeeze(-1)
        return self.actions[cell] + within, log_mass - 2 * math.log(self.width)

    def log_prob(self, state: Tensor) -> Tensor:
        """Log density of the middle of each cell, ``(2,)`` -> ``(cells^2,)``."""
        return self._exponents(state[None])[0].log_softmax(-1) - 2 * math.log(self.width)


@torch.no_grad()
def draw(
    optimal: SoftOptimal, policies: dict[str, Policy], boats: dict[str, Tensor], runs: dict, best: float, path: str
) -> None:
    """Paths of boats and densities of their first action, of the last seed; all seeds' learning curves."""
    figure = Figure((11.0, 5.4), layout="constrained")
    table = figure.subplots(2, 4, width_ratios=[1, 1, 1, 1.5])
    start = torch.zeros(len(optimal.actions), 2)
    densities = {"soft-optimal": optimal.log_prob(start[0])}
    densities |= {name: policy.given(start).log_prob(optimal.actions) for name, policy in policies.items()}
    brightest = densities["soft-optimal"].exp().max().item()
    for (upper, lower), (name, log_density) in zip(table[:, :3].T, densities.items(), strict=True):
        upper.plot(*BUOYS.T, "o", color="C1", ms=22, alpha=0.4, mec="none")
        for track in boats[name]:
            upper.plot(*track.T, color="C0", lw=0.4, alpha=0.5)
        upper.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[], aspect="equal", title=name)
        size = math.isqrt(len(log_density))
        image = log_density.exp().reshape(size, size).T  # actions list their first entry slowest
        lower.imshow(image, origin="lower", extent=(-1, 1, -1, 1), cmap="magma", vmin=0, vmax=brightest)
        lower.set(xticks=[], yticks=[])
    table[0, 0].set_ylabel("ways of 100 boats")
    table[1, 0].set_ylabel("density of the first action")
    for axes, task, column in zip(table[:, 3], (BOAT, PENDULUM), (2, 0), strict=True):
        for name, colour in zip(POLICIES, ("C7", "C3"), strict=True):
            for number, (_, curve) in enumerate(runs[task.name, name]):
                steps = torch.arange(1, len(curve) + 1) * (task.steps // CHECKS)
                values = [reached[column] for reached in curve]
                axes.plot(steps, values, color=colour, lw=1.2, label=None if number else name)
        axes.spines[["top", "right"]].set_visible(False)
    table[0, 3].axhline(best, color="k", lw=1, ls="--", label="soft-optimal")
    table[0, 3].set_title("boat: return and entropy")
    table[1, 3].set(title="Pendulum-v1: return", xlabel="steps")
    table[0, 3].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=90)


def counts(path: Tensor) -> list[int]:
    """How many boats end nearest to each buoy."""
    nearest = (path[:, -1].unsqueeze(1) - BUOYS).norm(dim=-1).argmin(-1)
    return torch.bincount(nearest, minlength=len(BUOYS)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings of each policy on each task")
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--output", default="policy.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds, tasks = options.seeds, [BOAT, PENDULUM]
    if options.quick:
        seeds, tasks = 2, [replace(task, steps=CHECKS, length=2) for task in tasks]
    torch.manual_seed(0)
    optimal = SoftOptimal(21, 11) if options.quick else SoftOptimal()
    best, paths = figures(tasks[0], optimal)
    boats = {"soft-optimal": paths}
    print("| task | policy | seed | return | entropy | discounted sum of both | at each buoy |\n" + "|---" * 7 + "|")
    print("| boat | soft-optimal | | {:.2f} | {:.2f} | {:.3f} | {} |".format(*best, counts(paths)))
    runs: dict[tuple[str, str], list[tuple[list[float], list[list[float]]]]] = {}
    policies = {}
    for task, (name, make) in itertools.product(tasks, POLICIES.items()):
        for seed in range(1, seeds + 1):
            policy, curve = train(task, make, seed)
            reached, paths = figures(task, policy)
            runs.setdefault((task.name, name), []).append((reached, curve))
            seen = ""
            if task.name == BOAT.name:
                policies[name], boats[name], seen = policy, paths, counts(paths)
            print("| {} | {} | {} | {:.2f} | {:.2f} | {:.3f} | {} |".format(task.name, name, seed, *reached, seen))
    draw(optimal, policies, boats, runs, best[2], options.output)
    print(f"picture: {options.output}")
    for (task, name), trained in runs.items():
        column, meaning = (2, f"return and entropy, of {best[2]:.3f}") if task == BOAT.name else (0, "return")
        values = [reached[column] for reached, _ in trained]
        print(f"{task}, {name}: {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} in {meaning}")


if __name__ == "__main__":
    main()
