"""`sb3-ext dataset` and `sb3-ext collect` as a user types them."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from line_envs import COLUMNS, SCRIPTED, assert_equal, counted_dataset, make_arrays, rollout, shared_file, write_d4rl

from sb3_ext.datasets import collect, plot, save, summarize, validate
from sb3_ext.datasets.load import read
from sb3_ext.zoo.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:`.*` is set to None:UserWarning"),
    pytest.mark.filterwarnings("ignore:env_spec is None:UserWarning"),
]
POINT = "PointMazeFlat/UMaze-v3"
PLACES = {"minari": "line", "arrow": "arrow", "d4rl": "./a.hdf5", "sb3": "./a.pkl", "folder": "./folder"}


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """`sb3-ext` prints warnings in its own way, for good: undone after each test."""
    import warnings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def sound(n_episodes=3, **kwargs):
    return rollout(n_episodes=n_episodes, env_kwargs={"success_rate": 0.5}, only_successful=False, **kwargs)


def fails(*arguments):
    """One line without a traceback, which is returned."""
    with pytest.raises(SystemExit) as exit_info:
        main(list(arguments))
    message = str(exit_info.value.code)
    assert message.startswith(f"sb3-ext {arguments[0]}: error: ") and "\n" not in message and "Traceback" not in message
    return message


def test_info_tells_the_facts(capsys):
    dataset = sound(6).with_metadata(ref_min_score=0.0, ref_max_score=1.0, description="six of them")
    save(dataset, "line")
    main(["dataset", "info", "line"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    facts = {name: " ".join(words) for name, *words in lines}
    assert facts["source"] == "'line'" and facts["environment"] == SCRIPTED
    assert facts["transitions"] == str(len(dataset)) and facts["episodes"] == "6"
    assert facts["description"] == "six of them"
    succeeded = int(dataset.terminations.sum())
    assert facts["success"] == f"{100 * succeeded / 6:.1f} % of the episodes"
    assert facts["ends"] == f"of episodes {succeeded} terminal, {6 - succeeded} truncated, 0 without a flag"
    assert facts["normalised"].startswith(f"score mean {100 * succeeded / 6:.4g}, ")


def test_summary_of_counts_and_useful_transitions():
    dataset = counted_dataset([(4, "timeout"), (2, "none")])
    dataset = type(dataset)(**{**vars(dataset), "infos": {"success": np.array([0, 1, 1, 1, 0, 0], bool)}})
    facts = summarize(dataset.with_metadata(counts={"dropped episodes": 2}))
    assert facts["up to the first success"] == "66.7 % of the transitions"
    assert facts["dropped episodes"] == "2"
    assert facts["ends of episodes"] == "0 terminal, 1 truncated, 1 without a flag"
    assert facts["returns"] == "mean 103.5, std 97.5, min 6, median 103.5, max 201"


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(PLACES, 2)))
def test_conversion_between_all_formats(source, target, capsys):
    if "arrow" in (source, target):
        pytest.importorskip("pyarrow")
    dataset = sound()
    save(dataset, PLACES[source], source)
    main(["dataset", "convert", PLACES[source], PLACES[target], "--format", target, "--trust"])
    assert f": 3 episodes, {len(dataset)} steps" in capsys.readouterr().out
    converted = read(PLACES[target], trust=True)
    assert_equal(converted, dataset, [name for name in (*COLUMNS, "ends") if name != "actions"])
    np.testing.assert_allclose(converted.actions, dataset.actions, rtol=1e-6)
    if "sb3" not in (source, target):
        assert_equal(converted, dataset, ["actions"])
        assert converted.env_id == SCRIPTED and converted.infos.keys() == dataset.infos.keys()


def test_conversion_of_arrays_and_back_is_guessed_by_the_name(capsys):
    np.savez("a.npz", **make_arrays())
    main(["dataset", "convert", "a.npz", "b.hdf5"])
    main(["dataset", "convert", "b.hdf5", "./folder"])
    assert_equal(read("./folder"), read("a.npz"))


def test_conversion_replaces_only_if_wanted():
    save(sound(2), "./a.hdf5")
    save(sound(3), "./folder")
    assert "exists. Choose another target or add --overwrite" in fails("dataset", "convert", "a.hdf5", "./folder")
    main(["dataset", "convert", "a.hdf5", "./folder", "--overwrite"])
    assert read("./folder").n_episodes == 2


def broken_file(kind):
    write_d4rl("a.hdf5", 200, terminals=np.arange(200) % 7 == 6, timeouts=np.zeros(200, bool))
    with h5py.File("a.hdf5", "a") as file:
        if kind == "missing column":
            del file["actions"]
        elif kind == "nan":
            file["observations"][9, 0] = np.nan
        elif kind == "constant rewards":
            file["rewards"][:] = 0
        elif kind == "other environment":
            file.attrs["env_id"] = "Hopper-v4"
    if kind == "no HDF5":
        Path("a.hdf5").write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing column", "lacks the columns ['actions']"),
        ("nan", "episodes hold NaN or infinite values"),
        ("constant rewards", "rewards are 0"),
        ("other environment", "have the shape (2,), the environment's (11,)"),
        ("no HDF5", "a.hdf5"),
        ("no file", "There is no file nowhere.hdf5"),
    ],
)
def test_validation_of_what_is_broken_fails(kind, message, capsys):
    broken_file(kind)
    with pytest.raises(SystemExit) as exit_info:
        main(["dataset", "validate", "nowhere.hdf5" if kind == "no file" else "a.hdf5"])
    assert exit_info.value.code == 1
    out = capsys.readouterr().out
    (error,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert message in error and "is sound" not in out


def test_validation_of_what_is_sound_succeeds_and_warns(capsys):
    save(sound(), "line")
    main(["dataset", "validate", "line"])
    assert capsys.readouterr().out == "line is sound.\n"
    broken_file("nan")
    main(["dataset", "validate", "a.hdf5", "--bad-episodes", "repair"])
    out = capsys.readouterr().out
    assert "warning: " in out and "1 shortened episodes" in out and "The environment is not named" in out
    assert out.endswith("a.hdf5 is sound.\n")


def test_validation_names_episodes_that_just_stop():
    errors, notes = validate(counted_dataset([(2, "none"), (3, "terminal")]))
    assert not errors and any("1 episodes end without a flag" in note for note in notes)


@pytest.mark.parametrize("name", ["antmaze-umaze", "antmaze-medium-diverse", "hopper-mixed"])
def test_shared_data_are_sound(name):
    errors, _ = validate(shared_file(name))
    assert errors == []


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot_writes_a_picture(ending):
    save(sound(), "line")
    main(["dataset", "plot", "line", "--output", f"a.{ending}"])
    content = Path(f"a.{ending}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml"}[ending]) and len(content) > 5_000


def test_plot_draws_the_maze(monkeypatch):
    from sb3_ext.datasets import summary

    drawn = []
    draw = summary._draw_maze
    monkeypatch.setattr(summary, "_draw_maze", lambda *args: drawn.append(1) or draw(*args))
    dataset = collect(POINT, "point", expert="waypoint", n_episodes=2)
    plot(dataset, Path("maze.png"))
    plot(sound(), Path("line.png"))
    assert drawn == [1] and Path("maze.png").stat().st_size > 10_000


@pytest.mark.parametrize("target", ["nowhere/a.png", "a.unknown"])
def test_picture_that_cannot_be_written_is_named(target):
    save(sound(), "line")
    assert f"{target} cannot be written" in fails("dataset", "plot", "line", "--output", target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere"], "no local Minari dataset 'nowhere-v0'"),
        (["info", "nowhere.hdf5"], "There is no file nowhere.hdf5"),
        (["info", "a.pkl"], "is a pickle"),
        (["plot", "a.pkl"], "is a pickle"),
        (["convert", "a.pkl", "b.hdf5"], "is a pickle"),
        (["convert", "a.pkl", "two words"], "'two words' cannot be the id"),
        (["info", "."], "holds no dataset"),
        (["info", "a.hdf5", "--bad-episodes", "raise"], "hold NaN or infinite values"),
    ],
)
def test_errors_are_one_line(arguments, message):
    save(sound(), "./a.pkl")
    broken_file("nan")
    assert message in fails("dataset", *arguments)


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["info"], ["convert", "a"], ["info", "a", "--bad-episodes", "x"]]
)
def test_wrong_usage_has_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["dataset", *arguments])
    assert exit_info.value.code == 2
    assert "usage: sb3-ext dataset" in capsys.readouterr().err


def test_warnings_are_one_line_each(capsys):
    broken_file("nan")
    main(["dataset", "info", "a.hdf5", "--bad-episodes", "drop"])
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if "dropped episodes" in line] == errors and errors[0].startswith("warning: ")


def test_collect_passes_its_arguments_on(capsys):
    arguments = "--expert waypoint random --shares 3 1 --noise 0.2 0 --transitions 400 --keep-failures --seed 3"
    main(
        ["collect", "--env", POINT, "--output", "./a.hdf5", *arguments.split(), "--env-kwargs", "max_episode_steps:100"]
    )
    dataset = read("./a.hdf5")
    assert f"./a.hdf5: {dataset.n_episodes} episodes, {len(dataset)} steps" in capsys.readouterr().out
    assert 400 <= len(dataset) < 500 and dataset.lengths.max() <= 100
    assert "waypoint (3, noise 0.2), random (1, noise 0), seed 3" in dataset.metadata.description


def test_collect_in_a_format(capsys):
    main(
        ["collect", "--env", POINT, "--output", "mine", "--expert", "waypoint", "--episodes", "1", "--format", "folder"]
    )
    assert Path("mine/dataset.json").exists() and read("./mine").n_episodes == 1
    assert "mine exists" in fails("collect", "--env", POINT, "--output", "mine", "--format", "folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "Nowhere-v0"], "Nowhere"),
        (["--env", POINT, "--expert", "waypoint", "random", "--shares", "1"], "as many shares"),
        (["--env", POINT, "--seed", "-1"], "seed=-1 must be at least 0"),
        (["--env", POINT, "--episodes", "2", "--transitions", "2"], "either the number"),
        (["--env", POINT, "--expert", "model.zip"], "Which algorithm trained"),
        (["--env", POINT, "--expert", "random", "--env-kwargs", "nonsense:1"], "nonsense"),
    ],
)
def test_errors_of_collect_are_one_line(arguments, message):
    assert message in fails("collect", "--output", "mine", *arguments)


def test_command_in_a_process_of_its_own(tmp_path):
    save(sound(), "line")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent))),
    }
    command = [sys.executable, "-m", "sb3_ext", "dataset", "info"]
    run = [
        subprocess.run([*command, name], capture_output=True, text=True, env=environment, timeout=100)
        for name in ("line", "nowhere")
    ]
    assert (run[0].returncode, run[1].returncode) == (0, 1)
    assert SCRIPTED in run[0].stdout
    assert "Traceback" not in run[1].stderr and "sb3-ext dataset: error: There is no folder 'nowhere'" in run[1].stderr
