"""
Broken dataset files by the thousand: every one has to end in a ``DatasetError`` that says why.

Two kinds of damage. *Faults* are ones that a file shows: missing and extra columns, other shapes and dtypes, NaN, no
rows, absurd sizes, cut-off files, broken metadata. Each must be a ``DatasetError``. *Flipped bytes* may hit a number,
which no format without checksums can notice: they must be a ``DatasetError`` or give a dataset of finite numbers whose
columns fit together.

    python tests/fuzz_datasets.py --cases 5000
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces

from sb3_ext import datasets
from sb3_ext.datasets import Dataset, DatasetError, Metadata

SECONDS_PER_CASE = 20
MEGABYTES_PER_CASE = 500
ABSURD = 10**12
FORMATS = ("raw.hdf5", "gzip.hdf5", "successors.hdf5", "minari", "arrow", "demos.npz", "folder")
COLUMNS = ("observations", "actions", "rewards", "terminals", "timeouts")


def make_sources(folder: Path) -> None:
    """One sound dataset of six episodes in every format."""
    rng = np.random.default_rng(0)
    n, length = 120, 20
    observations = rng.normal(size=(n, 3)).cumsum(axis=0).astype(np.float32)
    ends = np.arange(n) % length == length - 1
    columns = {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": ends & (np.arange(n) > n // 2),
        "timeouts": ends & (np.arange(n) <= n // 2),
    }
    for name, options in (("raw.hdf5", {}), ("gzip.hdf5", {"compression": "gzip", "chunks": True})):
        with h5py.File(folder / name, "w") as file:
            for key, column in columns.items():
                file.create_dataset(key, data=column, **options)
    dataset = Dataset.from_arrays(
        {
            "observations": observations,
            "actions": columns["actions"],
            "rewards": columns["rewards"],
            "next_observations": np.where(ends[:, None], observations + 1, np.roll(observations, -1, axis=0)),
            "terminations": columns["terminals"],
            "truncations": columns["timeouts"],
        },
        metadata=Metadata(
            observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float32),
            action_space=spaces.Box(-1, 1, (2,), np.float32),
        ),
        warn=False,
    )
    datasets.save(dataset, folder / "successors.hdf5")
    datasets.save(dataset, folder / "folder")
    np.savez(
        folder / "demos.npz",
        **{name: getattr(dataset, name) for name in ("observations", "actions", "rewards", "next_observations")},
        terminations=dataset.terminations,
        truncations=dataset.truncations,
    )
    for name, format_ in (("minari", "minari"), ("arrow", "arrow")):
        shutil.move(datasets.save(dataset, f"fuzz-{name}-v0", format_, overwrite=True), folder / name)


# --- Faults: all must be refused ---


def break_column(column: np.ndarray, rng: np.random.Generator, flags: bool) -> tuple[str, Any]:
    """Another content of a column, and what was done."""
    row = rng.integers(len(column))
    floats = column.astype(np.float32)
    wide = np.asarray(column).reshape(len(column), -1)
    choices: list[tuple[str, Callable[[], Any]]] = [
        ("too short", lambda: column[: rng.integers(1, len(column))]),
        ("too long", lambda: np.concatenate([column, column[:1]])),
        ("no rows", lambda: column[:0]),
        ("strings", lambda: np.full(column.shape, b"text")),
        ("complex numbers", lambda: column.astype(np.complex64)),
        ("another rank", lambda: np.stack([wide, wide, wide], axis=1) if flags or column.ndim == 1 else column.sum()),
        ("records", lambda: np.zeros(column.shape, [("a", "f4"), ("b", "i4")])),
    ]
    if flags:
        choices += [
            ("flags of 2", lambda: np.where(np.arange(len(column)) == row, 2, column).astype(np.int64)),
            ("flags of NaN", lambda: np.where(np.arange(len(column)) == row, np.nan, floats)),
            ("negative flags", lambda: -np.ones(len(column), np.int8)),
        ]
    else:
        for name, value in (("NaN", np.nan), ("inf", np.inf), ("-inf", -np.inf)):
            choices.append((name, lambda value=value: _with(floats, row, value)))
        choices.append(("a number beyond float32", lambda: _with(column.astype(np.float64), row, 1e300)))
        choices.append(("no entries", lambda: np.zeros((len(column), 0), np.float32)))
    name, make = choices[rng.integers(len(choices))]
    return name, make()


def _with(column: np.ndarray, row: int, value: float) -> np.ndarray:
    column = column.copy()
    column[row] = value
    return column


def break_hdf5(path: Path, rng: np.random.Generator) -> str:
    kind = rng.integers(4)
    with h5py.File(path, "r+") as file:
        key = str(rng.choice([key for key in file if key in (*COLUMNS, "next_observations")]))
        column = file[key][:]
        if kind == 0 and key in COLUMNS[:4]:
            del file[key]
            return f"no {key}"
        del file[key]
        if kind == 1:
            file.create_dataset(
                key, shape=(ABSURD, *column.shape[1:]), dtype=column.dtype, chunks=(1, *column.shape[1:])
            )
            return f"absurd size of {key}"
        if kind == 2:
            file.create_dataset(key, shape=column.shape, dtype=column.dtype, chunks=(1, *column.shape[1:]))
            return f"{key} never written"
        what, file[key] = break_column(column, rng, flags=key in ("terminals", "timeouts"))
        return f"{key}: {what}"


def break_minari(folder: Path, rng: np.random.Generator) -> str:
    if rng.random() < 0.4:
        return break_json(folder / "data/metadata.json", rng)
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        episode = file[f"episode_{rng.integers(6)}"]
        if rng.random() < 0.1:
            name = episode.name
            del file[name]
            return "an episode is missing"
        key = str(rng.choice(["observations", "actions", "rewards", "terminations", "truncations"]))
        column = episode[key][:]
        del episode[key]
        if rng.random() < 0.2:
            return f"an episode has no {key}"
        what, episode[key] = break_column(column, rng, flags=key in ("terminations", "truncations"))
        return f"{key} of an episode: {what}"


def break_json(path: Path, rng: np.random.Generator) -> str:
    """What Minari's metadata need, gone or of another type; and text that is no JSON."""
    values = json.loads(path.read_text())
    key = str(rng.choice(["total_episodes", "minari_version", "observation_space", "action_space", "data_format"]))
    wrong: list[Any] = {
        "total_episodes": [0, -1, ABSURD, "many", None, 7, [6]],
        "minari_version": ["99.0", None, 5, {}],
        "observation_space": ["{}", 5, [], '{"type": "Box"}', '{"type": "Nothing"}', "{"],
        "action_space": ["{}", 5, [], '{"type": "Box"}', '{"type": "Nothing"}', "{"],
        "data_format": ["paper", 5, None, {}],
    }[key]
    choice = int(rng.integers(len(wrong) + 2))
    if choice == len(wrong):
        text = path.read_text()
        path.write_text(text[: int(rng.integers(len(text) - 1))])
        return "metadata cut off"
    if choice == len(wrong) + 1:
        path.write_text(str(rng.choice(["", "null", "[]", "3", "\x00", '"text"'])))
        return "metadata are something else"
    values[key] = wrong[choice]
    path.write_text(json.dumps(values))
    return f"metadata: {key} = {wrong[choice]!r}"


