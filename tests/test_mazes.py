import copy
import ctypes.util
import pickle
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import h5py
import numpy as np
import pytest
from env_checks import play_random, run_python
from gymnasium.utils.env_checker import check_env as check_env_gymnasium
from gymnasium_robotics.envs.maze import maps
from gymnasium_robotics.envs.maze.ant_maze_v4 import AntMazeEnv
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_ext.datasets import DatasetError, rollout_episodes
from sb3_ext.datasets.collect import scripted_expert
from sb3_ext_envs import waypoints
from sb3_ext_envs.mazes import AntMazeFlatEnv, PointMazeFlatEnv
from sb3_ext_envs.waypoints import WaypointPlanner, next_cells

gym.register_envs(gymnasium_robotics)

MAPS = {"umaze": maps.U_MAZE, "medium": maps.MEDIUM_MAZE, "large": maps.LARGE_MAZE}
STOCK = {AntMazeFlatEnv: AntMazeEnv, PointMazeFlatEnv: PointMazeEnv}
# Our id and the one of Gymnasium-Robotics
IDS = {
    f"{robot}MazeFlat/{maze}-{version}": f"{robot}Maze_{maze}-{version}"
    for robot, version in (("Ant", "v4"), ("Point", "v3"))
    for maze in ("UMaze", "Medium", "Large")
}
RANDOM_CELLS = {"start_cell": "random", "goal_cell": "random", "goal_observable": True}
# Of D4RL: d4rl/pointmaze/maze_model.py and d4rl/locomotion/maze_env.py, whose R and G are written O here
D4RL_MAPS = {
    "umaze": "##### #OOO# ###O# #OOO# #####",
    "medium": "######## #OO##OO# #OO#OOO# ##OOO### #OO#OOO# #O#OO#O# #OOO#OO# ########",
    "large": (
        "############ #OOOO#OOOOO# #O##O#O#O#O# #OOOOOO#OOO# #O####O###O# #OO#O#OOOOO# ##O#O#O#O### #OO#OOO#OOO# "
        "############"
    ),
}
ANT_DATA = Path(__file__).parents[2] / "shared" / "data" / "antmaze-umaze.hdf5"

both_coordinates = pytest.mark.parametrize("coordinates", ["robotics", "d4rl"])
both = pytest.mark.parametrize("cls", [AntMazeFlatEnv, PointMazeFlatEnv])
every_id = pytest.mark.parametrize("env_id", IDS)
every_maze = pytest.mark.parametrize("maze", MAPS)


def make_stock(env):
    """The environment of Gymnasium-Robotics in the state of ours."""
    stock = STOCK[type(env)](maze_map=MAPS[env.maze])
    Path(stock.tmp_xml_file_path).unlink()
    stock.position_noise_range = 0
    stock.reset(options={"reset_cell": np.array(env.start_cell), "goal_cell": np.array(env.goal_cell)})
    return stock, stock.ant_env if isinstance(stock, AntMazeEnv) else stock.point_env


def flatten(env, obs):
    parts = [obs["observation"]] if isinstance(env, PointMazeFlatEnv) else [obs["achieved_goal"], obs["observation"]]
    return np.concatenate([*parts, obs["desired_goal"]]).astype(np.float32)


def put(env, xy, quaternion=None):
    """Move the robot, at rest."""
    robot = env.unwrapped._robot
    qpos = robot.init_qpos.copy()
    qpos[:2] = xy
    if quaternion is not None:
        qpos[3:7] = quaternion
    robot.set_state(qpos, np.zeros_like(robot.init_qvel))


def rest(env):
    return env.step(np.zeros(env.action_space.shape, np.float32))


def test_ids_and_episode_lengths_are_those_of_gymnasium_robotics():
    assert {name for name in gym.registry if "MazeFlat/" in name} == set(IDS)
    for env_id, stock_id in IDS.items():
        assert gym.spec(env_id).max_episode_steps == gym.spec(stock_id).max_episode_steps


