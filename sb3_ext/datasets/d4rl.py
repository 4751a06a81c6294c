"""
D4RL's HDF5 layout (Fu et al. 2020, https://arxiv.org/abs/2004.07219), read and written without the ``d4rl`` package.

Raw files hold one observation a step. What a step led to is the next row, as in D4RL's ``qlearning_dataset``:

- a step that is marked by ``timeouts`` is no transition, since what it led to is not in the file; its observation is
  still the successor of the step before;
- the successor of a terminal step is not in the file either: such a step leads to its own observation, of which nothing
  is bootstrapped. ``qlearning_dataset`` takes the first observation of the next episode there;
- where both flags are set the state is terminal, and the step is kept. ``qlearning_dataset`` drops it;
- a terminal in the middle of a run (rewards that were relabelled for another goal) ends an episode; the rest of the run
  is the next one;
- a file with ``next_observations`` keeps every row. ``qlearning_dataset`` drops those at timeouts even then;
- a file without ``timeouts``: episodes last at most as long as their environment allows, counted from the row after a
  terminal; ``qlearning_dataset`` counts one step too many there;
- ``maze2d`` files: the reward of a row says whether *that* row is at the goal, where it should be the next one
  (https://github.com/Farama-Foundation/D4RL/issues/194). Rewards are moved by one row. Their ``timeouts`` mark where
  the goal was switched, not a reset (https://github.com/Farama-Foundation/D4RL/issues/85).
"""

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_ext.datasets import hdf5
from sb3_ext.datasets.dataset import (
    ACTION_TOLERANCE,
    Dataset,
    Metadata,
    as_flags,
    as_rewards,
    join_frames,
    leaves,
    registered_spec,
)
from sb3_ext.datasets.errors import DatasetError

NEEDED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")
INFO_PREFIX = "infos/"
# JSON as bytes: an attribute could hold no more than 64 KB
METADATA_COLUMN = "sb3_ext_metadata"

URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
# D4RL's name -> file below that URL
FILES: dict[str, str] = {
    **{
        f"{agent}-{kind}-v2": f"gym_mujoco_v2/{agent}_{kind.replace('-', '_')}-v2.hdf5"
        for agent in ("halfcheetah", "hopper", "walker2d", "ant")
        for kind in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
    },
    **{
        f"antmaze-{kind}-{version}": f"{folder}/Ant_maze_{name}_sparse{end}.hdf5"
        for version, folder, end in (("v0", "ant_maze_new", ""), ("v2", "ant_maze_v2", "_fixed"))
        for kind, name in (
            ("umaze", "u-maze_noisy_multistart_False_multigoal_False"),
            ("umaze-diverse", "u-maze_noisy_multistart_True_multigoal_True"),
            ("medium-play", "big-maze_noisy_multistart_True_multigoal_False"),
            ("medium-diverse", "big-maze_noisy_multistart_True_multigoal_True"),
            ("large-play", "hardest-maze_noisy_multistart_True_multigoal_False"),
            ("large-diverse", "hardest-maze_noisy_multistart_True_multigoal_True"),
        )
    },
    **{f"maze2d-{maze}-v1": f"maze2d/maze2d-{maze}-sparse-v1.hdf5" for maze in ("umaze", "medium", "large")},
    **{f"maze2d-{maze}-dense-v1": f"maze2d/maze2d-{maze}-dense-v1.hdf5" for maze in ("umaze", "medium", "large")},
    **{
        f"{hand}-{kind}-v1": f"hand_dapg_v1/{hand}-{file}.hdf5"
        for hand in ("pen", "hammer", "relocate", "door")
        for kind, file in (("human", "human-v1"), ("cloned", "cloned-v1"), ("expert", "expert-v1"))
    },
    "kitchen-complete-v0": "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5",
    "kitchen-partial-v0": "kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5",
    "kitchen-mixed-v0": "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5",
}

# Start of a D4RL name -> returns that count as 0 and 100
REFERENCE_SCORES: dict[str, tuple[float, float]] = {
    "halfcheetah-": (-280.178953, 12135.0),
    "hopper-": (-20.272305, 3234.3),
    "walker2d-": (1.629008, 4592.3),
    "ant-": (-325.6, 3879.7),
    "antmaze-": (0.0, 1.0),
    "maze2d-umaze-dense-": (68.537689, 193.66285642381482),
    "maze2d-medium-dense-": (44.264742, 297.4552547777125),
    "maze2d-large-dense-": (30.569041, 303.4857382709002),
    "maze2d-umaze-": (23.85, 161.86),
    "maze2d-medium-": (13.13, 277.39),
    "maze2d-large-": (6.7, 273.99),
    "pen-": (96.262799, 3076.8331017826877),
    "hammer-": (-274.856578, 12794.134825156867),
    "door-": (-56.512833, 2880.5693087298737),
    "relocate-": (-6.425911, 4233.877797728884),
    "kitchen-": (0.0, 4.0),
}

