"""The environment that fits a dataset, and the check that it does."""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_ext.datasets.checks import check_spaces
from sb3_ext.datasets.d4rl import is_d4rl_name
from sb3_ext.datasets.dataset import Dataset, Observations, leaves, map_observations, registered_spec
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.transforms import (
    ClipActions,
    FlattenGoals,
    RelabelSuccess,
    StandardizeObservations,
    reward_factor_and_shift,
)
from sb3_ext_envs.mazes import FlatMazeEnv

# Observations of the flat mazes without and with the goal
_FLAT_SIZES = {"Ant": (29, 31), "Point": (4, 6)}
_FLAT_VERSIONS = {"Ant": "v4", "Point": "v3"}
_MAZES = ("UMaze", "Medium", "Large")

# Share of positions that may lie in a wall: bodies are wider than a point, recordings of other simulators differ a bit
MAX_SHARE_IN_WALLS = 0.01
CHECKED_ROWS = 10_000

# Metres. Within a radius of 0.45 around one goal, positions have a standard deviation of 0.23 along an axis; goals that
# are drawn within 1 m make it 0.6
ONE_GOAL_SPREAD = 0.4
ROBOTICS_GOAL_NOISE = 1.0

REPLAYED_STEPS = 32
# Share of the steps at the goal whose recorded reward may differ
MAX_WRONG_REWARDS = 0.1
# Share of a step's length by which a replayed step may miss the recorded one: other simulator versions miss by 0.01,
# other environments by 1 and more
MAX_REPLAY_ERROR = 0.3


def make_eval_env(dataset: Dataset, **kwargs: Any) -> gym.Env:
    """
    The environment to evaluate a policy in that was trained on this dataset: the one it was recorded in, with the same
    flattened goals and standardised observations, and with its own rewards, whatever was done to the dataset's.

    A flat AntMaze or Maze2D dataset gets ``AntMazeFlat/...`` or ``PointMazeFlat/...``.

    :param kwargs: arguments of ``gym.make``
    :raises DatasetError: the dataset does not name its environment, it is not installed, or it does not fit: other
        shapes, another maze, goal, reward or version. The message names the fix.
    """
    if kwargs.get("reward_shift"):
        raise DatasetError("Scores are of rewards without a shift: leave reward_shift out, or use make_training_env.")
    return _make(dataset, training=False, kwargs=kwargs)


def make_training_env(dataset: Dataset, **kwargs: Any) -> gym.Env:
    """
    Like :func:`make_eval_env`, but with rewards and ends of episodes changed as the dataset's were, to train on in it.

    :param kwargs: arguments of ``gym.make``
    :raises DatasetError: see :func:`make_eval_env`
    """
    return _make(dataset, training=True, kwargs=kwargs)


def _make(dataset: Dataset, training: bool, kwargs: dict[str, Any]) -> gym.Env:
    if not isinstance(dataset, Dataset):
        raise DatasetError(f"A Dataset is needed, not {dataset!r}: sb3_ext.datasets.load(...) gives one.")
    dataset = with_flat_maze(dataset)
    spec = registered_spec(dataset.metadata)
    if spec is None:
        raise DatasetError(
            f"{dataset.source} does not name its environment: dataset.with_metadata(env_id='...'), with the Gymnasium "
            "id that it was recorded in."
        )
    try:
        with warnings.catch_warnings():
            # The data decide on the version
            warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
            env = gym.make(spec, **kwargs)
    except Exception as error:  # Gymnasium's, and whatever a missing or broken simulator raises
        raise DatasetError(
            f"{dataset.source}: its environment {spec.id} cannot be made ({type(error).__name__}: {error})."
        ) from error
    try:
        wrapped = []
        for transform in dataset.metadata.transforms:
            before, env = env, transform.wrap_env(env, training)
            wrapped += [transform.name] if env is not before else []
        # What demonstrations must have gone through too
        env.unwrapped.dataset_transforms = wrapped  # type: ignore[attr-defined]
        check_env(dataset, env)
    except DatasetError:
        env.close()
        raise
    return env


