import ctypes.util
import warnings

import gymnasium as gym
import numpy as np
import pytest
from env_checks import play_random, run_python
from gymnasium.utils.env_checker import check_env as check_env_gymnasium
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_ext_envs import METAWORLD_TASKS, register_envs
from sb3_ext_envs.metaworld_sparse import MetaWorldSparseEnv

CHECKED_TASKS = ["hammer-v3", "reach-v3", "drawer-open-v3", "peg-insert-side-v3"]
HIDDEN_GOAL = slice(36, 39)

pytestmark = pytest.mark.filterwarnings("ignore:Constant.s. may be too high:UserWarning")


def make(task="hammer-v3", **kwargs):
    return gym.make(f"MetaWorldSparse/{task}", **kwargs)


def play_expert(env, seed=None, n_steps=None):
    """Rewards, infos and last flags of the expert's episode, or of its first steps."""
    env.reset(seed=seed)
    rewards, infos, terminated, truncated = [], [], False, False
    while not (terminated or truncated) and len(rewards) != n_steps:
        _, reward, terminated, truncated, info = env.step(env.unwrapped.scripted_action())
        rewards.append(reward)
        infos.append(info)
    return rewards, infos, terminated, truncated


def test_ids_are_all_tasks_of_meta_world():
    registered = {name for name in gym.registry if name.startswith("MetaWorldSparse/")}
    assert registered == {f"MetaWorldSparse/{task}" for task in ALL_V3_ENVIRONMENTS}
    assert sorted(METAWORLD_TASKS) == sorted(ALL_V3_ENVIRONMENTS)
    assert len(METAWORLD_TASKS) == 50