def break_arrow(folder: Path, rng: np.random.Generator) -> str:
    kind = rng.integers(4)
    if kind == 0:
        return break_json(folder / "data/metadata.json", rng)
    episode = folder / "data" / str(rng.integers(6))
    (file,) = episode.glob("*.arrow")
    if kind == 1:
        shutil.rmtree(episode)
        return "an episode is missing"
    if kind == 2:
        file.unlink()
        return "an episode has no file"
    content = file.read_bytes()
    file.write_bytes(content[: int(rng.integers(len(content) - 8))])
    return "an episode's file is cut off"


def break_npz(path: Path, rng: np.random.Generator) -> str:
    with np.load(path) as archive:
        arrays = dict(archive)
    key = str(rng.choice(list(arrays)))
    kind = rng.integers(4)
    if kind == 0 and key != "truncations":
        del arrays[key]
        what = f"no {key}"
    elif kind == 1:
        arrays["extra"] = arrays[key]
        what = "an unknown column"
    elif kind == 2:
        arrays[key] = np.array([{"an": "object"}], dtype=object)
        what = f"{key}: pickled objects"
    else:
        what, arrays[key] = break_column(arrays[key], rng, flags=key in ("terminations", "truncations"))
        what = f"{key}: {what}"
    np.savez(path, **arrays)
    return what


def break_folder(folder: Path, rng: np.random.Generator) -> str:
    file = folder / str(rng.choice(sorted(path.name for path in folder.glob("*.npy"))))
    kind = rng.integers(5)
    if kind == 0:
        file.unlink()
        return f"no {file.name}"
    if kind == 1:
        content = file.read_bytes()
        file.write_bytes(content[: int(rng.integers(len(content) - 1))])
        return f"{file.name} is cut off"
    if kind == 2:
        index = folder / "dataset.json"
        text = index.read_text()
        index.write_text(
            str(rng.choice(["", "null", "[]", "{}", '{"format": 99}', text[: int(rng.integers(len(text) - 1))]]))
        )
        return "the index is broken"
    column = np.load(file)
    if file.stem in ("rows", "next_rows"):
        column[rng.integers(len(column))] = rng.choice([-1, 10**6])
        np.save(file, column)
        return f"{file.name} points nowhere"
    what, broken = break_column(column, rng, flags=file.stem in ("terminations", "truncations"))
    if what == "too long" and file.stem == "frames_0":
        return break_folder(folder, rng)  # an observation that nothing uses
    np.save(file, broken)
    return f"{file.name}: {what}"


