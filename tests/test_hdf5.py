"""HDF5 columns equal what h5py reads, and broken files are refused."""

import itertools
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sb3_ext.datasets import hdf5
from sb3_ext.datasets.errors import DatasetError

DTYPES = ["f2", "f4", "f8", ">f4", ">f8", "u1", "i1", "i4", ">i4", "i8", "u8", "bool"]
FILTERS = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "shuffle": {"compression": "gzip", "shuffle": True},
    "lzf": {"compression": "lzf"},
    "fletcher32": {"compression": "gzip", "fletcher32": True},
}


def random_array(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def expected(array: np.ndarray) -> np.ndarray:
    """What a stored array is read as."""
    return array.astype(np.float32) if array.dtype.kind == "f" else array.astype(array.dtype.newbyteorder("="))


def assert_same(actual: np.ndarray, wanted: np.ndarray) -> None:
    assert actual.dtype == wanted.dtype
    np.testing.assert_array_equal(actual, wanted)


def write_flat(path: Path, columns: dict[str, np.ndarray], libver: str | None = None, **kwargs) -> Path:
    with h5py.File(path, "w", libver=libver) as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column, **kwargs)
    return path


def write_episodes(path: Path, episodes: list[dict[str, np.ndarray]], prefix: str = "episode_", **kwargs) -> Path:
    """Episodes as Minari writes them."""
    file_kwargs = {name: kwargs.pop(name) for name in ("libver", "track_order") if name in kwargs}
    with h5py.File(path, "w", **file_kwargs) as file:
        for index, episode in enumerate(episodes):
            group = file.create_group(f"{prefix}{index}")
            group.attrs["id"] = index
            for name, column in episode.items():
                maxshape = (None, *column.shape[1:])
                group.create_dataset(name, data=column, **{"chunks": True, "maxshape": maxshape, **kwargs})
    return path


def episodes_of(lengths: list[int], dtype: str = "f4", width: int = 5) -> list[dict[str, np.ndarray]]:
    return [
        {
            "observations/achieved_goal": random_array((length + 1, width), dtype, seed),
            "actions": random_array((length, 2), "f4", seed),
            "rewards": random_array((length,), "f8", seed),
            "terminations": random_array((length,), "bool", seed),
        }
        for seed, length in enumerate(lengths)
    ]


def names_of(count: int) -> list[str]:
    return [f"episode_{index}" for index in range(count)]


def check_episodes(path: Path, episodes: list[dict[str, np.ndarray]]) -> None:
    names = list(episodes[0])
    columns = hdf5.read_episodes(path, names_of(len(episodes)), names)
    assert list(columns) == names
    for name, (values, lengths) in columns.items():
        assert_same(values, expected(np.concatenate([episode[name] for episode in episodes])))
        assert_same(lengths, np.array([len(episode[name]) for episode in episodes], np.int64))


@pytest.fixture
def one_by_one(monkeypatch) -> list[str]:
    """Names of the columns that were not read in bulk."""
    names = []
    original = hdf5._read_one_by_one

    def spy(file, episode_names, name):
        names.append(name)
        return original(file, episode_names, name)

    monkeypatch.setattr(hdf5, "_read_one_by_one", spy)
    return names


# --- Flat files


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("libver", [None, "latest"])
def test_columns_equal_h5py(tmp_path, filters, libver):
    arrays = {
        f"{dtype.strip('>')}{'b' * dtype.startswith('>')}/{len(shape)}": random_array(shape, dtype)
        for dtype, shape in itertools.product(DTYPES, [(37,), (23, 7), (5, 4, 3)])
    }
    for chunks in (True, None) if not filters else (True,):
        path = write_flat(tmp_path / f"{chunks}.hdf5", arrays, libver, chunks=chunks, **filters)
        columns, attributes = hdf5.read_columns(path)
        assert columns.keys() == arrays.keys() and attributes == {}
        for name, array in arrays.items():
            assert_same(columns[name], expected(array))
        assert hdf5.list_columns(path) == {name: (c.shape, c.dtype) for name, c in columns.items()}


