"""AntMaze and PointMaze of Gymnasium-Robotics with flat observations and a fixed goal, as in D4RL."""

import math
import operator
import tempfile
import xml.etree.ElementTree as ET
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle

from sb3_ext_envs.registration import MAZES
from sb3_ext_envs.rendering import check_display, render
from sb3_ext_envs.waypoints import WaypointPlanner

Cell = tuple[int, int]

RANDOM = "random"
START_CELL: Cell = (1, 1)
# Metres, m/s, rad/s and quaternions. `check_env` and normalisers complain about infinite bounds. Positions stay below
# 40 and the fastest joints at some 20 rad/s, so nothing is clipped in use.
OBSERVATION_BOUND = 100.0


@dataclass(frozen=True)
class Coordinates:
    """
    Where the cells of a maze lie, and the defaults that go with it.

    In cell widths, cell (row, column) lies at ``(row - origin[0]) * row_axis + (column - origin[1]) * column_axis``.

    :param row_axis: Direction in which rows are counted: x and y of a unit vector along an axis.
    :param column_axis: The same for columns.
    :param origin: Row and column of what lies at x = y = 0. None is the centre of the maze.
    :param wall_offset: Added to x and to y of every wall, in metres.
    :param start_cell: Default start: a cell or ``"random"``.
    :param goal_cells: Default goal of each maze.
    :param start_noise: Default of the argument of this name, in metres.
    :param success_radius: Default of the argument of this name, in metres.
    """

    row_axis: tuple[int, int]
    column_axis: tuple[int, int]
    origin: tuple[float, float] | None
    wall_offset: float
    start_cell: Cell | str
    goal_cells: dict[str, Cell]
    start_noise: float
    success_radius: float


def robotics_coordinates(start_noise: float) -> Coordinates:
    """Those of Gymnasium-Robotics: x to the right and y upwards from the centre of the map as it is printed."""
    return Coordinates(
        row_axis=(0, -1),
        column_axis=(1, 0),
        origin=None,
        wall_offset=0.0,
        start_cell=START_CELL,
        goal_cells={"umaze": (3, 1), "medium": (6, 6), "large": (7, 10)},  # across the maze from the start
        start_noise=start_noise,
        success_radius=0.45,
    )


