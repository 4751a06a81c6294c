"""Every other format: exact columns for small files, what is refused, and round trips."""

import json
import os
import pickle
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from line_envs import (
    ACTIONS,
    BOX,
    EPISODES,
    HIGH,
    LOW,
    NO_EXPERT,
    SCRIPTED,
    DictLineEnv,
    assert_consistent,
    assert_equal,
    counted,
    counted_dataset,
    make_arrays,
    rollout,
    with_entry,
)
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import save_to_pkl

from sb3_ext.datasets import Dataset, DatasetError, collect, load, load_demonstrations, save, to_replay_buffer
from sb3_ext.datasets.dataset import COLUMNS
from sb3_ext.datasets.load import read

pytestmark = [
    pytest.mark.filterwarnings("ignore:`.*` is set to None:UserWarning"),
    pytest.mark.filterwarnings("ignore:env_spec is None:UserWarning"),
]
SLOW_PROPERTY = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_missing_path_says_so():
    for name in ("/nowhere/data", "./nowhere"):
        with pytest.raises(DatasetError, match="There is nothing at"):
            load_demonstrations(name)


def test_transitions_and_arrays_pass_through():
    arrays = make_arrays()
    transitions = Dataset.from_arrays(arrays)
    assert load_demonstrations(transitions) is transitions
    assert_equal(load_demonstrations(arrays), transitions)


@pytest.mark.parametrize("demos", [3, None, [make_arrays()]])
def test_other_types_are_refused(demos):
    with pytest.raises(DatasetError, match=rf"A dataset is a Minari id, a D4RL name, a path, .*, not {type(demos)}"):
        load_demonstrations(demos)


def test_archive_is_loaded(tmp_path, monkeypatch):
    np.savez(tmp_path / "demos.npz", **make_arrays())
    expected = Dataset.from_arrays(make_arrays())
    monkeypatch.setenv("HOME", str(tmp_path))
    for demos in (tmp_path / "demos.npz", str(tmp_path / "demos.npz"), "~/demos.npz"):
        transitions = load_demonstrations(demos)
        assert_equal(transitions, expected)
        assert transitions.source == str(tmp_path / "demos.npz")


def test_archive_with_a_missing_column_is_named(tmp_path):
    np.savez(tmp_path / "demos.npz", actions=np.zeros((6, 2)))
    with pytest.raises(DatasetError, match=r"demos.npz: missing columns \['observations', 'rewards'"):
        load_demonstrations(tmp_path / "demos.npz")


def test_missing_archive_is_named():
    with pytest.raises(DatasetError, match=r"There is no file nowhere/demos\.npz"):
        load_demonstrations("nowhere/demos.npz")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_truncated_archive_is_refused(tmp_path, share):
    path = tmp_path / "demos.npz"
    np.savez(path, **make_arrays())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DatasetError, match=r"demos.npz is no readable .npz archive"):
        load_demonstrations(path)


def test_corrupted_archive_is_refused(tmp_path):
    path = tmp_path / "demos.npz"
    np.savez_compressed(path, **make_arrays(n=1000))
    data = bytearray(path.read_bytes())
    data[1000:1100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"demos.npz is no readable .npz archive"):
        load_demonstrations(path)


def test_archive_of_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "demos.npz", **make_arrays(observations={"a": np.zeros((6, 2))}))
    with pytest.raises(DatasetError, match=r"demos.npz is no readable .npz archive"):
        load_demonstrations(tmp_path / "demos.npz")


def test_missing_dataset_is_named():
    with pytest.raises(DatasetError, match=r"no folder 'line' and no local Minari dataset 'line-v0'. Collect it"):
        load_demonstrations("line")


def test_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=rf"The folder '{tmp_path}' holds no dataset"):
        load_demonstrations(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("by", ["name", "folder"])
def test_truncated_dataset_is_refused(by, share, minari_folder):
    collect(SCRIPTED, "line", n_episodes=2)
    path = minari_folder / "line-v0/data/main_data.hdf5"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DatasetError, match=r"line-v0.*cannot be read"):
        load_demonstrations("line" if by == "name" else minari_folder / "line-v0")