@pytest.mark.parametrize("shuffle", [False, True])
def test_split_columns_of_gzip_are_inflated_here(tmp_path, monkeypatch, shuffle):
    array = random_array((1000, 7), "f8") / 3
    path = write_flat(tmp_path / "a.hdf5", {"a": array}, chunks=(64, 2), compression="gzip", shuffle=shuffle)
    calls = []
    read_gzip = hdf5._read_gzip
    monkeypatch.setattr(hdf5, "_read_gzip", lambda *args: (calls.append(1), read_gzip(*args)))
    assert_same(hdf5.read_columns(path)[0]["a"], array.astype(np.float32))
    assert calls


def test_chunks_that_were_left_uncompressed(tmp_path):
    array = np.arange(20, dtype=np.float32)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        dataset = file.create_dataset("a", (20,), "f4", chunks=(10,), compression="gzip", shuffle=True)
        dataset[:10] = array[:10]
        dataset.id.write_direct_chunk((10,), array[10:].tobytes(), filter_mask=3)
    assert_same(hdf5.read_columns(tmp_path / "a.hdf5")[0]["a"], array)


def test_names_attributes_and_what_is_no_column(tmp_path):
    path = write_flat(tmp_path / "a.hdf5", {"a": np.ones(3), "infos/b": np.zeros((0, 4)), "scalar": np.float64(2.5)})
    with h5py.File(path, "a") as file:
        file.attrs["env"] = "Hopper-v5"
        file["text"], file["complex"], file["null"] = "abc", np.ones(2, complex), h5py.Empty("f4")
        file["record"] = np.zeros(2, [("x", "f4")])
        file.create_dataset("vlen", (2,), h5py.vlen_dtype(np.uint8))
        file["reference"] = np.array([file["a"].ref], h5py.ref_dtype)
        file["opaque"] = np.array([b"ab"], "V2")
    columns, attributes = hdf5.read_columns(path)
    assert attributes == {"env": "Hopper-v5"}
    assert {name: column.shape for name, column in columns.items()} == {"a": (3,), "infos/b": (0, 4), "scalar": ()}
    assert list(hdf5.read_columns(path, ["infos/b", "missing", "a", "a/b", "", "infos", "/"])[0]) == ["infos/b", "a"]
    for name in ("text", "complex", "null", "record", "vlen", "reference", "opaque"):
        with pytest.raises(DatasetError, match="neither numbers nor booleans"):
            hdf5.read_columns(path, [name])


def test_overflow_of_float32_is_infinite(tmp_path, recwarn):
    array = np.array([[1e300, -1e300, np.nan, 1.5]] * 3)
    for filters in FILTERS.values():
        path = write_flat(tmp_path / "a.hdf5", {"a": array}, **filters)
        assert_same(hdf5.read_columns(path)[0]["a"], np.array([[np.inf, -np.inf, np.nan, 1.5]] * 3, np.float32))
    path = write_episodes(tmp_path / "b.hdf5", [{"a": array}])
    assert_same(hdf5.read_episodes(path, ["episode_0"], ["a"])["a"][0][0, :2], np.array([np.inf, -np.inf], np.float32))
    assert not recwarn


# --- Episodes


@pytest.mark.parametrize("dtype", DTYPES)
def test_episodes_of_all_dtypes(tmp_path, dtype, one_by_one):
    episodes = episodes_of([3, 3, 50, 1, 2, 50, 50], dtype)
    check_episodes(write_episodes(tmp_path / "a.hdf5", episodes), episodes)
    assert not one_by_one


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_episodes_with_filters(tmp_path, filters, one_by_one):
    episodes = episodes_of([4, 9])
    check_episodes(write_episodes(tmp_path / "a.hdf5", episodes, **filters), episodes)
    assert bool(one_by_one) == bool(filters)


