"""
What can be done to a dataset before training: small objects with a name, composed by calling one after the other, kept
in the metadata and with the model that was trained on the result.

A transform that depends on the data (:class:`StandardizeObservations`, :class:`NormalizeReturns`) freezes its
statistics the first time it is applied; what the metadata hold are the frozen ones. Those that change what a policy
sees or does (:class:`StandardizeObservations`, :class:`FlattenGoals`) wrap an environment the same way; those that
change rewards and ends of episodes wrap the one that a policy is trained in.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation, TransformReward

from sb3_ext.common.schedules import is_whole
from sb3_ext.datasets.dataset import Dataset, leaves, map_observations
from sb3_ext.datasets.errors import DatasetError


@dataclass(frozen=True)
class Transform:
    """Base class: calling a transform gives a new dataset, whose metadata end in the transform."""

    name: ClassVar[str]
    # Whether the data no longer fit the environment as it is
    changes_env: ClassVar[bool] = False

    def __call__(self, dataset: Dataset) -> Dataset:
        """
        :raises DatasetError: the dataset lacks what the transform needs.
        """
        fitted = self.fit(dataset)
        transformed = fitted.apply(dataset)
        return transformed.with_metadata(transforms=(*transformed.metadata.transforms, fitted))

    def fit(self, dataset: Dataset) -> "Transform":
        """With statistics of the dataset where the transform has some that are still open."""
        return self

    def apply(self, dataset: Dataset) -> Dataset:
        """The transformed data, metadata unchanged but for spaces."""
        raise NotImplementedError

    def wrap_env(self, env: gym.Env, training: bool) -> gym.Env:
        """
        The environment as a policy trained on the result needs it.

        :param training: whether the policy is trained in it; evaluation keeps the rewards as they are
        """
        return env

    def to_dict(self) -> dict[str, Any]:
        """Name and arguments as plain values."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class _ScaledRewards(Transform):
    """Rewards times a factor plus a constant."""

    changes_env: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if value is None:
                continue
            _set_number(self, name, value)
            if not getattr(self, name) > 0 and name != "shift":
                raise DatasetError(f"{self.name}: {name}={value!r} must be above 0.")

    def _factor_and_shift(self) -> tuple[float, float]:
        raise NotImplementedError

    def apply(self, dataset: Dataset) -> Dataset:
        factor, shift = self._factor_and_shift()
        return replace(dataset, rewards=(dataset.rewards * np.float32(factor) + np.float32(shift)))

    def wrap_env(self, env: gym.Env, training: bool) -> gym.Env:
        factor, shift = self._factor_and_shift()
        return TransformReward(env, lambda reward: float(reward) * factor + shift) if training else env


@dataclass(frozen=True)
class RewardShift(_ScaledRewards):
    """
    Add a constant to every reward. AntMaze needs -1: with rewards of 0 and 1 nothing tells a short way from a long one.

    :param shift: what is added
    """

    name: ClassVar[str] = "reward_shift"
    shift: float = -1.0

    def _factor_and_shift(self) -> tuple[float, float]:
        return 1.0, self.shift


@dataclass(frozen=True)
class RewardScale(_ScaledRewards):
    """
    Multiply every reward.

    :param scale: the factor
    """

    name: ClassVar[str] = "reward_scale"
    scale: float = 1.0

    def _factor_and_shift(self) -> tuple[float, float]:
        return self.scale, 0.0


