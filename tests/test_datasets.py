import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from sb3_ext.datasets import DatasetError, Transitions, collect, load_demonstrations, rollout_episodes

COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
LOW, HIGH = np.array([-1, 2], np.float32), np.array([3, 10], np.float32)
MIDDLE = (LOW + HIGH) / 2
BOX = spaces.Box(-100, 100, (2,), np.float32)
ACTIONS = spaces.Box(LOW, HIGH, dtype=np.float32)

pytestmark = pytest.mark.filterwarnings("ignore:`.*` is set to None:UserWarning")


class LineEnv(gym.Env):
    """3 to 6 steps; the seed decides on length, success (which terminates) and the second entry of observations."""

    observation_space = BOX
    action_space = ACTIONS

    def __init__(self, success_rate=1.0):
        self.success_rate = success_rate
        self.played = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, self.np_random.integers(3, 7)
        self.succeeds = bool(self.np_random.random() < self.success_rate)
        return self.observation(), {}

    def step(self, action):
        self.played.append(action)
        self.t += 1
        end = self.t == self.length
        success = bool(end and self.succeeds)
        return self.observation(), float(success), success, bool(end and not success), {"is_success": success}

    def observation(self):
        return np.array([self.t, self.np_random.random()], np.float32)


class ScriptedLineEnv(LineEnv):
    def scripted_action(self):
        return MIDDLE + np.float32(0.1 * self.t)


class DiscreteLineEnv(LineEnv):
    action_space = spaces.Discrete(3)

    def scripted_action(self):
        return self.t % 3


class DictLineEnv(ScriptedLineEnv):
    observation_space = spaces.Dict({"line": BOX, "count": spaces.Box(0, 255, (1,), np.uint8)})

    def observation(self):
        return {"line": super().observation(), "count": np.array([self.t], np.uint8)}


class ImageLineEnv(ScriptedLineEnv):
    observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)

    def observation(self):
        return self.np_random.integers(0, 256, (36, 36, 3), dtype=np.uint8)


class QuietLineEnv(ScriptedLineEnv):
    """Does not report success."""

    def step(self, action):
        *step, _ = super().step(action)
        return *step, {}


for name in ("LineEnv", "ScriptedLineEnv", "DiscreteLineEnv", "DictLineEnv", "ImageLineEnv", "QuietLineEnv"):
    gym.register(f"{name}-v0", entry_point=f"{__name__}:{name}")

SCRIPTED, NO_EXPERT = "ScriptedLineEnv-v0", "LineEnv-v0"


def make_arrays(n=6, **changes):
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(n + 1, 2)).astype(np.float32)
    arrays = {
        "observations": observations[:-1],
        "actions": rng.uniform(LOW, HIGH, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n),
        "next_observations": observations[1:],
        "terminations": np.arange(n) == n - 1,
        "truncations": np.zeros(n, bool),
    }
    return {**arrays, **changes}


def with_entry(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def make_episode(length, start=0, terminated=True, truncated=False):
    """Observations count up from ``start`` and never repeat between episodes with disjoint ranges."""
    last = np.arange(length) == length - 1
    return EpisodeBuffer(
        observations=np.stack([np.arange(start, start + length + 1), np.zeros(length + 1)], axis=1).astype(np.float32),
        actions=np.tile(MIDDLE, (length, 1)),
        rewards=[1.0] * length,
        terminations=list(last & terminated),
        truncations=list(last & truncated),
    )


def assert_equal(actual, expected):
    for name in COLUMNS:
        a, b = getattr(actual, name), getattr(expected, name)
        a, b = (a, b) if isinstance(a, dict) else ({name: a}, {name: b})
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype, key
            np.testing.assert_array_equal(a[key], b[key])


def expert_of(env):
    return lambda _obs: env.unwrapped.scripted_action()


def rollout(env_id=SCRIPTED, n_episodes=4, env_kwargs=None, **kwargs):
    env = gym.make(env_id, **(env_kwargs or {}))
    return Transitions.from_episodes(rollout_episodes(env, expert_of(env), n_episodes, **kwargs), source="rollout")


@pytest.fixture(scope="module")
def sac(tmp_path_factory):
    model = SAC("MlpPolicy", LineEnv(), policy_kwargs={"net_arch": [8]}, buffer_size=10, seed=0, device="cpu")
    path = tmp_path_factory.mktemp("model") / "sac.zip"
    model.save(path)
    return SimpleNamespace(model=model, path=str(path))


# Transitions from arrays


def test_arrays_are_kept_as_they_are():
    arrays = make_arrays()
    transitions = Transitions.from_arrays(arrays)
    assert len(transitions) == 6
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(transitions, name), arrays[name])


