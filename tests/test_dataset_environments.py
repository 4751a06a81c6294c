"""The environment that fits a dataset, and errors that name the fix where one does not."""

from dataclasses import replace

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import pytest
from line_envs import make_arrays, shared_file

from sb3_ext.datasets import DatasetError, load, make_eval_env, rollout_episodes, validate
from sb3_ext.datasets.collect import random_expert, scripted_expert
from sb3_ext.datasets.transforms import ClipActions, FlattenGoals, RewardShift, StandardizeObservations

gym.register_envs(gymnasium_robotics)


def play(env_id, expert=None, n_transitions=300, **kwargs):
    env = gym.make(env_id, **kwargs)
    expert = expert(env) if expert else random_expert(env)
    dataset = rollout_episodes(env, expert, n_transitions=n_transitions, only_successful=False)
    env.close()
    return dataset


@pytest.fixture(scope="module")
def flat_point():
    return play("PointMazeFlat/UMaze-v3", scripted_expert, 600)


@pytest.fixture(scope="module")
def hopper():
    return play("Hopper-v4", n_transitions=200)


def name_of(env):
    name = env.spec.id
    env.close()
    return name


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("antmaze-umaze", "AntMazeFlat/UMaze-v4"),
        ("antmaze-medium-diverse", "AntMazeFlat/Medium-v4"),
        ("hopper-mixed", "Hopper-v4"),
    ],
)
def test_shared_data_find_their_environment(name, env_id):
    path = shared_file(name)
    assert name_of(make_eval_env(load(path, reward_shift=-1))) == env_id


@pytest.mark.parametrize("goal_observable", [True, False])
def test_flat_point_maze(goal_observable):
    dataset = play("PointMazeFlat/UMaze-v3", scripted_expert, goal_observable=goal_observable)
    env = make_eval_env(dataset.with_metadata(env_spec=None))
    assert env.observation_space == dataset.metadata.observation_space
    assert name_of(env) == "PointMazeFlat/UMaze-v3"
    assert name_of(make_eval_env(dataset)) == "PointMazeFlat/UMaze-v3"
    assert name_of(make_eval_env(StandardizeObservations()(dataset))) == "PointMazeFlat/UMaze-v3"


def test_stock_point_maze_with_and_without_flattened_goals():
    dataset = play("PointMaze_UMaze-v3")
    assert set(dataset.frames) == {"observation", "achieved_goal", "desired_goal"}
    np.testing.assert_array_equal(dataset.goals, dataset.observations["desired_goal"])
    env = make_eval_env(dataset.with_metadata(env_spec=None))
    assert env.observation_space == dataset.metadata.observation_space
    assert name_of(env) == "PointMaze_UMaze-v3"
    flat = make_eval_env(
        load(dataset, allow_constant_rewards=True, transforms=[FlattenGoals(), StandardizeObservations()])
    )
    assert flat.observation_space.shape == flat.reset(seed=0)[0].shape == (6,)
    flat.close()


def test_mujoco_environment_by_replay(hopper):
    assert name_of(make_eval_env(hopper)) == "Hopper-v4"
    assert name_of(make_eval_env(RewardShift(-1)(hopper))) == "Hopper-v4"


def test_evaluation_gets_arguments(flat_point):
    env = make_eval_env(flat_point, max_episode_steps=300, reward_shift=0.0)
    assert env.unwrapped.maze == "umaze"
    env.close()


def refused(dataset, message, **kwargs):
    with pytest.raises(DatasetError, match=message):
        make_eval_env(dataset, **kwargs)


def test_another_maze_is_named(flat_point):
    other = flat_point.with_metadata(env_id="PointMazeFlat/Medium-v3", env_spec=None)
    refused(other, r"recorded in another maze: .*They fit .*UMaze.*dataset\.with_metadata\(env_id=")


def test_another_goal_is_named(flat_point):
    refused(
        flat_point.with_metadata(env_spec=None),
        r"goal in cell \(3, 1\), .*in \(1, 3\).*goal_cell=\(3, 1\)",
        goal_cell=(1, 3),
    )


def test_other_rewards_are_named(flat_point):
    two = replace(flat_point, rewards=flat_point.rewards * 2)
    refused(two, r"has the rewards \[0.0, 2.0\], .* gives 0, and 1 at the goal")
    make_eval_env(RewardShift(-1)(flat_point)).close()
    refused(replace(flat_point, rewards=flat_point.rewards - 1), r"has the rewards \[-1.0, 0.0\].*reward_shift=")


def test_longer_episodes_are_named(flat_point):
    refused(flat_point, r"has episodes of \d+ steps, .* ends after 20: pass max_episode_steps=", max_episode_steps=20)


def test_ant_with_contact_forces_is_named():
    wide = make_arrays(
        200, observations=np.zeros((200, 113)), next_observations=np.zeros((200, 113)), actions=np.zeros((200, 8))
    )
    dataset = load(wide).with_metadata(env_id="AntMazeFlat/UMaze-v4")
    refused(dataset, r"observations have the shape \(113,\), .*Ants of version v5 add 78")
    narrow = make_arrays(
        200, observations=np.zeros((200, 27)), next_observations=np.zeros((200, 27)), actions=np.zeros((200, 8))
    )
    refused(load(narrow).with_metadata(env_id="Ant-v5"), "include_cfrc_ext_in_observation=False")


def test_other_observation_size_is_named(hopper):
    refused(hopper.with_metadata(env_id="Walker2d-v4", env_spec=None), r"observations have the shape \(11,\)")
    smaller = replace(hopper, frames=hopper.frames[:, :5])
    refused(smaller, r"shape \(5,\), the environment's \(11,\).*The environment is Hopper-v4")


def test_other_dynamics_are_named(hopper):
    """The same shapes, but steps that lead elsewhere: shuffled actions stand for another version."""
    shuffled = replace(hopper, actions=np.random.default_rng(0).permutation(hopper.actions))
    refused(shuffled, r"was not recorded in Hopper-v4: .*Name the right version")


@pytest.mark.parametrize("gravity", [-3, -15])
def test_other_gravity_is_named(gravity):
    env = gym.make("Hopper-v4")
    env.unwrapped.model.opt.gravity[2] = gravity
    dataset = rollout_episodes(env, random_expert(env), n_transitions=300)
    env.close()
    refused(dataset, r"was not recorded in Hopper-v4")


def test_other_rewards_of_mujoco_are_named(hopper):
    refused(replace(hopper, rewards=hopper.rewards * 3), r"has other rewards than Hopper-v4")


def test_missing_environment_is_named(hopper):
    refused(hopper.with_metadata(env_id=None), r"does not name its environment: dataset.with_metadata\(env_id=")
    unknown = hopper.with_metadata(env_id="Nowhere-v0", env_spec=None)
    refused(unknown, r"its environment Nowhere-v0 cannot be made. Install and import the package")
    errors, notes = validate(unknown)
    assert not errors and "cannot be made" in notes[0]


def test_environments_that_are_made_draw_different_episodes(flat_point):
    first, second = (make_eval_env(flat_point).reset()[0] for _ in range(2))
    assert (first != second).any()


def test_clipped_actions_are_not_played_again(hopper):
    make_eval_env(ClipActions(0.2)(hopper)).close()