@pytest.mark.parametrize("kwargs", [{"libver": "latest"}, {"track_order": True}, {"chunks": None, "maxshape": None}])
def test_episodes_of_other_structures(tmp_path, kwargs):
    episodes = episodes_of([4, 0, 9])
    check_episodes(write_episodes(tmp_path / "a.hdf5", episodes, **kwargs), episodes)


@pytest.mark.parametrize("lengths", [[0], [1], [0, 0, 5], [5, 0], [1, 0, 1, 2, 3, 3, 3, 0]])
def test_short_episodes(tmp_path, lengths, one_by_one):
    episodes = episodes_of(lengths)
    check_episodes(write_episodes(tmp_path / "a.hdf5", episodes), episodes)
    assert not one_by_one


def test_deep_trees(tmp_path, one_by_one):
    """Many episodes: the root group has a B-tree of several levels; small chunks: so have the datasets."""
    episodes = [{"actions": random_array((1, 2), "f4", seed)} for seed in range(2000)]
    check_episodes(write_episodes(tmp_path / "a.hdf5", episodes), episodes)
    episodes = [{"actions": random_array((length, 3), "f4")} for length in (70, 700, 6000)]
    check_episodes(write_episodes(tmp_path / "b.hdf5", episodes, chunks=(2, 2)), episodes)
    assert not one_by_one


def test_order_and_subset_of_episodes(tmp_path):
    path = write_episodes(tmp_path / "a.hdf5", episodes_of([3, 4, 5]))
    every, lengths = hdf5.read_episodes(path, names_of(3), ["actions"])["actions"]
    some, some_lengths = hdf5.read_episodes(path, ["episode_2", "episode_0"], ["actions"])["actions"]
    assert_same(some, np.concatenate([every[7:], every[:3]]))
    assert some_lengths.tolist() == [lengths[2], lengths[0]]
    assert hdf5.read_episodes(path, [], ["actions"]) == {}


def test_missing_members(tmp_path):
    episodes = episodes_of([3, 3, 3])
    episodes[1]["infos/success"] = np.ones(3, bool)
    path = write_episodes(tmp_path / "a.hdf5", episodes)
    wanted = ["actions", "infos/other", "other", "actions/x", "other/x", "observations", ""]
    assert list(hdf5.read_episodes(path, names_of(3), wanted)) == ["actions"]
    with pytest.raises(DatasetError, match=r"2 episodes have no 'infos/success', the first is 'episode_0'"):
        hdf5.read_episodes(path, names_of(3), ["infos/success"])
    with pytest.raises(DatasetError, match=r"no episode 'episode_3'"):
        hdf5.read_episodes(path, names_of(4), ["actions"])


@pytest.mark.parametrize("other", [np.ones((3, 4), np.float32), np.ones((3, 2), np.uint8), np.float32(1), "text"])
def test_episodes_that_differ(tmp_path, other):
    path = write_episodes(tmp_path / "a.hdf5", episodes_of([3, 3]))
    with h5py.File(path, "a") as file:
        del file["episode_1/actions"]
        file["episode_1/actions"] = other
    with pytest.raises(DatasetError, match="episode_1/actions"):
        hdf5.read_episodes(path, names_of(2), ["actions"])


def test_grown_episodes(tmp_path, one_by_one):
    """Minari appends to an episode, so that chunks of different episodes alternate in the file."""
    episodes = episodes_of([5, 9, 9])
    path = write_episodes(tmp_path / "a.hdf5", [{k: v[:3] for k, v in e.items()} for e in episodes])
    with h5py.File(path, "a") as file:
        for at in range(3, 10):
            for index, episode in enumerate(episodes):
                for name, column in episode.items():
                    if at < len(column):
                        file[f"episode_{index}/{name}"].resize(at + 1, axis=0)
                        file[f"episode_{index}/{name}"][at] = column[at]
    check_episodes(path, episodes)
    assert not one_by_one


class DictEnv(gym.Env):
    observation_space = spaces.Dict(
        {"goal": spaces.Box(-1, 1, (2,), np.float64), "image": spaces.Box(0, 9, (3, 4), np.uint8)}
    )
    action_space = spaces.Discrete(5)


