"""What the tests of all environments use."""

import os
import subprocess
import sys

import numpy as np


def play_random(env, seed, n_steps=10):
    """Initial observation and what follows random actions."""
    rng = np.random.default_rng(seed)
    observations = [env.reset(seed=seed)[0]]
    for _ in range(n_steps):
        observations.append(env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))[0])
    return np.stack(observations)


def run_python(code, **environment):
    variables = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**variables, **environment}, capture_output=True, text=True, timeout=120
    )
