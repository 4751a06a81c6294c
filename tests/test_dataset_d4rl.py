"""D4RL's layout: exact columns, held against D4RL's own function, and files by D4RL's name."""

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import requests
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from line_envs import EPISODES, assert_consistent, assert_equal, counted, with_entry, write_d4rl

from sb3_ext.datasets import DatasetError, load, load_demonstrations
from sb3_ext.datasets.d4rl import FILES, URL
from sb3_ext.datasets.load import read

IN_TMP_PATH = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def obs_of(numbers):
    """Observations as in `write_d4rl`: row i is (2 i, 2 i + 1)."""
    return [[2 * i, 2 * i + 1] for i in numbers]


def test_d4rl_file_derives_next_observations_and_drops_timeouts(tmp_path):
    columns = write_d4rl(tmp_path / "d4rl.hdf5")
    transitions = load_demonstrations(tmp_path / "d4rl.hdf5")
    assert transitions.rewards.tolist() == [0, 1, 2, 3, 4]
    assert transitions.terminations.tolist() == [False, False, True, False, False]
    assert transitions.truncations.tolist() == [False, False, False, False, True]
    np.testing.assert_array_equal(transitions.next_observations[[0, 1, 3, 4]], columns["observations"][[1, 2, 4, 5]])


def test_d4rl_file_with_next_observations_keeps_every_row(tmp_path):
    write_d4rl(tmp_path / "d4rl.hdf5", next_observations=np.arange(2, 14, dtype=np.float32).reshape(6, 2))
    transitions = load_demonstrations(tmp_path / "d4rl.hdf5")
    assert len(transitions) == 6
    assert transitions.truncations.tolist() == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rewards": None}, r"lacks the columns \['rewards'\]"), ({"rewards": np.zeros(3)}, "one row a step")],
)
def test_broken_d4rl_file_is_refused(changes, message, tmp_path):
    write_d4rl(tmp_path / "d4rl.hdf5", **changes)
    with pytest.raises(DatasetError, match=message):
        load_demonstrations(tmp_path / "d4rl.hdf5")


def test_d4rl_file_that_is_none_or_missing_is_refused(tmp_path):
    (tmp_path / "no.hdf5").write_bytes(b"nothing")
    for path, message in ((tmp_path / "no.hdf5", "cannot be read"), (tmp_path / "nowhere.hdf5", "There is no file")):
        with pytest.raises(DatasetError, match=message):
            load_demonstrations(path)


@pytest.mark.parametrize("name", ["hopper-mixed", "antmaze-umaze"])
def test_shared_d4rl_files_load(name):
    path = Path(__file__).parents[2] / f"shared/data/{name}.hdf5"
    if not path.exists():
        pytest.skip("no shared data in this checkout")
    transitions = load_demonstrations(path)
    with h5py.File(path) as file:
        assert len(transitions) == len(file["actions"]) - int((file["timeouts"][:] & ~file["terminals"][:]).sum())


# --- D4RL ------------------------------------------------------------------------------------------------------------


def flags(n, *rows):
    return np.isin(np.arange(n), rows)


def load_raw(path, **changes):
    write_d4rl(path, **changes)
    return read(path, cache=False)