def test_import_loads_no_simulator():
    code = "import sys, sb3_ext_envs; print([n for n in ('gymnasium_robotics', 'mujoco', 'torch') if n in sys.modules])"
    assert run_python(code).stdout == "[]\n"


@every_id
@pytest.mark.parametrize("goal_observable", [True, False])
def test_environment_checkers_have_no_complaint(env_id, goal_observable):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id, goal_observable=goal_observable)
        check_env_gymnasium(env.unwrapped, skip_render_check=True)
        check_env_sb3(env)


@every_id
def test_spec_is_json(env_id):
    env = gym.make(env_id, start_cell=[1, 2], reward_shift=-1.0)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.start_cell == (1, 2)
    np.testing.assert_array_equal(play_random(env, seed=0), play_random(again, seed=0))


@both
@every_maze
def test_model_is_that_of_gymnasium_robotics(cls, maze):
    env = cls(maze)
    stock, _ = make_stock(env)
    for field in ("geom_type", "geom_pos", "geom_size", "geom_margin", "geom_contype", "site_size", "body_mass"):
        np.testing.assert_array_equal(getattr(env._robot.model, field), getattr(stock.model, field))
    assert env._robot.model.opt.timestep == stock.model.opt.timestep


@both
@every_maze
def test_steps_are_those_of_gymnasium_robotics(cls, maze):
    env = cls(maze, start_noise=0.0, goal_observable=True, terminate_on_success=False)
    stock, _ = make_stock(env)
    rng = np.random.default_rng(0)
    for _ in range(2):
        stock_obs, _ = stock.reset(options={"reset_cell": env.start_cell, "goal_cell": env.goal_cell})
        np.testing.assert_array_equal(env.reset()[0], flatten(env, stock_obs))
        for _ in range(200):
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            obs, reward, *_ = env.step(action)
            stock_obs, stock_reward, *_ = stock.step(action)
            np.testing.assert_array_equal(obs, flatten(env, stock_obs))
            assert reward == stock_reward


def test_way_to_the_goal_is_that_of_gymnasium_robotics():
    env = PointMazeFlatEnv(start_noise=0.0, terminate_on_success=False)
    stock, _ = make_stock(env)
    env.reset()
    for _ in range(300):
        action = env.scripted_action()
        obs, reward, _, _, info = env.step(action)
        stock_obs, stock_reward, _, _, stock_info = stock.step(action)
        np.testing.assert_array_equal(obs, stock_obs["observation"].astype(np.float32))
        assert (reward, info["is_success"]) == (stock_reward, stock_info["success"])
    assert reward == 1.0


@both
@pytest.mark.parametrize(("distance", "inside"), [(0.44, True), (0.46, False)])
def test_radius_is_that_of_gymnasium_robotics(cls, distance, inside):
    env = cls(start_noise=0.0)
    stock, stock_robot = make_stock(env)
    env.reset()
    put(env, env.goal + np.array([distance, 0.0]))
    stock_robot.set_state(env._robot.data.qpos, env._robot.data.qvel)
    _, reward, terminated, truncated, info = rest(env)
    assert (reward, terminated, truncated, info) == (float(inside), inside, False, {"is_success": inside})
    assert type(reward) is float
    assert type(terminated) is bool
    assert rest(stock)[1] == inside


@both
@pytest.mark.parametrize("shift", [0.0, -1, 0.5])
def test_shift_is_added_to_every_reward(cls, shift):
    env = cls(reward_shift=shift)
    env.reset(seed=0)
    elsewhere = rest(env)[1]
    put(env, env.goal)
    at_goal = rest(env)[1]
    assert (elsewhere, at_goal) == (shift, 1.0 + shift)
    assert type(elsewhere) is type(at_goal) is float


@both
def test_success_stays_latched_and_is_rewarded_at_each_step_where_it_does_not_terminate(cls):
    env = cls(terminate_on_success=False)
    env.reset(seed=0)
    rewards, successes = [], []
    for xy in (env.cell_to_xy((1, 2)), env.goal, env.goal, env.cell_to_xy((1, 2)), env.goal):
        put(env, xy)
        _, reward, terminated, truncated, info = rest(env)
        assert not (terminated or truncated)
        rewards.append(reward)
        successes.append(info["is_success"])
    assert rewards == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert successes == [False, True, True, True, True]
    _, info = env.reset()
    assert info == {"is_success": False}
    assert rest(env)[4] == {"is_success": False}