@dataclass(frozen=True)
class NormalizeReturns(_ScaledRewards):
    """
    Divide rewards by the difference of the best and the worst episode's return and multiply them by ``max_range``
    (Kostrikov et al. 2021, https://arxiv.org/abs/2110.06169, for the MuJoCo tasks).

    :param max_range: difference of the returns afterwards, above 0
    :param factor: the frozen factor; None until the transform is applied
    """

    name: ClassVar[str] = "normalize_returns"
    max_range: float = 1000.0
    factor: float | None = None

    def fit(self, dataset: Dataset) -> "NormalizeReturns":
        if self.factor is not None:
            return self
        returns = dataset.returns
        if returns.max() == returns.min():
            raise DatasetError(f"{dataset.source}: every episode returns {returns[0]:g}; returns cannot be normalised.")
        return replace(self, factor=float(self.max_range / (returns.max() - returns.min())))

    def _factor_and_shift(self) -> tuple[float, float]:
        assert self.factor is not None
        return self.factor, 0.0


@dataclass(frozen=True)
class StandardizeObservations(Transform):
    """
    Shift and scale every entry of vector observations to mean 0 and standard deviation 1.

    :param epsilon: added to the standard deviation
    :param mean: frozen mean of each entry, by key for Dict observations; None until the transform is applied
    :param std: frozen standard deviation, likewise
    """

    name: ClassVar[str] = "standardize_observations"
    changes_env: ClassVar[bool] = True
    epsilon: float = 1e-3
    mean: Any = None
    std: Any = None

    def __post_init__(self) -> None:
        _set_number(self, "epsilon", self.epsilon)
        if not self.epsilon > 0:
            raise DatasetError(f"{self.name}: epsilon={self.epsilon!r} must be above 0.")
        if (self.mean is None) != (self.std is None):
            raise DatasetError("StandardizeObservations needs both mean and std, or neither.")
        for name in ("mean", "std"):  # plain lists, as JSON holds them
            if getattr(self, name) is not None:
                plain = map_observations(lambda values: np.asarray(values).tolist(), getattr(self, name))
                object.__setattr__(self, name, plain)

    def fit(self, dataset: Dataset) -> "StandardizeObservations":
        if self.mean is not None:
            return self
        if any(frames.ndim != 2 or frames.dtype != np.float32 for frames in leaves(dataset.frames).values()):
            raise DatasetError(
                f"{dataset.source}: observations are no vectors of numbers; they cannot be standardised."
            )
        mean = map_observations(lambda obs: obs.mean(axis=0, dtype=np.float64).tolist(), dataset.observations)
        std = map_observations(lambda obs: obs.std(axis=0, dtype=np.float64).tolist(), dataset.observations)
        return replace(self, mean=mean, std=std)

    def _standardize(self, observations: Any) -> Any:
        def one(obs: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
            scale = np.array(std, np.float32) + np.float32(self.epsilon)
            return ((obs - np.array(mean, np.float32)) / scale).astype(np.float32)

        return map_observations(one, observations, self.mean, self.std)

    def apply(self, dataset: Dataset) -> Dataset:
        shapes = map_observations(lambda frames: frames.shape[1:], dataset.frames)
        if shapes != map_observations(lambda mean: (len(mean),), self.mean):
            raise DatasetError(f"{dataset.source}: observations have the shape {shapes}, the statistics another.")
        dataset = replace(dataset, frames=self._standardize(dataset.frames))
        return dataset.with_metadata(observation_space=_unbounded(dataset.metadata.observation_space))

    def wrap_env(self, env: gym.Env, training: bool) -> gym.Env:
        return TransformObservation(env, self._standardize, _unbounded(env.observation_space))


@dataclass(frozen=True)
class TruncateAtSuccess(Transform):
    """
    Drop what follows the first success of an episode, which then counts as cut off there. In Minari's AntMaze data
    most transitions are of an ant that sits on its goal (https://github.com/Farama-Foundation/Minari/issues/296).
    """

    name: ClassVar[str] = "truncate_at_success"

    def apply(self, dataset: Dataset) -> Dataset:
        successes = successes_of(dataset)
        before = np.cumsum(successes) - successes
        keep = before == np.repeat(before[dataset.starts], dataset.lengths)
        truncations = dataset.truncations | (successes & ~dataset.terminations)
        return replace(dataset, truncations=truncations).select(keep)

    def wrap_env(self, env: gym.Env, training: bool) -> gym.Env:
        return _SuccessWrapper(env, truncates=True) if training else env


@dataclass(frozen=True)
class TerminateAtSuccess(Transform):
    """Every successful step is terminal, as in D4RL's AntMaze data: no value is taken over from beyond the goal."""

    name: ClassVar[str] = "terminate_at_success"

    def apply(self, dataset: Dataset) -> Dataset:
        successes = successes_of(dataset)
        return replace(
            dataset,
            terminations=dataset.terminations | successes,
            truncations=dataset.truncations & ~successes,
        )

    def wrap_env(self, env: gym.Env, training: bool) -> gym.Env:
        return _SuccessWrapper(env, terminates=True) if training else env


@dataclass(frozen=True)
class TerminateOnFlip(Transform):
    """
    An ant that falls on its back ends its episode there, as a failure, and what it does on its back is left out:
    it hardly ever gets up again.

    Rewards should not be negative afterwards (no ``reward_shift``), or falling pays: it ends the costs.

    :param quaternion: entry of the observation where the torso's quaternion (w, x, y, z) starts; 3 with x and y of the
        torso in front of Gymnasium's ant, 1 without
    """

    name: ClassVar[str] = "terminate_on_flip"
    quaternion: int = 3

    def __post_init__(self) -> None:
        _set_whole(self, "quaternion", minimum=0)

    def apply(self, dataset: Dataset) -> Dataset:
        frames = dataset.frames
        if isinstance(frames, Mapping) or frames.ndim != 2 or frames.shape[1] < self.quaternion + 4:
            raise DatasetError(
                f"{dataset.source}: {self.name} needs flat observations with a quaternion in the entries "
                f"{self.quaternion} to {self.quaternion + 3}."
            )
        down = is_on_its_back(frames, self.quaternion)
        before, after = down[dataset.rows], down[dataset.next_rows]
        falls = ~before & after
        return replace(
            dataset,
            terminations=dataset.terminations | falls,
            truncations=dataset.truncations & ~falls,
        ).select(~before)

    def wrap_env(self, env: gym.Env, training: bool) -> gym.Env:
        return _FlipWrapper(env, self.quaternion) if training else env


@dataclass(frozen=True)
class RelabelSuccess(Transform):
    """
    Sparse rewards: 1 where a step leads to success, 0 elsewhere. Success is what the data say, or coming near a goal;
    an episode that ended at another goal counts as cut off there.

    :param goal: position of the goal in the first entries of the observation; None takes the success that was recorded
    :param radius: distance at which it counts as reached, in the observation's units
    """

    name: ClassVar[str] = "relabel_success"
    changes_env: ClassVar[bool] = True
    goal: Any = None
    radius: float = 0.45

    def __post_init__(self) -> None:
        _set_number(self, "radius", self.radius)
        if self.goal is not None:  # plain numbers, as JSON holds them
            try:
                object.__setattr__(self, "goal", tuple(float(entry) for entry in self.goal))
            except (TypeError, ValueError) as error:
                raise DatasetError(f"{self.name}: goal={self.goal!r} must be a list of numbers.") from error

    def apply(self, dataset: Dataset) -> Dataset:
        if self.goal is None:
            successes = successes_of(dataset)
        elif isinstance(dataset.frames, Mapping):
            raise DatasetError(f"{dataset.source}: a goal needs flat observations. Apply FlattenGoals first.")
        else:
            reached = self._positions_reached(dataset)
            successes = np.linalg.norm(reached - np.float32(self.goal), axis=1) <= self.radius
            dataset, successes = _go_on_at_other_goals(dataset, successes)
        infos = {**dataset.infos, "success": successes}
        infos.pop("is_success", None)
        return replace(dataset, rewards=successes.astype(np.float32), infos=infos)

    def _positions_reached(self, dataset: Dataset) -> np.ndarray:
        """Where each step led to, as far as the data tell."""
        positions = np.asarray(dataset.frames)[:, : len(self.goal)]
        reached = positions[dataset.next_rows]
        # The successor of a terminal step is often not recorded: as far again as the step before it
        unknown = np.flatnonzero(_lacks_successor(dataset))
        unknown = unknown[~np.isin(unknown, dataset.starts)]
        before, now = positions[dataset.rows[unknown - 1]], positions[dataset.rows[unknown]]
        reached[unknown] = 2 * now - before
        return reached

    def wrap_env(self, env: gym.Env, training: bool) -> gym.Env:
        return _SuccessWrapper(env, rewards=True, goal=self.goal, radius=self.radius) if training else env


@dataclass(frozen=True)
class TopEpisodes(Transform):
    """
    Keep the episodes with the highest returns, for behaviour cloning of the best x per cent.

    :param percent: share of the episodes to keep, in (0, 100]; at least one is kept
    :raises DatasetError: :class:`MovingSteps` has cut the episodes into pieces.
    """

    name: ClassVar[str] = "top_episodes"
    percent: float = 10.0

    def __post_init__(self) -> None:
        _set_number(self, "percent", self.percent)
        if not 0 < self.percent <= 100:
            raise DatasetError(f"percent={self.percent} must be in (0, 100].")

    def apply(self, dataset: Dataset) -> Dataset:
        _require_whole_episodes(self, dataset)
        n_kept = max(round(self.percent / 100 * dataset.n_episodes), 1)
        # Stable, so that of equal returns the earlier episodes stay
        best = np.argsort(-dataset.returns, kind="stable")[:n_kept]
        kept = np.zeros(dataset.n_episodes, dtype=bool)
        kept[best] = True
        return dataset.select(np.repeat(kept, dataset.lengths))


@dataclass(frozen=True)
class SuccessfulEpisodes(Transform):
    """
    Keep the episodes in which a step succeeds.

    :raises DatasetError: there are none, or :class:`MovingSteps` has cut them into pieces.
    """

    name: ClassVar[str] = "successful_episodes"

    def apply(self, dataset: Dataset) -> Dataset:
        _require_whole_episodes(self, dataset)
        kept = np.logical_or.reduceat(successes_of(dataset), dataset.starts)
        if not kept.any():
            raise DatasetError(f"{dataset.source} has no successful episode: leave {self.name} out.")
        return dataset.select(np.repeat(kept, dataset.lengths))


@dataclass(frozen=True)
class MovingSteps(Transform):
    """
    Leave out where a walker stands: steps after which its position is nearly the same a while later. Cloned, they are
    poses that a deterministic policy never gets out of. The last steps of an episode are judged by the way of all of
    them together; those before a terminal one stay.

    What is left of an episode is several, cut off: let this be the last transform, after those that mark successes or
    change observations; those that choose episodes insist on it. Sums of rewards up to an episode's end (Cal-QL's
    calibration) know nothing of what comes after the gap.

    :param distance: how far the position has to be away after ``horizon`` steps, in the observation's units
    :param horizon: steps, at least 1
    :param entries: number of entries at the start of the observation that are the position
    :param truncates: whether environments of :func:`~sb3_ext.datasets.make_training_env` cut an episode off once the
        position is nearer than ``distance`` to where it was ``horizon`` steps before. Several of these transforms that
        say so all do
    :raises DatasetError: it stands all the time.
    """

    name: ClassVar[str] = "moving_steps"
    distance: float = 1.0
    horizon: int = 40
    entries: int = 2
    truncates: bool = False

    def __post_init__(self) -> None:
        _set_number(self, "distance", self.distance)
        if not self.distance > 0:
            raise DatasetError(f"{self.name}: distance={self.distance!r} must be above 0.")
        for name in ("horizon", "entries"):
            _set_whole(self, name, minimum=1)
        if not isinstance(self.truncates, (bool, np.bool_)):
            raise DatasetError(f"{self.name}: truncates={self.truncates!r} must be True or False.")
        object.__setattr__(self, "truncates", bool(self.truncates))

    def apply(self, dataset: Dataset) -> Dataset:
        if isinstance(dataset.frames, Mapping) or dataset.frames.ndim != 2 or dataset.frames.shape[1] < self.entries:
            raise DatasetError(
                f"{dataset.source}: {self.name} needs flat observations that start with the position. Those of Dicts "
                "are made by flatten_goals, with the position's key first."
            )
        positions = dataset.frames[:, : self.entries].astype(np.float64)
        horizon = min(self.horizon, len(dataset))
        first = np.repeat(dataset.starts, dataset.lengths)
        last = first + np.repeat(dataset.lengths, dataset.lengths) - 1
        # The steps that each is judged by: itself and the next ones, or the last ones of its episode
        end = np.minimum(np.arange(len(dataset)) + horizon - 1, last)
        start = np.maximum(end - horizon + 1, first)
        moved = np.linalg.norm(positions[dataset.next_rows[end]] - positions[dataset.rows[start]], axis=1)
        is_moving = moved >= self.distance * (end - start + 1) / self.horizon
        if not is_moving.any():
            raise DatasetError(
                f"{dataset.source}: no position moves by {self.distance} in {self.horizon} steps. Lower distance; and "
                f"the first entries={self.entries} of an observation have to be the position."
            )
        return dataset.select(is_moving | dataset.terminations[end])

    def wrap_env(self, env: gym.Env, training: bool) -> gym.Env:
        return _StandingWrapper(env, self) if training and self.truncates else env


@dataclass(frozen=True)
class ClipActions(Transform):
    """
    Clip actions to a share of their space. At the very bounds the log-likelihood of a squashed Gaussian is infinite.

    :param limit: share of the half range, in (0, 1]; 1 clips to the bounds
    """

    name: ClassVar[str] = "clip_actions"
    limit: float = 1.0

    def apply(self, dataset: Dataset) -> Dataset:
        space = dataset.metadata.action_space
        if not isinstance(space, spaces.Box):
            raise DatasetError(
                f"{dataset.source}: the action space is {space}; clipping needs the bounds of a Box: "
                "dataset.with_metadata(action_space=env.action_space)."
            )
        if not 0 < self.limit <= 1:
            raise DatasetError(f"limit={self.limit} must be in (0, 1].")
        if self.limit == 1:
            return replace(dataset, actions=np.clip(dataset.actions, space.low, space.high))
        middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2 * self.limit
        return replace(dataset, actions=np.clip(dataset.actions, middle - half, middle + half).astype(np.float32))


@dataclass(frozen=True)
class FlattenGoals(Transform):
    """
    One vector of the named entries of Dict observations, as a policy without goal keys needs it.

    :param keys: entries in the order in which they are put together
    """

    name: ClassVar[str] = "flatten_goals"
    changes_env: ClassVar[bool] = True
    keys: tuple[str, ...] = ("observation", "desired_goal")

    def _flatten(self, observations: Mapping[str, Any]) -> np.ndarray:
        return np.concatenate([np.asarray(observations[key], np.float32) for key in self.keys], axis=-1)

    def apply(self, dataset: Dataset) -> Dataset:
        frames = leaves(dataset.frames)
        missing = [key for key in self.keys if key not in frames]
        if missing or any(frames[key].ndim != 2 for key in self.keys):
            raise DatasetError(
                f"{dataset.source}: observations lack the vectors {missing or self.keys}; they have {list(frames)}."
            )
        space = dataset.metadata.observation_space
        flat = self._flatten(frames)
        return replace(dataset, frames=flat).with_metadata(
            observation_space=self._flat_space(space) if isinstance(space, spaces.Dict) else None
        )

    def _flat_space(self, space: spaces.Dict) -> spaces.Box:
        boxes = [space[key] for key in self.keys]
        assert all(isinstance(box, spaces.Box) for box in boxes)
        low, high = (np.concatenate([getattr(box, name) for box in boxes]) for name in ("low", "high"))
        return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def wrap_env(self, env: gym.Env, training: bool) -> gym.Env:
        space = env.observation_space
        if not isinstance(space, spaces.Dict) or any(key not in space.spaces for key in self.keys):
            raise DatasetError(f"The data's goals were flattened, but the observations of {env} are {space}.")
        return TransformObservation(env, self._flatten, self._flat_space(space))


TRANSFORMS: dict[str, type[Transform]] = {
    cls.name: cls
    for cls in (
        RewardShift,
        RewardScale,
        NormalizeReturns,
        StandardizeObservations,
        TruncateAtSuccess,
        TerminateAtSuccess,
        TerminateOnFlip,
        RelabelSuccess,
        TopEpisodes,
        SuccessfulEpisodes,
        MovingSteps,
        ClipActions,
        FlattenGoals,
    )
}


def transform_from_dict(values: Mapping[str, Any]) -> Transform:
    """
    :param values: ``name`` and arguments, as :meth:`Transform.to_dict` gives and as YAML holds
    :raises DatasetError: the name or an argument is unknown.
    """
    if not isinstance(values, Mapping):
        raise DatasetError(f"A transform is an object or a mapping with a name and arguments, not {values!r}.")
    if values.get("name") not in TRANSFORMS:
        raise DatasetError(f"Unknown transform {values.get('name')!r}; known are {', '.join(TRANSFORMS)}.")
    try:
        arguments = {key: tuple(value) if key == "keys" else value for key, value in values.items() if key != "name"}
        return TRANSFORMS[values["name"]](**arguments)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"Transform {values['name']!r}: {error}.") from error


