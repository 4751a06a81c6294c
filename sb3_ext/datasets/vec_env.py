"""A dataset beside the environment of a model: the same environment, transforms, images and statistics."""

import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage, unwrap_vec_wrapper

from sb3_ext.datasets.checks import check_spaces
from sb3_ext.datasets.dataset import Dataset, Metadata, Observations, leaves
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.transforms import MovingSteps, is_linear_in_rewards


def env_spec(env: VecEnv) -> EnvSpec | None:
    """How to make a model's environment once more; None if it was not made by ``gym.make``."""
    spec = env.get_attr("spec")[0] if env.has_attr("spec") else None
    if spec is None:
        return None
    # SB3's Monitor adds itself to the spec, but cannot be made from it, and changes nothing
    wrappers = tuple(wrapper for wrapper in spec.additional_wrappers if wrapper.name != "Monitor")
    return replace(spec, additional_wrappers=wrappers)


def check_env_id(metadata: Metadata, env: VecEnv) -> None:
    """:raises DatasetError: the dataset names another environment"""
    spec = env_spec(env)
    if spec is not None and metadata.env_id not in (None, spec.id):
        raise DatasetError(
            f"{metadata.source} was recorded in {metadata.env_id}, but the model's environment is {spec.id}. If that "
            "is meant, say so: load(...).with_metadata(env_id=None)."
        )


def transforms_of(env: VecEnv) -> list[str]:
    """Names of the transforms that an environment of ``make_training_env`` goes through by itself."""
    return env.get_attr("dataset_transforms")[0] if env.has_attr("dataset_transforms") else []


def check_transforms(metadata: Metadata, env: VecEnv, with_rewards: bool = True) -> None:
    """
    What the model collects must be of the same kind as the data. Warns where only its episodes go on for longer.

    :param with_rewards: whether that goes for shifted and scaled rewards too
    :raises DatasetError: the dataset went through transforms that the environment did not go through
    """
    needed = [
        transform.name
        for transform in metadata.transforms
        if transform.changes_env and (with_rewards or not is_linear_in_rewards(transform))
    ]
    has = transforms_of(env)
    missing = [name for name in needed if name not in has]
    if missing:
        raise DatasetError(
            f"{metadata.source} went through {missing}, the environment did not: use the raw data, or train in "
            "sb3_ext.datasets.make_training_env(dataset). If the environment does the same by itself: "
            "load(...).with_metadata(transforms=())."
        )
    cuts_off = any(isinstance(transform, MovingSteps) and transform.truncates for transform in metadata.transforms)
    if cuts_off and MovingSteps.name not in has:
        warnings.warn(
            "moving_steps(truncates=True) cuts episodes off in environments of make_training_env(dataset) alone, the "
            "dataset being load's with all transforms: in this one they go on where a robot stands.",
            stacklevel=4,
        )


def channels_first(space: spaces.Space) -> spaces.Space:
    """The space that SB3 gives a model for one of images, alone or in a Dict; others as they are."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: channels_first(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space):
        return VecTransposeImage.transpose_space(space)
    return space


def _frames_channels_first(frames: Observations, space: spaces.Space) -> Observations:
    """
    :param space: of the frames
    """
    if isinstance(frames, Mapping):
        assert isinstance(space, spaces.Dict)
        return {key: _frames_channels_first(part, space[key]) for key, part in frames.items()}  # type: ignore[misc]
    return frames if channels_first(space) is space else VecTransposeImage.transpose_image(frames)


def as_model_sees(
    dataset: Dataset, env: VecEnv | None, observation_space: spaces.Space, action_space: spaces.Space
) -> Dataset:
    """
    Datasets hold images as the environment gives them; SB3 may have put their channels first.

    :param env: the model's environment, or None
    :param observation_space: the model's
    :param action_space: the model's
    :raises DatasetError: other spaces
    """
    wrapper = None if env is None else unwrap_vec_wrapper(env, VecTransposeImage)
    if wrapper is not None and dataset.metadata.observation_space != observation_space:  # not of a model's buffer
        check_spaces(dataset, wrapper.venv.observation_space, action_space)
        dataset = replace(dataset, frames=wrapper.transpose_observations(dataset.frames))  # type: ignore[arg-type]
    own = dataset.metadata.observation_space
    if env is None and own is not None and own != observation_space and channels_first(own) == observation_space:
        dataset = replace(dataset, frames=_frames_channels_first(dataset.frames, own))
    check_spaces(dataset, observation_space, action_space)
    return dataset


def init_statistics(normalize: VecNormalize, frames: Observations, sums: np.ndarray | None = None) -> None:
    """
    A young ``VecNormalize`` takes up statistics, so that the first updates see the data's scale; one that has seen more
    rows than there are keeps its own.

    :param frames: observations as the environment gives them
    :param sums: discounted sums of rewards, see :func:`discounted_sums`
    """
    if not normalize.training:
        return
    pairs: list[tuple[RunningMeanStd, np.ndarray]] = []
    if normalize.norm_obs:
        columns, obs_rms = leaves(frames), normalize.obs_rms
        pairs = [(rms, columns[key]) for key, rms in (obs_rms if isinstance(obs_rms, dict) else {"": obs_rms}).items()]
    if normalize.norm_reward and sums is not None:
        pairs.append((normalize.ret_rms, sums))
    for rms, values in pairs:
        if rms.count < len(values):
            mean, var = values.mean(axis=0, dtype=np.float64), values.var(axis=0, dtype=np.float64)
            rms.update_from_moments(mean, var, len(values))


def discounted_sums(rewards: np.ndarray, ends: np.ndarray, gamma: float) -> np.ndarray:
    """
    What ``VecNormalize`` scales rewards by the deviation of: those so far in the episode, older ones discounted.

    :param rewards: shape ``(n,)``
    :param ends: where episodes end, shape ``(n,)``
    """
    sums = []
    total = 0.0
    for reward, is_end in zip(rewards.tolist(), ends.tolist(), strict=True):
        total = gamma * total + reward
        sums.append(total)
        if is_end:
            total = 0.0
    return np.array(sums)
