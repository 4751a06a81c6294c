"""Environment ids. Names only: no simulator is imported before an environment is made."""

import gymnasium as gym

METAWORLD_MAX_EPISODE_STEPS = 500

# Maze: its name in ids, then the episode lengths of Gymnasium-Robotics for ant and point
MAZES: dict[str, tuple[str, int, int]] = {
    "umaze": ("UMaze", 700, 300),
    "medium": ("Medium", 1000, 600),
    "large": ("Large", 1000, 800),
}

METAWORLD_TASKS: tuple[str, ...] = (
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "button-press-topdown-v3",
    "button-press-topdown-wall-v3",
    "button-press-v3",
    "button-press-wall-v3",
    "coffee-button-v3",
    "coffee-pull-v3",
    "coffee-push-v3",
    "dial-turn-v3",
    "disassemble-v3",
    "door-close-v3",
    "door-lock-v3",
    "door-open-v3",
    "door-unlock-v3",
    "drawer-close-v3",
    "drawer-open-v3",
    "faucet-close-v3",
    "faucet-open-v3",
    "hammer-v3",
    "hand-insert-v3",
    "handle-press-side-v3",
    "handle-press-v3",
    "handle-pull-side-v3",
    "handle-pull-v3",
    "lever-pull-v3",
    "peg-insert-side-v3",
    "peg-unplug-side-v3",
    "pick-out-of-hole-v3",
    "pick-place-v3",
    "pick-place-wall-v3",
    "plate-slide-back-side-v3",
    "plate-slide-back-v3",
    "plate-slide-side-v3",
    "plate-slide-v3",
    "push-back-v3",
    "push-v3",
    "push-wall-v3",
    "reach-v3",
    "reach-wall-v3",
    "shelf-place-v3",
    "soccer-v3",
    "stick-pull-v3",
    "stick-push-v3",
    "sweep-into-v3",
    "sweep-v3",
    "window-close-v3",
    "window-open-v3",
)


def register_envs() -> None:
    """
    Register ``MetaWorldSparse/<task>-v3`` for the 50 Meta-World V3 tasks, and ``AntMazeFlat/<maze>-v4`` and
    ``PointMazeFlat/<maze>-v3`` for the mazes UMaze, Medium and Large. Safe to call more than once.

    After ``import sb3_ext`` (or ``sb3_ext_envs``) an id is known to ``gym.make``. A process that imports neither,
    such as a worker of ``SubprocVecEnv`` under the spawn method, takes ``"sb3_ext_envs:MetaWorldSparse/hammer-v3"``.
    """
    for task in METAWORLD_TASKS:
        entry_point = "metaworld_sparse:MetaWorldSparseEnv"
        _register(f"MetaWorldSparse/{task}", entry_point, METAWORLD_MAX_EPISODE_STEPS, task=task)
    for maze, (name, ant_steps, point_steps) in MAZES.items():
        _register(f"AntMazeFlat/{name}-v4", "mazes:AntMazeFlatEnv", ant_steps, maze=maze)
        _register(f"PointMazeFlat/{name}-v3", "mazes:PointMazeFlatEnv", point_steps, maze=maze)


def _register(env_id: str, entry_point: str, max_episode_steps: int, **kwargs: str) -> None:
    if env_id not in gym.registry:
        gym.register(env_id, f"sb3_ext_envs.{entry_point}", max_episode_steps=max_episode_steps, kwargs=kwargs)
