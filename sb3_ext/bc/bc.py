"""Behaviour cloning."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_ext.common.actors import CloningActor, cloning_log_prob, set_deterministic
from sb3_ext.common.buffers import Samples
from sb3_ext.common.offline_algorithm import OfflineAlgorithm
from sb3_ext.common.offline_policies import CloningCnnPolicy, CloningMultiInputPolicy, CloningPolicy
from sb3_ext.datasets.dataset import Dataset
from sb3_ext.datasets.load import DatasetLike
from sb3_ext.datasets.transforms import TopEpisodes


class BC(OfflineAlgorithm):
    r"""
    Behaviour cloning: :math:`L = -\mathrm{mean}_b \log\pi(a_b|s_b)` over the dataset, or over its best episodes.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a class.
    :param env: Names the spaces where the dataset does not, or None. Nothing is collected in it.
    :param dataset: Whatever :func:`sb3_ext.datasets.load` takes.
    :param dataset_kwargs: Arguments of that function.
    :param top_percent: Clone only this share of the episodes, those with the highest returns, in (0, 100].
    :param deterministic_actor: Regress to the actions (squared error) instead of maximising their log-likelihood.
    :param learning_rate: As all further arguments, see
        :class:`~sb3_ext.common.offline_algorithm.OfflineAlgorithm`.
    :raises sb3_ext.datasets.DatasetError: the dataset is missing, broken or of another environment.
    :raises ValueError: an argument is out of its range.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": CloningPolicy,
        "CnnPolicy": CloningCnnPolicy,
        "MultiInputPolicy": CloningMultiInputPolicy,
    }
    supported_action_spaces = (spaces.Box, spaces.Discrete)
    actor: CloningActor

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None = None,
        dataset: DatasetLike | None = None,
        dataset_kwargs: Mapping[str, Any] | None = None,
        *,
        top_percent: float = 100.0,
        deterministic_actor: bool = False,
        learning_rate: float | str | Schedule = 3e-4,
        batch_size: int = 256,
        standardize_observations: bool = False,
        update_backend: str = "auto",
        matmul_precision: str = "fp32",
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.top_percent = top_percent
        self.deterministic_actor = deterministic_actor
        super().__init__(
            policy,
            env,
            dataset,
            dataset_kwargs,
            learning_rate=learning_rate,
            buffer_size=1,  # nothing is ever collected
            batch_size=batch_size,
            standardize_observations=standardize_observations,
            update_backend=update_backend,
            matmul_precision=matmul_precision,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        set_deterministic(self.actor, self.deterministic_actor)

    def _load_dataset(self) -> Dataset:
        dataset = super()._load_dataset()
        return dataset if self.top_percent == 100 else TopEpisodes(self.top_percent)(dataset)

    def _load_kwargs(self) -> dict[str, Any]:
        # Rewards do not matter where everything is cloned
        return {"allow_constant_rewards": self.top_percent == 100, **super()._load_kwargs()}

    def _check_environment(self) -> None:
        raise ValueError("BC learns from its dataset alone: take AWAC or IQL to go on online, or n_offline_steps=None.")

    def _update(self, batch: Samples, noise: th.Tensor | None) -> dict[str, th.Tensor]:
        distribution = self.actor.distribution(batch.observations)
        loss = -cloning_log_prob(distribution, batch.actions, self.deterministic_actor).mean()
        self.engine.minimize(loss, self.actor.optimizer)
        return {"bc_loss": loss.detach()}

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [self.actor.optimizer]

    def _update_constants(self) -> tuple[Any, ...]:
        return (self.deterministic_actor,)
