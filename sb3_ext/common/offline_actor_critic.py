"""What the offline algorithms with critics share: targets, the Bellman loss, optimizers, delayed actors."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_ext.common.buffers import Samples
from sb3_ext.common.ensemble import EnsembleCritic
from sb3_ext.common.losses import ensemble_mse, td_target
from sb3_ext.common.offline_algorithm import OfflineAlgorithm

Scalars = dict[str, th.Tensor]


class OfflineActorCritic(OfflineAlgorithm):
    """Base class of algorithms with ``actor``, ``critic`` (an ensemble) and ``critic_target``."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {}
    actor: Any
    critic: EnsembleCritic
    critic_target: EnsembleCritic

    def _bellman_loss(self, batch: Samples, q_values: th.Tensor, next_values: th.Tensor) -> tuple[th.Tensor, Scalars]:
        """
        :param q_values: of the batch's actions, ``(n_critics, batch, 1)``
        :param next_values: ``(batch, 1)``, without a gradient
        """
        loss = ensemble_mse(q_values, td_target(batch.rewards, batch.dones, self._discounts(batch), next_values))
        return loss, {"critic_loss": loss.detach(), "q_mean": q_values.detach().mean()}

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [self.actor.optimizer, self.critic.optimizer]

    def _update_constants(self) -> tuple[Any, ...]:
        return self.gamma, self.tau