@every_id
def test_truncation_after_max_episode_steps(env_id):
    env = gym.make(env_id, max_episode_steps=20)
    env.reset(seed=0)
    assert [rest(env)[2:4] for _ in range(20)] == [(False, False)] * 19 + [(False, True)]


@pytest.mark.parametrize("terminate_on_flip", [True, False])
@pytest.mark.parametrize(
    ("quaternion", "flipped"),
    [((0, 1, 0, 0), True), ((0, 0, 1, 0), True), ((0, 0, 0, 1), False), ((1, 0, 0, 0), False)],
)
def test_flip_ends_the_episode_if_wanted(quaternion, flipped, terminate_on_flip):
    env = AntMazeFlatEnv(terminate_on_flip=terminate_on_flip, reward_shift=-1.0)
    env.reset(seed=0)
    put(env, env.cell_to_xy((1, 2)), quaternion)
    _, reward, terminated, truncated, info = rest(env)
    assert (reward, terminated, truncated) == (-1.0, flipped and terminate_on_flip, False)
    assert info == {"is_success": False}


def test_goal_reached_upside_down_is_a_success():
    env = AntMazeFlatEnv(terminate_on_flip=True)
    env.reset(seed=0)
    put(env, env.goal, (0, 1, 0, 0))
    assert rest(env)[1:] == (1.0, True, False, {"is_success": True})


@both
def test_default_cells_are_free(cls):
    environments = [cls(maze) for maze in MAPS]
    assert [env.goal_cell for env in environments] == [(3, 1), (6, 6), (7, 10)]
    assert [env.start_cell for env in environments] == [(1, 1)] * 3
    assert all({env.start_cell, env.goal_cell} <= set(env.free_cells) for env in environments)


@both
@every_maze
def test_cells_and_positions_are_those_of_gymnasium_robotics(cls, maze):
    env = cls(maze)
    stock, _ = make_stock(env)
    assert env.maze_map == MAPS[maze]
    for row, line in enumerate(env.maze_map):
        for column, wall in enumerate(line):
            xy = env.cell_to_xy((row, column))
            np.testing.assert_array_equal(xy, stock.maze.cell_rowcol_to_xy(np.array([row, column])))
            for corner in ([-0.49, 0.49], [0.49, -0.49], [0.0, 0.0]):
                assert env.xy_to_cell(xy + env.CELL_SIZE * np.array(corner)) == (row, column)
            assert ((row, column) in env.free_cells) == (not wall)


@both
@every_maze
def test_maps_are_those_of_d4rl(cls, maze):
    expected = [[int(tile == "#") for tile in line] for line in D4RL_MAPS[maze].split()]
    assert cls(maze, coordinates="d4rl").maze_map == expected


@pytest.mark.parametrize(
    ("maze", "goal_cell", "goal"),
    [("umaze", (3, 1), (0, 8)), ("medium", (6, 6), (20, 20)), ("large", (7, 9), (32, 24))],
)
def test_ant_starts_and_ends_where_it_does_in_d4rl(maze, goal_cell, goal):
    env = AntMazeFlatEnv(maze, coordinates="d4rl")
    starts = np.stack([env.reset(seed=seed)[0][:2] for seed in range(100)])
    assert 0.09 < np.abs(starts).max() <= 0.1
    assert (env.start_cell, env.goal_cell, tuple(env.goal)) == ((1, 1), goal_cell, goal)