@pytest.mark.parametrize("is_dict", [False, True])
def test_minari_files(tmp_path, monkeypatch, one_by_one, is_dict):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    import minari
    from minari.data_collector import EpisodeBuffer

    observation_space = DictEnv.observation_space if is_dict else spaces.Box(-1, 1, (29,), np.float64)
    action_space = DictEnv.action_space if is_dict else spaces.Box(-1, 1, (3,), np.float32)
    buffers = []
    for index, length in enumerate([20, 3, 20, 300]):
        observations = [observation_space.sample() for _ in range(length + 1)]
        stacked = {k: np.stack([o[k] for o in observations]) for k in observation_space} if is_dict else observations
        buffers.append(
            EpisodeBuffer(
                id=index,
                seed=index or None,
                observations=stacked if is_dict else np.stack(observations),
                actions=np.stack([action_space.sample() for _ in range(length)]),
                rewards=[0.5] * length,
                terminations=[False] * (length - 1) + [True],
                truncations=[False] * length,
                infos={"success": np.arange(length + 1) > 2, "state": {"qpos": np.ones((length + 1, 3))}},
            )
        )
    dataset = minari.create_dataset_from_buffers(
        "test/a-v0", buffers, observation_space=observation_space, action_space=action_space
    )
    names = ["actions", "rewards", "terminations", "truncations", "infos/success", "infos/state/qpos"]
    names += ["observations/goal", "observations/image"] if is_dict else ["observations"]
    columns = hdf5.read_episodes(Path(dataset.spec.data_path) / "main_data.hdf5", names_of(4), names)
    assert list(columns) == names and not one_by_one
    for name, (values, lengths) in columns.items():
        parts = []
        for episode in dataset.iterate_episodes():
            first, *rest = name.split("/")
            part = getattr(episode, first)
            for key in rest:
                part = part[key]
            parts.append(np.asarray(part))
        assert_same(values, expected(np.concatenate(parts)))
        assert lengths.tolist() == [len(part) for part in parts]


# --- Any shape


@st.composite
def layouts(draw) -> tuple[list[int], tuple[int, ...], tuple[int, ...], str]:
    """Lengths of episodes, shape of a row, chunks, dtype."""
    row = tuple(draw(st.lists(st.integers(1, 7), max_size=2)))
    chunks = tuple(draw(st.integers(1, 9)) for _ in (0, *row))
    lengths = draw(st.lists(st.sampled_from([0, 1, 2, 5, 8, 8, 8, 23]), min_size=1, max_size=6))
    return lengths, row, tuple(min(c, n) for c, n in zip(chunks, (9, *row), strict=True)), draw(st.sampled_from(DTYPES))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=layouts(), batch=st.sampled_from([1, 200, 1 << 20]))
def test_any_layout(tmp_path, monkeypatch, one_by_one, layout, batch):
    lengths, row, chunks, dtype = layout
    monkeypatch.setattr(hdf5, "READ_SIZE", batch)
    episodes = [{"a": random_array((length, *row), dtype, seed)} for seed, length in enumerate(lengths)]
    check_episodes(write_episodes(tmp_path / "a.hdf5", episodes, chunks=chunks), episodes)
    assert not one_by_one
    whole = np.concatenate([episode["a"] for episode in episodes])
    filters = {"maxshape": (None, *row), "chunks": chunks, "compression": "gzip", "shuffle": bool(len(lengths) % 2)}
    path = write_flat(tmp_path / "b.hdf5", {"a": whole}, **filters)
    assert_same(hdf5.read_columns(path)[0]["a"], expected(whole))


# --- Broken files


