"""The tensor replay buffer against SB3's, value by value."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from line_envs import ACTIONS, BOX, counted_dataset
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import DiscreteEnv, reach_env

from sb3_ext import REDQ
from sb3_ext.common.buffers import DatasetBuffer, TensorReplayBuffer
from sb3_ext.datasets import Dataset
from sb3_ext.datasets.replay_buffer import fill_buffer

OBS, ACTION = spaces.Box(-10, 10, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
BOX_1 = spaces.Box(-1000, 1000, (1,), np.float32)
DICT_OBS = spaces.Dict({"a": OBS, "b": spaces.Box(0, 255, (2, 4, 4), np.uint8)})
COLUMNS = ("observations", "actions", "next_observations", "dones", "rewards", "discounts")


def fill(buffers, n_steps, n_envs=1, seed=0):
    """The same random transitions for all buffers; some end in a termination, some in a time limit."""
    rng = np.random.default_rng(seed)

    def observations(space):
        if isinstance(space, spaces.Dict):
            return {key: observations(part) for key, part in space.items()}
        if space.dtype == np.uint8:
            return rng.integers(0, 255, (n_envs, *space.shape), dtype=np.uint8)
        return rng.normal(size=(n_envs, *space.shape)).astype(space.dtype)

    for _ in range(n_steps):
        kind = rng.integers(0, 6, n_envs)
        arguments = (
            observations(buffers[0].observation_space),
            observations(buffers[0].observation_space),
            rng.uniform(-1, 1, (n_envs, 2)).astype(np.float32),
            rng.normal(size=n_envs),
            kind < 2,
            [{"TimeLimit.truncated": bool(k == 0)} for k in kind],
        )
        for buffer in buffers:
            buffer.add(*arguments)


def assert_same_samples(first, second):
    for name in COLUMNS:
        a, b = getattr(first, name), getattr(second, name)
        if name == "discounts" and (a is None or b is None):
            assert a is None and b is None
            continue
        pairs = [(a[key], b[key]) for key in a] if isinstance(a, dict) else [(a, b)]
        for x, y in pairs:
            assert x.dtype == y.dtype
            th.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_added", [7, 20, 33], ids=["young", "just full", "wrapped around"])
@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_every_row_equals_sb3s(n_steps, n_added):
    ours = TensorReplayBuffer(20, OBS, ACTION, "cpu", n_steps=n_steps, gamma=0.9)
    theirs = ReplayBuffer(20, OBS, ACTION, "cpu")
    if n_steps > 1:
        theirs = NStepReplayBuffer(20, OBS, ACTION, "cpu", n_steps=n_steps, gamma=0.9)
    fill([ours, theirs], n_added)
    assert ours.size() == theirs.size() == min(n_added, 20)
    rows = np.arange(ours.size())
    assert_same_samples(ours._get_samples(rows), theirs._get_samples(rows))


def test_dict_observations_equal_sb3s():
    ours, theirs = (buffer(20, DICT_OBS, ACTION, "cpu") for buffer in (TensorReplayBuffer, DictReplayBuffer))
    fill([ours, theirs], 33)
    assert_same_samples(ours._get_samples(np.arange(20)), theirs._get_samples(np.arange(20)))


def test_n_step_returns_of_several_environments_stay_in_their_environment():
    """Against one SB3 buffer per environment."""
    ours = TensorReplayBuffer(30, OBS, ACTION, "cpu", n_envs=3, n_steps=4, gamma=0.9)
    fill([ours], 17, n_envs=3)
    for env in range(3):
        single = NStepReplayBuffer(10, OBS, ACTION, "cpu", n_steps=4, gamma=0.9)
        for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
            getattr(single, name)[:, 0] = getattr(ours, name)[:, env]
        single.pos, single.full = ours.pos, ours.full
        rows = np.arange(10)
        assert_same_samples(ours._gather(th.as_tensor(rows * 3 + env), None), single._get_samples(rows))


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("dict_obs", [False, True])
def test_vec_normalize_equals_sb3s(dict_obs, n_steps):
    env = VecNormalize(make_vec_env(reach_env, env_kwargs={"dict_obs": dict_obs}), clip_obs=1.0, clip_reward=0.5)
    env.reset()
    for _ in range(30):
        env.step(np.array([env.action_space.sample()]))
    spaces_ = (env.observation_space, env.action_space)
    if dict_obs:
        if n_steps > 1:
            pytest.skip("SB3 has no n-step returns of Dict observations")
        theirs = DictReplayBuffer(20, *spaces_, device="cpu")
    else:
        theirs = (
            NStepReplayBuffer(20, *spaces_, device="cpu", n_steps=n_steps)
            if n_steps > 1
            else ReplayBuffer(20, *spaces_, device="cpu")
        )
    ours = TensorReplayBuffer(20, *spaces_, device="cpu", n_steps=n_steps)
    fill([ours, theirs], 26)
    rows = np.arange(20)
    assert_same_samples(ours._get_samples(rows, env), theirs._get_samples(rows, env))


def test_samples_are_uniform_over_stored_transitions():
    buffer = TensorReplayBuffer(100, OBS, ACTION, "cpu", n_envs=2)
    fill([buffer], 30, n_envs=2)  # 60 of 100
    th.manual_seed(0)
    rewards = buffer.sample(60_000).rewards.flatten()
    stored = th.as_tensor(buffer.rewards[:30]).flatten()
    counts = (rewards[:, None] == stored[None]).sum(0)
    assert counts.sum() == 60_000 and ((counts - 1000).abs() < 150).all()


def test_pickle_and_exchange_with_sb3(tmp_path):
    ours = TensorReplayBuffer(20, OBS, ACTION, "cpu", n_steps=3, gamma=0.8)
    theirs = NStepReplayBuffer(20, OBS, ACTION, "cpu", n_steps=3, gamma=0.8)
    fill([ours, theirs], 26)
    rows = np.arange(20)
    for copy in (pickle.loads(pickle.dumps(ours)), TensorReplayBuffer.from_sb3(theirs)):
        assert_same_samples(copy._get_samples(rows), theirs._get_samples(rows))
        fill([copy], 5, seed=1)
        assert copy._rows["rewards"].data_ptr() == copy.rewards.ctypes.data  # still one memory
    with pytest.raises(ValueError, match="samples in its own way"):
        TensorReplayBuffer.from_sb3(ours)


def test_models_exchange_buffers_with_sb3(tmp_path):
    sac = SAC("MlpPolicy", reach_env(), device="cpu", learning_starts=5, buffer_size=50).learn(30)
    sac.save_replay_buffer(tmp_path / "sac")
    model = REDQ("MlpPolicy", reach_env(), device="cpu", utd_ratio=1, n_critics=2, learning_starts=0, n_steps=2)
    model.load_replay_buffer(tmp_path / "sac")
    assert type(model.replay_buffer) is TensorReplayBuffer and model.replay_buffer.n_steps == 2
    model.learn(10, reset_num_timesteps=False)
    assert model.replay_buffer.size() == 40
    model.save_replay_buffer(tmp_path / "redq")
    sac.load_replay_buffer(tmp_path / "redq")
    sac.learn(10, reset_num_timesteps=False)
    assert sac.replay_buffer.size() == 50


def test_setting_the_device_moves_the_columns():
    """SB3 sets it after loading. The meta device stands in for a GPU."""
    buffer = TensorReplayBuffer(20, DICT_OBS, ACTION, "cpu")
    fill([buffer], 5)
    buffer.device = th.device("cpu")
    assert isinstance(buffer.rewards, np.ndarray)
    buffer.device = th.device("meta")
    assert {buffer.rewards.device.type, buffer.observations["b"].device.type} == {"meta"}
    assert buffer._rows["rewards"].device.type == buffer._rows["observations"]["a"].device.type == "meta"


@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_sb3s_algorithms_take_it(algorithm):
    env = reach_env() if algorithm is SAC else DiscreteEnv()
    model = algorithm("MlpPolicy", env, replay_buffer_class=TensorReplayBuffer, device="cpu", learning_starts=5)
    model.learn(30)
    assert model.replay_buffer.size() == model.num_timesteps >= 30


def test_ten_million_rows_take_memory_only_as_they_fill():
    if not Path("/proc/self/statm").exists():
        pytest.skip("reads the memory in use from Linux's /proc")

    def pages_in_use():
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = pages_in_use()
    buffer = TensorReplayBuffer(10_000_000, OBS, ACTION, "cpu")
    fill([buffer], 10)
    assert (pages_in_use() - before) * os.sysconf("SC_PAGE_SIZE") < 50e6


def test_bad_arguments():
    with pytest.raises(ValueError, match="optimize_memory_usage"):
        TensorReplayBuffer(10, OBS, ACTION, "cpu", optimize_memory_usage=True)
    with pytest.raises(ValueError, match="n_steps=0"):
        TensorReplayBuffer(10, OBS, ACTION, "cpu", n_steps=0)
    with pytest.raises(ValueError, match="buffer is empty"):
        TensorReplayBuffer(10, OBS, ACTION, "cpu").sample(4)


# --- Acting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["MlpPolicy", "TruncatedNormalMlpPolicy", "MultiInputPolicy"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_acting_equals_predict(policy, n_envs):
    env_kwargs = {"dict_obs": policy == "MultiInputPolicy"}
    env = make_vec_env(reach_env, n_envs=n_envs, env_kwargs=env_kwargs)
    kwargs = {"policy_kwargs": {"dropout": 0.5}}  # which acts in training mode only
    model = REDQ(policy, env, device="cpu", seed=0, learning_starts=0, n_critics=2, utd_ratio=1, **kwargs)
    model.learn(2 * n_envs)
    model.policy.set_training_mode(False)
    th.manual_seed(0)
    action, stored = model._sample_action(0, None, n_envs)
    th.manual_seed(0)
    expected, _ = model.predict(model._last_obs, deterministic=False)
    assert (action == expected).all() and action.dtype == expected.dtype
    np.testing.assert_allclose(stored, model.policy.scale_action(expected), atol=1e-6)
    assert not any(module.training for module in model.actor.modules())


# --- A dataset as a buffer -------------------------------------------------------------------------------------------

# Steps and end of each episode
PLAN = [(3, "terminal"), (2, "timeout"), (4, "none"), (2, "both"), (1, "terminal")]


@pytest.mark.parametrize("kind", ["box", "dict", "discrete"])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_dataset_buffer_samples_what_a_filled_buffer_of_sb3_does(kind, n_steps):
    dataset = counted_dataset(PLAN)
    if kind == "dict":
        dataset = replace(dataset, frames={"a": dataset.frames, "b": dataset.frames[:, :1] + 1})
    observation_space = spaces.Dict({"a": BOX, "b": BOX_1}) if kind == "dict" else BOX
    action_space = spaces.Discrete(3) if kind == "discrete" else ACTIONS
    if kind == "discrete":
        dataset = replace(dataset, actions=np.arange(len(dataset)) % 3)
    buffer = DatasetBuffer(dataset, observation_space, action_space, "cpu", n_steps=n_steps, gamma=0.5)
    expected = TensorReplayBuffer(12, observation_space, action_space, "cpu", n_steps=n_steps, gamma=0.5)
    fill_buffer(dataset, expected)
    rows = th.arange(12)
    assert_same_samples(buffer._gather(rows, None), expected._gather(rows, None))
    assert buffer.size() == 12 and buffer.sample(100).rewards.shape == (100, 1)
    if kind != "dict":
        filled = NStepReplayBuffer(12, observation_space, action_space, "cpu", n_steps=n_steps, gamma=0.5)
        fill_buffer(dataset, filled)
        ours, theirs = buffer._gather(rows, None), filled._get_samples(rows.numpy())
        assert_same_samples(ours._replace(discounts=None), theirs._replace(discounts=None))


def test_dataset_buffer_stops_bootstrapping_at_terminations_only():
    batch = DatasetBuffer(counted_dataset(PLAN), BOX, ACTIONS, "cpu")._gather(th.arange(12), None)
    assert batch.dones[:, 0].nonzero().flatten().tolist() == [2, 10, 11]


def test_dataset_buffer_shares_its_arrays_and_is_read_only():
    unit = spaces.Box(-1, 1, (2,), np.float32)
    dataset = counted_dataset(PLAN)
    buffer = DatasetBuffer(dataset, BOX, unit, "cpu")
    assert np.shares_memory(buffer.frames.numpy(), dataset.frames)
    assert np.shares_memory(buffer._rows["actions"].numpy(), dataset.actions)
    dataset.frames.flags.writeable = False
    assert not np.shares_memory(DatasetBuffer(dataset, BOX, unit, "cpu").frames.numpy(), dataset.frames)
    with pytest.raises(TypeError, match="A DatasetBuffer is read-only"):
        buffer.add()


def test_dataset_buffer_of_single_numbers():
    """Discrete observations and actions are rows of one entry, as in SB3."""
    arrays = {
        "observations": np.arange(4),
        "next_observations": np.arange(1, 5),
        "actions": np.array([0, 1, 2, 0]),
        "rewards": np.zeros(4),
        "terminations": np.zeros(4),
    }
    batch = DatasetBuffer(Dataset.from_arrays(arrays), spaces.Discrete(5), spaces.Discrete(3), "cpu")._gather(
        th.arange(4), None
    )
    assert batch.observations.tolist() == [[0], [1], [2], [3]] and batch.next_observations.tolist() == [
        [1],
        [2],
        [3],
        [4],
    ]
    assert batch.actions.tolist() == [[0], [1], [2], [0]]
