"""Is the data sound, and is it of this environment?"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from sb3_ext.datasets.dataset import ACTION_TOLERANCE, Dataset, leaves
from sb3_ext.datasets.errors import DatasetError

BadEpisodes = Literal["raise", "drop", "repair"]
BAD_EPISODES = ("raise", "drop", "repair")

_OTHER_ENVIRONMENT = "Is the data of another environment, or was a wrapper added or left out?"
_WAYS_OUT = (
    "datasets.load(..., bad_episodes='drop') (--bad-episodes drop) leaves such episodes out, 'repair' keeps the part "
    "before the first such step."
)

# Entries that are looked at together: they stay in the processor's cache
BLOCK = 1 << 19
MAX_THREADS = 8

# A jump is a step this many times as long as 95 % of the others, in an entry that otherwise changes smoothly
JUMP_QUANTILE = 0.95
JUMP_FACTOR = 8
JUMP_SAMPLE = 5_000
JUMP_BLOCK = 1 << 15
MAX_JUMP_ENTRIES = 2


def is_finite(array: np.ndarray) -> bool:
    """Whether no entry is NaN or infinite. One pass, no copy: a sum shows it unless it overflows by itself."""
    if not np.issubdtype(array.dtype, np.floating):
        return True
    flat = array.reshape(-1)

    def is_block_finite(start: int) -> bool:
        block = flat[start : start + BLOCK]
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(block.sum(dtype=np.float32)) or np.isfinite(block).all())

    return all(_in_threads(is_block_finite, range(0, flat.size, BLOCK)))


def _in_threads(fn: Callable[[int], Any], starts: Sequence[int]) -> list[Any]:
    """NumPy lets go of Python's lock while it computes."""
    if len(starts) < 2:
        return [fn(start) for start in starts]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS)) as pool:
        return list(pool.map(fn, starts))


def check_bad_episodes(bad_episodes: str) -> None:
    """:raises DatasetError: the argument is none of those known."""
    if bad_episodes not in BAD_EPISODES:
        raise DatasetError(f"bad_episodes={bad_episodes!r} must be one of {BAD_EPISODES}.")


def mend(dataset: Dataset, bad_episodes: BadEpisodes) -> Dataset:
    """
    Deal with episodes that hold NaN or infinite values.

    :param bad_episodes: ``"raise"``, ``"drop"`` (leave the episode out) or ``"repair"`` (keep what comes before the
        first such step)
    :raises DatasetError: there are some and ``"raise"`` is given, or nothing is left.
    """
    frames = leaves(dataset.frames)
    if all(map(is_finite, (*frames.values(), dataset.actions, dataset.rewards))):
        return dataset
    bad_frames = np.zeros(len(next(iter(frames.values()))), dtype=bool)
    for frame in frames.values():
        bad_frames |= _bad_rows(frame)
    bad = bad_frames[dataset.rows] | bad_frames[dataset.next_rows] | _bad_rows(dataset.actions)
    bad |= _bad_rows(dataset.rewards)
    if not bad.any():  # frames that no transition uses
        return dataset
    bad_per_episode = np.add.reduceat(bad, dataset.starts)
    n_bad = int((bad_per_episode > 0).sum())
    if bad_episodes == "raise":
        raise DatasetError(
            f"{dataset.source}: {n_bad} of {dataset.n_episodes} episodes hold NaN or infinite values, the first in "
            f"transition {np.flatnonzero(bad)[0]}. {_WAYS_OUT}"
        )
    if bad_episodes == "drop":
        keep = np.repeat(bad_per_episode == 0, dataset.lengths)
    else:
        bad_before = np.cumsum(bad)
        keep = bad_before - np.repeat((bad_before - bad)[dataset.starts], dataset.lengths) == 0
    if not keep.any():
        raise DatasetError(
            f"{dataset.source}: every episode holds NaN or infinite values; nothing is left to train on."
        )
    kept = dataset.select(keep)
    return count(kept, "dropped episodes" if bad_episodes == "drop" else "shortened episodes", n_bad)


