"""
All learning curves of ``docs/results/offline``: algorithms on datasets, three seeds each, two runs at a time with one
thread each. A curve that has its whole CSV is not run again.

    make .venv-d3rlpy/.installed
    python benchmarks/offline/suite.py --data ../shared/data
    python benchmarks/offline/suite.py --data ../shared/data --only antmaze-umaze/IQL online --seeds 0
    python benchmarks/offline/suite.py --data ../shared/data --list
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import rl_zoo_configs

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "docs/results/offline"

# Dataset -> environment whose entry in rl_zoo_configs says how long each algorithm learns
ENVIRONMENTS = {
    "antmaze-umaze": "AntMazeFlat/UMaze-v4",
    "antmaze-medium-diverse": "AntMazeFlat/Medium-v4",
    "hopper-mixed": "Hopper-v4",
}
EVAL_FREQ = 10_000
# Gradient steps on a dataset, steps between evaluations, environment steps that follow
ONLINE_LENGTHS = {"antmaze-umaze": (20_000, 20_000, 100_000)}
ONLINE = "-online"

ALGORITHMS = {"BC": "bc", "AWAC": "awac", "IQL": "iql", "ReBRAC": "rebrac", "Cal-QL": "calql", "EDAC": "edac"}
# Its paper has no mazes
ONLY_ON = {"EDAC": "hopper-mixed"}
FLAT_ON_MEDIUM = (
    "n_steps=10",
    "gamma=0.995",
    "tau=0.01",
    "learning_rate=cos_1e-3",
    "dataset_kwargs={reward_shift: -1}",
)
# As published, where the configuration has a hierarchical policy: gradient steps, what differs
FLAT = {
    "antmaze-umaze/AWAC": (20_000, ("n_steps=10", "deterministic_actor=false", "policy_kwargs=null")),
    "antmaze-umaze/IQL": (
        20_000,
        (
            "action_values=true",
            "n_steps=10",
            "tau=0.01",
            "weight_temp=0.1",
            "deterministic_actor=false",
            "policy_kwargs=null",
        ),
    ),
    "antmaze-umaze/ReBRAC": (
        20_000,
        ("n_steps=10", "actor_bc_coef=1.0", "policy_kwargs={net_arch: [256, 256]}"),
    ),
    "antmaze-umaze/Cal-QL": (
        20_000,
        ("n_steps=10", "cql_alpha=5.0", "actor_bc_coef=1.0", "policy_kwargs=null"),
    ),
    "antmaze-medium-diverse/AWAC": (
        20_000,
        (*FLAT_ON_MEDIUM, "deterministic_actor=false", "awac_lambda=3.0", "policy_kwargs=null"),
    ),
    "antmaze-medium-diverse/IQL": (
        40_000,
        ("n_steps=25", "dataset_kwargs={reward_shift: -1}", "deterministic_actor=false", "policy_kwargs=null"),
    ),
    "antmaze-medium-diverse/ReBRAC": (
        20_000,
        (
            *FLAT_ON_MEDIUM,
            "actor_bc_coef=1.0",
            "actor_learning_rate=null",
            "target_policy_noise=null",
            "batch_size=null",
            "policy_kwargs={net_arch: [256, 256]}",
        ),
    ),
    "antmaze-medium-diverse/Cal-QL": (
        20_000,
        (
            *FLAT_ON_MEDIUM,
            "cql_alpha=5.0",
            "actor_bc_coef=1.0",
            "actor_learning_rate=null",
            "ent_coef=null",
            "n_critics=null",
            "batch_size=null",
            "policy_kwargs=null",
        ),
    ),
}
# Hierarchies as they were before symmetry was known: rows, and arguments of the policy that they lack
BEFORE = ", before symmetry"
WITHOUT = {
    "antmaze-umaze": {
        BEFORE: ("symmetry", "subgoal_quantile"),
        f"{BEFORE}, no memory": ("symmetry", "subgoal_quantile", "memory_radius"),
    },
    "antmaze-medium-diverse": {BEFORE: ("symmetry", "memory_radius")},
}
# There a low level large enough to learn the data's noise, for long enough, gets ants out of standing: steps, arguments
# of the policy, other changes
LARGE = {"low_level_net_arch": [256, 256, 256]}
BEFORE_ON_MEDIUM: dict[str, tuple[int, dict[str, Any], tuple[str, ...]]] = {
    "AWAC": (40_000, LARGE, ()),
    "IQL": (40_000, {**LARGE, "subgoal_quantile": None}, ()),
    "ReBRAC": (20_000, LARGE, ("actor_bc_coef=0.15",)),
    "Cal-QL": (20_000, LARGE, ()),
}

# What differs where collection follows: half an update for each step
HALF_AN_UPDATE = ("train_freq=4", "gradient_steps=2")
ENDS_WHERE_IT_STANDS = (
    "dataset_kwargs={reward_shift: -1, transforms: [successful_episodes, {name: moving_steps, truncates: true}]}",
)
# One that searches for the goal stays within a metre for long: what hardly moves stands
ENDS_WHERE_IT_HARDLY_MOVES = (
    "dataset_kwargs={reward_shift: -1, transforms: [successful_episodes, moving_steps, "
    "{name: moving_steps, distance: 0.3, horizon: 60, truncates: true}]}",
)
ONLINE_ALGORITHMS = {
    "AWAC": ENDS_WHERE_IT_STANDS,
    "IQL": (),
    "ReBRAC": ENDS_WHERE_IT_HARDLY_MOVES,
    "Cal-QL": ENDS_WHERE_IT_HARDLY_MOVES,
}
# IQL collects by its mean, Cal-QL by its own noise
ACTION_NOISE = {"AWAC": "0.1", "ReBRAC": "0.1"}
PEER = "d3rlpy "
PEERS = {"AWAC": "awac", "IQL": "iql"}
# Its defaults are for rewards of another size: temperature and expectile that ours have without a hierarchy
OUR_TEMPERATURE = ", our temperature"
TEMPERATURES = {
    "antmaze-umaze/AWAC": ("lam=10.0",),
    "antmaze-umaze/IQL": ("weight_temp=0.1", "expectile=0.8"),
    "hopper-mixed/AWAC": ("lam=10.0",),
    "hopper-mixed/IQL": ("weight_temp=0.1", "expectile=0.7"),
}
# Whether products of less precision learn as well is seen on one curve
IN_BF16 = "hopper-mixed/IQL"
# Cloning of a part of the data alone
SUCCESSFUL = {"BC, successful runs": "dataset_kwargs={transforms: [successful_episodes]}"}
MOVING = {"BC, successful runs, without standing": "dataset_kwargs={transforms: [successful_episodes, moving_steps]}"}
CLONED_PARTS = {
    "antmaze-umaze": SUCCESSFUL | MOVING,
    "antmaze-medium-diverse": SUCCESSFUL,
    "hopper-mixed": {"BC, best 10 %": "top_percent=10"},
}


@dataclass(frozen=True)
class Plan:
    """
    One curve.

    :param dataset: name of its file, without the ending
    :param script: that makes it
    :param arguments: of the script, without data, seed and output
    :param total: steps of the last row of its CSV
    """

    dataset: str
    script: str
    arguments: tuple[str, ...]
    total: int


def plan(
    dataset: str,
    algo: str,
    *arguments: str,
    script: str = "train.py",
    is_online: bool = False,
    n_timesteps: int | None = None,
) -> Plan:
    """
    :param n_timesteps: gradient steps; the configuration's if None
    """
    if n_timesteps is None:
        n_timesteps = int(entry(dataset, algo)["n_timesteps"])
    steps, eval_freq, online = ONLINE_LENGTHS[dataset] if is_online else (n_timesteps, EVAL_FREQ, 0)
    lengths = ["--steps", str(steps), "--eval-freq", str(eval_freq)]
    if online > 0:
        lengths += ["--online", str(online)]
    return Plan(dataset, script, ("--algo", algo, *lengths, *arguments), steps + online)


def entry(dataset: str, algo: str) -> dict[str, Any]:
    """Of the configuration."""
    return yaml.safe_load(rl_zoo_configs.config_path(algo).read_text())[ENVIRONMENTS[dataset]]


def without(dataset: str, algo: str, names: Iterable[str], others: Mapping[str, Any] | None = None) -> str:
    """The change that leaves arguments of the configuration's policy out, and has others."""
    left = {name: value for name, value in entry(dataset, algo)["policy_kwargs"].items() if name not in names}
    left |= others or {}
    return f"policy_kwargs={yaml.safe_dump(left, default_flow_style=True, width=1000).strip()}"