def test_jumps_between_rows_are_the_ends_of_truncated_episodes():
    arrays = make_arrays()
    arrays["next_observations"] = with_entry(arrays["next_observations"], 2, 7.0)
    arrays["terminations"] = np.array([False] * 4 + [True, False])
    with pytest.warns(UserWarning, match="1 rows lead elsewhere"):
        transitions = Transitions.from_arrays(arrays)
    assert transitions.truncations.tolist() == [False, False, True, False, False, True]


def test_a_wrapped_environment_is_played_with_its_wrappers():
    env = gym.wrappers.RescaleAction(gym.make(SCRIPTED), -0.5, 0.5)
    with pytest.raises(DatasetError, match="wrappers"):
        load_demonstrations("scripted:1", type("MyWrapper", (gym.Wrapper,), {})(env).spec)
    assert len(load_demonstrations("scripted:1", gym.make(SCRIPTED).spec)) > 0


def write_d4rl(path, n=6, **changes):
    columns = {
        "observations": np.arange(2 * n, dtype=np.float32).reshape(n, 2),
        "actions": np.zeros((n, 2), np.float32),
        "rewards": np.arange(n, dtype=np.float32),
        "terminals": np.arange(n) == 2,
        "timeouts": np.arange(n) == n - 1,
        **changes,
    }
    with h5py.File(path, "w") as file:
        for key, column in columns.items():
            if column is not None:
                file[key] = column
    return columns


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
    for path, message in ((tmp_path / "no.hdf5", "no readable HDF5"), (tmp_path / "nowhere.hdf5", "There is no file")):
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


def test_missing_path_says_so():
    for name in ("/nowhere/data", "./nowhere"):
        with pytest.raises(DatasetError, match="There is nothing at"):
            load_demonstrations(name)


def test_missing_truncations_mean_no_time_limit():
    arrays = make_arrays()
    del arrays["truncations"]
    np.testing.assert_array_equal(Transitions.from_arrays(arrays).truncations, np.zeros(6, bool))


def test_flags_and_rewards_may_be_numbers_in_columns():
    arrays = make_arrays(
        rewards=[[0], [1]] * 3, terminations=np.ones((6, 1)), truncations=[0, 1, 0, 1, 0, 0], actions=[[1.0, 5.0]] * 6
    )
    transitions = Transitions.from_arrays(arrays)
    np.testing.assert_array_equal(transitions.rewards, [0, 1] * 3)
    np.testing.assert_array_equal(transitions.terminations, [True] * 6)
    np.testing.assert_array_equal(transitions.truncations, [False, True, False, True, False, False])


def test_missing_column_is_named():
    arrays = make_arrays()
    del arrays["next_observations"]
    with pytest.raises(DatasetError, match=r"here: missing columns \['next_observations'\], unknown columns \[\]"):
        Transitions.from_arrays(arrays, source="here")


def test_unknown_column_is_named():
    with pytest.raises(DatasetError, match=r"missing columns \[\], unknown columns \['dones'\]; .* need the columns"):
        Transitions.from_arrays(make_arrays(dones=np.zeros(6)))


