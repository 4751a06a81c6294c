"""Environments whose episodes can be told apart, and hand-written data of them."""

from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer

from sb3_ext.datasets import Dataset, rollout_episodes

SHARED = Path(__file__).parents[2] / "shared/data"
COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
LOW, HIGH = np.array([-1, 2], np.float32), np.array([3, 10], np.float32)
MIDDLE = (LOW + HIGH) / 2
BOX = spaces.Box(-100, 100, (2,), np.float32)
ACTIONS = spaces.Box(LOW, HIGH, dtype=np.float32)


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
    gym.register(f"{name}-v0", entry_point=f"line_envs:{name}")

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


def assert_equal(actual, expected, columns=COLUMNS):
    """Equal to the last bit, the sign of zero too."""
    for name in columns:
        a, b = getattr(actual, name), getattr(expected, name)
        a, b = (a, b) if isinstance(a, dict) else ({name: a}, {name: b})
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype, key
            assert a[key].shape == b[key].shape and a[key].tobytes() == b[key].tobytes(), name


def expert_of(env):
    return lambda _obs: env.unwrapped.scripted_action()


def rollout(env_id=SCRIPTED, n_episodes=4, env_kwargs=None, **kwargs):
    env = gym.make(env_id, **(env_kwargs or {}))
    return rollout_episodes(env, expert_of(env), n_episodes, **kwargs)


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


def shared_file(name):
    path = SHARED / f"{name}.hdf5"
    if not path.exists():
        pytest.skip("no shared data in this checkout")
    return path


def assert_consistent(dataset):
    """What holds for every dataset, whatever it was made of."""
    ends = dataset.ends
    assert ends[-1] and (ends | ~dataset.terminations & ~dataset.truncations).all()
    np.testing.assert_array_equal(dataset.next_rows[:-1][~ends[:-1]], dataset.rows[1:][~ends[:-1]])
    np.testing.assert_array_equal(dataset.starts, [0, *(np.flatnonzero(ends)[:-1] + 1)])
    assert dataset.n_episodes == len(dataset.lengths) == ends.sum() and dataset.lengths.sum() == len(dataset)
    by_hand = [rewards.astype(float).sum() for rewards in np.split(dataset.rewards, dataset.starts[1:])]
    np.testing.assert_allclose(dataset.returns, by_hand, rtol=1e-12)


# Each episode: how many steps, how it ends
EPISODES = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from(["terminal", "timeout", "both", "none"])), min_size=1, max_size=8
)


def counted(plan):
    """Columns of episodes with T + 1 observations that count up, 100 apart: 105 is the sixth of the second."""
    episodes = []
    for i, (length, end) in enumerate(plan):
        last = np.arange(length) == length - 1
        count = 100 * i + np.arange(length + 1, dtype=np.float32)
        episodes.append(
            SimpleNamespace(
                observations=np.stack([count, -count], axis=1),
                actions=np.stack([count[:-1] / 1000, np.zeros(length)], axis=1).astype(np.float32),
                rewards=count[:-1],
                terminations=last & (end in ("terminal", "both")),
                truncations=last & (end in ("timeout", "both")),
                infos={},
            )
        )
    return episodes


def counted_dataset(plan, **metadata):
    return Dataset.from_episodes(counted(plan)).with_metadata(**metadata)
