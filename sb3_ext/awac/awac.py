"""AWAC: advantage-weighted actor-critic."""

from typing import Any, ClassVar, Literal

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from sb3_ext.common.buffers import Samples
from sb3_ext.common.hierarchical_policy import HierarchicalWeightedCloningPolicy
from sb3_ext.common.losses import exponential_weights, softmax_weights
from sb3_ext.common.offline_policies import (
    WeightedCloningCnnPolicy,
    WeightedCloningMultiInputPolicy,
    WeightedCloningPolicy,
)
from sb3_ext.common.weighted_cloning import Scalars, WeightedCloningAlgorithm
from sb3_ext.datasets.load import DatasetLike

WEIGHTINGS = ("exponential", "softmax")


class AWAC(WeightedCloningAlgorithm):
    r"""
    Advantage-weighted actor-critic (Nair et al. 2020, https://arxiv.org/abs/2006.09359).

    .. math::
        y &= r + \gamma (1 - d) \min_k Q_{\bar k}(s', a'), \quad a' \sim \pi(s') \\
        A(s, a) &= \min_k Q_k(s, a) - \mathrm{mean}_j \min_k Q_k(s, a_j), \quad a_j \sim \pi(s) \\
        L_\pi &= -\mathrm{mean}_b\, w_b \log\pi(a_b|s_b), \quad w = \min(e^{A / \lambda}, w_{max})

    :param policy: see :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`, as all further arguments
    :param env: Environment for online training, or None.
    :param dataset: Whatever :func:`sb3_ext.datasets.load` takes.
    :param awac_lambda: Temperature of the weights, above 0: large values clone everything, small ones the best actions.
    :param weighting: ``"exponential"``, or ``"softmax"`` over the batch, whose weights have a mean of 1.
    :param max_weight: The greatest exponential weight.
    :param n_value_samples: Actions of the policy that the value of a state is the mean of.
    :param deterministic_actor: Regress to the weighted actions instead of maximising their log-likelihood.
    :param kwargs: Arguments of :class:`~sb3_ext.common.offline_actor_critic.OfflineActorCritic`, such as
        ``actor_learning_rate``, and of :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": WeightedCloningPolicy,
        "CnnPolicy": WeightedCloningCnnPolicy,
        "MultiInputPolicy": WeightedCloningMultiInputPolicy,
        "HierarchicalPolicy": HierarchicalWeightedCloningPolicy,
    }

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        dataset: DatasetLike | None = None,
        *,
        awac_lambda: float = 1.0,
        weighting: Literal["exponential", "softmax"] = "exponential",
        max_weight: float = 100.0,
        n_value_samples: int = 1,
        deterministic_actor: bool = False,
        **kwargs: Any,
    ):
        self.awac_lambda = awac_lambda
        self.weighting = weighting
        self.max_weight = max_weight
        self.n_value_samples = n_value_samples
        self.deterministic_actor = deterministic_actor
        super().__init__(policy, env, dataset, **kwargs)

    @property
    def n_noise(self) -> int:  # type: ignore[override]
        return 1 + self.n_value_samples

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not self.awac_lambda > 0 or not self.max_weight > 0:
            raise ValueError(f"awac_lambda={self.awac_lambda} and max_weight={self.max_weight} must be above 0.")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting={self.weighting!r} must be one of {WEIGHTINGS}.")
        self._make_whole("n_value_samples", minimum=1)

    def _update(self, batch: Samples, noise: th.Tensor | None) -> Scalars:
        assert noise is not None
        q_values = self.critic(batch.observations, batch.actions)
        critic_loss, metrics = self._bellman_loss(batch, q_values, self._next_values(batch, noise[0]))
        advantages = q_values.detach().amin(dim=0) - self._values(batch, noise[1:])
        actor_loss, actor_metrics = self._cloning_loss(batch, self._weights(advantages.squeeze(1)))
        self.engine.minimize(critic_loss, self.critic.optimizer)
        self.engine.minimize(actor_loss, self.actor.optimizer)
        self.engine.polyak(self.critic, self.critic_target, self.tau)
        return {**metrics, **actor_metrics, "advantage_mean": advantages.mean()}

    @th.no_grad()
    def _next_values(self, batch: Samples, noise: th.Tensor) -> th.Tensor:
        """Values of what transitions lead to, by one action of the policy and the target critics, ``(batch, 1)``."""
        actions = self.actor.sample(batch.next_observations, noise)
        return self.critic_target(batch.next_observations, actions).amin(dim=0)

    @th.no_grad()
    def _values(self, batch: Samples, noise: th.Tensor) -> th.Tensor:
        """Values of states, ``(batch, 1)``, by noise of shape ``(n_value_samples, batch, action_dim)``."""
        actions = self.actor.sample(batch.observations, noise)
        values = [self.critic(batch.observations, sample).amin(dim=0) for sample in actions]
        return th.stack(values).mean(dim=0)

    def _weights(self, advantages: th.Tensor) -> th.Tensor:
        if self.weighting == "softmax":
            return softmax_weights(advantages, self.awac_lambda)
        return exponential_weights(advantages, self.awac_lambda, self.max_weight)

    def _collapse_fix(self) -> str:
        other = "" if self.weighting == "softmax" else ", or use weighting='softmax'"
        return f"Raise awac_lambda, which is {self.awac_lambda}{other}."

    def _update_constants(self) -> tuple[Any, ...]:
        return (*super()._update_constants(), self.awac_lambda, self.weighting, self.max_weight, self.n_value_samples)