def plans() -> dict[str, Plan]:
    """All curves by name, ``dataset/algorithm``, in the order of the tables."""
    found = {}
    for dataset, parts in CLONED_PARTS.items():
        for name, algo in ALGORITHMS.items():
            if ONLY_ON.get(name, dataset) != dataset:
                continue
            found[f"{dataset}/{name}"] = plan(dataset, algo)
            if name == "BC":
                found |= {f"{dataset}/{part}": plan(dataset, algo, "--set", change) for part, change in parts.items()}
            if entry(dataset, algo).get("policy") == "HierarchicalPolicy":
                is_medium = dataset == "antmaze-medium-diverse"
                steps, others, changes = BEFORE_ON_MEDIUM[name] if is_medium else (None, {}, ())
                for row, names in WITHOUT[dataset].items():
                    arguments = ("--set", without(dataset, algo, names, others), *changes)
                    found[f"{dataset}/{name}{row}"] = plan(dataset, algo, *arguments, n_timesteps=steps)
            if f"{dataset}/{name}" in FLAT:
                steps, changes = FLAT[f"{dataset}/{name}"]
                flat = plan(dataset, algo, "--set", "policy=MlpPolicy", *changes, n_timesteps=steps)
                found[f"{dataset}/{name}, MlpPolicy"] = flat
            if f"{dataset}/{name}" == IN_BF16:
                found[f"{IN_BF16}, bf16"] = plan(dataset, algo, "--set", "matmul_precision=bf16")
        for name, algo in PEERS.items():
            found[f"{dataset}/{PEER}{name}"] = plan(dataset, algo, script="peer_d3rlpy.py")
            if changes := TEMPERATURES.get(f"{dataset}/{name}"):
                warmer = plan(dataset, algo, "--set", *changes, script="peer_d3rlpy.py")
                found[f"{dataset}/{PEER}{name}{OUR_TEMPERATURE}"] = warmer
    for dataset in ONLINE_LENGTHS:
        for name, changes in ONLINE_ALGORITHMS.items():
            noise = ("--action-noise", ACTION_NOISE[name]) if name in ACTION_NOISE else ()
            algo, arguments = ALGORITHMS[name], (*noise, "--set", *HALF_AN_UPDATE, *changes)
            found[f"{dataset}{ONLINE}/{name}"] = plan(dataset, algo, *arguments, is_online=True)
            same = without(dataset, algo, WITHOUT[dataset][BEFORE])
            found[f"{dataset}{ONLINE}/{name}{BEFORE}"] = plan(dataset, algo, *arguments, same, is_online=True)
    return found