def test_registering_twice_is_silent_and_changes_nothing():
    before = dict(gym.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_envs()
    assert gym.registry == before


def test_import_loads_no_simulator():
    code = "import sys, sb3_ext_envs; print([name for name in ('metaworld', 'mujoco') if name in sys.modules])"
    assert run_python(code).stdout == "[]\n"


@pytest.mark.parametrize("goal_observable", [True, False])
@pytest.mark.parametrize("task", CHECKED_TASKS)
def test_environment_checkers_have_no_complaint(task, goal_observable):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_gymnasium(make(task, goal_observable=goal_observable).unwrapped, skip_render_check=True)
        check_env_sb3(make(task, goal_observable=goal_observable))


@pytest.mark.parametrize("task", METAWORLD_TASKS)
def test_task_plays_and_its_seed_decides_everything(task):
    env = make(task)
    assert env.observation_space == gym.spaces.Box(-10.0, 10.0, (39,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
    first = play_random(env, seed=1, n_steps=5)
    assert first.dtype == np.float32
    assert all(env.observation_space.contains(obs) for obs in first)
    second = play_random(env, seed=2, n_steps=5)
    assert not np.array_equal(first[0], second[0])
    np.testing.assert_array_equal(play_random(env, seed=1, n_steps=5), first)
    np.testing.assert_array_equal(play_random(make(task), seed=2, n_steps=5), second)


@pytest.mark.parametrize("task", CHECKED_TASKS)
def test_seed_decides_long_episodes_of_a_used_environment_too(task):
    used = make(task)
    play_expert(used)
    np.testing.assert_array_equal(play_random(used, seed=5, n_steps=100), play_random(make(task), seed=5, n_steps=100))


@pytest.mark.parametrize("task", CHECKED_TASKS)
def test_1000_resets_are_float32_different_and_inside_the_space(task):
    env = make(task)
    env.reset(seed=0)
    observations = [env.reset()[0] for _ in range(250)]
    assert all(obs.dtype == np.float32 and obs.shape == (39,) for obs in observations)
    assert all(env.observation_space.contains(obs) for obs in observations)
    assert len(np.unique(observations, axis=0)) == 250


@pytest.mark.parametrize("task", CHECKED_TASKS)
def test_only_the_last_three_entries_depend_on_goal_observable(task):
    with_goal = play_random(make(task), seed=0, n_steps=20)
    without_goal = play_random(make(task, goal_observable=False), seed=0, n_steps=20)
    assert (np.abs(with_goal[:, HIDDEN_GOAL]).sum(axis=1) > 0).all()
    assert (without_goal[:, HIDDEN_GOAL] == 0).all()
    np.testing.assert_array_equal(with_goal[:, :36], without_goal[:, :36])


@pytest.mark.parametrize("task", ["hammer-v3", "reach-v3", "drawer-open-v3"])
def test_episode_ends_with_the_only_reward_at_success(task):
    rewards, infos, terminated, truncated = play_expert(make(task), seed=0)
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert [info["is_success"] for info in infos] == [False] * (len(rewards) - 1) + [True]
    assert all(type(reward) is float for reward in rewards)
    assert terminated
    assert not truncated


def test_episode_goes_on_to_truncation_where_success_does_not_terminate():
    rewards, infos, terminated, truncated = play_expert(make(terminate_on_success=False), seed=0)
    success = rewards.index(1.0)
    assert len(rewards) == 500
    assert sum(rewards) == 1.0
    assert [info["is_success"] for info in infos] == [False] * success + [True] * (500 - success)
    assert truncated
    assert not terminated


def test_success_that_is_lost_and_regained_stays_latched_and_is_rewarded_once():
    env = make("reach-v3", terminate_on_success=False)
    env.reset(seed=0)
    rewards, raw_success, is_success = [], [], []
    for phase in ("reach", "leave", "reach"):
        for _ in range(120):
            action = env.unwrapped.scripted_action() if phase == "reach" else np.array([0, -1, 1, 0], np.float32)
            _, reward, _, _, info = env.step(action)
            rewards.append(reward)
            raw_success.append(info["success"])
            is_success.append(info["is_success"])
    first = rewards.index(1.0)
    assert (raw_success[119], raw_success[239], raw_success[359]) == (1.0, 0.0, 1.0)
    assert sum(rewards) == 1.0
    assert all(is_success[first:])
    assert not any(is_success[:first])


def test_reset_forgets_the_success():
    env = make("reach-v3")
    for _ in range(2):
        rewards, *_ = play_expert(env)
        assert sum(rewards) == 1.0
    _, info = env.reset()
    assert info["is_success"] is False
    _, reward, terminated, _, info = env.step(np.zeros(4, np.float32))
    assert (reward, terminated, info["is_success"]) == (0.0, False, False)


@pytest.mark.parametrize(("kwargs", "n_steps"), [({}, 500), ({"max_episode_steps": 20}, 20)])
def test_truncation_after_max_episode_steps(kwargs, n_steps):
    env = make(**kwargs)
    env.reset(seed=0)
    flags = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(n_steps)]
    assert flags == [(False, False)] * (n_steps - 1) + [(False, True)]


def test_episodes_may_be_longer_than_meta_world_allows():
    env = make(max_episode_steps=520)
    for _ in range(2):
        env.reset(seed=0)
        flags = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(520)]
        assert flags == [(False, False)] * 519 + [(False, True)]


@pytest.mark.parametrize("goal_observable", [True, False])
def test_scripted_expert_solves_hammer(goal_observable):
    env = make(goal_observable=goal_observable)
    env.reset(seed=0)
    assert sum(play_expert(env)[2] for _ in range(10)) >= 9


def test_scripted_action_lies_in_the_action_space():
    env = make("peg-insert-side-v3", terminate_on_success=False)
    env.reset(seed=0)
    for _ in range(100):
        action = env.unwrapped.scripted_action()
        assert env.action_space.contains(action)
        env.step(action)


def test_scripted_expert_sees_the_goal_that_the_agent_does_not():
    seeing, blind = make("reach-v3"), make("reach-v3", goal_observable=False)
    for seed in range(5):
        seeing.reset(seed=seed)
        blind.reset(seed=seed)
        np.testing.assert_array_equal(blind.unwrapped.scripted_action(), seeing.unwrapped.scripted_action())


def test_observation_that_left_the_space_is_clipped(monkeypatch):
    env = MetaWorldSparseEnv("hammer-v3")
    monkeypatch.setattr(env._env, "reset", lambda: (np.linspace(-50, 50, 39), {}))
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert (obs.min(), obs.max()) == (-10, 10)


def test_two_processes_play_what_one_process_plays():
    def make_two(vec_env_cls):
        # The prefix makes the workers, which import nothing of ours, register the environment
        env_id = "sb3_ext_envs:MetaWorldSparse/hammer-v3"
        return make_vec_env(env_id, n_envs=2, seed=3, env_kwargs={"max_episode_steps": 20}, vec_env_cls=vec_env_cls)

    dummy, subproc = make_two(DummyVecEnv), make_two(SubprocVecEnv)
    try:
        rng = np.random.default_rng(0)
        first = dummy.reset()
        np.testing.assert_array_equal(first, subproc.reset())
        assert not np.array_equal(first[0], first[1])
        n_dones = 0
        for _ in range(50):
            actions = rng.uniform(-1, 1, (2, 4)).astype(np.float32)
            expected, actual = dummy.step(actions), subproc.step(actions)
            for expected_array, actual_array in zip(expected[:3], actual[:3], strict=True):
                np.testing.assert_array_equal(expected_array, actual_array)
            assert [info["is_success"] for info in expected[3]] == [info["is_success"] for info in actual[3]]
            n_dones += expected[2].sum()
        assert n_dones == 4
    finally:
        dummy.close()
        subproc.close()


def test_unknown_task_names_the_closest():
    with pytest.raises(ValueError, match=r"Unknown Meta-World task 'hamer-v3': did you mean 'hammer-v3'"):
        MetaWorldSparseEnv("hamer-v3")


def test_task_like_no_other_gets_the_list_of_all():
    with pytest.raises(ValueError, match=r"known: assembly-v3, .*, window-open-v3"):
        MetaWorldSparseEnv("0")


def test_unknown_id_names_the_closest():
    with pytest.raises(gym.error.NameNotFound, match="hammer"):
        gym.make("MetaWorldSparse/hamer-v3")


def test_unknown_render_mode_is_refused():
    with pytest.raises(ValueError, match=r"render_mode must be None or one of .*'rgb_array'.*, not 'ansi'"):
        MetaWorldSparseEnv("hammer-v3", render_mode="ansi")


def test_rendering_without_a_mode_warns():
    env = MetaWorldSparseEnv("hammer-v3")
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="Nothing to render: make the environment with render_mode"):
        assert env.render() is None