# https://github.com/Farama-Foundation/D4RL/blob/master/d4rl/locomotion/maze_env.py
D4RL_ANT = Coordinates(
    row_axis=(0, 1),
    column_axis=(1, 0),
    origin=START_CELL,
    wall_offset=0.0,
    start_cell=START_CELL,
    goal_cells={"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)},
    start_noise=0.1,
    success_radius=0.5,
)
# https://github.com/Farama-Foundation/D4RL/blob/master/d4rl/pointmaze/maze_model.py
D4RL_POINT = Coordinates(
    row_axis=(1, 0),
    column_axis=(0, 1),
    origin=(0, 0),
    # The body is put at (1.2, 1.2), from where positions count, and the wall of cell (0, 0) at (1, 1)
    wall_offset=-0.2,
    start_cell=RANDOM,
    goal_cells={"umaze": (1, 1), "medium": (6, 6), "large": (7, 9)},
    start_noise=0.1,
    success_radius=0.5,
)


class FlatMazeEnv(gym.Env[np.ndarray, np.ndarray], EzPickle):
    """
    A maze of Gymnasium-Robotics with a flat observation: what ``AntMazeFlatEnv`` and ``PointMazeFlatEnv`` share.

    The maze, its MuJoCo model and its physics are those of Gymnasium-Robotics. The reward is 1.0 at each step that ends
    within ``success_radius`` of the goal and 0.0 elsewhere, plus ``reward_shift``. ``info["is_success"]`` is present at
    every step and stays true once it was true. All draws come from the generator that ``reset(seed=...)`` seeds.

    Attributes of the current episode (before the first reset: of the given cells, and of the default ones where a cell
    is ``"random"``): ``goal``, x and y of the goal, shape ``(2,)``, in metres; ``goal_cell`` and ``start_cell``, tuples
    (row, column). ``maze_map`` is the map, rows of 0 (free) and 1 (wall); ``free_cells`` lists its free cells.

    :param maze: ``"umaze"``, ``"medium"`` or ``"large"``.
    :param reward_shift: Added to every reward; -1.0 is the usual choice for training, for instance of IQL on AntMaze.
        Scores are reported without it: evaluate with 0.0 or by ``info["is_success"]``.
    :param start_cell: Row and column of the cell in which an episode starts, or ``"random"``. None is (1, 1), or
        ``"random"`` in the point maze with ``coordinates="d4rl"``.
    :param goal_cell: Row and column of the goal's cell, ``"random"``, or None for the default of the maze and the
        coordinates. ``"random"`` draws a new free cell at each reset; start and goal cell always differ.
    :param start_noise: The start is drawn uniformly from ``cell_to_xy`` plus or minus this, per coordinate, in metres.
        None is the default of the class, and 0.1 with ``coordinates="d4rl"``.
    :param goal_noise: The same for the goal, 0 by default.
    :param goal_observable: Append the goal's x and y to the observation.
    :param terminate_on_success: End the episode at the first step within the goal's radius. With ``False`` it goes on,
        and each step within the radius is rewarded.
    :param coordinates: ``"robotics"``, or ``"d4rl"`` for policies that are trained on D4RL's own files: it moves the
        maze to where D4RL has it and takes D4RL's cells, start noise and radius as defaults. The maps are the same.
    :param success_radius: The goal's radius in metres. None is 0.45, and 0.5 with ``coordinates="d4rl"``.
    :param render_mode: ``"rgb_array"``, ``"human"`` or None.
    :param width: Width of the picture in pixels.
    :param height: Height of the picture in pixels.
    :raises ValueError: An argument has no meaning in this maze; the message names those that have.
    :raises RuntimeError: ``render_mode="human"`` without a display.
    """

    CELL_SIZE: float  # metres
    WALL_HALF_HEIGHT: float  # metres
    BODY_RADIUS: float  # metres; of the robot as it starts, limbs included
    COORDINATES: Mapping[str, Coordinates]

    def __init__(
        self,
        maze: str = "umaze",
        reward_shift: float = 0.0,
        start_cell: Sequence[int] | str | None = None,
        goal_cell: Sequence[int] | str | None = None,
        start_noise: float | None = None,
        goal_noise: float = 0.0,
        goal_observable: bool = False,
        terminate_on_success: bool = True,
        coordinates: str = "robotics",
        success_radius: float | None = None,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
    ):
        self._check_names(maze, coordinates, render_mode)
        self.maze = maze
        self.maze_map = _maze_map(maze)
        self.free_cells: list[Cell] = [
            (row, column) for row, line in enumerate(self.maze_map) for column, wall in enumerate(line) if not wall
        ]
        self.coordinates = coordinates
        self._coordinates = defaults = self.COORDINATES[coordinates]
        n_rows, n_columns = len(self.maze_map), len(self.maze_map[0])
        self._origin = defaults.origin or ((n_rows - 1) / 2, (n_columns - 1) / 2)
        self.reward_shift = reward_shift
        self.goal_observable = goal_observable
        self.terminate_on_success = terminate_on_success
        self.render_mode = render_mode
        self.success_radius = self._checked_radius(
            defaults.success_radius if success_radius is None else success_radius
        )
        self.start_noise = self._checked_noise(
            "start_noise", defaults.start_noise if start_noise is None else start_noise
        )
        self.goal_noise = self._checked_noise("goal_noise", goal_noise)
        default_goal = defaults.goal_cells[maze]
        self._start_choice = self._checked_cell("start_cell", defaults.start_cell if start_cell is None else start_cell)
        self._goal_choice = self._checked_cell("goal_cell", default_goal if goal_cell is None else goal_cell)
        self._check_choices()
        self.start_cell = self._start_choice or START_CELL
        self.goal_cell = self._goal_choice or default_goal
        self.goal = self.cell_to_xy(self.goal_cell)

        self._robot = self._make_robot(width, height)
        self._state = np.concatenate([self._robot.init_qpos, self._robot.init_qvel])
        self._is_success = False
        obs_dim = len(self._state) + 2 * goal_observable
        self.observation_space = spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (obs_dim,), np.float32)
        self.action_space = self._robot.action_space

    @abstractmethod
    def _robot_model(self) -> tuple[Callable[..., Any], Path]:
        """Maker of the robot's simulator and the MJCF file of the robot in an empty world. Imports the simulator."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._draw_cells()
        start = self.cell_to_xy(self.start_cell) + self.np_random.uniform(-self.start_noise, self.start_noise, 2)
        self.goal = self.cell_to_xy(self.goal_cell) + self.np_random.uniform(-self.goal_noise, self.goal_noise, 2)
        # Before the simulator's reset, which moves the red ball of the picture to it
        self._robot.model.site("target").pos[:2] = self.goal
        self._robot.init_qpos[:2] = start
        self._state, _ = self._robot.reset()
        self._is_success = False
        return self._observation(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._state = self._robot.step(action)[0]
        at_goal = math.dist(self._state[:2], self.goal) <= self.success_radius
        self._is_success |= at_goal
        terminated = (self.terminate_on_success and self._is_success) or self._has_failed()
        reward = float(at_goal + self.reward_shift)
        return self._observation(), reward, terminated, False, {"is_success": self._is_success}

    def _has_failed(self) -> bool:
        """Whether the current state ends the episode without success."""
        return False

    def _observation(self) -> np.ndarray:
        obs = np.concatenate([self._state, self.goal]) if self.goal_observable else self._state
        return obs.clip(-OBSERVATION_BOUND, OBSERVATION_BOUND).astype(np.float32)

    @property
    def fixed_goal_cell(self) -> Cell | None:
        """Cell of the goal, or None where each episode draws one."""
        return self._goal_choice

    def cell_to_xy(self, cell: Sequence[int]) -> np.ndarray:
        """
        :param cell: row and column
        :return: x and y in metres of where starts and goals in this cell are, shape ``(2,)``: its centre, but for
            D4RL's point maze, where the walls lie 0.2 m off
        """
        rows, columns = cell[0] - self._origin[0], cell[1] - self._origin[1]
        row_axis, column_axis = self._coordinates.row_axis, self._coordinates.column_axis
        return self.CELL_SIZE * np.array([rows * row_axis[i] + columns * column_axis[i] for i in range(2)])

    def xy_to_cell(self, xy: Sequence[float] | np.ndarray) -> Cell:
        """
        :param xy: x and y in metres, shape ``(2,)``
        :return: row and column of the cell around it, as the walls lie
        """
        x, y = (coordinate - self._coordinates.wall_offset for coordinate in xy[:2])
        axes = (self._coordinates.row_axis, self._coordinates.column_axis)
        along_row_axis, along_column_axis = ((x * axis[0] + y * axis[1]) / self.CELL_SIZE for axis in axes)
        return math.floor(along_row_axis + self._origin[0] + 0.5), math.floor(along_column_axis + self._origin[1] + 0.5)

    def _wall_xy(self, cell: Sequence[int]) -> np.ndarray:
        """x and y of the centre between a cell's borders."""
        return self.cell_to_xy(cell) + self._coordinates.wall_offset

    def _draw_cells(self) -> None:
        if self._start_choice is None:
            # A fixed goal is no start; a goal yet to be drawn avoids the start
            self.start_cell = self._draw_free_cell(avoid=self._goal_choice)
        if self._goal_choice is None:
            self.goal_cell = self._draw_free_cell(avoid=self.start_cell)

    def _draw_free_cell(self, avoid: Cell | None) -> Cell:
        cells = [cell for cell in self.free_cells if cell != avoid]
        return cells[self.np_random.integers(len(cells))]

    def _check_names(self, maze: str, coordinates: str, render_mode: str | None) -> None:
        if maze not in MAZES:
            raise ValueError(f"Unknown maze {maze!r}: known are {', '.join(map(repr, MAZES))}")
        if coordinates not in self.COORDINATES:
            raise ValueError(f"Unknown coordinates {coordinates!r}: known are {', '.join(map(repr, self.COORDINATES))}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, not {render_mode!r}")

    def _checked_cell(self, name: str, cell: Sequence[int] | str) -> Cell | None:
        """None stands for a cell that is drawn."""
        if isinstance(cell, str) and cell == RANDOM:
            return None
        try:
            row, column = map(operator.index, cell)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            row = column = -1
        if (row, column) not in self.free_cells:
            raise ValueError(
                f"{name}={cell!r} must be 'random' or a free cell (row, column) of the maze {self.maze!r}. "
                f"Its free cells: {', '.join(map(str, self.free_cells))}"
            )
        return row, column

    def _checked_radius(self, radius: float) -> float:
        if not 0.0 < radius < math.inf:
            raise ValueError(f"success_radius={radius} must be positive and finite, in metres")
        return radius

    def _checked_noise(self, name: str, noise: float) -> float:
        # Any more, and the robot would start in a wall or the goal lie where the robot cannot stand
        most = self.CELL_SIZE / 2 - self.BODY_RADIUS - abs(self._coordinates.wall_offset)
        if not 0.0 <= noise <= most:
            raise ValueError(f"{name}={noise} must lie in [0, {most:g}] m: a cell is {self.CELL_SIZE:g} m wide")
        return noise

    def _check_choices(self) -> None:
        if self._goal_choice is None and not self.goal_observable:
            raise ValueError(
                'goal_cell="random" needs goal_observable=True: without it nobody can tell where the goal is. '
                "Fix the goal_cell otherwise."
            )
        if self._start_choice is not None and self._start_choice == self._goal_choice:
            raise ValueError(f"start_cell and goal_cell must differ, both are {self._start_choice}")

    def _make_robot(self, width: int, height: int) -> Any:
        """The robot's simulator in this maze."""
        if self.render_mode == "human":
            check_display()
        make, robot_file = self._robot_model()
        # Not through Gymnasium-Robotics' own environment: it leaves this file behind, under a name made of the time,
        # which processes that start together may share
        with tempfile.TemporaryDirectory() as folder:
            maze_file = Path(folder, "maze.xml")
            self._write_maze(robot_file, maze_file)
            robot = make(xml_file=str(maze_file), render_mode=self.render_mode, width=width, height=height)
        # The whole maze from above, slightly from the south; the default camera sees a few metres
        n_rows, n_columns = len(self.maze_map), len(self.maze_map[0])
        distance = 1.3 * self.CELL_SIZE * max(n_rows, n_columns)
        centre = (self._wall_xy((0, 0)) + self._wall_xy((n_rows - 1, n_columns - 1))) / 2
        camera = {
            "lookat": np.array([*centre, 0.0]),
            "distance": distance,
            "azimuth": 90.0,
            "elevation": -70.0,
            "type": 0,
        }
        robot.mujoco_renderer.default_cam_config = camera
        return robot

    def _write_maze(self, robot_file: Path, maze_file: Path) -> None:
        """MJCF of the robot among the walls, the same as Gymnasium-Robotics writes."""
        tree = ET.parse(robot_file)
        world = tree.find(".//worldbody")
        assert world is not None
        half, half_height = self.CELL_SIZE / 2, self.WALL_HALF_HEIGHT
        wall = {"type": "box", "material": "", "contype": "1", "conaffinity": "1", "rgba": "0.7 0.5 0.3 1.0"}
        wall["size"] = f"{half} {half} {half_height}"
        for row, line in enumerate(self.maze_map):
            for column in (column for column, is_wall in enumerate(line) if is_wall):
                x, y = self._wall_xy((row, column)).tolist()
                ET.SubElement(world, "geom", wall, name=f"block_{row}_{column}", pos=f"{x} {y} {half_height}")
        target = {"name": "target", "type": "sphere", "rgba": "1 0 0 0.7"}
        ET.SubElement(world, "site", target, pos=f"0 0 {half_height}", size=f"{0.2 * self.CELL_SIZE}")
        tree.write(maze_file)

    def render(self) -> Any:
        """
        :return: picture of shape ``(height, width, 3)``, uint8, for ``render_mode="rgb_array"``
        :raises RuntimeError: MuJoCo finds no way to draw on this machine; the message names ``MUJOCO_GL``.
        """
        return render(self._robot, self.render_mode)

    def close(self) -> None:
        self._robot.close()


