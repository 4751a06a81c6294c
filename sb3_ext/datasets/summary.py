"""What is in a dataset: numbers, a picture, and a list of what is wrong with it."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from sb3_ext.datasets.checks import check_rewards
from sb3_ext.datasets.dataset import ACTION_TOLERANCE, Dataset, leaves
from sb3_ext.datasets.environments import make_eval_env, maze_of, positions_of
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.load import DatasetLike, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Positions drawn in a picture
PLOTTED_POSITIONS = 50_000


def summarize(dataset: Dataset) -> dict[str, str]:
    """Readable facts by name."""
    metadata = dataset.metadata
    facts = {
        "source": dataset.source,
        "environment": metadata.env_id or "not named",
        "observations": ", ".join(f"{key} {_shape(part)}".strip() for key, part in leaves(dataset.frames).items()),
        "actions": f"{_shape(dataset.actions)}, {dataset.actions.min():.3g} to {dataset.actions.max():.3g}"
        + _share_at_bounds(dataset),
        "transitions": f"{len(dataset):,}",
        "episodes": f"{dataset.n_episodes:,}",
        "ends of episodes": _ends(dataset),
        "lengths": _spread(dataset.lengths),
        "returns": _spread(dataset.returns),
        "rewards": _rewards(dataset),
    }
    if metadata.ref_max_score is not None and not metadata.transforms:
        facts["normalised score"] = _spread(dataset.normalized_score(dataset.returns))
    if dataset.successes is not None:
        facts |= _success(dataset, dataset.successes)
    if metadata.transforms:
        facts["transforms"] = ", ".join(transform.name for transform in metadata.transforms)
    facts |= {key: str(number) for key, number in metadata.counts.items()}
    if metadata.description:
        facts["description"] = metadata.description
    facts["memory"] = f"{n_bytes(dataset) / 1e6:.1f} MB"
    return facts


def n_bytes(dataset: Dataset) -> int:
    """Size of all columns in bytes."""
    columns = [dataset.rows, dataset.next_rows, dataset.actions, dataset.rewards]
    columns += [dataset.terminations, dataset.truncations, *dataset.infos.values(), *leaves(dataset.frames).values()]
    return sum(column.nbytes for column in columns)


def _shape(array: np.ndarray) -> str:
    return f"{'x'.join(map(str, array.shape[1:])) or 'scalar'} {array.dtype}"


def _spread(values: np.ndarray) -> str:
    low, middle, high = values.min(), np.median(values), values.max()
    return f"mean {values.mean():.4g}, std {values.std():.4g}, min {low:.4g}, median {middle:.4g}, max {high:.4g}"


def _share_at_bounds(dataset: Dataset) -> str:
    space = dataset.metadata.action_space
    if not isinstance(space, spaces.Box):
        return ""
    at_bounds = (dataset.actions <= space.low + ACTION_TOLERANCE) | (dataset.actions >= space.high - ACTION_TOLERANCE)
    return f", {100 * at_bounds.mean():.1f} % at the bounds"


def _ends(dataset: Dataset) -> str:
    terminal = int(dataset.terminations.sum())
    truncated = int((dataset.truncations & ~dataset.terminations).sum())
    return (
        f"{terminal:,} terminal, {truncated:,} truncated, {dataset.n_episodes - terminal - truncated:,} without a flag"
    )


def _rewards(dataset: Dataset) -> str:
    values, counts = np.unique(dataset.rewards, return_counts=True)
    if len(values) <= 4:
        return ", ".join(f"{value:g} ({100 * n / len(dataset):.2f} %)" for value, n in zip(values, counts, strict=True))
    return _spread(dataset.rewards)


def _success(dataset: Dataset, successes: np.ndarray) -> dict[str, str]:
    per_episode = np.maximum.reduceat(successes, dataset.starts)
    before = np.cumsum(successes) - successes
    useful = before == np.repeat(before[dataset.starts], dataset.lengths)
    return {
        "success": f"{100 * per_episode.mean():.1f} % of the episodes",
        "up to the first success": f"{100 * useful.mean():.1f} % of the transitions",
    }


def validate(spec: DatasetLike, trust: bool = False, bad_episodes: str = "raise") -> tuple[list[str], list[str]]:
    """
    Everything that can be found wrong with a dataset without training on it.

    :return: errors, which make it unusable, and warnings
    """
    errors: list[str] = []
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            dataset = read(spec, bad_episodes=bad_episodes, trust=trust, cache=False)  # type: ignore[arg-type]
        except DatasetError as error:
            return [str(error)], []
        try:
            check_rewards(dataset)
        except DatasetError as error:
            errors.append(str(error))
        notes += _check_environment(dataset, errors)
    notes += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    unmarked = int((dataset.ends & ~dataset.terminations & ~dataset.truncations).sum())
    if unmarked:
        notes.append(f"{unmarked} episodes end without a flag; they are taken for truncated.")
    return errors, list(dict.fromkeys(notes))


def _check_environment(dataset: Dataset, errors: list[str]) -> list[str]:
    if dataset.env_id is None:
        return ["The environment is not named; observations and actions could not be held against it."]
    try:
        make_eval_env(dataset).close()
    except DatasetError as error:
        if "cannot be made" in str(error):
            return [str(error)]
        errors.append(str(error))
    return []


def plot(dataset: Dataset, path: Path) -> None:
    """
    Draw where a maze was visited and how long and good the episodes are.

    :param path: picture to write, by its ending: ``.png``, ``.pdf``, ``.svg``
    :raises DatasetError: it cannot be written.
    """
    from matplotlib.figure import Figure

    maze_positions = _maze_positions(dataset)
    # A Figure of its own draws without a window, and leaves pyplot's choice of a backend alone
    figure = Figure(figsize=(13 if maze_positions else 9, 4))
    axes = figure.subplots(1, 3 if maze_positions else 2)
    _histogram(axes[0], dataset.returns, "return of an episode")
    _histogram(axes[1], dataset.lengths, "steps of an episode")
    if maze_positions:
        _draw_maze(axes[2], dataset, *maze_positions)
    figure.suptitle(f"{dataset.source}: {len(dataset):,} transitions, {dataset.n_episodes:,} episodes")
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be written: {error}") from error


def _histogram(axes: "Axes", values: np.ndarray, label: str) -> None:
    axes.hist(values, bins=min(50, max(len(values) // 2, 1)), color="tab:blue")
    axes.set_xlabel(label)
    axes.set_ylabel("episodes")
    axes.spines[["top", "right"]].set_visible(False)


def _maze_positions(dataset: Dataset) -> tuple[Any, np.ndarray] | None:
    """The maze and the positions in it, where the dataset is of one."""
    if "Maze" not in (dataset.env_id or ""):
        return None
    try:
        env = make_eval_env(dataset)
    except DatasetError:
        return None
    maze, positions = maze_of(env), positions_of(dataset)
    env.close()
    return None if maze is None or positions is None else (maze, positions)


def _draw_maze(axes: "Axes", dataset: Dataset, maze: Any, positions: np.ndarray) -> None:
    from matplotlib.patches import Rectangle

    corners = []
    for cell in zip(*np.nonzero(maze.maze_map), strict=True):
        corner = maze.to_xy(cell) - maze.cell_size / 2
        corners += [corner, corner + maze.cell_size]
        axes.add_patch(Rectangle(tuple(corner), maze.cell_size, maze.cell_size, color="0.8", linewidth=0))
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    visited = positions[dataset.rows[:: max(len(dataset) // PLOTTED_POSITIONS, 1)]]
    axes.scatter(visited[:, 0], visited[:, 1], s=1, alpha=0.15, linewidths=0, color="tab:blue", rasterized=True)
    starts = positions[dataset.rows[dataset.starts]]
    axes.scatter(starts[:, 0], starts[:, 1], s=6, color="tab:orange", label="start", linewidths=0)
    if dataset.successes is not None and dataset.successes.any():
        ends = positions[dataset.next_rows[dataset.successes]][:2000]
        axes.scatter(ends[:, 0], ends[:, 1], s=6, color="tab:green", label="success", linewidths=0)
    axes.legend(loc="upper right", fontsize=8, markerscale=2)
    axes.set_xticks([])
    axes.set_yticks([])