class _SuccessWrapper(gym.Wrapper):
    """What the success transforms do to data, for training online: rewards of success alone, an end at success."""

    def __init__(
        self,
        env: gym.Env,
        rewards: bool = False,
        truncates: bool = False,
        terminates: bool = False,
        goal: Any = None,
        radius: float = 0.45,
    ):
        super().__init__(env)
        self.rewards, self.truncates, self.terminates = rewards, truncates, terminates
        self.goal, self.radius = goal, radius

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self.goal is not None:
            position = np.asarray(obs)[: len(self.goal)]
            success = bool(np.linalg.norm(position - np.float32(self.goal)) <= self.radius)
        else:
            success = bool(info.get("is_success", info.get("success", False)))
        return (
            obs,
            float(success) if self.rewards else reward,
            terminated or (self.terminates and success),
            truncated or (self.truncates and success and not terminated),
            info,
        )


class _FlipWrapper(gym.Wrapper):
    """Ends an episode in a terminal state where the robot lies on its back."""

    def __init__(self, env: gym.Env, quaternion: int):
        super().__init__(env)
        self.quaternion = quaternion

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or bool(is_on_its_back(obs, self.quaternion)), truncated, info


class _StandingWrapper(gym.Wrapper):
    """Cuts an episode off where the robot stands."""

    def __init__(self, env: gym.Env, standing: MovingSteps):
        super().__init__(env)
        self.standing = standing
        self.positions: deque[np.ndarray] = deque(maxlen=standing.horizon + 1)

    def reset(self, **kwargs: Any) -> Any:
        obs, info = self.env.reset(**kwargs)
        self.positions.clear()
        self._remember(obs)
        return obs, info

    def _remember(self, obs: np.ndarray) -> None:
        self.positions.append(np.array(obs[: self.standing.entries], dtype=np.float64))

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._remember(obs)
        moved = np.linalg.norm(self.positions[-1] - self.positions[0])
        stands = len(self.positions) == self.positions.maxlen and moved < self.standing.distance
        return obs, reward, terminated, truncated or bool(stands and not terminated), info