@pytest.mark.parametrize(("maze", "goal"), [("umaze", (1, 1)), ("medium", (6, 6)), ("large", (7, 9))])
def test_point_starts_and_ends_where_it_does_in_d4rl(maze, goal):
    env = PointMazeFlatEnv(maze, coordinates="d4rl")
    starts = np.stack([env.reset(seed=seed)[0][:2] for seed in range(500)])
    assert 0.09 < np.abs(starts - starts.round()).max() <= 0.1 + 1e-6
    assert {tuple(cell) for cell in starts.round().astype(int).tolist()} == set(env.free_cells) - {goal}
    assert env.goal_cell == tuple(env.goal) == goal


@every_maze
def test_walls_are_where_they_are_in_d4rl(maze):
    ant, point = AntMazeFlatEnv(maze, coordinates="d4rl"), PointMazeFlatEnv(maze, coordinates="d4rl")
    for row, line in enumerate(D4RL_MAPS[maze].split()):
        for column, tile in enumerate(line):
            # The ant starts at (0, 0) in cell (1, 1); the ball's position counts from (1.2, 1.2), walls from (1, 1)
            ant_xy, point_xy = (4 * (column - 1), 4 * (row - 1)), (row - 0.2, column - 0.2)
            for env, xy in ((ant, ant_xy), (point, point_xy)):
                if tile == "#":
                    pos = env._robot.model.geom(f"block_{row}_{column}").pos
                    np.testing.assert_allclose(pos, [*xy, env.WALL_HALF_HEIGHT])
                put(env, xy)
                in_wall = any(contact.dist < -0.05 for contact in env._robot.data.contact)
                assert in_wall == (tile == "#")
                for corner in ([-0.49, 0.49], [0.49, -0.49], [0.0, 0.0]):
                    assert env.xy_to_cell(np.array(xy) + env.CELL_SIZE * np.array(corner)) == (row, column)
            assert tuple(ant.cell_to_xy((row, column))) == ant_xy
            assert tuple(point.cell_to_xy((row, column))) == (row, column)


@pytest.mark.parametrize(
    ("action", "stop"), [((-1, 0), (2.4, 1)), ((1, 0), (3.2, 1)), ((0, -1), (3, 0.4)), ((0, 1), (3, 3.2))]
)
def test_walls_stop_the_ball_where_they_do_in_d4rl(action, stop):
    env = PointMazeFlatEnv(coordinates="d4rl", start_cell=(3, 1), start_noise=0.0)
    env.reset(seed=0)
    for _ in range(400):
        obs, *_ = env.step(0.2 * np.array(action, np.float32))
    np.testing.assert_allclose(obs[:2], stop, atol=0.03)


@both
@pytest.mark.parametrize(
    ("coordinates", "radius"), [("robotics", 0.45), ("d4rl", 0.5), ("robotics", 0.6), ("d4rl", 0.2)]
)
def test_radius_is_that_of_the_coordinates_or_the_argument(cls, coordinates, radius):
    default = radius == (0.45 if coordinates == "robotics" else 0.5)
    env = cls(coordinates=coordinates, success_radius=None if default else radius, terminate_on_success=False)
    env.reset(seed=0)
    assert env.success_radius == radius
    for distance, reward in ((radius - 0.01, 1.0), (radius + 0.01, 0.0)):
        # Along the row, where no wall pushes the robot away
        put(env, env.goal + distance * np.array(env._coordinates.column_axis))
        assert rest(env)[1] == reward


@both
@pytest.mark.parametrize("name", ["start_cell", "goal_cell"])
@pytest.mark.parametrize("cell", [(0, 0), (2, 1), (-2, 1), (9, 9), (1.5, 1), (1, 2, 3), "middle", 7])
def test_cell_that_is_not_free_is_refused_with_the_free_ones(cls, name, cell):
    with pytest.raises(ValueError, match=rf"{name}=.* must be 'random' or a free cell .*: \(1, 1\), .*, \(3, 3\)$"):
        cls(**{name: cell})


