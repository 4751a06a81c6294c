"""
Table and figure of the CSVs that ``success.py`` wrote.

    python benchmarks/success_report.py docs/results/hammer

Each folder below the given one is a curve, each CSV in it a seed.
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

# For each curve and each seed: timesteps, success rates, seconds of training
Seeds = dict[str, tuple[np.ndarray, np.ndarray, float]]
Curves = dict[str, Seeds]


def read(folder: Path) -> Seeds:
    """The seeds of one curve."""
    seeds = {}
    for path in sorted(folder.glob("seed*.csv")):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        steps = np.array([int(row["timesteps"]) for row in rows])
        success = np.array([float(row["success_rate"]) for row in rows])
        seeds[path.stem] = (steps, success, float(rows[-1]["training_seconds"]))
    return seeds


def table(curves: Curves, thresholds: list[float]) -> str:
    firsts = " | ".join(f"first step with ≥ {100 * threshold:.0f} %" for threshold in thresholds)
    lines = [
        f"| run | seed | cloned, step 0 | best | last | {firsts} | training time |",
        "|---|---|---|---|---|" + "---|" * (len(thresholds) + 1),
    ]
    for name, seeds in curves.items():
        for seed, (steps, success, seconds) in seeds.items():
            reached = [steps[success >= threshold] for threshold in thresholds]
            firsts = " | ".join(f"{found[0]:,}" if len(found) else "never" for found in reached)
            lines.append(
                f"| {name} | {seed.removeprefix('seed')} | {100 * success[0]:.0f} % | "
                f"{100 * success[1:].max():.0f} % (step {steps[1:][success[1:].argmax()]:,}) | "
                f"{100 * success[-1]:.0f} % (step {steps[-1]:,}) | {firsts} | {seconds:,.0f} s |"
            )
    return "\n".join(lines) + "\n"


def figure(curves: Curves, path: Path, title: str, cloned: str | None) -> None:
    fig, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for i, (name, seeds) in enumerate(curves.items()):
        length = min(len(steps) for steps, _, _ in seeds.values())
        steps = next(iter(seeds.values()))[0][:length]
        success = 100 * np.stack([success[:length] for _, success, _ in seeds.values()])
        color = f"C{i}"
        axes.plot(steps, success.mean(axis=0), color=color, label=f"{name} ({len(seeds)} seeds)")
        axes.fill_between(steps, success.min(axis=0), success.max(axis=0), color=color, alpha=0.15, linewidth=0)
    if cloned is not None:
        starts = 100 * np.array([success[0] for _, success, _ in curves[cloned].values()])
        axes.axhline(starts.mean(), color="black", linestyle="--", label=f"cloning alone ({len(starts)} seeds)")
        axes.axhspan(starts.min(), starts.max(), color="black", alpha=0.1, linewidth=0)
    axes.set(xlabel="environment steps", ylabel="success, % of 100 episodes", title=title, ylim=(-2, 102))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    fig.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--title", default="")
    parser.add_argument("--cloned", help="curve whose first points, before any environment step, are drawn as a line")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.9, 0.95, 0.97])
    args = parser.parse_args()
    curves = {folder.name: read(folder) for folder in sorted(args.folder.iterdir()) if folder.is_dir()}
    text = table(curves, args.thresholds)
    (args.folder / "table.md").write_text(text)
    figure(curves, args.folder / "success.png", args.title, args.cloned)
    print(text)


if __name__ == "__main__":
    main()