def with_flat_maze(dataset: Dataset) -> Dataset:
    """
    Name the environment of flat AntMaze and Maze2D data, whose files name one with Dict observations or none: the maze,
    its coordinates, whether goals move, and whether the goal is part of the observation.
    """
    metadata = dataset.metadata
    name = metadata.dataset_id or ""
    d4rls = re.match(r"(antmaze|maze2d)-(umaze|medium|large)(-dense)?", name) if is_d4rl_name(name) else None
    match = re.fullmatch(r"(Ant|Point)Maze(?:_|Flat/)(UMaze|Medium|Large)\w*-v\d+", metadata.env_id or "")
    is_flat = isinstance(dataset.frames, np.ndarray) and not _find(dataset, FlattenGoals)
    if metadata.env_spec is not None or not is_flat or not (d4rls or match):
        return dataset
    assert isinstance(dataset.frames, np.ndarray)
    if d4rls:
        agent = {"antmaze": "Ant", "maze2d": "Point"}[d4rls[1]]
        maze = {"umaze": "UMaze", "medium": "Medium", "large": "Large"}[d4rls[2]]
        if d4rls[3]:
            return dataset.with_metadata(env_id=None)  # there is no such maze with dense rewards
    else:
        assert match is not None
        agent, maze = match.groups()
    size = int(np.prod(dataset.frames.shape[1:]))
    env_id = f"{agent}MazeFlat/{maze}-{_FLAT_VERSIONS[agent]}"
    if size not in _FLAT_SIZES[agent]:
        return dataset.with_metadata(env_id=env_id)  # which will be found not to fit
    arguments: dict[str, Any] = {"goal_observable": size == _FLAT_SIZES[agent][1]}
    if d4rls:
        arguments["coordinates"] = "d4rl"
        if agent == "Point":
            arguments["terminate_on_success"] = False
    elif agent == "Ant" and _has_moving_goal(dataset):
        arguments["goal_noise"] = ROBOTICS_GOAL_NOISE
    spec = gym.registry[env_id]
    named = replace(spec, kwargs={**spec.kwargs, **arguments})
    return dataset.with_metadata(env_id=spec.id, env_spec=named.to_json())


def _has_moving_goal(dataset: Dataset) -> bool:
    """Whether successes are spread wider than around one goal. Data of Gymnasium-Robotics moves it in each episode."""
    positions = positions_of(dataset)
    if positions is None or dataset.successes is None or not dataset.successes.any():
        return False
    reached = positions[dataset.next_rows[dataset.successes]]
    return bool(reached.std(axis=0).max() > ONE_GOAL_SPREAD)


def _find(dataset: Dataset, transform_class: type) -> list[Any]:
    return [transform for transform in dataset.metadata.transforms if isinstance(transform, transform_class)]


def check_env(dataset: Dataset, env: gym.Env) -> None:
    """
    :raises DatasetError: the dataset was not recorded in an environment like this one.
    """
    _check_spaces(dataset, env)
    limit = env.spec.max_episode_steps if env.spec else None
    if limit is not None and dataset.lengths.max() > limit:
        raise DatasetError(
            f"{dataset.source} has episodes of {dataset.lengths.max()} steps, {env.spec.id} ends after {limit}: pass "  # type: ignore[union-attr]
            f"max_episode_steps={dataset.lengths.max()}, or use the version that the data were recorded in."
        )
    maze = maze_of(env)
    positions = positions_of(dataset)
    if maze is not None and positions is not None:
        _check_maze(dataset, positions, maze, env)
        _check_goal(dataset, positions, maze, env)
    _check_replay(dataset, env)