RENDER = """
import gymnasium as gym, sb3_ext_envs
def picture(**kwargs):
    env = gym.make("MetaWorldSparse/hammer-v3", render_mode="{mode}", **kwargs)
    env.reset(seed=0)
    return env.render()
"""


@pytest.mark.skipif(ctypes.util.find_library("OSMesa") is None, reason="no OSMesa library")
def test_picture_has_the_size_and_the_camera_that_were_asked_for():
    code = RENDER.format(mode="rgb_array") + (
        "first, small, top = picture(), picture(width=64, height=48), picture(camera_name='topview')\n"
        "print(first.shape, first.dtype, first.std() > 1, small.shape, (first != top).any())"
    )
    result = run_python(code, MUJOCO_GL="osmesa")
    assert result.stdout == "(480, 480, 3) uint8 True (48, 64, 3) True\n", result.stderr


@pytest.mark.parametrize(
    ("platform", "mode"), [("egl", "rgb_array"), ("glfw", "rgb_array"), ("disabled", "rgb_array"), ("glfw", "human")]
)
def test_machine_that_cannot_render_gets_an_error_that_names_the_variable(platform, mode):
    result = run_python(RENDER.format(mode=mode) + "picture()", MUJOCO_GL=platform)
    if result.returncode == 0:
        pytest.skip(f"{platform} works here")
    assert "RuntimeError: MuJoCo cannot render on this machine. Set the environment variable MUJOCO_GL" in result.stderr