# Start of a D4RL name -> the environment that fits the data; mazes see `environments.with_flat_maze`
ENVIRONMENTS: dict[str, str] = {
    "halfcheetah-": "HalfCheetah-v4",
    "hopper-": "Hopper-v4",
    "walker2d-": "Walker2d-v4",
    "ant-": "Ant-v4",
}
# Gymnasium id -> start of the D4RL names with its reference scores
SCORES_OF_ENVIRONMENTS = {
    r"HalfCheetah-v\d+": "halfcheetah-",
    r"Hopper-v\d+": "hopper-",
    r"Walker2d-v\d+": "walker2d-",
    r"Ant-v\d+": "ant-",
    r"AntMaze.*": "antmaze-",
}


def read_d4rl(path: Path, infos: bool | Sequence[str], name: str | None = None) -> Dataset:
    """
    :param path: the file
    :param infos: which columns below ``infos/`` to read: names, or True for all
    :param name: D4RL's name, where it is known
    :raises DatasetError: a column is missing, malformed or of another length; see also :mod:`sb3_ext.datasets.hdf5`
    """
    wanted = [*NEEDED, *OPTIONAL, METADATA_COLUMN]
    available = [key for key in hdf5.list_columns(path) if key.startswith(INFO_PREFIX)] if infos else []
    wanted += [key for key in available if infos is True or key.removeprefix(INFO_PREFIX) in infos]  # type: ignore[operator]
    columns, attributes = hdf5.read_columns(path, wanted)
    missing = [key for key in NEEDED if key not in columns]
    if missing:
        raise DatasetError(f"{path} lacks the columns {missing}: D4RL's layout has {list(NEEDED)} and timeouts.")
    own_metadata = columns.pop(METADATA_COLUMN, None)
    info_columns = {
        key.removeprefix(INFO_PREFIX): columns.pop(key) for key in list(columns) if key.startswith(INFO_PREFIX)
    }
    lengths = {key: len(column) for key, column in {**columns, **info_columns}.items()}
    if len(set(lengths.values())) != 1:
        raise DatasetError(f"{path}: columns need one row a step; found {lengths}.")
    if lengths["actions"] < (1 if "next_observations" in columns else 2):
        raise DatasetError(f"{path} holds {lengths['actions']} rows; two are needed for one transition.")

    if own_metadata is None:
        metadata = _guess_metadata(path, name or path.stem, attributes, columns)
    else:
        metadata = _parse_metadata(path, own_metadata)
    terminals = as_flags(columns["terminals"], f"{path}: terminals")
    timeouts = _timeouts(path, columns.get("timeouts"), terminals, metadata)
    columns["rewards"] = as_rewards(columns["rewards"], str(path))
    if "next_observations" in columns:
        frames, next_rows = join_frames(
            columns.pop("observations"), columns.pop("next_observations"), str(path), in_place=True
        )
        return Dataset(
            frames=frames,
            rows=np.arange(len(terminals)),
            next_rows=next_rows,
            actions=columns["actions"],
            rewards=columns["rewards"],
            terminations=terminals,
            truncations=timeouts,
            infos=info_columns,
            metadata=metadata,
        )
    is_maze2d = (name or path.stem).startswith("maze2d")
    return _with_derived_successors(columns, terminals, timeouts, info_columns, metadata, is_maze2d)


