"""Recorded data in the replay buffers of SB3's algorithms: stored as the model itself would have stored them."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from line_envs import COLUMNS as DATASET_COLUMNS
from line_envs import counted_dataset, make_arrays
from sb3_contrib import TQC
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_envs import DiscreteEnv, ReachEnv

from sb3_ext import REDQ, CalQL
from sb3_ext.common.buffers import TensorReplayBuffer
from sb3_ext.datasets import Dataset, DatasetError, fill, load, make_training_env, rollout_episodes
from sb3_ext.datasets.transforms import MovingSteps, RewardShift, StandardizeObservations, TopEpisodes

COLUMNS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
CONTINUOUS = [SAC, TD3, DDPG, TQC, REDQ]


class Recorder(gym.Wrapper):
    """Keeps each step that is played, as a dataset holds it."""

    def __init__(self, env):
        super().__init__(env)
        self.steps = []

    def reset(self, **kwargs):
        self.obs, info = self.env.reset(**kwargs)
        return self.obs, info

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps.append((self.obs, np.copy(action), reward, obs, terminated, truncated, info))
        self.obs = obs
        return obs, reward, terminated, truncated, info


def stacked(values):
    if isinstance(values[0], dict):
        return {key: np.stack([value[key] for value in values]) for key in values[0]}
    return np.stack(values)


def recorded(steps):
    *columns, infos = zip(*steps, strict=True)
    arrays = {name: stacked(column) for name, column in zip(DATASET_COLUMNS, columns, strict=True)}
    success = np.array([info["is_success"] for info in infos])
    return Dataset.from_arrays(arrays, infos={"is_success": success}, warn=False)


def make_model(cls, env, **kwargs):
    small = {"net_arch": [8]}
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    kwargs = {"policy": policy, "buffer_size": 100, "policy_kwargs": small, "device": "cpu", "seed": 0, **kwargs}
    return cls(kwargs.pop("policy"), env, **kwargs)


def short_env(**kwargs):
    """Some episodes succeed, some run out of time."""
    return gym.wrappers.TimeLimit(ReachEnv(**kwargs), 4)


def check_equal_to_collected(cls, make_env=short_env, n_envs=1, wrap=lambda env: env, n_rows=30, **kwargs):
    """
    One model collects, another is filled with a recording of that; the buffers have to be the same.

    :return: the collecting and the filled model
    """
    recorders = [Recorder(make_env()) for _ in range(n_envs)]
    env = wrap(DummyVecEnv([lambda recorder=recorder: recorder for recorder in recorders]))
    n_steps = n_rows * n_envs
    collecting = make_model(cls, env, learning_starts=n_steps, **kwargs)
    collecting.action_space.seed(1)
    collecting.learn(n_steps)
    filled = make_model(cls, wrap(DummyVecEnv([make_env] * n_envs)), **kwargs)
    fill(filled, recorded([step for recorder in recorders for step in recorder.steps]), allow_constant_rewards=True)
    expected, buffer = collecting.replay_buffer, filled.replay_buffer
    assert type(buffer) is type(expected)
    assert (buffer.pos, buffer.full) == (expected.pos, expected.full)
    if isinstance(expected, HerReplayBuffer):
        expected.truncate_last_trajectory()
    elif not buffer.optimize_memory_usage:
        # The recording stops there, which the collecting model does not
        expected.timeouts[n_rows - 1] += 1 - expected.dones[n_rows - 1]
    expected.dones[n_rows - 1] = 1
    names = [name for name in COLUMNS if not (buffer.optimize_memory_usage and name == "next_observations")]
    for name in names:
        a, b = getattr(buffer, name), getattr(expected, name)
        for x, y in [(a[key], b[key]) for key in a] if isinstance(a, dict) else [(a, b)]:
            assert x.dtype == y.dtype
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6, err_msg=name)
    assert 0 < buffer.timeouts.sum() <= buffer.dones.sum() or not buffer.handle_timeout_termination
    return collecting, filled


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("cls", CONTINUOUS)
def test_equals_what_the_model_collects(cls, n_envs):
    check_equal_to_collected(cls, n_envs=n_envs)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_dqn_equals_what_the_model_collects(n_envs):
    check_equal_to_collected(DQN, lambda: gym.wrappers.TimeLimit(DiscreteEnv(), 4), n_envs, train_freq=1)


@pytest.mark.parametrize("cls", CONTINUOUS)
def test_dict_observations_equal_what_the_model_collects(cls):
    _, filled = check_equal_to_collected(cls, lambda: short_env(dict_obs=True), n_envs=2)
    assert isinstance(filled.replay_buffer, DictReplayBuffer if cls is not REDQ else TensorReplayBuffer)


@pytest.mark.parametrize("dict_obs", [False, True])
@pytest.mark.parametrize("cls", [SAC, REDQ])
def test_images_get_their_channels_first(cls, dict_obs):
    kwargs = {} if dict_obs else {"policy": "CnnPolicy"}
    _, filled = check_equal_to_collected(cls, lambda: short_env(dict_obs=dict_obs, image=True), **kwargs)
    observations = filled.replay_buffer.observations
    assert (observations["state"] if dict_obs else observations).shape == (100, 1, 1, 36, 36)


def test_images_of_another_models_buffer_have_them_first_already():
    first, second = (make_model(SAC, short_env(image=True), policy="CnnPolicy", learning_starts=9) for _ in range(2))
    first.learn(9)
    fill(second, first.replay_buffer, allow_constant_rewards=True)
    np.testing.assert_array_equal(second.replay_buffer.observations[:9], first.replay_buffer.observations[:9])


@pytest.mark.parametrize("cls", [SAC, REDQ])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_n_step_buffers_equal_what_the_model_collects(cls, n_envs):
    collecting, filled = check_equal_to_collected(cls, n_envs=n_envs, n_steps=3, gamma=0.5)
    buffer = filled.replay_buffer
    assert isinstance(buffer, NStepReplayBuffer if cls is SAC else TensorReplayBuffer) and buffer.n_steps == 3
    for model in (collecting, filled):
        np.random.seed(0)
        th.manual_seed(0)
        model.batch = model.replay_buffer.sample(200)
    np.testing.assert_allclose(filled.batch.rewards, collecting.batch.rewards, rtol=1e-6)
    np.testing.assert_allclose(filled.batch.discounts, collecting.batch.discounts, rtol=1e-6)


def test_n_step_returns_cross_no_episode():
    plan = [(3, "terminal"), (2, "timeout"), (4, "none"), (4, "terminal"), (1, "none")]
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(LineEnvOfCounts(), 9)] * 2)
    model = make_model(SAC, env, n_steps=3, gamma=1.0)
    fill(model, counted_dataset(plan))
    buffer = model.replay_buffer
    assert buffer.pos == 7
    # Nothing leads from where the parts stop into what the model collects next
    assert buffer.dones[6].tolist() == buffer.timeouts[6].tolist() == [1, 1]
    np.random.seed(0)
    batch = buffer.sample(300)
    start, next_start = batch.observations[:, 0].numpy(), batch.next_observations[:, 0].numpy()
    # Observations count up, 100 apart between episodes; the first environment's part ends with 202
    assert set(start) == {0, 1, 2, 100, 101, 200, 201, 202, 203, 300, 301, 302, 303, 400}
    expected_ends = {0: 3, 1: 3, 2: 3, 100: 102, 101: 102, 200: 202, 201: 202, 202: 204, 203: 204}
    expected_ends |= {300: 303, 301: 304, 302: 304, 303: 304, 400: 401}
    assert dict(zip(start, next_start, strict=True)) == expected_ends
    rewards = {x: sum(range(int(x), int(end))) for x, end in expected_ends.items()}
    np.testing.assert_array_equal(batch.rewards[:, 0], [rewards[x] for x in start])
    np.testing.assert_array_equal(batch.dones[:, 0], np.isin(next_start, (3, 304)))


class LineEnvOfCounts(gym.Env):
    observation_space = spaces.Box(-1000, 1000, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize("cls", [SAC, REDQ])
def test_normalized_environments_store_raw_values(cls):
    collecting, filled = check_equal_to_collected(cls, wrap=VecNormalize)
    assert collecting.replay_buffer.observations.max() > 0
    assert filled.get_vec_normalize_env().obs_rms.count > 30


@pytest.mark.parametrize("n_envs", [1, 2])
def test_normalization_takes_up_the_statistics_of_the_data(n_envs):
    recorders = [Recorder(short_env()) for _ in range(n_envs)]
    played = VecNormalize(DummyVecEnv([lambda recorder=recorder: recorder for recorder in recorders]), gamma=0.9)
    played.reset()
    for _ in range(40):
        played.step(np.stack([played.action_space.sample() for _ in range(n_envs)]))
    dataset = recorded([step for recorder in recorders for step in recorder.steps])
    model = make_model(SAC, VecNormalize(DummyVecEnv([short_env] * n_envs), gamma=0.9))
    fill(model, dataset)
    normalize = model.get_vec_normalize_env()
    assert normalize.ret_rms.count == pytest.approx(40 * n_envs, abs=1e-3)
    np.testing.assert_allclose(normalize.ret_rms.var, played.ret_rms.var, rtol=1e-4)
    np.testing.assert_allclose(normalize.obs_rms.mean, dataset.frames.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(normalize.obs_rms.var, dataset.frames.var(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dict_obs", [False, True])
def test_normalization_that_is_trained_frozen_or_not_wanted_stays(dict_obs):
    dataset = recorded(play(short_env(dict_obs=dict_obs), 20))

    def counts(old_count=0.0, init_normalization=True, **kwargs):
        env = VecNormalize(DummyVecEnv([lambda: short_env(dict_obs=dict_obs)]), **kwargs)
        rms = env.obs_rms["state"] if dict_obs else env.obs_rms
        rms.count = env.ret_rms.count = old_count
        fill(make_model(SAC, env), dataset, init_normalization=init_normalization, allow_constant_rewards=True)
        return rms.count, env.ret_rms.count

    n_frames = 20 + dataset.n_episodes
    assert counts() == (n_frames, 20)
    assert counts(100) == (100, 100)
    assert counts(training=False) == counts(init_normalization=False) == (0, 0)
    assert counts(norm_reward=False) == (n_frames, 0)


def play(env, n_steps, seed=0):
    """Steps of random actions."""
    env = Recorder(env)
    env.action_space.seed(seed)
    env.reset(seed=seed)
    for _ in range(n_steps):
        if any(env.step(env.action_space.sample())[2:4]):
            env.reset()
    return env.steps


def bit_env():
    return BitFlippingEnv(n_bits=3, continuous=True, max_steps=3)


@pytest.mark.parametrize("copy_info_dict", [False, True])
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("cls", [SAC, REDQ])
@pytest.mark.filterwarnings("ignore:The last trajectory in the replay buffer:UserWarning")
def test_hindsight_buffers_know_the_episodes(cls, n_envs, copy_info_dict):
    kwargs = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"copy_info_dict": copy_info_dict}}
    collecting, filled = check_equal_to_collected(cls, bit_env, n_envs, **kwargs)
    expected, buffer = collecting.replay_buffer, filled.replay_buffer
    np.testing.assert_array_equal(buffer.ep_start, expected.ep_start)
    np.testing.assert_array_equal(buffer.ep_length, expected.ep_length)
    assert (buffer.ep_length[:30] > 0).all()
    if copy_info_dict:
        for ours, theirs in zip(buffer.infos[:30].flat, expected.infos[:30].flat, strict=True):
            assert ours["is_success"] == theirs["is_success"]
    filled.learning_starts = 0
    filled.learn(6)


def test_hindsight_with_infos_needs_infos():
    kwargs = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"copy_info_dict": True}}
    model = make_model(SAC, bit_env(), **kwargs)
    dataset = recorded(play(bit_env(), 9))
    with pytest.raises(DatasetError, match=r"holds no infos, .* compute_reward: fill\(\.\.\., infos=True\)"):
        fill(model, Dataset.from_arrays(arrays_of(dataset), warn=False))
    assert model.replay_buffer.size() == 0


def arrays_of(dataset):
    return {name: getattr(dataset, name) for name in DATASET_COLUMNS}


@pytest.mark.parametrize("n_envs", [1, 2])
def test_memory_optimized_buffers_equal_what_the_model_collects(n_envs):
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    _, filled = check_equal_to_collected(SAC, n_envs=n_envs, **kwargs)
    assert filled.replay_buffer.timeouts.sum() == 0


def test_time_limits_stay_terminal_where_the_user_wants_it():
    kwargs = {"replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = make_model(SAC, LineEnvOfCounts(), **kwargs)
    fill(model, counted_dataset([(2, "timeout"), (2, "none"), (2, "terminal"), (2, "both")]))
    buffer = model.replay_buffer
    assert buffer.dones[:8, 0].tolist() == [0, 1] * 4
    assert buffer.timeouts[:8, 0].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]  # that it just stops says nothing


@pytest.mark.parametrize("cls", CONTINUOUS)
def test_critics_bootstrap_through_time_limits_only(cls):
    model = make_model(cls, LineEnvOfCounts())
    fill(model, counted_dataset([(2, "timeout"), (2, "none"), (2, "terminal"), (2, "both")]))
    buffer = model.replay_buffer
    assert (buffer.dones * (1 - buffer.timeouts))[:8, 0].tolist() == [0, 0, 0, 0, 0, 1, 0, 1]
    np.testing.assert_array_equal(buffer.observations[:8, 0, 0], [0, 1, 100, 101, 200, 201, 300, 301])
    np.testing.assert_array_equal(buffer.next_observations[:8, 0, 0], [1, 2, 101, 102, 201, 202, 301, 302])
    np.testing.assert_array_equal(buffer.rewards[:8, 0], [0, 1, 100, 101, 200, 201, 300, 301])


@pytest.mark.parametrize("cls", CONTINUOUS)
def test_box_actions_are_scaled(cls):
    class Asymmetric(LineEnvOfCounts):
        action_space = spaces.Box(np.array([-1, 2], np.float32), np.array([3, 10], np.float32))

    actions = np.float32([[-1, 2], [3, 10], [1, 6], [0, 4], [2, 8], [3, 2]])
    model = make_model(cls, Asymmetric())
    fill(model, make_arrays(actions=actions))
    scaled = [[-1, -1], [1, 1], [0, 0], [-0.5, -0.5], [0.5, 0.5], [1, -1]]
    np.testing.assert_allclose(model.replay_buffer.actions[:6, 0], scaled, atol=1e-6)
    np.testing.assert_allclose(model.policy.unscale_action(model.replay_buffer.actions[:6, 0]), actions, atol=1e-6)


def test_discrete_actions_stay():
    class Discrete(LineEnvOfCounts):
        action_space = spaces.Discrete(3)

    model = make_model(DQN, Discrete())
    fill(model, make_arrays(actions=np.array([0, 2, 1, 1, 0, 2])))
    assert model.replay_buffer.actions.dtype == np.int64
    assert model.replay_buffer.actions[:6, 0, 0].tolist() == [0, 2, 1, 1, 0, 2]


# --- Buffers that hold something -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("cls", [SAC, REDQ])
def test_data_come_behind_what_is_there(cls, n_steps):
    model = make_model(cls, short_env(), learning_starts=100, n_steps=n_steps, gamma=1.0).learn(6)
    buffer = model.replay_buffer
    assert not buffer.dones[5]
    before = {name: getattr(buffer, name)[:6].copy() for name in COLUMNS}
    dataset = recorded(play(short_env(), 10))
    fill(model, dataset, allow_constant_rewards=True)
    fill(model, dataset, allow_constant_rewards=True)
    assert (buffer.pos, buffer.full) == (26, False)
    before["dones"][5] = before["timeouts"][5] = 1  # nothing leads from there into the data, but it is not terminal
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(buffer, name)[:6], before[name])
        np.testing.assert_array_equal(getattr(buffer, name)[6:16], getattr(buffer, name)[16:26])
    np.testing.assert_array_equal(buffer.observations[6:16, 0], dataset.observations)
    ends = np.where(buffer.dones[:26, 0])[0]
    assert {5, 15, 25} <= set(ends)
    model.learn(8, reset_num_timesteps=False)
    assert buffer.pos == 34
    np.testing.assert_array_equal(buffer.observations[6:16, 0], dataset.observations)


def test_hindsight_data_come_behind_what_is_there():
    model = make_model(SAC, bit_env(), replay_buffer_class=HerReplayBuffer, learning_starts=100).learn(5)
    buffer = model.replay_buffer
    dataset = recorded(play(bit_env(), 7))
    fill(model, dataset)
    assert buffer.ep_length[buffer.ep_start[4, 0], 0] == 5 - buffer.ep_start[4, 0]
    assert buffer.ep_start[5, 0] == 5 and buffer.pos == 12
    assert buffer.ep_length[5:12, 0].tolist() == np.repeat(dataset.lengths, dataset.lengths).tolist()


def test_memory_optimized_data_come_behind_what_is_there():
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = make_model(SAC, short_env(), learning_starts=100, **kwargs).learn(6)
    fill(model, recorded(play(short_env(), 10)), allow_constant_rewards=True)
    buffer = model.replay_buffer
    assert buffer.pos == 16 and buffer.dones[5] == 1 and buffer.timeouts.sum() == 0


@pytest.mark.parametrize("n_envs", [1, 2])
def test_full_is_full(n_envs):
    dataset = recorded(play(short_env(), 24))
    model = make_model(SAC, DummyVecEnv([short_env] * n_envs), buffer_size=24, learning_starts=100)
    fill(model, dataset, allow_constant_rewards=True)
    assert (model.replay_buffer.pos, model.replay_buffer.full) == (0, True)
    with pytest.raises(DatasetError, match=r"has 24 transitions, the replay buffer holds 24 .* buffer_size=48 or more"):
        fill(model, dataset, allow_constant_rewards=True)
    newest = model.replay_buffer.observations[1:].copy()
    model.learn(n_envs)
    assert model.replay_buffer.pos == 1
    np.testing.assert_array_equal(model.replay_buffer.observations[1:], newest)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    ],
)
def test_too_small_a_buffer_stays_as_it_is(kwargs):
    model = make_model(SAC, short_env(), buffer_size=20, learning_starts=100, **kwargs).learn(11)
    buffer = model.replay_buffer
    before = {name: getattr(buffer, name).copy() for name in ("observations", "actions", "dones", "timeouts")}
    dataset = recorded(play(short_env(), 10))
    message = "has 10 transitions, the replay buffer holds 11 and has room for 20 in all: .* buffer_size=21 or more"
    with pytest.raises(DatasetError, match=message):
        fill(model, dataset, allow_constant_rewards=True)
    assert buffer.pos == 11
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(buffer, name), values)
    fill(model, dataset, transforms=[TopEpisodes(percent=40)], allow_constant_rewards=True)
    assert 11 < buffer.pos < 20


def test_rows_that_fill_no_row_of_all_environments_are_left_out():
    model = make_model(SAC, DummyVecEnv([short_env] * 4))
    fill(model, recorded(play(short_env(), 11)), allow_constant_rewards=True)
    assert model.replay_buffer.pos == 2
    with pytest.raises(DatasetError, match="3 transitions cannot be dealt out to 4 environments"):
        fill(model, recorded(play(short_env(), 3)), allow_constant_rewards=True)


class CountingBuffer(ReplayBuffer):
    """A user's own, which has to see every row."""

    n_seen = 0

    def add(self, *args):
        self.n_seen += 1
        super().add(*args)


