"""
Where the time of a training loop goes: simulator, update, acting, replay buffer, and the rest of SB3's loop.

    python benchmarks/speed/breakdown.py redq|sb3_sac

Prints JSON: microseconds per environment step on ``MetaWorldSparse/hammer-v3``, UTD 1, 2 critics.
"""

import argparse
import contextlib
import json
import sys
import time
from collections import defaultdict
from typing import Any

import torch as th
from stable_baselines3 import SAC
from workers import HAMMER

from sb3_ext import REDQ

STEPS = 1_000


def time_calls(owner: Any, name: str, seconds: dict[str, float], label: str) -> None:
    function = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[label] += time.perf_counter() - start

    setattr(owner, name, timed)


def measure(algorithm: str) -> dict[str, float]:
    if algorithm == "redq":
        model = REDQ("MlpPolicy", HAMMER, n_critics=2, utd_ratio=1, update_backend="compiled", device="cpu", seed=0)
    else:
        model = SAC("MlpPolicy", HAMMER, device="cpu", seed=0)
    model.learn(150)
    seconds: dict[str, float] = defaultdict(float)
    simulator = model.env.envs[0].env  # inside SB3's Monitor
    for name in ("step", "reset"):
        time_calls(simulator, name, seconds, "simulator")
    time_calls(model, "train", seconds, "update")
    time_calls(model, "_sample_action", seconds, "acting")
    time_calls(model, "_store_transition", seconds, "replay buffer")
    start = time.perf_counter()
    model.learn(STEPS, reset_num_timesteps=False)
    total = time.perf_counter() - start
    parts = {label: 1e6 * value / STEPS for label, value in seconds.items()}
    parts["SB3's loop, vector environment, callbacks"] = 1e6 * total / STEPS - sum(parts.values())
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", choices=["redq", "sb3_sac"])
    parser.add_argument("--threads", type=int, default=th.get_num_threads())
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    with contextlib.redirect_stdout(sys.stderr):
        parts = measure(args.algorithm)
    print(json.dumps(parts))


if __name__ == "__main__":
    main()
