"""Datasets that need no download: made by the point maze's planner at the first use, kept in the cache afterwards."""

from contextlib import suppress
from pathlib import Path

import gymnasium as gym

from sb3_ext.datasets.collect import Behaviour, random_expert, rollout_episodes, waypoint_expert
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.folder import cache_folder, is_dataset_folder, read_folder, write_folder

N_TRANSITIONS = 100_000
VERSION = 1  # raised where the same name gives other data
SEED = 0

DEMO_PREFIX = "demo/"
# Name -> the environment
DEMO_DATASETS = {
    "demo/pointmaze-umaze": "PointMazeFlat/UMaze-v3",
    "demo/pointmaze-medium": "PointMazeFlat/Medium-v3",
    "demo/pointmaze-large": "PointMazeFlat/Large-v3",
}


def find_demo(name: str) -> Path:
    """
    A folder with 100,000 transitions from any start to one goal: half the episodes by the planner with little noise,
    a third with much, the rest at random. Every run of this version makes the same ones, in about ten seconds.

    :param name: one of ``DEMO_DATASETS``
    :raises DatasetError: another name, or the cache cannot be written.
    """
    if name not in DEMO_DATASETS:
        raise DatasetError(f"There is no {name!r}; there are {', '.join(DEMO_DATASETS)}.")
    import sb3_ext_envs  # noqa: F401 (registers the environments)

    path = cache_folder() / f"{name}-v{VERSION}"
    if is_dataset_folder(path):
        with suppress(DatasetError):  # else it is broken, and made again
            read_folder(path)
            return path
    env = gym.make(DEMO_DATASETS[name], start_cell="random")
    try:
        planner = waypoint_expert(env)
        behaviours = [
            Behaviour(planner, share=3, noise=0.2),
            Behaviour(planner, share=2, noise=0.8),
            Behaviour(random_expert(env, SEED), share=1),
        ]
        dataset = rollout_episodes(
            env, behaviours, n_transitions=N_TRANSITIONS, seed=SEED, only_successful=False, source=name
        )
    finally:
        env.close()
    try:
        write_folder(dataset.with_metadata(dataset_id=name), path)
    except DatasetError as error:
        raise DatasetError(f"{error} Set SB3_EXT_CACHE to a folder that can be written.") from error
    return path