def test_buffers_of_a_users_own_see_every_row():
    _, filled = check_equal_to_collected(SAC, replay_buffer_class=CountingBuffer)
    assert filled.replay_buffer.n_seen == 30


@pytest.mark.parametrize("n_envs", [1, 2])
def test_columns_may_be_tensors_as_on_a_gpu(n_envs):
    dataset = recorded(play(short_env(), 20))
    models = [make_model(REDQ, DummyVecEnv([short_env] * n_envs), learning_starts=100).learn(6) for _ in range(2)]
    on_gpu = models[1].replay_buffer
    for name in COLUMNS:
        setattr(on_gpu, name, th.from_numpy(getattr(on_gpu, name).copy()))
    for model in models:
        fill(model, dataset, allow_constant_rewards=True)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(on_gpu, name).numpy(), getattr(models[0].replay_buffer, name))


# --- What does not fit -----------------------------------------------------------------------------------------------


def test_algorithms_without_a_replay_buffer_are_refused():
    model = PPO("MlpPolicy", short_env(), device="cpu")
    with pytest.raises(TypeError, match=r"PPO has no replay buffer: only off-policy algorithms \(SAC"):
        fill(model, make_arrays())
    model = CalQL("MlpPolicy", short_env(), dataset=recorded(play(short_env(), 40)), device="cpu")
    with pytest.raises(DatasetError, match=r"CalQL has no replay buffer that takes .* pass the data as dataset="):
        fill(model, make_arrays())