def _require_whole_episodes(transform: Transform, dataset: Dataset) -> None:
    if any(isinstance(done, MovingSteps) for done in dataset.metadata.transforms):
        raise DatasetError(
            f"{dataset.source}: {transform.name} chooses episodes, and {MovingSteps.name} has cut them into pieces: "
            f"put {transform.name} before it."
        )


def _set_whole(transform: Transform, name: str, minimum: int) -> None:
    """As a plain int, which JSON holds; numbers of NumPy and 40.0 are taken too."""
    value = getattr(transform, name)
    if isinstance(value, bool) or not is_whole(value) or value < minimum:
        raise DatasetError(f"{transform.name}: {name}={value!r} must be a whole number of at least {minimum}.")
    object.__setattr__(transform, name, int(value))


def _set_number(transform: Transform, name: str, value: Any) -> None:
    """A plain finite float, as JSON holds it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number) or isinstance(value, (str, bytes)):
        raise DatasetError(f"{transform.name}: {name}={value!r} must be a finite number.")
    object.__setattr__(transform, name, number)


def is_linear_in_rewards(transform: Transform) -> bool:
    """Whether :func:`reward_factor_and_shift` says all that a transform does to rewards."""
    return isinstance(transform, _ScaledRewards)


def reward_factor_and_shift(transforms: Iterable[Transform]) -> tuple[float, float]:
    """What a series of transforms does to a reward: times the first, plus the second."""
    factor, shift = 1.0, 0.0
    for transform in transforms:
        if isinstance(transform, _ScaledRewards):
            own_factor, own_shift = transform._factor_and_shift()
            factor, shift = factor * own_factor, shift * own_factor + own_shift
    return factor, shift


def is_on_its_back(observations: np.ndarray, quaternion: int = 3) -> np.ndarray:
    """
    Whether the torso's own upward axis points down.

    :param observations: shape ``(..., obs_dim)``
    :param quaternion: entry where the torso's quaternion (w, x, y, z) starts
    :return: shape ``(...)``
    """
    x, y = observations[..., quaternion + 1], observations[..., quaternion + 2]
    return 1 - 2 * (x**2 + y**2) < 0


def _lacks_successor(dataset: Dataset) -> np.ndarray:
    """Whether a transition is terminal and its successor was not recorded, ``(n,)``; for flat observations."""
    frames = np.asarray(dataset.frames)
    terminal = np.flatnonzero(dataset.terminations)
    lacks = np.zeros(len(dataset), dtype=bool)
    lacks[terminal] = (frames[dataset.rows[terminal]] == frames[dataset.next_rows[terminal]]).all(axis=1)
    return lacks


def _go_on_at_other_goals(dataset: Dataset, successes: np.ndarray) -> tuple[Dataset, np.ndarray]:
    """
    Episodes that ended at what was the goal and is none by ``successes``: they are cut off there. Where the state that
    the last step led to was not recorded, that step is left out.
    """
    if dataset.successes is None:
        return dataset, successes
    elsewhere = dataset.terminations & dataset.successes & ~successes
    changed = replace(
        dataset,
        terminations=dataset.terminations & ~elsewhere,
        truncations=dataset.truncations | elsewhere,
    )
    keep = ~(elsewhere & _lacks_successor(dataset))
    return changed.select(keep), successes[keep]


def successes_of(dataset: Dataset) -> np.ndarray:
    """:raises DatasetError: the data do not tell which steps succeeded."""
    if dataset.successes is None:
        raise DatasetError(
            f"{dataset.source} does not tell success: it has neither a column 'is_success' or 'success' nor rewards of "
            "just two values. For a known goal use RelabelSuccess(goal=..., radius=...)."
        )
    return dataset.successes


def _unbounded(space: spaces.Space | None) -> Any:
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _unbounded(entry) for key, entry in space.spaces.items()})
    return None if space is None else spaces.Box(-np.inf, np.inf, space.shape, np.float32)