@both
def test_arguments_without_meaning_are_refused(cls):
    with pytest.raises(ValueError, match=r"Unknown maze 'tiny': known are 'umaze', 'medium', 'large'"):
        cls("tiny")
    with pytest.raises(ValueError, match=r'goal_cell="random" needs goal_observable=True'):
        cls(goal_cell="random")
    with pytest.raises(ValueError, match=r"start_cell and goal_cell must differ, both are \(3, 1\)"):
        cls(start_cell=[3, 1])
    with pytest.raises(ValueError, match=r"render_mode must be None or one of .*'rgb_array'.*, not 'ansi'"):
        cls(render_mode="ansi")
    with pytest.raises(ValueError, match=r"Unknown coordinates 'mujoco': known are 'robotics', 'd4rl'"):
        cls(coordinates="mujoco")
    for radius in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"success_radius=.* must be positive and finite"):
            cls(success_radius=radius)
    for noise in (-0.1, 3.0, float("nan")):
        with pytest.raises(ValueError, match=r"start_noise=.* must lie in \[0, (1\.1|0\.4)\] m"):
            cls(start_noise=noise)
        with pytest.raises(ValueError, match=r"goal_noise=.* must lie in \[0, "):
            cls(goal_noise=noise)


@both
def test_observation_is_flat_float32_and_ends_with_the_goal_if_wanted(cls):
    dim = 29 if cls is AntMazeFlatEnv else 4
    blind, seeing = cls(), cls(goal_observable=True)
    assert blind.observation_space == gym.spaces.Box(-100.0, 100.0, (dim,), np.float32)
    assert seeing.observation_space == gym.spaces.Box(-100.0, 100.0, (dim + 2,), np.float32)
    without_goal, with_goal = play_random(blind, seed=3), play_random(seeing, seed=3)
    assert with_goal.dtype == np.float32
    np.testing.assert_array_equal(with_goal[:, :dim], without_goal)
    np.testing.assert_array_equal(with_goal[:, dim:], np.tile(seeing.goal, (11, 1)))


@both
def test_observation_that_left_the_space_is_clipped(cls, monkeypatch):
    env = cls()
    monkeypatch.setattr(env._robot, "reset", lambda: (np.linspace(-500, 500, *env.observation_space.shape), {}))
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert (obs.min(), obs.max()) == (-100, 100)


@both
@pytest.mark.parametrize("kwargs", [{}, {"goal_noise": 0.3, **RANDOM_CELLS}])
def test_seed_alone_decides(cls, kwargs):
    env = cls("medium", **kwargs)
    first, second = play_random(env, seed=1), play_random(env, seed=2)
    assert not np.array_equal(first[0], second[0])
    np.random.seed(0)
    np.testing.assert_array_equal(play_random(env, seed=1), first)  # of a used environment
    np.testing.assert_array_equal(play_random(cls("medium", **kwargs), seed=2), second)


@both
def test_without_noise_the_centres_of_the_cells_remain(cls):
    env = cls(start_cell=(3, 3), goal_cell=(1, 2), start_noise=0.0)
    for _ in range(3):
        obs, _ = env.reset()
        np.testing.assert_array_equal(obs[:2], env.cell_to_xy((3, 3)))
        np.testing.assert_array_equal(env.goal, env.cell_to_xy((1, 2)))


@both
@pytest.mark.parametrize("name", ["start_noise", "goal_noise"])
def test_noise_is_uniform_around_the_centre(cls, name):
    env = cls(**{name: 0.3})
    env.reset(seed=0)
    centre = env.cell_to_xy(env.start_cell if name == "start_noise" else env.goal_cell)
    draws = np.array([env.reset()[0][:2] if name == "start_noise" else (env.reset(), env.goal)[1] for _ in range(500)])
    assert (np.abs(draws - centre) <= 0.3 + 1e-6).all()
    assert (np.abs(draws - centre).max(axis=0) > 0.28).all()
    np.testing.assert_allclose((draws - centre).std(axis=0), 0.3 / np.sqrt(3), rtol=0.1)
    assert len(np.unique(draws, axis=0)) == 500