@pytest.mark.parametrize(
    ("file", "message"), [("main_data.hdf5", "There is no file .*main_data"), ("metadata.json", "holds no dataset")]
)
def test_dataset_with_a_file_missing_is_refused(file, message, minari_folder):
    collect(SCRIPTED, "line", n_episodes=2)
    (minari_folder / "line-v0/data" / file).unlink()
    with pytest.raises(DatasetError, match=message):
        load_demonstrations(minari_folder / "line-v0")


def test_dataset_without_episodes_is_refused():
    minari.create_dataset_from_buffers("line-v0", [], env=gym.make(SCRIPTED))
    with pytest.raises(DatasetError, match="'line' holds no transitions"):
        load_demonstrations("line")


def test_dataset_of_another_minari_version_is_refused(minari_folder):
    collect(SCRIPTED, "line", n_episodes=1)
    path = minari_folder / "line-v0/data/metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "minari_version": "99.0"}))
    with pytest.raises(DatasetError, match=r"The Minari dataset 'line' cannot be read: .*99.0"):
        load_demonstrations("line")


def test_copied_folder_is_loaded(tmp_path, minari_folder):
    collect(SCRIPTED, "line", n_episodes=2)
    shutil.copytree(minari_folder / "line-v0", tmp_path / "copy")
    assert_equal(load_demonstrations(Path(tmp_path / "copy")), load_demonstrations("line"))


def test_scripted_episodes_are_collected_on_the_spot():
    spec = gym.make(SCRIPTED, success_rate=0.5).spec
    transitions = load_demonstrations("scripted:3", spec, seed=5)
    assert_equal(transitions, rollout(n_episodes=3, env_kwargs={"success_rate": 0.5}, seed=5))
    assert transitions.env_id == SCRIPTED
    assert transitions.rewards.sum() == 3


@pytest.mark.parametrize("count", ["x", "", "0", "-1", "1.5", "3 "])
def test_scripted_without_a_number_is_refused(count):
    with pytest.raises(DatasetError, match=rf"demos='scripted:{count}': write the number of episodes after the colon"):
        load_demonstrations(f"scripted:{count}", gym.spec(SCRIPTED))


def test_scripted_without_an_environment_is_refused():
    with pytest.raises(DatasetError, match=r"demos='scripted:3' needs an environment that was made by gym.make"):
        load_demonstrations("scripted:3")


def test_scripted_for_an_environment_without_expert_is_refused():
    with pytest.raises(DatasetError, match=f"{NO_EXPERT} has no scripted expert"):
        load_demonstrations("scripted:3", gym.spec(NO_EXPERT))


def test_data_under_another_environment_id_is_refused_with_both_ids():
    collect(SCRIPTED, "line", n_episodes=1)
    with pytest.raises(DatasetError, match=rf"'line' was recorded in {SCRIPTED}, but training is in {NO_EXPERT}"):
        load_demonstrations("line", gym.spec(NO_EXPERT))


