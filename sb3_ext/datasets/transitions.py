"""Recorded transitions in memory, and the checks that hold them against an environment."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

Observations = np.ndarray | dict[str, np.ndarray]

# Actions that a float32 round trip moves past a bound are clipped; anything further out is an error
ACTION_TOLERANCE = 1e-5


class DatasetError(ValueError):
    """A dataset is missing, broken, or not of the environment it is used with. The message names the fix."""


def map_observations(fn: Callable[..., Any], *observations: Observations) -> Any:
    """Apply ``fn`` to arrays of observations, key by key for Dict observations."""
    if isinstance(observations[0], Mapping):
        return {key: fn(*(obs[key] for obs in observations)) for key in observations[0]}
    return fn(*observations)


@dataclass(frozen=True)
class Transitions:
    """
    Transitions in columns, in the order of recording, actions in the environment's own units.

    :param observations: shape ``(n, *obs_shape)``, or a dict of such arrays
    :param actions: shape ``(n, action_dim)``
    :param rewards: shape ``(n,)``
    :param next_observations: like ``observations``
    :param terminations: shape ``(n,)``, bool: the episode ended in a terminal state (no bootstrapping)
    :param truncations: shape ``(n,)``, bool: it was cut off. Where both are set, the state is terminal.
    :param source: where the data comes from, for messages
    :param env_id: id of the environment of the data, if known
    """

    observations: Observations
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: Observations
    terminations: np.ndarray
    truncations: np.ndarray
    source: str = "arrays in memory"
    env_id: str | None = None

    def __len__(self) -> int:
        return len(self.actions)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], source: str = "arrays in memory") -> "Transitions":
        """
        :param arrays: a mapping with the columns of this class. ``truncations`` may be missing (no time limit).
        :param source: where the data comes from, for messages
        :raises DatasetError: a column is missing, unknown or of another length, or there are no transitions.
        """
        known = [field.name for field in fields(cls) if field.name not in ("source", "env_id")]
        missing = [name for name in known if name not in arrays and name != "truncations"]
        unknown = [name for name in arrays if name not in known]
        if missing or unknown:
            raise DatasetError(
                f"{source}: missing columns {missing}, unknown columns {unknown}; transitions need the columns {known}."
            )
        columns: dict[str, Any] = {name: _as_arrays(arrays[name]) for name in known if name in arrays}
        columns.setdefault("truncations", np.zeros(len(columns["actions"]), dtype=bool))
        for name in ("terminations", "truncations"):
            columns[name] = columns[name].astype(bool)
        for name in ("rewards", "terminations", "truncations"):
            columns[name] = columns[name].reshape(-1)
        transitions = cls(**columns, source=source)
        transitions._check_lengths()
        return transitions._with_cuts_marked()

    def _with_cuts_marked(self) -> "Transitions":
        """Truncation at rows whose next observation is not the next row's: n-step returns stop there."""
        continues = np.ones(max(len(self) - 1, 0), dtype=bool)
        # What does not fit together here is refused by `check_spaces`, which can say more about it
        for obs, next_obs in zip(_leaves(self.observations), _leaves(self.next_observations), strict=False):
            if obs.shape == next_obs.shape:
                continues &= (next_obs[:-1] == obs[1:]).reshape(len(continues), -1).all(axis=1)
        unmarked = np.append(~continues, True) & ~(self.terminations | self.truncations)
        if unmarked[:-1].any():
            warnings.warn(
                f"{self.source}: {unmarked[:-1].sum()} rows lead elsewhere than to the row after them; they are taken "
                "for the ends of truncated episodes.",
                stacklevel=3,
            )
        return replace(self, truncations=self.truncations | unmarked)

    @classmethod
    def from_episodes(cls, episodes: list[Any], source: str, env_id: str | None = None) -> "Transitions":
        """
        :param episodes: episodes with T steps and T + 1 observations, as Minari's ``EpisodeData``
        :param source: where the data comes from, for messages
        :param env_id: id of the environment of the data, if known
        :raises DatasetError: there are no episodes or one is malformed.
        """
        episodes = [episode for episode in episodes if len(episode.rewards) > 0]
        if not episodes:
            raise DatasetError(f"{source} holds no transitions. Collect some: sb3-ext collect --help")
        for i, episode in enumerate(episodes):
            lengths = {len(leaf) for leaf in _leaves(episode.observations)}
            if lengths != {len(episode.rewards) + 1}:
                raise DatasetError(
                    f"{source}: episode {i} has {len(episode.rewards)} rewards and {sorted(lengths)} observations; "
                    "T steps need T + 1 observations. Record the observation after the last action too."
                )

        def stack(name: str) -> np.ndarray:
            return np.concatenate([np.asarray(getattr(episode, name)) for episode in episodes])

        def stack_observations(part: slice) -> Observations:
            return map_observations(
                lambda *arrays: np.concatenate([np.asarray(array)[part] for array in arrays]),
                *(episode.observations for episode in episodes),
            )

        terminations, truncations = stack("terminations").astype(bool), stack("truncations").astype(bool)
        # A recording that just stops was cut off: n-step returns must not run on into the next episode
        last = np.cumsum([len(episode.rewards) for episode in episodes]) - 1
        truncations[last] |= ~terminations[last]
        transitions = cls(
            observations=stack_observations(slice(None, -1)),
            actions=stack("actions"),
            rewards=stack("rewards"),
            next_observations=stack_observations(slice(1, None)),
            terminations=terminations,
            truncations=truncations,
            source=source,
            env_id=env_id,
        )
        transitions._check_lengths()
        return transitions

    def _check_lengths(self) -> None:
        columns = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
        lengths = {name: {len(leaf) for leaf in _leaves(getattr(self, name))} for name in columns}
        if len(set.union(*lengths.values())) != 1:
            raise DatasetError(
                f"{self.source}: columns differ in length: {lengths}. Every column needs one row a step."
            )
        if len(self) == 0:
            raise DatasetError(f"{self.source} holds no transitions. Collect some: sb3-ext collect --help")

    def check_spaces(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        """
        :raises DatasetError: the data cannot be of an environment with these spaces: other keys, shapes, kinds of
            numbers or action range, or values that are not finite.
        """
        for name in ("observations", "next_observations"):
            data = getattr(self, name)
            if isinstance(observation_space, spaces.Dict):
                keys = sorted(data) if isinstance(data, Mapping) else None
                if keys != sorted(observation_space.spaces):
                    raise DatasetError(
                        f"{self.source}: {name} have the keys {keys}, the environment's have "
                        f"{sorted(observation_space.spaces)}. {_OTHER_ENVIRONMENT}"
                    )
                for key, space in observation_space.spaces.items():
                    self._check_column(f"{name}[{key!r}]", data[key], space)
            elif isinstance(data, Mapping):
                raise DatasetError(f"{self.source}: {name} are a dict, the environment's are not. {_OTHER_ENVIRONMENT}")
            else:
                self._check_column(name, data, observation_space)
        self._check_column("actions", self.actions, action_space)
        if not np.isfinite(self.rewards).all():
            raise DatasetError(f"{self.source}: rewards hold NaN or infinite values. Remove those transitions.")
        if isinstance(action_space, spaces.Discrete):
            last = action_space.start + action_space.n - 1
            if self.actions.min() < action_space.start or self.actions.max() > last:
                raise DatasetError(
                    f"{self.source}: actions span {self.actions.min()} to {self.actions.max()}, the action space "
                    f"{action_space.start} to {last}. {_OTHER_ENVIRONMENT}"
                )
        if isinstance(action_space, spaces.Box):
            low, high = self.actions.min(axis=0), self.actions.max(axis=0)
            if (low < action_space.low - ACTION_TOLERANCE).any() or (high > action_space.high + ACTION_TOLERANCE).any():
                raise DatasetError(
                    f"{self.source}: actions span {low} to {high}, the action space {action_space.low} to "
                    f"{action_space.high}. Use data of this environment, or rescale or clip the actions "
                    "(raw actions are expected, not ones scaled to [-1, 1])."
                )

    def _check_column(self, name: str, array: np.ndarray, space: spaces.Space) -> None:
        if array.shape[1:] != space.shape:
            raise DatasetError(
                f"{self.source}: {name} have the shape {array.shape[1:]}, the environment's {space.shape}. "
                f"{_OTHER_ENVIRONMENT}"
            )
        if space.dtype is None or not np.can_cast(array.dtype, space.dtype, casting="same_kind"):
            raise DatasetError(
                f"{self.source}: {name} have the dtype {array.dtype}, the environment's {space.dtype}. "
                f"{_OTHER_ENVIRONMENT}"
            )
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            rows = np.unique(np.nonzero(~np.isfinite(array))[0])
            raise DatasetError(
                f"{self.source}: {name} hold NaN or infinite values in {len(rows)} rows, first row {rows[0]}. "
                "Remove those transitions."
            )

    def fill(self, buffer: ReplayBuffer, scale_action: Callable[[np.ndarray], np.ndarray] | None) -> None:
        """
        Put all transitions into an SB3 replay buffer that was made for exactly this many (``n_envs=1``).

        :param buffer: a ``ReplayBuffer``, ``DictReplayBuffer`` or ``NStepReplayBuffer``
        :param scale_action: the policy's map from the action space to [-1, 1]; None for discrete actions
        """
        actions = self.actions
        if scale_action is not None:
            assert isinstance(buffer.action_space, spaces.Box)
            actions = scale_action(np.clip(actions, buffer.action_space.low, buffer.action_space.high))
        for name in ("observations", "next_observations"):
            map_observations(_copy_rows, getattr(buffer, name), getattr(self, name))
        buffer.actions[:, 0] = actions.reshape(len(self), -1)
        buffer.rewards[:, 0] = self.rewards
        buffer.dones[:, 0] = self.terminations | self.truncations
        # SB3 bootstraps where `timeouts` is set; a state that is terminal as well must not be
        buffer.timeouts[:, 0] = self.truncations & ~self.terminations
        buffer.pos, buffer.full = 0, True


_OTHER_ENVIRONMENT = "Is the data of another environment, or was a wrapper added or left out?"


def _copy_rows(target: np.ndarray, source: np.ndarray) -> None:
    target[:, 0] = source.reshape(target[:, 0].shape)


def _as_arrays(data: Any) -> Observations:
    if isinstance(data, Mapping):
        return {key: np.asarray(value) for key, value in data.items()}
    return np.asarray(data)


def _leaves(data: Observations) -> list[np.ndarray]:
    return list(data.values()) if isinstance(data, Mapping) else [data]
