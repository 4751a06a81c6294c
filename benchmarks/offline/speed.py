"""
Gradient steps per second of the offline algorithms against d3rlpy and against plain PyTorch, interleaved in one run.

    make .venv-d3rlpy/.installed
    python benchmarks/offline/speed.py --output docs/results/offline_speed
    python benchmarks/offline/speed.py --algorithms IQL --rounds 3

Each variant is a process of its own that waits for its turn, so that all of an algorithm share the machine's good and
bad minutes; a ratio is taken within a round. Writes a CSV of milliseconds a step for each algorithm, and a table.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
from machine import describe  # noqa: E402

ALGORITHMS = ("AWAC", "IQL", "ReBRAC", "CalQL", "EDAC", "BC")
COMPARED = ("AWAC", "IQL", "ReBRAC")
OURS = {
    "compiled": {"backend": "compiled"},
    "compiled, bf16": {"backend": "compiled", "precision": "bf16"},
    "no compiler": {"backend": "eager"},
    "auto": {"backend": "auto"},
}
PLAIN, UPDATE, FIT = "plain PyTorch", "d3rlpy, sampler and update", "d3rlpy, fit"
# Ours draw the batches of so many steps at once, and turns have to hold whole ones
CHUNK = 50
NOTES = f"""
Observations 29, actions 8, batch 256, networks 256x256 (ReBRAC: layer normalisation in the critics), Cal-QL with 4
actions, EDAC with 10 critics; no standardisation of observations. A step is a whole one with the sampling of its batch:
ours inside `learn` of 100,000 steps with a callback, plain PyTorch as one writes it with a module for each network,
d3rlpy once as its sampler and its `update` alone ("{UPDATE}"), once as its `fit` without progress bar and
files ("{FIT}"). Each variant is a process; processes take turns, and a ratio is taken within a round: min /
**median** / max.
"""


def variants(algorithm: str, with_d3rlpy: bool) -> dict[str, dict[str, Any]]:
    """What a worker of each variant is told."""
    found = {name: {"library": "ours", **how} for name, how in OURS.items()}
    if algorithm in COMPARED:
        found[PLAIN] = {"library": "plain"}
        if with_d3rlpy:
            found |= {UPDATE: {"library": "d3rlpy update"}, FIT: {"library": "d3rlpy fit"}}
    return {name: {**spec, "algorithm": algorithm} for name, spec in found.items()}


class Worker:
    """A variant in its process."""

    def __init__(self, spec: dict[str, Any], python: str):
        self.process = subprocess.Popen(
            [python, "-W", "ignore", str(HERE / "speed_workers.py"), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.note = self._answer()  # warm, and compiled

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A benchmark process died: {self.process.args}")
        return line.strip()

    def milliseconds(self, n_steps: int) -> float:
        """Time per gradient step."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{n_steps}\n")
        self.process.stdin.flush()
        return 1000 * float(self._answer()) / n_steps

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(algorithm: str, args: argparse.Namespace) -> tuple[list[dict[str, float]], str]:
    """Rows of milliseconds, one a round, and the backend that ``"auto"`` chose."""
    workers: dict[str, Worker] = {}
    try:
        for name, spec in variants(algorithm, args.d3rlpy_python is not None).items():
            python = args.d3rlpy_python if spec["library"].startswith("d3rlpy") else sys.executable
            workers[name] = Worker({**spec, "threads": args.threads}, python)
            asked = spec.get("backend", "auto")
            if asked != "auto" and workers[name].note != asked:
                raise RuntimeError(f"{algorithm}: updates run {workers[name].note}, not {asked}.")
        rows = []
        for _ in range(args.rounds):
            rows.append({name: worker.milliseconds(args.steps) for name, worker in workers.items()})
        return rows, workers["auto"].note
    finally:
        for worker in workers.values():
            worker.close()


def write_csv(path: Path, rows: Sequence[dict[str, float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({name: f"{value:.4f}" for name, value in row.items()} for row in rows)


def read_csv(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def times_as_fast(times: dict[str, np.ndarray], variant: str, other: str) -> str:
    """Ratios within rounds; empty without the other, or of it to itself."""
    if other not in times or variant == other:
        return ""
    ratios = times[other] / times[variant]
    return f"{ratios.min():.2f} / **{np.median(ratios):.2f}** / {ratios.max():.2f}"


def table(folder: Path) -> str:
    """Of all CSVs in a folder."""
    lines = [
        "| algorithm | variant | ms a step, median | steps/s | times plain PyTorch | times d3rlpy's update |",
        "|---|---|---|---|---|---|",
    ]
    for algorithm in ALGORITHMS:
        path = folder / f"{algorithm}.csv"
        if not path.exists():
            continue
        times = read_csv(path)
        for variant, milliseconds in times.items():
            median = np.median(milliseconds)
            lines.append(
                f"| {algorithm} | {variant} | {median:.2f} | {1000 / median:.0f} | "
                f"{times_as_fast(times, variant, PLAIN)} | {times_as_fast(times, variant, UPDATE)} |"
            )
    return "\n".join(lines) + "\n"


def d3rlpy_version(python: str | None) -> str:
    if python is None:
        return ""
    code = "from importlib.metadata import version; print(*[n + ' ' + version(n) for n in ('d3rlpy', 'torch')])"
    return "; " + subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="*", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=200, help=f"gradient steps a turn, a multiple of {CHUNK}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--d3rlpy-python", default=str(ROOT / ".venv-d3rlpy/bin/python"))
    parser.add_argument("--output", type=Path, default=Path("logs/offline_speed"), help="folder of the results")
    args = parser.parse_args()
    if args.steps % CHUNK != 0:
        parser.error(f"--steps has to be a multiple of {CHUNK}.")
    if not Path(args.d3rlpy_python).exists():
        print(f"There is no {args.d3rlpy_python}: d3rlpy is left out. `make .venv-d3rlpy/.installed`")
        args.d3rlpy_python = None

    chosen = {}
    for algorithm in args.algorithms:
        rows, chosen[algorithm] = measure(algorithm, args)
        write_csv(args.output / f"{algorithm}.csv", rows)
        for variant in rows[0]:
            print(f"{algorithm:8s} {variant:28s} {np.median([row[variant] for row in rows]):8.2f} ms", flush=True)
    command = shlex.join(["python", "benchmarks/offline/speed.py", *sys.argv[1:]])
    machine = f"`{command}`  \n{describe()}{d3rlpy_version(args.d3rlpy_python)}  \n"
    autos = '`"auto"` ran ' + ", ".join(f"{name} {backend}" for name, backend in chosen.items())
    text = f"# Speed of offline learning\n{NOTES}\n{machine}{autos}\n\n{table(args.output)}"
    (args.output / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