@pytest.mark.parametrize("name", COLUMNS)
def test_column_of_another_length_is_refused(name):
    with pytest.raises(DatasetError, match=rf"columns differ in length: .*'{name}': \{{5\}}"):
        Transitions.from_arrays(make_arrays(**{name: make_arrays()[name][:5]}))


def test_dict_observations_of_unequal_lengths_are_refused():
    observations = {"a": np.zeros((6, 1)), "b": np.zeros((5, 1))}
    with pytest.raises(DatasetError, match=r"columns differ in length: \{'observations': \{5, 6\}"):
        Transitions.from_arrays(make_arrays(observations=observations, next_observations=observations))


def test_arrays_without_rows_are_refused():
    with pytest.raises(DatasetError, match="arrays in memory holds no transitions"):
        Transitions.from_arrays(make_arrays(n=0))


# Transitions from episodes


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=12).filter(any))
def test_next_observations_are_exact_and_cross_no_episode(lengths):
    episodes = [make_episode(length, start=100 * i) for i, length in enumerate(lengths)]
    transitions = Transitions.from_episodes(episodes, source="test")
    assert len(transitions) == sum(lengths)
    ends = np.cumsum([length for length in lengths if length > 0]) - 1
    np.testing.assert_array_equal(np.flatnonzero(transitions.terminations), ends)
    counts, next_counts = transitions.observations[:, 0], transitions.next_observations[:, 0]
    np.testing.assert_array_equal(next_counts, counts + 1)
    inner = np.setdiff1d(np.arange(len(transitions) - 1), ends)
    np.testing.assert_array_equal(transitions.next_observations[inner], transitions.observations[inner + 1])


def test_dict_observations_of_episodes_are_stacked_by_key():
    env = gym.make("DictLineEnv-v0")
    episodes = rollout_episodes(env, expert_of(env), 2)
    transitions = Transitions.from_episodes(episodes, source="test")
    for key in ("line", "count"):
        np.testing.assert_array_equal(
            transitions.observations[key], np.concatenate([episode.observations[key][:-1] for episode in episodes])
        )
        np.testing.assert_array_equal(
            transitions.next_observations[key], np.concatenate([episode.observations[key][1:] for episode in episodes])
        )
    assert transitions.observations["count"].dtype == np.uint8


@pytest.mark.parametrize("episodes", [[], [make_episode(0)]])
def test_no_steps_in_episodes_are_refused(episodes):
    with pytest.raises(DatasetError, match=r"mine holds no transitions. Collect some: sb3-ext collect --help"):
        Transitions.from_episodes(episodes, source="mine")


def test_episode_without_its_last_observation_is_refused():
    short = SimpleNamespace(**{**vars(make_episode(3)), "observations": np.zeros((3, 2))})
    with pytest.raises(DatasetError, match=r"episode 1 has 3 rewards and \[3\] observations; T steps need T \+ 1"):
        Transitions.from_episodes([make_episode(2), short], source="mine")


def test_episode_without_its_last_action_is_refused():
    short = SimpleNamespace(**{**vars(make_episode(3)), "actions": np.zeros((2, 2))})
    with pytest.raises(DatasetError, match=r"columns differ in length: .*'actions': \{2\}"):
        Transitions.from_episodes([short], source="mine")


# Checks against an environment


def test_data_of_the_environment_passes():
    Transitions.from_arrays(make_arrays()).check_spaces(BOX, ACTIONS)
    rollout("DictLineEnv-v0").check_spaces(DictLineEnv.observation_space, ACTIONS)
    rollout("DiscreteLineEnv-v0").check_spaces(BOX, spaces.Discrete(3))


def test_wider_floats_and_integers_pass_as_floats():
    arrays = make_arrays(observations=np.zeros((6, 2), np.int64), actions=make_arrays()["actions"].astype(np.float64))
    Transitions.from_arrays(arrays).check_spaces(BOX, ACTIONS)


DICT = spaces.Dict({"a": BOX, "b": BOX})
PAIR = np.zeros((6, 2), np.float32)