@both
@pytest.mark.parametrize("kwargs", [RANDOM_CELLS, {"start_cell": "random"}, {**RANDOM_CELLS, "start_cell": (1, 1)}])
def test_random_cells_are_all_free_ones_and_differ(cls, kwargs):
    env = cls(**kwargs)
    env.reset(seed=0)
    pairs = set()
    for _ in range(600):
        obs, _ = env.reset()
        assert env.xy_to_cell(obs[:2]) == env.start_cell
        assert env.xy_to_cell(env.goal) == env.goal_cell
        pairs.add((env.start_cell, env.goal_cell))
    starts = env.free_cells if kwargs["start_cell"] == "random" else [(1, 1)]
    goals = env.free_cells if kwargs.get("goal_cell") == "random" else [(3, 1)]
    assert pairs == {(start, goal) for start in starts for goal in goals if start != goal}


@both
def test_red_ball_is_at_the_goal(cls):
    env = cls("large", goal_noise=0.3, **RANDOM_CELLS)
    for seed in range(3):
        env.reset(seed=seed)
        np.testing.assert_allclose(env._robot.data.site("target").xpos, [*env.goal, env.WALL_HALF_HEIGHT])


@both
def test_pickled_and_copied_environments_play_the_same(cls):
    env = cls("medium", goal_noise=0.2, reward_shift=-1.0, **RANDOM_CELLS)
    expected = play_random(env, seed=0)
    for clone in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        np.testing.assert_array_equal(play_random(clone, seed=0), expected)
        assert clone.reward_shift == -1.0
    assert pickle.loads(pickle.dumps(AntMazeFlatEnv(terminate_on_flip=True))).terminate_on_flip


@both
def test_no_file_stays_behind(cls, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = cls()
    assert list(tmp_path.iterdir()) == []
    env.reset(seed=0)
    rest(env)
    env.close()
    assert list(tmp_path.iterdir()) == []


def test_environments_made_at_the_same_moment_get_their_own_mazes(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 0.0)
    names = ["umaze", "medium", "large"] * 4
    with ThreadPoolExecutor(len(names)) as pool:
        environments = list(pool.map(PointMazeFlatEnv, names))
    for name, env in zip(names, environments, strict=True):
        n_walls = sum(env._robot.model.geom(index).name.startswith("block") for index in range(env._robot.model.ngeom))
        assert n_walls == np.sum(MAPS[name])


@pytest.mark.parametrize(
    ("env_id", "start_method"), [("AntMazeFlat/UMaze-v4", "fork"), ("PointMazeFlat/UMaze-v3", "spawn")]
)
def test_two_processes_play_what_one_process_plays(env_id, start_method):
    def make_two(vec_env_cls, **kwargs):
        # The prefix makes the workers, which import nothing of ours, register the environment
        return make_vec_env(
            f"sb3_ext_envs:{env_id}",
            n_envs=2,
            seed=3,
            env_kwargs={"max_episode_steps": 20, **RANDOM_CELLS},
            vec_env_cls=vec_env_cls,
            vec_env_kwargs=kwargs,
        )

    if start_method == "fork" and sys.platform == "win32":
        pytest.skip("no fork")
    dummy, subproc = make_two(DummyVecEnv), make_two(SubprocVecEnv, start_method=start_method)
    try:
        rng = np.random.default_rng(0)
        first = dummy.reset()
        np.testing.assert_array_equal(first, subproc.reset())
        assert not np.array_equal(first[0], first[1])
        n_dones = 0
        for _ in range(50):
            actions = rng.uniform(-1, 1, (2, *dummy.action_space.shape)).astype(np.float32)
            expected, actual = dummy.step(actions), subproc.step(actions)
            for expected_array, actual_array in zip(expected[:3], actual[:3], strict=True):
                np.testing.assert_array_equal(expected_array, actual_array)
            assert [info["is_success"] for info in expected[3]] == [info["is_success"] for info in actual[3]]
            n_dones += expected[2].sum()
        assert n_dones >= 4
        np.testing.assert_array_equal(dummy.get_attr("goal"), subproc.get_attr("goal"))
    finally:
        dummy.close()
        subproc.close()


def test_rendering_without_a_mode_warns():
    env = PointMazeFlatEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="Nothing to render: make the environment with render_mode"):
        assert env.render() is None


