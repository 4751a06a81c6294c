"""
Speed of updates and of the whole training loop against SB3, SBX and a loop over modules, interleaved in one run.

    make bench
    python benchmarks/speed/run.py --sbx-python .venv-sbx/bin/python
    python benchmarks/speed/run.py --groups "10 critics, UTD 5" --rounds 5
    python benchmarks/speed/run.py --trace logs/trace.json

Each variant is a process of its own that waits for its turn, so that all of a group share the machine's good and bad
minutes; a ratio is taken within a round. Writes CSVs, a table and PNGs; `make bench` to `docs/results/speed`.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from machine import describe  # noqa: E402
from report import write_report  # noqa: E402
from workers import LOOP_STEPS  # noqa: E402

# Groups of variants, each with the names that tables use
TEN = {"n_critics": 10, "utd": 5}
TWO = {"n_critics": 2, "utd": 1}
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "10 critics, UTD 5": {
        "REDQ": {"variant": "redq", **TEN},
        "REDQ, no compiler": {"variant": "redq", "backend": "eager", **TEN},
        "REDQ, actor at every update": {"variant": "redq", "policy_delay": 1, **TEN},
        "REDQ, bf16 products": {"variant": "redq", "precision": "bf16", **TEN},
        "loop over modules": {"variant": "looped", **TEN},
        "SB3 SAC": {"variant": "sb3_sac", **TEN},
        "SBX SAC": {"variant": "sbx_sac", **TEN},
        "products alone": {"variant": "products", **TEN},
    },
    "10 critics, UTD 5, layer norm": {
        "REDQ": {"variant": "redq", "layer_norm": True, **TEN},
        "REDQ, no compiler": {"variant": "redq", "layer_norm": True, "backend": "eager", **TEN},
        "loop over modules": {"variant": "looped", "layer_norm": True, **TEN},
        "SBX SAC": {"variant": "sbx_sac", "layer_norm": True, **TEN},
        "products alone": {"variant": "products", **TEN},
    },
    "2 critics, UTD 1": {
        "REDQ": {"variant": "redq", **TWO},
        "REDQ, no compiler": {"variant": "redq", "backend": "eager", **TWO},
        "loop over modules": {"variant": "looped", **TWO},
        "SB3 SAC": {"variant": "sb3_sac", **TWO},
        "SBX SAC": {"variant": "sbx_sac", **TWO},
        "products alone": {"variant": "products", **TWO},
    },
    "training loop on hammer, 2 critics, UTD 1": {
        "REDQ": {"variant": "loop_redq", **TWO},
        "REDQ, no compiler": {"variant": "loop_redq", "backend": "eager", **TWO},
        "SB3 SAC": {"variant": "loop_sb3_sac", **TWO},
    },
    "number of critics (UTD 5)": {
        str(n): {"variant": "redq", "n_critics": n, "utd": 5, "policy_delay": 10**9} for n in (2, 5, 10, 20)
    },
    "UTD (10 critics)": {str(utd): {"variant": "redq", "n_critics": 10, "utd": utd} for utd in (1, 5, 20)},
    "rows in the replay buffer (2 critics, UTD 1)": {
        f"{rows:,}": {"variant": "redq", "buffer_size": rows, **TWO}
        for rows in (10_000, 100_000, 1_000_000, 10_000_000)
    },
}
GPU_GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "10 critics, UTD 20": {
        "REDQ": {"variant": "redq", "backend": "cudagraph", "n_critics": 10, "utd": 20},
        "REDQ, eager": {"variant": "redq", "backend": "eager", "n_critics": 10, "utd": 20},
        "SB3 SAC": {"variant": "sb3_sac", "n_critics": 10, "utd": 20},
    },
}


class Worker:
    """A variant in its process."""

    def __init__(self, spec: dict[str, Any], python: str):
        self.updates = LOOP_STEPS if spec["variant"].startswith("loop_") else spec["utd"]
        self.process = subprocess.Popen(
            [python, "-W", "ignore", str(HERE / "workers.py"), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()  # warm, and compiled

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A benchmark process died: {self.process.args}")
        return line

    def milliseconds(self, n_updates: int) -> float:
        """Time per critic update, or per step of the loop."""
        repetitions = max(n_updates // self.updates, 1)
        assert self.process.stdin is not None
        self.process.stdin.write(f"{repetitions}\n")
        self.process.stdin.flush()
        return 1000 * float(self._answer()) / (repetitions * self.updates)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(variants: dict[str, dict[str, Any]], args: argparse.Namespace) -> list[dict[str, float]]:
    """Rows of milliseconds, one a round."""
    workers = {}
    try:
        for name, spec in variants.items():
            is_sbx = spec["variant"] == "sbx_sac"
            if is_sbx and args.sbx_python is None:
                continue
            spec = {**spec, "device": args.device, "threads": args.threads}
            workers[name] = Worker(spec, args.sbx_python if is_sbx else sys.executable)
        rows = []
        for _ in range(args.rounds):
            rows.append({name: worker.milliseconds(args.updates) for name, worker in workers.items()})
        return rows
    finally:
        for worker in workers.values():
            worker.close()


def breakdowns(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for _ in range(args.breakdown_rounds):
        for algorithm in ("redq", "sb3_sac"):
            command = [sys.executable, "-W", "ignore", str(HERE / "breakdown.py"), algorithm]
            command += ["--threads", str(args.threads)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append({"algorithm": algorithm, **json.loads(result.stdout)})
    return rows


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )


def sbx_versions(args: argparse.Namespace) -> str:
    if args.sbx_python is None:
        return ""
    names = "sbx-rl", "jax"
    code = f"from importlib.metadata import version; print(*[n + ' ' + version(n) for n in {names}], sep=', ')"
    result = subprocess.run([args.sbx_python, "-c", code], check=True, capture_output=True, text=True)
    return ", " + result.stdout.strip()


def trace(path: Path, args: argparse.Namespace) -> None:
    """A profiler trace of ten transitions of REDQ in the first of the groups, for chrome://tracing or Perfetto."""
    from workers import redq

    group = args.groups[0] if args.groups else next(iter(GROUPS))
    spec = {**GROUPS[group]["REDQ"], "device": args.device}
    path.parent.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(args.threads)
    work = redq(spec)
    for _ in range(3):
        work()
    with th.profiler.profile() as profiler:
        for _ in range(10):
            work()
    profiler.export_chrome_trace(str(path))
    print(f"Trace of ten transitions: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*GROUPS, *GPU_GROUPS]
    parser.add_argument("--groups", nargs="*", choices=names, metavar="NAME", help=f"of {names}, all by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--updates", type=int, default=40, help="critic updates (or steps) a turn")
    parser.add_argument("--breakdown-rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=th.get_num_threads())
    parser.add_argument("--device", default="cuda" if th.cuda.is_available() else "cpu")
    parser.add_argument("--sbx-python", help="Python of an environment with sbx-rl, which is left out otherwise")
    parser.add_argument("--output", type=Path, default=Path("logs/speed"), help="folder of the results")
    parser.add_argument("--trace", type=Path, help="write a profiler trace to this file and do nothing else")
    args = parser.parse_args()
    if args.trace is not None:
        trace(args.trace, args)
        return
    groups = GROUPS if args.device == "cpu" else GPU_GROUPS
    th.set_num_threads(args.threads)
    for name, variants in groups.items():
        if args.groups and name not in args.groups:
            continue
        print(name, flush=True)
        rows = measure(variants, args)
        write_csv(args.output / args.device / f"{name}.csv", rows)
        for variant in rows[0]:
            print(f"  {variant:30s} {np.median([row[variant] for row in rows]):8.2f} ms", flush=True)
    if args.device == "cpu" and args.breakdown_rounds > 0:
        write_csv(args.output / args.device / "breakdown.csv", breakdowns(args))
    command = shlex.join(["python", "benchmarks/speed/run.py", *sys.argv[1:]])
    (args.output / args.device / "machine.txt").write_text(f"`{command}`\n{describe()}{sbx_versions(args)}\n")
    write_report(args.output, args.device)


if __name__ == "__main__":
    main()