@pytest.mark.parametrize(
    ("n", "terminals", "timeouts", "kept", "successors", "is_terminal", "is_truncated", "ends"),
    [
        # A timeout is dropped, its observation is the successor of the row before
        (6, [], [2, 5], [0, 1, 3, 4], [1, 2, 4, 5], [], [1, 3], [1, 3]),
        # A terminal in the middle of a run: it leads to itself, the rest is an episode of its own
        (5, [1], [4], [0, 1, 2, 3], [1, 1, 3, 4], [1], [3], [1, 3]),
        # Both flags: terminal, and kept; the step before it goes on
        (5, [2], [2, 4], [0, 1, 2, 3], [1, 2, 2, 4], [2], [2, 3], [2, 3]),
        # The last row is not finished
        (4, [], [], [0, 1, 2], [1, 2, 3], [], [], [2]),
        (4, [3], [], [0, 1, 2, 3], [1, 2, 3, 3], [3], [], [3]),
        (4, [3], [3], [0, 1, 2, 3], [1, 2, 3, 3], [3], [3], [3]),
        # Two timeouts in a row: an episode of one observation has no transition
        (5, [], [1, 2, 4], [0, 3], [1, 4], [], [0, 1], [0, 1]),
        # Terminals in a row
        (4, [0, 1], [3], [0, 1, 2], [0, 1, 3], [0, 1], [2], [0, 1, 2]),
    ],
)
def test_raw_d4rl_columns(n, terminals, timeouts, kept, successors, is_terminal, is_truncated, ends, tmp_path):
    dataset = load_raw(tmp_path / "d4rl.hdf5", n=n, terminals=flags(n, *terminals), timeouts=flags(n, *timeouts))
    np.testing.assert_array_equal(dataset.observations, obs_of(kept))
    np.testing.assert_array_equal(dataset.next_observations, obs_of(successors))
    np.testing.assert_array_equal(dataset.rewards, kept)
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), is_terminal)
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), is_truncated)
    np.testing.assert_array_equal(np.flatnonzero(dataset.ends), ends)
    assert_consistent(dataset)
    assert {dataset.frames.dtype, dataset.actions.dtype, dataset.rewards.dtype} == {np.dtype(np.float32)}


def qlearning_dataset(columns, terminate_on_end):
    """D4RL's function, row by row: https://github.com/Farama-Foundation/D4RL/blob/master/d4rl/__init__.py"""
    rows = []
    for i in range(len(columns["rewards"]) - 1):
        if "next_observations" in columns:
            successor = columns["next_observations"][i]
        else:
            successor = columns["observations"][i + 1]
        final_timestep = columns["timeouts"][i]
        if not terminate_on_end and final_timestep:
            continue
        rows.append(
            (
                i,
                columns["observations"][i],
                columns["actions"][i],
                columns["rewards"][i],
                successor,
                columns["terminals"][i],
            )
        )
    return rows


@IN_TMP_PATH
@given(
    flags=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=3, max_size=20),
    terminate_on_end=st.booleans(),
    has_next=st.booleans(),
)
def test_raw_d4rl_is_what_qlearning_dataset_gives(flags, terminate_on_end, has_next, tmp_path):
    n = len(flags)
    terminals, timeouts = np.array(flags).T
    next_observations = 1000 + np.arange(2 * n, dtype=np.float32).reshape(n, 2) if has_next else None
    path = tmp_path / "d4rl.hdf5"
    columns = write_d4rl(path, n, terminals=terminals, timeouts=timeouts, next_observations=next_observations)
    columns = {key: column for key, column in columns.items() if column is not None}
    if not has_next and (timeouts & ~terminals)[:-1].all() and not terminals[-1]:
        with pytest.raises(DatasetError, match="no transitions"):
            read(path, cache=False)
        return
    dataset = read(path, cache=False)
    assert_consistent(dataset)
    ours = {int(reward): i for i, reward in enumerate(dataset.rewards)}
    theirs = qlearning_dataset(columns, terminate_on_end)
    for row, obs, action, reward, successor, terminal in theirs:
        if row not in ours:  # they make a timeout terminal, with a successor in the next episode
            assert terminate_on_end and timeouts[row] and not terminals[row] and not has_next
            continue
        i = ours[row]
        np.testing.assert_array_equal(dataset.observations[i], obs)
        np.testing.assert_array_equal(dataset.actions[i], action)
        assert (dataset.rewards[i], dataset.terminations[i]) == (reward, terminal)
        if not terminal:
            np.testing.assert_array_equal(dataset.next_observations[i], successor)
        elif not has_next:  # theirs is of another episode
            np.testing.assert_array_equal(dataset.next_observations[i], obs)
    # Beyond theirs we keep terminal steps, the last row where its successor is known, and all rows with successors
    for row in set(ours) - {row for row, *_ in theirs}:
        assert terminals[row] or has_next


