"""
Environment steps per second of the whole training loop: BCPPO against SB3's PPO with the same environment, networks and
settings, in turns.

    python benchmarks/bcppo/speed.py --output docs/results/bcppo_speed
    python benchmarks/bcppo/speed.py --settings defaults --n-envs 8 --rounds 3

All variants stay alive and take turns of one rollout and its update each, so that they share the machine's good and
bad minutes; ratios are taken within a round. Without a reference BCPPO does the same work as SB3's PPO; with one it
computes the divergence as well. Writes a CSV of milliseconds a step, spent in the simulator, in the rest of the
rollout, and in the update.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

import rl_zoo_configs
from sb3_ext import BCPPO

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import describe
from success import ppo_settings

ENV = "MetaWorldSparse/hammer-v3"


def recipe() -> dict[str, Any]:
    """PPO's part of ``rl_zoo_configs/bcppo.yml``."""
    return ppo_settings(yaml.safe_load(rl_zoo_configs.config_path("bcppo").read_text())[ENV])


def with_reference(**kwargs: Any) -> BCPPO:
    """Held near to a policy of the same kind."""
    names = ("policy", "env", "policy_kwargs", "seed", "device")
    reference = PPO(**{name: kwargs[name] for name in names if name in kwargs})
    return BCPPO(reference=reference, kl_coef=1.0, **kwargs)


SETTINGS: dict[str, dict[str, Any]] = {"defaults": {"policy": "MlpPolicy"}, "recipe": recipe()}
VARIANTS: dict[str, Callable[..., BaseAlgorithm]] = {
    "SB3 PPO": PPO,
    "BCPPO, eager": lambda **kwargs: BCPPO(update_backend="eager", **kwargs),
    "BCPPO, compiled": lambda **kwargs: BCPPO(update_backend="compiled", **kwargs),
    "BCPPO with a reference, eager": lambda **kwargs: with_reference(update_backend="eager", **kwargs),
    "BCPPO with a reference, compiled": lambda **kwargs: with_reference(update_backend="compiled", **kwargs),
}
PARTS = ("simulator", "rollout", "update")


class Clock:
    """Seconds of a model's parts."""

    def __init__(self, model: BaseAlgorithm):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        assert model.env is not None
        self._time(model.env, "step_wait", "simulator")
        self._time(model, "collect_rollouts", "rollout")
        self._time(model, "train", "update")

    def _time(self, owner: Any, method: str, part: str) -> None:
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[part] += time.perf_counter() - start
            return result

        setattr(owner, method, timed)

    def take(self) -> dict[str, float]:
        """Since the last time; the rollout's without the simulator's."""
        taken = {**self.seconds, "rollout": self.seconds["rollout"] - self.seconds["simulator"]}
        self.seconds = dict.fromkeys(PARTS, 0.0)
        return taken


def measure(settings: str, n_envs: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of milliseconds a step, one for each round and variant."""
    models, clocks = {}, {}
    for name, make in VARIANTS.items():
        env = make_vec_env(ENV, n_envs=n_envs, seed=0, vec_env_cls=SubprocVecEnv if n_envs > 1 else None)
        arguments = dict(SETTINGS[settings])
        arguments["n_steps"] = arguments.get("n_steps", 2048) // n_envs
        models[name] = make(env=env, seed=0, device="cpu", **arguments)
        clocks[name] = Clock(models[name])
        models[name].learn(1)  # a rollout and an update to warm up, which compiles
        clocks[name].take()
    rows = []
    for i in range(rounds):
        for name, model in models.items():
            start, steps = time.perf_counter(), model.num_timesteps
            model.learn(1, reset_num_timesteps=False)
            n = model.num_timesteps - steps
            parts = {part: 1e3 * seconds / n for part, seconds in clocks[name].take().items()}
            row = {"settings": settings, "n_envs": n_envs, "round": i, "variant": name}
            rows.append({**row, "total": 1e3 * (time.perf_counter() - start) / n, **parts})
    for model in models.values():
        model.env.close()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, medians over rounds."""
    lines = [
        "| settings | environments | variant | steps/s | times SB3's PPO | simulator, ms | rest of rollout | update |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for settings, n_envs in dict.fromkeys((row["settings"], row["n_envs"]) for row in rows):
        group = [row for row in rows if (row["settings"], row["n_envs"]) == (settings, n_envs)]
        totals = {name: np.array([r["total"] for r in group if r["variant"] == name]) for name in VARIANTS}
        for name, values in totals.items():
            ratios = totals["SB3 PPO"] / values
            parts = [np.median([r[part] for r in group if r["variant"] == name]) for part in PARTS]
            ratio = (
                f"{ratios.min():.2f} / **{np.median(ratios):.2f}** / {ratios.max():.2f}" if name != "SB3 PPO" else ""
            )
            cells = " | ".join(f"{part:.3f}" for part in parts)
            lines.append(f"| {settings} | {n_envs} | {name} | {1e3 / np.median(values):,.0f} | {ratio} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--n-envs", type=int, nargs="+", default=[1, 8], help="more than one are processes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="folder of speed.csv and table.md")
    args = parser.parse_args()

    th.set_num_threads(args.threads)
    rows = [row for s in args.settings for n in args.n_envs for row in measure(s, n, args.rounds)]
    print(table(rows))
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        with (args.output / "speed.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        command = "python benchmarks/bcppo/speed.py " + " ".join(sys.argv[1:])
        text = f"# Speed of BCPPO\n\n`{command}`  \n{describe()}\n\n{table(rows)}"
        (args.output / "table.md").write_text(text)


if __name__ == "__main__":
    main()