def _check_spaces(dataset: Dataset, env: gym.Env) -> None:
    space = env.observation_space
    try:
        check_spaces(dataset, space, env.action_space)
    except DatasetError as error:
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
        sizes = [part.shape[0] for part in parts if part.shape]
        sizes += [frames.shape[-1] for frames in leaves(dataset.frames).values()]
        raise DatasetError(f"{error} The environment is {_name(env)}. {_version_hint(sizes)}".strip()) from error


def _version_hint(sizes: list[int]) -> str:
    if {105, 111, 113} & set(sizes):
        return (
            "Ants of version v5 add 78 contact forces to the observation: make_eval_env(dataset, "
            "include_cfrc_ext_in_observation=False), or use version v4."
        )
    return ""


@dataclass(frozen=True)
class Maze:
    """
    What an environment tells about its maze.

    :param maze_map: whether a cell is a wall, shape (rows, columns)
    :param to_cell: x and y in metres to row and column
    :param to_xy: row and column to x and y of the cell's centre in metres
    :param cell_size: width of a cell in metres
    :param goal_cell: cell of the goal where that is always the same
    :param goal: x and y of that cell's goal in metres
    :param goal_noise: how far from there it may be in an episode, in metres
    :param radius: distance in metres at which it counts as reached
    """

    maze_map: np.ndarray
    to_cell: Callable[[np.ndarray], Any]
    to_xy: Callable[[tuple[int, int]], np.ndarray]
    cell_size: float
    goal_cell: tuple[int, int] | None = None
    goal: np.ndarray | None = None
    goal_noise: float = 0.0
    radius: float = 0.45

    def cells(self, positions: np.ndarray) -> np.ndarray:
        """Row and column of each position, shape ``(n, 2)``; positions in metres, shape ``(n, 2)``."""
        return np.array([self.to_cell(position) for position in positions.astype(np.float64)])

    def share_in_walls(self, positions: np.ndarray) -> float:
        """Share of the positions that lie in walls or outside."""
        cells = self.cells(positions)
        inside = np.all((cells >= 0) & (cells < self.maze_map.shape), axis=1)
        rows, columns = (cells * inside.reshape(-1, 1)).T
        return float(1 - np.mean(inside & ~self.maze_map[rows, columns]))


def maze_of(env: gym.Env) -> Maze | None:
    """The maze of one of our environments or of Gymnasium-Robotics'; None for other environments."""
    unwrapped: Any = env.unwrapped
    if isinstance(unwrapped, FlatMazeEnv):
        return Maze(
            np.array(unwrapped.maze_map) == 1,
            unwrapped.xy_to_cell,
            unwrapped.cell_to_xy,
            unwrapped.CELL_SIZE,
            goal_cell=(cell := unwrapped.fixed_goal_cell),
            goal=None if cell is None else unwrapped.cell_to_xy(cell),
            goal_noise=unwrapped.goal_noise,
            radius=unwrapped.success_radius,
        )
    maze: Any = getattr(unwrapped, "maze", None)
    if hasattr(maze, "cell_xy_to_rowcol"):  # Gymnasium-Robotics: letters in the map mark starts and goals
        walls = np.array([[cell == 1 for cell in row] for row in maze.maze_map])
        return Maze(walls, maze.cell_xy_to_rowcol, maze.cell_rowcol_to_xy, maze.maze_size_scaling)
    return None


def raw_frames(dataset: Dataset) -> Observations:
    """Observations before they were standardised."""
    frames = dataset.frames

    def undo(obs: np.ndarray, mean: Any, std: Any) -> np.ndarray:
        return obs * (np.array(std, np.float32) + np.float32(transform.epsilon)) + np.array(mean, np.float32)

    for transform in reversed(_find(dataset, StandardizeObservations)):
        frames = map_observations(undo, frames, transform.mean, transform.std)
    return frames