def count(dataset: Dataset, what: str, number: int) -> Dataset:
    """Put a count of what was left out, mended or found into the metadata, and warn about it."""
    if number == 0:
        return dataset
    warnings.warn(f"{dataset.source}: {number} {what}; {len(dataset)} transitions are left.", stacklevel=2)
    counts = dict(dataset.metadata.counts)
    counts[what] = counts.get(what, 0) + number
    return replace(dataset, metadata=replace(dataset.metadata, counts=counts))


def _bad_rows(array: np.ndarray) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        return np.zeros(len(array), dtype=bool)
    return ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)


def find_jumps(dataset: Dataset) -> np.ndarray:
    """
    Transitions whose observations lie so far apart that an episode's end was probably not marked.

    Compares each step with the others, in the entries of the observation that change most smoothly, such as
    positions. Entries that jump by nature (contact forces, goals) say nothing.

    :return: indices, often empty
    """
    sample = np.arange(0, len(dataset), max(len(dataset) // JUMP_SAMPLE, 1))
    sample = sample[dataset.next_rows[sample] == dataset.rows[sample] + 1]
    if len(sample) < 100:
        return np.zeros(0, dtype=int)
    # Whether the frame after this one is far away
    is_far = np.zeros(len(next(iter(leaves(dataset.frames).values()))), dtype=bool)
    for frames in leaves(dataset.frames).values():
        if frames.ndim != 2 or frames.dtype != np.float32:
            continue
        before, after = frames[dataset.rows[sample]], frames[dataset.next_rows[sample]]
        k = int(JUMP_QUANTILE * (len(sample) - 1))
        usual, spread = np.partition(np.abs(after - before), k, axis=0)[k], before.std(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            roughness = np.where(usual > 0, usual / spread, np.inf)
        smooth = np.argsort(roughness)[:MAX_JUMP_ENTRIES]
        smooth = smooth[roughness[smooth] < 1 / JUMP_FACTOR]
        longest = np.maximum(JUMP_FACTOR * usual[smooth], 0.5 * spread[smooth])

        def find_far(start: int, frames: Any = frames, smooth: Any = smooth, longest: Any = longest) -> None:
            block = frames[start : start + JUMP_BLOCK + 1]
            for entry, limit in zip(smooth, longest, strict=True):
                is_far[start : start + len(block) - 1] |= np.abs(np.diff(block[:, entry])) > np.float32(limit)

        _in_threads(find_far, range(0, len(frames) - 1, JUMP_BLOCK))
    return np.flatnonzero(is_far[dataset.rows] & (dataset.next_rows == dataset.rows + 1))


def check_jumps(dataset: Dataset, bad_episodes: BadEpisodes) -> Dataset:
    """Warn about jumps between rows; with ``"repair"`` the transitions that jump are left out."""
    jumps = find_jumps(dataset)
    if len(jumps) == 0:
        return dataset
    if bad_episodes == "repair":
        keep = np.ones(len(dataset), dtype=bool)
        keep[jumps] = False
        return count(dataset.select(keep), "transitions dropped that jump to another episode", len(jumps))
    return count(
        dataset,
        f"transitions inside episodes that jump to an observation far away, the first in row {jumps[0]} (are ends of "
        "episodes not marked? bad_episodes='repair' leaves such transitions out)",
        len(jumps),
    )


def check_rewards(dataset: Dataset) -> None:
    """
    :raises DatasetError: all rewards are equal and nothing can be learnt from them. Rewards other than 0 with terminal
        states say how long an episode should be.
    """
    has_length_task = dataset.rewards[0] != 0 and dataset.terminations.any()
    if len(dataset) > 1 and dataset.rewards.min() == dataset.rewards.max() and not has_length_task:
        raise DatasetError(
            f"{dataset.source}: all {len(dataset)} rewards are {dataset.rewards[0]:g}; values cannot be learnt from "
            "them. Is the file of another version, or did no episode succeed? Where rewards do not matter (cloning): "
            "load(..., allow_constant_rewards=True)."
        )


def check_spaces(dataset: Dataset, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    :raises DatasetError: the data cannot be of an environment with these spaces: other keys, shapes, kinds of
        numbers or action range, or values that are not finite.
    """
    frames, source = dataset.frames, dataset.source
    if isinstance(observation_space, spaces.Dict):
        keys = sorted(frames) if isinstance(frames, Mapping) else None
        if not isinstance(frames, Mapping) or keys != sorted(observation_space.spaces):
            raise DatasetError(
                f"{source}: observations have the keys {keys}, the environment's have "
                f"{sorted(observation_space.spaces)}. {_OTHER_ENVIRONMENT}"
            )
        for key, space in observation_space.spaces.items():
            _check_column(f"{source}: observations[{key!r}]", frames[key], space)
    elif isinstance(frames, Mapping):
        raise DatasetError(f"{source}: observations are a dict, the environment's are not. {_OTHER_ENVIRONMENT}")
    else:
        _check_column(f"{source}: observations", frames, observation_space)
    _check_column(f"{source}: actions", dataset.actions, action_space)
    if not is_finite(dataset.rewards):
        raise DatasetError(f"{source}: rewards hold NaN or infinite values. {_WAYS_OUT}")
    _check_action_range(dataset, action_space)


def _check_action_range(dataset: Dataset, action_space: spaces.Space) -> None:
    actions = dataset.actions
    if isinstance(action_space, spaces.Discrete):
        last = action_space.start + action_space.n - 1
        if actions.min() < action_space.start or actions.max() > last:
            raise DatasetError(
                f"{dataset.source}: actions span {actions.min()} to {actions.max()}, the action space "
                f"{action_space.start} to {last}. {_OTHER_ENVIRONMENT}"
            )
    if isinstance(action_space, spaces.Box):
        low, high = actions.min(axis=0), actions.max(axis=0)
        if (low < action_space.low - ACTION_TOLERANCE).any() or (high > action_space.high + ACTION_TOLERANCE).any():
            raise DatasetError(
                f"{dataset.source}: actions span {low} to {high}, the action space {action_space.low} to "
                f"{action_space.high}. Use data of this environment, or clip the actions (transforms=[ClipActions()]); "
                "raw actions are expected, not ones scaled to [-1, 1]."
            )
        recorded = dataset.metadata.action_space
        if isinstance(recorded, spaces.Box) and not (
            np.allclose(recorded.low, action_space.low) and np.allclose(recorded.high, action_space.high)
        ):
            raise DatasetError(
                f"{dataset.source}: actions were recorded between {recorded.low} and {recorded.high}, the "
                f"environment's are between {action_space.low} and {action_space.high}. {_OTHER_ENVIRONMENT} If the "
                "units are the same: dataset.with_metadata(action_space=env.action_space)."
            )


def _check_column(what: str, array: np.ndarray, space: spaces.Space) -> None:
    if array.shape[1:] != space.shape:
        is_column = array.shape[1:] == (*(space.shape or ()), 1)
        fix = "Leave the last axis out, array[..., 0]." if is_column else _OTHER_ENVIRONMENT
        raise DatasetError(f"{what} have the shape {array.shape[1:]}, the environment's {space.shape}. {fix}")
    if space.dtype is None or not np.can_cast(array.dtype, space.dtype, casting="same_kind"):
        raise DatasetError(
            f"{what} have the dtype {array.dtype}, the environment's {space.dtype}. {_OTHER_ENVIRONMENT}"
        )
    if not is_finite(array):
        rows = np.flatnonzero(_bad_rows(array))
        raise DatasetError(f"{what} hold NaN or infinite values in {len(rows)} rows, first row {rows[0]}. {_WAYS_OUT}")
