"""Behaviour cloning."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from sb3_ext.common.buffers import Samples
from sb3_ext.common.offline_algorithm import OfflineAlgorithm
from sb3_ext.common.offline_policies import CloningCnnPolicy, CloningMultiInputPolicy, CloningPolicy, GaussianActor
from sb3_ext.common.weighted_cloning import cloning_log_prob
from sb3_ext.datasets.dataset import Dataset
from sb3_ext.datasets.transforms import TopEpisodes


class BC(OfflineAlgorithm):
    r"""
    Behaviour cloning: :math:`L = -\mathrm{mean}_b \log\pi(a_b|s_b)` over the dataset, or over its best episodes.

    :param policy: see :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`, as all further arguments
    :param top_percent: Clone only this share of the episodes, those with the highest returns, in (0, 100].
    :param deterministic_actor: Regress to the actions (squared error) instead of maximising their log-likelihood.
    :param kwargs: Arguments of :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": CloningPolicy,
        "CnnPolicy": CloningCnnPolicy,
        "MultiInputPolicy": CloningMultiInputPolicy,
    }
    actor: GaussianActor

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        *args: Any,
        top_percent: float = 100.0,
        deterministic_actor: bool = False,
        **kwargs: Any,
    ):
        self.top_percent = top_percent
        self.deterministic_actor = deterministic_actor
        super().__init__(policy, env, *args, **kwargs)

    def _load_dataset(self) -> Dataset:
        # Rewards do not matter where everything is cloned
        self.dataset_kwargs.setdefault("allow_constant_rewards", self.top_percent == 100)
        dataset = super()._load_dataset()
        return dataset if self.top_percent == 100 else TopEpisodes(self.top_percent)(dataset)

    def _update(self, batch: Samples, noise: th.Tensor | None) -> dict[str, th.Tensor]:
        loss = -cloning_log_prob(self.actor, batch, self.deterministic_actor).mean()
        self.engine.minimize(loss, self.actor.optimizer)
        return {"bc_loss": loss.detach()}

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [self.actor.optimizer]

    def _update_constants(self) -> tuple[Any, ...]:
        return (self.deterministic_actor,)