@pytest.mark.parametrize("cls", [SAC, REDQ])
def test_model_without_environment_is_refused(cls, tmp_path):
    make_model(cls, short_env()).save(tmp_path / "model")
    message = rf"This {cls.__name__} has no environment .*: {cls.__name__}\.load\(path, env=env\)"
    with pytest.raises(DatasetError, match=message):
        fill(cls.load(tmp_path / "model", device="cpu"), make_arrays())
    loaded = cls.load(tmp_path / "model", env=short_env(), device="cpu")
    fill(loaded, recorded(play(short_env(), 10)), allow_constant_rewards=True)
    assert loaded.replay_buffer.pos == 10


def test_environment_that_came_after_loading_makes_no_buffer(tmp_path):
    make_model(REDQ, short_env()).save(tmp_path / "model")
    model = REDQ.load(tmp_path / "model", device="cpu")
    model.set_env(short_env())
    with pytest.raises(DatasetError, match=r"This REDQ has no replay buffer .* REDQ\.load\(path, env=env\)"):
        fill(model, make_arrays())


def test_data_of_other_spaces_are_refused():
    model = make_model(SAC, short_env())
    with pytest.raises(DatasetError, match=r"observations have the shape \(2,\), the environment's \(3,\)"):
        fill(model, make_arrays())
    model = make_model(SAC, LineEnvOfCounts())
    with pytest.raises(DatasetError, match=r"actions span .* raw actions are expected"):
        fill(model, make_arrays())
    model = make_model(SAC, short_env(image=True), policy="CnnPolicy")
    with pytest.raises(DatasetError, match=r"observations have the shape \(3,\), the environment's \(36, 36, 1\)"):
        fill(model, recorded(play(short_env(), 10)), allow_constant_rewards=True)
    assert model.replay_buffer.pos == 0


