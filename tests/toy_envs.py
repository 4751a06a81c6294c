"""Small environments for tests: one step of reasoning, microseconds a step."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class ReachEnv(gym.Env):
    """A point on a line steps towards a goal that it sees. Sparse: reward 1 at the goal, which ends the episode."""

    def __init__(self, dict_obs: bool = False, image: bool = False, low: float = -2.0, high: float = 1.0):
        box = spaces.Box(-10, 10, (3,), np.float32)
        self.dict_obs, self.image = dict_obs, image
        if image:
            box = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        self.observation_space = spaces.Dict({"state": box}) if dict_obs else box
        self.action_space = spaces.Box(low, high, (2,), np.float32)

    def _obs(self):
        if self.image:
            obs = np.zeros((36, 36, 1), np.uint8)
            obs[:, int(np.clip(18 + 8 * (self.x - self.goal), 0, 35)), 0] = 255
        else:
            obs = np.array([self.x, self.goal, self.goal - self.x], np.float32)
        return {"state": obs} if self.dict_obs else obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.goal, self.t = 0.0, float(self.np_random.uniform(-1, 1)), 0
        return self._obs(), {"is_success": False}

    def scripted_action(self):
        step = np.clip((self.goal - self.x) / 0.5, -1, 1)
        return np.full(2, step if step < 0 else min(step, 1.0), np.float32)

    def step(self, action):
        self.t += 1
        self.x = float(np.clip(self.x + 0.5 * np.clip(np.mean(action), -1, 1), -5, 5))
        success = abs(self.x - self.goal) < 0.1
        return self._obs(), float(success), success, False, {"is_success": success}


MAX_STEPS = 15


def reach_env(**kwargs) -> gym.Env:
    return gym.wrappers.TimeLimit(ReachEnv(**kwargs), MAX_STEPS)


class DiscreteEnv(ReachEnv):
    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(2)


def reach_demos(n_episodes: int = 5, seed: int = 0, **kwargs):
    """Episodes of the scripted expert."""
    from sb3_ext.datasets import rollout_episodes
    from sb3_ext.datasets.collect import scripted_expert

    env = reach_env(**kwargs)
    return rollout_episodes(env, scripted_expert(env), n_episodes, seed=seed, source="reach demos")


class AimEnv(gym.Env):
    """One step an episode: hit the target that the observation shows. Reward: minus the squared distance."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.target = self.np_random.uniform(-0.5, 0.5, 1).astype(np.float32)
        return self.target, {}

    def step(self, action):
        return self.target, -float((action - self.target)[0] ** 2), True, False, {}


def aim_demos(n: int, offset: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Demonstrations that miss the target by ``offset``."""
    targets = np.random.default_rng(seed).uniform(-0.5, 0.5, (n, 1)).astype(np.float32)
    return {
        "observations": targets,
        "next_observations": targets,
        "actions": targets + np.float32(offset),
        "rewards": np.full(n, -(offset**2)),
        "terminations": np.ones(n, bool),
    }
