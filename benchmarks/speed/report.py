"""Table and figures of the speed benchmark, from its CSVs: ``python benchmarks/speed/report.py``."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

# Group, variant, what it is compared with
COMPARISONS = [
    ("10 critics, UTD 5", "REDQ", "SB3 SAC"),
    ("10 critics, UTD 5", "REDQ", "SBX SAC"),
    ("10 critics, UTD 5", "REDQ, actor at every update", "SB3 SAC"),
    ("10 critics, UTD 5", "REDQ, actor at every update", "SBX SAC"),
    ("10 critics, UTD 5", "REDQ", "loop over modules"),
    ("10 critics, UTD 5", "REDQ, no compiler", "loop over modules"),
    ("10 critics, UTD 5", "REDQ, bf16 products", "SB3 SAC"),
    ("10 critics, UTD 5", "products alone", "REDQ"),
    ("10 critics, UTD 5, layer norm", "REDQ", "loop over modules"),
    ("10 critics, UTD 5, layer norm", "REDQ", "SBX SAC"),
    ("10 critics, UTD 5, layer norm", "REDQ, no compiler", "loop over modules"),
    ("10 critics, UTD 5, layer norm", "products alone", "REDQ"),
    ("2 critics, UTD 1", "REDQ", "SB3 SAC"),
    ("2 critics, UTD 1", "REDQ", "SBX SAC"),
    ("2 critics, UTD 1", "REDQ, no compiler", "loop over modules"),
    ("2 critics, UTD 1", "products alone", "REDQ"),
    ("training loop on hammer, 2 critics, UTD 1", "REDQ", "SB3 SAC"),
    ("training loop on hammer, 2 critics, UTD 1", "REDQ, no compiler", "SB3 SAC"),
    ("10 critics, UTD 20", "REDQ", "REDQ, eager"),
    ("10 critics, UTD 20", "REDQ", "SB3 SAC"),
]
SCALING = ["number of critics (UTD 5)", "UTD (10 critics)", "rows in the replay buffer (2 critics, UTD 1)"]
BREAKDOWN_ORDER = ["simulator", "update", "acting", "replay buffer", "SB3's loop, vector environment, callbacks"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def table(folder: Path) -> list[str]:
    lines = [
        "| work | variant | ms, median | against | times as fast: min / median / max over rounds |",
        "|---|---|---|---|---|",
    ]
    for group, variant, other in COMPARISONS:
        path = folder / f"{group}.csv"
        if not path.exists():
            continue
        rows = read(path)
        if variant not in rows[0] or other not in rows[0]:
            continue
        times, ratios = column(rows, variant), column(rows, other) / column(rows, variant)
        spread = f"{ratios.min():.2f} / **{np.median(ratios):.2f}** / {ratios.max():.2f}"
        lines.append(f"| {group} | {variant} | {np.median(times):.2f} | {other} | {spread} |")
    return lines


def breakdown_lines(folder: Path) -> list[str]:
    rows = read(folder / "breakdown.csv")
    lines = ["| part of a step, µs (share) | REDQ | SB3 SAC |", "|---|---|---|"]
    medians = {
        name: {part: np.median(column([r for r in rows if r["algorithm"] == name], part)) for part in BREAKDOWN_ORDER}
        for name in ("redq", "sb3_sac")
    }
    for part in BREAKDOWN_ORDER:
        cells = [f"{m[part]:.0f} ({100 * m[part] / sum(m.values()):.1f} %)" for m in medians.values()]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return lines


def plot_ratios(folder: Path, path: Path) -> None:
    groups = ["10 critics, UTD 5", "10 critics, UTD 5, layer norm", "2 critics, UTD 1"]
    groups = [group for group in groups if (folder / f"{group}.csv").exists()]
    if not groups:
        return
    figure, axes = plt.subplots(1, len(groups), figsize=(4.2 * len(groups), 3.2))
    for axis, group in zip(np.atleast_1d(axes), groups, strict=True):
        rows = read(folder / f"{group}.csv")
        names = [name for name in rows[0] if "bf16" not in name][::-1]
        colours = ["#2a9d8f" if name.startswith("REDQ") else "#8d99ae" for name in names]
        axis.barh(names, [np.median(column(rows, name)) for name in names], color=colours)
        axis.set_title(group, fontsize=10)
        axis.set_xlabel("ms per critic update")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def plot_scaling(folder: Path, path: Path) -> None:
    if not all((folder / f"{group}.csv").exists() for group in SCALING):
        return
    figure, axes = plt.subplots(1, len(SCALING), figsize=(4.2 * len(SCALING), 3))
    for axis, group in zip(axes, SCALING, strict=True):
        rows = read(folder / f"{group}.csv")
        x = np.array([int(name.replace(",", "")) for name in rows[0]])
        per_update = np.array([np.median(column(rows, name)) for name in rows[0]])
        is_utd = group.startswith("UTD")
        axis.plot(x, per_update * x if is_utd else per_update, marker="o", color="#2a9d8f")
        axis.set_xlabel(group)
        axis.set_ylabel("ms per transition" if is_utd else "ms per critic update")
        if "rows" in group:
            axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def plot_breakdown(folder: Path, path: Path) -> None:
    rows = read(folder / "breakdown.csv")
    figure, axis = plt.subplots(figsize=(8, 2.4))
    left = np.zeros(2)
    for part in BREAKDOWN_ORDER:
        values = np.array(
            [np.median(column([r for r in rows if r["algorithm"] == name], part)) for name in ("redq", "sb3_sac")]
        )
        axis.barh(["REDQ", "SB3 SAC"], values / 1000, left=left / 1000, label=part)
        left += values
    axis.set_xlabel("ms per step of the training loop (hammer, 2 critics, UTD 1)")
    axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.4, 1.35), ncols=3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


INTRODUCTION = """
Milliseconds per critic update (for the training loop: per environment step). Observations 39, actions 4, batch 256,
networks 256x256, fp32. Each variant is a process; processes take turns, and a ratio is taken within a round. SB3's and
SBX's SAC step their actor at every critic update, REDQ once per transition unless it says otherwise. "Loop over
modules" is REDQ as one writes it on SB3, with a module per critic; "products alone" are the matrix products of REDQ's
updates at their true shapes, by the fastest fp32 backend: nothing in fp32 can be faster.
"""


def write_report(output: Path, device: str) -> None:
    folder = output / device
    lines = [
        "# Speed",
        INTRODUCTION,
        (folder / "machine.txt").read_text().strip().replace("\n", "  \n"),
        "",
        *table(folder),
        "",
    ]
    plot_ratios(folder, output / f"{device}.png")
    plot_scaling(folder, output / f"{device}_scaling.png")
    if (folder / "breakdown.csv").exists():
        plot_breakdown(folder, output / f"{device}_loop.png")
        lines += [*breakdown_lines(folder), ""]
    pictures = [name for name in (f"{device}.png", f"{device}_loop.png", f"{device}_scaling.png")]
    lines += [f"![Figure: {name}]({name})" for name in pictures if (output / name).exists()]
    path = output / ("README.md" if device == "cpu" else f"{device}.md")
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    write_report(Path(__file__).parents[2] / "docs/results/speed", "cpu")