def test_data_of_another_environment_are_refused():
    model = make_model(SAC, gym.make("Pendulum-v1"))
    observations = np.zeros((6, 3), np.float32)
    arrays = make_arrays(
        observations=observations, next_observations=observations, actions=np.zeros((6, 1)), terminations=np.ones(6)
    )
    dataset = load(arrays).with_metadata(env_id="Hopper-v5")
    with pytest.raises(DatasetError, match=r"recorded in Hopper-v5, .* environment is Pendulum-v1\. .*env_id=None"):
        fill(model, dataset)
    fill(model, dataset.with_metadata(env_id=None))
    fill(model, dataset.with_metadata(env_id="Pendulum-v1"))
    assert model.replay_buffer.pos == 12


@pytest.mark.parametrize("transform", [RewardShift(-1), StandardizeObservations()])
def test_the_environment_must_go_through_the_same_transforms(transform):
    dataset = recorded(play(short_env(), 40))
    with pytest.raises(DatasetError, match=rf"went through \['{transform.name}'\], the environment did not"):
        fill(make_model(SAC, short_env()), dataset, transforms=[transform])
    env = transform(dataset).metadata.transforms[0].wrap_env(short_env(), training=True)
    env.unwrapped.dataset_transforms = [transform.name]
    model = make_model(SAC, env)
    fill(model, dataset, transforms=[transform])
    np.testing.assert_array_equal(model.replay_buffer.rewards[:40, 0], transform(dataset).rewards)


