"""Makes RL Zoo know our algorithms, search spaces, configurations and environments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rl_zoo3.enjoy
import rl_zoo3.exp_manager
import rl_zoo3.train
from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_ext_envs
from rl_zoo_configs import config_path
from sb3_ext.redq import REDQ
from sb3_ext.zoo.samplers import convert_redq_params, sample_redq_params


@dataclass(frozen=True)
class ZooEntry:
    """What RL Zoo must know of an algorithm."""

    algorithm: type[BaseAlgorithm]
    sampler: Callable[..., dict[str, Any]]
    converter: Callable[..., dict[str, Any]]


ALGORITHMS: dict[str, ZooEntry] = {
    "redq": ZooEntry(REDQ, sample_redq_params, convert_redq_params),
}


class ExperimentManager(rl_zoo3.exp_manager.ExperimentManager):
    """RL Zoo's, with our configuration files as the default for our algorithms."""

    def __init__(self, args: Any, algo: str, *positional: Any, config: str | None = None, **kwargs: Any):
        if config is None and algo in ALGORITHMS:
            config = str(config_path(algo))
        super().__init__(args, algo, *positional, config=config, **kwargs)

    def create_callbacks(self) -> None:
        # RL Zoo evaluates every 25,000 steps by default; our algorithms may be done by then
        if self.algo in ALGORITHMS and self.eval_freq > self.n_timesteps:
            self.eval_freq: int = max(self.n_timesteps // 10, 1)
            print(f"Evaluating every {self.eval_freq} steps (--eval-freq is longer than the run)")
        super().create_callbacks()


def register() -> None:
    """
    Register algorithms, samplers, converters, configurations and environments with ``rl_zoo3``. Idempotent.

    Afterwards ``rl_zoo3.train.train()`` and ``rl_zoo3.enjoy.enjoy()`` take ``--algo redq``, in the same process.
    """
    sb3_ext_envs.register_envs()
    for name, entry in ALGORITHMS.items():
        # RL Zoo's modules share these dictionaries, so they are changed in place
        ALGOS[name] = entry.algorithm
        HYPERPARAMS_SAMPLER[name] = entry.sampler
        HYPERPARAMS_CONVERTER[name] = entry.converter
    for module in (rl_zoo3.exp_manager, rl_zoo3.train, rl_zoo3.enjoy):
        module.ExperimentManager = ExperimentManager
