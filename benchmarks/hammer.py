"""
All success curves of ``docs/results/hammer`` and ``docs/results/tasks``: three seeds each, two runs at a time.

    python benchmarks/hammer.py

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


CURVES = {
    "hammer/REDQ 2 critics, UTD 1": ["--timesteps", "15000", *QUICK],
    "hammer/REDQ 10 critics, UTD 5": ["--timesteps", "5000", "--eval-freq", "500"],
    "tasks/drawer-open": ["--env", "MetaWorldSparse/drawer-open-v3", "--timesteps", "5000", *QUICK],
    "tasks/door-open": ["--env", "MetaWorldSparse/door-open-v3", "--timesteps", "5000", *QUICK],
    "tasks/button-press-topdown": ["--env", "MetaWorldSparse/button-press-topdown-v3", "--timesteps", "5000", *QUICK],
    "hammer/SB3 SAC, demos in its buffer": ["--algo", "sac", "--timesteps", "10000", "--eval-freq", "5000"],
    "tasks/peg-insert-side": ["--env", "MetaWorldSparse/peg-insert-side-v3", "--timesteps", "5000", *QUICK],
}


def runs(seeds: range) -> list[list[str]]:
    """Arguments of ``success.py`` for every run that is still to do."""
    return [
        [*arguments, "--seed", str(seed), "--output", str(RESULTS / name)]
        for name, arguments in CURVES.items()
        for seed in seeds
        if not (RESULTS / name / f"seed{seed}.csv").exists()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()

    def run(arguments: list[str]) -> None:
        print(" ".join(arguments), flush=True)
        subprocess.run([sys.executable, "-W", "ignore", str(HERE / "success.py"), *arguments], check=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, runs(range(args.seeds))))


if __name__ == "__main__":
    main()