def test_an_environment_whose_episodes_go_on_for_longer_is_warned_of():
    env = gym.make("PointMazeFlat/UMaze-v3")
    dataset = load("demo/pointmaze-umaze", transforms=[MovingSteps(distance=0.01, horizon=5, truncates=True)])
    with pytest.warns(UserWarning, match="go on where a robot stands") as record:
        fill(make_model(SAC, env, buffer_size=100_000), dataset)
    assert record[0].filename == __file__
    model = make_model(SAC, make_training_env(dataset), buffer_size=100_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fill(model, dataset)


def test_data_that_values_cannot_be_learnt_from_are_refused():
    with pytest.raises(DatasetError, match="all 6 rewards are 0"):
        fill(make_model(SAC, LineEnvOfCounts()), make_arrays(rewards=np.zeros(6)))


@pytest.mark.parametrize("kind", ["path", "arrays", "dataset", "buffer"])
def test_all_that_load_takes(kind, tmp_path):
    dataset = counted_dataset([(3, "terminal"), (2, "timeout")])
    arrays = arrays_of(dataset)
    np.savez(tmp_path / "a.npz", **arrays)
    other = make_model(SAC, LineEnvOfCounts())
    fill(other, dataset)
    specs = {"path": tmp_path / "a.npz", "arrays": arrays, "dataset": dataset, "buffer": other.replay_buffer}
    model = make_model(TD3, LineEnvOfCounts())
    fill(model, specs[kind])
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(model.replay_buffer, name), getattr(other.replay_buffer, name))