@pytest.mark.parametrize(
    ("changes", "observation_space", "action_space", "message"),
    [
        ({"observations": np.zeros((6, 3))}, BOX, ACTIONS, r"observations have the shape \(3,\), .*'s \(2,\)"),
        ({"next_observations": np.zeros(6)}, BOX, ACTIONS, r"next_observations have the shape \(\), .*'s \(2,\)"),
        ({"actions": np.ones((6, 1))}, BOX, ACTIONS, r"actions have the shape \(1,\), .*'s \(2,\)"),
        ({}, BOX, spaces.Discrete(3), r"actions have the shape \(2,\), the environment's \(\)"),
        ({"actions": np.ones(6)}, BOX, spaces.Discrete(3), "actions have the dtype float64, the environment's int64"),
        ({"observations": PAIR.astype(str)}, BOX, ACTIONS, "observations have the dtype <U32, .*'s float32"),
        ({}, spaces.Box(0, 255, (2,), np.uint8), ACTIONS, "observations have the dtype float32, .*'s uint8"),
        ({}, DICT, ACTIONS, r"observations have the keys None, the environment's have \['a', 'b'\]"),
        (
            {"observations": {"a": PAIR, "c": PAIR}},
            DICT,
            ACTIONS,
            r"observations have the keys \['a', 'c'\], the environment's have \['a', 'b'\]",
        ),
        ({"observations": {"a": PAIR, "b": PAIR[:, :1]}}, DICT, ACTIONS, r"observations\['b'\] have the shape \(1,\)"),
        ({"observations": {"a": PAIR, "b": PAIR * np.nan}}, DICT, ACTIONS, r"observations\['b'\] hold NaN .* 6 rows"),
        ({"next_observations": {"a": PAIR}}, BOX, ACTIONS, "next_observations are a dict, the environment's are not"),
    ],
)
def test_data_of_another_environment_is_refused(changes, observation_space, action_space, message):
    transitions = Transitions.from_arrays(make_arrays(**changes), source="mine")
    with pytest.raises(DatasetError, match=f"mine: {message}"):
        transitions.check_spaces(observation_space, action_space)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["observations", "next_observations", "actions"])
