"""One measurement of ``run.py``: prints seconds and the growth of peak memory as JSON."""

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def make(folder: Path, rows: int, steps: int) -> None:
    """The same data as a D4RL file without and with gzip, and as a Minari dataset."""
    import h5py
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    observations = 0.01 * rng.standard_normal((rows, 29), dtype=np.float32).cumsum(axis=0, dtype=np.float32)
    ends = np.arange(rows) % steps == steps - 1
    columns = {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (rows, 8)).astype(np.float32),
        "rewards": rng.uniform(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": ends,
    }
    for name, options in (("plain", {}), ("gzip", {"compression": "gzip"})):
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for key, column in columns.items():
                file.create_dataset(key, data=column, **options)
    episodes = [
        EpisodeBuffer(
            id=i,
            observations=np.concatenate([observations[start : start + steps], observations[start : start + 1]]),
            actions=columns["actions"][start : start + steps],
            rewards=columns["rewards"][start : start + steps],
            terminations=columns["terminals"][start : start + steps],
            truncations=ends[start : start + steps],
        )
        for i, start in enumerate(range(0, rows, steps))
    ]
    minari.create_dataset_from_buffers(
        "bench/million-v0",
        episodes,
        env="Pendulum-v1",  # only for d3rlpy, which makes the environment of the dataset
        observation_space=spaces.Box(-np.inf, np.inf, (29,), np.float32),
        action_space=spaces.Box(-1, 1, (8,), np.float32),
    )


def read_by_h5py(path: Path) -> Any:
    import h5py

    with h5py.File(path) as file:
        return {key: file[key][:] for key in file}


def read_by_us(spec: str, cache: bool) -> Callable[[], Any]:
    from sb3_ext.common.buffers import DatasetBuffer
    from sb3_ext.datasets import load

    def run() -> Any:
        dataset = load(spec, cache=cache)
        metadata = dataset.metadata
        return DatasetBuffer(dataset, metadata.observation_space, metadata.action_space, device="cpu")

    return run


def read_by_minari(name: str) -> Callable[[], Any]:
    import minari

    dataset = minari.load_dataset(name)
    return lambda: list(dataset.iterate_episodes())


def read_by_d3rlpy(name: str) -> Callable[[], Any]:
    import d3rlpy

    return lambda: d3rlpy.datasets.get_minari(name)


def prepare(variant: str, folder: Path, spec: str) -> Callable[[], Any]:
    """Everything but the reading: imports, files in the page cache."""
    file = folder / spec
    if file.suffix == ".hdf5":
        file.read_bytes()
    else:
        (folder / "minari" / spec / "data" / "main_data.hdf5").read_bytes()
    if variant.startswith("h5py"):
        import h5py  # noqa: F401

        return lambda: read_by_h5py(file)
    if variant.startswith("ours"):
        return read_by_us(str(file) if file.suffix == ".hdf5" else spec, cache="no cache" not in variant)
    return (read_by_d3rlpy if variant.startswith("d3rlpy") else read_by_minari)(spec)


class Peak:
    """Resident memory beyond what there was at the start, sampled; the process's own maximum includes imports."""

    def __enter__(self) -> "Peak":
        self.before, self.most, self.done = self.now(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.done.wait(0.005):  # reading takes 0.02 ms
            self.most = max(self.most, self.now() - self.before)

    @staticmethod
    def now() -> float:
        """Anonymous memory in MB: pages of files that are mapped or cached do not count."""
        pages = Path("/proc/self/statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * resource.getpagesize() / 1e6

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.most = max(self.most, self.now() - self.before)


def main() -> None:
    folder, variant, *arguments = sys.argv[1:]
    if variant == "make":
        make(Path(folder), *map(int, arguments))
        print(json.dumps({}))
        return
    run = prepare(variant, Path(folder), *arguments)
    with Peak() as peak:
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
    del result
    print(json.dumps({"seconds": seconds, "peak_mb": peak.most}))


if __name__ == "__main__":
    main()