RENDER = """
import gymnasium as gym, sb3_ext_envs
def picture(env_id="AntMazeFlat/UMaze-v4", **kwargs):
    env = gym.make(env_id, render_mode="{mode}", **kwargs)
    env.reset(seed=0)
    return env.render()
"""


@pytest.mark.skipif(ctypes.util.find_library("OSMesa") is None, reason="no OSMesa library")
def test_picture_shows_the_maze_and_the_goal():
    code = RENDER.format(mode="rgb_array") + (
        "for env_id in ('AntMazeFlat/UMaze-v4', 'PointMazeFlat/Large-v3'):\n"
        "    first, other, small = picture(env_id), picture(env_id, goal_cell=(1, 2)), picture(env_id, width=64)\n"
        "    print(first.shape, first.dtype, first.std() > 1, small.shape, (first != other).any())\n"
    )
    result = run_python(code, MUJOCO_GL="osmesa")
    assert result.stdout == "(480, 480, 3) uint8 True (480, 64, 3) True\n" * 2, result.stderr


@pytest.mark.parametrize(("platform", "mode"), [("disabled", "rgb_array"), ("glfw", "human")])
def test_machine_that_cannot_render_gets_an_error_that_names_the_variable(platform, mode):
    result = run_python(RENDER.format(mode=mode) + "picture()", MUJOCO_GL=platform)
    if result.returncode == 0:
        pytest.skip(f"{platform} works here")
    assert "RuntimeError: MuJoCo cannot render on this machine. Set the environment variable MUJOCO_GL" in result.stderr


def test_search_finds_the_shortest_way():
    ring = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    towards = next_cells(ring, (1, 1))
    assert len(towards) == 8
    assert towards[1, 1] == (1, 1)
    assert (towards[1, 3], towards[3, 1], towards[2, 3], towards[3, 2]) == ((1, 2), (2, 1), (1, 3), (3, 1))
    assert towards[3, 3] in [(2, 3), (3, 2)]


def test_search_leaves_out_what_is_not_connected():
    assert next_cells([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], (1, 1)) == {(1, 1): (1, 1)}


def test_noise_that_reaches_into_a_wall_of_d4rl_is_refused():
    assert PointMazeFlatEnv(coordinates="d4rl", start_noise=0.2, goal_noise=0.2)
    with pytest.raises(ValueError, match=r"start_noise=0.3 must lie in \[0, 0\.2\] m"):
        PointMazeFlatEnv(coordinates="d4rl", start_noise=0.3)


@both_coordinates
@every_maze
@pytest.mark.parametrize(("noise", "least"), [(0.0, 0.99), (0.3, 0.95)])
def test_scripted_expert_solves_the_mazes(maze, coordinates, noise, least):
    name = "UMaze" if maze == "umaze" else maze.title()
    env = gym.make(f"PointMazeFlat/{name}-v3", coordinates=coordinates, **RANDOM_CELLS)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    successes = []
    for _ in range(100):
        env.reset()
        terminated = truncated = False
        while not (terminated or truncated):
            action = env.unwrapped.scripted_action() + noise * rng.standard_normal(2)
            _, _, terminated, truncated, info = env.step(np.clip(action, -1.0, 1.0).astype(np.float32))
        successes.append(info["is_success"])
    assert np.mean(successes) >= least


def test_scripted_expert_serves_for_demonstrations():
    env = gym.make("PointMazeFlat/UMaze-v3", **RANDOM_CELLS)
    # Fails where successful episodes are rare
    assert rollout_episodes(env, scripted_expert(env), 5, noise=0.3, seed=0)


def test_scripted_expert_stays_at_the_goal():
    env = PointMazeFlatEnv("medium", terminate_on_success=False)
    obs, _ = env.reset(seed=0)
    for _ in range(400):
        obs, reward, *_ = env.step(env.scripted_action())
    assert reward == 1.0
    np.testing.assert_allclose(obs, [*env.goal, 0.0, 0.0], atol=0.01)


