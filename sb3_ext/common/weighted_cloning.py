"""What AWAC and IQL share: an actor that clones actions by the exponential of their advantage."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_ext.common.buffers import Samples
from sb3_ext.common.ensemble import EnsembleCritic
from sb3_ext.common.losses import effective_sample_size, ensemble_mse, td_target, weighted_cloning_loss
from sb3_ext.common.off_policy import Metrics
from sb3_ext.common.offline_algorithm import OfflineAlgorithm
from sb3_ext.common.offline_policies import GaussianActor

Scalars = dict[str, th.Tensor]

# Below this share of the batch the actor learns from a handful of actions
COLLAPSE = 0.02


def cloning_log_prob(actor: GaussianActor, batch: Samples, deterministic: bool) -> th.Tensor:
    """Log-density of a batch's actions, or minus the squared distance from the actor's mean, ``(batch,)``."""
    distribution = actor.distribution(batch.observations)
    if deterministic:
        return -(batch.actions - distribution.mode).square().sum(dim=-1)
    return distribution.log_prob(batch.actions)


class WeightedCloningAlgorithm(OfflineAlgorithm):
    """
    Base class of algorithms with ``actor``, ``critic`` and ``critic_target``. One that derives from it sets
    ``deterministic_actor`` in its constructor: whether the actor regresses to the weighted actions (squared error)
    instead of maximising their log-likelihood.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {}
    actor: GaussianActor
    critic: EnsembleCritic
    critic_target: EnsembleCritic
    deterministic_actor: bool
    _has_warned = False

    def _bellman_loss(self, batch: Samples, q_values: th.Tensor, next_values: th.Tensor) -> tuple[th.Tensor, Scalars]:
        """
        :param q_values: of the batch's actions, ``(n_critics, batch, 1)``
        :param next_values: ``(batch, 1)``, without a gradient
        """
        # n-step samples carry gamma**n, which is smaller than n steps where an episode ends
        discounts = self.gamma if batch.discounts is None else batch.discounts
        loss = ensemble_mse(q_values, td_target(batch.rewards, batch.dones, discounts, next_values))
        return loss, {"critic_loss": loss.detach(), "q_mean": q_values.detach().mean()}

    def _cloning_loss(self, batch: Samples, weights: th.Tensor) -> tuple[th.Tensor, Scalars]:
        """
        :param weights: ``(batch,)``, without a gradient
        """
        loss = weighted_cloning_loss(cloning_log_prob(self.actor, batch, self.deterministic_actor), weights)
        metrics = {
            "actor_loss": loss.detach(),
            "weight_mean": weights.mean(),
            "weight_max": weights.max(),
            "effective_sample_size": effective_sample_size(weights),
        }
        return loss, metrics

    def _log_metrics(self, metrics: Metrics) -> None:
        super()._log_metrics(metrics)
        share = metrics.means().get("effective_sample_size")
        if share is not None and share < COLLAPSE and not self._has_warned:
            self._has_warned = True
            print(
                f"Warning: the actor's weights have collapsed, {100 * share:.1f} % of a batch count. "
                f"{self._collapse_fix()}"
            )

    def _collapse_fix(self) -> str:
        raise NotImplementedError

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [self.actor.optimizer, self.critic.optimizer]

    def _update_constants(self) -> tuple[Any, ...]:
        return self.gamma, self.tau, self.deterministic_actor
