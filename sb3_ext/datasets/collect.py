"""Episodes of an expert, kept in memory or written as a Minari dataset."""

import inspect
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minari.storage import get_dataset_path

from sb3_ext.datasets.transitions import DatasetError, map_observations

if TYPE_CHECKING:
    from minari import MinariDataset
    from minari.data_collector import EpisodeBuffer

Expert = Callable[[Any], np.ndarray]

# An expert that fails more often than this is not one; better an error than an endless loop
MAX_ATTEMPTS_PER_EPISODE = 10


def minari_id(name: str) -> str:
    """
    ``"hammer-10" -> "hammer-10-v0"``: Minari ids end in a version.

    :raises DatasetError: the name cannot be an id.
    """
    from minari.dataset.minari_dataset import parse_dataset_id

    dataset_id = name if re.search(r"-v\d+$", name) else f"{name}-v0"
    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise DatasetError(
            f"{name!r} cannot be the id of a Minari dataset: write letters, digits, '-' and '_', as in 'hammer-10'."
        ) from error
    return dataset_id


def scripted_expert(env: gym.Env) -> Expert:
    """
    :param env: an environment whose innermost class has a method ``scripted_action()``, such as ``MetaWorldSparse/...``
    :raises DatasetError: it has none.
    """
    scripted_action = getattr(env.unwrapped, "scripted_action", None)
    if scripted_action is None:
        raise DatasetError(
            f"{env.spec.id if env.spec else env} has no scripted expert. Use a trained model as the expert "
            "(--expert path/to/model.zip --algo sac)."
        )
    return lambda _obs: scripted_action()


def model_expert(path: str, algo: str, env: gym.Env) -> Expert:
    """
    :param path: zip file of an SB3 model; normalisation statistics that RL Zoo saved beside it are used
    :param algo: RL Zoo's name of its class, such as ``"sac"`` or ``"redq"``
    :param env: the environment that it will act in
    :raises DatasetError: the algorithm is unknown or recurrent, the file is missing, or the model is for other spaces.
    """
    from rl_zoo3 import ALGOS
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    from sb3_ext.zoo import register

    register()
    if algo not in ALGOS:
        raise DatasetError(f"Unknown algorithm {algo!r}; known are {', '.join(sorted(ALGOS))}.")
    if "lstm" in algo:
        raise DatasetError(f"{algo} is recurrent, and recurrent experts are not supported. Use another one.")
    vec_env = DummyVecEnv([lambda: env])
    try:
        model = ALGOS[algo].load(path, env=vec_env, device="cpu")
    except FileNotFoundError as error:
        raise DatasetError(f"There is no model {path}.") from error
    except Exception as error:  # other classes and spaces stumble over the zip in ways of their own
        raise DatasetError(
            f"{path} cannot be loaded as {algo!r} into this environment ({type(error).__name__}: {error}). Was it "
            "trained by another algorithm, or in another environment?"
        ) from error
    # RL Zoo keeps the statistics in a folder of the environment's name beside the model
    statistics = sorted(Path(path).parent.glob("*/vecnormalize.pkl"))
    if not statistics:
        return lambda obs: model.predict(obs, deterministic=True)[0]
    vec_normalize = VecNormalize.load(str(statistics[0]), vec_env)
    return lambda obs: model.predict(vec_normalize.normalize_obs(obs), deterministic=True)[0]


def rollout_episodes(
    env: gym.Env,
    expert: Expert,
    n_episodes: int,
    noise: float = 0.0,
    seed: int = 0,
    only_successful: bool = True,
) -> "list[EpisodeBuffer]":
    """
    Play episodes and record them.

    :param env: Environment to play in, with a Box or Discrete action space.
    :param expert: Function from an observation to an action.
    :param n_episodes: Number of episodes to return, at least 1.
    :param noise: Standard deviation of Gaussian noise on Box actions, where 1 is half the action range; noisy actions
        are clipped to the action space and recorded as played.
    :param seed: Seed that those of the first reset and of the noise are derived from, at least 0.
    :param only_successful: Drop episodes that end without ``info["is_success"]``. An environment that does not report
        success keeps all its episodes.
    :return: Episodes with T steps and T + 1 observations.
    :raises DatasetError: the arguments make no sense, or fewer than one in ten episodes succeeds.
    """
    if n_episodes < 1:
        raise DatasetError(f"The number of episodes must be at least 1, not {n_episodes}.")
    if noise < 0 or (noise > 0 and not isinstance(env.action_space, spaces.Box)):
        raise DatasetError(f"noise={noise} must be at least 0, and 0 where actions are not a Box ({env.action_space}).")
    # Not the seed itself: a training environment with the same seed would start where the expert was seen
    env_seed, noise_seed = (int(state) for state in np.random.SeedSequence(seed).generate_state(2))
    rng = np.random.default_rng(noise_seed)
    episodes: list[EpisodeBuffer] = []
    for attempt in range(n_episodes * MAX_ATTEMPTS_PER_EPISODE):
        episode, is_success = _play_episode(env, expert, noise, rng, env_seed if attempt == 0 else None, len(episodes))
        if is_success or not only_successful:
            episodes.append(episode)
        if len(episodes) == n_episodes:
            return episodes
    raise DatasetError(
        f"Only {len(episodes)} of {n_episodes * MAX_ATTEMPTS_PER_EPISODE} episodes succeeded, {n_episodes} were asked "
        "for. Use a better expert or less noise, or keep failures too (--keep-failures, only_successful=False)."
    )


