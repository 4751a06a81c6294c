"""
Our own format: a folder of one ``.npy`` file a column and ``dataset.json``. Columns are memory-mapped, so that opening
costs nothing and reading is what the machine's page cache allows. The cache of :func:`~sb3_ext.datasets.load` is made
of such folders.
"""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sb3_ext.datasets.dataset import Dataset, Metadata, leaves
from sb3_ext.datasets.errors import DatasetError

INDEX = "dataset.json"
FORMAT_VERSION = 1
# Part of the cache's keys: raised where reading a source gives other data than before
READER_VERSION = 1
ATTEMPTS = 5
COLUMNS = ("rows", "next_rows", "actions", "rewards", "terminations", "truncations")

# A column that is a Dict of arrays, such as observations and infos: file names by position, keys in the index
_DICTS = ("frames", "infos")


def is_dataset_folder(path: Path) -> bool:
    """Whether :func:`write_folder` made this folder."""
    return (path / INDEX).is_file()


def write_folder(dataset: Dataset, path: Path, extra: Mapping[str, Any] | None = None) -> None:
    """
    :param path: folder to write; a dataset that is there is replaced once all is written
    :param extra: further entries of the index
    :raises DatasetError: it cannot be written, or something else is there.
    """
    if path.exists() and not is_dataset_folder(path) and not (path.is_dir() and not any(path.iterdir())):
        raise DatasetError(f"{path} exists and is no dataset. Choose another folder.")
    index: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "writing": uuid.uuid4().hex,
        "metadata": dataset.metadata.to_dict(),
        **(extra or {}),
    }
    with replacing_folder(path) as temporary:
        for name in COLUMNS:
            np.save(temporary / f"{name}.npy", getattr(dataset, name))
        for name, columns in (("frames", leaves(dataset.frames)), ("infos", dict(dataset.infos))):
            index[name] = list(columns)
            for i, column in enumerate(columns.values()):
                np.save(temporary / f"{name}_{i}.npy", column)
        (temporary / INDEX).write_text(json.dumps(index))


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """
    A temporary folder beside ``path`` that takes its place when all is written.

    :raises DatasetError: it cannot be written; what was there before is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error}") from error
    replaced = temporary / "replaced"
    new = temporary / "new"
    try:
        new.mkdir()
        yield new
        if path.exists():
            path.rename(replaced)
        new.rename(path)
    except BaseException as error:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        if isinstance(error, OSError):
            raise DatasetError(f"{path} cannot be written: {error}") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_index(path: Path) -> dict[str, Any]:
    """:raises DatasetError: the folder's index is missing or broken."""
    try:
        index = json.loads((path / INDEX).read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is no dataset folder: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT_VERSION:
        raise DatasetError(f"{path} has a format that this version of sb3_ext cannot read. Convert the source again.")
    return index


def read_folder(path: Path) -> Dataset:
    """
    Columns are mapped copy-on-write: changing an array leaves the files as they are.

    :raises DatasetError: a file is missing, cut off or does not fit the others.
    """
    return _read_whole(path)[1]


def _read_whole(path: Path) -> tuple[dict[str, Any], Dataset]:
    """Index and columns of the same writing: another process may replace the folder in between."""
    for attempt in range(ATTEMPTS):
        index = read_index(path)
        try:
            dataset = _map_columns(path, index)
        except DatasetError:
            if attempt == ATTEMPTS - 1 or read_index(path) == index:
                raise
            continue
        if read_index(path) == index:
            return index, dataset
    raise DatasetError(f"{path} is being replaced again and again. Wait until its writer is done.")


def _map_columns(path: Path, index: dict[str, Any]) -> Dataset:
    keys: dict[str, list[str]] = {name: index.get(name) or [] for name in _DICTS}
    if not all(isinstance(names, list) and all(isinstance(key, str) for key in names) for names in keys.values()):
        raise DatasetError(f"{path}: the index does not name the columns. Convert the source again.")
    columns = {name: _map(path / f"{name}.npy") for name in COLUMNS}
    frames = {key: _map(path / f"frames_{i}.npy") for i, key in enumerate(keys["frames"])}
    infos = {key: _map(path / f"infos_{i}.npy") for i, key in enumerate(keys["infos"])}
    _check(path, columns, frames)
    metadata = Metadata.from_dict(index.get("metadata", {}))
    return Dataset(frames=frames[""] if list(frames) == [""] else frames, infos=infos, metadata=metadata, **columns)


def _map(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="c", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, OverflowError) as error:
        raise DatasetError(f"{file} cannot be read: {error}. Convert the source again.") from error


def _check(path: Path, columns: Mapping[str, np.ndarray], frames: Mapping[str, np.ndarray]) -> None:
    expected = {"rows": "i", "next_rows": "i", "rewards": "f", "terminations": "b", "truncations": "b"}
    wrong = [name for name, kind in expected.items() if columns[name].dtype.kind != kind or columns[name].ndim != 1]
    everything = {**columns, **frames}
    wrong += [name for name, column in everything.items() if column.dtype.kind == "f" and column.dtype != np.float32]
    wrong += [
        name
        for name, column in everything.items()
        if column.dtype == bool and column.size and column.view(np.uint8).max() > 1
    ]
    counts = {len(frame) if frame.ndim else -1 for frame in frames.values()}
    if wrong or len(counts) != 1 or columns["actions"].ndim < 1:
        raise DatasetError(f"{path}: the columns {wrong or list(frames)} are malformed. Convert the source again.")
    n_frames = counts.pop()
    for name in ("rows", "next_rows"):
        if columns[name].size and not 0 <= columns[name].min() <= columns[name].max() < n_frames:
            raise DatasetError(f"{path}: {name} point outside the observations. Convert the source again.")


def cache_folder() -> Path:
    """``SB3_EXT_CACHE``, or ``~/.cache/sb3_ext`` (below ``XDG_CACHE_HOME`` where that is set)."""
    own = os.environ.get("SB3_EXT_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sb3_ext"


class CacheEntry:
    """
    Where the columns of one source are kept between runs.

    :param source: file or folder that was read
    :param options: what else decides on the result, such as the names of extra columns
    """

    def __init__(self, source: Path, options: Mapping[str, Any]):
        place = hashlib.sha256(
            json.dumps([READER_VERSION, str(source.resolve()), options], sort_keys=True).encode()
        ).hexdigest()[:16]
        self.path = cache_folder() / "columns" / f"{source.stem}-{place}"
        self.key = fingerprint(source)

    def read(self) -> Dataset | None:
        """The dataset, or None if there is none, or one of an older state of the source, or a broken one."""
        try:
            index, dataset = _read_whole(self.path)
        except DatasetError:
            return None
        return dataset if index.get("key") == self.key else None

    def write(self, dataset: Dataset) -> None:
        """:raises DatasetError: the cache cannot be written."""
        if self.path.is_dir() and not is_dataset_folder(self.path):
            shutil.rmtree(self.path, ignore_errors=True)  # what is left of an entry
        try:
            write_folder(dataset, self.path, {"key": self.key})
        except DatasetError:
            if self.read() is None:  # else another process was faster
                raise


def fingerprint(source: Path) -> str:
    """
    A hash that changes when a file or a file in a folder does: of names, sizes and times of change, and of samples of
    the content. The time of change (ctime) cannot be set back by a copy or an edit.
    """
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(
            f"{file.name}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}".encode()
        )
        with file.open("rb") as stream:
            for position in {0, status.st_size // 2, max(status.st_size - 4096, 0)}:
                stream.seek(position)
                digest.update(stream.read(4096))
    return digest.hexdigest()
