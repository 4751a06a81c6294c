"""Episodes of experts, planners, models and random agents, kept in memory or written in any format."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_ext.datasets.dataset import GOAL_KEY, Dataset, Metadata, map_observations
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.save import Format, check_target, save

Expert = Callable[[Any], np.ndarray]

EXPERTS = ("scripted", "waypoint", "random")

# An expert that fails more often than this is not one; better an error than an endless loop
MAX_ATTEMPTS_PER_EPISODE = 10
MAX_EPISODE_STEPS = 100_000


@dataclass(frozen=True)
class Behaviour:
    """
    One of several that play episodes in turn.

    :param expert: function from an observation to an action
    :param share: how often it plays, relative to the others; above 0
    :param noise: standard deviation of Gaussian noise on Box actions, where 1 is half the action range
    """

    expert: Expert
    share: float = 1.0
    noise: float = 0.0


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


def waypoint_expert(env: gym.Env) -> Expert:
    """
    :param env: a maze with a point that a planner can steer, such as ``PointMazeFlat/UMaze-v3``
    :raises DatasetError: it is none.
    """
    from sb3_ext_envs.mazes import PointMazeFlatEnv

    if not isinstance(env.unwrapped, PointMazeFlatEnv):
        raise DatasetError(
            f"The waypoint planner steers PointMazeFlat/UMaze-v3, /Medium-v3 and /Large-v3, not "
            f"{env.spec.id if env.spec else env}."
        )
    return scripted_expert(env)


def random_expert(env: gym.Env, seed: int = 0) -> Expert:
    """Actions drawn uniformly from the action space."""
    env.action_space.seed(seed)
    return lambda _obs: env.action_space.sample()


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
    # RL Zoo keeps the statistics in a folder of the environment's name beside the model. Model and statistics are
    # opened as SB3 opens them: like any model, take them from whom you trust
    statistics = Path(path).parent / (env.spec.id if env.spec else "") / "vecnormalize.pkl"
    if not statistics.is_file():
        return _ModelExpert(model)
    return _ModelExpert(model, VecNormalize.load(str(statistics), vec_env).normalize_obs)


class _ModelExpert:
    """
    A model's deterministic actions, with what it remembers of an episode.

    :param model: of SB3
    :param normalize: what its observations go through first
    """

    def __init__(self, model: Any, normalize: Callable[[Any], Any] = lambda obs: obs):
        self.model, self.normalize = model, normalize
        self.start_episode()

    def start_episode(self) -> None:
        self.state: Any = None

    def __call__(self, obs: Any) -> np.ndarray:
        action, self.state = self.model.predict(self.normalize(obs), self.state, deterministic=True)
        return action


def rollout_episodes(
    env: gym.Env,
    expert: Expert | Sequence[Behaviour],
    n_episodes: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
    only_successful: bool = True,
    n_transitions: int | None = None,
    source: str = "rollout",
) -> Dataset:
    """
    Play episodes and record them.

    :param env: Environment to play in, with a Box or Discrete action space.
    :param expert: Function from an observation to an action, or several behaviours, of which one is drawn for each
        episode.
    :param n_episodes: Number of episodes to return, at least 1.
    :param noise: Standard deviation of Gaussian noise on Box actions of a single expert, where 1 is half the action
        range; noisy actions are clipped to the action space and recorded as played.
    :param seed: Seed that those of the first reset, of the noise and of the draws are derived from, at least 0.
    :param only_successful: Drop episodes that end without ``info["is_success"]``. An environment that does not report
        success keeps all its episodes.
    :param n_transitions: Play whole episodes until there are this many transitions, instead of ``n_episodes``.
    :param source: What to call the data in messages.
    :return: The episodes, with columns ``success`` and ``goal`` where the environment names them.
    :raises DatasetError: the arguments make no sense, or fewer than one in ten episodes succeeds.
    """
    behaviours = [Behaviour(expert, noise=noise)] if callable(expert) else list(expert)
    _check_request(env, behaviours, n_episodes, n_transitions)
    # Not the seed itself: a training environment with the same seed would start where the expert was seen
    env_seed, noise_seed = (int(state) for state in np.random.SeedSequence(seed).generate_state(2))
    rng = np.random.default_rng(noise_seed)
    shares = np.array([behaviour.share for behaviour in behaviours]) / sum(b.share for b in behaviours)
    episodes: list[_Episode] = []
    attempts, n_played, n_kept = 0, 0, 0
    while True:
        behaviour = behaviours[rng.choice(len(shares), p=shares)] if len(behaviours) > 1 else behaviours[0]
        episode, is_success = _play_episode(env, behaviour, rng, env_seed if attempts == 0 else None)
        attempts, n_played = attempts + 1, n_played + len(episode.rewards)
        if is_success or not only_successful:
            episodes.append(episode)
            n_kept += len(episode.rewards)
        if len(episodes) == n_episodes or (n_transitions is not None and n_kept >= n_transitions):
            return _to_dataset(env, episodes, source)
        if n_episodes is not None and attempts == n_episodes * MAX_ATTEMPTS_PER_EPISODE:
            asked = f"{n_episodes}"
        elif n_transitions is not None and n_played >= n_transitions * MAX_ATTEMPTS_PER_EPISODE:
            asked = f"{n_transitions} steps"
        else:
            continue
        raise DatasetError(
            f"Only {len(episodes)} of {attempts} episodes succeeded, {asked} were asked for. Use a better expert or "
            "less noise, or keep failures too (--keep-failures, only_successful=False)."
        )


def _check_request(
    env: gym.Env, behaviours: Sequence[Behaviour], n_episodes: int | None, n_transitions: int | None
) -> None:
    if (n_episodes is None) == (n_transitions is None):
        raise DatasetError("Give either the number of episodes or the number of transitions.")
    if n_episodes is not None and n_episodes < 1:
        raise DatasetError(f"The number of episodes must be at least 1, not {n_episodes}.")
    if n_transitions is not None and n_transitions < 1:
        raise DatasetError(f"The number of transitions must be at least 1, not {n_transitions}.")
    if not behaviours or not all(0 < behaviour.share < np.inf for behaviour in behaviours):
        raise DatasetError("At least one behaviour is needed, and shares must be above 0.")
    for noise in (behaviour.noise for behaviour in behaviours):
        if not noise >= 0 or (noise > 0 and not isinstance(env.action_space, spaces.Box)):
            raise DatasetError(
                f"noise={noise} must be at least 0, and 0 where actions are not a Box ({env.action_space})."
            )


@dataclass
class _Episode:
    """One episode, as Minari's ``EpisodeData``."""

    observations: Any
    actions: np.ndarray
    rewards: list[float]
    terminations: list[bool]
    truncations: list[bool]
    infos: dict[str, Any]


