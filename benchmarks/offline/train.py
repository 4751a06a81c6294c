"""
One run of an offline algorithm: learn on a dataset, play evaluation episodes now and then, one row of a CSV each time.

    python benchmarks/offline/train.py --algo iql --data ../shared/data/antmaze-umaze.hdf5 --seed 0 --output runs/iql

The hyper-parameters are those of ``rl_zoo_configs/<algo>.yml`` for the dataset's environment; ``--set`` changes single
ones. ``--online`` goes on in the environment with the same object. The same evaluation episodes are played every time.
"""

import argparse
import csv
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

import rl_zoo_configs
import sb3_ext
from sb3_ext.datasets import Dataset, load, make_eval_env, make_training_env

# Far from the seeds of training, which are small numbers
FIRST_EVAL_SEED = 1_000_000
ALGORITHMS = {"bc": "BC", "awac": "AWAC", "iql": "IQL", "rebrac": "ReBRAC", "calql": "CalQL", "edac": "EDAC"}
COLUMNS = ["step", "score", "success_rate", "return_mean", "episode_length", "episodes", "training_seconds"]


class Evaluation:
    """
    Episodes with deterministic actions, side by side: one forward pass for all environments.

    :param dataset: names the environment
    :param n_episodes: of the seeds 1,000,000 and on
    """

    def __init__(self, dataset: Dataset, n_episodes: int):
        self.dataset, self.n_episodes = dataset, n_episodes
        self.envs = [make_eval_env(dataset) for _ in range(n_episodes)]
        # Numbers of the environments whose observations `predict` is given
        self.playing = np.arange(n_episodes)
        self.successes = np.zeros(n_episodes, dtype=bool)
        self.is_sparse = dataset.successes is not None

    def __call__(self, predict: Any) -> dict[str, float]:
        """
        :param predict: as ``model.predict``: takes observations of shape ``(n, obs_dim)`` and a state, which is None at
            the start of the episodes, and returns actions and the state for the next call
        """
        observations = np.stack([env.reset(seed=FIRST_EVAL_SEED + i)[0] for i, env in enumerate(self.envs)])
        returns, lengths = np.zeros(self.n_episodes), np.zeros(self.n_episodes)
        successes = np.zeros(self.n_episodes, dtype=bool)
        self.playing = np.arange(self.n_episodes)
        state = None
        while len(self.playing) > 0:
            actions, state = predict(observations[self.playing].astype(np.float32), state)
            goes_on = np.ones(len(self.playing), dtype=bool)
            for row, (i, action) in enumerate(zip(self.playing, actions, strict=True)):
                observations[i], reward, terminated, truncated, info = self.envs[i].step(action)
                returns[i] += reward
                lengths[i] += 1
                successes[i] |= bool(info.get("is_success", info.get("success", False)))
                goes_on[row] = not (terminated or truncated)
            self.playing = self.playing[goes_on]
            state = None if state is None else tuple(column[goes_on] for column in state)
        self.successes = successes
        score = 100 * successes.mean() if self.is_sparse else self.dataset.normalized_score(returns).mean()
        return {
            "score": round(float(score), 2),
            "success_rate": float(successes.mean()),
            "return_mean": round(float(returns.mean()), 2),
            "episode_length": round(float(lengths.mean()), 1),
            "episodes": self.n_episodes,
        }


class Curve:
    """
    The CSV of one run.

    :param path: its file
    :param evaluation: plays the episodes
    """

    def __init__(self, path: Path, evaluation: Evaluation):
        self.path, self.evaluation = path, evaluation
        path.parent.mkdir(parents=True, exist_ok=True)
        self.training_seconds, self.resumed_at = 0.0, time.perf_counter()
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(COLUMNS)

    def add(self, step: int, predict: Any) -> None:
        """Play and write a row."""
        self.training_seconds += time.perf_counter() - self.resumed_at
        row = {"step": step, **self.evaluation(predict), "training_seconds": round(self.training_seconds, 1)}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        print(row, flush=True)
        self.resumed_at = time.perf_counter()


