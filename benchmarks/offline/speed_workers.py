"""
One variant of the speed benchmark in its own process: reads a number of gradient steps a line, answers with the seconds
they took.

    python benchmarks/offline/speed_workers.py '{"library": "plain", "algorithm": "IQL", "threads": 2}'

A gradient step is a whole one of a training loop, with the batch's sampling. The training loop runs for ever, and
stands still between turns: starting it costs nothing that is measured.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

OBS_DIM, ACTION_DIM, BATCH_SIZE, HIDDEN = 29, 8, 256, 256
ROWS, EPISODE_STEPS = 20_000, 200
# Past compiling, and a multiple of ours' batches in one gather
WARM_UP_STEPS = 100
# What `update_backend="auto"` decides on: gradient steps of a usual run
PLANNED_STEPS = 100_000
OURS: dict[str, dict[str, Any]] = {
    "AWAC": {},
    "IQL": {},
    "ReBRAC": {},
    "CalQL": {"n_actions": 4},
    "EDAC": {"n_critics": 10},
    "BC": {},
}


class Turns:
    """
    Called after each gradient step: at the end of a turn it answers, and waits for the next.

    :param answers: where to write
    """

    def __init__(self, answers: Any):
        self.answers, self.left, self.start = answers, WARM_UP_STEPS, time.perf_counter()
        self.note = "ready"

    def __call__(self) -> None:
        self.left -= 1
        if self.left > 0:
            return
        seconds = time.perf_counter() - self.start
        # The first answer is of the warm-up
        print(self.note or seconds, file=self.answers, flush=True)
        self.note = ""
        line = sys.stdin.readline()
        if not line:
            sys.exit()
        self.left, self.start = int(line), time.perf_counter()


def random_data() -> dict[str, np.ndarray]:
    """Random transitions in episodes that are cut off."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(ROWS, OBS_DIM)).astype(np.float32)
    actions = rng.uniform(-1, 1, size=(ROWS, ACTION_DIM)).astype(np.float32)
    truncations = np.arange(1, ROWS + 1) % EPISODE_STEPS == 0
    return {
        "observations": observations,
        "actions": actions,
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "next_observations": np.roll(observations, -1, axis=0),
        "terminations": np.zeros(ROWS, dtype=bool),
        "truncations": truncations,
    }


def ours(spec: dict[str, Any], turns: Turns) -> None:
    from gymnasium import spaces
    from stable_baselines3.common.callbacks import BaseCallback

    import sb3_ext
    from sb3_ext.datasets import Dataset, Metadata

    class TurnsCallback(BaseCallback):
        def _on_step(self) -> bool:
            if turns.note:  # which may differ from what was asked for
                turns.note = self.model.engine.backend
            turns()
            return True

    metadata = Metadata(
        observation_space=spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32),
        action_space=spaces.Box(-1, 1, (ACTION_DIM,), np.float32),
    )
    model = getattr(sb3_ext, spec["algorithm"])(
        "MlpPolicy",
        None,
        dataset=Dataset.from_arrays(random_data(), metadata=metadata),
        batch_size=BATCH_SIZE,
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN]},
        update_backend=spec["backend"],
        matmul_precision=spec.get("precision", "fp32"),
        device="cpu",
        seed=0,
        **OURS[spec["algorithm"]],
    )
    while True:
        model.learn(PLANNED_STEPS, callback=TurnsCallback())


def plain(spec: dict[str, Any], turns: Turns) -> None:
    from plain import PLAIN

    data = random_data()
    del data["truncations"]
    data["next_actions"] = np.roll(data["actions"], -1, axis=0)
    algorithm = PLAIN[spec["algorithm"]](data, HIDDEN, BATCH_SIZE)
    while True:
        algorithm.step()
        turns()


def d3rlpy_of(spec: dict[str, Any]) -> tuple[Any, Any]:
    """d3rlpy's algorithm and data."""
    import d3rlpy

    data = random_data()
    transitions = d3rlpy.dataset.MDPDataset(
        data["observations"],
        data["actions"],
        data["rewards"],
        data["terminations"].astype(np.float32),
        data["truncations"].astype(np.float32),
        action_space=d3rlpy.ActionSpace.CONTINUOUS,
    )
    factory = d3rlpy.models.VectorEncoderFactory
    encoders = {"actor_encoder_factory": factory([HIDDEN, HIDDEN])}
    encoders["critic_encoder_factory"] = factory([HIDDEN, HIDDEN], use_layer_norm=spec["algorithm"] == "ReBRAC")
    if spec["algorithm"] == "IQL":
        encoders["value_encoder_factory"] = factory([HIDDEN, HIDDEN])
    config = getattr(d3rlpy.algos, f"{spec['algorithm']}Config")
    return config(batch_size=BATCH_SIZE, **encoders).create("cpu"), transitions


def d3rlpy_update(spec: dict[str, Any], turns: Turns) -> None:
    """Batches of its own sampler and ``update``, and nothing else."""
    algo, transitions = d3rlpy_of(spec)
    algo.build_with_dataset(transitions)
    while True:
        algo.update(transitions.sample_transition_batch(BATCH_SIZE))
        turns()


def d3rlpy_fit(spec: dict[str, Any], turns: Turns) -> None:
    """Its ``fit`` with epochs of the default 10,000 steps, without progress bar and files."""
    import d3rlpy

    algo, transitions = d3rlpy_of(spec)
    algo.fit(
        transitions,
        n_steps=10**8,
        show_progress=False,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        callback=lambda algo, epoch, step: turns(),
    )


LIBRARIES: dict[str, Callable[[dict[str, Any], Turns], None]] = {
    "ours": ours,
    "plain": plain,
    "d3rlpy update": d3rlpy_update,
    "d3rlpy fit": d3rlpy_fit,
}


def main() -> None:
    import torch as th

    spec = json.loads(sys.argv[1])
    th.set_num_threads(spec["threads"])
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        LIBRARIES[spec["library"]](spec, Turns(answers))


if __name__ == "__main__":
    main()
