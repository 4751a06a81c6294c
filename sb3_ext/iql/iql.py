"""IQL: implicit Q-learning."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from sb3_ext.common.buffers import Samples
from sb3_ext.common.hierarchical_policy import HierarchicalValuePolicy
from sb3_ext.common.losses import expectile_loss, exponential_weights, td_target
from sb3_ext.common.offline_policies import (
    ValueCnnPolicy,
    ValueMultiInputPolicy,
    ValueNetwork,
    ValuePolicy,
)
from sb3_ext.common.weighted_cloning import Scalars, WeightedCloningAlgorithm
from sb3_ext.datasets.load import DatasetLike


class IQL(WeightedCloningAlgorithm):
    r"""
    Implicit Q-learning (Kostrikov et al. 2021, https://arxiv.org/abs/2110.06169): no action outside the data is ever
    judged.

    .. math::
        L_V &= \mathrm{mean}\, |\tau - 1_{A < 0}|\, A^2, \quad A = \min_k Q_{\bar k}(s, a) - V(s) \\
        L_Q &= \mathrm{mean}\, (r + \gamma (1 - d) V(s') - Q_k(s, a))^2 \\
        L_\pi &= -\mathrm{mean}\, \min(e^{\beta A}, w_{max}) \log\pi(a|s)

    With ``action_values=False`` there are no critics, and the data's own returns take their place: implicit V-learning
    (the value function of Park et al. 2023, https://arxiv.org/abs/2307.11949).

    .. math::
        A = r_t + \dots + \gamma^{n - 1} r_{t + n - 1} + \gamma^n (1 - d) V(s_{t + n}) - V(s_t)

    n is ``n_steps``, less where an episode ends before; d is 1 where it terminates. Unlike there, V and the actor have
    the same n steps, and V is its own target. n steps show where the data were heading, which one action hardly does,
    at half the work. It needs an environment with little chance in it: V takes good luck for good actions.

    With :class:`~sb3_ext.common.hierarchical_policy.HierarchicalPolicy` that is HIQL (Park et al. 2023) for a single
    task: V of where one is weighs where the data went in n steps. Unlike there, subgoals are differences of
    observations instead of learnt codes, and no V of subgoals weighs the actions that lead there.

    :param policy: see :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`, as all further arguments
    :param env: Environment for online training, or None.
    :param dataset: Whatever :func:`sb3_ext.datasets.load` takes.
    :param expectile: Which expectile of the data's values V is, in (0, 1): 0.5 their mean, towards 1 the best.
    :param weight_temp: Inverse temperature :math:`\beta` of the weights, at least 0; 0 clones everything.
    :param max_weight: The greatest weight.
    :param action_values: False for implicit V-learning, with ``n_steps`` of 20 to 50, say. The critics then stay as
        they are: ``tau`` and what ``policy_kwargs`` says of them (``n_critics``, ``layer_norm``) have no effect.
    :param deterministic_actor: Regress to the weighted actions instead of maximising their log-likelihood.
    :param kwargs: Arguments of :class:`~sb3_ext.common.offline_actor_critic.OfflineActorCritic`, such as
        ``actor_learning_rate`` (the paper's is ``"cos_3e-4"``), and of
        :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`.
    :raises ValueError: an argument is out of its range.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ValuePolicy,
        "CnnPolicy": ValueCnnPolicy,
        "MultiInputPolicy": ValueMultiInputPolicy,
        "HierarchicalPolicy": HierarchicalValuePolicy,
    }
    value: ValueNetwork

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        dataset: DatasetLike | None = None,
        *,
        expectile: float = 0.7,
        weight_temp: float = 3.0,
        max_weight: float = 100.0,
        action_values: bool = True,
        deterministic_actor: bool = False,
        **kwargs: Any,
    ):
        self.expectile = expectile
        self.weight_temp = weight_temp
        self.max_weight = max_weight
        self.action_values = action_values
        self.deterministic_actor = deterministic_actor
        super().__init__(policy, env, dataset, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not 0 < self.expectile < 1:
            raise ValueError(f"expectile={self.expectile} must be in (0, 1).")
        if not isinstance(self.action_values, bool):
            raise ValueError(f"action_values={self.action_values!r} must be True or False.")
        if not self.weight_temp >= 0 or not self.max_weight > 0:
            raise ValueError(
                f"weight_temp={self.weight_temp} must be at least 0, max_weight={self.max_weight} above 0."
            )

    def _update_name(self, n: int) -> str:
        return "_update" if self.action_values else "_update_without_critics"

    def _update(self, batch: Samples, noise: th.Tensor | None) -> Scalars:
        with th.no_grad():
            # (n_critics, batch, 1) -> (batch, 1)
            targets = self.critic_target(batch.observations, batch.actions).amin(dim=0)
            next_values = self.value(batch.next_observations)
        q_values = self.critic(batch.observations, batch.actions)
        critic_loss, metrics = self._bellman_loss(batch, q_values, next_values)
        actor_metrics = self._update_value_and_actor(batch, targets)
        self.engine.minimize(critic_loss, self.critic.optimizer)
        self.engine.polyak(self.critic, self.critic_target, self.tau)
        return {**metrics, **actor_metrics}

    def _update_without_critics(self, batch: Samples, noise: th.Tensor | None) -> Scalars:
        with th.no_grad():
            next_values = self.value(batch.next_observations)
        targets = td_target(batch.rewards, batch.dones, self._discounts(batch), next_values)
        return self._update_value_and_actor(batch, targets)

    def _update_value_and_actor(self, batch: Samples, targets: th.Tensor) -> Scalars:
        """
        :param targets: that V is an expectile of, ``(batch, 1)``, without a gradient
        """
        advantages = targets - self.value(batch.observations)
        value_loss = expectile_loss(advantages, self.expectile)
        advantages = advantages.detach().squeeze(1)
        actor_loss, metrics = self._cloning_loss(batch, self._weights(advantages))
        self.engine.minimize(value_loss, self.value.optimizer)
        self.engine.minimize(actor_loss, self.actor.optimizer)
        return {**metrics, "value_loss": value_loss.detach(), "advantage_mean": advantages.mean()}

    def _weights(self, advantages: th.Tensor) -> th.Tensor:
        if self.weight_temp == 0:
            return th.ones_like(advantages)
        return exponential_weights(advantages, 1 / self.weight_temp, self.max_weight)

    def _collapse_fix(self) -> str:
        steps = "" if self.action_values else f", or n_steps, which is {self.n_steps}"
        return f"Lower weight_temp, which is {self.weight_temp}, or expectile, which is {self.expectile}{steps}."

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [*super()._optimizers(), self.value.optimizer]

    def _update_constants(self) -> tuple[Any, ...]:
        return (*super()._update_constants(), self.expectile, self.weight_temp, self.max_weight)