def small_files(folder: Path) -> dict[str, Callable[[Path], list[np.ndarray]]]:
    """Files of each kind, with the function that reads them."""

    def read_flat(path: Path) -> list[np.ndarray]:
        hdf5.list_columns(path)
        return list(hdf5.read_columns(path)[0].values()) + list(hdf5.read_columns(path, ["a", "infos/b"])[0].values())

    def read_episodes(path: Path) -> list[np.ndarray]:
        columns = hdf5.read_episodes(path, names_of(3), [*episodes_of([1])[0], "infos/none"])
        for values, lengths in columns.values():
            assert len(values) == lengths.sum() and lengths.min() >= 0
        return [values for values, _ in columns.values()]

    columns = {"a": random_array((30, 5), "f8"), "infos/b": random_array((30,), "bool"), "c": random_array((9,), "i4")}
    files: dict[str, Callable[[Path], list[np.ndarray]]] = {}
    write_flat(folder / "plain", columns)
    write_flat(folder / "gzip", columns, compression="gzip", chunks=True)
    write_flat(folder / "fletcher32", columns, fletcher32=True, chunks=True)
    write_flat(folder / "latest", columns, libver="latest", chunks=True, compression="gzip")
    files |= dict.fromkeys(("plain", "gzip", "fletcher32", "latest"), read_flat)
    with h5py.File(folder / "gzip", "a") as file:
        file.attrs["env"], file.attrs["scores"] = "Hopper-v5", np.arange(3.0)
    write_episodes(folder / "minari", episodes_of([4, 4, 9]), chunks=None)
    write_episodes(folder / "chunks", episodes_of([4, 4, 9]))
    write_episodes(folder / "minari-latest", episodes_of([4, 9, 4]), libver="latest")
    return files | dict.fromkeys(("minari", "chunks", "minari-latest"), read_episodes)


def read_or_refuse(read: Callable[[Path], list[np.ndarray]], path: Path) -> bool:
    """Whether it was read; any error but a DatasetError with the path is a failure."""
    try:
        arrays = read(path)
    except DatasetError as error:
        assert str(path) in str(error)
        return False
    for array in arrays:
        assert array.nbytes < 1 << 20
        array.astype(bool).sum()
    return True


