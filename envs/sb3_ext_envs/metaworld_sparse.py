"""Meta-World V3 tasks with a reward of 1 at success and 0 before."""

import difflib
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_ext_envs.registration import METAWORLD_TASKS
from sb3_ext_envs.rendering import cannot_render, check_display, render

OBSERVATION_DIM = 39
# Positions are metres on a table, quaternions and the gripper opening lie in [-1, 1]. Meta-World declares infinite
# bounds for objects and zero-width bounds for a hidden goal, of which `check_env` and normalisers complain
# (https://github.com/Farama-Foundation/Metaworld/issues/393). Nothing gets 10 m away, so nothing is clipped in use.
OBSERVATION_BOUND = 10.0
GOAL_SLICE = slice(36, 39)
CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")


class MetaWorldSparseEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    A Meta-World V3 task (Yu et al. 2019, https://arxiv.org/abs/1910.10897) with a sparse reward.

    The reward is 1.0 at the first step at which the task succeeds and 0.0 at every other step. Every episode draws
    new object poses and goals. ``info["is_success"]`` is present at every step and stays true once it was true.

    Made through ``gym.make("MetaWorldSparse/hammer-v3")``, an episode is truncated after ``max_episode_steps``
    (an argument of ``gym.make``, 500 by default); Meta-World's own exception past step 500 is switched off.

    :param task: Name of a Meta-World V3 task, for instance ``"hammer-v3"``.
    :param terminate_on_success: End the episode at the successful step. With ``False`` it goes on until it is
        truncated; the reward is still given once.
    :param goal_observable: Put the goal position into the last three entries of the observation. With ``False``
        they are 0, as in Meta-World's meta-learning benchmarks.
    :param render_mode: ``"rgb_array"``, ``"human"`` or None.
    :param camera_name: One of Meta-World's cameras, ``CAMERAS``.
    :param width: Width of the picture in pixels.
    :param height: Height of the picture in pixels.
    :raises ValueError: The task or the camera does not exist; the message names the closest tasks.
    :raises RuntimeError: ``render_mode="human"`` without a display.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 80}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        task: str,
        terminate_on_success: bool = True,
        goal_observable: bool = True,
        render_mode: str | None = None,
        camera_name: str = "corner4",
        width: int = 480,
        height: int = 480,
    ):
        if task not in METAWORLD_TASKS:
            close = difflib.get_close_matches(task, METAWORLD_TASKS, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(METAWORLD_TASKS)}"
            raise ValueError(f"Unknown Meta-World task {task!r}: {hint}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, not {render_mode!r}")

        if camera_name not in CAMERAS:
            raise ValueError(f"camera_name must be one of {CAMERAS}, not {camera_name!r}")

        self.task = task
        self.terminate_on_success = terminate_on_success
        self.goal_observable = goal_observable
        self.render_mode = render_mode
        self.camera_name = camera_name
        self._env = _make_metaworld(task, render_mode, camera_name, width, height)
        self.observation_space = spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (OBSERVATION_DIM,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._full_obs = np.zeros(OBSERVATION_DIM)
        self._is_success = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        # Meta-World ignores the seed of `reset`: it draws from a generator of its own, which we replace by ours
        self._env.np_random = self.np_random
        self._full_obs, _ = self._env.reset()
        self._is_success = False
        return self._observation(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._full_obs, _, _, _, info = self._env.step(action)
        first_success = bool(info["success"]) and not self._is_success
        self._is_success |= first_success
        info["is_success"] = self._is_success
        terminated = self.terminate_on_success and self._is_success
        return self._observation(), float(first_success), terminated, False, info

    def _observation(self) -> np.ndarray:
        obs = np.clip(self._full_obs, -OBSERVATION_BOUND, OBSERVATION_BOUND).astype(np.float32)
        if not self.goal_observable:
            obs[GOAL_SLICE] = 0.0
        return obs

    def scripted_action(self) -> np.ndarray:
        """
        Action of Meta-World's scripted expert at the current state. It sees the goal also where the agent does not.

        :return: shape ``(4,)``, float32, clipped to [-1, 1]
        """
        action = self._expert.get_action(self._full_obs)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    @property
    def _expert(self) -> Any:
        # Made at the first use: training without demonstrations never needs it
        if "_scripted_expert" not in self.__dict__:
            from metaworld.policies import ENV_POLICY_MAP

            self._scripted_expert = ENV_POLICY_MAP[self.task]()
        return self._scripted_expert

    def render(self) -> Any:
        """
        :return: picture of shape ``(height, width, 3)``, uint8, for ``render_mode="rgb_array"``
        :raises RuntimeError: MuJoCo finds no way to draw on this machine; the message names ``MUJOCO_GL``.
        """
        picture = render(self._env, self.render_mode)
        if self.render_mode == "rgb_array" and self.camera_name.startswith("corner"):
            # Meta-World hangs its corner cameras upside down
            return np.ascontiguousarray(picture[::-1, ::-1])
        return picture

    def close(self) -> None:
        self._env.close()


def _make_metaworld(task: str, render_mode: str | None, camera_name: str, width: int, height: int) -> Any:
    """Meta-World's environment, with new poses at each reset, the goal visible and no exception past 500 steps."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    if render_mode == "human":
        check_display()
    cameras = {"camera_name": camera_name} if render_mode is not None else {}
    try:
        env = ALL_V3_ENVIRONMENTS[task](render_mode=render_mode, width=width, height=height, **cameras)
    except Exception as error:
        if render_mode is None:
            raise
        raise cannot_render() from error
    env._freeze_rand_vec = False  # draw new poses at each reset...
    env.seeded_rand_vec = True  # ... from `env.np_random`
    env._set_task_called = True
    env._partially_observable = False
    # The observation space is a cached property, read in the constructor with the goal hidden
    env.__dict__.pop("sawyer_observation_space", None)
    env.max_path_length = sys.maxsize
    return env
