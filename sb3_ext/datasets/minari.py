"""
Minari datasets: read by columns, written through Minari (https://minari.farama.org).

Minari's ``iterate_episodes`` opens and decodes every column of every episode. Here only the columns that training needs
are read, all episodes of a column at once.
"""

import inspect
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minari.dataset.minari_storage import is_image_space
from minari.serialization import deserialize_space

from sb3_ext.datasets import hdf5
from sb3_ext.datasets.checks import BadEpisodes, count
from sb3_ext.datasets.dataset import (
    GOAL_KEY,
    SUCCESS_KEYS,
    Dataset,
    Metadata,
    as_flags,
    as_float32,
    as_rewards,
    episode_rows,
    leaves,
    map_observations,
    registered_spec,
)
from sb3_ext.datasets.errors import DatasetError

if TYPE_CHECKING:
    from minari import MinariDataset
    from minari.data_collector import EpisodeBuffer

STEP_COLUMNS = ("actions", "rewards", "terminations", "truncations")
MAIN_FILE = "main_data.hdf5"

# Values of all episodes one after the other, and the rows of each
Column = tuple[np.ndarray, np.ndarray]


def minari_id(name: str) -> str:
    """
    ``"hammer-10" -> "hammer-10-v0"``: Minari ids end in a version.

    :raises DatasetError: the name cannot be an id.
    """
    from minari.dataset.minari_dataset import parse_dataset_id

    dataset_id = name if re.search(r"-v\d+$", name) else f"{name}-v0"
    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise DatasetError(
            f"{name!r} cannot be the id of a Minari dataset: write letters, digits, '-' and '_', as in 'hammer-10'."
        ) from error
    return dataset_id


def data_folder(path: Path) -> Path | None:
    """The folder that holds a Minari dataset's ``metadata.json``: this one or its ``data``; None if there is none."""
    return next((folder for folder in (path, path / "data") if (folder / "metadata.json").is_file()), None)


@dataclass(frozen=True)
class _Header:
    """What ``metadata.json`` says."""

    folder: Path
    total_episodes: int
    data_format: str
    jpeg_encoding: bool
    metadata: Metadata