def is_uncompressed(path: Path) -> bool:
    """Whether the file's columns lie in it in one piece each, so that a cache of them would not be faster."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return all(file[key].chunks is None for key in NEEDED)
    except Exception:  # no HDF5 file, other content: whoever reads it says what is wrong
        return False


def _with_derived_successors(
    columns: dict[str, np.ndarray],
    terminals: np.ndarray,
    timeouts: np.ndarray,
    infos: dict[str, np.ndarray],
    metadata: Metadata,
    rewards_are_late: bool,
) -> Dataset:
    cut = timeouts & ~terminals
    cut[-1] |= not terminals[-1]
    dropped = np.flatnonzero(cut)
    rows = np.flatnonzero(~cut)
    if len(rows) == 0:
        raise DatasetError(f"{metadata.source}: every step is marked by timeouts; there are no transitions.")
    is_terminal = terminals[rows]
    next_rows = rows + ~is_terminal
    # Of a terminal step its own; a step that leads to one that is kept, marked or not, goes on
    truncations = timeouts[next_rows] & (is_terminal | cut[next_rows])
    rewards = columns["rewards"][next_rows] if rewards_are_late else without_rows(columns["rewards"], dropped)
    return Dataset(
        frames=columns["observations"],
        rows=rows,
        next_rows=next_rows,
        actions=without_rows(columns["actions"], dropped),
        rewards=rewards,
        terminations=is_terminal,
        truncations=truncations,
        infos={key: without_rows(column, dropped) for key, column in infos.items()},
        metadata=metadata,
    )


def without_rows(column: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """
    ``np.delete`` in place, several times as fast and without a second copy where few rows go.

    :param column: changed, no longer to be used
    :param dropped: indices of the rows, ascending
    """
    if len(dropped) == 0:
        return column
    if len(dropped) > len(column) // 64:
        return np.delete(column, dropped, axis=0)
    end = dropped[0]
    for start, stop in zip(dropped + 1, np.append(dropped[1:], len(column)), strict=True):
        column[end : end + stop - start] = column[start:stop]
        end += stop - start
    return column[:end]


def _timeouts(path: Path, column: np.ndarray | None, terminals: np.ndarray, metadata: Metadata) -> np.ndarray:
    """The file's flags; without them every episode lasts at most as long as its environment allows."""
    if column is not None:
        return as_flags(column, f"{path}: timeouts")
    timeouts, limit = np.zeros(len(terminals), dtype=bool), None
    with suppress(DatasetError):
        spec = registered_spec(metadata)
        limit = spec.max_episode_steps if spec else None
    if limit is None:
        warnings.warn(f"{path} has no timeouts: only terminals are taken for the ends of episodes.", stacklevel=2)
        return timeouts
    starts = np.concatenate([[0], np.flatnonzero(terminals) + 1])
    for start, end in zip(starts, np.append(starts[1:], len(terminals)), strict=True):
        timeouts[start + limit - 1 : end : limit] = True
    return timeouts


def _parse_metadata(path: Path, column: np.ndarray) -> Metadata:
    try:
        return replace(Metadata.from_dict(json.loads(column.astype(np.uint8).tobytes())), source=str(path))
    except (ValueError, TypeError) as error:  # a DatasetError is a ValueError
        raise DatasetError(f"{path}: the column {METADATA_COLUMN!r} is broken: {error}") from error


def _guess_metadata(path: Path, name: str, attributes: dict[str, Any], columns: dict[str, np.ndarray]) -> Metadata:
    known_name = name if is_d4rl_name(name) else ""
    env_id = attributes.get("env_id")
    env_id = env_id if isinstance(env_id, str) else _by_prefix(ENVIRONMENTS, known_name)
    scores = _by_prefix(REFERENCE_SCORES, known_name) or (None, None)
    for pattern, prefix in SCORES_OF_ENVIRONMENTS.items():
        if scores[0] is None and re.fullmatch(pattern, env_id or ""):
            scores = REFERENCE_SCORES[prefix]
    return Metadata(
        source=str(path),
        dataset_id=name,
        env_id=env_id,
        env_spec=_with_contact_forces(env_id, columns["observations"]),
        observation_space=_observation_space(columns["observations"]),
        action_space=_action_space(columns["actions"]),
        ref_min_score=scores[0],
        ref_max_score=scores[1],
    )


def _with_contact_forces(env_id: str | None, observations: np.ndarray) -> str | None:
    """D4RL's ants feel contact forces, Ant-v4's only if asked to."""
    if env_id != "Ant-v4" or observations.shape[1:] != (111,):
        return None
    return replace(gym.spec(env_id), kwargs={"use_contact_forces": True}).to_json()


def _by_prefix(table: dict[str, Any], name: str) -> Any:
    return next((value for prefix, value in table.items() if name.startswith(prefix)), None)


def _observation_space(observations: np.ndarray) -> spaces.Space:
    if observations.dtype == np.uint8:
        return spaces.Box(0, 255, observations.shape[1:], np.uint8)
    return spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32)