# --- Training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [*CONTINUOUS, DQN])
def test_the_model_trains_on_the_data_alone(cls):
    env = gym.wrappers.TimeLimit(DiscreteEnv(), 4) if cls is DQN else short_env()
    model = make_model(cls, env)
    fill(model, recorded(play(env, 50)), allow_constant_rewards=True)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(0)
    model.train(gradient_steps=4, batch_size=16)
    assert any((a != b).any() for a, b in zip(model.policy.parameters(), before, strict=True))
    assert model.replay_buffer.pos == 50


class CorridorEnv(gym.Env):
    """Only whoever walks straight on finds the reward at the end: random actions lead back."""

    observation_space = spaces.Box(-1, 2, (1,), np.float32)
    action_space = spaces.Box(-2, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-0.1, 0.1, 1).astype(np.float32)
        return self.x, {"is_success": False}

    def step(self, action):
        self.x = np.clip(self.x + 0.2 * action, -1, 2).astype(np.float32)
        success = bool(self.x[0] >= 1)
        return self.x, 10.0 * success, success, False, {"is_success": success}


def corridor_env():
    return gym.wrappers.TimeLimit(CorridorEnv(), 12)


def test_demonstrations_in_the_buffer_show_the_way():
    rng = np.random.default_rng(0)
    demos = rollout_episodes(corridor_env(), lambda _obs: rng.uniform(0.4, 1, 1).astype(np.float32), 20)
    assert demos.returns.min() == 10

    def mean_return(with_demos):
        kwargs = {"policy_kwargs": {"net_arch": [32, 32]}, "learning_rate": 3e-3, "batch_size": 64}
        model = make_model(SAC, corridor_env(), buffer_size=1000, learning_starts=0, gamma=0.9, ent_coef=0.1, **kwargs)
        if with_demos:
            fill(model, demos)
        model.learn(300)
        return evaluate_policy(model, model.env, 10, deterministic=True)[0]

    assert mean_return(with_demos=False) == 0
    assert mean_return(with_demos=True) > 8