def last_row(path: Path) -> dict[str, str]:
    """Of a CSV; empty where there is none, and where it is half written."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows[-1] if rows and None not in rows[-1].values() else {}


def is_complete(path: Path, total: int) -> bool:
    """Whether a CSV has its last row."""
    return last_row(path).get("step") == str(total)


def to_do(seeds: Iterable[int], only: Iterable[str], results: Path = RESULTS) -> list[tuple[str, int]]:
    """
    Names and seeds of runs without a whole CSV; the first seed of every curve comes first.

    :param only: whole names, or parts of them; everything if empty
    :raises ValueError: one is in no name
    """
    every = plans()
    if unknown := [part for part in only if not any(part in name for name in every)]:
        raise ValueError(f"There is no curve {unknown}, but {list(every)}.")

    def is_meant(name: str) -> bool:
        return not only or any(name == part if part in every else part in name for part in only)

    chosen = {name: p for name, p in every.items() if is_meant(name)}
    return [
        (name, seed)
        for seed in seeds
        for name, p in chosen.items()
        if not is_complete(results / name / f"seed{seed}.csv", p.total)
    ]


def command(name: str, seed: int, args: argparse.Namespace) -> list[str]:
    chosen = plans()[name]
    python = args.d3rlpy_python if name_is_peer(name) else sys.executable
    data = args.data / f"{chosen.dataset}.hdf5"
    output = args.output / name
    script = str(HERE / chosen.script)
    arguments = [*chosen.arguments, "--data", str(data), "--seed", str(seed), "--output", str(output)]
    return [python, "-W", "ignore", script, *arguments]


def name_is_peer(name: str) -> bool:
    return name.rsplit("/", 1)[1].startswith(PEER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets' files")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="PART", help="curves of these names, or with this in them"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--d3rlpy-python", default=str(ROOT / ".venv-d3rlpy/bin/python"))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--list", action="store_true", help="print names and commands, and run nothing")
    args = parser.parse_args()

    try:
        runs = to_do(args.seeds, args.only, args.output)
    except ValueError as error:
        parser.error(str(error))
    if not Path(args.d3rlpy_python).exists() and any(name_is_peer(name) for name, _ in runs):
        print(f"There is no {args.d3rlpy_python}: curves of d3rlpy are left out. `make .venv-d3rlpy/.installed`")
        runs = [(name, seed) for name, seed in runs if not name_is_peer(name)]
    if args.list:
        for name, seed in runs:
            print(f"{name}, seed {seed}: {shlex.join(command(name, seed, args))}")
        return

    def run(job: tuple[str, int]) -> bool:
        name, seed = job
        start = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command(name, seed, args), env=environment, capture_output=True, text=True)
        # One that fails does not stop the others
        if done.returncode == 0:
            state = f"done, score {last_row(args.output / name / f'seed{seed}.csv').get('score')}"
        else:
            state = f"FAILED: {''.join(done.stderr.strip().splitlines()[-1:])}"
        print(f"{name} seed {seed}, {time.perf_counter() - start:.0f} s: {state}", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(run, runs))
    if not all(results):
        sys.exit(f"{results.count(False)} of {len(results)} runs failed.")


if __name__ == "__main__":
    main()
