"""The same algorithm as a user writes it on SB3: a module per critic, eager PyTorch, SB3's buffer and Polyak update."""

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import polyak_update
from torch import nn


class LoopedREDQ(SAC):
    """REDQ with ``policy_delay=utd`` on top of SB3's SAC and its ``ContinuousCritic``."""

    def __init__(self, env: gym.Env, n_critics: int, utd: int, layer_norm: bool, device: str):
        super().__init__(
            "MlpPolicy", env, buffer_size=20_000, policy_kwargs={"n_critics": n_critics}, device=device, seed=0
        )
        self.utd, self.n_critics = utd, n_critics
        if layer_norm:
            for critic in (self.critic, self.critic_target):
                for i, network in enumerate(critic.q_networks):
                    layers: list[nn.Module] = []
                    for layer in network:
                        layers.append(layer)
                        if isinstance(layer, nn.Linear) and layer.out_features > 1:
                            layers.append(nn.LayerNorm(layer.out_features))
                    critic.q_networks[i] = nn.Sequential(*layers)
                    setattr(critic, f"qf{i}", critic.q_networks[i])
            self.critic.optimizer = th.optim.Adam(self.critic.parameters(), lr=3e-4)
        self.set_logger(configure(None, []))

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        critic_losses = []
        for i in range(gradient_steps * self.utd):
            batch = self.replay_buffer.sample(batch_size)
            ent_coef = th.exp(self.log_ent_coef.detach())
            with th.no_grad():
                next_actions, next_log_prob = self.actor.action_log_prob(batch.next_observations)
                inputs = th.cat([batch.next_observations, next_actions], dim=1)
                pair = np.random.choice(self.n_critics, 2, replace=False)
                next_q = th.cat([self.critic_target.q_networks[k](inputs) for k in pair], dim=1)
                next_q = next_q.min(dim=1, keepdim=True).values - ent_coef * next_log_prob.reshape(-1, 1)
                target = batch.rewards + (1 - batch.dones) * self.gamma * next_q
            q_values = self.critic(batch.observations, batch.actions)
            critic_loss = 0.5 * sum(nn.functional.mse_loss(q, target) for q in q_values)
            critic_losses.append(critic_loss.item())
            self.critic.optimizer.zero_grad()
            critic_loss.backward()
            self.critic.optimizer.step()
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            if (i + 1) % self.utd == 0:
                actions, log_prob = self.actor.action_log_prob(batch.observations)
                log_prob = log_prob.reshape(-1, 1)
                ent_coef_loss = -(self.log_ent_coef * (log_prob + self.target_entropy).detach()).mean()
                self.ent_coef_optimizer.zero_grad()
                ent_coef_loss.backward()
                self.ent_coef_optimizer.step()
                mean_q = th.cat(self.critic(batch.observations, actions), dim=1).mean(dim=1, keepdim=True)
                actor_loss = (ent_coef * log_prob - mean_q).mean()
                self.actor.optimizer.zero_grad()
                actor_loss.backward()
                self.actor.optimizer.step()
        self.logger.record("train/critic_loss", np.mean(critic_losses))