def read_minari(folder: Path, source: str, infos: bool | Sequence[str], bad_episodes: BadEpisodes) -> Dataset:
    """
    :param folder: the folder that holds ``metadata.json``
    :param source: what to call it in messages
    :param infos: which infos to read: names, or True for all
    :param bad_episodes: what to do with episodes whose columns do not fit together; ``"repair"`` keeps the steps that
        have an observation on both sides
    :raises DatasetError: the dataset is broken, of an unknown version or empty; Arrow data without pyarrow.
    """
    header = _read_header(folder, source)
    if header.total_episodes < 1:
        raise DatasetError(f"{source} holds no transitions. Collect some: sb3-ext collect --help")
    observation_space = header.metadata.observation_space
    parts = (
        list(observation_space.spaces.values()) if isinstance(observation_space, spaces.Dict) else [observation_space]
    )
    if any(isinstance(part, (spaces.Dict, spaces.Tuple, spaces.Text)) for part in parts):
        raise DatasetError(
            f"{source}: observations are {observation_space}; SB3 takes Boxes, Discrete and a flat Dict."
        )
    keys = list(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else [""]
    names = {key: f"observations/{key}" if key else "observations" for key in keys}
    wanted = [*names.values(), *STEP_COLUMNS]
    readers = {"hdf5": _read_hdf5, "arrow": _read_arrow, "parquet": _read_arrow}
    if header.data_format not in readers:
        raise DatasetError(f"{source} is stored as {header.data_format!r}; known are {', '.join(readers)}.")
    has_files_inside = header.jpeg_encoding and any(part is not None and is_image_space(part) for part in parts)
    columns = (_read_by_episode if has_files_inside else readers[header.data_format])(header, wanted, infos)
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise DatasetError(f"{source} lacks the columns {missing}.")
    return _assemble(header, {key: columns.pop(name) for key, name in names.items()}, columns, bad_episodes)


def _read_header(folder: Path, source: str) -> _Header:
    from minari import __version__, supported_dataset_versions

    try:
        raw = json.loads((folder / "metadata.json").read_text())
        version = raw["minari_version"]
        if version not in supported_dataset_versions:
            raise DatasetError(f"Minari {__version__} does not support data of version {version}: update Minari.")
        observation_space, action_space = (
            deserialize_space(raw[name]) if name in raw else None for name in ("observation_space", "action_space")
        )
        env_spec = raw.get("env_spec")
        env_id = None if env_spec is None else json.loads(env_spec)["id"]
        metadata = Metadata(
            source=source,
            dataset_id=raw.get("dataset_id"),
            env_id=env_id,
            env_spec=env_spec,
            observation_space=observation_space,
            action_space=action_space,
            ref_min_score=raw.get("ref_min_score"),
            ref_max_score=raw.get("ref_max_score"),
            description=raw.get("description"),
        )
        return _Header(
            folder, int(raw["total_episodes"]), raw.get("data_format", "hdf5"), raw.get("jpeg_encoding", True), metadata
        )
    except Exception as error:  # JSON's, Gymnasium's and a wrong type's errors
        raise DatasetError(f"The Minari dataset {source} cannot be read: {type(error).__name__}: {error}") from error


def _check_count(header: _Header, found: int) -> None:
    if header.total_episodes != found:
        raise DatasetError(
            f"{header.metadata.source}: the metadata speak of {header.total_episodes} episodes, {found} are there. Was "
            "the recording or a copy broken off?"
        )


def _info_names(available: Sequence[str], infos: bool | Sequence[str]) -> list[str]:
    names = available if infos is True else [name for name in infos or () if name in available]
    return [name for name in names if name]


def _read_hdf5(header: _Header, wanted: Sequence[str], infos: bool | Sequence[str]) -> dict[str, Column]:
    path = header.folder / MAIN_FILE
    _check_count(header, hdf5.count_members(path))
    names = [*wanted]
    if infos is True:
        first = "episode_0/infos/"
        names += [f"infos/{key.removeprefix(first)}" for key in hdf5.list_columns(path) if key.startswith(first)]
    else:
        names += [f"infos/{key}" for key in infos or ()]
    return hdf5.read_episodes(path, [f"episode_{i}" for i in range(header.total_episodes)], names)


def _read_arrow(header: _Header, wanted: Sequence[str], infos: bool | Sequence[str]) -> dict[str, Column]:
    """Arrow and Parquet data: a folder an episode. Its last row holds the last observation and no step."""
    try:
        import pyarrow as pa
        import pyarrow.dataset as arrow_dataset
    except ImportError as error:
        raise DatasetError(
            f"{header.metadata.source} is stored as {header.data_format}: pip install 'sb3-ext[arrow]'."
        ) from error
    _check_count(header, sum(path.name.isdigit() for path in header.folder.iterdir()))
    parts: dict[str, list[np.ndarray]] = {}
    try:
        for i in range(header.total_episodes):
            files = sorted((header.folder / str(i)).glob(f"*.{header.data_format}"))
            table = arrow_dataset.dataset([str(file) for file in files], format=header.data_format).to_table()
            for name, column in _arrow_columns(table.combine_chunks(), infos):
                is_step = name in STEP_COLUMNS
                parts.setdefault(name, []).append(column[:-1] if is_step else column)
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise DatasetError(f"{header.metadata.source} cannot be read: {type(error).__name__}: {error}") from error
    return _join(header, parts)


def _join(header: _Header, parts: dict[str, list[np.ndarray]]) -> dict[str, Column]:
    """Columns of all episodes from those of each."""
    uneven = [name for name, columns in parts.items() if len(columns) != header.total_episodes]
    if uneven:
        raise DatasetError(f"{header.metadata.source}: some episodes lack the columns {uneven}.")
    shapes = _shapes(header.metadata)
    return {name: _concatenate(name, columns, shapes.get(name), header) for name, columns in parts.items()}


def _arrow_columns(table: Any, infos: bool | Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    for name in table.column_names:
        if name == "episode_id":
            continue
        for path, array in _arrow_leaves(name, table.column(name).combine_chunks()):
            if not path.startswith("infos/") or _info_names([path.removeprefix("infos/")], infos):
                yield path, array


def _arrow_leaves(name: str, array: Any) -> Iterator[tuple[str, np.ndarray]]:
    import pyarrow as pa

    if pa.types.is_struct(array.type):
        for child in array.type:
            for path, values in _arrow_leaves(f"{name}/{child.name}", array.field(child.name)):
                shape = (child.metadata or {}).get(b"shape")  # Minari's note of the shape of a step
                if shape is not None and path == f"{name}/{child.name}":
                    values = values.reshape(len(values), *map(int, filter(None, shape.split(b","))))
                yield path, values
    elif pa.types.is_fixed_size_list(array.type):
        flat = array.flatten().to_numpy(zero_copy_only=False)
        yield name, flat.reshape(len(array), array.type.list_size)
    elif not (pa.types.is_string(array.type) or pa.types.is_nested(array.type) or pa.types.is_null(array.type)):
        yield name, array.to_numpy(zero_copy_only=False)


def _shapes(metadata: Metadata) -> dict[str, tuple[int, ...]]:
    """Shapes of a step, which Arrow's lists flatten."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, space in (("observations", metadata.observation_space), ("actions", metadata.action_space)):
        if isinstance(space, spaces.Dict):
            shapes |= {f"{name}/{key}": part.shape for key, part in space.spaces.items() if part.shape is not None}
        elif space is not None and space.shape is not None:
            shapes[name] = space.shape
    return shapes


def _concatenate(name: str, columns: list[np.ndarray], shape: tuple[int, ...] | None, header: _Header) -> Column:
    lengths = np.array([len(column) for column in columns])
    values = as_float32(np.concatenate(columns))
    if values.dtype.kind not in "biuf":
        raise DatasetError(f"{header.metadata.source}: {name} hold {values.dtype}, no numbers.")
    if shape is not None and values.size:
        try:
            values = values.reshape(len(values), *shape)
        except ValueError as error:
            raise DatasetError(f"{header.metadata.source}: {name} do not have the shape {shape}: {error}") from error
    return values, lengths


def _assemble(
    header: _Header, observations: dict[str, Column], columns: dict[str, Column], bad_episodes: BadEpisodes
) -> Dataset:
    source = header.metadata.source
    n_observations = np.stack([lengths for _, lengths in observations.values()])
    n_steps = np.stack([columns[name][1] for name in STEP_COLUMNS])
    bad = (n_steps != n_steps[0]).any(axis=0) | (n_observations != n_steps[0] + 1).any(axis=0)
    counts = n_steps[0]
    if bad.any():
        if bad_episodes == "raise":
            i = int(np.flatnonzero(bad)[0])
            raise DatasetError(
                f"{source}: {bad.sum()} of {len(bad)} episodes are malformed. Episode {i} has {n_steps[1][i]} rewards, "
                f"{n_steps[0][i]} actions and {n_observations[0][i]} observations; T steps need T + 1 observations. "
                "bad_episodes='drop' (--bad-episodes drop) leaves them out, 'repair' keeps their complete steps."
            )
        complete = np.minimum(n_steps.min(axis=0), n_observations.min(axis=0) - 1).clip(min=0)
        counts = np.where(bad, 0 if bad_episodes == "drop" else complete, counts)
    if counts.sum() == 0:
        raise DatasetError(f"{source} holds no transitions. Collect some: sb3-ext collect --help")

    def steps(name: str, offset: int = 0) -> np.ndarray:
        values, lengths = columns[name]
        return values if not bad.any() and offset == 0 else values[episode_rows(lengths, counts, offset)]

    first = next(iter(observations.values()))[1]
    aligned = {key: _align(values, lengths, first) for key, (values, lengths) in observations.items()}
    rows = episode_rows(first, counts)
    dataset = Dataset(
        frames=aligned[""] if list(aligned) == [""] else aligned,
        rows=rows,
        next_rows=rows + 1,
        actions=steps("actions"),
        rewards=as_rewards(steps("rewards"), source),
        terminations=as_flags(steps("terminations"), f"{source}: terminations"),
        truncations=as_flags(steps("truncations"), f"{source}: truncations"),
        infos=_infos(columns, n_steps[0], bad, counts, source, steps),
        metadata=header.metadata,
    )
    if not bad.any():
        return dataset
    dataset = dataset.select(np.arange(len(dataset)))  # lets go of frames that nothing uses
    return count(dataset, "dropped episodes" if bad_episodes == "drop" else "shortened episodes", int(bad.sum()))


def _align(values: np.ndarray, lengths: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Rows of a malformed episode's key where those of the first key are; missing ones repeat a row nobody uses."""
    if (lengths == expected).all():
        return values
    starts = np.repeat(np.cumsum(lengths) - lengths, expected)
    within = episode_rows(expected, expected) - np.repeat(np.cumsum(expected) - expected, expected)
    return values[np.minimum(starts + np.minimum(within, np.repeat(lengths, expected)), len(values) - 1)]


def _infos(
    columns: dict[str, Column], recorded: np.ndarray, bad: np.ndarray, counts: np.ndarray, source: str, steps: Any
) -> dict[str, np.ndarray]:
    """Infos have a row a step, or one more in front for the reset; others are left out."""
    infos = {}
    for name, (_, lengths) in columns.items():
        if not name.startswith("infos/"):
            continue
        judges = ~bad if not bad.all() else counts > 0
        offset = next((k for k in (0, 1) if (lengths[judges] == recorded[judges] + k).all()), None)
        if offset is None or (lengths < np.where(counts > 0, counts + offset, 0)).any():
            warnings.warn(f"{source}: {name} is left out, its rows are not those of the steps.", stacklevel=2)
        else:
            infos[name.removeprefix("infos/")] = steps(name, offset)
    return infos


def _read_by_episode(header: _Header, wanted: Sequence[str], infos: bool | Sequence[str]) -> dict[str, Column]:
    """Through Minari, which decodes images that are stored as JPEG files."""
    from minari import MinariDataset

    source = header.metadata.source
    parts: dict[str, list[np.ndarray]] = {}
    try:
        for episode in MinariDataset(header.folder).iterate_episodes():
            for name in wanted:
                group, _, key = name.partition("/")
                values = getattr(episode, group)
                parts.setdefault(name, []).append(np.asarray(values[key] if key else values))
            available = {key: value for key, value in (episode.infos or {}).items() if isinstance(value, np.ndarray)}
            for key in _info_names(list(available), infos):
                parts.setdefault(f"infos/{key}", []).append(available[key])
    except Exception as error:  # h5py, Pillow and Minari each have errors of their own
        raise DatasetError(f"The Minari dataset {source} cannot be read: {type(error).__name__}: {error}") from error
    return _join(header, parts)


def write_minari(dataset: Dataset, name: str, data_format: str = "hdf5", overwrite: bool = False) -> "MinariDataset":
    """
    Write a local Minari dataset, below ``MINARI_DATASETS_PATH`` (Minari's default is ``~/.minari/datasets``).

    :param name: Minari id; ``-v0`` is added where the version is missing
    :param data_format: ``"hdf5"`` or ``"arrow"`` (needs pyarrow)
    :param overwrite: replace a dataset of that id
    :raises DatasetError: it exists, the spaces are unknown, pyarrow is missing, or it cannot be written.
    """
    import minari

    dataset_id = minari_id(name)
    check_free(dataset_id, overwrite)
    metadata = dataset.metadata
    observation_space, action_space = metadata.observation_space, metadata.action_space
    if observation_space is None or action_space is None:
        raise DatasetError(
            f"{dataset.source} does not name its spaces, which Minari needs: "
            "dataset.with_metadata(observation_space=env.observation_space, action_space=env.action_space)."
        )
    changed = [transform.name for transform in metadata.transforms if transform.changes_env]
    if changed:
        raise DatasetError(
            f"{dataset.source}: Minari cannot hold what was done to rewards or observations ({', '.join(changed)}); "
            "the data would no longer fit their environment. Save them without these transforms, or in another format."
        )
    env = _make_env(metadata)
    extra: dict[str, Any] = {"data_format": data_format, "description": metadata.description}
    if metadata.ref_max_score is not None:
        extra |= {"ref_min_score": metadata.ref_min_score, "ref_max_score": metadata.ref_max_score}
    try:
        with _replacing(dataset_id), warnings.catch_warnings():
            # Authors, links and other things that Minari would like to know
            warnings.filterwarnings("ignore", ".* is set to None", UserWarning)
            warnings.filterwarnings("ignore", "env_spec is None", UserWarning)
            return minari.create_dataset_from_buffers(
                dataset_id=dataset_id,
                buffer=list(_episode_buffers(dataset, info_of_reset=data_format == "arrow")),
                env=env,
                observation_space=observation_space,
                action_space=action_space,
                **_lossless(),
                **extra,
            )
    except ImportError as error:
        raise DatasetError(f"Minari cannot write {data_format}: pip install 'sb3-ext[arrow]'.") from error
    finally:
        if env is not None:
            env.close()


def check_free(dataset_id: str, overwrite: bool) -> None:
    """:raises DatasetError: a dataset of that id exists and must not be replaced."""
    import minari

    if not overwrite and dataset_id in minari.list_local_datasets():
        raise DatasetError(f"The Minari dataset {dataset_id!r} exists. Choose another --output or add --overwrite.")


def _make_env(metadata: Metadata) -> gym.Env | None:
    """Minari notes the environment only if it is handed one; without it the dataset is as good for training."""
    try:
        spec = registered_spec(metadata)
        return None if spec is None else gym.make(spec)
    except Exception as error:  # an environment that is not installed here raises whatever it likes
        warnings.warn(f"The written dataset does not name its environment: {error}", stacklevel=3)
        return None


def _episode_buffers(dataset: Dataset, info_of_reset: bool) -> "Iterator[EpisodeBuffer]":
    """Arrow's columns all have T + 1 rows: infos need one of the reset, which is not known and never read."""
    from minari.data_collector import EpisodeBuffer

    def info(column: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros_like(column[:1]), column]) if info_of_reset else column

    for i, (start, length) in enumerate(zip(dataset.starts, dataset.lengths, strict=True)):
        steps = slice(start, start + length)
        frames = np.append(dataset.rows[steps], dataset.next_rows[start + length - 1])
        observations = map_observations(lambda column, rows=frames: column[rows], dataset.frames)
        yield EpisodeBuffer(
            id=i,
            observations=_as_in(dataset.metadata.observation_space, observations),
            actions=_as_in(dataset.metadata.action_space, dataset.actions[steps]),
            rewards=dataset.rewards[steps],
            terminations=dataset.terminations[steps],
            truncations=dataset.truncations[steps],
            infos=_nested({key: info(column[steps]) for key, column in dataset.infos.items()}),
        )


def _as_in(space: spaces.Space | None, values: Any) -> Any:
    """In the space's own dtype; float32 widened to float64 comes back unchanged."""
    if isinstance(space, spaces.Dict):
        return {key: _as_in(space[key], values[key]) for key in leaves(values)}
    return values if space is None or space.dtype is None else np.asarray(values).astype(space.dtype)


def _nested(infos: Mapping[str, np.ndarray]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, column in infos.items():
        *groups, name = key.split("/")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = column
    return nested


def _lossless() -> dict[str, bool]:
    """Minari 0.5.4 compresses images as JPEG unless told not to; 0.5.3, the last for Python 3.10, never does."""
    from minari import create_dataset_from_buffers

    known = "jpeg_encoding" in inspect.signature(create_dataset_from_buffers).parameters
    return {"jpeg_encoding": False} if known else {}


@contextmanager
def _replacing(dataset_id: str) -> Iterator[None]:
    """While a dataset is written: an older one of that id waits aside, and comes back if the writing fails."""
    from minari.storage import get_dataset_path

    folder = get_dataset_path(dataset_id)
    aside = folder.with_name(f".{folder.name}.replaced")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if aside.exists():
            aside.rename(folder)
        if not isinstance(error, Exception) or isinstance(error, ImportError):
            raise
        raise DatasetError(f"The dataset {dataset_id!r} cannot be written: {type(error).__name__}: {error}") from error
    shutil.rmtree(aside, ignore_errors=True)


DEFAULT_INFOS = (*SUCCESS_KEYS, GOAL_KEY)