def test_values_that_are_not_finite_are_refused_and_located(name, value):
    arrays = make_arrays()
    arrays[name] = with_entry(with_entry(arrays[name], (2, 1), value), (4, slice(None)), value)
    with pytest.raises(DatasetError, match=f" {name} hold NaN or infinite values in 2 rows, first row 2"):
        Transitions.from_arrays(arrays).check_spaces(BOX, ACTIONS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rewards_that_are_not_finite_are_refused(value):
    arrays = make_arrays(rewards=with_entry(make_arrays()["rewards"], 3, value))
    with pytest.raises(DatasetError, match="rewards hold NaN or infinite values"):
        Transitions.from_arrays(arrays).check_spaces(BOX, ACTIONS)


@pytest.mark.parametrize(("row", "column", "value"), [(0, 0, -1.001), (3, 1, 10.001), (5, 1, 1.9)])
def test_box_actions_out_of_range_are_refused(row, column, value):
    arrays = make_arrays(actions=with_entry(make_arrays()["actions"], (row, column), value))
    with pytest.raises(DatasetError, match=r"actions span \[.*\] to \[.*\], the action space \[-1.  ?2.\] to \[ 3. 10"):
        Transitions.from_arrays(arrays).check_spaces(BOX, ACTIONS)


@pytest.mark.parametrize("value", [-1, 3])
def test_discrete_actions_out_of_range_are_refused(value):
    transitions = Transitions.from_arrays(make_arrays(actions=np.array([0, 1, 2, value, 0, 1])))
    with pytest.raises(DatasetError, match="actions"):
        transitions.check_spaces(BOX, spaces.Discrete(3))


# Replay buffers


def fill(
    transitions, buffer_class=ReplayBuffer, observation_space=BOX, action_space=ACTIONS, scale_action=None, **kwargs
):
    buffer = buffer_class(len(transitions), observation_space, action_space, device="cpu", n_envs=1, **kwargs)
    transitions.fill(buffer, scale_action)
    return buffer._get_samples(np.arange(len(transitions))), buffer


def test_filled_buffer_holds_every_row_in_order():
    arrays = make_arrays()
    samples, buffer = fill(Transitions.from_arrays(arrays))
    assert buffer.size() == 6
    for name in ("observations", "actions", "next_observations"):
        np.testing.assert_array_equal(getattr(samples, name), arrays[name])
    np.testing.assert_allclose(samples.rewards[:, 0], arrays["rewards"], rtol=1e-6)


def test_only_terminations_stop_bootstrapping():
    flags = {"terminations": [0, 1, 0, 1, 0, 0], "truncations": [0, 0, 1, 1, 0, 1]}
    samples, _ = fill(Transitions.from_arrays(make_arrays(**flags)))
    np.testing.assert_array_equal(samples.dones[:, 0], [0, 1, 0, 1, 0, 0])


def test_actions_are_scaled_from_asymmetric_bounds(sac):
    actions = np.stack([LOW, HIGH, MIDDLE, [-1, 10], LOW + (HIGH - LOW) / 4, MIDDLE]).astype(np.float32)
    samples, _ = fill(Transitions.from_arrays(make_arrays(actions=actions)), scale_action=sac.model.policy.scale_action)
    expected = [[-1, -1], [1, 1], [0, 0], [-1, 1], [-0.5, -0.5], [0, 0]]
    np.testing.assert_allclose(samples.actions, expected, atol=1e-6)


def test_actions_that_rounding_moved_past_a_bound_are_clipped(sac):
    actions = make_arrays()["actions"].astype(np.float64)
    actions[0], actions[1] = LOW - 5e-6, HIGH + 5e-6
    transitions = Transitions.from_arrays(make_arrays(actions=actions))
    transitions.check_spaces(BOX, ACTIONS)
    samples, _ = fill(transitions, scale_action=sac.model.policy.scale_action)
    np.testing.assert_array_equal(samples.actions[:2], [[-1, -1], [1, 1]])
    assert samples.actions.abs().max() == 1


def test_dict_observations_fill_a_dict_buffer():
    transitions = rollout("DictLineEnv-v0")
    samples, _ = fill(transitions, DictReplayBuffer, DictLineEnv.observation_space)
    for key in ("line", "count"):
        np.testing.assert_array_equal(samples.observations[key], transitions.observations[key])
        np.testing.assert_array_equal(samples.next_observations[key], transitions.next_observations[key])


def test_discrete_actions_fill_a_buffer():
    transitions = rollout("DiscreteLineEnv-v0")
    samples, _ = fill(transitions, action_space=spaces.Discrete(3))
    np.testing.assert_array_equal(samples.actions[:, 0], transitions.actions)


def test_discrete_observations_fill_a_buffer():
    observations = np.arange(6)
    transitions = Transitions.from_arrays(make_arrays(observations=observations, next_observations=observations + 1))
    transitions.check_spaces(spaces.Discrete(7), ACTIONS)
    samples, _ = fill(transitions, observation_space=spaces.Discrete(7))
    np.testing.assert_array_equal(samples.observations[:, 0], observations)
    np.testing.assert_array_equal(samples.next_observations[:, 0], observations + 1)


@pytest.mark.parametrize("first_ends", ["terminated", "truncated", "without a flag"])
def test_n_step_returns_stay_inside_the_episode(first_ends):
    flags = {"terminated": first_ends == "terminated", "truncated": first_ends == "truncated"}
    episodes = [make_episode(2, **flags), make_episode(4, start=100, terminated=False, truncated=True)]
    transitions = Transitions.from_episodes(episodes, source="test")
    samples, _ = fill(transitions, NStepReplayBuffer, n_steps=3, gamma=0.5)
    np.testing.assert_array_equal(samples.next_observations[:, 0], [2, 2, 103, 104, 104, 104])
    np.testing.assert_array_equal(samples.rewards[:, 0], [1.5, 1, 1.75, 1.75, 1.5, 1])
    np.testing.assert_array_equal(samples.discounts[:, 0], [0.25, 0.5, 0.125, 0.125, 0.25, 0.5])
    np.testing.assert_array_equal(samples.dones[:, 0], [first_ends == "terminated"] * 2 + [False] * 4)


# Episodes


def test_episodes_hold_what_was_played():
    env = gym.make(SCRIPTED, success_rate=0.5)
    episodes = rollout_episodes(env, expert_of(env), 5, only_successful=False)
    assert [episode.id for episode in episodes] == list(range(5))
    np.testing.assert_array_equal(np.concatenate([e.actions for e in episodes]), env.unwrapped.played)
    assert {len(episode) for episode in episodes} > {3}
    for episode in episodes:
        np.testing.assert_array_equal(episode.observations[:, 0], np.arange(len(episode) + 1))
        ends = [False] * (len(episode) - 1) + [True]
        success = episode.rewards[-1] == 1.0
        assert episode.terminations == (ends if success else [False] * len(episode))
        assert episode.truncations == ([False] * len(episode) if success else ends)


def test_only_successful_episodes_are_kept():
    rewards = rollout(n_episodes=10, env_kwargs={"success_rate": 0.5}).rewards
    assert rewards.sum() == 10
    unfiltered = rollout(n_episodes=10, env_kwargs={"success_rate": 0.5}, only_successful=False)
    assert 0 < unfiltered.rewards.sum() < 10
    assert (unfiltered.terminations | unfiltered.truncations).sum() == 10


def test_environment_that_reports_no_success_keeps_all_episodes():
    assert rollout("QuietLineEnv-v0", env_kwargs={"success_rate": 0.0}).truncations.sum() == 4


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_seed_decides_the_episodes(noise):
    first = rollout(noise=noise, seed=1)
    assert_equal(rollout(noise=noise, seed=1), first)
    assert not np.array_equal(rollout(noise=noise, seed=2).observations[:3], first.observations[:3])


def test_noise_has_the_given_share_of_the_range_and_is_played_as_recorded():
    env = gym.make(SCRIPTED)
    env.reset(seed=0)
    episodes = rollout_episodes(env, lambda _obs: MIDDLE, 200, noise=0.1)
    actions = np.concatenate([episode.actions for episode in episodes])
    np.testing.assert_array_equal(actions, env.unwrapped.played)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions.mean(axis=0), MIDDLE, atol=0.03 * (HIGH - LOW).max())
    np.testing.assert_allclose(actions.std(axis=0), 0.1 * (HIGH - LOW) / 2, rtol=0.1)