@IN_TMP_PATH
@given(plan=EPISODES)
def test_raw_d4rl_keeps_each_step_that_has_a_successor(plan, tmp_path):
    episodes = counted(plan)
    steps = [{**vars(episode), "observations": episode.observations[:-1]} for episode in episodes]
    stacked = {key: np.concatenate([step[key] for step in steps]) for key in ("observations", "actions", "rewards")}
    # Unmarked ends are marked, as raw files must
    marks = {
        "terminals": np.concatenate([episode.terminations for episode in episodes]),
        "timeouts": np.concatenate(
            [
                np.arange(len(e.rewards)) == len(e.rewards) - 1 if not e.terminations[-1] else e.truncations
                for e in episodes
            ]
        ),
    }
    write_d4rl(tmp_path / "d4rl.hdf5", len(stacked["rewards"]), **stacked, **marks)
    lengths = [length if end in ("terminal", "both") else length - 1 for length, end in plan]
    if sum(lengths) == 0 or len(stacked["rewards"]) < 2:
        with pytest.raises(DatasetError, match=r"no transitions|two are needed"):
            read(tmp_path / "d4rl.hdf5", cache=False)
        return
    dataset = read(tmp_path / "d4rl.hdf5", cache=False)
    assert_consistent(dataset)
    np.testing.assert_array_equal(dataset.lengths, [length for length in lengths if length > 0])
    step = np.where(dataset.terminations, 0, 1)
    np.testing.assert_array_equal(dataset.next_observations[:, 0], dataset.observations[:, 0] + step)


def test_next_observations_column_keeps_every_row(tmp_path):
    terminals, timeouts = flags(6, 1), flags(6, 3)
    successors = np.array(obs_of([1, 50, 3, 51, 5, 52]), np.float32)
    dataset = load_raw(tmp_path / "a.hdf5", terminals=terminals, timeouts=timeouts, next_observations=successors)
    np.testing.assert_array_equal(dataset.observations, obs_of(range(6)))
    np.testing.assert_array_equal(dataset.next_observations, successors)
    np.testing.assert_array_equal(dataset.terminations, terminals)
    np.testing.assert_array_equal(dataset.truncations, timeouts)
    assert np.flatnonzero(dataset.ends).tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    "make", [np.float32, np.int64, np.uint8, lambda flag: flag[:, None], lambda flag: flag[:, None] * 1.0]
)
def test_flags_of_any_kind(make, tmp_path):
    expected = load_raw(tmp_path / "a.hdf5")
    columns = write_d4rl(tmp_path / "b.hdf5")
    changes = {name: make(columns[name]) for name in ("terminals", "timeouts")}
    dataset = load_raw(tmp_path / "c.hdf5", **changes, rewards=columns["rewards"][:, None].astype(np.float64))
    assert_equal(dataset, expected)


@pytest.mark.parametrize("wrong", [np.arange(6), np.full(6, 0.5), np.zeros((6, 2)), np.full(6, np.nan)])
def test_flags_of_other_values_are_refused(wrong, tmp_path):
    with pytest.raises(DatasetError, match="terminals"):
        load_raw(tmp_path / "a.hdf5", terminals=wrong)


@pytest.mark.parametrize(("terminal", "last_rows"), [(None, [298, 598, 692]), (100, [100, 399, 692])])
def test_without_timeouts_the_limit_of_the_environment_ends_episodes(terminal, last_rows, tmp_path):
    """PointMaze_UMaze-v3 ends after 300 steps; the step at the limit has no successor."""
    n = 694
    write_d4rl(tmp_path / "a.hdf5", n, timeouts=None, terminals=flags(n, *([] if terminal is None else [terminal])))
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file.attrs["env_id"] = "PointMazeFlat/UMaze-v3"
    dataset = read(tmp_path / "a.hdf5", cache=False)
    assert_consistent(dataset)
    assert dataset.env_id == "PointMazeFlat/UMaze-v3"
    assert dataset.rewards[dataset.ends].tolist() == last_rows


def test_without_timeouts_and_limit_there_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="has no timeouts: only terminals"):
        dataset = load_raw(tmp_path / "a.hdf5", timeouts=None)
    assert np.flatnonzero(dataset.ends).tolist() == [2, 4]


def test_rewards_of_maze2d_move_by_a_row(tmp_path):
    rewards = [0, 0, 1, 1, 0, 1]
    dataset = load_raw(tmp_path / "maze2d-umaze-v1.hdf5", terminals=flags(6), timeouts=flags(6, 2, 5), rewards=rewards)
    np.testing.assert_array_equal(dataset.observations, obs_of([0, 1, 3, 4]))
    assert dataset.rewards.tolist() == [0, 1, 0, 1]
    assert dataset.env_id == "PointMazeFlat/UMaze-v3"
    other = load_raw(tmp_path / "other.hdf5", terminals=flags(6), timeouts=flags(6, 2, 5), rewards=rewards)
    assert other.rewards.tolist() == [0, 0, 1, 0]