def test_data_of_the_same_or_an_unknown_environment_is_silent():
    collect(SCRIPTED, "line", n_episodes=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_demonstrations("line", gym.spec(SCRIPTED))
        load_demonstrations("line")
        load_demonstrations(make_arrays(), gym.spec(SCRIPTED))


# --- Minari ----------------------------------------------------------------------------------------------------------

FORMATS = ["hdf5", "arrow"]


@pytest.fixture(params=FORMATS)
def data_format(request):
    if request.param == "arrow":
        pytest.importorskip("pyarrow")
    return request.param


def write_minari(episodes, name="mine-v0", observation_space=BOX, action_space=ACTIONS, **kwargs):
    buffers = [
        EpisodeBuffer(id=i, **{key: value for key, value in vars(e).items() if key != "id"})
        for i, e in enumerate(episodes)
    ]
    spaces_ = {"observation_space": observation_space, "action_space": action_space}
    return minari.create_dataset_from_buffers(name, buffers, env=None, **spaces_, **kwargs)


def replace_column(group, name, values):
    del group[name]
    group[name] = values


PLAN = [(3, "terminal"), (1, "timeout"), (4, "none")]


def test_minari_columns(data_format):
    write_minari(counted(PLAN), data_format=data_format)
    dataset = read("mine")
    counts = [0, 1, 2, 100, 200, 201, 202, 203]
    np.testing.assert_array_equal(dataset.observations[:, 0], counts)
    np.testing.assert_array_equal(dataset.next_observations[:, 0], np.array(counts) + 1)
    np.testing.assert_array_equal(dataset.rewards, counts)
    np.testing.assert_array_equal(dataset.actions[:, 0], np.float32(counts) / np.float32(1000))
    assert np.flatnonzero(dataset.terminations).tolist() == [2]
    assert np.flatnonzero(dataset.truncations).tolist() == [3]
    assert np.flatnonzero(dataset.ends).tolist() == [2, 3, 7]
    assert dataset.metadata.observation_space == BOX and dataset.metadata.action_space == ACTIONS
    assert_consistent(dataset)


@SLOW_PROPERTY
@given(plan=EPISODES)
@pytest.mark.parametrize("data_format", FORMATS)
def test_minari_loses_no_transition_and_joins_no_episodes(data_format, plan, minari_folder):
    if data_format == "arrow":
        pytest.importorskip("pyarrow")
    shutil.rmtree(minari_folder / "mine-v0", ignore_errors=True)
    write_minari(counted(plan), data_format=data_format)
    dataset = read("mine", cache=False)
    assert_equal(dataset, counted_dataset(plan), (*COLUMNS, "ends", "lengths"))
    assert_consistent(dataset)


def dict_episodes():
    episodes = counted(PLAN)
    for episode in episodes:
        count = episode.observations[:, :1]
        episode.observations = {"count": count.astype(np.uint8), "line": episode.observations}
        episode.actions = (np.arange(len(episode.rewards)) % 3).astype(np.int64)
    return episodes


def test_minari_dict_observations_and_discrete_actions(data_format):
    write_minari(
        dict_episodes(),
        observation_space=DictLineEnv.observation_space,
        action_space=spaces.Discrete(3),
        data_format=data_format,
    )
    dataset = read("mine")
    assert list(dataset.frames) == ["count", "line"]
    np.testing.assert_array_equal(dataset.observations["line"][:, 0], [0, 1, 2, 100, 200, 201, 202, 203])
    np.testing.assert_array_equal(dataset.next_observations["count"][:, 0], [1, 2, 3, 101, 201, 202, 203, 204])
    assert dataset.actions.tolist() == [0, 1, 2, 0, 0, 1, 2, 0] and dataset.actions.dtype == np.int64


@pytest.mark.parametrize(("data_format", "extra_row"), [("hdf5", 0), ("hdf5", 1), ("arrow", 1)])
def test_minari_infos_of_t_or_t_plus_1_rows(data_format, extra_row):
    if data_format == "arrow":
        pytest.importorskip("pyarrow")
    episodes = counted(PLAN)
    for episode in episodes:
        rows = len(episode.rewards) + extra_row
        count = episode.rewards[0] + np.arange(rows) - extra_row
        episode.infos = {
            "goal": np.stack([count, count], 1).astype(np.float32),
            "success": count % 2 == 0,
            "other": count,
        }
    write_minari(episodes, data_format=data_format)
    dataset = read("mine")
    counts = [0, 1, 2, 100, 200, 201, 202, 203]
    assert set(dataset.infos) == {"goal", "success"}
    np.testing.assert_array_equal(dataset.goals[:, 0], counts)
    np.testing.assert_array_equal(dataset.successes, np.array(counts) % 2 == 0)
    assert set(read("mine", infos=True).infos) == {"goal", "success", "other"}
    assert not read("mine", infos=False).infos


@pytest.mark.parametrize(
    ("change", "n_repaired"),
    [
        (lambda e: replace_column(e, "actions", e["actions"][:2]), 2),
        (lambda e: replace_column(e, "rewards", e["rewards"][:3]), 3),
        (lambda e: replace_column(e, "terminations", e["terminations"][:1]), 1),
        (lambda e: replace_column(e, "observations", e["observations"][:4]), 3),
        (lambda e: replace_column(e, "observations", e["observations"][:1]), 0),
        (lambda e: replace_column(e, "observations", np.tile(e["observations"][:], (2, 1))), 4),
    ],
)
@pytest.mark.parametrize("bad_episodes", ["raise", "drop", "repair"])
def test_minari_episode_whose_columns_do_not_fit(bad_episodes, change, n_repaired, minari_folder):
    write_minari(counted([(3, "terminal"), (4, "none"), (2, "timeout")]))
    with h5py.File(minari_folder / "mine-v0/data/main_data.hdf5", "a") as file:
        change(file["episode_1"])
    if bad_episodes == "raise":
        with pytest.raises(DatasetError, match=r"1 of 3 episodes are malformed. Episode 1 has .*bad_episodes='drop'"):
            read("mine")
        return
    kept = [100, 101, 102, 103][: n_repaired if bad_episodes == "repair" else 0]
    with pytest.warns(UserWarning, match="1 (dropped|shortened) episodes"):
        dataset = read("mine", bad_episodes=bad_episodes)
    np.testing.assert_array_equal(dataset.observations[:, 0], [0, 1, 2, *kept, 200, 201])
    np.testing.assert_array_equal(dataset.next_observations[:, 0], dataset.observations[:, 0] + 1)
    np.testing.assert_array_equal(dataset.actions[:, 0], dataset.observations[:, 0] / np.float32(1000))
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), [2])
    assert dataset.n_episodes == 2 + bool(kept)
    assert dataset.metadata.counts == {("dropped" if bad_episodes == "drop" else "shortened") + " episodes": 1}
    with pytest.warns(UserWarning, match=r"1 (dropped|shortened) episodes"):
        assert_equal(read("mine", bad_episodes=bad_episodes), dataset)


