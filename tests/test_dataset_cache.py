"""The second load takes the columns from the cache, and only where they are still right."""

import errno
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from line_envs import COLUMNS, assert_equal, rollout, write_d4rl

from sb3_ext.datasets import load, save
from sb3_ext.datasets.load import read

pytestmark = [
    pytest.mark.filterwarnings("ignore:`.*` is set to None:UserWarning"),
    pytest.mark.filterwarnings("ignore:env_spec is None:UserWarning"),
]


@pytest.fixture(params=["d4rl", "minari"])
def source(request, tmp_path):
    """A compressed source, which the cache is for."""
    path = tmp_path / "a.hdf5" if request.param == "d4rl" else tmp_path / "copy"
    if request.param == "d4rl":
        save(rollout(), path)
    else:
        save(rollout(), "line").rename(path)
    return path


def content(source):
    return source if source.is_file() else source / "data/main_data.hdf5"


@pytest.fixture
def reads(monkeypatch):
    """Names of the readers that were called."""
    calls = []
    for name in ("read_d4rl", "read_minari"):
        module = sys.modules["sb3_ext.datasets.load"]  # the package has a function of this name
        reader = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *args, reader=reader, **kwargs: calls.append(1) or reader(*args, **kwargs),
        )
    return calls


def test_second_load_takes_the_cache(source, reads):
    first, second = load(source), load(source)
    assert len(reads) == 1
    assert_equal(second, first, (*COLUMNS, "rows", "next_rows"))
    assert second.metadata == first.metadata
    np.testing.assert_array_equal(second.infos["success"], first.infos["success"])


def test_other_options_are_another_entry(source, reads):
    for infos in (False, True, ["success"], False, True, ["success"]):
        assert set(load(source, infos=infos).infos) == (set() if infos is False else {"success"})
    assert len(reads) == 3
    load(source, bad_episodes="drop")
    assert len(reads) == 4


def test_transforms_and_their_like_are_no_part_of_the_entry(source, reads):
    plain, shifted = load(source), load(source, reward_shift=-1)
    assert len(reads) == 1
    np.testing.assert_array_equal(shifted.rewards, plain.rewards - 1)


def test_without_cache_nothing_is_written(source, reads, cache_folder):
    load(source, cache=False)
    load(source, cache=False)
    assert len(reads) == 2
    assert list(cache_folder.iterdir()) == []


def test_uncompressed_file_needs_no_cache(tmp_path, cache_folder):
    write_d4rl(tmp_path / "a.hdf5")
    load(tmp_path / "a.hdf5")
    assert list(cache_folder.iterdir()) == []


def test_changed_source_of_the_same_size_and_time_is_noticed(source, reads):
    path = content(source)
    name = "rewards" if source.is_file() else "episode_0/rewards"
    with h5py.File(path, "a") as file:  # chunks that keep their size
        rewards = file[name][:]
        del file[name]
        file.create_dataset(name, data=rewards, chunks=True)
    first = load(source)
    status = path.stat()
    with h5py.File(path, "a") as file:
        file[name][0] = rewards[0] + 5
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert load(source).rewards[0] == first.rewards[0] + 5
    assert len(reads) == 2


def test_source_is_called_what_it_is_called_now(minari_folder):
    save(rollout(), "line")
    folder = str(minari_folder / "line-v0")
    assert [load(name).source for name in ("line", folder, "line-v0")] == ["'line'", f"'{folder}'", "'line-v0'"]


def entry_of(cache_folder):
    (entry,) = (cache_folder / "columns").iterdir()
    return entry


FILES = ["dataset.json", "rows.npy", "next_rows.npy", "actions.npy", "rewards.npy", "terminations.npy", "frames_0.npy"]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
@pytest.mark.parametrize("name", FILES)
def test_broken_entry_is_made_again(name, damage, source, reads, cache_folder):
    first = load(source)
    path = entry_of(cache_folder) / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -1])
    assert_equal(load(source), first)
    assert_equal(load(source), first)
    assert len(reads) == 2