def test_planner_acts_on_an_observation_and_through_wrappers():
    env = gym.make("PointMazeFlat/Medium-v3", **RANDOM_CELLS)
    planner = WaypointPlanner(env)
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        for _ in range(20):
            action = planner.action(obs)
            assert env.action_space.contains(action)
            np.testing.assert_allclose(action, env.unwrapped.scripted_action(), atol=1e-4)
            obs, *_ = env.step(action)


def test_planner_applies_its_gains():
    env = PointMazeFlatEnv(goal_cell=(1, 2), start_noise=0.0)
    state = np.concatenate([env.goal + np.array([-0.1, 0.02]), [0.3, -0.1]])
    np.testing.assert_allclose(WaypointPlanner(env).action(state), [0.7, -0.1], atol=1e-6)
    np.testing.assert_allclose(WaypointPlanner(env, gain=5.0, damping=2.0).action(state), [-0.1, 0.1], atol=1e-6)
    assert WaypointPlanner(env, gain=100.0).action(state).tolist() == [1.0, -1.0]


def test_planner_searches_once_per_goal_cell(monkeypatch):
    calls = []
    monkeypatch.setattr(waypoints, "next_cells", lambda *args: calls.append(args) or next_cells(*args))
    env = PointMazeFlatEnv(**RANDOM_CELLS)
    goal_cells = set()
    for seed in range(20):
        env.reset(seed=seed)
        goal_cells.add(env.goal_cell)
        for _ in range(30):
            env.step(env.scripted_action())
    assert len(calls) == len(goal_cells)


def test_planner_follows_a_goal_that_moves_within_its_cell():
    env = PointMazeFlatEnv(start_cell=(3, 2), goal_noise=0.4, start_noise=0.0)
    planner = WaypointPlanner(env)
    for seed in range(5):
        env.reset(seed=seed)
        state = np.array([*env.cell_to_xy(env.goal_cell), 0.0, 0.0])
        np.testing.assert_allclose(planner.action(state), np.clip(10 * (env.goal - state[:2]), -1, 1), atol=1e-6)


def test_planner_leaves_a_wall_by_the_nearest_free_cell():
    env = PointMazeFlatEnv()
    in_wall_above_start = np.concatenate([env.cell_to_xy((1, 1)) + np.array([0.0, 0.55]), [0.0, 0.0]])
    assert env.xy_to_cell(in_wall_above_start) == (0, 1)
    # As from (1, 1): right, towards (1, 2), and down to its row
    assert WaypointPlanner(env).action(in_wall_above_start).tolist() == [1.0, -1.0]


def test_ant_has_no_scripted_expert():
    with pytest.raises(DatasetError, match=r"AntMazeFlat/UMaze-v4 has no scripted expert"):
        scripted_expert(gym.make("AntMazeFlat/UMaze-v4"))


@pytest.mark.skipif(not ANT_DATA.exists(), reason=f"{ANT_DATA.name} is not there")
def test_resets_look_like_the_first_observations_of_collected_data():
    with h5py.File(ANT_DATA) as file:
        ends = np.flatnonzero(file["terminals"][:] | file["timeouts"][:])
        first = file["observations"][:][np.concatenate([[0], ends[:-1] + 1])]
    env = AntMazeFlatEnv()
    env.reset(seed=0)
    resets = np.stack([env.reset()[0] for _ in range(2000)])
    np.testing.assert_array_equal(first[:, 2:], np.tile(resets[0, 2:], (len(first), 1)))
    np.testing.assert_array_equal(resets[:, 2:], np.tile(resets[0, 2:], (2000, 1)))
    assert (first[:, :2] >= resets[:, :2].min(axis=0) - 0.01).all()
    assert (first[:, :2] <= resets[:, :2].max(axis=0) + 0.01).all()
    quantiles = np.linspace(0, 1, 11)
    difference = np.quantile(first[:, :2], quantiles, axis=0) - np.quantile(resets[:, :2], quantiles, axis=0)
    assert np.abs(difference).max() < 0.2  # five standard errors of a decile
