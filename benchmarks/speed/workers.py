"""
One variant of the speed benchmark in its own process: reads a number of repetitions a line, answers with seconds.

    python benchmarks/speed/workers.py '{"variant": "redq", "n_critics": 10, "utd": 5}'

Every variant answers for the same unit of work: one environment transition's worth of updates (``utd`` critic updates)
or, for the ``loop`` variants, one step of the whole training loop on ``MetaWorldSparse/hammer-v3``.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

OBS_DIM, ACTION_DIM, BATCH_SIZE, HIDDEN = 39, 4, 256, 256
HAMMER = "MetaWorldSparse/hammer-v3"


class RandomEnv(gym.Env):
    """Spaces of Meta-World, and nothing behind them."""

    observation_space = spaces.Box(-10, 10, (OBS_DIM,), np.float32)
    action_space = spaces.Box(-1, 1, (ACTION_DIM,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(OBS_DIM, np.float32), {}

    def step(self, action):
        return np.zeros(OBS_DIM, np.float32), 0.0, False, False, {}


def fill(buffer: Any) -> None:
    """Random transitions; a block of them is repeated, so that every row of a large buffer is in memory."""
    rng = np.random.default_rng(0)
    columns = [(buffer.observations, rng.normal), (buffer.next_observations, rng.normal)]
    for column, draw in [*columns, (buffer.actions, lambda size: rng.uniform(-1, 1, size))]:
        block = draw(size=(10_000, *column.shape[1:])).astype(np.float32)
        for start in range(0, len(column), len(block)):
            part = column[start : start + len(block)]
            if isinstance(part, np.ndarray):
                part[:] = block[: len(part)]
            else:  # on a GPU
                import torch as th

                part.copy_(th.as_tensor(block[: len(part)]))
    buffer.full = True


def redq(spec: dict[str, Any]) -> Callable[[], None]:
    from sb3_ext import REDQ

    model = REDQ(
        "MlpPolicy",
        RandomEnv(),
        n_critics=spec["n_critics"],
        utd_ratio=spec["utd"],
        policy_delay=spec.get("policy_delay"),
        buffer_size=spec.get("buffer_size", 20_000),
        policy_kwargs={"layer_norm": spec.get("layer_norm", False)},
        update_backend=spec.get("backend", "compiled"),
        matmul_precision=spec.get("precision", "fp32"),
        device=spec["device"],
        seed=0,
    )
    fill(model.replay_buffer)
    model.train(gradient_steps=1, batch_size=BATCH_SIZE)
    if model.engine.backend != spec.get("backend", "compiled"):
        raise RuntimeError(f"Updates run {model.engine.backend}, not as the variant says.")
    return lambda: model.train(gradient_steps=1, batch_size=BATCH_SIZE)


def redq_loop(spec: dict[str, Any]) -> Callable[[], None]:
    from looped import LoopedREDQ

    model = LoopedREDQ(RandomEnv(), spec["n_critics"], spec["utd"], spec.get("layer_norm", False), spec["device"])
    fill(model.replay_buffer)
    return lambda: model.train(gradient_steps=1, batch_size=BATCH_SIZE)


def sb3_sac(spec: dict[str, Any]) -> Callable[[], None]:
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    policy_kwargs = {"n_critics": spec["n_critics"]}
    model = SAC(
        "MlpPolicy", RandomEnv(), buffer_size=20_000, policy_kwargs=policy_kwargs, device=spec["device"], seed=0
    )
    fill(model.replay_buffer)
    model.set_logger(configure(None, []))
    return lambda: model.train(gradient_steps=spec["utd"], batch_size=BATCH_SIZE)


def sbx_sac(spec: dict[str, Any]) -> Callable[[], None]:
    import jax
    from sbx import SAC
    from stable_baselines3.common.logger import configure

    policy_kwargs = {"n_critics": spec["n_critics"], "layer_norm": spec.get("layer_norm", False)}
    model = SAC("MlpPolicy", RandomEnv(), buffer_size=20_000, policy_kwargs=policy_kwargs, seed=0)
    fill(model.replay_buffer)
    model.set_logger(configure(None, []))
    model.num_timesteps = 1000

    def work() -> None:
        model.train(gradient_steps=spec["utd"], batch_size=BATCH_SIZE)
        # JAX returns before the arithmetic is done
        jax.block_until_ready((model.policy.qf_state.params, model.policy.actor_state.params))

    return work


def products(spec: dict[str, Any]) -> Callable[[], None]:
    """The bound: the matrix products of ``utd`` critic updates and one actor update at their true shapes, alone."""
    import torch as th

    from sb3_ext.common.engine.matmul import onednn_is_fp32
    from sb3_ext.common.engine.process import tune_process

    if spec["device"] == "cpu":
        tune_process()  # else page faults of the results are measured
        th.set_float32_matmul_precision("medium" if onednn_is_fp32() else "highest")
    n, device, inputs = spec["n_critics"], spec["device"], OBS_DIM + ACTION_DIM

    def tensor(*shape: int) -> th.Tensor:
        return th.randn(*shape, device=device)

    x, h, q = tensor(n, BATCH_SIZE, inputs), tensor(n, BATCH_SIZE, HIDDEN), tensor(n, BATCH_SIZE, 1)
    w0, w1, w2 = tensor(n, inputs, HIDDEN), tensor(n, HIDDEN, HIDDEN), tensor(n, HIDDEN, 1)
    obs, latent, mean = tensor(BATCH_SIZE, OBS_DIM), tensor(BATCH_SIZE, HIDDEN), tensor(BATCH_SIZE, ACTION_DIM)
    a0, a1, a2 = tensor(OBS_DIM, HIDDEN), tensor(HIDDEN, HIDDEN), tensor(HIDDEN, ACTION_DIM)

    def transposed(matrix: th.Tensor) -> th.Tensor:
        return matrix.transpose(-1, -2)

    def critics_forward(k: int) -> None:
        th.bmm(x[:k], w0[:k]), th.bmm(h[:k], w1[:k]), th.bmm(h[:k], w2[:k])

    def actor_forward() -> None:  # mean and standard deviation have a head each
        th.mm(obs, a0), th.mm(latent, a1), th.mm(latent, a2), th.mm(latent, a2)

    def work() -> None:
        for _ in range(spec["utd"]):
            actor_forward()
            critics_forward(2)
            critics_forward(n)
            th.bmm(transposed(h), q), th.bmm(q, transposed(w2))
            th.bmm(transposed(h), h), th.bmm(h, transposed(w1)), th.bmm(transposed(x), h)
        actor_forward()
        critics_forward(n)
        th.bmm(q, transposed(w2)), th.bmm(h, transposed(w1)), th.bmm(h, transposed(w0))
        for _ in range(2):
            th.mm(transposed(latent), mean), th.mm(mean, transposed(a2))
        th.mm(transposed(latent), latent), th.mm(latent, transposed(a1)), th.mm(transposed(obs), latent)

    return work


def loop_redq(spec: dict[str, Any]) -> Callable[[], None]:
    from sb3_ext import REDQ

    policy_kwargs = {"layer_norm": spec.get("layer_norm", False)}
    model = REDQ(
        "MlpPolicy",
        HAMMER,
        n_critics=spec["n_critics"],
        utd_ratio=spec["utd"],
        policy_kwargs=policy_kwargs,
        update_backend=spec.get("backend", "compiled"),
        device=spec["device"],
        seed=0,
    )
    return learning(model)


def loop_sb3_sac(spec: dict[str, Any]) -> Callable[[], None]:
    from stable_baselines3 import SAC

    import sb3_ext_envs  # noqa: F401

    policy_kwargs = {"n_critics": spec["n_critics"]}
    model = SAC(
        "MlpPolicy", HAMMER, policy_kwargs=policy_kwargs, gradient_steps=spec["utd"], device=spec["device"], seed=0
    )
    return learning(model)


def learning(model: Any) -> Callable[[], None]:
    """``LOOP_STEPS`` steps of ``learn`` at a call."""
    model.learn(150)  # past the random actions, and compiled
    return lambda: model.learn(LOOP_STEPS, reset_num_timesteps=False)


# `learn` has a start-up of its own, which single steps would measure
LOOP_STEPS = 100
VARIANTS = {
    "redq": redq,
    "looped": redq_loop,
    "sb3_sac": sb3_sac,
    "sbx_sac": sbx_sac,
    "products": products,
    "loop_redq": loop_redq,
    "loop_sb3_sac": loop_sb3_sac,
}


def no_wait() -> None:
    """A CPU is done when the call returns."""


def main() -> None:
    spec = json.loads(sys.argv[1])
    wait: Callable[[], None] = no_wait
    if spec["variant"] != "sbx_sac":
        import torch as th

        th.set_num_threads(spec["threads"])
        if spec["device"] == "cuda":
            wait = th.cuda.synchronize
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        work = VARIANTS[spec["variant"]](spec)
        start = time.perf_counter()
        for _ in range(2):
            work()
        wait()
        print("ready", round(time.perf_counter() - start, 2), file=answers, flush=True)
        for line in sys.stdin:
            start = time.perf_counter()
            for _ in range(int(line)):
                work()
            wait()
            print(time.perf_counter() - start, file=answers, flush=True)


if __name__ == "__main__":
    main()