def test_minari_dict_of_keys_of_unequal_length(minari_folder):
    write_minari(dict_episodes(), observation_space=DictLineEnv.observation_space, action_space=spaces.Discrete(3))
    with h5py.File(minari_folder / "mine-v0/data/main_data.hdf5", "a") as file:
        replace_column(file["episode_0/observations"], "line", file["episode_0/observations/line"][:2])
    with pytest.raises(DatasetError, match="1 of 3 episodes are malformed"):
        read("mine")
    with pytest.warns(UserWarning, match="1 shortened"):
        dataset = read("mine", bad_episodes="repair")
    np.testing.assert_array_equal(dataset.observations["line"][:, 0], [0, 100, 200, 201, 202, 203])
    np.testing.assert_array_equal(dataset.next_observations["count"][:, 0], [1, 101, 201, 202, 203, 204])
    np.testing.assert_array_equal(dataset.next_observations["line"][:, 0], [1, 101, 201, 202, 203, 204])


def test_minari_images_compressed_as_jpeg(minari_folder):
    env = gym.make("ImageLineEnv-v0")
    image = np.repeat(np.repeat(np.arange(0, 252, 28, dtype=np.uint8)[:, None], 36, 1), 4, 0)[..., None].repeat(3, 2)
    episodes = counted([(2, "terminal"), (1, "timeout")])
    for episode in episodes:
        episode.observations = np.stack([image] * (len(episode.rewards) + 1))
    jpeg = {"jpeg_encoding": True} if "jpeg_encoding" in minari.create_dataset_from_buffers.__annotations__ else {}
    write_minari(episodes, observation_space=env.observation_space, **jpeg)
    dataset = read("mine")
    assert dataset.observations.shape == (3, 36, 36, 3) and dataset.frames.dtype == np.uint8
    assert np.abs(dataset.observations.astype(int) - image).max() < 10
    assert np.flatnonzero(dataset.ends).tolist() == [1, 2]