def positions_of(dataset: Dataset) -> np.ndarray | None:
    """x and y of every frame in metres, shape ``(n_frames, 2)``; None where the observations do not hold them."""
    frames = raw_frames(dataset)
    if isinstance(frames, Mapping):
        return frames.get("achieved_goal")
    flattened = _find(dataset, FlattenGoals)
    if flattened and "Ant" in (dataset.env_id or "") and flattened[0].keys[0] != "achieved_goal":
        return None  # an ant's observation without its position
    return frames[:, :2]


def _check_maze(dataset: Dataset, positions: np.ndarray, maze: Maze, env: gym.Env) -> None:
    sample = _sample(positions[dataset.rows])
    in_walls = maze.share_in_walls(sample)
    if in_walls <= MAX_SHARE_IN_WALLS:
        return
    fitting = [env_id for env_id in _other_mazes(env) if _fits(env_id, sample)]
    fix = (
        f"They fit {fitting[0]}: dataset.with_metadata(env_id={fitting[0]!r}, env_spec=None)."
        if fitting
        else "Pass the maze_map of the recording, or the coordinates, to make_eval_env."
    )
    raise DatasetError(
        f"{dataset.source} was recorded in another maze: {100 * in_walls:.0f} % of its positions lie in walls of "
        f"{_name(env)}. {fix}"
    )