KINDS = ["plain", "gzip", "fletcher32", "latest", "minari", "chunks", "minari-latest"]


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files(tmp_path, kind):
    read, path = small_files(tmp_path)[kind], tmp_path / "broken"
    data = (tmp_path / kind).read_bytes()
    assert read_or_refuse(read, tmp_path / kind)
    for length in np.linspace(0, len(data) - 1, 60).astype(int):
        path.write_bytes(data[:length])
        assert not read_or_refuse(read, path)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes(tmp_path, kind):
    """Each byte in turn that the file does not leave zero, and values that break sizes and addresses."""
    read, path = small_files(tmp_path)[kind], tmp_path / "broken"
    data = np.frombuffer((tmp_path / kind).read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    read_files = 0
    for _ in range(300):
        broken = data.copy()
        for at in rng.choice(np.flatnonzero(data), rng.integers(1, 4)):
            broken[at : at + rng.choice([1, 1, 2, 4, 8])] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        path.write_bytes(broken.tobytes())
        read_files += read_or_refuse(read, path)
    assert 0 < read_files < 300


def test_no_such_file(tmp_path):
    for read in (hdf5.read_columns, hdf5.list_columns, lambda path: hdf5.read_episodes(path, ["episode_0"], ["a"])):
        with pytest.raises(DatasetError, match="There is no file"):
            read(tmp_path / "a.hdf5")
        with pytest.raises(DatasetError, match="is not a file"):
            read(tmp_path)
        (tmp_path / "text").write_text("no HDF5")
        with pytest.raises(DatasetError, match="cannot be read"):
            read(tmp_path / "text")


@pytest.mark.parametrize("kwargs", [{}, {"chunks": (100, 3)}, {"chunks": (1000, 3), "compression": "gzip"}])
def test_claims_of_data_that_was_never_written(tmp_path, kwargs):
    path = tmp_path / "a.hdf5"
    for shape in ((1 << 40, 3), (1000, 3)):
        with h5py.File(path, "w") as file:
            file.create_dataset("a", shape, "f4", **kwargs)
            file.create_group("episode_0")
            file["episode_0/a"] = file["a"]
        for names in (None, ["a"]):
            with pytest.raises(DatasetError, match="never written"):
                hdf5.read_columns(path, names)
        with pytest.raises(DatasetError, match="never written"):
            hdf5.read_episodes(path, ["episode_0"], ["a"])


def test_a_missing_chunk_is_not_zeros(tmp_path):
    for filters in ({}, {"compression": "gzip"}):
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            dataset = file.create_dataset("episode_0/a", (100, 4), "f4", chunks=(10, 2), **filters)
            dataset[:50] = 1
        with pytest.raises(DatasetError, match="never written"):
            hdf5.read_columns(tmp_path / "a.hdf5")
        with pytest.raises(DatasetError, match="never written"):
            hdf5.read_episodes(tmp_path / "a.hdf5", ["episode_0"], ["a"])


def test_more_than_the_memory(tmp_path, monkeypatch):
    path = write_episodes(tmp_path / "a.hdf5", episodes_of([50]))
    monkeypatch.setattr(hdf5, "_free_memory", lambda: 100)
    with pytest.raises(DatasetError, match="100 bytes of memory are free"):
        hdf5.read_columns(path)
    with pytest.raises(DatasetError, match="100 bytes of memory are free"):
        hdf5.read_episodes(path, ["episode_0"], ["actions"])


def test_a_bomb_is_not_inflated(tmp_path):
    import zlib

    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        dataset = file.create_dataset("a", (10,), "f4", chunks=(10,), compression="gzip")
        dataset.id.write_direct_chunk((0,), zlib.compress(bytes(1 << 20)))
        file.create_dataset("b", (10,), "f4", chunks=(10,), compression="gzip")[:] = 1
    with pytest.raises(DatasetError, match="compressed chunk is damaged"):
        hdf5.read_columns(tmp_path / "a.hdf5")
    assert hdf5.read_columns(tmp_path / "a.hdf5", ["b"])[0]["b"].sum() == 10


def test_no_other_file_is_read(tmp_path):
    secret = write_flat(tmp_path / "secret.hdf5", {"a": np.ones(3, np.float32)})
    (tmp_path / "raw").write_bytes(bytes(12))
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "a", (3,))
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["external/a"] = h5py.ExternalLink(str(secret), "/a")
        file["soft/a"] = h5py.SoftLink("/external/a")
        file["hop/a"] = h5py.ExternalLink(str(secret), "/")
        file.create_group("virtual").create_virtual_dataset("a", layout)
        file.create_group("storage").create_dataset("a", (3,), "f4", external=[(str(tmp_path / "raw"), 0, 12)])
    for group, match in [
        ("external", "link"),
        ("soft", "link"),
        ("hop", "link"),
        ("virtual", "other"),
        ("storage", "other"),
    ]:
        name = "a/a" if group == "hop" else "a"
        with pytest.raises(DatasetError, match=match):
            hdf5.read_columns(tmp_path / "a.hdf5", [f"{group}/{name}"])
        with pytest.raises(DatasetError, match=match):
            hdf5.read_episodes(tmp_path / "a.hdf5", [group], [name])
    with pytest.raises(DatasetError, match="link"):
        hdf5.read_columns(tmp_path / "a.hdf5")


def test_groups_that_contain_each_other(tmp_path):
    path = write_flat(tmp_path / "a.hdf5", {"g/a": np.ones(3), "h/b": np.ones(2)})
    with h5py.File(path, "a") as file:
        file["g/self"], file["g/root"], file["g/h"], file["h/g"] = file["g"], file["/"], file["h"], file["g"]
    assert {"g/a", "h/b"} <= hdf5.read_columns(path)[0].keys()
    assert len(hdf5.list_columns(path)) == 2
    assert list(hdf5.read_columns(path, ["g/self/root/h/b"])[0]) == ["g/self/root/h/b"]
