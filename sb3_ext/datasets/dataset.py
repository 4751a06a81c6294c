"""Recorded transitions in memory: the one form that every file format is read into and written from."""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from minari.serialization import deserialize_space, serialize_space

from sb3_ext.datasets.errors import DatasetError

if TYPE_CHECKING:
    from sb3_ext.datasets.transforms import Transform

Observations = np.ndarray | dict[str, np.ndarray]

# Columns of `Dataset.from_arrays`, of an .npz file and of a replay buffer
COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")

# Actions that a float32 round trip moves past a bound are clipped; anything further out is an error
ACTION_TOLERANCE = 1e-5

# Entries of `infos` that say whether a step succeeded, and the one that holds the goal
SUCCESS_KEYS = ("is_success", "success")
GOAL_KEY = "goal"


def map_observations(fn: Callable[..., Any], *observations: Observations) -> Any:
    """Apply ``fn`` to arrays of observations, key by key for Dict observations."""
    if isinstance(observations[0], Mapping):
        return {key: fn(*(obs[key] for obs in observations)) for key in observations[0]}
    return fn(*observations)


def leaves(observations: Observations) -> dict[str, np.ndarray]:
    """The arrays of observations by key, under an empty key where they are no Dict."""
    return dict(observations) if isinstance(observations, Mapping) else {"": observations}


