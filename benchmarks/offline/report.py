"""
Tables and figures of the CSVs that ``suite.py`` wrote: ``table.md``, ``success.png`` and ``online.png`` beside them.

    python benchmarks/offline/report.py
    python benchmarks/offline/report.py --folder docs/results/offline
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from suite import ALGORITHMS, ONLINE, ONLINE_LENGTHS, PEER, RESULTS, plans

HEADER = """\
# Offline learning, all curves

Mean ± standard deviation over seeds. "Last" is the evaluation after the last step, "best" the best evaluation of each
seed, which is chosen on the episodes that it is reported on. Seconds are of training alone, one thread a run and two
runs at a time. Runs that have not come to their end are left out of the tables.
"""


@dataclass(frozen=True)
class Run:
    """
    The CSV of one seed.

    :param seed: its number
    :param steps: of each evaluation, ascending, shape ``(n,)``
    :param scores: shape ``(n,)``
    :param seconds: of training
    :param is_success: whether a score is the share of successful episodes, in per cent
    """

    seed: int
    steps: np.ndarray
    scores: np.ndarray
    seconds: float
    is_success: bool


# Dataset -> algorithm -> runs
Results = dict[str, dict[str, list[Run]]]


def read(folder: Path) -> list[Run]:
    """Runs of one algorithm on one dataset; files without a row are left out."""
    runs = []
    for path in sorted(folder.glob("seed*.csv")):
        with path.open(newline="") as file:
            # A run that is under way may have written half a line
            rows = [row for row in csv.DictReader(file) if row["training_seconds"]]
        if not rows:
            continue
        scores = np.array([float(row["score"]) for row in rows])
        success = np.array([float(row["success_rate"]) for row in rows])
        steps = np.array([int(row["step"]) for row in rows])
        is_success = bool(np.allclose(scores, 100 * success, atol=0.01))
        runs.append(
            Run(int(path.stem.removeprefix("seed")), steps, scores, float(rows[-1]["training_seconds"]), is_success)
        )
    return runs


def read_all(folder: Path) -> Results:
    """All curves below a folder, those that the suite knows in its order and without runs that it has not finished."""
    every = plans()
    known = {name: i for i, name in enumerate(every)}
    names = {path.parent.relative_to(folder).as_posix() for path in folder.glob("*/*/seed*.csv")}
    results: Results = {}
    for name in sorted(names, key=lambda name: (known.get(name, len(known)), name)):
        dataset, algorithm = name.split("/")
        runs = [run for run in read(folder / name) if name not in every or run.steps[-1] == every[name].total]
        if runs:
            results.setdefault(dataset, {})[algorithm] = runs
    return results


def finished(runs: Sequence[Run]) -> list[Run]:
    """Those that went as far as the longest."""
    last = max(run.steps[-1] for run in runs)
    return [run for run in runs if run.steps[-1] == last]


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; the value alone where there is one."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def offline_part(run: Run, n_offline: int) -> tuple[float, np.ndarray]:
    """The last score before collection started, and the scores since."""
    before = run.steps <= n_offline
    return float(run.scores[before][-1]), run.scores[~before]


def largest_dip(run: Run, n_offline: int) -> float:
    """How far scores fell below the last one before collection started, at least 0."""
    start, since = offline_part(run, n_offline)
    return max(start - float(since.min()), 0.0)


def unit(curves: dict[str, list[Run]]) -> str:
    is_success = all(run.is_success for runs in curves.values() for run in runs)
    return "success, % of episodes" if is_success else "normalised score"


def offline_table(dataset: str, curves: dict[str, list[Run]]) -> str:
    lines = [
        f"## {dataset}\n",
        f"{unit(curves).capitalize()}.\n",
        "| algorithm | seeds | gradient steps | last | best | training, s |",
        "|---|---|---|---|---|---|",
    ]
    for algorithm, runs in curves.items():
        runs = finished(runs)
        last, best = [float(run.scores[-1]) for run in runs], [float(run.scores.max()) for run in runs]
        lines.append(
            f"| {algorithm} | {len(runs)} | {runs[0].steps[-1]:,} | {spread(last)} | {spread(best)} | "
            f"{np.mean([run.seconds for run in runs]):,.0f} |"
        )
    return "\n".join(lines) + "\n"


def online_table(dataset: str, curves: dict[str, list[Run]], n_offline: int) -> str:
    lines = [
        f"## {dataset}\n",
        f"{unit(curves).capitalize()}; {n_offline:,} gradient steps on the dataset, then environment steps. A dip is "
        "how far a seed's worst evaluation online is below its last one offline; shorter dips may be missed.\n",
        "| algorithm | seeds | environment steps | offline | largest dip | worst seed's | last | best | training, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for algorithm, runs in curves.items():
        runs = [run for run in finished(runs) if run.steps[0] <= n_offline < run.steps[-1]]
        if not runs:
            continue
        dips = [largest_dip(run, n_offline) for run in runs]
        parts = [offline_part(run, n_offline) for run in runs]
        starts, best = [start for start, _ in parts], [float(since.max()) for _, since in parts]
        lines.append(
            f"| {algorithm} | {len(runs)} | {runs[0].steps[-1] - n_offline:,} | {spread(starts)} | {spread(dips)} | "
            f"{max(dips):.1f} | {spread([float(run.scores[-1]) for run in runs])} | {spread(best)} | "
            f"{np.mean([run.seconds for run in runs]):,.0f} |"
        )
    return "\n".join(lines) + "\n"


def figure(results: Results, path: Path, n_offline: dict[str, int]) -> None:
    """
    One panel a dataset: means over seeds that came to their end, bands from the worst seed to the best. Variants of our
    algorithms, but for cloning of a part, are in the tables alone.
    """
    if not results:
        return
    results = {
        dataset: {name: runs for name, runs in curves.items() if "," not in name or name.startswith(("BC,", PEER))}
        for dataset, curves in results.items()
    }
    size = (4.6 * len(results) + 2, 4.2)
    fig, axes = plt.subplots(1, len(results), figsize=size, layout="constrained", squeeze=False)
    names = dict.fromkeys(algorithm for curves in results.values() for algorithm in curves)
    # The same colour in every figure; a peer has that of ours, and so has cloning of a part
    families = list(dict.fromkeys([*ALGORITHMS, *(name.removeprefix(PEER).split(",")[0] for name in names)]))
    for axis, (dataset, curves) in zip(axes[0], results.items(), strict=True):
        for algorithm, runs in curves.items():
            runs = finished(runs)
            steps, scores = runs[0].steps / 1000, np.stack([run.scores for run in runs])
            color = f"C{families.index(algorithm.removeprefix(PEER).split(',')[0])}"
            is_peer, is_variant = algorithm.startswith(PEER), "," in algorithm
            style: Any = {(True, False): "--", (True, True): "-.", (False, True): ":"}.get((is_peer, is_variant), "-")
            label = "BC, best parts" if algorithm.startswith("BC,") else algorithm
            axis.plot(steps, scores.mean(axis=0), color=color, linestyle=style, marker=".", label=label)
            axis.fill_between(steps, scores.min(axis=0), scores.max(axis=0), color=color, alpha=0.12, linewidth=0)
        if dataset in n_offline:
            axis.axvline(n_offline[dataset] / 1000, color="black", linewidth=0.8)
        seeds = sorted({len(finished(runs)) for runs in curves.values()})
        axis.set_title(f"{dataset} ({' or '.join(map(str, seeds))} seeds)", fontsize=10)
        kind = "gradient steps, then environment steps" if dataset in n_offline else "gradient steps"
        axis.set_xlabel(f"thousands of {kind}")
        axis.set_ylabel(unit(curves))
        if all(run.is_success for runs in curves.values() for run in runs):
            axis.set_ylim(-2, 102)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    fig.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=9)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def write(folder: Path, n_offline: dict[str, int]) -> str:
    """
    :param n_offline: gradient steps on the dataset of each online curve's name
    """
    results = read_all(folder)
    offline = {dataset: curves for dataset, curves in results.items() if dataset not in n_offline}
    online = {dataset: curves for dataset, curves in results.items() if dataset in n_offline}
    tables = [offline_table(dataset, curves) for dataset, curves in offline.items()]
    tables += [online_table(dataset, curves, n_offline[dataset]) for dataset, curves in online.items()]
    text = "\n".join([HEADER, *tables])
    (folder / "table.md").write_text(text)
    figure(offline, folder / "success.png", n_offline)
    figure(online, folder / "online.png", n_offline)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the CSVs")
    args = parser.parse_args()
    print(write(args.folder, {f"{dataset}{ONLINE}": steps for dataset, (steps, _, _) in ONLINE_LENGTHS.items()}))


if __name__ == "__main__":
    main()
