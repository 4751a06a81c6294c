"""Transforms: exact values, frozen statistics, their way into files and models, and what they do to environments."""

import json
import zipfile
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from line_envs import (
    ACTIONS,
    BOX,
    EPISODES,
    HIGH,
    LOW,
    MIDDLE,
    SCRIPTED,
    ScriptedLineEnv,
    assert_consistent,
    assert_equal,
    counted_dataset,
    make_arrays,
    rollout,
)

from sb3_ext import REDQ
from sb3_ext.datasets import Dataset, DatasetError, load, make_eval_env, make_training_env
from sb3_ext.datasets import transforms as tf
from sb3_ext.datasets.transforms import TRANSFORMS, transform_from_dict

PLAN = [(3, "terminal"), (1, "timeout"), (4, "none"), (2, "both")]


def with_success(dataset, *rows):
    return replace(dataset, infos={"success": np.isin(np.arange(len(dataset)), rows)})


def values_of(dataset):
    return dataset.rewards.tolist()


def test_reward_shift_and_scale_in_order():
    dataset = counted_dataset([(3, "none")])  # rewards 0, 1, 2
    assert values_of(tf.RewardScale(10)(tf.RewardShift(-1)(dataset))) == [-10, 0, 10]
    assert values_of(load(dataset, transforms=[tf.RewardScale(10), tf.RewardShift(-1)])) == [-1, 9, 19]
    assert load(dataset, transforms=[tf.RewardScale(10)]).rewards.dtype == np.float32
    assert values_of(dataset) == [0, 1, 2]


def test_normalize_returns_is_that_of_iql():
    dataset = counted_dataset([(3, "none"), (1, "none")])  # returns 3 and 100
    normalized = tf.NormalizeReturns()(dataset)
    np.testing.assert_allclose(normalized.rewards, dataset.rewards * 1000 / 97, rtol=1e-6)
    assert normalized.metadata.transforms[0].factor == 1000 / 97
    assert np.ptp(tf.NormalizeReturns(max_range=1)(dataset).returns) == pytest.approx(1)
    with pytest.raises(DatasetError, match="every episode returns 3; returns cannot be normalised"):
        tf.NormalizeReturns()(counted_dataset([(3, "none")]))


def test_standardized_observations():
    dataset = counted_dataset(PLAN)
    standardized = tf.StandardizeObservations()(dataset)
    mean, std = dataset.observations.mean(0), dataset.observations.std(0)
    np.testing.assert_allclose(standardized.observations, (dataset.observations - mean) / (std + 1e-3), rtol=1e-5)
    np.testing.assert_allclose(
        standardized.next_observations, (dataset.next_observations - mean) / (std + 1e-3), rtol=1e-5
    )
    assert standardized.frames.dtype == np.float32