class AntMazeFlatEnv(FlatMazeEnv):
    """
    The ant of AntMaze-v4 (Fu et al. 2020, https://arxiv.org/abs/2004.07219) in a maze of 4 m wide cells.

    The observation has D4RL's 29 entries: x, y and z of the torso (m), its quaternion (w, x, y, z), 8 joint angles
    (rad), linear and angular velocity of the torso (m/s, rad/s) and 8 joint velocities (rad/s); with
    ``goal_observable=True``, x and y of the goal (m) follow. The 8 actions are torques in [-1, 1]; a step takes 0.05 s.

    Made through ``gym.make("AntMazeFlat/UMaze-v4")``, an episode is truncated after ``max_episode_steps`` (an argument
    of ``gym.make``; 700 in the U-maze, else 1000).

    :param terminate_on_flip: End the episode when the torso's up axis points below the horizon. An ant on its back
        hardly ever gets up again, so that this saves the rest of the episode. Such a step is rewarded like any other.
    :param kwargs: Arguments of ``FlatMazeEnv``; ``start_noise`` is 1 m by default, and 0.1 m with
        ``coordinates="d4rl"``, which changes the maze alone: the ant stays Gymnasium's, of five times the torque and
        half the time step of D4RL's.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's own form)
    CELL_SIZE = 4.0
    WALL_HALF_HEIGHT = 1.0
    BODY_RADIUS = 0.9
    # The noise is Gymnasium-Robotics' own, a quarter of a cell, and with it that of data collected there
    COORDINATES = {"robotics": robotics_coordinates(start_noise=1.0), "d4rl": D4RL_ANT}  # noqa: RUF012

    def __init__(self, maze: str = "umaze", terminate_on_flip: bool = False, **kwargs: Any):
        EzPickle.__init__(self, maze, terminate_on_flip, **kwargs)
        super().__init__(maze, **kwargs)
        self.terminate_on_flip = terminate_on_flip

    def _robot_model(self) -> tuple[Callable[..., Any], Path]:
        from gymnasium.envs.mujoco import ant_v4

        # Without noise on the joints, as in Gymnasium-Robotics
        make = partial(ant_v4.AntEnv, exclude_current_positions_from_observation=False, reset_noise_scale=0.0)
        return make, Path(ant_v4.__file__).parent / "assets" / "ant.xml"

    def _has_failed(self) -> bool:
        if not self.terminate_on_flip:
            return False
        qx, qy = self._state[4:6]
        # z component of the up axis, turned by the unit quaternion
        return bool(1.0 - 2.0 * (qx * qx + qy * qy) < 0.0)


class PointMazeFlatEnv(FlatMazeEnv):
    """
    The ball of PointMaze-v3, pushed through a maze of 1 m wide cells.

    The observation has 4 entries, x, y (m) and their velocities (m/s), as in D4RL's Maze2D; with
    ``goal_observable=True``, x and y of the goal (m) follow. The 2 actions are forces along x and y in [-1, 1], where 1
    is 100 N on 4.2 kg; a step takes 0.01 s.

    Made through ``gym.make("PointMazeFlat/UMaze-v3")``, an episode is truncated after ``max_episode_steps`` (an
    argument of ``gym.make``; 300, 600 and 800 in the U-maze, the medium and the large maze).

    :param maze: See ``FlatMazeEnv``.
    :param kwargs: Arguments of ``FlatMazeEnv``; ``start_noise`` is 0.25 m by default, and 0.1 m with
        ``coordinates="d4rl"``.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 100}  # noqa: RUF012 (Gymnasium's own form)
    CELL_SIZE = 1.0
    WALL_HALF_HEIGHT = 0.2
    BODY_RADIUS = 0.1
    COORDINATES = {"robotics": robotics_coordinates(start_noise=0.25), "d4rl": D4RL_POINT}  # noqa: RUF012

    def __init__(self, maze: str = "umaze", **kwargs: Any):
        EzPickle.__init__(self, maze, **kwargs)
        super().__init__(maze, **kwargs)
        self._planner = WaypointPlanner(self)

    def _robot_model(self) -> tuple[Callable[..., Any], Path]:
        from gymnasium_robotics.envs.maze import point

        return point.PointEnv, Path(point.__file__).parents[1] / "assets" / "point" / "point.xml"

    def scripted_action(self) -> np.ndarray:
        """
        Action of ``WaypointPlanner`` at the current state. It sees the goal also where the agent does not.

        :return: shape ``(2,)``, float32, clipped to [-1, 1]
        """
        return self._planner.action(self._state)


def _maze_map(maze: str) -> list[list[int]]:
    from gymnasium_robotics.envs.maze import maps

    rows = {"umaze": maps.U_MAZE, "medium": maps.MEDIUM_MAZE, "large": maps.LARGE_MAZE}[maze]
    return [list(row) for row in rows]