def _action_space(actions: np.ndarray) -> spaces.Space | None:
    """Raw files do not tell: D4RL's continuous actions all lie in [-1, 1]."""
    if actions.dtype != np.float32 or actions.ndim != 2 or not actions.size:
        return None
    is_unit = np.abs([actions.min(), actions.max()]).max() <= 1 + ACTION_TOLERANCE
    return spaces.Box(-1.0, 1.0, actions.shape[1:], np.float32) if is_unit else None


def write_d4rl(dataset: Dataset, path: Path) -> None:
    """
    Write a file in D4RL's layout, with ``next_observations``, so that nothing is lost, and our metadata.

    :raises DatasetError: observations are a Dict, which the layout cannot hold, or the file cannot be written.
    """
    import h5py

    if "" not in leaves(dataset.frames):
        raise DatasetError(
            f"{dataset.source} has Dict observations, which D4RL's layout cannot hold. Apply FlattenGoals, or write "
            "another format."
        )
    unmarked = dataset.ends & ~dataset.terminations
    columns = {
        "observations": dataset.observations,
        "actions": dataset.actions,
        "rewards": dataset.rewards,
        "terminals": dataset.terminations,
        "timeouts": dataset.truncations | unmarked,
        "next_observations": dataset.next_observations,
        **{INFO_PREFIX + key: column for key, column in dataset.infos.items()},
    }
    with replacing_file(path) as temporary, h5py.File(temporary, "w") as file:
        for key, column in columns.items():
            file.create_dataset(key, data=column, compression="gzip", chunks=True)
        file[METADATA_COLUMN] = np.frombuffer(json.dumps(dataset.metadata.to_dict()).encode(), np.uint8)
        if dataset.env_id is not None:
            file.attrs["env_id"] = dataset.env_id


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """
    A temporary file beside ``path`` that takes its place when all is written.

    :raises DatasetError: it cannot be written; an older file of that name is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error}") from error
    temporary = Path(name)
    try:
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # as any new file; a temporary one is the owner's alone
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # h5py reports a full disk as either
        raise DatasetError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def is_d4rl_name(name: str) -> bool:
    """Whether D4RL has a dataset of this name, such as ``"antmaze-umaze-v2"``."""
    return name in FILES


def find_d4rl(name: str, folder: Path, download: bool) -> Path:
    """
    The file of a D4RL dataset: from our cache, from D4RL's own (``~/.d4rl/datasets``), or downloaded.

    D4RL publishes no checksums. The SHA-256 of a download is written beside the file and checked at every later use, so
    that a file that was damaged or replaced since is noticed.

    :param name: one of ``FILES``
    :param folder: where downloads are kept
    :param download: whether to download what is not there
    :raises DatasetError: the file is not there and cannot be had; the message gives the URL and the folder.
    """
    url = URL + FILES[name]
    target = folder / f"{name}.hdf5"
    for path in (target, Path.home() / ".d4rl/datasets" / Path(url).name):
        if path.is_file():
            _verify(path)
            return path
    if not download:
        raise DatasetError(f"{name} is not in {folder}. Download {url} to {target}, or load with download=True.")
    _download(url, target)
    return target


def _checksum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    """``hashlib.file_digest`` for Python 3.10."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _verify(path: Path) -> None:
    noted = _checksum_file(path)
    if noted.is_file() and noted.read_text().split()[:1] != [_sha256(path)]:
        raise DatasetError(
            f"{path} has changed since it was downloaded. Delete it and {noted.name} to download it again."
        )


def _download(url: str, target: Path) -> None:
    import requests

    how = f"Download {url} yourself and put it at {target}."
    with replacing_file(target) as temporary:
        try:
            with requests.get(url, stream=True, timeout=30) as response:
                response.raise_for_status()
                expected = response.headers.get("Content-Length")
                with temporary.open("wb") as file:
                    for block in response.iter_content(1 << 20):
                        file.write(block)
        except requests.RequestException as error:
            raise DatasetError(f"{url} cannot be downloaded ({type(error).__name__}). {how}") from error
        if expected is not None and re.fullmatch(r"\d+", expected) and temporary.stat().st_size != int(expected):
            raise DatasetError(f"The download of {url} broke off. {how}")
        try:
            hdf5.list_columns(temporary)
        except DatasetError as error:
            raise DatasetError(f"{url} gave no HDF5 file, but perhaps the page of a proxy. {how}") from error
        _checksum_file(target).write_text(f"{_sha256(temporary)}  {target.name}\n")