@dataclass(frozen=True)
class Metadata:
    """
    What training has to know about a dataset besides its columns.

    :param source: where the data comes from, for messages
    :param dataset_id: its name as a Minari or D4RL dataset
    :param env_id: Gymnasium id of the environment it was recorded in
    :param env_spec: Gymnasium's spec of that environment as JSON, with arguments and wrappers
    :param observation_space: space of the observations, where the source tells
    :param action_space: space of the actions, where the source tells
    :param ref_min_score: return that counts as a score of 0, usually a random policy's
    :param ref_max_score: return that counts as a score of 100, usually an expert's
    :param description: free text
    :param transforms: what was done to the data since it was recorded, in this order
    :param counts: what was left out or mended while reading, such as ``{"dropped episodes": 3}``
    """

    source: str = "arrays in memory"
    dataset_id: str | None = None
    env_id: str | None = None
    env_spec: str | None = None
    observation_space: spaces.Space | None = None
    action_space: spaces.Space | None = None
    ref_min_score: float | None = None
    ref_max_score: float | None = None
    description: str | None = None
    transforms: "tuple[Transform, ...]" = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold; what is None is left out."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        for name in ("observation_space", "action_space"):
            if name in values:
                values[name] = serialize_space(values[name])
        values["transforms"] = [transform.to_dict() for transform in self.transforms]
        values["counts"] = dict(self.counts)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Metadata":
        """
        :param values: what :meth:`to_dict` returned
        :raises DatasetError: they are no such values
        """
        from sb3_ext.datasets.transforms import transform_from_dict

        try:
            values = dict(values)
            for name in ("observation_space", "action_space"):
                if name in values:
                    values[name] = deserialize_space(values[name])
            values["counts"] = dict(values.get("counts", {}))
            for name in ("source", "dataset_id", "env_id", "env_spec", "description"):
                if not isinstance(values.get(name, ""), str):
                    raise TypeError(f"{name} is {values[name]!r}, no text")
            for name in ("ref_min_score", "ref_max_score"):
                if not isinstance(values.get(name, 0.0), (int, float)):
                    raise TypeError(f"{name} is {values[name]!r}, no number")
            values["transforms"] = tuple(transform_from_dict(entry) for entry in values.get("transforms", ()))
            return cls(**values)
        except DatasetError:
            raise
        except Exception as error:  # Minari's spaces raise by what is wrong with them
            raise DatasetError(f"The metadata of a dataset are broken: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, eq=False)
class Dataset:
    """
    Transitions in columns, in the order of recording, actions in the environment's own units, numbers as float32.

    Every observation is kept once: ``frames`` holds those that transitions start from and those that only end an
    episode, and each transition knows the rows of its two. ``len`` is the number of transitions, n.

    Episodes end where a flag is set, where the next row does not go on from the observation that a step led to, and at
    the last row. Where both flags are set the state is terminal.

    :param frames: all observations, shape ``(n_frames, *obs_shape)``, or a dict of such arrays
    :param rows: row in ``frames`` that a transition starts from, shape ``(n,)``, int64
    :param next_rows: row in ``frames`` that it leads to, shape ``(n,)``, int64. A terminal step whose successor was not
        recorded leads to its own row; nothing bootstraps from there.
    :param actions: shape ``(n, *action_shape)``
    :param rewards: shape ``(n,)``
    :param terminations: shape ``(n,)``, bool: the episode ended in a terminal state (no bootstrapping)
    :param truncations: shape ``(n,)``, bool: it was cut off
    :param infos: further columns of n rows by name, such as ``"success"`` and ``"goal"``
    :param metadata: see :class:`Metadata`
    """

    frames: Observations
    rows: np.ndarray
    next_rows: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    infos: Mapping[str, np.ndarray] = field(default_factory=dict)
    metadata: Metadata = field(default_factory=Metadata)

    def __post_init__(self) -> None:
        columns = {"actions": self.actions, "rewards": self.rewards, "next_rows": self.next_rows, "rows": self.rows}
        columns |= {"terminations": self.terminations, "truncations": self.truncations, **self.infos}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DatasetError(
                f"{self.source}: columns differ in length: {lengths}. Every column needs one row a step."
            )
        if len(self) == 0:
            raise DatasetError(f"{self.source} holds no transitions. Collect some: sb3-ext collect --help")
        for name, column in {"actions": self.actions, **_named("observations", self.frames), **self.infos}.items():
            if column.dtype.kind not in "biuf" or 0 in column.shape[1:]:
                raise DatasetError(
                    f"{self.source}: {name} have the shape {column.shape} and the dtype {column.dtype}; numbers are "
                    "needed, at least one a step."
                )

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        env = f", {self.env_id}" if self.env_id else ""
        return f"Dataset({self.source}: {len(self)} transitions, {self.n_episodes} episodes{env})"

    @property
    def source(self) -> str:
        """Where the data comes from, for messages."""
        return self.metadata.source

    @property
    def env_id(self) -> str | None:
        """Gymnasium id of the environment that the data was recorded in, if known."""
        return self.metadata.env_id

    @property
    def observations(self) -> Observations:
        """Observations that transitions start from, shape ``(n, *obs_shape)``; a copy."""
        return map_observations(lambda frames: frames[self.rows], self.frames)

    @property
    def next_observations(self) -> Observations:
        """Observations that transitions lead to, shape ``(n, *obs_shape)``; a copy."""
        return map_observations(lambda frames: frames[self.next_rows], self.frames)

    @property
    def goals(self) -> np.ndarray | None:
        """Goals that were pursued, shape ``(n, *goal_shape)``, or None where the data names none."""
        if GOAL_KEY in self.infos:
            return self.infos[GOAL_KEY]
        goals = leaves(self.frames).get("desired_goal")
        return None if goals is None else goals[self.rows]

    @property
    def successes(self) -> np.ndarray | None:
        """
        Whether a step led to success, shape ``(n,)``, bool: from the column ``is_success`` or ``success``, or from
        rewards of just two values, of which the greater means success. None where neither exists.
        """
        for key in SUCCESS_KEYS:
            if key in self.infos:
                return as_flags(self.infos[key], f"{self.source}: {key}")
        low, high = self.rewards.min(), self.rewards.max()
        if low < high and np.isin(self.rewards, (low, high)).all():
            return self.rewards == high
        return None

    @cached_property
    def ends(self) -> np.ndarray:
        """Whether a transition is the last of its episode, shape ``(n,)``, bool."""
        ends = self.terminations | self.truncations
        ends[:-1] |= self.next_rows[:-1] != self.rows[1:]
        ends[-1] = True
        return ends

    @cached_property
    def starts(self) -> np.ndarray:
        """Index of the first transition of each episode, shape ``(n_episodes,)``."""
        return np.concatenate([[0], np.flatnonzero(self.ends)[:-1] + 1])

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, shape ``(n_episodes,)``."""
        return np.diff(self.starts, append=len(self))

    @property
    def returns(self) -> np.ndarray:
        """Sum of the rewards of each episode, shape ``(n_episodes,)``, float64."""
        return np.add.reduceat(self.rewards, self.starts, dtype=np.float64)

    def normalized_score(self, returns: Any) -> Any:
        """
        D4RL's score, 0 at the reference minimum and 100 at the maximum (Fu et al. 2020,
        https://arxiv.org/abs/2004.07219).

        :param returns: a number or an array
        :raises DatasetError: the dataset has no reference scores.
        """
        low, high = self.metadata.ref_min_score, self.metadata.ref_max_score
        if low is None or high is None or low == high:
            raise DatasetError(f"{self.source} has no reference scores: dataset.with_metadata(ref_min_score=...).")
        return 100 * (returns - low) / (high - low)

    def with_metadata(self, **changes: Any) -> "Dataset":
        """
        The same data under other metadata, for instance ``with_metadata(env_id=None)``. Another ``env_id`` alone clears
        ``env_spec``, which was the other environment's.
        """
        if "env_id" in changes and changes["env_id"] != self.env_id:
            changes = {"env_spec": None, **changes}
        return replace(self, metadata=replace(self.metadata, **changes))

    def select(self, keep: np.ndarray) -> "Dataset":
        """
        :param keep: mask or indices of the transitions to keep, in ascending order
        :raises DatasetError: none are left.
        """
        keep = np.flatnonzero(keep) if keep.dtype == bool else keep
        used = np.zeros(len(next(iter(leaves(self.frames).values()))), dtype=bool)
        used[self.rows[keep]] = used[self.next_rows[keep]] = True
        position = np.cumsum(used) - 1
        return replace(
            self,
            frames=map_observations(lambda frames: frames[used], self.frames),
            rows=position[self.rows[keep]],
            next_rows=position[self.next_rows[keep]],
            infos={key: column[keep] for key, column in self.infos.items()},
            **{name: getattr(self, name)[keep] for name in ("actions", "rewards", "terminations", "truncations")},
        )

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        source: str = "arrays in memory",
        metadata: Metadata | None = None,
        infos: Mapping[str, Any] | None = None,
        warn: bool = True,
        ends: np.ndarray | None = None,
    ) -> "Dataset":
        """
        :param arrays: a mapping with ``observations``, ``actions``, ``rewards``, ``next_observations``,
            ``terminations`` and, if there is a time limit, ``truncations``, one row a step
        :param source: where the data comes from, for messages
        :param metadata: what else is known; ``source`` goes into it
        :param infos: further columns
        :param warn: warn about episodes that end without a flag
        :param ends: mask of rows that the row after them does not go on from, even where it looks so
        :raises DatasetError: a column is missing, unknown or of another length, or there are no transitions.
        """
        missing = [name for name in COLUMNS if name not in arrays and name != "truncations"]
        unknown = [name for name in arrays if name not in COLUMNS]
        if missing or unknown:
            raise DatasetError(
                f"{source}: missing columns {missing}, unknown columns {unknown}; transitions need the columns "
                f"{list(COLUMNS)}."
            )
        columns: dict[str, Any] = {
            name: map_observations(_as_column, arrays[name]) for name in COLUMNS if name in arrays
        }
        columns.setdefault("truncations", np.zeros(len(columns["actions"]), dtype=bool))
        for name in ("terminations", "truncations"):
            columns[name] = as_flags(columns[name], f"{source}: {name}")
        columns["rewards"] = as_rewards(columns["rewards"], source)
        _check_lengths(columns, source)
        frames, next_rows = join_frames(columns.pop("observations"), columns.pop("next_observations"), source, ends)
        dataset = cls(
            frames=frames,
            rows=np.arange(len(next_rows)),
            next_rows=next_rows,
            infos={key: _as_column(value) for key, value in (infos or {}).items()},
            metadata=replace(metadata or Metadata(), source=source),
            **columns,
        )
        unmarked = (dataset.ends & ~(dataset.terminations | dataset.truncations))[:-1].sum()
        if warn and unmarked:
            warnings.warn(
                f"{source}: {unmarked} rows lead elsewhere than to the row after them; they are taken for the ends of "
                "truncated episodes.",
                stacklevel=2,
            )
        return dataset

    @classmethod
    def from_episodes(
        cls, episodes: Iterable[Any], source: str = "episodes", metadata: Metadata | None = None
    ) -> "Dataset":
        """
        :param episodes: episodes with T steps and T + 1 observations, such as Minari's ``EpisodeData``; those without
            steps are passed over
        :param source: where the data comes from, for messages
        :param metadata: what else is known; ``source`` goes into it
        :raises DatasetError: there are no episodes or one is malformed.
        """
        episodes = [episode for episode in episodes if len(episode.rewards) > 0]
        if not episodes:
            raise DatasetError(f"{source} holds no transitions. Collect some: sb3-ext collect --help")
        observations = [map_observations(_as_column, episode.observations) for episode in episodes]
        lengths = np.array([len(episode.rewards) for episode in episodes])
        for i, (episode, length) in enumerate(zip(episodes, lengths, strict=True)):
            counts = {name: len(getattr(episode, name)) for name in ("actions", "terminations", "truncations")}
            if set(counts.values()) != {length}:
                raise DatasetError(
                    f"{source}: columns differ in length: episode {i} has {length} rewards and {counts}. Every column "
                    "needs one row a step."
                )
        for i, (obs, length) in enumerate(zip(observations, lengths, strict=True)):
            n_observations = {len(leaf) for leaf in leaves(obs).values()}
            if n_observations != {length + 1}:
                raise DatasetError(
                    f"{source}: episode {i} has {length} rewards and {sorted(n_observations)} observations; "
                    "T steps need T + 1 observations. Record the observation after the last action too."
                )

        def stack(name: str) -> np.ndarray:
            return np.concatenate([np.asarray(getattr(episode, name)) for episode in episodes])

        rows = episode_rows(lengths + 1, lengths)
        return cls(
            frames=map_observations(lambda *arrays: np.concatenate(arrays), *observations),
            rows=rows,
            next_rows=rows + 1,
            actions=_as_column(stack("actions")),
            rewards=as_rewards(_as_column(stack("rewards")), source),
            terminations=as_flags(stack("terminations"), f"{source}: terminations"),
            truncations=as_flags(stack("truncations"), f"{source}: truncations"),
            infos=_stack_infos(episodes, lengths),
            metadata=replace(metadata or Metadata(), source=source),
        )


def _named(name: str, observations: Observations) -> dict[str, np.ndarray]:
    """The arrays of observations by what to call them in messages."""
    return {f"{name}[{key!r}]" if key else name: array for key, array in leaves(observations).items()}


def episode_rows(frame_counts: np.ndarray, step_counts: np.ndarray, offset: int = 0) -> np.ndarray:
    """
    Row of each step where episodes lie one after the other.

    :param frame_counts: rows of each episode, shape ``(n_episodes,)``
    :param step_counts: steps of each episode that are wanted, at most as many
    :param offset: row of the first step within its episode
    :return: shape ``(step_counts.sum(),)``
    """
    first_rows = np.cumsum(frame_counts) - frame_counts
    first_steps = np.cumsum(step_counts) - step_counts
    return np.repeat(first_rows + offset - first_steps, step_counts) + np.arange(step_counts.sum())


def join_frames(
    observations: Observations,
    next_observations: Observations,
    source: str,
    known_ends: np.ndarray | None = None,
    in_place: bool = False,
) -> tuple[Observations, np.ndarray]:
    """
    Keep every observation once: those that transitions start from, then those that only end an episode.

    :param known_ends: transitions that the next row does not go on from, whatever it holds, shape ``(n,)``
    :param in_place: the arrays of ``observations`` may be enlarged, so that there is no further copy of them
    :return: frames, and the row in them that each transition leads to
    :raises DatasetError: the two do not have the same keys and shapes.
    """
    first, second = leaves(observations), leaves(next_observations)
    shapes, next_shapes = ({key: array.shape[1:] for key, array in data.items()} for data in (first, second))
    if shapes != next_shapes:
        raise DatasetError(
            f"{source}: observations have the shapes {shapes}, next_observations {next_shapes}. They need the same."
        )
    n = len(next(iter(first.values())))
    goes_on = np.ones(max(n - 1, 0), dtype=bool) if known_ends is None else ~known_ends[:-1]
    for key, array in first.items():
        after, start = _bits(second[key], array)
        goes_on &= (after[:-1] == start[1:]).all(axis=tuple(range(1, array.ndim)))
    ends = np.flatnonzero(np.append(~goes_on, True)[:n])

    def extend(obs: np.ndarray, next_obs: np.ndarray) -> np.ndarray:
        if not (in_place and obs.flags.owndata):
            return np.concatenate([obs, next_obs[ends]])
        obs.resize((n + len(ends), *obs.shape[1:]), refcheck=False)
        obs[n:] = next_obs[ends]
        return obs

    frames = map_observations(extend, observations, next_observations)
    next_rows = np.arange(1, n + 1)
    next_rows[ends] = n + np.arange(len(ends))
    return frames, next_rows


def _bits(*arrays: np.ndarray) -> Sequence[np.ndarray]:
    """Floats by their bits: 0 is not -0, and NaN is itself."""
    is_float = all(array.dtype == np.float32 for array in arrays)
    return [array.view(np.uint32) for array in arrays] if is_float else arrays


def as_float32(array: np.ndarray) -> np.ndarray:
    """Floating-point numbers as float32, everything else as it is."""
    is_other_float = np.issubdtype(array.dtype, np.floating) and array.dtype != np.float32
    with np.errstate(over="ignore"):  # becomes infinite, which is an error of its own later
        return array.astype(np.float32) if is_other_float else array


def as_flags(column: Any, what: str) -> np.ndarray:
    """
    :return: shape ``(n,)``, bool
    :raises DatasetError: values other than 0 and 1, or more than one a row.
    """
    column = np.asarray(column)
    if column.size != len(column) or column.dtype.kind not in "biuf":
        raise DatasetError(
            f"{what} have the shape {column.shape} and the dtype {column.dtype}; one flag a step is needed."
        )
    column = column.reshape(-1)
    if column.dtype != bool and not np.isin(column, (0, 1)).all():
        raise DatasetError(f"{what} hold values other than 0 and 1.")
    return column.astype(bool)


def as_rewards(column: Any, source: str) -> np.ndarray:
    """
    :return: shape ``(n,)``, float32
    :raises DatasetError: no numbers, or more than one a row.
    """
    column = np.asarray(column)
    if column.size != len(column) or column.dtype.kind not in "biuf":
        raise DatasetError(
            f"{source}: rewards have the shape {column.shape} and the dtype {column.dtype}; a number a step is needed."
        )
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(column.reshape(-1), dtype=np.float32)


def _as_column(data: Any) -> np.ndarray:
    return np.ascontiguousarray(as_float32(np.asarray(data))) if np.ndim(data) else np.asarray(data)


def _check_lengths(columns: Mapping[str, Any], source: str) -> None:
    lengths = {name: {len(leaf) for leaf in leaves(column).values()} for name, column in columns.items()}
    if len(set.union(*lengths.values())) != 1:
        raise DatasetError(f"{source}: columns differ in length: {lengths}. Every column needs one row a step.")
    if lengths["actions"] == {0}:
        raise DatasetError(f"{source} holds no transitions. Collect some: sb3-ext collect --help")


def _stack_infos(episodes: Sequence[Any], lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of success and goal; a recording of T + 1 rows starts with what the reset said."""
    infos: dict[str, np.ndarray] = {}
    for key in (*SUCCESS_KEYS, GOAL_KEY):
        columns = [np.asarray((getattr(episode, "infos", None) or {}).get(key, ())) for episode in episodes]
        if all(len(column) - length in (0, 1) for column, length in zip(columns, lengths, strict=True)):
            infos[key] = as_float32(np.concatenate([c[len(c) - n :] for c, n in zip(columns, lengths, strict=True)]))
    return infos


def registered_spec(metadata: Metadata) -> EnvSpec | None:
    """
    Gymnasium's spec of the data's environment, as it is registered in this process, with the recording's arguments and
    Gymnasium's own wrappers. Files can come from anyone: code that they name is never imported.

    :return: None where no environment is named
    :raises DatasetError: the spec is broken, the id is not registered, or there are other wrappers.
    """
    env_id, recorded = metadata.env_id, None
    if metadata.env_spec is not None:
        try:
            recorded = json.loads(metadata.env_spec)
            env_id = recorded["id"]
        except (ValueError, TypeError, KeyError) as error:
            raise DatasetError(f"{metadata.source}: the environment's spec cannot be read: {error!r}") from error
    if env_id is None:
        return None
    if not isinstance(env_id, str) or ":" in env_id:
        raise DatasetError(
            f"{metadata.source} names the environment {env_id!r}; ids that import a module are not taken."
        )
    if env_id not in gym.registry and "Maze" in env_id:
        import gymnasium_robotics  # registers its ids only where it is imported

        gym.register_envs(gymnasium_robotics)
    if env_id not in gym.registry:
        raise DatasetError(
            f"{metadata.source}: its environment {env_id} cannot be made. Install and import the package that "
            "registers it, or name another: dataset.with_metadata(env_id=...)."
        )
    spec = gym.registry[env_id]
    return spec if recorded is None else _with_recorded_arguments(spec, recorded, metadata.source)


def _with_recorded_arguments(spec: EnvSpec, recorded: Mapping[str, Any], source: str) -> EnvSpec:
    try:
        wrappers = tuple(WrapperSpec(**wrapper) for wrapper in recorded.get("additional_wrappers") or ())
        foreign = [wrapper.name for wrapper in wrappers if not wrapper.entry_point.startswith("gymnasium.wrappers.")]
        kwargs = {**spec.kwargs, **(recorded.get("kwargs") or {})}
        limit = recorded.get("max_episode_steps", spec.max_episode_steps)
        if not (limit is None or isinstance(limit, int)):
            raise TypeError(f"max_episode_steps={limit!r}")
    except (TypeError, AttributeError) as error:
        raise DatasetError(f"{source}: the environment's spec cannot be read: {error!r}") from error
    if foreign:
        raise DatasetError(
            f"{source} was recorded with the wrappers {foreign}, which are not Gymnasium's. Make the environment with "
            "them yourself; dataset.with_metadata(env_spec=None) leaves them out."
        )
    return replace(spec, kwargs=kwargs, max_episode_steps=limit, additional_wrappers=wrappers)
