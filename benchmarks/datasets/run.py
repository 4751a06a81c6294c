"""
How long does it take to get a million transitions into a buffer to train from, and how much memory?

Every measurement is a process of its own, which reads the same files (in the page cache) and prints seconds and the
growth of its peak memory; variants take turns, so that a busy machine slows all of them. Ratios are per round.

    python benchmarks/datasets/run.py --output docs/results/datasets
    python benchmarks/datasets/run.py --d3rlpy-python .venv-d3rlpy/bin/python --output docs/results/datasets
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe

WORKER = Path(__file__).with_name("workers.py")

# Variant -> file and the variant that it is held against
VARIANTS: dict[str, tuple[str, str | None]] = {
    "h5py, plain file": ("plain.hdf5", None),
    "ours, plain file": ("plain.hdf5", "h5py, plain file"),
    "h5py, gzip file": ("gzip.hdf5", None),
    "ours, gzip file, no cache": ("gzip.hdf5", "h5py, gzip file"),
    "ours, gzip file, first load": ("gzip.hdf5", "h5py, gzip file"),
    "ours, gzip file, from the cache": ("gzip.hdf5", "h5py, gzip file"),
    "iterate_episodes, Minari": ("bench/million-v0", None),
    "ours, Minari, no cache": ("bench/million-v0", "iterate_episodes, Minari"),
    "ours, Minari, first load": ("bench/million-v0", "iterate_episodes, Minari"),
    "ours, Minari, from the cache": ("bench/million-v0", "iterate_episodes, Minari"),
    "d3rlpy, Minari": ("bench/million-v0", None),
}
NEEDS_D3RLPY = "d3rlpy, Minari"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="transitions, 29 + 8 entries each")
    parser.add_argument("--episode-steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--d3rlpy-python", help="Python of an environment with d3rlpy and minari[hdf5]")
    parser.add_argument("--output", type=Path, help="folder for the CSV")
    args = parser.parse_args()

    names = [name for name in VARIANTS if name != NEEDS_D3RLPY or args.d3rlpy_python]
    with tempfile.TemporaryDirectory() as folder:
        _work(folder, sys.executable, "make", str(args.rows), str(args.episode_steps))
        results: list[dict[str, str | float]] = []
        for round_ in range(args.rounds):
            for name in names:
                if name.endswith(("no cache", "first load")):
                    shutil.rmtree(Path(folder, "cache"), ignore_errors=True)
                python = args.d3rlpy_python if name == NEEDS_D3RLPY else sys.executable
                result = _work(folder, python, name, VARIANTS[name][0])
                results.append({"round": round_, "variant": name, **result})
                print(f"{round_} {name:34} {result['seconds']:7.3f} s {result['peak_mb']:7.0f} MB", flush=True)
    table = _table(results, names, args.rows)
    print(f"{describe()}\n\n{table}")
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        with (args.output / "loading.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(results[0]))
            writer.writeheader()
            writer.writerows(results)


def _work(folder: str, python: str, *arguments: str) -> dict[str, float]:
    environment = {
        **os.environ,
        "MINARI_DATASETS_PATH": str(Path(folder, "minari")),
        "SB3_EXT_CACHE": str(Path(folder, "cache")),
    }
    done = subprocess.run(
        [python, "-W", "ignore", str(WORKER), folder, *arguments], env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _table(results: list[dict], names: list[str], rows: int) -> str:
    """Medians, and medians of the ratios per round."""
    seconds = {name: [row["seconds"] for row in results if row["variant"] == name] for name in names}
    peaks = {name: max(row["peak_mb"] for row in results if row["variant"] == name) for name in names}
    final = rows * (29 + 8 + 1 + 0.5) * 4 / 1e6  # observations, actions, rewards, two flags
    lines = [
        f"| {rows:,} transitions of 29 + 8 | seconds | times the reference (range) | peak memory / final columns |",
        "|---|---|---|---|",
    ]
    for name in names:
        reference = VARIANTS[name][1]
        against = ""
        if reference in seconds:
            ratios = sorted(mine / other for mine, other in zip(seconds[name], seconds[reference], strict=True))
            against = f"{median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})"
        lines.append(f"| {name} | {median(seconds[name]):.3f} | {against} | {peaks[name] / final:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
