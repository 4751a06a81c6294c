"""What AWAC and IQL share: an actor that clones actions by the exponential of their advantage."""

import warnings
from typing import Any

import torch as th
from gymnasium import spaces

from sb3_ext.common.actors import CloningActor, cloning_log_prob, set_deterministic
from sb3_ext.common.buffers import Samples
from sb3_ext.common.losses import effective_sample_size, weighted_cloning_loss
from sb3_ext.common.off_policy import Metrics
from sb3_ext.common.offline_actor_critic import OfflineActorCritic, Scalars

# Below this share of the batch the actor learns from a handful of actions
COLLAPSE = 0.02


class WeightedCloningAlgorithm(OfflineActorCritic):
    """
    Base class; one that derives from it sets ``deterministic_actor`` in its constructor: whether the actor regresses to
    the weighted actions (squared error) instead of maximising their log-likelihood.
    """

    supported_action_spaces = (spaces.Box, spaces.Discrete)
    actor: CloningActor
    deterministic_actor: bool
    _has_warned = False

    def _setup_model(self) -> None:
        super()._setup_model()
        set_deterministic(self.actor, self.deterministic_actor)

    def _cloning_loss(self, batch: Samples, weights: th.Tensor) -> tuple[th.Tensor, Scalars]:
        """
        :param weights: ``(batch,)``, without a gradient
        """
        distribution = self.actor.distribution(batch.observations)
        log_probs = cloning_log_prob(distribution, batch.actions, self.deterministic_actor)
        loss = weighted_cloning_loss(log_probs, weights)
        return loss, {"actor_loss": loss.detach(), **self._weight_metrics(weights)}

    def _weight_metrics(self, weights: th.Tensor) -> Scalars:
        return {
            "weight_mean": weights.mean(),
            "weight_max": weights.max(),
            "effective_sample_size": effective_sample_size(weights),
        }

    def _log_metrics(self, metrics: Metrics) -> None:
        super()._log_metrics(metrics)
        share = metrics.means().get("effective_sample_size")
        if share is not None and share < COLLAPSE and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"The actor's weights have collapsed, {100 * share:.1f} % of a batch count. {self._collapse_fix()}",
                stacklevel=2,
            )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_has_warned"]

    def _collapse_fix(self) -> str:
        raise NotImplementedError

    def _update_constants(self) -> tuple[Any, ...]:
        return (*super()._update_constants(), self.deterministic_actor)
