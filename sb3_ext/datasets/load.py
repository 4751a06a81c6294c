"""Demonstrations from whatever a user has: a Minari dataset, a file, arrays, or the environment's scripted expert."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_ext.datasets.collect import minari_id, rollout_episodes, scripted_expert
from sb3_ext.datasets.transitions import DatasetError, Transitions

DemosLike = str | os.PathLike | Mapping[str, Any] | Transitions
SCRIPTED_PREFIX = "scripted:"


def load_demonstrations(
    demos: DemosLike, env_spec: gym.envs.registration.EnvSpec | None = None, seed: int | None = None
) -> Transitions:
    """
    :param demos: one of

        - the id of a local Minari dataset (``"hammer-10"`` stands for ``"hammer-10-v0"``),
        - a path: a Minari dataset folder, or an ``.npz`` file with the columns of
          :class:`~sb3_ext.datasets.Transitions`,
        - ``"scripted:10"``: ten successful episodes of the environment's scripted expert, collected on the spot,
        - a mapping of arrays or a ``Transitions`` object.
    :param env_spec: Gymnasium's spec of the environment that the demonstrations are for. ``"scripted:N"`` needs it;
        data of an environment with another id gives a warning.
    :param seed: seed of the episodes of ``"scripted:N"``
    :raises DatasetError: nothing is found, or what is found is empty or broken.
    """
    if isinstance(demos, Transitions):
        transitions = demos
    elif isinstance(demos, Mapping):
        transitions = Transitions.from_arrays(demos)
    elif isinstance(demos, (str, os.PathLike)):
        transitions = _load_named(os.fspath(demos), env_spec, seed)
    else:
        raise DatasetError(
            f"demos must be a Minari id, a path, 'scripted:N', a mapping of arrays or Transitions, not {type(demos)}."
        )
    if env_spec is not None and transitions.env_id not in (None, env_spec.id):
        warnings.warn(
            f"{transitions.source} was recorded in {transitions.env_id}, but training is in {env_spec.id}.",
            stacklevel=2,
        )
    return transitions


def _load_named(name: str, env_spec: gym.envs.registration.EnvSpec | None, seed: int | None) -> Transitions:
    if name.startswith(SCRIPTED_PREFIX):
        return _collect_scripted(name, env_spec, seed)
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return _load_npz(path)
    return _load_minari(name, path)


def _collect_scripted(name: str, env_spec: gym.envs.registration.EnvSpec | None, seed: int | None) -> Transitions:
    count = name.removeprefix(SCRIPTED_PREFIX)
    if not count.isdigit() or int(count) == 0:
        raise DatasetError(f"demos={name!r}: write the number of episodes after the colon, as in 'scripted:10'.")
    if env_spec is None:
        raise DatasetError(f"demos={name!r} needs an environment that was made by gym.make; pass a dataset instead.")
    env = gym.make(env_spec)
    try:
        episodes = rollout_episodes(env, scripted_expert(env), n_episodes=int(count), seed=seed or 0)
    finally:
        env.close()
    return Transitions.from_episodes(episodes, source=f"demos={name!r}", env_id=env_spec.id)


def _load_npz(path: Path) -> Transitions:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError as error:
        raise DatasetError(f"There is no file {path}.") from error
    except Exception as error:  # a broken archive raises one of zipfile's, zlib's or NumPy's many errors
        raise DatasetError(f"{path} is no readable .npz archive ({error}). Write it with numpy.savez.") from error
    return Transitions.from_arrays(arrays, source=str(path))


def _load_minari(name: str, path: Path) -> Transitions:
    import minari
    from minari import MinariDataset

    try:
        if path.is_dir():
            data = path / "data"
            dataset = MinariDataset(data if data.is_dir() else path)
        elif (dataset_id := minari_id(name)) in minari.list_local_datasets():
            dataset = minari.load_dataset(dataset_id)
        else:
            raise DatasetError(
                f"There is no folder {name!r} and no local Minari dataset {dataset_id!r}. Collect it (sb3-ext collect "
                f"--help), download it (minari download {dataset_id}) or set MINARI_DATASETS_PATH to where it lies."
            )
        episodes = list(dataset.iterate_episodes())
    except DatasetError:
        raise
    except Exception as error:  # h5py, JSON and Minari each have errors of their own for a damaged dataset
        raise DatasetError(f"The Minari dataset {name!r} cannot be read: {type(error).__name__}: {error}") from error
    env_spec = dataset.env_spec
    return Transitions.from_episodes(episodes, source=f"{name!r}", env_id=env_spec.id if env_spec else None)
