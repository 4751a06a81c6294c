"""SB3's replay buffers: read with their actions in the environment's units, and made from a dataset."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.her import HerReplayBuffer

from sb3_ext.datasets.checks import check_spaces
from sb3_ext.datasets.dataset import Dataset, Metadata, Observations, map_observations
from sb3_ext.datasets.errors import DatasetError


def scale_actions(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """
    Actions as SB3 stores them: those of a Box scaled to [-1, 1], others as they are. Where the bounds are -1 and 1
    already they come back to the last bit; those beyond the bounds by a rounding are clipped.

    :param actions: shape ``(n, *action_shape)``
    """
    if not isinstance(space, spaces.Box):
        return actions
    if _is_unit(space):
        is_inside = actions.min() >= -1 and actions.max() <= 1
        return actions if is_inside else np.clip(actions, -1, 1)
    actions = np.clip(actions, space.low, space.high)
    return (2.0 * ((actions - space.low) / (space.high - space.low)) - 1.0).astype(np.float32)


def unscale_actions(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """The inverse of :func:`scale_actions`, up to the last bit where the bounds are not -1 and 1."""
    if not isinstance(space, spaces.Box) or _is_unit(space):
        return actions
    return (space.low + 0.5 * (actions + 1.0) * (space.high - space.low)).astype(np.float32)


def _is_unit(space: spaces.Box) -> bool:
    return bool((space.low == -1).all() and (space.high == 1).all())


def read_replay_buffer(buffer: ReplayBuffer | Path, trust: bool, source: str | None = None) -> Dataset:
    """
    The transitions of each environment in the order of recording, one environment after the other.

    :param buffer: a buffer, or the pickle that ``save_replay_buffer`` wrote
    :param trust: whether to open a pickle: that can run any code its author put in
    :param source: what to call it in messages
    :raises DatasetError: a pickle that is not trusted or no replay buffer, or an empty buffer.
    """
    if isinstance(buffer, Path):
        source = source or str(buffer)
        buffer = _unpickle(buffer, trust)
    source = source or f"{type(buffer).__name__} in memory"
    size = buffer.size()
    if size == 0:
        raise DatasetError(f"{source} holds no transitions. Collect some first: model.learn(...)")
    order = np.arange(size)
    if buffer.full:
        order = np.roll(order, -buffer.pos)
        if buffer.optimize_memory_usage:
            order = order[1:]  # the newest successor took the place of the oldest observation

    def column(values: Any) -> np.ndarray:
        array = values.cpu().numpy() if isinstance(values, th.Tensor) else values
        return np.ascontiguousarray(np.swapaxes(array[order], 0, 1)).reshape(-1, *array.shape[2:])

    if buffer.optimize_memory_usage:
        successors = np.roll(buffer.observations, -1, axis=0)
    else:
        successors = buffer.next_observations
    dones, timeouts = column(buffer.dones).astype(bool), column(buffer.timeouts).astype(bool)
    actions = column(buffer.actions).reshape(-1, *(buffer.action_space.shape or ()))
    space = buffer.observation_space
    is_dict = isinstance(space, spaces.Dict)
    shapes: Any = {key: part.shape for key, part in space.spaces.items()} if is_dict else space.shape  # type: ignore[attr-defined]

    def shaped(values: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
        return values.reshape(len(values), *(shape or ()))  # SB3 keeps a Discrete observation as a row of one entry

    observations: Observations = map_observations(shaped, map_observations(column, buffer.observations), shapes)
    next_observations: Observations = map_observations(shaped, map_observations(column, successors), shapes)
    if buffer.optimize_memory_usage:
        # The first observation of the next episode took the place of an episode's last
        next_observations[dones] = observations[dones]  # type: ignore[index, call-overload]
    return Dataset.from_arrays(
        {
            "observations": observations,
            "actions": unscale_actions(actions, buffer.action_space),
            "rewards": column(buffer.rewards),
            "next_observations": next_observations,
            "terminations": dones & ~timeouts,
            "truncations": dones & timeouts,
        },
        source=source,
        metadata=Metadata(observation_space=buffer.observation_space, action_space=buffer.action_space),
        warn=False,  # each environment stops without a flag
        ends=np.arange(1, len(dones) + 1) % len(order) == 0,
    )


def _unpickle(path: Path, trust: bool) -> ReplayBuffer:
    if not path.is_file():
        raise DatasetError(f"There is no file {path}.")
    if not trust:
        raise DatasetError(
            f"{path} is a pickle, and opening one can run any code that its author put in. If you made it yourself or "
            "trust who did: load(..., trust=True), dataset_kwargs=dict(trust=True), or --trust of `sb3-ext dataset`. "
            "To pass it on, convert it first."
        )
    try:
        buffer = load_from_pkl(path)
    except Exception as error:  # unpickling raises whatever the content makes it raise
        raise DatasetError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(buffer, ReplayBuffer):
        raise DatasetError(f"{path} holds a {type(buffer).__name__}, no replay buffer of an off-policy algorithm.")
    return buffer


def to_replay_buffer(
    dataset: Dataset,
    observation_space: spaces.Space | None = None,
    action_space: spaces.Space | None = None,
    buffer_size: int | None = None,
    device: th.device | str = "auto",
    n_envs: int = 1,
) -> ReplayBuffer:
    """
    One of SB3's buffers that holds the dataset, for ``model.replay_buffer`` or ``save_to_pkl``.

    :param observation_space: that of the model; the dataset's where left out
    :param action_space: likewise
    :param buffer_size: room for transitions, at least as many as the dataset's, which it is by default. A model that
        goes on collecting overwrites the oldest once the buffer is full: leave it room.
    :param device: where batches go
    :param n_envs: environments of the model; transitions that do not fill a row of all are left out
    :raises DatasetError: the spaces are unknown or not the data's, or there is too little room.
    """
    observation_space = observation_space or dataset.metadata.observation_space
    action_space = action_space or dataset.metadata.action_space
    if observation_space is None or action_space is None:
        raise DatasetError(f"{dataset.source} does not name its spaces: pass observation_space= and action_space=.")
    buffer_size = len(dataset) if buffer_size is None else buffer_size
    if n_envs < 1 or len(dataset) < n_envs:
        raise DatasetError(
            f"{dataset.source}: {len(dataset)} transitions cannot be dealt out to {n_envs} environments."
        )
    if buffer_size < len(dataset):
        raise DatasetError(f"{dataset.source} has {len(dataset)} transitions, buffer_size={buffer_size} is less.")
    check_spaces(dataset, observation_space, action_space)
    is_dict = isinstance(observation_space, spaces.Dict)
    make: Callable[..., ReplayBuffer] = DictReplayBuffer if is_dict else ReplayBuffer
    buffer = make(buffer_size, observation_space, action_space, device=device, n_envs=n_envs)
    fill_buffer(dataset, buffer)
    return buffer


def fill_buffer(dataset: Dataset, buffer: ReplayBuffer) -> None:
    """
    Put all transitions behind those that a buffer holds. Several environments get a part of the dataset each, in which
    the episode that the cut goes through counts as cut off; transitions that do not fill a row of all are left out. An
    episode that is under way in the buffer is cut off too, so that nothing leads from it into the data.

    :param buffer: any of SB3's or a subclass. One whose ``add`` does more than to write a row (``HerReplayBuffer``, one
        with ``optimize_memory_usage``) gets the rows one by one.
    :raises DatasetError: there is too little room; nothing is written.
    """
    n_envs = buffer.n_envs
    n_rows = len(dataset) // n_envs
    if n_rows == 0:
        raise DatasetError(
            f"{dataset.source}: {len(dataset)} transitions cannot be dealt out to {n_envs} environments."
        )
    if n_rows > buffer.buffer_size - buffer.size():
        raise DatasetError(
            f"{dataset.source} has {len(dataset)} transitions, the replay buffer holds {buffer.size() * n_envs} and "
            f"has room for {buffer.buffer_size * n_envs} in all: make the model with buffer_size="
            f"{(buffer.size() + n_rows) * n_envs} or more, or take the best episodes only "
            "(transforms=[TopEpisodes(percent=...)])."
        )
    _end_episodes(buffer)
    used = n_rows * n_envs
    ends, terminations, truncations = (
        flags[:used].copy() for flags in (dataset.ends, dataset.terminations, dataset.truncations)
    )
    ends[n_rows - 1 :: n_rows] = True  # where a part stops
    # SB3 bootstraps where `timeouts` is set; a state that is terminal as well must not be
    timeouts = ends & ~terminations
    if not buffer.handle_timeout_termination:
        timeouts &= ~truncations  # what was cut off in the recording is meant to be terminal

    def deal(values: np.ndarray) -> np.ndarray:
        # (n, ...) -> (n_rows, n_envs, ...)
        return np.swapaxes(values[:used].reshape(n_envs, n_rows, *values.shape[1:]), 0, 1)

    def columns() -> Iterator[tuple[str, Any]]:  # one after the other: those of observations are large
        yield "observations", map_observations(deal, dataset.observations)
        yield "next_observations", map_observations(deal, dataset.next_observations)
        yield "actions", deal(scale_actions(dataset.actions, buffer.action_space))
        yield "rewards", deal(dataset.rewards)
        yield "dones", deal(ends)
        yield "timeouts", deal(timeouts)

    if _is_plain(buffer):
        _write_rows(buffer, columns(), n_rows)
    else:
        _add_rows(buffer, dict(columns()), {key: deal(values) for key, values in dataset.infos.items()})


def _end_episodes(buffer: ReplayBuffer) -> None:
    """Cut off the episodes that are under way in a buffer."""
    if buffer.size() == 0:
        return
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The last trajectory in the replay buffer will be truncated")
            buffer.truncate_last_trajectory()
        return
    if hasattr(buffer, "end_episodes"):
        buffer.end_episodes()
        return
    newest = buffer.pos - 1
    # Where the newest successor is about to be overwritten nothing can bootstrap from it:
    # https://github.com/DLR-RM/stable-baselines3/issues/46
    if not buffer.optimize_memory_usage:
        buffer.timeouts[newest] += 1 - buffer.dones[newest]
    buffer.dones[newest] = 1


def _is_plain(buffer: ReplayBuffer) -> bool:
    """Whether ``add`` does no more than to write a row, so that all can be written at once."""
    from sb3_ext.common.buffers import TensorReplayBuffer  # which imports this module

    plain = (ReplayBuffer.add, DictReplayBuffer.add, TensorReplayBuffer.add)
    return type(buffer).add in plain and not buffer.optimize_memory_usage


def _write_rows(buffer: ReplayBuffer, columns: Iterable[tuple[str, Any]], n_rows: int) -> None:
    first = buffer.pos

    def put(target: Any, values: np.ndarray) -> None:
        values = values.reshape(n_rows, buffer.n_envs, *target.shape[2:])
        target[first : first + n_rows] = th.from_numpy(values.copy()) if isinstance(target, th.Tensor) else values

    for name, values in columns:
        map_observations(put, getattr(buffer, name), values)
    buffer.full = first + n_rows == buffer.buffer_size
    buffer.pos = (first + n_rows) % buffer.buffer_size


def _add_rows(buffer: ReplayBuffer, columns: Mapping[str, Any], infos: Mapping[str, np.ndarray]) -> None:
    for i in range(len(columns["dones"])):
        row = {name: map_observations(lambda values, i=i: values[i].copy(), column) for name, column in columns.items()}
        buffer.add(
            row["observations"],
            row["next_observations"],
            row["actions"],
            row["rewards"],
            row["dones"],
            [
                {**{key: values[i, env] for key, values in infos.items()}, "TimeLimit.truncated": bool(timeout)}
                for env, timeout in enumerate(row["timeouts"])
            ],
        )