def _play_episode(
    env: gym.Env, expert: Expert, noise: float, rng: np.random.Generator, seed: int | None, episode_id: int
) -> "tuple[EpisodeBuffer, bool]":
    from minari.data_collector import EpisodeBuffer

    obs, _ = env.reset(seed=seed)
    observations, actions, rewards, terminations, truncations = [obs], [], [], [], []
    while True:
        action = expert(obs)
        if noise > 0:
            assert isinstance(env.action_space, spaces.Box)
            low, high = env.action_space.low, env.action_space.high
            action = action + noise * (high - low) / 2 * rng.standard_normal(low.shape)
            action = np.clip(action, low, high).astype(env.action_space.dtype)
        obs, reward, terminated, truncated, info = env.step(action)
        observations.append(obs)
        actions.append(action)
        rewards.append(float(reward))
        terminations.append(bool(terminated))
        truncations.append(bool(truncated))
        if terminated or truncated:
            break
    episode = EpisodeBuffer(
        id=episode_id,
        seed=seed,
        observations=map_observations(lambda *steps: np.stack(steps), *observations),
        actions=np.stack(actions),
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
    )
    return episode, bool(info.get("is_success", True))


def collect(
    env_id: str,
    output: str,
    expert: str = "scripted",
    algo: str | None = None,
    n_episodes: int = 10,
    noise: float = 0.0,
    seed: int = 0,
    only_successful: bool = True,
    env_kwargs: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> "MinariDataset":
    """
    Record episodes of an expert as a local Minari dataset.

    :param env_id: Gymnasium id, for instance ``"MetaWorldSparse/hammer-v3"``.
    :param output: Minari id of the dataset; ``-v0`` is added where the version is missing. It is written below
        ``MINARI_DATASETS_PATH`` (Minari's default is ``~/.minari/datasets``).
    :param expert: ``"scripted"`` for the environment's own expert, or the path of an SB3 model.
    :param algo: RL Zoo's name of the model's algorithm, needed with a path.
    :param n_episodes: Number of episodes to keep, at least 1.
    :param noise: Standard deviation of Gaussian action noise, where 1 is half the action range.
    :param seed: Seed of the episodes and of the noise.
    :param only_successful: Drop episodes without success.
    :param env_kwargs: Arguments of ``gym.make``.
    :param overwrite: Replace a dataset of that id.
    :raises DatasetError: bad arguments, an existing dataset, or an expert that fails too often.
    """
    import minari

    dataset_id = minari_id(output)
    exists = dataset_id in minari.list_local_datasets()
    if exists and not overwrite:
        raise DatasetError(f"The Minari dataset {dataset_id!r} exists. Choose another --output or add --overwrite.")
    if expert != "scripted" and algo is None:
        raise DatasetError(f"Which algorithm trained {expert!r}? Add --algo, for instance --algo sac.")
    env = gym.make(env_id, **(env_kwargs or {}))
    try:
        policy = scripted_expert(env) if algo is None or expert == "scripted" else model_expert(expert, algo, env)
        episodes = rollout_episodes(env, policy, n_episodes, noise, seed, only_successful)
        with _replacing(dataset_id):
            return minari.create_dataset_from_buffers(
                dataset_id=dataset_id,
                buffer=episodes,
                env=env,
                **_lossless(),
                algorithm_name=expert if algo is None else algo,
                description=f"{n_episodes} episodes of {env_id}, expert {expert}, noise {noise}, seed {seed}.",
            )
    finally:
        env.close()


def _lossless() -> dict[str, bool]:
    """Minari 0.5.4 compresses images as JPEG unless told not to; 0.5.3, the last for Python 3.10, never does."""
    from minari import create_dataset_from_buffers

    known = "jpeg_encoding" in inspect.signature(create_dataset_from_buffers).parameters
    return {"jpeg_encoding": False} if known else {}


@contextmanager
def _replacing(dataset_id: str) -> Iterator[None]:
    """While a dataset is written: an older one of that id waits aside, and comes back if the writing fails."""
    folder = get_dataset_path(dataset_id)
    aside = folder.with_name(f".{folder.name}.replaced")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if aside.exists():
            aside.rename(folder)
        if not isinstance(error, Exception):
            raise
        raise DatasetError(f"The dataset {dataset_id!r} cannot be written: {type(error).__name__}: {error}") from error
    shutil.rmtree(aside, ignore_errors=True)
