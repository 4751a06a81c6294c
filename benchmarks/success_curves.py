"""
All success curves of ``docs/results/hammer``, ``tasks`` and ``bcppo``: three seeds each, two runs at a time.

    python benchmarks/success_curves.py
    python benchmarks/success_curves.py --only bcppo

A curve that has its CSV is not run again.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs/results"
QUICK = ["--set", "n_critics=2", "utd_ratio=1", "policy_delay=5"]
ANCHORED = ["--algo", "bcppo", "--timesteps", "100000", "--eval-freq", "20000"]
# SB3's own settings, with the policy and the clone of the recipe
USUAL = ["n_steps=2048", "batch_size=64", "learning_rate=3e-4", "gae_lambda=0.95", "target_kl=null"]
FIRST_UPDATES = ["--algo", "bcppo", "--timesteps", "20480", "--eval-freq", "4096"]

CURVES = {
    "hammer/REDQ 2 critics, UTD 1": ["--timesteps", "15000", *QUICK],
    "hammer/REDQ 10 critics, UTD 5": ["--timesteps", "5000", "--eval-freq", "500"],
    "tasks/drawer-open": ["--env", "MetaWorldSparse/drawer-open-v3", "--timesteps", "5000", *QUICK],
    "tasks/door-open": ["--env", "MetaWorldSparse/door-open-v3", "--timesteps", "5000", *QUICK],
    "tasks/button-press-topdown": ["--env", "MetaWorldSparse/button-press-topdown-v3", "--timesteps", "5000", *QUICK],
    "hammer/SB3 SAC, demos in its buffer": ["--algo", "sac", "--timesteps", "10000", "--eval-freq", "5000"],
    "tasks/peg-insert-side": ["--env", "MetaWorldSparse/peg-insert-side-v3", "--timesteps", "5000", *QUICK],
    "bcppo/hammer/BCPPO": ANCHORED,
    "bcppo/hammer/BCPPO without KL": [*ANCHORED, "--set", "kl_coef=0"],
    "bcppo/hammer/PPO after pretrain": ["--algo", "ppo-pretrained", *ANCHORED[2:]],
    "bcppo/hammer/PPO, no demonstrations": ["--algo", "ppo", "--timesteps", "100000", "--eval-freq", "50000"],
    "bcppo/tasks/door-open": ["--env", "MetaWorldSparse/door-open-v3", *ANCHORED],
    "bcppo/tasks/drawer-open": ["--env", "MetaWorldSparse/drawer-open-v3", *ANCHORED],
    "bcppo/first_updates/BCPPO": FIRST_UPDATES,
    "bcppo/first_updates/BCPPO without KL": [*FIRST_UPDATES, "--set", "kl_coef=0"],
    "bcppo/usual_settings/BCPPO": [*ANCHORED, "--timesteps", "60000", "--set", *USUAL],
    "bcppo/usual_settings/BCPPO without KL": [*ANCHORED, "--timesteps", "60000", "--set", *USUAL, "kl_coef=0"],
}


def runs(seeds: range, part: str) -> list[list[str]]:
    """Arguments of ``success.py`` for every run that is still to do."""
    return [
        [*arguments, "--seed", str(seed), "--output", str(RESULTS / name)]
        for name, arguments in CURVES.items()
        for seed in seeds
        if part in name and not (RESULTS / name / f"seed{seed}.csv").exists()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="PART", help="curves with this in their names")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()

    def run(arguments: list[str]) -> None:
        print(" ".join(arguments), flush=True)
        subprocess.run([sys.executable, "-W", "ignore", str(HERE / "success.py"), *arguments], check=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, runs(range(args.seeds), args.only)))


if __name__ == "__main__":
    main()
