"""Demonstrations from whatever a user has: a Minari dataset, a file, arrays, or the environment's scripted expert."""

import os
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
        - a path: a Minari dataset folder, an ``.hdf5`` file in D4RL's layout, or an ``.npz`` file with the columns of
          :class:`~sb3_ext.datasets.Transitions`,
        - ``"scripted:10"``: ten successful episodes of the environment's scripted expert, collected on the spot,
        - a mapping of arrays or a ``Transitions`` object.
    :param env_spec: Gymnasium's spec of the environment that the demonstrations are for. ``"scripted:N"`` needs it.
    :param seed: seed of the episodes of ``"scripted:N"``
    :raises DatasetError: nothing is found, or what is found is empty, broken or of an environment with another id.
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
        raise DatasetError(
            f"{transitions.source} was recorded in {transitions.env_id}, but training is in {env_spec.id}. If that is "
            "meant, say so: demos=dataclasses.replace(load_demonstrations(...), env_id=None)."
        )
    return transitions


def _load_named(name: str, env_spec: gym.envs.registration.EnvSpec | None, seed: int | None) -> Transitions:
    if name.startswith(SCRIPTED_PREFIX):
        return _collect_scripted(name, env_spec, seed)
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return _load_npz(path)
    if path.suffix in (".hdf5", ".h5"):
        return _load_d4rl(path)
    if os.sep in name and not path.is_dir() and not _is_minari_id(name):
        raise DatasetError(f"There is nothing at {name!r}, and it is no Minari id. Files end in .npz, .hdf5 or .h5.")
    return _load_minari(name, path)


def _is_minari_id(name: str) -> bool:
    try:
        minari_id(name)
    except DatasetError:
        return False
    return True


def _collect_scripted(name: str, env_spec: gym.envs.registration.EnvSpec | None, seed: int | None) -> Transitions:
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


def _load_d4rl(path: Path) -> Transitions:
    """
    D4RL's raw layout (Fu et al. 2020, https://arxiv.org/abs/2004.07219), without the ``d4rl`` package. Where the file
    has no next observations they are the next rows, and steps cut off by a timeout are dropped, as in its
    ``qlearning_dataset``: what they led to is not in the file.
    """
    import h5py

    needed = ("observations", "actions", "rewards", "terminals")
    optional = ("timeouts", "next_observations")
    try:
        with h5py.File(path, "r") as file:
            columns = {key: file[key][:] for key in (*needed, *optional) if key in file}
    except FileNotFoundError as error:
        raise DatasetError(f"There is no file {path}.") from error
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError or TypeError, by what is broken
        raise DatasetError(f"{path} is no readable HDF5 file ({type(error).__name__}: {error}).") from error
    missing = [key for key in needed if key not in columns]
    if missing:
        raise DatasetError(f"{path} lacks the columns {missing}: D4RL's layout has {list(needed)} and timeouts.")
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) != 1 or len(columns["actions"]) < 2:
        raise DatasetError(f"{path}: columns need one row a step, and two steps at least; found {lengths}.")

    terminations = columns["terminals"].astype(bool).reshape(-1)
    cut = columns.get("timeouts", np.zeros(len(terminations))).astype(bool).reshape(-1) & ~terminations
    cut[-1] |= not terminations[-1]
    truncations, keep = cut.copy(), np.ones(len(cut), dtype=bool)
    if "next_observations" not in columns:
        columns["next_observations"] = np.concatenate([columns["observations"][1:], columns["observations"][-1:]])
        keep = ~cut
        truncations = np.append(cut[1:], False) & ~terminations  # the last step that is kept
    return Transitions.from_arrays(
        {
            "observations": columns["observations"][keep],
            "actions": columns["actions"][keep],
            "rewards": columns["rewards"][keep],
            "next_observations": columns["next_observations"][keep],
            "terminations": terminations[keep],
            "truncations": truncations[keep],
        },
        source=str(path),
    )


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
