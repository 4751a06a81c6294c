"""Recorded transitions for the replay buffer of one of SB3's off-policy algorithms."""

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.her import HerReplayBuffer

from sb3_ext.datasets.dataset import Dataset, Metadata
from sb3_ext.datasets.environments import with_flat_maze
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.load import DatasetLike, load
from sb3_ext.datasets.replay_buffer import fill_buffer
from sb3_ext.datasets.transforms import reward_factor_and_shift
from sb3_ext.datasets.vec_env import as_model_sees, check_env_id, check_transforms, discounted_sums, init_statistics


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
    check_env_id(data.metadata, model.env)
    _check_rewards(data, model)
    data = as_model_sees(data, model.env, model.observation_space, model.action_space)
    if isinstance(buffer, HerReplayBuffer) and buffer.copy_info_dict and not data.infos:
        raise DatasetError(
            f"{data.source} holds no infos, but this HerReplayBuffer passes infos on to compute_reward: "
            "fill(..., infos=True) where they were recorded, else copy_info_dict=False."
        )
    fill_buffer(data, buffer)
    normalize = model.get_vec_normalize_env()
    if init_normalization and normalize is not None:
        init_statistics(normalize, data.frames, discounted_sums(data.rewards, data.ends, normalize.gamma))


def _check_rewards(data: Dataset, model: OffPolicyAlgorithm) -> None:
    """
    :raises DatasetError: the model would not collect such rewards and observations
    """
    assert model.env is not None
    # An algorithm with a dataset of its own changes collected rewards as that dataset's were
    own = getattr(model, "dataset_metadata", None) if hasattr(model, "dataset_kwargs") else None
    check_transforms(data.metadata, model.env, with_rewards=own is None)
    if own is not None:
        wanted, found = (
            reward_factor_and_shift(metadata.transforms) for metadata in (Metadata.from_dict(own), data.metadata)
        )
        if wanted != found:
            raise DatasetError(
                f"This {type(model).__name__} has the environment's rewards times {wanted[0]} plus {wanted[1]} in its "
                f"batches, {data.source} has them times {found[0]} plus {found[1]}: pass the same reward transforms."
            )