def _sample(rows: np.ndarray) -> np.ndarray:
    return rows[:: max(len(rows) // CHECKED_ROWS, 1)]


def _name(env: gym.Env) -> str:
    return env.spec.id if env.spec else str(env)


def _other_mazes(env: gym.Env) -> list[str]:
    """Ids of the same robot's other mazes."""
    own = _name(env)
    others = [re.sub("|".join(_MAZES), maze, own) for maze in _MAZES]
    return [env_id for env_id in others if env_id != own and env_id in gym.registry]


def _fits(env_id: str, positions: np.ndarray) -> bool:
    env = gym.make(env_id)
    maze = maze_of(env)
    env.close()
    return maze is not None and maze.share_in_walls(positions) <= MAX_SHARE_IN_WALLS


def _check_goal(dataset: Dataset, positions: np.ndarray, maze: Maze, env: gym.Env) -> None:
    """Where the goal is fixed, successful steps have to end in its cell, and rewards to be 1 there."""
    if maze.goal_cell is None:
        return
    if dataset.successes is None:
        _check_sparse_rewards(dataset, positions, maze, env)
    if dataset.successes is None or not dataset.successes.any():
        return
    cells = maze.cells(_sample(positions[dataset.next_rows[dataset.successes]]))
    most = np.unique(cells, axis=0, return_counts=True)
    cell = tuple(int(i) for i in most[0][most[1].argmax()])
    if cell != maze.goal_cell:
        raise DatasetError(
            f"{dataset.source} has its goal in cell {cell}, {_name(env)} in {maze.goal_cell}: "
            f"make_eval_env(dataset, goal_cell={cell})."
        )
    _check_sparse_rewards(dataset, positions, maze, env)


def _check_sparse_rewards(dataset: Dataset, positions: np.ndarray, maze: Maze, env: gym.Env) -> None:
    """Rewards have to be 0, and 1 at the goal, apart from what transforms made of them."""
    if _find(dataset, RelabelSuccess):
        return
    factor, shift = reward_factor_and_shift(dataset.metadata.transforms)
    found = (np.unique(dataset.rewards)[:10].astype(np.float64) - shift) / factor
    if not np.isclose(found[:, None], (0.0, 1.0), atol=1e-3).any(axis=1).all():
        raise DatasetError(
            f"{dataset.source} has the rewards {found.tolist()}, {_name(env)} gives 0, and 1 at the goal. Load the raw "
            "rewards and use reward_shift=, or RelabelSuccess."
        )
    if maze.goal is None or maze.goal_noise > 0:
        return
    known = dataset.next_rows != dataset.rows
    distance = np.linalg.norm(positions[dataset.next_rows] - maze.goal, axis=1)
    is_rewarded = (dataset.rewards - shift) / factor > 0.5
    # Radii differ a little between recordings
    wrong = known & np.where(is_rewarded, distance > 1.25 * maze.radius, distance < 0.75 * maze.radius)
    relevant = known & (is_rewarded | (distance < 0.75 * maze.radius))
    if wrong.sum() > MAX_WRONG_REWARDS * max(relevant.sum(), 1) and wrong.sum() > 10:
        raise DatasetError(
            f"{dataset.source} has other rewards than {_name(env)}, which gives 1 within {maze.radius} m of "
            f"{maze.goal.tolist()}: {wrong.sum()} of {relevant.sum()} steps differ. Use RelabelSuccess(goal=...), "
            "or pass the recording's goal_cell= and success_radius=."
        )


def _check_replay(dataset: Dataset, env: gym.Env) -> None:
    """Where the observation shows the whole state, recorded steps are played again: they lead to the same place."""
    unwrapped: Any = env.unwrapped
    is_maze = isinstance(unwrapped, FlatMazeEnv)
    if is_maze and unwrapped.coordinates != "robotics":
        warnings.warn(
            f"{dataset.source}: D4RL's robots are not quite those of {_name(env)} (docs/environments.md); scores are "
            "not D4RL's.",
            stacklevel=4,
        )
        return
    simulator: Any = unwrapped._robot if is_maze else unwrapped
    frames = raw_frames(dataset)
    was_changed = _find(dataset, FlattenGoals) or _find(dataset, ClipActions)
    if was_changed or not hasattr(simulator, "set_state") or not isinstance(frames, np.ndarray):
        return
    n_state = simulator.model.nq + simulator.model.nv
    n_hidden = 0 if is_maze else n_state - frames[0].size  # the position along the track, on which nothing depends
    if n_hidden not in (0, 1):
        return
    factor, shift = reward_factor_and_shift(dataset.metadata.transforms)
    has_own_rewards = not is_maze and not _find(dataset, RelabelSuccess)
    rng = np.random.default_rng(0)
    candidates = np.flatnonzero(dataset.next_rows != dataset.rows)
    errors, steps, reward_errors = [], [], []
    env.reset()  # without a seed: whoever gets this environment decides on it
    for i in rng.choice(candidates, min(REPLAYED_STEPS, len(candidates)), replace=False):
        before, after = (
            frames[row][: n_state - n_hidden].astype(np.float64) for row in (dataset.rows[i], dataset.next_rows[i])
        )
        state = np.concatenate([np.zeros(n_hidden), before])
        simulator.set_state(state[: simulator.model.nq], state[simulator.model.nq :])
        obs, reward, *_ = simulator.step(dataset.actions[i])
        errors.append(np.abs(obs - after))
        steps.append(np.abs(after - before))
        if has_own_rewards:
            reward_errors.append(abs(float(reward) - (float(dataset.rewards[i]) - shift) / factor))
    name = _name(env)
    # The worst entry tells: another gravity shows in a single one. What hardly moves is held against what does.
    usual = np.median(steps, axis=0)
    worst = (np.median(errors, axis=0) / np.maximum(usual, 0.01 * usual.max() + 1e-6)).max()
    if worst > MAX_REPLAY_ERROR:
        message = (
            f"{dataset.source} was not recorded in {name}: from the same states the same actions lead elsewhere (median"
            f" error {worst:.2f} of a step). Name the right version: dataset.with_metadata(env_id='...')."
        )
        if not is_d4rl_name(dataset.metadata.dataset_id or ""):
            raise DatasetError(message)
        warnings.warn(message, stacklevel=4)  # an older MuJoCo, for which there is no other version
    if reward_errors and np.median(reward_errors) > 0.1 * dataset.rewards.std() / factor + 1e-3:
        raise DatasetError(
            f"{dataset.source} has other rewards than {name} gives for the same steps (median difference "
            f"{np.median(reward_errors):.3g}). Were they changed? Load the raw ones and use transforms, which "
            "evaluation leaves out."
        )