def test_our_own_images_are_kept_to_the_last_bit():
    dataset = rollout("ImageLineEnv-v0", n_episodes=2)
    save(dataset, "images")
    assert_equal(read("images"), dataset)


def test_arrow_without_pyarrow_names_what_to_install(monkeypatch):
    pytest.importorskip("pyarrow")
    write_minari(counted(PLAN), data_format="arrow")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"stored as arrow: pip install 'sb3-ext\[arrow\]'"):
        read("mine")


def test_missing_dataset_with_a_namespace_is_downloaded(monkeypatch):
    asked = []

    def download(dataset_id):
        asked.append(dataset_id)
        write_minari(counted(PLAN), dataset_id)

    monkeypatch.setattr(minari, "download_dataset", download)
    assert len(read("far/away-v2")) == len(read("far/away-v2")) == 8
    assert asked == ["far/away-v2"]
    with pytest.raises(DatasetError, match="no local Minari dataset 'far/other-v0'"):
        read("far/other", download=False)
    with pytest.raises(DatasetError, match="no local Minari dataset 'away-v0'"):
        read("away")
    assert asked == ["far/away-v2"]


def test_failed_download_of_a_minari_dataset_names_the_way_out(monkeypatch, minari_folder):
    def download(_dataset_id):
        raise ConnectionError("no net")

    monkeypatch.setattr(minari, "download_dataset", download)
    message = (
        rf"is not in {minari_folder} and cannot be downloaded \(ConnectionError: no net\).*minari download far/away-v0"
    )
    with pytest.raises(DatasetError, match=message):
        read("far/away")


# --- SB3's buffers ---------------------------------------------------------------------------------------------------


def fill_sb3(buffer, n, keys=None):
    """Environment e counts from 1000 e, an episode has 3 steps: the last of every second is cut off."""

    def make(x):
        return np.stack([x, -x], axis=1).astype(np.float32)

    for t in range(n):
        episode, step = divmod(t, 3)
        count = 1000 * np.arange(buffer.n_envs) + 10 * episode + step
        done = np.full(buffer.n_envs, step == 2)
        infos = [{"TimeLimit.truncated": bool(step == 2 and episode % 2)}] * buffer.n_envs
        obs, successor = make(count), make(count + 1)
        if keys:
            obs, successor = ({key: x for key in keys} for x in (obs, successor))
        action = count[:, None] % 3 if isinstance(buffer.action_space, spaces.Discrete) else make(count % 5 / 5)
        buffer.add(obs, successor, action, count.astype(np.float32), done, infos)


def sb3_buffer(size=12, n_envs=1, cls=ReplayBuffer, observation_space=BOX, action_space=ACTIONS, **kwargs):
    return cls(size * n_envs, observation_space, action_space, device="cpu", n_envs=n_envs, **kwargs)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(("n", "first"), [(5, 0), (12, 0), (16, 4)])
