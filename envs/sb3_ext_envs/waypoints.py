"""A scripted expert for the point maze: shortest path over cells, then a PD controller."""

import math
from collections import deque
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np

if TYPE_CHECKING:
    from sb3_ext_envs.mazes import Cell, FlatMazeEnv

NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0))


class WaypointPlanner:
    """
    Drives the ball of ``PointMazeFlatEnv`` to its goal, like the controller that collected D4RL's Maze2D.

    The ball heads for the centre of the next cell on the shortest path, and in the goal's cell for the goal:
    ``action = clip(gain * (target - position) - damping * velocity, -1, 1)``. Paths are searched once per goal cell.

    :param env: The environment, wrapped or not; its goal and its map are read.
    :param gain: Action per metre off the target.
    :param damping: Action per m/s.
    """

    def __init__(self, env: gym.Env, gain: float = 10.0, damping: float = 1.0):
        self.gain = gain
        self.damping = damping
        self._env: FlatMazeEnv = env.unwrapped  # type: ignore[assignment]
        self._next_cells: dict[Cell, dict[Cell, Cell]] = {}
        self._planned_for: tuple[Cell, tuple[float, float]] | None = None
        self._target = (0.0, 0.0)

    def action(self, obs: np.ndarray) -> np.ndarray:
        """
        :param obs: an observation, or any array that begins with x, y (m) and their velocities (m/s)
        :return: shape ``(2,)``, float32, in [-1, 1]
        """
        x, y, x_velocity, y_velocity = obs[:4].tolist()
        cell, goal = self._env.xy_to_cell((x, y)), tuple(self._env.goal.tolist())
        if (cell, goal) != self._planned_for:
            self._target = self._next_waypoint(cell, (x, y))
            self._planned_for = (cell, goal)
        # Plain floats: on two numbers they are several times faster than arrays
        x_action = self.gain * (self._target[0] - x) - self.damping * x_velocity
        y_action = self.gain * (self._target[1] - y) - self.damping * y_velocity
        return np.array([min(max(x_action, -1.0), 1.0), min(max(y_action, -1.0), 1.0)], np.float32)

    def _next_waypoint(self, cell: "Cell", xy: tuple[float, float]) -> tuple[float, float]:
        env = self._env
        if env.goal_cell not in self._next_cells:
            self._next_cells[env.goal_cell] = next_cells(env.maze_map, env.goal_cell)
        towards_goal = self._next_cells[env.goal_cell]
        if cell not in towards_goal:  # walls give way a little under a fast ball
            cell = min(towards_goal, key=lambda free: math.dist(env.cell_to_xy(free), xy))
        waypoint = env.goal if cell == env.goal_cell else env.cell_to_xy(towards_goal[cell])
        return waypoint[0], waypoint[1]


def next_cells(maze_map: "list[list[int]]", goal_cell: "Cell") -> "dict[Cell, Cell]":
    """
    Breadth-first search from the goal.

    :param maze_map: rows of 0 (free) and 1 (wall), with walls all around
    :param goal_cell: row and column of the goal
    :return: for each free cell that is connected to the goal, the next one on a shortest path; the goal's is itself
    """
    towards = {goal_cell: goal_cell}
    queue = deque([goal_cell])
    while queue:
        cell = queue.popleft()
        for rows, columns in NEIGHBOURS:
            neighbour = (cell[0] + rows, cell[1] + columns)
            if neighbour not in towards and not maze_map[neighbour[0]][neighbour[1]]:
                towards[neighbour] = cell
                queue.append(neighbour)
    return towards
