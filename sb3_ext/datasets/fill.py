"""Recorded transitions for the replay buffer of one of SB3's off-policy algorithms."""

from dataclasses import replace
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage, unwrap_vec_wrapper
from stable_baselines3.her import HerReplayBuffer

from sb3_ext.datasets.checks import check_spaces
from sb3_ext.datasets.dataset import Dataset, leaves
from sb3_ext.datasets.environments import with_flat_maze
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.load import DatasetLike, load
from sb3_ext.datasets.replay_buffer import fill_buffer


def fill(model: BaseAlgorithm, dataset: DatasetLike, *, init_normalization: bool = True, **kwargs: Any) -> None:
    """
    Put demonstrations or offline data into a model's replay buffer, behind what it holds, as if the model had collected
    them: Box actions scaled to [-1, 1], raw observations and rewards, images with their channels where the model has
    them, and ends by a time limit told from terminal states.

    The model need not collect anything to train on them; see "Into a model" in docs/datasets.md.

    :param model: SAC, TD3, DDPG, DQN, TQC, REDQ or any other subclass of SB3's ``OffPolicyAlgorithm``, with any replay
        buffer. Several environments get a part of the dataset each. ``HerReplayBuffer`` draws goals from the data's
        episodes; with ``copy_info_dict`` the columns of ``dataset.infos`` are its infos.
    :param dataset: whatever :func:`load` takes, recorded in the model's environment
    :param init_normalization: a ``VecNormalize`` around the environment takes up the dataset's statistics, of
        observations and of returns, unless it has seen more steps than the dataset has
    :param kwargs: arguments of :func:`load`, such as ``transforms``, which the environment has to go through as well
        where they change rewards or observations (:func:`make_training_env`)
    :raises TypeError: the algorithm has no replay buffer.
    :raises DatasetError: the model has no environment or buffer; the dataset cannot be loaded, is of another
        environment, or does not fit into the buffer beside what that holds. Nothing is written then.
    """
    if not isinstance(model, OffPolicyAlgorithm):
        raise TypeError(
            f"{type(model).__name__} has no replay buffer: only off-policy algorithms (SAC, TD3, DQN, TQC, REDQ, ...) "
            "learn from data that they did not collect themselves."
        )
    name = type(model).__name__
    if model.env is None:
        raise DatasetError(f"This {name} has no environment to check the data against: {name}.load(path, env=env).")
    buffer = model.replay_buffer
    if buffer is None or getattr(buffer, "has_returns", False):
        raise DatasetError(
            f"This {name} has no replay buffer that takes recorded data. Load it with its environment, "
            f"{name}.load(path, env=env), or pass the data as dataset= where the algorithm takes that."
        )
    data = with_flat_maze(load(dataset, **kwargs))
    _check_env_id(data, model.env)
    _check_transforms(data, model.env)
    data = _as_model_sees(data, model)
    check_spaces(data, model.observation_space, model.action_space)
    if isinstance(buffer, HerReplayBuffer) and buffer.copy_info_dict and not data.infos:
        raise DatasetError(
            f"{data.source} holds no infos, but this HerReplayBuffer passes infos on to compute_reward: "
            "fill(..., infos=True) where they were recorded, else copy_info_dict=False."
        )
    fill_buffer(data, buffer)
    normalize = model.get_vec_normalize_env()
    if init_normalization and normalize is not None:
        _init_normalization(data, normalize)


def _check_env_id(dataset: Dataset, env: VecEnv) -> None:
    spec = env.get_attr("spec")[0] if env.has_attr("spec") else None
    if spec is not None and dataset.env_id not in (None, spec.id):
        raise DatasetError(
            f"{dataset.source} was recorded in {dataset.env_id}, but the model's environment is {spec.id}. If that is "
            "meant, say so: fill(model, load(...).with_metadata(env_id=None))."
        )


def _check_transforms(dataset: Dataset, env: VecEnv) -> None:
    """What the model collects must be of the same kind as the data."""
    needed = [transform.name for transform in dataset.metadata.transforms if transform.changes_env]
    has = env.get_attr("dataset_transforms")[0] if env.has_attr("dataset_transforms") else []
    missing = [name for name in needed if name not in has]
    if missing:
        raise DatasetError(
            f"{dataset.source} went through {missing}, the environment did not: use the raw data, or train in "
            "sb3_ext.datasets.make_training_env(dataset). If the environment does the same by itself: "
            "fill(model, load(...).with_metadata(transforms=()))."
        )


def _as_model_sees(dataset: Dataset, model: OffPolicyAlgorithm) -> Dataset:
    """Datasets hold images as the environment gives them; SB3 may have put their channels first."""
    assert model.env is not None
    wrapper = unwrap_vec_wrapper(model.env, VecTransposeImage)
    if wrapper is None or dataset.metadata.observation_space == model.observation_space:  # of another model's buffer
        return dataset
    check_spaces(dataset, wrapper.venv.observation_space, model.action_space)
    return replace(dataset, frames=wrapper.transpose_observations(dataset.frames))  # type: ignore[arg-type]


def _init_normalization(dataset: Dataset, normalize: VecNormalize) -> None:
    if not normalize.training:
        return
    pairs: list[tuple[RunningMeanStd, np.ndarray]] = []
    if normalize.norm_obs:
        frames, obs_rms = leaves(dataset.frames), normalize.obs_rms
        pairs = [(rms, frames[key]) for key, rms in (obs_rms if isinstance(obs_rms, dict) else {"": obs_rms}).items()]
    if normalize.norm_reward:
        pairs.append((normalize.ret_rms, _discounted_sums(dataset, normalize.gamma)))
    for rms, values in pairs:
        if rms.count < len(values):
            mean, var = values.mean(axis=0, dtype=np.float64), values.var(axis=0, dtype=np.float64)
            rms.update_from_moments(mean, var, len(values))


def _discounted_sums(dataset: Dataset, gamma: float) -> np.ndarray:
    """What ``VecNormalize`` scales rewards by the deviation of: those so far in the episode, older ones discounted."""
    sums = []
    total = 0.0
    for reward, is_end in zip(dataset.rewards.tolist(), dataset.ends.tolist(), strict=True):
        total = gamma * total + reward
        sums.append(total)
        if is_end:
            total = 0.0
    return np.array(sums)