def _play_episode(
    env: gym.Env, behaviour: Behaviour, rng: np.random.Generator, seed: int | None
) -> tuple[_Episode, bool]:
    obs, info = env.reset(seed=seed)
    if isinstance(behaviour.expert, _ModelExpert):
        behaviour.expert.start_episode()
    observations, actions, rewards, terminations, truncations = [obs], [], [], [], []
    successes: list[Any] = []
    goals: list[Any] = []
    while True:
        action = behaviour.expert(obs)
        if behaviour.noise > 0:
            assert isinstance(env.action_space, spaces.Box)
            low, high = env.action_space.low, env.action_space.high
            action = action + behaviour.noise * (high - low) / 2 * rng.standard_normal(low.shape)
            action = np.clip(action, low, high).astype(env.action_space.dtype)
        goals.append(getattr(env.unwrapped, "goal", None))
        obs, reward, terminated, truncated, info = env.step(action)
        observations.append(obs)
        actions.append(action)
        rewards.append(float(reward))
        terminations.append(bool(terminated))
        truncations.append(bool(truncated))
        successes.append(info.get("is_success"))
        if terminated or truncated:
            break
        if len(rewards) == MAX_EPISODE_STEPS:
            raise DatasetError(
                f"An episode of {env} does not end within {MAX_EPISODE_STEPS} steps: set max_episode_steps."
            )
    infos: dict[str, Any] = {}
    if None not in successes:
        infos["success"] = np.array(successes, bool)
    if all(isinstance(goal, np.ndarray) for goal in goals):
        infos[GOAL_KEY] = np.stack(goals)
    episode = _Episode(
        map_observations(lambda *steps: np.stack(steps), *observations),
        np.stack(actions),
        rewards,
        terminations,
        truncations,
        infos,
    )
    return episode, bool(info.get("is_success", True))


def _to_dataset(env: gym.Env, episodes: list[_Episode], source: str) -> Dataset:
    try:
        spec = env.spec.to_json() if env.spec else None
    except (TypeError, ValueError):  # a wrapper or an argument that JSON cannot hold
        spec = None
    metadata = Metadata(
        env_id=env.spec.id if env.spec else None,
        env_spec=spec,
        observation_space=env.observation_space,
        action_space=env.action_space,
    )
    return Dataset.from_episodes(episodes, source, metadata)