def test_noisy_actions_stay_within_the_bounds():
    actions = rollout(n_episodes=50, noise=2.0).actions
    np.testing.assert_array_equal(actions.min(axis=0), LOW)
    np.testing.assert_array_equal(actions.max(axis=0), HIGH)
    assert np.mean((actions > LOW) & (actions < HIGH)) > 0.2


@pytest.mark.parametrize("n_episodes", [0, -1])
def test_no_episodes_are_refused(n_episodes):
    with pytest.raises(DatasetError, match=f"number of episodes must be at least 1, not {n_episodes}"):
        rollout(n_episodes=n_episodes)


def test_negative_noise_is_refused():
    with pytest.raises(DatasetError, match=r"noise=-0.1 must be at least 0"):
        rollout(noise=-0.1)


def test_noise_on_discrete_actions_is_refused():
    with pytest.raises(DatasetError, match=r"noise=0.1 must be .* 0 where actions are not a Box \(Discrete\(3\)\)"):
        rollout("DiscreteLineEnv-v0", noise=0.1)


def test_expert_that_always_fails_is_given_up():
    env = gym.make(SCRIPTED, success_rate=0.0)
    with pytest.raises(DatasetError, match=r"Only 0 of 30 episodes succeeded, 3 were asked for.*--keep-failures"):
        rollout_episodes(env, expert_of(env), 3)
    assert 30 * 3 <= len(env.unwrapped.played) <= 30 * 6


