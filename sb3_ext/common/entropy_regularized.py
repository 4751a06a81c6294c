"""What Cal-QL and EDAC share: SAC's update on a dataset."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_ext.common.actors import SquashedGaussianActor
from sb3_ext.common.buffers import Samples
from sb3_ext.common.entropy import EntropyCoefficientMixin
from sb3_ext.common.hierarchical_policy import HierarchicalEnsemblePolicy
from sb3_ext.common.losses import mean_q_actor_loss, scaled_cloning_loss
from sb3_ext.common.offline_actor_critic import OfflineActorCritic, Scalars
from sb3_ext.common.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_ext.common.schedules import as_schedule
from sb3_ext.datasets.load import DatasetLike


class EntropyRegularizedAlgorithm(EntropyCoefficientMixin, OfflineActorCritic):
    r"""
    Base class: soft actor-critic (Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905) with the least of all critics
    in the target and in the actor's loss. One that derives from it adds ``_penalty`` to the critics' loss.

    Where critics are to guide an actor after far fewer updates than the papers' million, the actor may hold on to the
    data as in TD3+BC (Fujimoto & Gu 2021, https://arxiv.org/abs/2106.06860):

    .. math::
        L_\pi = \mathrm{mean}\, (\alpha \log \pi(\tilde a|s) - \min_k Q_k(s, \tilde a))
            + \beta\, \mathrm{mean}|Q|\, \mathrm{mean}\, \|\mathrm{mode}\, \pi(s) - a\|^2

    :param ent_coef: Entropy coefficient: a number, ``"auto"``, or ``"auto_0.1"`` with its first value.
    :param target_entropy: Entropy that ``"auto"`` aims at; by default minus the number of action dimensions.
    :param backup_entropy: Targets have the entropy bonus of the next action, as in SAC.
    :param n_critics: Number of critics.
    :param actor_bc_coef: :math:`\beta`, at least 0: how near to the data's actions the actor stays. A number, a
        schedule, or a string such as ``"lin_1.0"``, which leaves more and more to the critics until ``learn`` ends. 0
        (default) for the algorithm as published.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "HierarchicalPolicy": HierarchicalEnsemblePolicy,
    }
    bc_coef_names = ("actor_bc_coef",)
    actor: SquashedGaussianActor

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        dataset: DatasetLike | None = None,
        *,
        ent_coef: float | str = "auto",
        target_entropy: float | str = "auto",
        backup_entropy: bool = True,
        n_critics: int = 2,
        actor_bc_coef: float | str | Schedule = 0.0,
        **kwargs: Any,
    ):
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.backup_entropy = backup_entropy
        self.n_critics = n_critics
        self.actor_bc_coef = actor_bc_coef
        super().__init__(policy, env, dataset, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        of_policy = self.policy_kwargs.get("n_critics", self.n_critics)
        if of_policy != self.n_critics:
            raise ValueError(
                f"{type(self).__name__} has n_critics={self.n_critics}, but policy_kwargs n_critics={of_policy}: it is "
                f"an argument of {type(self).__name__} itself, leave it out there."
            )
        self._make_whole("n_critics", minimum=1)
        self._first_ent_coef()

    def _first_ent_coef(self) -> float:
        text = str(self.ent_coef)
        try:
            value = 1.0 if text == "auto" else float(text.removeprefix("auto_"))
        except ValueError:
            value = -1.0
        if not (value > 0 if text.startswith("auto") else value >= 0):
            raise ValueError(f"ent_coef={self.ent_coef!r}: write a number that is not negative, 'auto' or 'auto_0.1'.")
        return value

    def _setup_model(self) -> None:
        self.policy_kwargs = {**self.policy_kwargs, "n_critics": self.n_critics}
        super()._setup_model()
        if self.target_entropy == "auto":
            self.target_entropy = -float(np.prod(self.actor.action_space.shape))  # type: ignore[arg-type]
        first = self._first_ent_coef()
        self.log_ent_coef, self.ent_coef_optimizer = None, None
        if str(self.ent_coef).startswith("auto"):
            self.log_ent_coef = th.tensor([first], device=self.device).log().requires_grad_(True)
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
        else:
            self.ent_coef_tensor = th.tensor(first, device=self.device)

    @property
    def n_noise(self) -> int:  # type: ignore[override]
        return 2

    def _update(self, batch: Samples, noise: th.Tensor | None) -> Scalars:
        assert noise is not None
        q_values = self.critic(batch.observations, batch.actions)
        bellman_loss, metrics = self._bellman_loss(batch, q_values, self._next_values(batch, noise))
        penalty, penalty_metrics = self._penalty(batch, q_values, noise)
        policy = self.actor.distribution(batch.observations)
        actions, log_prob = policy.rsample_log_prob(noise[1])
        log_prob = log_prob.unsqueeze(1)
        ent_coef = self._ent_coef()
        self.engine.minimize(bellman_loss + penalty, self.critic.optimizer)
        # After the critics' step, as in SAC
        values = self.critic(batch.observations, actions, frozen=True).amin(dim=0, keepdim=True)
        actor_loss = mean_q_actor_loss(values, log_prob, ent_coef)
        metrics = {**metrics, **penalty_metrics}
        if self._clones:
            distances = (policy.mode - batch.actions).square().sum(dim=1)
            actor_loss = actor_loss + scaled_cloning_loss(values, distances, self._bc_coefs["actor_bc_coef"])
            metrics["bc_loss"] = distances.detach().mean()
        self.engine.minimize(actor_loss, self.actor.optimizer)
        ent_coef_loss = self._ent_coef_loss(log_prob)
        if ent_coef_loss is not None:
            assert self.ent_coef_optimizer is not None
            self.engine.minimize(ent_coef_loss, self.ent_coef_optimizer)
        self.engine.polyak(self.critic, self.critic_target, self.tau)
        return {**metrics, "actor_loss": actor_loss.detach(), "ent_coef": ent_coef.mean()}

    @property
    def _clones(self) -> bool:
        return callable(self.actor_bc_coef) or as_schedule(self.actor_bc_coef, "actor_bc_coef")(1.0) > 0

    def _penalty(self, batch: Samples, q_values: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, Scalars]:
        """What is added to the Bellman loss of the critics, whose values of the batch's actions are given."""
        raise NotImplementedError

    @th.no_grad()
    def _next_values(self, batch: Samples, noise: th.Tensor) -> th.Tensor:
        """Soft values of what transitions lead to, ``(batch, 1)``."""
        actions, log_prob = self.actor.action_log_prob(batch.next_observations, noise[0])
        values = self.critic_target(batch.next_observations, actions).amin(dim=0)
        return values - self._ent_coef() * log_prob.unsqueeze(1) if self.backup_entropy else values

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [*super()._optimizers(), *self._ent_coef_optimizers()]

    def _update_constants(self) -> tuple[Any, ...]:
        return (*super()._update_constants(), self.backup_entropy, self._clones, *self._ent_coef_constants())

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        if self.log_ent_coef is None:
            return modules, [*tensors, "ent_coef_tensor"]
        return [*modules, "ent_coef_optimizer"], [*tensors, "log_ent_coef"]
