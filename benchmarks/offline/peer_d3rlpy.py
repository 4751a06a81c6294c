"""
One run of d3rlpy's AWAC or IQL on the same data, for as many gradient steps and with the same evaluation episodes as
``train.py``: the CSV has the same columns.

    make .venv-d3rlpy/.installed
    .venv-d3rlpy/bin/python benchmarks/offline/peer_d3rlpy.py --algo iql --data ../shared/data/antmaze-umaze.hdf5 \
        --seed 0 --output runs/d3rlpy-iql

The discount factor and the shift of the rewards are those of ``rl_zoo_configs/<algo>.yml``, the batch size is 256,
observations are standardised by the same statistics; the rest, 256x256 networks too, is d3rlpy's default or comes by
``--set``. The time includes d3rlpy's own ``fit``, without progress bar and files.
"""

from typing import Any

import numpy as np
from train import Curve, Evaluation, hyperparameters, make_parser, parse_changes

from sb3_ext.datasets import Dataset, load

ALGORITHMS = {"awac": "AWACConfig", "iql": "IQLConfig"}
BATCH_SIZE = 256


def columns(dataset: Dataset) -> dict[str, np.ndarray]:
    """
    Arguments of ``MDPDataset``. It takes no transition from the last row of an episode that was cut off, since it does
    not know what that step led to: such episodes get one more row, with that observation, so that d3rlpy has just our
    transitions.
    """
    cut = np.flatnonzero(dataset.ends & ~dataset.terminations)
    after = cut + 1
    next_observations = dataset.frames[dataset.next_rows[cut]]  # type: ignore[index]
    return {
        "observations": np.insert(dataset.observations, after, next_observations, axis=0),  # type: ignore[arg-type]
        "actions": np.insert(dataset.actions, after, 0, axis=0),
        "rewards": np.insert(dataset.rewards, after, 0),
        "terminals": np.insert(dataset.terminations, after, False).astype(np.float32),
        "timeouts": np.insert(np.zeros(len(dataset), dtype=np.float32), after, 1),
    }


def make_algo(algo: str, dataset: Dataset, gamma: float, changes: dict[str, Any]) -> Any:
    """d3rlpy's algorithm with our statistics of the observations."""
    import d3rlpy

    observations = np.asarray(dataset.observations, dtype=np.float64)
    mean, std = observations.mean(axis=0), observations.std(axis=0)
    scaler = d3rlpy.preprocessing.StandardObservationScaler(mean=mean, std=std)
    config = getattr(d3rlpy.algos, ALGORITHMS[algo])
    return config(**{"observation_scaler": scaler, "batch_size": BATCH_SIZE, "gamma": gamma, **changes}).create("cpu")


def main() -> None:
    import d3rlpy
    import torch as th

    parser = make_parser(__doc__, ALGORITHMS)
    args = parser.parse_args()
    params = hyperparameters(args.algo, load(args.data))
    if args.steps is None:
        args.steps = int(params["n_timesteps"])
    if args.steps % args.eval_freq != 0:
        parser.error("--steps has to be a multiple of --eval-freq, since d3rlpy trains in epochs.")

    th.set_num_threads(args.threads)
    d3rlpy.seed(args.seed)
    changes = parse_changes(args.set)
    dataset = load(args.data, **params.get("dataset_kwargs", {}))
    space: Any = dataset.metadata.action_space
    if not (np.all(space.low == -1) and np.all(space.high == 1)):
        raise ValueError(f"Actions have to be in [-1, 1], without d3rlpy's action scaler; they are {space}.")
    transitions = d3rlpy.dataset.MDPDataset(**columns(dataset), action_space=d3rlpy.ActionSpace.CONTINUOUS)
    assert transitions.transition_count == len(dataset)
    algo = make_algo(args.algo, dataset, params.get("gamma", 0.99), changes)
    curve = Curve(args.output / f"seed{args.seed}.csv", Evaluation(load(args.data), args.episodes))
    algo.fit(
        transitions,
        n_steps=args.steps,
        n_steps_per_epoch=args.eval_freq,
        show_progress=False,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        epoch_callback=lambda algo, epoch, step: curve.add(step, lambda obs, state: (algo.predict(obs), state)),
    )


if __name__ == "__main__":
    main()