# Recorded datasets


@pytest.mark.parametrize("env_id", [SCRIPTED, "DictLineEnv-v0", "DiscreteLineEnv-v0", "ImageLineEnv-v0"])
def test_collected_dataset_loads_bit_equal(env_id):
    collect(env_id, "line", n_episodes=3, seed=4)
    assert_equal(load_demonstrations("line"), rollout(env_id, n_episodes=3, seed=4))


def test_dataset_loads_by_name_by_versioned_name_and_by_folder(minari_folder):
    dataset = collect(SCRIPTED, "line", n_episodes=2)
    assert dataset.spec.dataset_id == "line-v0"
    expected = load_demonstrations("line")
    assert expected.env_id == SCRIPTED
    for demos in ("line-v0", str(minari_folder / "line-v0"), minari_folder / "line-v0", minari_folder / "line-v0/data"):
        assert_equal(load_demonstrations(demos), expected)


def test_versions_and_namespaces_are_datasets_of_their_own():
    for i, name in enumerate(("line", "line-v1", "mine/line")):
        collect(SCRIPTED, name, n_episodes=i + 1)
    counts = [load_demonstrations(name).rewards.sum() for name in ("line-v0", "line-v1", "mine/line-v0")]
    assert counts == [1, 2, 3]


def test_collected_dataset_is_described():
    metadata = collect(SCRIPTED, "line", n_episodes=2, noise=0.1, seed=3).storage.metadata
    assert metadata["algorithm_name"] == "scripted"
    assert metadata["description"] == f"2 episodes of {SCRIPTED}, expert scripted, noise 0.1, seed 3."


def test_environment_arguments_and_failures_reach_the_dataset():
    kwargs = {"env_kwargs": {"success_rate": 0.0}, "n_episodes": 3}
    collect(SCRIPTED, "line", only_successful=False, **kwargs)
    assert load_demonstrations("line").rewards.sum() == 0
    with pytest.raises(DatasetError, match="Only 0 of 30 episodes succeeded"):
        collect(SCRIPTED, "other", **kwargs)


def test_existing_dataset_is_kept_without_overwrite():
    collect(SCRIPTED, "line", n_episodes=1)
    with pytest.raises(DatasetError, match=r"dataset 'line-v0' exists. Choose another --output or add --overwrite"):
        collect(SCRIPTED, "line-v0", n_episodes=2)
    assert load_demonstrations("line").rewards.sum() == 1


def test_overwrite_replaces_a_dataset():
    collect(SCRIPTED, "line", n_episodes=1)
    collect(SCRIPTED, "line", n_episodes=2, overwrite=True)
    assert load_demonstrations("line").rewards.sum() == 2


def test_failed_overwrite_keeps_the_old_dataset():
    collect(SCRIPTED, "line", n_episodes=1)
    with pytest.raises(DatasetError, match="Only 0 of 10"):
        collect(SCRIPTED, "line", n_episodes=1, env_kwargs={"success_rate": 0.0}, overwrite=True)
    assert load_demonstrations("line").rewards.sum() == 1


@pytest.mark.parametrize(("output", "named"), [("two words", "'two words"), ("line!", "'line!"), ("", "'(-v0)?'")])
def test_malformed_output_is_refused_and_leaves_nothing(output, named, minari_folder):
    with pytest.raises(DatasetError, match=named):
        collect(SCRIPTED, output, n_episodes=1)
    assert list(minari_folder.iterdir()) == []
    collect(SCRIPTED, "line", n_episodes=1)


def test_environment_without_expert_is_named():
    with pytest.raises(DatasetError, match=rf"{NO_EXPERT} has no scripted expert. Use a trained model"):
        collect(NO_EXPERT, "line")