class CurveCallback(BaseCallback):
    """Adds a row every ``eval_freq`` timesteps and where learning online starts and ends."""

    def __init__(self, curve: Curve, eval_freq: int, steps: set[int]):
        super().__init__()
        self.curve, self.eval_freq, self.steps = curve, eval_freq, steps

    def _on_step(self) -> bool:
        if self.num_timesteps % self.eval_freq == 0 or self.num_timesteps in self.steps:
            self.model.policy.set_training_mode(False)
            self.curve.add(self.num_timesteps, partial(self.model.predict, deterministic=True))
        return True


def hyperparameters(algo: str, dataset: Dataset) -> dict[str, Any]:
    """Of the configuration for RL Zoo."""
    configs = yaml.safe_load(rl_zoo_configs.config_path(algo).read_text())
    env = make_eval_env(dataset)
    entry = dict(configs[env.spec.id])  # type: ignore[union-attr]
    env.close()
    for name in ("dataset", "n_envs"):
        entry.pop(name, None)
    return entry


def make_model(algo: str, data: str, env: gym.Env | None, seed: int, changes: dict[str, Any]) -> BaseAlgorithm:
    """The model with the configuration's hyper-parameters and changes to them; ``None`` takes one out."""
    params = {**hyperparameters(algo, load(data)), **changes}
    del params["n_timesteps"]
    params = {name: value for name, value in params.items() if value is not None}
    return getattr(sb3_ext, ALGORITHMS[algo])(env=env, dataset=data, seed=seed, device="cpu", **params)


def make_parser(description: str | None, algorithms: Iterable[str]) -> argparse.ArgumentParser:
    """Arguments of a run, whichever library it is of."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=list(algorithms), required=True)
    parser.add_argument("--data", required=True, help="file or name of the dataset")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0)")
    parser.add_argument("--steps", type=int, help="gradient steps on the dataset (default: the configuration's)")
    parser.add_argument("--eval-freq", type=int, default=10_000, help="steps between evaluations (default: 10,000)")
    parser.add_argument("--episodes", type=int, default=100, help="of each evaluation (default: 100)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: 1)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="hyper-parameters, values in YAML")
    parser.add_argument("--output", type=Path, required=True, help="folder of the CSV")
    return parser


def parse_changes(items: Iterable[str]) -> dict[str, Any]:
    """``NAME=VALUE``, values in YAML."""
    return {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in items)}


def main() -> None:
    parser = make_parser(__doc__, ALGORITHMS)
    parser.add_argument("--online", type=int, default=0, help="environment steps afterwards")
    parser.add_argument(
        "--action-noise",
        type=float,
        default=0.0,
        help="its deviation in those steps; deterministic actors have no other",
    )
    parser.add_argument("--save", action="store_true", help="save the model beside it")
    args = parser.parse_args()
    if args.action_noise < 0 or (args.action_noise > 0 and args.online == 0):
        parser.error("--action-noise is at least 0, and 0 without --online.")

    th.set_num_threads(args.threads)
    changes = parse_changes(args.set)
    dataset = load(args.data)
    configured = hyperparameters(args.algo, dataset)
    if args.steps is None:
        args.steps = int(configured["n_timesteps"])
    env = None
    if args.online > 0:
        changes["n_offline_steps"] = args.steps
        kwargs = {**configured, **changes}.get("dataset_kwargs")
        shaped = load(args.data, **(kwargs or {}))
        env = make_vec_env(lambda: make_training_env(shaped), seed=args.seed)
        if args.action_noise > 0:
            n = env.action_space.shape[0]
            changes["action_noise"] = NormalActionNoise(np.zeros(n), np.full(n, args.action_noise))
    model = make_model(args.algo, args.data, env, args.seed, changes)
    curve = Curve(args.output / f"seed{args.seed}.csv", Evaluation(dataset, args.episodes))
    total = args.steps + args.online
    model.learn(total, callback=CurveCallback(curve, args.eval_freq, {args.steps, total}))
    if args.save:
        model.save(args.output / f"seed{args.seed}")


if __name__ == "__main__":
    main()