def test_infos_follow_their_rows(tmp_path):
    goals = np.arange(12).reshape(6, 2) * 1.0
    path = tmp_path / "a.hdf5"
    write_d4rl(
        path, timeouts=flags(6, 3, 5), **{"infos/goal": goals, "infos/qpos": goals + 1, "infos/success": flags(6, 2)}
    )
    dataset = read(path)
    assert set(dataset.infos) == {"goal", "success"}
    np.testing.assert_array_equal(dataset.goals, goals[[0, 1, 2, 4]])
    assert dataset.goals.dtype == np.float32
    np.testing.assert_array_equal(np.flatnonzero(dataset.successes), [2])
    assert set(read(path, infos=True).infos) == {"goal", "success", "qpos"}
    assert set(read(path, infos=["qpos", "nowhere"]).infos) == set(read(path, infos="qpos").infos) == {"qpos"}
    assert not read(path, infos=False).infos


@pytest.mark.parametrize(
    ("name", "env_id", "scores"),
    [
        ("antmaze-umaze-v2", "AntMazeFlat/UMaze-v4", (0, 1)),
        ("hopper-medium-v2", "Hopper-v4", (-20.272305, 3234.3)),
        ("ant-medium-v2", "Ant-v4", (-325.6, 3879.7)),
        ("maze2d-large-dense-v1", None, (30.569041, 303.4857382709002)),
        ("something", None, (None, None)),
    ],
)
def test_name_decides_on_environment_and_scores(name, env_id, scores, tmp_path):
    metadata = load_raw(tmp_path / f"{name}.hdf5").metadata
    assert (metadata.env_id, metadata.ref_min_score, metadata.ref_max_score) == (env_id, *scores)
    assert metadata.action_space == spaces.Box(-1, 1, (2,), np.float32)


def test_actions_beyond_the_unit_box_leave_their_space_open(tmp_path):
    assert load_raw(tmp_path / "a.hdf5", actions=np.full((6, 2), 2.0)).metadata.action_space is None


@pytest.mark.parametrize("n", [0, 1])
def test_d4rl_file_of_too_few_rows_is_refused(n, tmp_path):
    with pytest.raises(DatasetError, match=f"holds {n} rows; two are needed"):
        load_raw(tmp_path / "a.hdf5", n=n)


@pytest.mark.parametrize("bad_episodes", ["drop", "repair", "raise"])
def test_bad_values_in_a_d4rl_file(bad_episodes, tmp_path):
    observations = with_entry(np.arange(20, dtype=np.float32).reshape(10, 2), (6, 0), np.nan)
    path = tmp_path / "a.hdf5"
    write_d4rl(path, 10, observations=observations, terminals=flags(10), timeouts=flags(10, 2, 9))
    if bad_episodes == "raise":
        with pytest.raises(DatasetError, match=r"1 of 2 episodes hold NaN .* first in transition 4"):
            load(path)
        return
    with pytest.warns(UserWarning, match="1 (dropped|shortened) episodes"):
        dataset = load(path, bad_episodes=bad_episodes)
    assert dataset.rewards.tolist() == ([0, 1] if bad_episodes == "drop" else [0, 1, 3, 4])


def test_constant_rewards_are_refused_unless_allowed(tmp_path):
    write_d4rl(tmp_path / "a.hdf5", rewards=np.zeros(6))
    with pytest.raises(DatasetError, match=r"all 5 rewards are 0; .*allow_constant_rewards=True"):
        load(tmp_path / "a.hdf5")
    assert len(load(tmp_path / "a.hdf5", allow_constant_rewards=True)) == 5


# --- Files by D4RL's name --------------------------------------------------------------------------------------------

NAME = "antmaze-umaze-v2"


@pytest.fixture
def raw_file(tmp_path):
    write_d4rl(tmp_path / "source.hdf5")
    return (tmp_path / "source.hdf5").read_bytes()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(requests, "get", lambda *_args, **_kwargs: pytest.fail("went to the net"))
    return tmp_path / "home"


