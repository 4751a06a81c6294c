"""
Columns of HDF5 files as arrays, as fast as the disk gives them; broken and hostile files are a :class:`DatasetError`.

Structures are named as in the format's specification:
https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

import itertools
import math
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5p, h5s, h5t, h5z

from sb3_ext.datasets.errors import DatasetError

# The most that one byte of a deflate stream can stand for: https://zlib.net/zlib_tech.html
MAX_INFLATION = 1032
BOUNDED_FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_LZF}
GZIP = ([h5z.FILTER_DEFLATE], [h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE])
SIZE_KEEPING = {h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
MAX_THREADS = 8
MAX_NAME = 256
READ_SIZE = 1 << 20
# Signature, versions 0, sizes of offsets and lengths, leaf and internal node K, flags and base address of superblock 0
SUPERBLOCK = b"\x89HDF\r\n\x1a\n" + bytes(5) + b"\x08\x08\0\x04\0\x10\0" + bytes(12)
ROOT = 56  # Address of the root group's symbol table entry
SYMBOL = np.dtype([("name", "<i8"), ("header", "<i8"), ("", "<i8", 3)])
SYMBOL_NODE = np.dtype([("signature", "S4"), ("version", "u1"), ("", "u1"), ("used", "<u2"), ("symbols", SYMBOL, 8)])
HEAP = np.dtype([("signature", "S4"), ("version", "u1"), ("", "u1", 3), ("size", "<i8"), ("", "<i8"), ("data", "<i8")])
TREE_NODE = [("signature", "S4"), ("kind", "u1"), ("level", "u1"), ("used", "<u2"), ("", "<i8", 2)]
OBJECT_HEADER = np.dtype(
    [("version", "u1"), ("", "u1"), ("messages", "<u2"), ("", "<u4"), ("size", "<u4"), ("", "<u4")]
)
DATASPACE, DATATYPE, LAYOUT, CONTINUATION, SYMBOL_TABLE = 0x1, 0x3, 0x8, 0x10, 0x11
SYMBOL_TABLE_MESSAGE = np.dtype([("kind", "<u2"), ("", "u1", 6), ("tree", "<i8"), ("heap", "<i8")])
REQUIRED = {DATASPACE, DATATYPE, LAYOUT}
IGNORED = {0x0, 0x5, 0xC, 0x12}  # NIL, fill value, attribute, modification time
SHARED = 2
DAMAGED = "Download or record the dataset again."


def read_columns(path: Path, names: Sequence[str] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """
    Datasets of a flat file, which is D4RL's layout. Floats become float32, integers and booleans stay what they are.

    :param names: Full names such as ``"observations"`` or ``"infos/goal"``; one that is not in the file is left out.
        ``None`` takes all datasets of numbers or booleans.
    :return: Columns by name, and the file's attributes.
    :raises DatasetError: The file is missing or broken, larger than the memory, refers to other files, or a dataset
        of these names holds something else than numbers or booleans.
    """
    with _opened(path) as file:
        if names is None:
            found = {name: dataset for name, dataset in _walk(file) if _result_dtype(dataset) is not None}
        else:
            found = {name: dataset for name in names if (dataset := _find(file.id, name)) is not None}
        size = sum(_check(name, dataset, file.id.get_filesize()) for name, dataset in found.items())
        _check_memory(size)
        columns = {name: _read(file, dataset) for name, dataset in found.items()}
        return columns, _attributes(file)


def list_columns(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """
    Shape and dtype of each column that :func:`read_columns` would return, by name. No column is read.

    :raises DatasetError: The file is missing or broken, or has links.
    """
    with _opened(path) as file:
        listed = {name: (dataset.shape, _result_dtype(dataset)) for name, dataset in _walk(file)}
        return {name: (shape, dtype) for name, (shape, dtype) in listed.items() if dtype is not None}


def count_members(path: Path) -> int:
    """
    Number of groups and datasets at the top of a file.

    :raises DatasetError: The file is missing or broken.
    """
    with _opened(path) as file:
        return len(file)


def read_episodes(
    path: Path, episode_names: Sequence[str], names: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Datasets of a file with one group an episode, which is Minari's layout. Dtypes are as in :func:`read_columns`.

    :param episode_names: Names of the groups, such as ``"episode_0"``.
    :param names: Names of datasets in each group, such as ``"actions"`` or ``"observations/desired_goal"``; one that
        no episode has is left out.
    :return: By name, the values of all episodes one after the other along the first axis, and the length of each
        episode, shape ``(n_episodes,)``, int64.
    :raises DatasetError: As in :func:`read_columns`; an episode is missing, or only some episodes have a dataset, or
        it has another shape or dtype in some.
    """
    with _opened(path) as file:
        episodes = _episodes_in_bulk(file, episode_names)
        columns = {name: _read_column_of_episodes(file, episodes, episode_names, name) for name in names}
        return {name: column for name, column in columns.items() if column is not None}


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The file, opened for reading. Whatever goes wrong with it is a DatasetError with its path and the way out."""
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"There is no file {path}. Check the path, or download the dataset again.")
    if not path.is_file():
        raise DatasetError(f"{path} is not a file. Give the path of an HDF5 file.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error.__cause__
    except MemoryError as error:
        raise DatasetError(f"{path} does not fit into the memory. Read fewer columns.") from error
    except Exception as error:  # h5py has no class of its own: what it raises depends on the byte that is wrong
        raise DatasetError(f"{path} cannot be read ({error}). {DAMAGED}") from error


def _child(group: h5g.GroupID, key: bytes, name: str) -> Any:
    """The member of a group. Only hard links: all others may lead out of the file."""
    if group.links.get_info(key).type != h5l.TYPE_HARD:
        raise DatasetError(
            f"{name!r} is a link, which may lead to another file. Write a copy of the data in its place."
        )
    return h5o.open(group, key)


def _walk(file: h5py.File) -> Iterator[tuple[str, h5d.DatasetID]]:
    """Full names and datasets of the file, each group once, even where groups contain each other."""
    pending: list[tuple[str, h5g.GroupID]] = [("", file["/"].id)]
    seen = {h5o.get_info(file.id).addr}
    while pending:
        path, group = pending.pop(0)
        for key in group:
            name = f"{path}/{key.decode('utf-8', 'surrogateescape')}".lstrip("/")
            child = _child(group, key, name)
            if isinstance(child, h5d.DatasetID):
                yield name, child
            elif isinstance(child, h5g.GroupID) and (address := h5o.get_info(child).addr) not in seen:
                seen.add(address)
                pending.append((name, child))


def _find(group: h5g.GroupID, name: str, kind: type = h5d.DatasetID) -> Any:
    """The dataset (or what else is asked for) of this name, ``None`` where there is none."""
    found = group
    for part in name.split("/"):
        key = part.encode("utf-8", "surrogateescape")
        if not (key and isinstance(found, h5g.GroupID) and found.links.exists(key)):
            return None
        found = _child(found, key, name)
    return found if isinstance(found, kind) else None


def _result_dtype(dataset: h5d.DatasetID) -> np.dtype | None:
    """What the dataset is read as, ``None`` where it holds no numbers or booleans."""
    if dataset.shape is None:
        return None
    try:
        dtype = dataset.dtype
    except TypeError:  # a type that NumPy lacks
        return None
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return np.dtype(np.float32)
    return np.dtype(dtype.str).newbyteorder("=") if dtype.kind in "iub" else None


def _check(name: str, dataset: h5d.DatasetID, file_size: int) -> int:
    """
    Compare what the dataset claims to hold with what is stored, before memory is taken for it.

    :return: The bytes that it takes in memory.
    """
    dtype = _result_dtype(dataset)
    if dtype is None:
        raise DatasetError(f"{name!r} holds neither numbers nor booleans. Leave it out, or convert it to numbers.")
    properties = dataset.get_create_plist()
    layout = properties.get_layout()
    if layout == h5d.VIRTUAL or properties.get_external_count() > 0:
        raise DatasetError(f"{name!r} takes its data from other files. Write a copy of the data in its place.")
    claimed = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.get_storage_size()
    inflation = 1
    if layout == h5d.CHUNKED and claimed:
        chunk = properties.get_chunk()
        n_chunks = math.prod(-(-rows // chunk_rows) for rows, chunk_rows in zip(dataset.shape, chunk, strict=True))
        claimed = n_chunks * math.prod(chunk) * dataset.dtype.itemsize
        filters = _filters(properties)
        if filters:
            inflation = MAX_INFLATION if BOUNDED_FILTERS.issuperset(filters) else claimed
        if dataset.get_num_chunks() < n_chunks:
            raise DatasetError(f"{name!r} was never written in full, or the file is truncated. {DAMAGED}")
        _check_chunks(name, dataset, chunk, filters)
    if claimed > stored * inflation or stored > file_size:
        raise DatasetError(
            f"{name!r} should be {claimed:,} bytes, but {stored:,} are stored in a file of {file_size:,}: it was "
            f"never written in full, or is damaged. {DAMAGED}"
        )
    return math.prod(dataset.shape) * dtype.itemsize


def _check_chunks(name: str, dataset: h5d.DatasetID, shape: tuple[int, ...], filters: list[int]) -> None:
    """The index of the chunks: HDF5 reads past the end of a chunk that is smaller than it should be."""
    chunks: list[Any] = []
    if not hasattr(dataset, "chunk_iter"):  # HDF5 before 1.12.3
        return
    dataset.chunk_iter(chunks.append)
    corners = itertools.product(*(range(0, rows, step) for rows, step in zip(dataset.shape, shape, strict=True)))
    intact = sorted(chunk.chunk_offset for chunk in chunks) == list(corners)
    size = math.prod(shape) * dataset.dtype.itemsize + 4 * filters.count(h5z.FILTER_FLETCHER32)
    if SIZE_KEEPING.issuperset(filters):
        intact = intact and all(chunk.size == size for chunk in chunks)
    if filters not in GZIP:
        intact = intact and all(chunk.size >= size for chunk in chunks if chunk.filter_mask)  # left as they were
    if not intact:
        raise DatasetError(f"the index of the chunks of {name!r} is damaged. {DAMAGED}")


def _filters(properties: h5p.PropDCID) -> list[int]:
    return [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]


def _attributes(file: h5py.File) -> dict[str, Any]:
    """Attributes that are numbers, booleans or texts. Reading others of a broken file crashes HDF5."""
    kinds = {key: file.attrs.get_id(key).get_type() for key in file.attrs}
    texts = {key for key, kind in kinds.items() if isinstance(kind, h5t.TypeStringID)}
    if any(kinds[key].is_variable_str() for key in texts):
        _check_heaps(Path(file.filename))
    numbers = {key for key, kind in kinds.items() if kind.dtype.kind in "iufb"}
    return {key: file.attrs[key] for key in kinds if key in texts | numbers}


def _check_heaps(path: Path) -> None:
    """HDF5 2.0 never comes back from a global heap with an object of size 0, so look at them first."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(b"GCOL")
        while at >= 0:
            size = int.from_bytes(data[at + 8 : at + 16], "little")
            place, end = at + 16, min(at + size, len(data))
            while data[at + 4 : at + 8] == b"\1\0\0\0" and place + 16 <= end:
                length = int.from_bytes(data[place + 8 : place + 16], "little")
                if length == 0:
                    raise DatasetError(f"its attributes are damaged. {DAMAGED}")
                # The last object, number 0, is the free space with its header
                place += length if data[place : place + 2] == b"\0\0" else 16 + -(-length // 8) * 8
            at = data.find(b"GCOL", at + 4)


def _check_memory(size: int) -> None:
    """Refuse what does not fit into the memory."""
    if size > (free := _free_memory()):
        raise DatasetError(
            f"its columns take {size:,} bytes, but {free:,} bytes of memory are free. Read fewer columns."
        )


def _free_memory() -> float:
    """Bytes that can be taken, where the system tells it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return math.inf


def _read(file: h5py.File, dataset: h5d.DatasetID) -> np.ndarray:
    column = np.zeros(dataset.shape, _result_dtype(dataset))
    if _is_plain_gzip(file, dataset):
        _read_gzip(file, dataset, column)
    else:
        dataset.read(h5s.ALL, h5s.ALL, column)
    return _with_true_booleans(column)


def _with_true_booleans(column: np.ndarray) -> np.ndarray:
    """Any byte but 0 means true: NumPy counts on 0 and 1, a file may hold others."""
    if column.dtype == bool:
        np.not_equal(column.view(np.uint8), 0, out=column)
    return column


def _holds_numpy_bytes(dataset: h5d.DatasetID) -> bool:
    """Whether the stored bytes are those of a NumPy array, with nothing for HDF5 to convert."""
    return h5t.py_create(dataset.dtype) == dataset.get_type()


def _is_plain_gzip(file: h5py.File, dataset: h5d.DatasetID) -> bool:
    """Chunks that :func:`_read_gzip` can inflate: [shuffle and] deflate, and where they lie in the file is known."""
    known_places = file.driver == "sec2" and file.userblock_size == 0 and hasattr(os, "pread")
    if not (known_places and hasattr(dataset, "chunk_iter")):  # HDF5 before 1.12.3 lacks it
        return False
    properties = dataset.get_create_plist()
    in_file = properties.get_layout() == h5d.CHUNKED and math.prod(dataset.shape) > 0
    return in_file and _filters(properties) in GZIP and _holds_numpy_bytes(dataset)


def _read_gzip(file: h5py.File, dataset: h5d.DatasetID, column: np.ndarray) -> None:
    """Inflate the chunks on all cores; HDF5 does it on one."""
    properties, dtype = dataset.get_create_plist(), dataset.dtype
    shape, filters, descriptor = properties.get_chunk(), _filters(properties), file.id.get_vfd_handle()
    size = math.prod(shape) * dtype.itemsize
    chunks: list[Any] = []
    dataset.chunk_iter(chunks.append)

    def inflate(chunk: Any) -> np.ndarray:
        data = os.pread(descriptor, chunk.size, chunk.byte_offset)
        # A bit of the mask says that the filter was left out for this chunk
        if not chunk.filter_mask >> filters.index(h5z.FILTER_DEFLATE) & 1:
            stream = zlib.decompressobj()
            data = stream.decompress(data, size + 1)  # The limit: a few bytes can inflate to terabytes
            data = data if stream.eof else b""
        if len(data) != size:
            raise DatasetError(f"a compressed chunk is damaged. {DAMAGED}")
        if h5z.FILTER_SHUFFLE in filters and not chunk.filter_mask & 1:
            data = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
        return np.frombuffer(data, dtype).reshape(shape)

    def place(part: int) -> None:
        with np.errstate(all="ignore"):  # float64 that overflows float32 becomes inf, as with HDF5
            for chunk in chunks[part * len(chunks) // n_parts : (part + 1) * len(chunks) // n_parts]:
                target = column[tuple(slice(at, at + step) for at, step in zip(chunk.chunk_offset, shape, strict=True))]
                target[...] = inflate(chunk)[tuple(map(slice, target.shape))]

    n_threads = min(os.cpu_count() or 1, MAX_THREADS)
    n_parts = 4 * n_threads
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(place, range(n_parts)))


def _episodes_in_bulk(file: h5py.File, episode_names: Sequence[str]) -> "_Episodes | None":
    try:
        return _Episodes(file, episode_names)
    except _Unfamiliar:
        for episode in episode_names:
            if _find(file.id, episode, h5g.GroupID) is None:
                raise DatasetError(f"it has no episode {episode!r}. {DAMAGED}") from None
        return None


def _read_column_of_episodes(
    file: h5py.File, episodes: "_Episodes | None", episode_names: Sequence[str], name: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """One column of :func:`read_episodes`, the fast way where the file has the structure for it."""
    if episodes is not None:
        with suppress(_Unfamiliar):
            return episodes.read(name)
    return _read_one_by_one(file, episode_names, name)


def _read_one_by_one(file: h5py.File, episode_names: Sequence[str], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """One column of :func:`read_episodes`: every dataset is opened twice, so that few are open at a time."""
    lengths = np.zeros(len(episode_names), np.int64)
    missing: list[str] = []
    first, size = None, 0
    for index, episode in enumerate(episode_names):
        dataset = _find(file.id, f"{episode}/{name}")
        if dataset is None:
            missing.append(episode)
            continue
        size += _check(f"{episode}/{name}", dataset, file.id.get_filesize())
        kind = (*dataset.shape[1:], _result_dtype(dataset))
        first = first or kind
        if kind != first or not dataset.shape:
            raise DatasetError(
                f"'{episode}/{name}' has shape {dataset.shape} and dtype {kind[-1]}, which is not that of the "
                f"other episodes. {DAMAGED}"
            )
        lengths[index] = dataset.shape[0]
    if first is None:
        return None
    if missing:
        raise DatasetError(f"{len(missing)} episodes have no {name!r}, the first is {missing[0]!r}. {DAMAGED}")
    _check_memory(size)
    column = np.zeros((int(lengths.sum()), *first[:-1]), first[-1])
    for episode, part in zip(episode_names, np.split(column, np.cumsum(lengths)[:-1]), strict=True):
        if part.size:
            _find(file.id, f"{episode}/{name}").read(h5s.ALL, h5s.ALL, part)
    return _with_true_booleans(column), lengths


class _Unfamiliar(Exception):
    """The file's structure is not the one that :class:`_Episodes` reads in bulk."""


class _Episodes:
    """
    Reads the structure of a file as h5py's defaults write it (superblock 0, groups as symbol tables, object headers
    of version 1, chunks without filters), for all episodes at once. HDF5 takes longer to open a dataset than to read
    it. Nothing that the file says is relied on unchecked; whatever else it has is :class:`_Unfamiliar`.
    """

    def __init__(self, file: h5py.File, episode_names: Sequence[str]):
        if not (file.driver == "sec2" and hasattr(os, "pread")):
            raise _Unfamiliar
        self.file, self.descriptor, self.size = file, file.id.get_vfd_handle(), file.id.get_filesize()
        self.first = episode_names[0] if episode_names else ""
        if os.pread(self.descriptor, len(SUPERBLOCK), 0) != SUPERBLOCK:
            raise _Unfamiliar
        root = self.gather(np.array([ROOT]), SYMBOL)
        members = self.members(root)
        keys = [name.encode("utf-8", "surrogateescape") for name in episode_names]
        entries = [entry for key in keys if (entry := members.get(key)) is not None]
        _require(len(keys) > 0, len(entries) == len(keys))
        self.groups = {"": self.members(np.concatenate(entries))}

    def gather(self, addresses: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """The structures at these addresses."""
        _require(addresses >= 0, addresses <= self.size - dtype.itemsize)
        parts = [os.pread(self.descriptor, dtype.itemsize, address) for address in addresses.tolist()]
        data = b"".join(parts)
        _require(len(data) == len(parts) * dtype.itemsize)
        return np.frombuffer(data, dtype)

    def leaves(self, roots: np.ndarray, kind: int, key: np.dtype | str, fanout: int) -> tuple[np.ndarray, np.ndarray]:
        """
        What B-trees of version 1 lead to.

        :return: For each leaf, the index of its tree and the (key, address), in the order of the trees.
        """
        node = np.dtype([*TREE_NODE, ("children", [("key", key), ("address", "<i8")], fanout)])
        owners, addresses, levels = np.arange(len(roots)), roots, None
        found = []
        while len(addresses):
            _require(len(np.unique(addresses)) == len(addresses))  # else a small file could hold an endless tree
            nodes = self.gather(addresses, node)
            _require(nodes["signature"] == b"TREE", nodes["kind"] == kind, nodes["used"] <= fanout)
            _require(levels is None or nodes["level"] == levels)
            parents, slots = np.nonzero(np.arange(fanout) < nodes["used"][:, None])
            children, leaf = nodes["children"][parents, slots], nodes["level"][parents] == 0
            found.append((owners[parents][leaf], children[leaf]))
            owners, addresses = owners[parents][~leaf], children["address"][~leaf]
            levels = nodes["level"][parents][~leaf] - 1
        owners, children = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(owners, kind="stable")
        return owners[order], children[order]

    def members(self, groups: np.ndarray) -> dict[bytes, np.ndarray | None]:
        """Symbol table entries of the groups' members by name, one for each group."""
        _require(self.gather(groups["header"], OBJECT_HEADER)["version"] == 1)
        tables = self.gather(groups["header"] + OBJECT_HEADER.itemsize, SYMBOL_TABLE_MESSAGE).copy()
        for _ in range(4):  # Attributes push the message into a continuation block, and that into another
            moved = tables["kind"] == CONTINUATION
            tables[moved] = self.gather(tables["tree"][moved], SYMBOL_TABLE_MESSAGE)
        _require(tables["kind"] == SYMBOL_TABLE)
        owners, children = self.leaves(tables["tree"], 0, "<i8", 32)
        nodes = self.gather(children["address"], SYMBOL_NODE)
        _require(nodes["signature"] == b"SNOD", nodes["version"] == 1, nodes["used"] <= 8)
        parents, slots = np.nonzero(np.arange(8) < nodes["used"][:, None])
        owners, symbols = owners[parents], nodes["symbols"][parents, slots]
        heaps = self.gather(tables["heap"], HEAP)
        _require(heaps["signature"] == b"HEAP", heaps["version"] == 0, heaps["data"] >= 0, heaps["data"] < self.size)
        _require(symbols["name"] >= 0, symbols["name"] < heaps["size"][owners])
        _require(heaps["size"] >= 0, heaps["size"] <= self.size)
        indices: dict[bytes, list[int]] = {}
        for index, address in enumerate((heaps["data"][owners] + symbols["name"]).tolist()):
            name = os.pread(self.descriptor, MAX_NAME, address).partition(b"\0")[0]
            indices.setdefault(name, []).append(index)
        # A name that only some of the groups have is for HDF5 to see to
        everywhere = np.arange(len(groups))
        return {name: symbols[at] if np.array_equal(owners[at], everywhere) else None for name, at in indices.items()}

    def find(self, path: str) -> np.ndarray | None:
        """Symbol table entries of the members of this name, one for each episode; ``None`` where no episode has it."""
        prefix, _, name = path.rpartition("/")
        if prefix not in self.groups:
            groups = self.find(prefix)
            self.groups[prefix] = {} if groups is None else self.members(groups)
        key = name.encode("utf-8", "surrogateescape")
        _require(0 < len(key) < MAX_NAME)
        if key not in self.groups[prefix]:
            return None
        symbols = self.groups[prefix][key]
        _require(symbols is not None)
        return symbols

    def messages(self, addresses: np.ndarray) -> dict[int, np.ndarray]:
        """Messages of object headers by their kind, each of shape ``(n_headers, size)``. All have the same layout."""
        size = int(self.gather(addresses[:1], OBJECT_HEADER)["size"][0])
        _require(size < 1 << 16)
        headers = self.gather(addresses, np.dtype(f"V{OBJECT_HEADER.itemsize + size}"))
        headers = headers.view(np.uint8).reshape(len(addresses), -1)
        first, at = headers[0], OBJECT_HEADER.itemsize
        _require(headers[:, :at] == first[:at], first[0] == 1)
        messages: dict[int, np.ndarray] = {}
        for _ in range(int(first[2:4].view("<u2")[0])):
            _require(at + 8 <= len(first), headers[:, at : at + 5] == first[at : at + 5])
            kind, length, flags = struct.unpack_from("<HHB", first, at)
            at += 8 + length
            _require(kind in IGNORED or kind in REQUIRED - messages.keys(), not flags & SHARED, at <= len(first))
            messages[kind] = headers[:, at - length : at]
        _require(messages.keys() >= REQUIRED)
        return messages

    def layouts(self, addresses: np.ndarray, example: h5d.DatasetID) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shapes, shapes of the chunks and addresses of the chunk indices of datasets that are like the example."""
        messages, rank, itemsize = self.messages(addresses), len(example.shape), example.dtype.itemsize
        spaces = _fields(
            messages[DATASPACE], [("version", "u1"), ("rank", "u1"), ("", "u1", 6), ("shape", "<i8", rank)]
        )
        layouts = _fields(
            messages[LAYOUT],
            [("version", "u1"), ("class", "u1"), ("rank", "u1"), ("index", "<i8"), ("chunk", "<u4", rank + 1)],
        )
        _require(spaces["version"] == 1, spaces["rank"] == rank, messages[DATATYPE] == messages[DATATYPE][0])
        _require(layouts["version"] == 3, layouts["class"] == 2, layouts["rank"] == rank + 1)
        shapes, chunks = spaces["shape"].reshape(-1, rank), layouts["chunk"].astype(np.int64)
        row_size = math.prod(example.shape[1:]) * itemsize
        _require(row_size > 0, shapes[:, 1:] == example.shape[1:])
        _require(shapes[:, 0] >= 0, shapes[:, 0] <= self.size // max(row_size, 1))
        _require(chunks > 0, chunks[:, -1] == itemsize, chunks.astype(float).prod(axis=1) <= self.size)
        return shapes, chunks[:, :-1], layouts["index"]

    def chunk_addresses(self, shapes: np.ndarray, chunks: np.ndarray, indices: np.ndarray, itemsize: int) -> np.ndarray:
        """Where the chunks of these datasets lie, those of one after those of the other, in row-major order."""
        rank, grids = shapes.shape[1], -(-shapes // chunks)
        counts = grids.prod(axis=1)
        if not counts.any():
            return np.empty(0, np.int64)
        key = np.dtype([("size", "<u4"), ("mask", "<u4"), ("offset", "<i8", rank), ("zero", "<i8")])
        (filled,) = np.nonzero(counts)
        owners, children = self.leaves(indices[filled], 1, key, 64)
        owners, keys, addresses = filled[owners], children["key"], children["address"]
        _require(np.array_equal(np.bincount(owners, minlength=len(counts)), counts))
        offsets, sizes = keys["offset"].reshape(-1, rank), chunks.prod(axis=1)[owners] * itemsize
        _require(offsets >= 0, offsets < shapes[owners], offsets % chunks[owners] == 0)
        positions = np.zeros(len(owners), np.int64)
        for axis in range(rank):
            positions = positions * grids[owners, axis] + offsets[:, axis] // chunks[owners, axis]
        _require(positions == np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners])
        _require(keys["mask"] == 0, keys["size"] == sizes, sizes.sum() <= self.size)
        _require(addresses >= 0, addresses <= self.size - sizes)
        return addresses

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """One column of :func:`read_episodes`."""
        symbols = self.find(name)
        if symbols is None:
            return None
        example = _find(self.file.id, f"{self.first}/{name}")
        _require(example is not None)
        _check(f"{self.first}/{name}", example, self.size)
        _require(len(example.shape) > 0, _holds_numpy_bytes(example))
        shapes, chunks, indices = self.layouts(symbols["header"], example)
        addresses = self.chunk_addresses(shapes, chunks, indices, example.dtype.itemsize)
        lengths, shape = shapes[:, 0].copy(), (int(shapes[:, 0].sum()), *example.shape[1:])
        _check_memory(math.prod(shape) * example.dtype.itemsize)
        column = np.zeros(shape, _result_dtype(example))
        with np.errstate(all="ignore"):  # float64 that overflows float32 becomes inf, as with HDF5
            self.fill(column, lengths, chunks, addresses, example.dtype)
        return _with_true_booleans(column), lengths

    def fill(
        self, column: np.ndarray, lengths: np.ndarray, chunks: np.ndarray, addresses: np.ndarray, dtype: np.dtype
    ) -> None:
        """Read the chunks and lay them side by side: some alike episodes at a time, or some rows of chunks of one."""
        alike = np.append((np.diff(lengths) == 0) & (np.diff(chunks, axis=0) == 0).all(axis=1), False)
        run_ends = np.flatnonzero(~alike) + 1
        episode = start = 0
        while episode < len(lengths):
            length, chunk = int(lengths[episode]), chunks[episode].tolist()
            grid = [-(-rows // step) for rows, step in zip((length, *column.shape[1:]), chunk, strict=True)]
            size, width = math.prod(chunk) * dtype.itemsize, math.prod(grid[1:])
            run = int(run_ends[np.searchsorted(run_ends, episode, side="right")]) - episode
            n_episodes = max(1, min(run, READ_SIZE // max(1, grid[0] * width * size)))
            n_rows = grid[0] if n_episodes > 1 else max(1, READ_SIZE // (width * size))
            part, column = column[: n_episodes * length], column[n_episodes * length :]
            part = part.reshape(n_episodes, length, *column.shape[1:])
            for row in range(0, grid[0], n_rows or 1):
                rows = min(n_rows, grid[0] - row)
                places = addresses[start : start + n_episodes * rows * width]
                data = self.read_chunks(places, size)
                target = part[:, row * chunk[0] : (row + rows) * chunk[0]]
                values = _side_by_side(data, [n_episodes, rows, *grid[1:]], [1, *chunk], dtype)
                target[...] = values[tuple(map(slice, target.shape))]
                start += len(places)
            episode += n_episodes

    def read_chunks(self, places: np.ndarray, size: int) -> bytes:
        """Chunks of the same size, in one go where they follow each other."""
        cuts = np.flatnonzero(np.diff(places) != size) + 1
        runs = zip([0, *cuts.tolist()], [*cuts.tolist(), len(places)], strict=True)
        return b"".join([os.pread(self.descriptor, (end - start) * size, int(places[start])) for start, end in runs])


def _side_by_side(data: bytes, grid: list[int], chunk: list[int], dtype: np.dtype) -> np.ndarray:
    """The array that a grid of chunks makes up; a row of a chunk is moved as one element, which is faster."""
    tiles = np.frombuffer(data, f"V{chunk[-1] * dtype.itemsize}").reshape(*grid, *chunk[:-1])
    rank = len(grid)
    axes = [axis for pair in zip(range(rank), range(rank, 2 * rank), strict=True) for axis in pair][:-1]
    shape = [*(n * step for n, step in zip(grid[:-1], chunk[:-1], strict=True)), grid[-1]]
    return np.ascontiguousarray(tiles.transpose(axes).reshape(shape)).view(dtype)


def _fields(messages: np.ndarray, fields: list) -> np.ndarray:
    """The beginnings of messages as structures."""
    dtype = np.dtype(fields)
    _require(messages.shape[1] >= dtype.itemsize)
    return np.ascontiguousarray(messages[:, : dtype.itemsize]).view(dtype)[:, 0]


def _require(*conditions: Any) -> None:
    if not all(np.all(condition) for condition in conditions):
        raise _Unfamiliar