@pytest.mark.parametrize("index", ["null", "[]", "{}", '{"format": 1}', '{"format": 0, "key": "x"}'])
def test_entry_with_another_index_is_made_again(index, source, reads, cache_folder):
    first = load(source)
    (entry_of(cache_folder) / "dataset.json").write_text(index)
    assert_equal(load(source), first)
    assert len(reads) == 2


def test_changed_array_leaves_the_cache_as_it_is(source, reads):
    expected = load(source, cache=False)
    for _ in range(2):
        dataset = load(source)
        dataset.frames[:] = 7
        dataset.rewards[:] = 7
        dataset.actions[:] = 7
    assert_equal(load(source), expected)


def test_full_disk_warns_and_loads(source, cache_folder, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = load(source, cache=False)
    monkeypatch.setattr(np, "save", full)
    with pytest.warns(UserWarning, match=r"cannot be written: .*No space left .*The data are loaded"):
        assert_equal(load(source), expected)
    assert list((cache_folder / "columns").iterdir()) == []


@pytest.mark.parametrize("obstacle", ["in place of the cache", "in place of the entry"])
def test_unwritable_cache_warns_and_loads(obstacle, source, tmp_path, cache_folder, monkeypatch):
    if obstacle == "in place of the cache":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("SB3_EXT_CACHE", str(tmp_path / "file"))
    else:
        load(source)
        entry = entry_of(cache_folder)
        shutil.rmtree(entry)
        entry.write_text("")
    with pytest.warns(UserWarning, match="The data are loaded, only the next load will not be faster"):
        assert len(load(source)) == len(load(source, cache=False))


def test_cache_is_below_the_folder_that_was_named(tmp_path, monkeypatch):
    save(rollout(), tmp_path / "a.hdf5")
    monkeypatch.delenv("SB3_EXT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(tmp_path / "a.hdf5")
    assert (tmp_path / "xdg/sb3_ext/columns").is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load(tmp_path / "a.hdf5")
    assert (tmp_path / "home/.cache/sb3_ext/columns").is_dir()


def test_another_process_that_was_faster_is_no_error(source, reads, monkeypatch):
    """It writes its entry between our look and our writing."""
    import sb3_ext.datasets.folder as folder

    expected, write = load(source, cache=False), folder.write_folder

    def late(*args):
        write(*args)
        raise folder.DatasetError("the folder is not empty")

    monkeypatch.setattr(folder, "write_folder", late)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(load(source), expected)


LOADING = """
import os, sys, time, warnings
from sb3_ext.datasets import load
warnings.simplefilter("error")
open(f"{sys.argv[2]}/{sys.argv[3]}", "w").close()
while len(os.listdir(sys.argv[2])) < 2:
    time.sleep(0.001)
for _ in range(5):
    print(len(load(sys.argv[1])), load(sys.argv[1]).rewards.sum())
"""


def test_two_processes_at_once(tmp_path, cache_folder):
    dataset = rollout(n_episodes=50)
    save(dataset, tmp_path / "a.hdf5")
    (tmp_path / "ready").mkdir()
    command = [sys.executable, "-c", LOADING, str(tmp_path / "a.hdf5"), str(tmp_path / "ready")]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[1]}
    processes = [subprocess.Popen([*command, name], **pipe) for name in "ab"]
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert out.splitlines() == [f"{len(dataset)} {dataset.rewards.sum()}"] * 5
    assert len(list((cache_folder / "columns").iterdir())) == 1


def test_bad_episodes_are_counted_at_each_load(tmp_path):
    dataset = rollout(n_episodes=3)
    dataset.frames[0] = np.nan
    save(dataset, tmp_path / "a.hdf5")
    with pytest.warns(UserWarning, match="1 dropped episodes; "):
        first = read(tmp_path / "a.hdf5", bad_episodes="drop")
    with pytest.warns(UserWarning, match="1 dropped episodes"):
        assert_equal(read(tmp_path / "a.hdf5", bad_episodes="drop"), first)