def test_standardized_dict_observations_and_unbounded_space():
    dataset = rollout("DictLineEnv-v0")
    only_numbers = replace(dataset, frames={"line": dataset.frames["line"]})
    space = spaces.Dict({"line": BOX})
    standardized = tf.StandardizeObservations()(only_numbers.with_metadata(observation_space=space))
    np.testing.assert_allclose(standardized.observations["line"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(standardized.observations["line"].std(0), 1, rtol=1e-2)
    assert np.isinf(standardized.metadata.observation_space["line"].high).all()
    with pytest.raises(DatasetError, match="no vectors of numbers"):
        tf.StandardizeObservations()(dataset)


@pytest.mark.parametrize("transform", [tf.StandardizeObservations(), tf.NormalizeReturns()])
def test_frozen_statistics_are_those_of_the_first_dataset(transform):
    first, other = counted_dataset(PLAN), counted_dataset([(5, "timeout"), (2, "none")])
    (frozen,) = transform(first).metadata.transforms
    applied = frozen(other)
    assert applied.metadata.transforms == (frozen,)
    expected = replace(other, frames=other.frames)
    if isinstance(transform, tf.NormalizeReturns):
        np.testing.assert_array_equal(applied.rewards, expected.rewards * np.float32(frozen.factor))
    else:
        mean, std = np.float32(frozen.mean), np.float32(frozen.std) + np.float32(frozen.epsilon)
        np.testing.assert_array_equal(applied.frames, (expected.frames - mean) / std)
    assert transform(other).metadata.transforms != (frozen,)


@pytest.mark.parametrize("frames", [np.zeros((7, 3), np.float32), np.arange(7)])
def test_statistics_of_other_observations_are_refused(frames):
    (frozen,) = tf.StandardizeObservations()(counted_dataset(PLAN)).metadata.transforms
    arrays = make_arrays(observations=frames[:-1], next_observations=frames[1:])
    with pytest.raises(DatasetError, match="the statistics another"):
        frozen(Dataset.from_arrays(arrays, warn=False))


def test_truncate_and_terminate_at_success():
    dataset = with_success(counted_dataset([(4, "timeout"), (2, "terminal"), (3, "none")]), 1, 2, 5)
    cut = tf.TruncateAtSuccess()(dataset)
    assert values_of(cut) == [0, 1, 100, 101, 200, 201, 202]
    assert np.flatnonzero(cut.truncations).tolist() == [1]
    assert np.flatnonzero(cut.terminations).tolist() == [3]
    assert cut.next_observations[1, 0] == 2
    ended = tf.TerminateAtSuccess()(dataset)
    assert len(ended) == 9
    assert np.flatnonzero(ended.terminations).tolist() == [1, 2, 5]
    assert np.flatnonzero(ended.truncations).tolist() == [3]
    both = load(dataset, truncate_at_success=True, terminate_at_success=True, reward_shift=-1)
    assert np.flatnonzero(both.terminations).tolist() == [1, 3] and not both.truncations.any()
    assert [transform.name for transform in both.metadata.transforms] == [
        "truncate_at_success",
        "terminate_at_success",
        "reward_shift",
    ]


@settings(deadline=None, max_examples=60)
@given(EPISODES, st.data())
def test_success_properties(plan, data):
    dataset = counted_dataset(plan)
    successes = data.draw(st.lists(st.booleans(), min_size=len(dataset), max_size=len(dataset)))
    dataset = with_success(dataset, *np.flatnonzero(successes))
    cut, ended = tf.TruncateAtSuccess()(dataset), tf.TerminateAtSuccess()(dataset)
    for result in (cut, ended):
        assert_consistent(result)
        np.testing.assert_array_equal(result.next_observations[:, 0], result.observations[:, 0] + 1)
    # As many episodes as before, each up to its first success
    assert cut.n_episodes == dataset.n_episodes
    for part, whole in zip(
        np.split(cut.successes, cut.starts[1:]), np.split(dataset.successes, dataset.starts[1:]), strict=True
    ):
        assert len(part) == (np.argmax(whole) + 1 if whole.any() else len(whole))
    assert cut.ends[cut.successes].all() and (cut.terminations | cut.truncations)[cut.successes].all()
    assert cut.terminations.sum() <= dataset.terminations.sum()  # none is made
    np.testing.assert_array_equal(ended.terminations, dataset.terminations | dataset.successes)
    assert not (ended.truncations & ended.successes).any()


@settings(deadline=None, max_examples=60)
@given(EPISODES, st.floats(0.1, 100))
def test_top_episodes_properties(plan, percent):
    dataset = counted_dataset(plan)
    top = tf.TopEpisodes(percent)(dataset)
    assert_consistent(top)
    assert top.n_episodes == max(round(percent / 100 * len(plan)), 1)
    kept = {int(start) // 100 for start in top.observations[top.starts, 0]}
    returns = dataset.returns
    assert min(returns[sorted(kept)]) >= max([-np.inf, *returns[[i for i in range(len(plan)) if i not in kept]]])
    assert sorted(top.returns) == sorted(returns[sorted(kept)])


def test_top_episodes_of_equal_returns_are_the_first():
    rewards = np.tile(np.float32([0, 0, 1, 1]), 500)
    dataset = replace(counted_dataset([(2, "none")] * 1000), rewards=rewards)
    kept = tf.TopEpisodes(25)(dataset).observations[:, 0]
    np.testing.assert_array_equal(kept[::2], 100 * np.arange(1, 500, 2))


def test_successful_episodes():
    dataset = with_success(counted_dataset([(3, "none"), (2, "terminal"), (1, "terminal"), (4, "timeout")]), 1, 5)
    kept = tf.SuccessfulEpisodes()(dataset)
    assert_consistent(kept)
    np.testing.assert_array_equal(kept.observations[:, 0], [0, 1, 2, 200])
    with pytest.raises(DatasetError, match="no successful episode: leave successful_episodes out"):
        tf.SuccessfulEpisodes()(dataset.select(~np.repeat([True, False, True, False], dataset.lengths)))


def walks(*episodes):
    """Episodes through given positions, ``(n_steps + 1, 2)``, that a time limit ends."""
    steps = [np.float32(positions) for positions in episodes]
    columns = {
        "observations": np.concatenate([positions[:-1] for positions in steps]),
        "next_observations": np.concatenate([positions[1:] for positions in steps]),
        "truncations": np.concatenate([np.arange(1, len(positions)) == len(positions) - 1 for positions in steps]),
    }
    n = len(columns["truncations"])
    columns |= {"actions": np.arange(n, dtype=np.float32)[:, None], "rewards": np.arange(n, dtype=np.float32)}
    return Dataset.from_arrays({**columns, "terminations": np.zeros(n, dtype=bool)})


def test_moving_steps():
    # Stands for two steps, then goes in either direction; goes to the very end; stands
    stop_and_go = [(0, 0), (0, 0), (0, 0), (0, -1), (0, -2), (-1, -2)]
    dataset = walks(stop_and_go, [(0, 0), (1, 0), (2, 0), (3, 0)], [(5, 5)] * 4)
    kept = tf.MovingSteps(distance=1.4, horizon=2)(dataset)
    assert_consistent(kept)
    # Step 1 leads to a way of 1. Two steps round a corner are sqrt(2) away; the last step is judged by both of them
    assert kept.actions[:, 0].tolist() == [2, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(kept.next_observations[-1], [3, 0])
    assert tf.MovingSteps(distance=1.5, horizon=2)(dataset).actions[:, 0].tolist() == [2, 5, 6, 7]
    assert tf.MovingSteps(distance=1.0, horizon=2, entries=1)(dataset).actions[:, 0].tolist() == [3, 4, 5, 6, 7]
    # Half the way is enough for an episode of half the steps
    assert len(tf.MovingSteps(distance=6.0, horizon=6)(walks([(0, 0), (1, 0), (2, 0), (3, 0)]))) == 3
    ends_well = replace(dataset, terminations=np.arange(len(dataset)) == 10, truncations=dataset.truncations.copy())
    ends_well.truncations[10] = False
    assert tf.MovingSteps(distance=1.4, horizon=2)(ends_well).actions[-2:, 0].tolist() == [9, 10]


def test_moving_steps_are_refused_where_there_are_none():
    dataset = walks([(5, 5)] * 4)
    with pytest.raises(DatasetError, match="Lower distance"):
        tf.MovingSteps()(dataset)
    with pytest.raises(DatasetError, match="have to be the position"):  # though terminal steps would be left
        tf.MovingSteps()(replace(dataset, terminations=dataset.truncations, truncations=dataset.terminations))
    with pytest.raises(DatasetError, match="start with the position"):
        tf.MovingSteps(entries=99)(dataset)
    for arguments in ({"distance": 0}, {"horizon": 0}, {"horizon": 1.5}, {"horizon": True}, {"entries": 0}):
        with pytest.raises(DatasetError, match="must be"):
            tf.MovingSteps(**arguments)
    with pytest.raises(DatasetError, match="truncates=1 must be True or False"):
        tf.MovingSteps(truncates=1)
    assert tf.MovingSteps(truncates=np.True_).to_dict()["truncates"] is True
    assert tf.MovingSteps(horizon=np.int64(3), entries=1.0) == tf.MovingSteps(horizon=3, entries=1)


@pytest.mark.parametrize("choice", [tf.TopEpisodes(50), tf.SuccessfulEpisodes()])
def test_episodes_are_chosen_before_standing_steps_are_left_out(choice):
    dataset = with_success(walks([(0, 0), (1, 0), (2, 0), (3, 0)], [(0, 0), (5, 0), (5, 0), (9, 0)]), 5)
    moving = tf.MovingSteps(distance=0.5, horizon=1)
    assert moving(choice(dataset)).actions[:, 0].tolist() == [3, 5]
    with pytest.raises(DatasetError, match=f"put {choice.name} before it"):
        choice(moving(dataset))


def test_moving_steps_online():
    """An episode is cut off once the last steps together have not gone far enough, and not for that where it ends."""

    class Walker(gym.Env):
        observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        action_space = spaces.Box(-1, 1, (2,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.position, self.seeded = np.zeros(3), seed
            return self.position, {}

        def step(self, action):
            self.position[:2] += action  # the array that was given out before
            self.position[2] += 1  # what goes on while it stands
            return self.position, 7.0, bool(action[1] == 1), False, {}

    def ends(env, *steps):
        env.reset(seed=5)
        assert env.unwrapped.seeded == 5
        results = [env.step(np.array(step, np.float32)) for step in steps]
        assert {result[1] for result in results} == {7.0}
        return [result[2:4] for result in results]

    env = Walker()
    going_on, cut_off, terminal = (False, False), (False, True), (True, False)
    assert tf.MovingSteps().wrap_env(env, training=True) is env
    assert tf.MovingSteps(truncates=True).wrap_env(env, training=False) is env
    wrapped = tf.MovingSteps(distance=1.0, horizon=2, truncates=True).wrap_env(env, training=True)
    # The way of two steps counts: 1.5, 1, 0.5
    assert ends(wrapped, (1, 0), (0.5, 0), (0.5, 0), (0, 0)) == [going_on, going_on, going_on, cut_off]
    # Nothing is left of the episode before; one step cannot stand; there and back is no way
    assert ends(wrapped, (0, 0), (1, 0), (-1, 0)) == [going_on, going_on, cut_off]
    assert ends(wrapped, (0, 0), (0, 1)) == [going_on, terminal]
    far = tf.MovingSteps(distance=2.0, horizon=2, truncates=True).wrap_env(env, training=True)
    assert ends(far, (0, 0), (0, 1)) == [going_on, terminal]
    timed = tf.MovingSteps(distance=1.0, horizon=2, truncates=True)
    timed = timed.wrap_env(gym.wrappers.TimeLimit(env, 3), training=True)
    assert ends(timed, (1, 0), (1, 0), (1, 0)) == [going_on, going_on, cut_off]
    slow = tf.MovingSteps(distance=1.0, horizon=2, entries=3, truncates=True).wrap_env(env, training=True)
    assert ends(slow, (0, 0), (0, 0), (0, 0)) == [going_on] * 3


def test_relabel_success():
    dataset = with_success(counted_dataset([(3, "none"), (1, "terminal")]), 3)
    recorded = tf.RelabelSuccess()(dataset)
    assert values_of(recorded) == [0, 0, 0, 1]
    near = tf.RelabelSuccess(goal=[2.2, -2.2], radius=0.3)(dataset)
    assert values_of(near) == [0, 1, 0, 0] and near.successes.tolist() == [False, True, False, False]
    with pytest.raises(DatasetError, match="a goal needs flat observations"):
        tf.RelabelSuccess(goal=[0, 0])(rollout("DictLineEnv-v0"))


def test_relabelling_cuts_episodes_off_that_ended_at_another_goal():
    dataset = with_success(counted_dataset([(3, "terminal"), (2, "terminal")]), 2)
    there = tuple(float(entry) for entry in dataset.next_observations[0])
    relabelled = tf.RelabelSuccess(goal=there, radius=0.1)(dataset)
    assert values_of(relabelled) == [1, 0, 0, 0, 0]
    # The first ended at what was the goal; the second failed, and still does
    assert relabelled.terminations.tolist() == [False, False, False, False, True]
    assert relabelled.truncations.tolist() == [False, False, True, False, False]


def test_relabelling_where_the_last_state_was_not_recorded():
    # Along a line, 0.4 m a step: what the last steps led to is 0.4 m further on
    x = np.array([0.0, 0.4, 0.8, 0.0, 0.4], np.float32)[:, None]
    ends = np.array([False, False, True, False, True])
    arrays = make_arrays(
        observations=x,
        next_observations=np.where(ends, x[:, 0], x[:, 0] + 0.4)[:, None].astype(np.float32),
        actions=np.zeros((5, 1), np.float32),
        rewards=ends.astype(np.float32),
        terminations=ends,
        truncations=~ends & False,
    )
    dataset = Dataset.from_arrays(arrays)
    relabelled = tf.RelabelSuccess(goal=[1.2], radius=0.1)(dataset)
    # The other episode's last step leads nowhere: it is left out
    assert values_of(relabelled) == [0, 0, 1, 0]
    assert relabelled.terminations.tolist() == [False, False, True, False]
    assert relabelled.ends.tolist() == [False, False, True, True]


def test_terminate_on_flip():
    up, down = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]
    steps = [up, up, down, down, up, up]  # falls in the second step, gets up in the fourth
    quaternions = np.array(steps, np.float32)
    observations = np.concatenate([np.zeros((6, 1), np.float32), quaternions], axis=1)
    flags = np.zeros(6, bool)
    following = np.concatenate([observations[1:], observations[-1:]])
    dataset = Dataset.from_arrays(
        make_arrays(
            observations=observations,
            next_observations=following,
            actions=np.zeros((6, 1), np.float32),
            rewards=np.arange(6, dtype=np.float32),
            terminations=flags,
            truncations=flags,
        ),
        warn=False,
    )
    upright = tf.TerminateOnFlip(quaternion=1)(dataset)
    assert values_of(upright) == [0, 1, 4, 5]
    assert upright.terminations.tolist() == [False, True, False, False]
    assert upright.starts.tolist() == [0, 2]


def test_terminate_on_flip_needs_a_quaternion():
    for dataset in (rollout("DictLineEnv-v0"), counted_dataset(PLAN)):
        with pytest.raises(DatasetError, match="needs flat observations with a quaternion in the entries 30 to 33"):
            tf.TerminateOnFlip(quaternion=30)(dataset)
    with pytest.raises(DatasetError, match="quaternion=-1 must be a whole number of at least 0"):
        tf.TerminateOnFlip(quaternion=-1)


def test_terminate_on_flip_online():
    env = gym.make("AntMazeFlat/UMaze-v4")
    transform = tf.TerminateOnFlip()
    assert transform.wrap_env(env, training=False) is env
    wrapped = transform.wrap_env(env, training=True)
    wrapped.reset(seed=0)
    assert not wrapped.step(np.zeros(8))[2]
    robot = env.unwrapped._robot
    qpos = robot.data.qpos.copy()
    qpos[2:7] = [0.8, 0, 1, 0, 0]
    robot.set_state(qpos, robot.data.qvel * 0)
    assert wrapped.step(np.zeros(8))[2]


@pytest.mark.parametrize("transform", [tf.TruncateAtSuccess(), tf.TerminateAtSuccess(), tf.RelabelSuccess()])
def test_unknown_success_is_an_error(transform):
    with pytest.raises(DatasetError, match=r"does not tell success: .*RelabelSuccess\(goal="):
        transform(counted_dataset(PLAN))


def test_clip_actions():
    actions = np.array([LOW - 1, HIGH + 1, MIDDLE, LOW, HIGH, MIDDLE], np.float32)
    dataset = Dataset.from_arrays(make_arrays(actions=actions)).with_metadata(action_space=ACTIONS)
    np.testing.assert_array_equal(tf.ClipActions()(dataset).actions, np.clip(actions, LOW, HIGH))
    half = tf.ClipActions(0.5)(dataset).actions
    np.testing.assert_array_equal(half, np.clip(actions, [0, 4], [2, 8]))
    assert half.dtype == np.float32
    with pytest.raises(DatasetError, match="clipping needs the bounds of a Box"):
        tf.ClipActions()(dataset.with_metadata(action_space=None))


def test_flatten_goals():
    goals = np.arange(12, dtype=np.float32).reshape(6, 2)
    observations = {"achieved_goal": goals + 100, "desired_goal": goals, "observation": goals[:, :1] + 50}
    arrays = make_arrays(observations=observations, next_observations=observations)
    space = spaces.Dict(
        {key: spaces.Box(-1, i, value.shape[1:]) for i, (key, value) in enumerate(observations.items(), 1)}
    )
    dataset = Dataset.from_arrays(arrays, warn=False).with_metadata(observation_space=space)
    flat = tf.FlattenGoals()(dataset)
    np.testing.assert_array_equal(flat.observations, np.concatenate([goals[:, :1] + 50, goals], 1))
    np.testing.assert_array_equal(flat.metadata.observation_space.high, [3, 2, 2])
    other = tf.FlattenGoals(("achieved_goal", "observation"))(dataset)
    np.testing.assert_array_equal(other.observations, np.concatenate([goals + 100, goals[:, :1] + 50], 1))
    for keys, wrong in ((("nowhere",), dataset), (("observation",), counted_dataset(PLAN))):
        with pytest.raises(DatasetError, match="lack the vectors"):
            tf.FlattenGoals(keys)(wrong)


# --- As plain values -------------------------------------------------------------------------------------------------

EXAMPLES = [
    tf.RewardShift(-2.0),
    tf.RewardScale(3.0),
    tf.NormalizeReturns(10.0, 0.5),
    tf.StandardizeObservations(0.1, [1.0, 2.0], [3.0, 4.0]),
    tf.StandardizeObservations(mean={"a": [1.0]}, std={"a": [2.0]}),
    tf.TruncateAtSuccess(),
    tf.TerminateAtSuccess(),
    tf.TerminateOnFlip(1),
    tf.RelabelSuccess((1.0, 2.0), 0.3),
    tf.RelabelSuccess(np.array([1, 2])),
    tf.TopEpisodes(20.0),
    tf.SuccessfulEpisodes(),
    tf.MovingSteps(0.5, 10, 3, True),
    tf.ClipActions(0.9),
    tf.FlattenGoals(("achieved_goal", "observation")),
]


def test_every_transform_is_among_the_examples():
    assert {type(example) for example in EXAMPLES} == set(TRANSFORMS.values())


@pytest.mark.parametrize("transform", EXAMPLES, ids=lambda transform: transform.name)
def test_transforms_survive_json(transform):
    assert transform_from_dict(json.loads(json.dumps(transform.to_dict()))) == transform


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "magic"}, "Unknown transform 'magic'; known are reward_shift"),
        ({}, "Unknown transform None"),
        ("magic", "Unknown transform 'magic'"),
        ({"name": "reward_shift", "shift": float("nan")}, "shift=nan must be a finite number"),
        ({"name": "reward_scale", "scale": 0}, "scale=0 must be above 0"),
        ({"name": "normalize_returns", "max_range": -1}, "max_range=-1 must be above 0"),
        ({"name": "standardize_observations", "epsilon": 0}, "epsilon=0.0 must be above 0"),
        ({"name": "top_episodes", "percent": 0}, "percent=0.0 must be in"),
        ({"name": "top_episodes", "percent": 101}, "percent=101.0 must be in"),
        ({"name": "relabel_success", "goal": 5.0}, "goal=5.0 must be a list of numbers"),
        (tf.TopEpisodes, "A transform is an object or a mapping"),
        ({"name": "flatten_goals", "keys": 3}, "Transform 'flatten_goals'"),
        ({"name": "standardize_observations", "mean": [0.0, 0.0]}, "needs both mean and std"),
        ({"name": "reward_shift", "amount": 3}, "Transform 'reward_shift': .*'amount'"),
        ({"name": "relabel_success", "goal": ["here"]}, "Transform 'relabel_success': .*'here'"),
    ],
)
def test_unknown_names_and_arguments_are_refused(values, message):
    with pytest.raises(DatasetError, match=message):
        load(counted_dataset(PLAN), transforms=[values])


@pytest.mark.parametrize("transform", [tf.ClipActions(0), tf.ClipActions(1.1)])
def test_arguments_out_of_range_are_refused(transform):
    with pytest.raises(DatasetError, match=r"must be in \(0, 1"):
        transform(counted_dataset(PLAN, action_space=ACTIONS))


def test_load_takes_mappings_in_order():
    dataset = counted_dataset(PLAN)
    by_mapping = load(
        dataset, transforms=[{"name": "top_episodes", "percent": 50}, {"name": "reward_shift", "shift": 5}]
    )
    assert by_mapping.metadata.transforms == (tf.TopEpisodes(50), tf.RewardShift(5))
    assert_equal(by_mapping, tf.RewardShift(5)(tf.TopEpisodes(50)(dataset)))


def test_constant_rewards_are_looked_for_after_transforms():
    dataset = replace(with_success(counted_dataset(PLAN), 1), rewards=np.zeros(10, np.float32))
    with pytest.raises(DatasetError, match="all 10 rewards are 0"):
        load(dataset)
    assert load(dataset, transforms=[tf.RelabelSuccess()]).rewards.sum() == 1
    with pytest.raises(DatasetError, match="all 10 rewards are 0"):
        load(dataset, transforms=tf.RelabelSuccess(goal=(1000.0,)), reward_shift=-1)


def test_rewards_other_than_zero_say_how_long_episodes_should_be():
    survival = replace(counted_dataset(PLAN), rewards=np.ones(10, np.float32))
    assert survival.terminations.any()
    assert load(survival).rewards.tolist() == [1] * 10
    with pytest.raises(DatasetError, match="all 10 rewards are 1"):
        load(replace(survival, terminations=np.zeros(10, bool)))


def test_relabelling_comes_before_ends_and_shifts():
    dataset = counted_dataset(PLAN)
    goal = tuple(float(entry) for entry in dataset.next_observations[1])
    loaded = load(
        dataset,
        transforms=[tf.RelabelSuccess(goal=goal, radius=0.1)],
        terminate_at_success=True,
        reward_shift=-1,
    )
    assert loaded.terminations[1] and loaded.rewards[1] == 0
    assert loaded.rewards[0] == -1
    assert [transform.name for transform in loaded.metadata.transforms] == [
        "relabel_success",
        "terminate_at_success",
        "reward_shift",
    ]


def test_training_environment_is_changed_like_the_data():
    env = gym.make(SCRIPTED)
    for transform in (tf.RelabelSuccess(), tf.TruncateAtSuccess(), tf.TerminateAtSuccess()):
        assert transform.wrap_env(env, training=False) is env
    wrapped = tf.TruncateAtSuccess().wrap_env(tf.RelabelSuccess().wrap_env(env, training=True), training=True)
    wrapped.reset(seed=0)
    rewards, done = [], False
    while not done:
        _, reward, terminated, truncated, info = wrapped.step(env.unwrapped.scripted_action())
        rewards.append(reward)
        done = terminated or truncated
    assert info["is_success"] and rewards == [0.0] * (len(rewards) - 1) + [1.0]


# --- With environments and models ------------------------------------------------------------------------------------


def test_environment_is_wrapped_like_the_dataset():
    dataset = rollout(n_episodes=3)
    standardized = tf.StandardizeObservations()(dataset)
    env = make_eval_env(standardized)
    seed = 5
    obs, raw = env.reset(seed=seed)[0], gym.make(SCRIPTED).reset(seed=seed)[0]
    (transform,) = standardized.metadata.transforms
    expected = (raw - np.float32(transform.mean)) / (np.float32(transform.std) + np.float32(1e-3))
    np.testing.assert_array_equal(obs, expected)
    assert obs.dtype == np.float32 and env.observation_space.contains(obs)
    assert env.observation_space == standardized.metadata.observation_space


class GoalLineEnv(ScriptedLineEnv):
    observation_space = spaces.Dict({key: BOX for key in ("observation", "achieved_goal", "desired_goal")})

    def observation(self):
        obs = super().observation()
        return {"observation": obs, "achieved_goal": obs + 1, "desired_goal": obs + 2}


gym.register("GoalLineEnv-v0", entry_point=f"{__name__}:GoalLineEnv")


def test_flattened_goals_and_standardisation_reach_the_environment():
    dataset = load(rollout("GoalLineEnv-v0"), transforms=[tf.FlattenGoals(), tf.StandardizeObservations()])
    env = make_eval_env(dataset)
    obs, _ = env.reset(seed=1)
    raw = gym.make("GoalLineEnv-v0").reset(seed=1)[0]
    flat = np.concatenate([raw["observation"], raw["desired_goal"]])
    frozen = dataset.metadata.transforms[1]
    np.testing.assert_array_equal(obs, (flat - np.float32(frozen.mean)) / (np.float32(frozen.std) + np.float32(1e-3)))
    with pytest.raises(DatasetError, match="goals were flattened, but the observations"):
        make_eval_env(dataset.with_metadata(env_id=SCRIPTED, env_spec=None))


@pytest.mark.parametrize(("make", "expected"), [(make_eval_env, [0, 1]), (make_training_env, [-10, 0])])
def test_rewards_are_transformed_for_training_only(make, expected):
    dataset = load(rollout(), transforms=[tf.RewardShift(-1), tf.RewardScale(10)])
    env = make(dataset)
    env.reset(seed=0)
    rewards, done = [], False
    while not done:
        _, reward, terminated, truncated, _ = env.step(MIDDLE)
        rewards.append(reward)
        done = terminated or truncated
    assert sorted(set(rewards)) == expected


def test_saved_model_carries_what_was_done_to_its_demonstrations(tmp_path):
    demos = load(rollout("ScriptedLineEnv-v0"), transforms=[tf.TopEpisodes(50), tf.ClipActions(0.9)])
    model = REDQ(
        "MlpPolicy",
        gym.make(SCRIPTED),
        demos=demos,
        demo_ratio=0.5,
        policy_kwargs={"net_arch": [8]},
        buffer_size=10,
        device="cpu",
    )
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        saved = json.loads(archive.read("data"))["dataset_metadata"]
    assert saved["transforms"] == [{"name": "top_episodes", "percent": 50}, {"name": "clip_actions", "limit": 0.9}]
    assert saved["env_id"] == SCRIPTED
    loaded = REDQ.load(tmp_path / "model", device="cpu")
    transforms = tuple(transform_from_dict(values) for values in loaded.dataset_metadata["transforms"])
    assert transforms == demos.metadata.transforms


def test_demonstrations_that_were_changed_need_an_environment_that_was():
    demos = load(rollout(SCRIPTED), reward_shift=-1)
    arguments = {"demo_ratio": 0.5, "policy_kwargs": {"net_arch": [8]}, "buffer_size": 10, "device": "cpu"}
    with pytest.raises(
        DatasetError, match=r"went through \['reward_shift'\], the environment did not.*make_training_env"
    ):
        REDQ("MlpPolicy", gym.make(SCRIPTED), demos=demos, **arguments)
    REDQ("MlpPolicy", make_training_env(demos), demos=demos, **arguments)


def test_a_second_shift_of_the_rewards_is_told():
    once = load("demo/pointmaze-umaze", reward_shift=-1)
    with pytest.warns(UserWarning, match="shifted already"):
        twice = load(once, reward_shift=-1)
    assert twice.rewards.min() == -2