def test_sb3_buffer_in_the_order_of_recording(n, first, n_envs):
    buffer = sb3_buffer(12, n_envs)
    fill_sb3(buffer, n)
    dataset = read(buffer)
    steps = np.arange(first, n)
    counts = np.concatenate([1000 * e + 10 * (steps // 3) + steps % 3 for e in range(n_envs)])
    np.testing.assert_array_equal(dataset.observations[:, 0], counts)
    np.testing.assert_array_equal(dataset.next_observations[:, 0], counts + 1)
    np.testing.assert_array_equal(dataset.rewards, counts)
    is_last, is_cut = counts % 10 == 2, counts // 10 % 2 == 1
    np.testing.assert_array_equal(dataset.terminations, is_last & ~is_cut)
    np.testing.assert_array_equal(dataset.truncations, is_last & is_cut)
    ends = is_last.copy()
    ends[len(steps) - 1 :: len(steps)] = True
    np.testing.assert_array_equal(dataset.ends, ends)
    expected = LOW + 0.5 * (np.stack([counts % 5, -(counts % 5)], 1) / 5 + 1) * (HIGH - LOW)
    np.testing.assert_allclose(dataset.actions, expected, rtol=1e-6)
    assert_consistent(dataset)


def test_environments_side_by_side_are_not_joined_where_observations_agree():
    buffer = sb3_buffer(4, 2, observation_space=spaces.Discrete(3), action_space=spaces.Discrete(2))
    for obs, successor in (([0, 1], [1, 2]), ([1, 2], [1, 2])):
        buffer.add(np.array(obs), np.array(successor), np.zeros((2, 1)), np.zeros(2), np.zeros(2), [{}, {}])
    dataset = read(buffer)
    assert dataset.observations.tolist() == [0, 1, 1, 2] and dataset.next_observations.tolist() == [1, 1, 2, 2]
    assert dataset.lengths.tolist() == [2, 2]


@pytest.mark.parametrize("n", [5, 16])
def test_sb3_buffer_that_saves_memory(n):
    buffer = sb3_buffer(12, optimize_memory_usage=True, handle_timeout_termination=False)
    fill_sb3(buffer, n)
    dataset = read(buffer)
    steps = np.arange(max(n - 11, 0), n)
    counts = 10 * (steps // 3) + steps % 3
    np.testing.assert_array_equal(dataset.observations[:, 0], counts)
    is_last = counts % 10 == 2
    # Of a terminal step nothing is known, least of all the next episode
    np.testing.assert_array_equal(dataset.next_observations[:, 0], counts + ~is_last)
    np.testing.assert_array_equal(dataset.terminations, is_last)
    assert_consistent(dataset)


def test_sb3_dict_buffer_with_discrete_actions():
    space = spaces.Dict({"a": BOX, "b": BOX})
    buffer = sb3_buffer(12, 2, DictReplayBuffer, space, spaces.Discrete(3))
    fill_sb3(buffer, 4, keys=("a", "b"))
    dataset = read(buffer)
    counts = np.array([0, 1, 2, 10, 1000, 1001, 1002, 1010])
    for key in ("a", "b"):
        np.testing.assert_array_equal(dataset.observations[key][:, 0], counts)
        np.testing.assert_array_equal(dataset.next_observations[key][:, 0], counts + 1)
    assert dataset.actions.shape == (8,)
    np.testing.assert_array_equal(dataset.actions, counts % 3)


def test_empty_buffer_is_refused():
    with pytest.raises(DatasetError, match="ReplayBuffer in memory holds no transitions"):
        read(sb3_buffer())


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_pickle_is_opened_only_if_trusted(tmp_path):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "executed")))
    with pytest.raises(DatasetError, match=r"is a pickle, .* any code .*trust=True"):
        load(path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(DatasetError, match="holds a NoneType, no replay buffer"):
        load(path, trust=True)
    assert (tmp_path / "executed").exists()  # so the first half could fail


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1, 2])])
def test_pickle_of_something_else_is_refused(content, tmp_path):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.pkl"):
        load(tmp_path / "a.pkl", trust=True)


def test_saved_buffer_is_loaded(tmp_path):
    buffer = sb3_buffer(12, 2)
    fill_sb3(buffer, 16)
    save_to_pkl(tmp_path / "a.pkl", buffer)
    assert_equal(read(tmp_path / "a.pkl", trust=True), read(buffer))


def test_buffer_size_and_spaces_of_a_new_buffer():
    dataset = rollout()
    buffer = to_replay_buffer(dataset, buffer_size=100, device="cpu")
    assert (buffer.buffer_size, buffer.pos, buffer.full) == (100, len(dataset), False)
    with pytest.raises(DatasetError, match=f"buffer_size={len(dataset) - 1} is less"):
        to_replay_buffer(dataset, buffer_size=len(dataset) - 1)
    with pytest.raises(DatasetError, match="does not name its spaces"):
        to_replay_buffer(dataset.with_metadata(action_space=None))
    with pytest.raises(DatasetError, match="actions have the shape"):
        to_replay_buffer(dataset, action_space=spaces.Box(-1, 1, (3,)))


