"""
How often the ant of AntMaze data falls on its back, and what comes of it: the limit of what cloning can reach there.

    python benchmarks/offline/falls.py ../shared/data/antmaze-umaze.hdf5 ../shared/data/antmaze-medium-diverse.hdf5
"""

import argparse
from pathlib import Path

import numpy as np

from sb3_ext.datasets import Dataset, load
from sb3_ext.datasets.transforms import is_on_its_back


def summary(dataset: Dataset) -> dict[str, float]:
    """Shares of episodes and steps. An episode that success cut into pieces counts as several."""
    assert dataset.successes is not None
    down = is_on_its_back(np.asarray(dataset.observations))
    falls = np.logical_or.reduceat(down, dataset.starts)
    succeeds = np.logical_or.reduceat(dataset.successes, dataset.starts)
    goes_on = ~dataset.ends[:-1]
    before, after = down[:-1][goes_on], down[1:][goes_on]
    return {
        "episodes": dataset.n_episodes,
        "fall": falls.mean(),
        "succeed of those that fall": succeeds[falls].mean(),
        "succeed of the others": succeeds[~falls].mean(),
        "falls": int((~before & after).sum()),
        "times it got up": int((before & ~after).sum()),
        "falls in 1,000 upright steps": 1000 * (~before & after).sum() / (~before).sum(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    for path in parser.parse_args().data:
        print(path.stem)
        for name, value in summary(load(path)).items():
            print(f"  {name}: {value:.4g}")


if __name__ == "__main__":
    main()
