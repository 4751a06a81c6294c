"""Cal-QL: conservative Q-learning that stays above the values of the data's policy."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from sb3_ext.common.buffers import OfflineSamples, Samples
from sb3_ext.common.entropy_regularized import EntropyRegularizedAlgorithm
from sb3_ext.common.losses import conservative_loss
from sb3_ext.common.offline_actor_critic import Scalars
from sb3_ext.datasets.load import DatasetLike


class CalQL(EntropyRegularizedAlgorithm):
    r"""
    Calibrated Q-learning (Nakamoto et al. 2023, https://arxiv.org/abs/2303.05479): conservative Q-learning (CQL, Kumar
    et al. 2020, https://arxiv.org/abs/2006.04779) that does not push values of the policy's actions below the data's
    returns, so that learning goes on online without a dip.

    .. math::
        L_Q = \tfrac{1}{2} \sum_k \mathrm{mean}\, (Q_k(s, a) - y)^2 + \tfrac{\alpha}{2} \sum_k \mathrm{mean} \left(
            \log \tfrac{1}{3 m} \sum_j \tfrac{e^{Q_k(s, a_j)}}{p(a_j)} - Q_k(s, a) \right)

    with m actions each that are uniform, of :math:`\pi(s)` and of :math:`\pi(s')`; :math:`\max(Q, R)` stands for the
    values of the policy's, R being the return from the transition to the end of its episode. At a time limit the mean
    reward goes on for ever (:func:`~sb3_ext.common.buffers.returns_to_go`): a lower bound where rewards are the same
    up to the goal, as in mazes, and a guess elsewhere. With ``calibrate=False`` it is CQL. Both terms have half the
    weight that they have in the authors' code, so that their values of :math:`\alpha` apply.

    :param policy: see :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`, as all further arguments
    :param env: Environment for online training, or None.
    :param dataset: Whatever :func:`sb3_ext.datasets.load` takes.
    :param cql_alpha: :math:`\alpha`, at least 0.
    :param n_actions: m, at least 1.
    :param calibrate: False for CQL.
    :param max_target_backup: Targets have the greatest value of m next actions, instead of that of one.
    :param backup_entropy: Targets have the entropy bonus of the next action; the authors leave it out, since returns of
        the data have none.
    :param kwargs: Arguments of :class:`~sb3_ext.common.entropy_regularized.EntropyRegularizedAlgorithm`, of
        :class:`~sb3_ext.common.offline_actor_critic.OfflineActorCritic` and of
        :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`.
    """

    buffer_extras: ClassVar[Mapping[str, bool]] = {"returns": True}

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        dataset: DatasetLike | None = None,
        *,
        cql_alpha: float = 5.0,
        n_actions: int = 10,
        calibrate: bool = True,
        max_target_backup: bool = False,
        backup_entropy: bool = False,
        **kwargs: Any,
    ):
        self.cql_alpha = cql_alpha
        self.n_actions = n_actions
        self.calibrate = calibrate
        self.max_target_backup = max_target_backup
        super().__init__(policy, env, dataset, backup_entropy=backup_entropy, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not self.cql_alpha >= 0:
            raise ValueError(f"cql_alpha={self.cql_alpha} must be at least 0.")
        self._make_whole("n_actions", minimum=1)

    @property
    def n_noise(self) -> int:  # type: ignore[override]
        # For the target and the actor; for uniform actions and those of the policy at both ends of transitions
        return 2 + 3 * self.n_actions

    @th.no_grad()
    def _next_values(self, batch: Samples, noise: th.Tensor) -> th.Tensor:
        if not self.max_target_backup:
            return super()._next_values(batch, noise)
        actions, log_prob = self.actor.distribution(batch.next_observations).rsample_log_prob(
            self._policy_noise(noise)[1]
        )
        # (n_critics, n_actions, batch, 1) -> (n_actions, batch)
        values = self.critic_target.several(batch.next_observations, actions).amin(dim=0).squeeze(2)
        best = values.argmax(dim=0, keepdim=True)
        bonus = self._ent_coef() * log_prob.gather(0, best) if self.backup_entropy else 0.0
        return (values.gather(0, best) - bonus).transpose(0, 1)

    def _policy_noise(self, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """For actions at both ends of transitions, ``(n_actions, batch, action_dim)`` each."""
        here, there = noise[2 + self.n_actions :].chunk(2)
        return here, there

    def _penalty(self, batch: Samples, q_values: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, Scalars]:
        assert isinstance(batch, OfflineSamples) and batch.returns is not None
        actions, log_densities = self._sampled_actions(batch, noise)
        # (n_critics, 3 n_actions, batch)
        values = self.critic.several(batch.observations, actions).squeeze(3)
        metrics = {}
        if self.calibrate:
            returns = batch.returns.squeeze(1)
            uniform, of_policy = values.split([self.n_actions, 2 * self.n_actions], dim=1)
            metrics["calibrated_share"] = (of_policy < returns).float().mean()
            values = th.cat([uniform, th.maximum(of_policy, returns)], dim=1)
        loss = conservative_loss(values, log_densities, q_values.squeeze(2))
        return 0.5 * self.cql_alpha * loss, {**metrics, "cql_loss": loss.detach()}

    @th.no_grad()
    def _sampled_actions(self, batch: Samples, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Actions, ``(3 n_actions, batch, action_dim)``, and the logarithms of the densities they are drawn from."""
        # Normal noise -> uniform in [-1, 1]
        uniform = th.erf(noise[2 : 2 + self.n_actions] / math.sqrt(2))
        log_uniform = th.full_like(uniform[..., 0], -uniform.shape[-1] * math.log(2))
        drawn = [(uniform, log_uniform)]
        for obs, part in zip((batch.observations, batch.next_observations), self._policy_noise(noise), strict=True):
            drawn.append(self.actor.distribution(obs).rsample_log_prob(part))
        actions, log_densities = zip(*drawn, strict=True)
        return th.cat(actions), th.cat(log_densities)

    def _update_constants(self) -> tuple[Any, ...]:
        return (
            *super()._update_constants(),
            self.cql_alpha,
            self.n_actions,
            self.calibrate,
            self.max_target_backup,
        )
