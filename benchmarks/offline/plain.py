"""
AWAC, IQL and ReBRAC as one usually writes them in PyTorch: a module for each network, ``zero_grad``, ``backward`` and
``step`` for each optimizer, eager, Polyak averaging in a loop. The formulas are those of ``sb3_ext``.
"""

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch as th
from torch import nn
from torch.distributions import Normal

GAMMA, TAU, MAX_WEIGHT = 0.99, 0.005, 100.0


def mlp(n_in: int, n_out: int, hidden: int, layer_norm: bool = False) -> nn.Sequential:
    """Two hidden layers."""
    layers: list[nn.Module] = []
    for size in (n_in, hidden):
        layers.append(nn.Linear(size, hidden))
        layers += [nn.LayerNorm(hidden)] if layer_norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(hidden, n_out))


class Actor(nn.Module):
    """A tanh mean and one standard deviation per action."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: int):
        super().__init__()
        self.mu = mlp(obs_dim, action_dim, hidden)
        self.log_std = nn.Parameter(th.zeros(action_dim))

    def mean(self, obs: th.Tensor) -> th.Tensor:
        return th.tanh(self.mu(obs))

    def forward(self, obs: th.Tensor) -> Normal:
        return Normal(self.mean(obs), self.log_std.clamp(-5, 2).exp())


class Critic(nn.Module):
    """Values of observations and actions, shape ``(batch, 1)``."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: int, layer_norm: bool = False):
        super().__init__()
        self.q = mlp(obs_dim + action_dim, 1, hidden, layer_norm)

    def forward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return self.q(th.cat([obs, actions], dim=1))


class Plain:
    """
    What the three share.

    :param data: ``observations``, ``actions``, ``rewards``, ``next_observations``, ``next_actions``, ``terminations``
    :param hidden: units of each hidden layer
    :param batch_size: rows of each batch
    :param lr: of all optimizers
    """

    layer_norm = False

    def __init__(self, data: Mapping[str, np.ndarray], hidden: int, batch_size: int, lr: float = 3e-4):
        self.data = {name: th.as_tensor(column, dtype=th.float32) for name, column in data.items()}
        for name in ("rewards", "terminations"):
            self.data[name] = self.data[name].reshape(-1, 1)
        self.batch_size = batch_size
        obs_dim, action_dim = self.data["observations"].shape[1], self.data["actions"].shape[1]
        self.actor = Actor(obs_dim, action_dim, hidden)
        self.critics = [Critic(obs_dim, action_dim, hidden, self.layer_norm) for _ in range(2)]
        self.targets = copy.deepcopy(self.critics)
        self.value = mlp(obs_dim, 1, hidden)
        self.actor_optimizer = th.optim.Adam(self.actor.parameters(), lr=lr)
        self.critic_optimizers = [th.optim.Adam(critic.parameters(), lr=lr) for critic in self.critics]
        self.value_optimizer = th.optim.Adam(self.value.parameters(), lr=lr)
        self.losses: dict[str, float] = {}
        self.n_steps = 0

    def sample(self) -> dict[str, th.Tensor]:
        rows = np.random.randint(0, len(self.data["rewards"]), size=self.batch_size)
        return {name: column[rows] for name, column in self.data.items()}

    def minimize(self, name: str, loss: th.Tensor, optimizers: Iterable[th.optim.Optimizer]) -> None:
        optimizers = list(optimizers)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        self.losses[name] = loss.item()

    def update_critics(self, batch: dict[str, th.Tensor], next_values: th.Tensor) -> None:
        y = batch["rewards"] + GAMMA * (1 - batch["terminations"]) * next_values
        errors = [nn.functional.mse_loss(q(batch["observations"], batch["actions"]), y) for q in self.critics]
        self.minimize("critic_loss", 0.5 * (errors[0] + errors[1]), self.critic_optimizers)

    def least(self, critics: list[Critic], obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return th.min(critics[0](obs, actions), critics[1](obs, actions))

    def clone(self, batch: dict[str, th.Tensor], weights: th.Tensor) -> None:
        log_prob = self.actor(batch["observations"]).log_prob(batch["actions"]).sum(dim=1, keepdim=True)
        self.minimize("actor_loss", -(weights * log_prob).mean(), [self.actor_optimizer])

    def polyak(self, modules: Iterable[nn.Module], targets: Iterable[nn.Module]) -> None:
        with th.no_grad():
            for module, target in zip(modules, targets, strict=True):
                for weight, average in zip(module.parameters(), target.parameters(), strict=True):
                    average.data.copy_(TAU * weight.data + (1 - TAU) * average.data)

    def step(self) -> None:
        """One gradient step of everything."""
        self.n_steps += 1
        self.update(self.sample())

    def update(self, batch: dict[str, th.Tensor]) -> None:
        raise NotImplementedError


class PlainAWAC(Plain):
    """AWAC with a temperature of 1."""

    def update(self, batch: dict[str, th.Tensor]) -> None:
        with th.no_grad():
            next_actions = self.actor(batch["next_observations"]).sample().clamp(-1, 1)
            next_values = self.least(self.targets, batch["next_observations"], next_actions)
            own_actions = self.actor(batch["observations"]).sample().clamp(-1, 1)
            values = self.least(self.critics, batch["observations"], own_actions)
            advantages = self.least(self.critics, batch["observations"], batch["actions"]) - values
        self.update_critics(batch, next_values)
        self.clone(batch, advantages.exp().clamp(max=MAX_WEIGHT))
        self.polyak(self.critics, self.targets)


class PlainIQL(Plain):
    """IQL with an expectile of 0.7 and an inverse temperature of 3."""

    def update(self, batch: dict[str, th.Tensor]) -> None:
        with th.no_grad():
            targets = self.least(self.targets, batch["observations"], batch["actions"])
            next_values = self.value(batch["next_observations"])
        advantages = targets - self.value(batch["observations"])
        value_loss = (th.where(advantages < 0, 0.3, 0.7) * advantages**2).mean()
        self.minimize("value_loss", value_loss, [self.value_optimizer])
        self.update_critics(batch, next_values)
        self.clone(batch, (3 * advantages.detach()).exp().clamp(max=MAX_WEIGHT))
        self.polyak(self.critics, self.targets)


class PlainReBRAC(Plain):
    """ReBRAC with critics and an actor of two hidden layers."""

    layer_norm = True

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.actor_target = copy.deepcopy(self.actor)

    def update(self, batch: dict[str, th.Tensor]) -> None:
        with th.no_grad():
            noise = (th.randn_like(batch["actions"]) * 0.2).clamp(-0.5, 0.5)
            next_actions = (self.actor_target.mean(batch["next_observations"]) + noise).clamp(-1, 1)
            distances = ((next_actions - batch["next_actions"]) ** 2).sum(dim=1, keepdim=True)
            next_values = self.least(self.targets, batch["next_observations"], next_actions) - 0.01 * distances
        self.update_critics(batch, next_values)
        if self.n_steps % 2 == 0:
            actions = self.actor.mean(batch["observations"])
            q_values = self.least(self.critics, batch["observations"], actions)
            distances = ((actions - batch["actions"]) ** 2).sum(dim=1, keepdim=True)
            loss = (0.01 * distances - q_values / q_values.abs().mean().detach()).mean()
            self.minimize("actor_loss", loss, [self.actor_optimizer])
            self.polyak([*self.critics, self.actor], [*self.targets, self.actor_target])


PLAIN: dict[str, type[Plain]] = {"AWAC": PlainAWAC, "IQL": PlainIQL, "ReBRAC": PlainReBRAC}