class FakeResponse:
    def __init__(self, content, status=200, length=None, breaks=False):
        self.content, self.status, self.breaks = content, status, breaks
        self.headers = {"Content-Length": str(len(content) if length is None else length)}

    def __enter__(self):
        return self

    def __exit__(self, *_args):
        pass

    def raise_for_status(self):
        if self.status != 200:
            raise requests.HTTPError(self.status)

    def iter_content(self, size):
        yield self.content[:1000]
        if self.breaks:
            raise requests.exceptions.ChunkedEncodingError("broken")
        yield self.content[1000:]


def serve(monkeypatch, response):
    urls = []

    def get(url, **_kwargs):
        urls.append(url)
        if isinstance(response, Exception):
            raise response
        return response

    monkeypatch.setattr(requests, "get", get)
    return urls


@pytest.mark.parametrize("place", ["cache", "home"])
def test_file_is_found_by_name(place, raw_file, home, cache_folder):
    d4rls = home / ".d4rl/datasets" / Path(FILES[NAME]).name
    path = {"cache": cache_folder / f"d4rl/{NAME}.hdf5", "home": d4rls}[place]
    path.parent.mkdir(parents=True)
    path.write_bytes(raw_file)
    dataset = load(NAME, download=False)
    assert len(dataset) == 5
    metadata = dataset.metadata
    assert (metadata.dataset_id, metadata.env_id, metadata.ref_max_score) == (NAME, "AntMazeFlat/UMaze-v4", 1)


def test_name_decides_on_the_metadata_of_a_cached_file_too(raw_file, home):
    path = home / ".d4rl/datasets" / Path(FILES[NAME]).name
    path.parent.mkdir(parents=True)
    write_d4rl(path)
    with h5py.File(path, "a") as file:  # compressed, so that it goes through the cache
        for key in list(file):
            column = file[key][:]
            del file[key]
            file.create_dataset(key, data=column, compression="gzip")
    assert [load(source).env_id for source in (path, NAME, path, NAME)] == [None, "AntMazeFlat/UMaze-v4"] * 2


def test_missing_file_is_downloaded_once_and_its_checksum_noted(raw_file, cache_folder, monkeypatch):
    urls = serve(monkeypatch, FakeResponse(raw_file))
    assert len(load(NAME)) == len(load(NAME)) == 5
    assert urls == [URL + FILES[NAME]]
    noted = (cache_folder / f"d4rl/{NAME}.hdf5.sha256").read_text().split()
    assert noted == [hashlib.sha256(raw_file).hexdigest(), f"{NAME}.hdf5"]


def test_file_that_changed_since_its_download_is_noticed(raw_file, cache_folder, monkeypatch):
    serve(monkeypatch, FakeResponse(raw_file))
    load(NAME)
    path = cache_folder / f"d4rl/{NAME}.hdf5"
    path.write_bytes(raw_file[:-1] + b"x")
    with pytest.raises(DatasetError, match=rf"{NAME}.hdf5 has changed since it was downloaded. Delete it and"):
        load(NAME)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (FakeResponse(b"", status=404), r"cannot be downloaded \(HTTPError\)"),
        (requests.ConnectionError("no net"), r"cannot be downloaded \(ConnectionError\)"),
        (requests.Timeout(), r"cannot be downloaded \(Timeout\)"),
        (FakeResponse(b"x" * 5000, breaks=True), r"cannot be downloaded \(ChunkedEncodingError\)"),
        (FakeResponse(b"x" * 5000, length=6000), "broke off"),
        (FakeResponse(b"<html>Please log in</html>"), "gave no HDF5 file, but perhaps the page of a proxy"),
    ],
)
def test_failed_download_names_url_and_folder_and_leaves_nothing(response, message, cache_folder, monkeypatch):
    serve(monkeypatch, response)
    with pytest.raises(DatasetError, match=message) as error:
        load(NAME)
    assert URL + FILES[NAME] in str(error.value) and str(cache_folder / f"d4rl/{NAME}.hdf5") in str(error.value)
    assert list((cache_folder / "d4rl").iterdir()) == []


def test_without_download_the_error_names_url_and_folder(cache_folder):
    with pytest.raises(DatasetError, match=f"Download {URL}{FILES[NAME]} to {cache_folder}/d4rl/{NAME}.hdf5"):
        load(NAME, download=False)
