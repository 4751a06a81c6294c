"""Makes RL Zoo know our algorithms, search spaces, configurations and environments."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import rl_zoo3.enjoy
import rl_zoo3.exp_manager
import rl_zoo3.train
from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_ext_envs
from rl_zoo_configs import config_path
from sb3_ext.awac import AWAC
from sb3_ext.bc import BC
from sb3_ext.bcppo import BCPPO
from sb3_ext.calql import CalQL
from sb3_ext.common.offline_algorithm import OfflineAlgorithm
from sb3_ext.datasets import DatasetError, load, make_eval_env
from sb3_ext.datasets.dataset import registered_spec
from sb3_ext.datasets.environments import with_flat_maze
from sb3_ext.edac import EDAC
from sb3_ext.iql import IQL
from sb3_ext.rebrac import ReBRAC
from sb3_ext.redq import REDQ
from sb3_ext.zoo import samplers


@dataclass(frozen=True)
class ZooEntry:
    """What RL Zoo must know of an algorithm."""

    algorithm: type[BaseAlgorithm]
    sampler: Callable[..., dict[str, Any]]
    converter: Callable[..., dict[str, Any]] = samplers.convert_params


ALGORITHMS: dict[str, ZooEntry] = {
    "bcppo": ZooEntry(BCPPO, samplers.sample_bcppo_params),
    "redq": ZooEntry(REDQ, samplers.sample_redq_params),
    "bc": ZooEntry(BC, samplers.sample_bc_params),
    "awac": ZooEntry(AWAC, samplers.sample_awac_params),
    "iql": ZooEntry(IQL, samplers.sample_iql_params),
    "rebrac": ZooEntry(ReBRAC, samplers.sample_rebrac_params),
    "calql": ZooEntry(CalQL, samplers.sample_calql_params),
    "edac": ZooEntry(EDAC, samplers.sample_edac_params),
}


class ExperimentManager(rl_zoo3.exp_manager.ExperimentManager):
    """RL Zoo's, with our configuration files by default, and for offline algorithms with the data's environment."""

    env_kwargs: dict[str, Any]
    eval_env_kwargs: dict[str, Any]

    def __init__(self, args: Any, algo: str, *positional: Any, config: str | None = None, **kwargs: Any):
        if config is None and algo in ALGORITHMS:
            config = str(config_path(algo))
        super().__init__(args, algo, *positional, config=config, **kwargs)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        hyperparams, saved_hyperparams = super().read_hyperparameters()
        entry = ALGORITHMS.get(self.algo)
        if entry is not None and issubclass(entry.algorithm, OfflineAlgorithm):
            if hyperparams.get("dataset") is None:
                raise DatasetError(
                    f"{self.algo} learns from a dataset: --hyperparams dataset:\"'...'\" with a name or a path "
                    "(see sb3_ext.datasets.load), or dataset: in the configuration."
                )
            env_kwargs = self._env_kwargs_of_dataset(hyperparams)
            if self.env_kwargs:  # from the command line: `enjoy` takes these in place of the configuration's
                self.args.env_kwargs = env_kwargs
            self.env_kwargs, self.eval_env_kwargs = env_kwargs, {**env_kwargs, **(self._eval_env_kwargs_args or {})}
            hyperparams["env_kwargs"] = saved_hyperparams["env_kwargs"] = env_kwargs
        return hyperparams, saved_hyperparams

    def _env_kwargs_of_dataset(self, hyperparams: dict[str, Any]) -> dict[str, Any]:
        """
        Arguments with which the environment is that of the recording (coordinates of a maze, where episodes start),
        changed by those that were given. A warning tells where they do not make it fit.
        """
        given = {**hyperparams.get("env_kwargs", {}), **self.env_kwargs}
        registered = gym.spec(self.env_name.gym_id)
        # What cannot be learnt from is for the algorithm to say
        dataset_kwargs = {**hyperparams.get("dataset_kwargs", {}), "allow_constant_rewards": True}
        dataset = with_flat_maze(load(hyperparams["dataset"], **dataset_kwargs))
        if dataset.env_id is None:
            dataset = dataset.with_metadata(env_id=registered.id)
        recorded: dict[str, Any] = {}
        try:
            spec = registered_spec(dataset.metadata)
            assert spec is not None
            if spec.id != registered.id:
                raise DatasetError(f"{dataset.source} was recorded in {spec.id}.")
            recorded = {key: value for key, value in spec.kwargs.items() if registered.kwargs.get(key) != value}
            if spec.max_episode_steps != registered.max_episode_steps:
                recorded["max_episode_steps"] = spec.max_episode_steps
            env = make_eval_env(dataset, **given)
            wrappers: list[str] = env.unwrapped.dataset_transforms  # type: ignore[attr-defined]
            env.close()
            if wrappers and "env_wrapper" not in hyperparams:
                raise DatasetError(
                    f"{dataset.source} went through {', '.join(wrappers)}, which the environment does not: set "
                    "env_wrapper, or standardize_observations=True of the algorithm in place of the transform."
                )
        except DatasetError as error:
            warnings.warn(f"{registered.id} may not be the environment of the data: {error}", stacklevel=2)
        return {**recorded, **given}

    def _preprocess_schedules(self, hyperparams: dict[str, Any]) -> dict[str, Any]:
        # Ours read strings themselves. RL Zoo would make a straight line of "cos_3e-4"
        return hyperparams if self.algo in ALGORITHMS else super()._preprocess_schedules(hyperparams)

    def create_callbacks(self) -> None:
        # RL Zoo evaluates every 25,000 steps by default; our algorithms may be done by then
        if self.algo in ALGORITHMS and self.eval_freq > self.n_timesteps:
            self.eval_freq: int = max(self.n_timesteps // 10, 1)
            print(f"Evaluating every {self.eval_freq} steps (--eval-freq is longer than the run)")
        super().create_callbacks()


def register() -> None:
    """
    Register algorithms, samplers, converters, configurations and environments with ``rl_zoo3``. Idempotent.

    Afterwards ``rl_zoo3.train.train()`` and ``rl_zoo3.enjoy.enjoy()`` take ``--algo iql``, in the same process.
    """
    sb3_ext_envs.register_envs()
    for name, entry in ALGORITHMS.items():
        # RL Zoo's modules share these dictionaries, so they are changed in place
        ALGOS[name] = entry.algorithm
        HYPERPARAMS_SAMPLER[name] = entry.sampler
        HYPERPARAMS_CONVERTER[name] = entry.converter
    for module in (rl_zoo3.exp_manager, rl_zoo3.train, rl_zoo3.enjoy):
        module.ExperimentManager = ExperimentManager