def cut(path: Path, rng: np.random.Generator) -> str:
    """Cut off the main file. The last bytes of an HDF5 file may be free space; half of it never is."""
    content = path.read_bytes()
    path.write_bytes(content[: int(rng.integers(len(content) // 2))])
    return "cut off"


FAULTS: dict[str, Callable[[Path, np.random.Generator], str]] = {
    "raw.hdf5": break_hdf5,
    "gzip.hdf5": break_hdf5,
    "successors.hdf5": break_hdf5,
    "minari": break_minari,
    "arrow": break_arrow,
    "demos.npz": break_npz,
    "folder": break_folder,
}
MAIN_FILES = {"minari": "data/main_data.hdf5"}


# --- Flipped bytes: refused or sound ---


def flip(path: Path, rng: np.random.Generator) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    file = files[rng.integers(len(files))]
    content = bytearray(file.read_bytes())
    # Structure lies at the beginning of most files
    reach = len(content) if rng.random() < 0.5 else min(len(content), 2048)
    for _ in range(int(rng.integers(1, 9))):
        content[int(rng.integers(reach))] = int(rng.integers(256))
    file.write_bytes(content)
    return "flipped bytes"


def is_sound(dataset: Dataset) -> bool:
    n = len(dataset)
    frames = dataset.frames.values() if isinstance(dataset.frames, dict) else [dataset.frames]
    floats = [dataset.actions, dataset.rewards, dataset.observations, dataset.next_observations]
    return (
        all(
            len(column) == n for column in (dataset.actions, dataset.rewards, dataset.terminations, dataset.truncations)
        )
        and all(0 <= dataset.next_rows.min() and dataset.next_rows.max() < len(frame) for frame in frames)
        and all(
            np.isfinite(array).all() for array in floats if isinstance(array, np.ndarray) and array.dtype.kind == "f"
        )
    )


def run_case(sources: Path, case: int, seed: int) -> tuple[str, str, str]:
    """
    :return: format, what was done, and what came of it: ``"refused"``, ``"sound"``, or something wrong
    """
    rng = np.random.default_rng([seed, case])
    format_ = FORMATS[case % len(FORMATS)]
    is_flip = case % 5 == 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, format_)
        source = sources / format_
        (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
        if is_flip:
            what = flip(path, rng)
        elif format_ in ("raw.hdf5", "gzip.hdf5", "successors.hdf5", "demos.npz", "minari") and rng.random() < 0.2:
            what = cut(path / MAIN_FILES.get(format_, ""), rng)
        else:
            what = FAULTS[format_](path, rng)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = _load(path, is_flip)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
        if grown > MEGABYTES_PER_CASE:
            outcome = f"took {grown:.0f} MB, then: {outcome}"
    return format_, what, outcome


def _load(path: Path, is_flip: bool) -> str:
    signal.signal(signal.SIGALRM, _timed_out)
    signal.alarm(SECONDS_PER_CASE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = datasets.load(path, cache=False)
        if not is_flip:
            return "ACCEPTED"
        return "sound" if is_sound(dataset) else "ACCEPTED BROKEN DATA"
    except DatasetError as error:
        return "refused" if len(str(error)) > 20 else f"NO CAUSE: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def _timed_out(*_: Any) -> None:
    raise TimeoutError(f"took longer than {SECONDS_PER_CASE} s")


def run_cases(cases: range, seed: int, sources: Path) -> list[tuple[int, str, str, str]]:
    """All cases in processes of their own, so that a crash is seen as one."""
    context = multiprocessing.get_context("fork")
    results: list[tuple[int, str, str, str]] = []
    todo = list(cases)
    while todo:
        queue = context.SimpleQueue()
        process = context.Process(target=_run_all, args=(queue, todo, seed, sources))
        process.start()
        done = 0
        while done < len(todo):
            while queue.empty() and process.is_alive():
                time.sleep(0.001)
            if queue.empty():
                break
            results.append((todo[done], *queue.get()))
            done += 1
        process.join()
        if done < len(todo):
            results.append(
                (todo[done], FORMATS[todo[done] % len(FORMATS)], "?", f"CRASH, exit code {process.exitcode}")
            )
            done += 1
        todo = todo[done:]
    return results


def _run_all(queue: Any, cases: list[int], seed: int, sources: Path) -> None:
    for case in cases:
        queue.put(run_case(sources, case, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = f"{folder}/datasets"
        make_sources(Path(folder))
        results = run_cases(range(args.cases), args.seed, Path(folder))
    wrong = [result for result in results if result[3] not in ("refused", "sound")]
    counts = Counter(
        (format_, outcome if outcome in ("refused", "sound") else "WRONG") for _, format_, _, outcome in results
    )
    print("| format | refused | flipped bytes, sound | wrong |\n|---|---|---|---|")
    for format_ in FORMATS:
        print(f"| {format_} | {counts[format_, 'refused']} | {counts[format_, 'sound']} | {counts[format_, 'WRONG']} |")
    for result in wrong:
        print(*result, sep=" | ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