def test_model_without_algorithm_is_refused(sac):
    with pytest.raises(DatasetError, match=r"Which algorithm trained '.*sac.zip'\? Add --algo"):
        collect(NO_EXPERT, "line", expert=sac.path)


def test_unknown_algorithm_is_refused(sac):
    with pytest.raises(DatasetError, match=r"Unknown algorithm 'sca'; known are .*redq.*sac"):
        collect(NO_EXPERT, "line", expert=sac.path, algo="sca")


def test_missing_model_is_named():
    with pytest.raises(DatasetError, match=r"There is no model nowhere.zip"):
        collect(NO_EXPERT, "line", expert="nowhere.zip", algo="sac")


def test_model_of_another_algorithm_is_refused(sac):
    with pytest.raises(DatasetError, match=r"sac\.zip"):
        collect(NO_EXPERT, "line", expert=sac.path, algo="ppo")


def test_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.zip"
    path.write_bytes(b"no zip archive")
    with pytest.raises(DatasetError, match=r"model\.zip"):
        collect(NO_EXPERT, "line", expert=str(path), algo="sac")


@pytest.mark.parametrize("env_id", ["DictLineEnv-v0", "DiscreteLineEnv-v0"])
def test_model_of_other_spaces_is_refused(sac, env_id):
    with pytest.raises(DatasetError, match=r"sac.zip cannot be loaded as 'sac' into this environment"):
        collect(env_id, "line", expert=sac.path, algo="sac")


def test_model_is_the_expert(sac):
    dataset = collect(NO_EXPERT, "line", expert=sac.path, algo="sac", n_episodes=3)
    assert dataset.storage.metadata["algorithm_name"] == "sac"
    transitions = load_demonstrations("line")
    for obs, action in zip(transitions.observations, transitions.actions, strict=True):
        np.testing.assert_array_equal(sac.model.predict(obs, deterministic=True)[0], action)


# Demonstrations from whatever a user has


def test_transitions_and_arrays_pass_through():
    arrays = make_arrays()
    transitions = Transitions.from_arrays(arrays)
    assert load_demonstrations(transitions) is transitions
    assert_equal(load_demonstrations(arrays), transitions)


@pytest.mark.parametrize("demos", [3, None, [make_arrays()]])
def test_other_types_are_refused(demos):
    with pytest.raises(DatasetError, match=rf"demos must be a Minari id, a path, .*, not {type(demos)}"):
        load_demonstrations(demos)


def test_archive_is_loaded(tmp_path, monkeypatch):
    np.savez(tmp_path / "demos.npz", **make_arrays())
    expected = Transitions.from_arrays(make_arrays())
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
    np.savez(tmp_path / "demos.npz", **make_arrays(observations={"a": PAIR}))
    with pytest.raises(DatasetError, match=r"demos.npz is no readable .npz archive"):
        load_demonstrations(tmp_path / "demos.npz")


def test_missing_dataset_is_named():
    with pytest.raises(DatasetError, match=r"no folder 'line' and no local Minari dataset 'line-v0'. Collect it"):
        load_demonstrations("line")


def test_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=rf"The Minari dataset '{tmp_path}' cannot be read"):
        load_demonstrations(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("by", ["name", "folder"])
def test_truncated_dataset_is_refused(by, share, minari_folder):
    collect(SCRIPTED, "line", n_episodes=2)
    path = minari_folder / "line-v0/data/main_data.hdf5"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DatasetError, match=r"The Minari dataset '.*line.*' cannot be read"):
        load_demonstrations("line" if by == "name" else minari_folder / "line-v0")


@pytest.mark.parametrize("file", ["main_data.hdf5", "metadata.json"])
def test_dataset_with_a_file_missing_is_refused(file, minari_folder):
    collect(SCRIPTED, "line", n_episodes=2)
    (minari_folder / "line-v0/data" / file).unlink()
    with pytest.raises(DatasetError, match=r"The Minari dataset '.*line-v0' cannot be read"):
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
