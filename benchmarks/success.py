"""
Success rate against environment steps: one run, one CSV.

    python benchmarks/success.py --env MetaWorldSparse/hammer-v3 --seed 0 --timesteps 20000 --output runs/hammer

The hyper-parameters are those of ``rl_zoo_configs/redq.yml`` or ``bcppo.yml``; ``--set`` changes single ones. ``--algo
sac`` is SB3's SAC with the same demonstrations in its replay buffer, ``ppo`` SB3's PPO with its defaults and no
demonstrations, ``ppo-pretrained`` SB3's PPO with BCPPO's policy and settings after ``sb3_ext.bc.pretrain``. The same
evaluation episodes are played for every run.
"""

import argparse
import csv
import inspect
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
import yaml
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

import rl_zoo_configs
from sb3_ext import BCPPO, REDQ
from sb3_ext.bc import pretrain
from sb3_ext.common.standardize import StandardizingExtractor, set_statistics
from sb3_ext.datasets import load_demonstrations

# Far from the seeds of training, which are small numbers
FIRST_EVAL_SEED = 1_000_000


def success_rate(model: BaseAlgorithm, env: gym.Env, n_episodes: int) -> tuple[float, float]:
    """Share of successful episodes with deterministic actions, and their mean length."""
    successes, lengths = [], []
    for i in range(n_episodes):
        obs, _ = env.reset(seed=FIRST_EVAL_SEED + i)
        done, length = False, 0
        while not done:
            action, _ = model.predict(obs, deterministic=True)
            obs, _, terminated, truncated, info = env.step(action)
            done, length = terminated or truncated, length + 1
        successes.append(info["is_success"])
        lengths.append(length)
    return float(np.mean(successes)), float(np.mean(lengths))


class SuccessCurve(BaseCallback):
    """Evaluates at step 0 (after cloning) and every ``eval_freq`` steps, and appends a row to the CSV each time."""

    def __init__(self, env_id: str, path: Path, eval_freq: int, n_episodes: int):
        super().__init__()
        self.eval_env = gym.make(env_id)
        self.path, self.eval_freq, self.n_episodes = path, eval_freq, n_episodes
        self.training_seconds, self._resumed_at = 0.0, 0.0

    def _on_training_start(self) -> None:
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerow(["timesteps", "success_rate", "episode_length", "episodes", "training_seconds"])
        self._evaluate()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.eval_freq == 0:
            self.training_seconds += time.perf_counter() - self._resumed_at
            self._evaluate()
        return True

    def _evaluate(self) -> None:
        self.model.policy.set_training_mode(False)
        success, length = success_rate(self.model, self.eval_env, self.n_episodes)
        row = [self.num_timesteps, success, round(length, 1), self.n_episodes, round(self.training_seconds, 1)]
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row)
        print(*row, flush=True)
        self._resumed_at = time.perf_counter()


def sac_with_demos(env_id: str, seed: int, demos: str) -> SAC:
    """SB3's SAC with its defaults and the demonstrations as the first entries of its replay buffer."""
    model = SAC("MlpPolicy", env_id, seed=seed, device="cpu")
    data = load_demonstrations(demos, gym.spec(env_id), seed)
    for i in range(len(data)):
        model.replay_buffer.add(
            data.observations[i : i + 1],
            data.next_observations[i : i + 1],
            model.policy.scale_action(data.actions[i : i + 1]),
            data.rewards[i : i + 1],
            data.terminations[i : i + 1] | data.truncations[i : i + 1],
            [{"TimeLimit.truncated": bool(data.truncations[i])}],
        )
    return model


def ppo_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """Those settings of an entry of ``rl_zoo_configs/bcppo.yml`` that are PPO's, with BCPPO's policy."""
    settings = {name: value for name, value in recipe.items() if name in inspect.signature(PPO).parameters}
    policy, rate = BCPPO.policy_aliases[recipe["policy"]], float(recipe["learning_rate"])
    return {**settings, "policy": policy, "learning_rate": rate}


def pretrained_ppo(env_id: str, seed: int, recipe: dict[str, Any]) -> PPO:
    """SB3's PPO with BCPPO's policy and those of its settings that are PPO's, a clone at first."""
    kwargs = ppo_settings(recipe)
    if recipe["standardize_observations"]:
        extractor = {"features_extractor_class": StandardizingExtractor}
        kwargs["policy_kwargs"] = {**recipe.get("policy_kwargs", {}), **extractor}
    model = PPO(env=env_id, seed=seed, device="cpu", **kwargs)
    demos = load_demonstrations(recipe["demos"], gym.spec(env_id), seed)
    set_statistics(model.policy, demos.observations)
    pretrain(model, demos, steps=recipe["bc_pretrain_steps"], learning_rate=recipe["bc_learning_rate"])
    return model


def make_model(algo: str, env_id: str, seed: int, overrides: dict[str, Any]) -> BaseAlgorithm:
    if algo == "ppo":
        return PPO("MlpPolicy", env_id, seed=seed, device="cpu", **overrides)
    configs = yaml.safe_load(rl_zoo_configs.config_path("bcppo" if "ppo" in algo else "redq").read_text())
    hyperparams = {**configs[env_id], **overrides}
    del hyperparams["n_timesteps"]
    if algo == "sac":
        return sac_with_demos(env_id, seed, hyperparams["demos"])
    if algo == "ppo-pretrained":
        return pretrained_ppo(env_id, seed, hyperparams)
    return {"redq": REDQ, "bcppo": BCPPO}[algo](env=env_id, seed=seed, device="cpu", **hyperparams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=["redq", "sac", "bcppo", "ppo", "ppo-pretrained"], default="redq")
    parser.add_argument("--env", default="MetaWorldSparse/hammer-v3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timesteps", type=int, default=20_000)
    parser.add_argument("--eval-freq", type=int, default=1_000)
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="hyper-parameters, values in YAML")
    parser.add_argument("--output", type=Path, required=True, help="folder of the CSV")
    args = parser.parse_args()

    th.set_num_threads(args.threads)
    overrides = {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in args.set)}
    model = make_model(args.algo, args.env, args.seed, overrides)
    args.output.mkdir(parents=True, exist_ok=True)
    curve = SuccessCurve(args.env, args.output / f"seed{args.seed}.csv", args.eval_freq, args.eval_episodes)
    model.learn(args.timesteps, callback=curve)


if __name__ == "__main__":
    main()