def collect(
    env_id: str,
    output: str | os.PathLike,
    expert: str | Sequence[str] = "scripted",
    algo: str | None = None,
    n_episodes: int | None = None,
    noise: float | Sequence[float] = 0.0,
    seed: int = 0,
    only_successful: bool = True,
    env_kwargs: dict[str, Any] | None = None,
    overwrite: bool = False,
    n_transitions: int | None = None,
    shares: Sequence[float] | None = None,
    format: Format | None = None,
) -> Dataset:
    """
    Record episodes and write them.

    :param env_id: Gymnasium id, for instance ``"MetaWorldSparse/hammer-v3"``.
    :param output: Where to write: a Minari id, a path that ends in ``.hdf5`` (D4RL's layout), ..., see
        :func:`~sb3_ext.datasets.save`.
    :param expert: ``"scripted"`` for the environment's own expert, ``"waypoint"`` for the planner of the point mazes,
        ``"random"``, or the path of an SB3 model. Several play in turn, one an episode.
    :param algo: RL Zoo's name of the models' algorithm, needed with a path.
    :param n_episodes: Number of episodes to keep, 10 by default.
    :param noise: Standard deviation of Gaussian action noise, where 1 is half the action range; one for all experts or
        one each.
    :param seed: Seed of the episodes, the noise and the draws.
    :param only_successful: Drop episodes without success.
    :param env_kwargs: Arguments of ``gym.make``.
    :param overwrite: Replace a dataset that is there.
    :param n_transitions: Play whole episodes until there are this many transitions, instead of ``n_episodes``.
    :param shares: How often each of several experts plays, relative to the others; equally often by default.
    :param format: Where the output does not tell: ``"minari"``, ``"arrow"``, ``"d4rl"``, ``"sb3"`` or ``"folder"``.
    :return: What was written.
    :raises DatasetError: bad arguments, an existing dataset, or an expert that fails too often.
    """
    check_target(output, format, overwrite)
    if seed < 0:
        raise DatasetError(f"seed={seed} must be at least 0.")
    if n_episodes is None and n_transitions is None:
        n_episodes = 10
    cast = _cast(expert, noise, shares, algo)
    try:
        env = gym.make(env_id, **(env_kwargs or {}))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{env_id} cannot be made with the arguments {env_kwargs}: {error}") from error
    try:
        dataset = rollout_episodes(
            env,
            [Behaviour(_make_expert(name, algo, env, seed), share, std) for name, share, std in cast],
            n_episodes,
            seed=seed,
            only_successful=only_successful,
            n_transitions=n_transitions,
            source=os.fspath(output),
        )
    finally:
        env.close()
    played = ", ".join(f"{name} ({share:g}, noise {std:g})" for name, share, std in cast)
    dataset = dataset.with_metadata(
        description=f"{dataset.n_episodes} episodes of {env_id}, played by {played}, seed {seed}."
    )
    save(dataset, output, format, overwrite)
    return dataset


def _cast(
    expert: str | Sequence[str], noise: float | Sequence[float], shares: Sequence[float] | None, algo: str | None
) -> list[tuple[str, float, float]]:
    """
    Name, share and noise of each expert.

    :raises DatasetError: an expert is unknown, or there are not as many of each.
    """
    experts = [expert] if isinstance(expert, str) else list(expert)
    noises = [float(noise)] if isinstance(noise, (int, float)) else list(noise)
    noises = noises * len(experts) if len(noises) == 1 else noises
    weights = [1.0] * len(experts) if shares is None else list(shares)
    if not len(experts) == len(noises) == len(weights):
        raise DatasetError(
            f"{len(experts)} experts need as many shares and noises, not {len(weights)} and {len(noises)}."
        )
    for name in experts:
        if name in EXPERTS:
            continue
        if not Path(name).exists() and Path(name).suffix != ".zip":
            raise DatasetError(
                f"There is no expert {name!r}: known are {', '.join(EXPERTS)}, and zip files of SB3 models."
            )
        if algo is None:
            raise DatasetError(f"Which algorithm trained {name!r}? Add --algo, for instance --algo sac.")
    return list(zip(experts, weights, noises, strict=True))


def _make_expert(name: str, algo: str | None, env: gym.Env, seed: int) -> Expert:
    if name == "scripted":
        return scripted_expert(env)
    if name == "waypoint":
        return waypoint_expert(env)
    if name == "random":
        return random_expert(env, seed)
    assert algo is not None
    return model_expert(name, algo, env)
