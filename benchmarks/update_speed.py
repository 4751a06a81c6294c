"""
One call of ``train``: REDQ against SB3's SAC with as many critics, the same number of critic updates, interleaved.

    python benchmarks/update_speed.py

Writes ``docs/results/update_speed/times.csv`` (one row a round) and ``summary.md``. Observations have 39 entries and
actions 4, as in Meta-World; batches 256 rows, networks 256x256. SAC steps its actor at every critic update; REDQ is
measured like that too (``policy_delay=1``) and as it is meant (once per transition).
"""

import argparse
import csv
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from machine import describe
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_ext import REDQ

UPDATES, UTD = 40, 5
BUFFER_ROWS = 20_000
RESULTS = Path(__file__).parents[1] / "docs/results/update_speed"


class RandomEnv(gym.Env):
    observation_space = spaces.Box(-10, 10, (39,), np.float32)
    action_space = spaces.Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(39, np.float32), {}

    def step(self, action):
        return np.zeros(39, np.float32), 0.0, False, False, {}


def fill(model: OffPolicyAlgorithm) -> None:
    rng = np.random.default_rng(0)
    buffer = model.replay_buffer
    buffer.observations[:] = rng.normal(size=buffer.observations.shape)
    buffer.next_observations[:] = rng.normal(size=buffer.observations.shape)
    buffer.actions[:] = rng.uniform(-1, 1, buffer.actions.shape)
    buffer.full = True
    model.set_logger(configure(None, []))


def make_models() -> dict[str, tuple[OffPolicyAlgorithm, int]]:
    """Models, and the argument of ``train`` that makes ``UPDATES`` critic updates."""
    common = {"env": RandomEnv(), "buffer_size": BUFFER_ROWS, "device": "cpu", "seed": 0}
    sac = SAC("MlpPolicy", policy_kwargs={"n_critics": 10}, **common)
    redq = {"policy": "MlpPolicy", "n_critics": 10, "utd_ratio": UTD, **common}
    models = {
        "SB3 SAC, 10 critics": (sac, UPDATES),
        "REDQ, actor once per transition": (REDQ(**redq), UPDATES // UTD),
        "REDQ, actor at every update": (REDQ(policy_delay=1, **redq), UPDATES // UTD),
        "REDQ, actor once per transition, layer norm": (
            REDQ(policy_kwargs={"layer_norm": True}, **redq),
            UPDATES // UTD,
        ),
    }
    for model, _ in models.values():
        fill(model)
    return models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=th.get_num_threads())
    args = parser.parse_args()
    th.set_num_threads(args.threads)

    models = make_models()
    rows = []
    for round_number in range(args.rounds + 1):
        times = {}
        for name, (model, gradient_steps) in models.items():
            start = time.perf_counter()
            model.train(gradient_steps=gradient_steps, batch_size=256)
            times[name] = 1000 * (time.perf_counter() - start) / UPDATES
        if round_number > 0:  # the first one warms up
            rows.append(times)

    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "times.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(models))
        writer.writeheader()
        writer.writerows({name: f"{value:.3f}" for name, value in row.items()} for row in rows)

    baseline = next(iter(models))
    lines = [
        f"`python benchmarks/update_speed.py --threads {args.threads}`, {args.rounds} interleaved rounds of {UPDATES} "
        "critic updates (batch 256, networks 256x256).",
        f"{describe()}.",
        "",
        "| variant | ms per critic update, median | times as fast as SB3's SAC: min / median / max over rounds |",
        "|---|---|---|",
    ]
    for name in models:
        ratios = [row[baseline] / row[name] for row in rows]
        median = np.median([row[name] for row in rows])
        lines.append(f"| {name} | {median:.2f} | {min(ratios):.2f} / {np.median(ratios):.2f} / {max(ratios):.2f} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "summary.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
