"""ReBRAC: TD3 with behaviour cloning in the actor and in the critic."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_ext.common.actors import DeterministicActor
from sb3_ext.common.buffers import OfflineSamples, Samples
from sb3_ext.common.losses import cloned_td3_actor_loss
from sb3_ext.common.offline_actor_critic import OfflineActorCritic, Scalars
from sb3_ext.datasets.load import DatasetLike
from sb3_ext.rebrac.policies import CnnPolicy, HierarchicalPolicy, MlpPolicy, MultiInputPolicy


class ReBRAC(OfflineActorCritic):
    r"""
    Revisited behaviour-regularised actor-critic (Tarasov et al. 2023, https://arxiv.org/abs/2305.09836): TD3 whose
    actor stays near the data's actions, and whose critic takes off what it may be wrong by away from them.

    .. math::
        y &= r + \gamma (1 - d) (\min_k Q_{\bar k}(s', \tilde a) - \beta_2 \|\tilde a - a'\|^2), \quad
            \tilde a = \bar\pi(s') + \mathrm{clip}(\epsilon) \\
        L_\pi &= \mathrm{mean}\, \beta_1 \|\pi(s) - a\|^2 - \min_k Q_k(s, \pi(s)) / \mathrm{mean}|Q|

    where :math:`a'` is the data's next action; at the end of an episode there is none, and nothing is taken off. With
    ``critic_bc_coef=0``, ``min_q_actor=False`` and ``policy_kwargs=dict(layer_norm=False, net_arch=[256, 256])`` it is
    TD3+BC (Fujimoto & Gu 2021, https://arxiv.org/abs/2106.06860), with :math:`\beta_1 = 1 / (2.5 \dim(a))` for its
    :math:`\alpha` of 2.5.

    :param policy: see :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`, as all further arguments
    :param env: Environment for online training, or None.
    :param dataset: Whatever :func:`sb3_ext.datasets.load` takes.
    :param actor_bc_coef: :math:`\beta_1`, at least 0: how near to the data's actions the actor stays. A number, a
        schedule, or a string such as ``"lin_1.0"``, which leaves more and more to the critics until ``learn`` ends.
    :param critic_bc_coef: :math:`\beta_2`, at least 0: how much a value loses with the distance from them; likewise.
    :param normalize_q: Divide the actor's Q-values by their mean size, so that :math:`\beta_1` does not depend on the
        rewards' scale.
    :param min_q_actor: The actor climbs the least of the critics' values; False for the first critic's.
    :param policy_delay: Critic updates for each update of the actor and the targets.
    :param target_policy_noise: Standard deviation of the noise on target actions, whose range is [-1, 1].
    :param target_noise_clip: The largest such noise.
    :param kwargs: Arguments of :class:`~sb3_ext.common.offline_actor_critic.OfflineActorCritic`, such as
        ``actor_learning_rate``, and of :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "HierarchicalPolicy": HierarchicalPolicy,
    }
    deterministic_actor = True
    bc_coef_names = ("actor_bc_coef", "critic_bc_coef")
    n_noise = 1
    actor: DeterministicActor
    actor_target: DeterministicActor

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        dataset: DatasetLike | None = None,
        *,
        actor_bc_coef: float | str | Schedule = 0.01,
        critic_bc_coef: float | str | Schedule = 0.01,
        normalize_q: bool = True,
        min_q_actor: bool = True,
        policy_delay: int = 2,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        **kwargs: Any,
    ):
        self.actor_bc_coef = actor_bc_coef
        self.critic_bc_coef = critic_bc_coef
        self.normalize_q = normalize_q
        self.min_q_actor = min_q_actor
        self.policy_delay = policy_delay
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        super().__init__(policy, env, dataset, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for name in ("target_policy_noise", "target_noise_clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0.")
        self._make_whole("policy_delay", minimum=1)

    def _check_hierarchy(self) -> None:
        super()._check_hierarchy()
        if self._is_hierarchical and self.critic_bc_coef != 0:
            raise ValueError(
                f"critic_bc_coef={self.critic_bc_coef!r} needs the data's next action, and where subgoals are actions "
                "the next one is n steps away: critic_bc_coef=0 with HierarchicalPolicy."
            )

    @property
    def buffer_extras(self) -> Mapping[str, bool]:  # type: ignore[override]
        return {} if self._is_hierarchical else {"next_actions": True}

    def _update_name(self, n: int) -> str:
        return "_update_critic" if n % self.policy_delay else "_update"

    def _update(self, batch: Samples, noise: th.Tensor | None) -> Scalars:
        metrics = self._update_critic(batch, noise)
        actions = self.actor.mean(batch.observations)
        q_values = self.critic(batch.observations, actions, frozen=True)
        q_values = q_values.amin(dim=0) if self.min_q_actor else q_values[0]
        distances = (actions - batch.actions).square().sum(dim=1, keepdim=True)
        loss = cloned_td3_actor_loss(q_values, distances, self._bc_coefs["actor_bc_coef"], self.normalize_q)
        self.engine.minimize(loss, self.actor.optimizer)
        self.engine.polyak(self.critic, self.critic_target, self.tau)
        self.engine.polyak(self.actor, self.actor_target, self.tau)
        return {**metrics, "actor_loss": loss.detach(), "bc_loss": distances.detach().mean()}

    def _update_critic(self, batch: Samples, noise: th.Tensor | None) -> Scalars:
        assert noise is not None
        q_values = self.critic(batch.observations, batch.actions)
        loss, metrics = self._bellman_loss(batch, q_values, self._next_values(batch, noise[0]))
        self.engine.minimize(loss, self.critic.optimizer)
        return metrics

    @th.no_grad()
    def _next_values(self, batch: Samples, noise: th.Tensor) -> th.Tensor:
        """Values of what transitions lead to, less the penalty, ``(batch, 1)``."""
        clip = self.target_noise_clip
        noise = (noise * self.target_policy_noise).clamp(-clip, clip)
        actions = (self.actor_target.mean(batch.next_observations) + noise).clamp(-1, 1)
        values = self.critic_target(batch.next_observations, actions).amin(dim=0)
        if self._is_hierarchical:
            return values
        assert (
            isinstance(batch, OfflineSamples) and batch.next_actions is not None and batch.has_next_action is not None
        )
        distances = (actions - batch.next_actions).square().sum(dim=1, keepdim=True)
        return values - self._bc_coefs["critic_bc_coef"] * batch.has_next_action * distances

    def _update_constants(self) -> tuple[Any, ...]:
        return (
            *super()._update_constants(),
            self.normalize_q,
            self.min_q_actor,
            self.target_policy_noise,
            self.target_noise_clip,
        )
