"""One function that loads whatever a user has."""

import difflib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.storage import get_dataset_path
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_ext.datasets.checks import BadEpisodes, check_bad_episodes, check_jumps, check_rewards, mend
from sb3_ext.datasets.collect import rollout_episodes, scripted_expert
from sb3_ext.datasets.d4rl import FILES, find_d4rl, is_d4rl_name, is_uncompressed, read_d4rl
from sb3_ext.datasets.dataset import Dataset
from sb3_ext.datasets.demo import DEMO_DATASETS, DEMO_PREFIX, find_demo
from sb3_ext.datasets.environments import with_flat_maze
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.folder import CacheEntry, cache_folder, is_dataset_folder, read_folder
from sb3_ext.datasets.minari import DEFAULT_INFOS, data_folder, minari_id, read_minari
from sb3_ext.datasets.replay_buffer import read_replay_buffer
from sb3_ext.datasets.transforms import (
    RewardShift,
    TerminateAtSuccess,
    Transform,
    TruncateAtSuccess,
    transform_from_dict,
)

DatasetLike = str | os.PathLike | Mapping[str, Any] | Dataset | ReplayBuffer
SCRIPTED_PREFIX = "scripted:"


def load(
    spec: DatasetLike,
    *,
    transforms: Iterable[Transform | Mapping[str, Any]] = (),
    truncate_at_success: bool = False,
    terminate_at_success: bool = False,
    reward_shift: float = 0.0,
    bad_episodes: BadEpisodes = "raise",
    infos: bool | Sequence[str] = DEFAULT_INFOS,
    allow_constant_rewards: bool = False,
    trust: bool = False,
    download: bool = True,
    cache: bool = True,
) -> Dataset:
    """
    Load a dataset of any known kind.

    :param spec: one of

        - the id of a Minari dataset, ``"hammer-10"`` for ``"hammer-10-v0"``; one with a namespace, such as
          ``"D4RL/pointmaze/umaze-v2"``, is downloaded where it is missing;
        - ``"demo/pointmaze-umaze"``, ``-medium`` or ``-large``: 100,000 transitions of a planner, made on the spot;
        - D4RL's name of a dataset, ``"antmaze-umaze-v2"``; it is downloaded where it is missing;
        - a path: a folder of Minari or of our own (:func:`~sb3_ext.datasets.save`), an ``.hdf5`` file in D4RL's layout,
          an ``.npz`` file with the columns of :meth:`Dataset.from_arrays`, or the ``.pkl`` file of a replay buffer;
        - one of SB3's replay buffers, a mapping of arrays, or a ``Dataset``.
    :param transforms: objects of :mod:`sb3_ext.datasets.transforms`, names, or mappings such as
        ``{"name": "top_episodes", "percent": 10}``, applied in this order, before the three arguments that follow
    :param truncate_at_success: drop what follows the first success of an episode
    :param terminate_at_success: make every successful step terminal
    :param reward_shift: added to every reward, -1 for AntMaze
    :param bad_episodes: for episodes with NaN or infinite values or with columns that do not fit together: ``"raise"``,
        ``"drop"`` them, or ``"repair"`` them by keeping their sound part. What was done is counted in the metadata.
    :param infos: which further columns to read where they exist: names, or True for all
    :param allow_constant_rewards: take data whose rewards are all equal, which only cloning can use
    :param trust: open pickles, which can run code
    :param download: whether what is missing may be downloaded
    :param cache: keep the columns of compressed sources in ``SB3_EXT_CACHE`` (``~/.cache/sb3_ext``), memory-mapped at
        the next load
    :raises DatasetError: nothing is found, or what is found is empty, broken or unusable.
    """
    check_bad_episodes(bad_episodes)
    chosen = [_as_transform(transform) for transform in _as_list(transforms)]
    # Relabelling and selection first: what counts as success, and which episodes are best, is not for a shift to change
    if truncate_at_success:
        chosen.append(TruncateAtSuccess())
    if terminate_at_success:
        chosen.append(TerminateAtSuccess())
    dataset = read(spec, bad_episodes, infos, trust, download, cache)
    for transform in chosen:
        dataset = transform(dataset)
    if not allow_constant_rewards:
        check_rewards(dataset)
    if not reward_shift:
        return dataset
    if any(isinstance(transform, RewardShift) for transform in dataset.metadata.transforms):
        warnings.warn(f"{dataset.source}: rewards are shifted already, and now by {reward_shift} more.", stacklevel=2)
    return RewardShift(reward_shift)(dataset)