# --- Our own folder --------------------------------------------------------------------------------------------------


def test_folder_keeps_everything(tmp_path):
    dataset = rollout("DictLineEnv-v0", n_episodes=3)
    save(dataset, tmp_path / "mine")
    loaded = read(tmp_path / "mine")
    assert_equal(loaded, dataset, (*COLUMNS, "frames", "rows", "next_rows"))
    np.testing.assert_array_equal(loaded.infos["success"], dataset.infos["success"])
    assert loaded.metadata == replace(dataset.metadata, source=str(tmp_path / "mine"))


def test_changing_a_loaded_array_leaves_the_files(tmp_path):
    save(counted_dataset(PLAN), tmp_path / "mine")
    loaded = read(tmp_path / "mine")
    loaded.frames[:] = 7
    loaded.rewards[:] = 7
    assert_equal(read(tmp_path / "mine"), counted_dataset(PLAN))


@pytest.mark.parametrize("file", ["rows", "next_rows", "actions", "rewards", "terminations", "truncations", "frames_0"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "short", "floats in 2-D"])
def test_broken_folder_is_refused(file, damage, tmp_path):
    save(counted_dataset(PLAN), tmp_path / "mine")
    path = tmp_path / f"mine/{file}.npy"
    array, content = np.load(path), path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage in ("cut", "empty"):
        path.write_bytes(content[: -1 if damage == "cut" else 0])
    else:
        np.save(path, array[:-1] if damage == "short" else np.zeros((len(array) - 1, 1, 1)))
    with pytest.raises(DatasetError):
        load(tmp_path / "mine")


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "frames": 3}', '{"format": 1}'])
def test_broken_index_is_refused(index, tmp_path):
    save(counted_dataset(PLAN), tmp_path / "mine")
    (tmp_path / "mine/dataset.json").write_text(index)
    with pytest.raises(DatasetError, match="mine"):
        load(tmp_path / "mine")


@pytest.mark.parametrize(("name", "row"), [("rows", -1), ("next_rows", 11), ("rows", 1 << 40)])
def test_rows_outside_the_observations_are_refused(name, row, tmp_path):
    save(counted_dataset(PLAN), tmp_path / "mine")
    path = tmp_path / f"mine/{name}.npy"
    np.save(path, with_entry(np.load(path), 3, row))
    with pytest.raises(DatasetError, match=f"{name} point outside the observations"):
        load(tmp_path / "mine")


@pytest.mark.parametrize("n_envs", [2, 3])
def test_buffer_of_several_environments(n_envs):
    dataset = rollout(SCRIPTED, n_episodes=3, seed=1, env_kwargs={"success_rate": 0.5}, only_successful=False)
    buffer = to_replay_buffer(dataset, n_envs=n_envs, device="cpu")
    n_rows = len(dataset) // n_envs
    assert buffer.n_envs == n_envs and buffer.size() == n_rows
    for env in range(n_envs):
        part = slice(env * n_rows, (env + 1) * n_rows)
        np.testing.assert_array_equal(buffer.observations[:n_rows, env], dataset.observations[part])
        np.testing.assert_array_equal(buffer.next_observations[:n_rows, env], dataset.next_observations[part])
        np.testing.assert_array_equal(buffer.rewards[:n_rows, env], dataset.rewards[part])
        assert buffer.dones[n_rows - 1, env] == 1
        stops = buffer.dones[:n_rows, env] * (1 - buffer.timeouts[:n_rows, env])
        np.testing.assert_array_equal(stops, dataset.terminations[part])
    with pytest.raises(DatasetError, match="cannot be dealt out to 100 environments"):
        to_replay_buffer(dataset, n_envs=100)