def _as_list(transforms: Any) -> list[Any]:
    is_one = isinstance(transforms, (Transform, Mapping, str))
    return [transforms] if is_one else list(transforms)


def _as_transform(transform: Any) -> Transform:
    """A transform from itself, its name, or its name and arguments."""
    if isinstance(transform, Transform):
        return transform
    return transform_from_dict({"name": transform} if isinstance(transform, str) else transform)


def read(
    spec: DatasetLike,
    bad_episodes: BadEpisodes = "raise",
    infos: bool | Sequence[str] = DEFAULT_INFOS,
    trust: bool = False,
    download: bool = True,
    cache: bool = True,
) -> Dataset:
    """What :func:`load` does before transforms and without a look at the rewards; the arguments are its own."""
    if isinstance(spec, Dataset):
        return mend(spec, bad_episodes)
    if isinstance(spec, Mapping):
        try:
            return mend(Dataset.from_arrays(spec), bad_episodes)
        except (TypeError, ValueError, StopIteration) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"These arrays are no columns of transitions: {error}. Give one row a step.") from error
    if isinstance(spec, ReplayBuffer):
        return mend(read_replay_buffer(spec, trust=True), bad_episodes)
    if not isinstance(spec, (str, os.PathLike)):
        raise DatasetError(
            f"A dataset is a Minari id, a D4RL name, a path, a mapping of arrays, a replay buffer or a Dataset, not "
            f"{type(spec)}."
        )
    name = os.fspath(spec)
    infos = [infos] if isinstance(infos, str) else infos
    path = _find(name, download)
    try:
        dataset = _read_cached(name, path, bad_episodes, infos, trust, cache)
    except DatasetError:
        raise
    except Exception as error:  # a broken file can make any library stumble in ways of its own
        raise DatasetError(f"{name} cannot be read: {type(error).__name__}: {error}") from error
    return dataset


def _find(name: str, download: bool) -> Path:
    """
    :return: a file, or the folder of a dataset
    :raises DatasetError: there is nothing of this name.
    """
    path = Path(name).expanduser()
    if path.suffix in (".npz", ".hdf5", ".h5", ".pkl"):
        if not path.is_file():
            raise DatasetError(f"There is no file {path}.")
        return path
    if path.is_dir():
        folder = path if is_dataset_folder(path) else data_folder(path)
        if folder is None:
            raise DatasetError(
                f"The folder {name!r} holds no dataset: neither a metadata.json of Minari nor a dataset.json of ours."
            )
        return folder
    if name.startswith(DEMO_PREFIX):
        return find_demo(name)
    if path.is_file():
        raise DatasetError(f"{path} is no dataset: files that can be read end in .npz, .hdf5, .h5 or .pkl.")
    if is_d4rl_name(name) and name not in minari.list_local_datasets():
        return find_d4rl(name, cache_folder() / "d4rl", download)
    return _find_minari(name, download)


def _find_minari(name: str, download: bool) -> Path:
    try:
        dataset_id = minari_id(name)
    except DatasetError as error:
        if os.sep in name:
            raise DatasetError(
                f"There is nothing at {name!r}, and it is no Minari id. Files end in .npz, .hdf5, .h5 or .pkl."
            ) from error
        raise
    folder = data_folder(get_dataset_path(dataset_id))
    if folder is None and download and "/" in dataset_id and not name.startswith((".", "/")):
        try:
            minari.download_dataset(dataset_id)
        except Exception as error:  # those of the net, of the hub and of Minari
            raise DatasetError(
                f"The Minari dataset {dataset_id!r} is not in {get_dataset_path()} and cannot be downloaded "
                f"({type(error).__name__}: {error}). On a machine with access: minari download {dataset_id}; then copy "
                "the folder, or set MINARI_DATASETS_PATH to where it lies."
            ) from error
        folder = data_folder(get_dataset_path(dataset_id))
    if folder is None:
        close = difflib.get_close_matches(name, [*DEMO_DATASETS, *FILES, *minari.list_local_datasets()], n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise DatasetError(
            f"There is no folder {name!r} and no local Minari dataset {dataset_id!r}.{hint} Collect it (sb3-ext "
            f"collect --help), download it (minari download {dataset_id}) or set MINARI_DATASETS_PATH to where it lies."
        )
    return folder


def _read_cached(
    name: str, path: Path, bad_episodes: BadEpisodes, infos: bool | Sequence[str], trust: bool, cache: bool
) -> Dataset:
    if is_dataset_folder(path):
        return mend(read_folder(path).with_metadata(source=name), bad_episodes)
    if path.suffix == ".npz":
        return mend(_read_npz(path), bad_episodes)
    if path.suffix == ".pkl":
        return mend(read_replay_buffer(path, trust), bad_episodes)
    is_file = path.suffix in (".hdf5", ".h5")
    d4rl_name = name if is_d4rl_name(name) else None  # decides on the metadata
    names = infos if isinstance(infos, bool) else list(infos)
    options = {"bad_episodes": bad_episodes, "infos": names, "d4rl_name": d4rl_name}
    # A file of plain columns is read as fast as a cache would be
    entry = CacheEntry(path, options) if cache and not is_uncompressed(path) else None
    cached = entry.read() if entry else None
    if cached is not None:
        for what, number in cached.metadata.counts.items():
            warnings.warn(f"{name}: {number} {what}.", stacklevel=3)
        return cached.with_metadata(source=str(path) if is_file else repr(name))
    if is_file:
        dataset = with_flat_maze(read_d4rl(path, infos, d4rl_name))
    else:
        dataset = read_minari(path, repr(name), infos, bad_episodes)
    dataset = check_jumps(mend(dataset, bad_episodes), bad_episodes)
    if entry is not None:
        try:
            entry.write(dataset)
        except DatasetError as error:
            warnings.warn(f"{error} The data are loaded, only the next load will not be faster.", stacklevel=3)
    return dataset


def _read_npz(path: Path) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # a broken archive raises one of zipfile's, zlib's or NumPy's many errors
        raise DatasetError(f"{path} is no readable .npz archive ({error}). Write it with numpy.savez.") from error
    return Dataset.from_arrays(arrays, source=str(path))


def load_demonstrations(
    demos: DatasetLike, env_spec: gym.envs.registration.EnvSpec | None = None, seed: int | None = None
) -> Dataset:
    """
    Demonstrations for an algorithm's ``demos`` argument.

    :param demos: whatever :func:`load` takes, or ``"scripted:10"``: ten successful episodes of the environment's
        scripted expert, collected on the spot
    :param env_spec: Gymnasium's spec of the environment that the demonstrations are for. ``"scripted:N"`` needs it.
    :param seed: seed of the episodes of ``"scripted:N"``
    :raises DatasetError: nothing is found, or what is found is empty, broken or of an environment with another id.
    """
    if isinstance(demos, str) and demos.startswith(SCRIPTED_PREFIX):
        return _collect_scripted(demos, env_spec, seed)
    dataset = read(demos)
    if env_spec is not None and dataset.env_id not in (None, env_spec.id):
        raise DatasetError(
            f"{dataset.source} was recorded in {dataset.env_id}, but training is in {env_spec.id}. If that is meant, "
            "say so: demos=load_demonstrations(...).with_metadata(env_id=None)."
        )
    return dataset


def _collect_scripted(name: str, env_spec: gym.envs.registration.EnvSpec | None, seed: int | None) -> Dataset:
    count = name.removeprefix(SCRIPTED_PREFIX)
    if not count.isdigit() or int(count) == 0:
        raise DatasetError(f"demos={name!r}: write the number of episodes after the colon, as in 'scripted:10'.")
    if env_spec is None:
        raise DatasetError(f"demos={name!r} needs an environment that was made by gym.make; pass a dataset instead.")
    try:
        env = gym.make(env_spec)
    except ValueError as error:  # a wrapper that does not record its arguments
        raise DatasetError(
            f"demos={name!r} cannot make the environment again with its wrappers ({error}) Record in the wrapped "
            "environment instead: sb3_ext.datasets.rollout_episodes(env, ...)."
        ) from error
    try:
        return rollout_episodes(
            env, scripted_expert(env), n_episodes=int(count), seed=seed or 0, source=f"demos={name!r}"
        )
    finally:
        env.close()
