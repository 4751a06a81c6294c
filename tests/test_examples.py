"""Every example, benchmark and code block of the README runs, with small numbers in place of large ones."""

import csv
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from line_envs import shared_file

import rl_zoo_configs

ROOT = Path(__file__).parents[1]
TINY = ["bc_pretrain_steps=20", "utd_ratio=1", "n_critics=2", "demos=scripted:1"]


def run(folder, *arguments):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_demo_leaves_model_curve_and_the_commands_to_go_on(tmp_path):
    output = run(tmp_path, ROOT / "examples/demo.py", "--timesteps", 20, "--eval-episodes", 1)
    assert re.search(r"success before: \d+ %, after: \d+ % of 1 episodes", output)
    assert (tmp_path / "demo/learning_curve.png").stat().st_size > 5_000
    assert list((tmp_path / "demo/tensorboard").rglob("events.out.tfevents.*"))
    command = re.search(r"sb3-ext (enjoy .*)", output).group(1).split()
    assert "Success rate: " in run(tmp_path, "-m", "sb3_ext", *command, "-n", 600)


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_python_of_the_readme_runs(tmp_path):
    training, loading, offline = blocks("README.md", "python")
    small = training.replace("bc_pretrain_steps=5000", "bc_pretrain_steps=20").replace("10_000", "20")
    assert small.count("=20") == 1 and "learn(20" in small
    (tmp_path / "training.py").write_text(small)
    run(tmp_path, "training.py")
    assert (tmp_path / "hammer.zip").exists()
    (tmp_path / "loading.py").write_text(loading)
    run(tmp_path, "loading.py")
    assert (tmp_path / "maze.hdf5").exists()
    small = offline.replace("2_000", "20").replace("3_000", "40")
    assert "learn(40)" in small
    (tmp_path / "offline.py").write_text(small)
    run(tmp_path, "offline.py")


def test_python_of_the_offline_page_runs(tmp_path):
    offline, _, online, own_data = blocks("docs/offline.md", "python")[:4]
    (tmp_path / "offline.py").write_text(offline.replace("2_000", "20"))
    run(tmp_path, "offline.py")
    assert (tmp_path / "iql.zip").exists()
    small = online.replace("2_000", "20").replace("3_000", "40")
    assert "learn(40)" in small
    (tmp_path / "online.py").write_text(small)
    run(tmp_path, "online.py")
    small = own_data.replace("range(20)", "range(2)").replace("2_000", "20")
    assert "range(2)" in small and "learn(20)" in small
    (tmp_path / "own_data.py").write_text(small)
    run(tmp_path, "own_data.py")
    (config,) = blocks("docs/offline.md", "yaml")
    (tmp_path / "pendulum.yml").write_text(config.replace("2000", "20"))
    arguments = ["--algo", "awac", "--env", "Pendulum-v1", "--conf-file", "pendulum.yml", "--eval-freq", -1]
    run(tmp_path, "-m", "sb3_ext", "train", *arguments)
    assert (tmp_path / "logs/awac/Pendulum-v1_1/Pendulum-v1.zip").exists()


def test_hierarchies_of_the_offline_page_run(tmp_path):
    every = blocks("docs/offline.md", "python")
    umaze, medium = (code for code in every if "HierarchicalPolicy" in code)
    (playing,) = (code for code in every if "state, starts" in code)
    playing = playing.replace("n_eval_episodes=100", "n_eval_episodes=1").replace("range(700)", "range(3)")
    examples = [f"{umaze}\n{playing}", medium]
    for code in examples:
        (name,) = re.findall(r'dataset="(antmaze-.*)\.hdf5"', code)
        (tmp_path / f"{name}.hdf5").symlink_to(shared_file(name))
        small = re.sub(r"learn\(.0_000\)", "learn(4)", code)
        assert small != code
        (tmp_path / "hierarchy.py").write_text(small)
        run(tmp_path, "hierarchy.py")


class Recorded:
    """In the place of a model: what a recipe calls it with."""

    def __init__(self, policy, env, **kwargs):
        self.settings = {"policy": policy, **kwargs}

    def learn(self, total_timesteps):
        self.settings["n_timesteps"] = total_timesteps


def test_hierarchies_of_the_offline_page_are_as_configured():
    recipes = [code for code in blocks("docs/offline.md", "python") if "HierarchicalPolicy" in code]
    for code, env_id in zip(recipes, ("AntMazeFlat/UMaze-v4", "AntMazeFlat/Medium-v4"), strict=True):
        (name,) = re.findall(r"from sb3_ext import (\w+)", code)
        variables = {name: Recorded}
        exec(re.sub(r"from sb3_ext import .*", "", code), variables)
        configured = yaml.safe_load(rl_zoo_configs.config_path(name.lower()).read_text())[env_id]
        del variables["model"].settings["dataset"], configured["dataset"]
        default = {"tau": 0.005}
        assert default | variables["model"].settings == default | configured


def test_symmetry_of_the_offline_page_is_the_ants(tmp_path):
    (code,) = [code for code in blocks("docs/offline.md", "python") if "RotationalSymmetry" in code]
    (tmp_path / "symmetry.py").write_text(f"{code}\nfrom sb3_ext.common.symmetry import ANT\n")
    with (tmp_path / "symmetry.py").open("a") as file:
        file.write("from dataclasses import replace\nassert replace(ANT, n_entries=None) == ant\n")
    run(tmp_path, "symmetry.py")
    # Which would not pass with other signs
    wrong = code.replace("action_signs=((1, 1), (1, -1)", "action_signs=((1, 1), (1, 1)")
    assert wrong != code
    (tmp_path / "wrong.py").write_text(wrong)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        run(tmp_path, "wrong.py")


def test_training_environment_of_the_offline_page_runs(tmp_path):
    (code,) = [code for code in blocks("docs/offline.md", "python") if "truncates=True" in code]
    (tmp_path / "antmaze-umaze.hdf5").symlink_to(shared_file("antmaze-umaze"))
    (tmp_path / "environment.py").write_text(f"{textwrap.dedent(code)}\nassert env.spec.id == 'AntMazeFlat/UMaze-v4'\n")
    run(tmp_path, "environment.py")


def test_python_of_the_bcppo_page_runs(tmp_path):
    training, cloning = blocks("docs/bcppo.md", "python")
    small = training.replace("bc_pretrain_steps=1000", "bc_pretrain_steps=20").replace("50_000", "20")
    small = small.replace("8192", "64").replace("4096", "64").replace("512", "64")
    (tmp_path / "bcppo.py").write_text(small)
    run(tmp_path, "bcppo.py")
    assert (tmp_path / "hammer.zip").exists()
    small = cloning.replace("2_000", "20").replace('"MlpPolicy", env', '"MlpPolicy", env, n_steps=64')
    small = small.replace("2_048", "64")
    assert small.count("64") == 2
    (tmp_path / "cloning.py").write_text(small)
    run(tmp_path, "cloning.py")


def test_commands_of_the_datasets_page_run(tmp_path):
    (commands,) = blocks("docs/datasets.md", "bash")
    small = commands.replace("100000", "2000")
    assert small != commands
    (tmp_path / "commands.sh").write_text(f'set -e\nsb3-ext() {{ "{sys.executable}" -m sb3_ext "$@"; }}\n{small}')
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "commands.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "pointmaze.hdf5 is sound." in done.stdout
    assert {"pointmaze.png", "pointmaze.pkl"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("algo", ["redq", "sac"])
def test_success_benchmark_and_its_report(algo, tmp_path):
    arguments = ["--algo", algo, "--timesteps", 20, "--eval-freq", 10, "--eval-episodes", 1, "--set", *TINY]
    for seed in (0, 1):
        run(
            tmp_path, ROOT / "benchmarks/success.py", *arguments, "--seed", seed, "--output", tmp_path / "results/curve"
        )
    with (tmp_path / "results/curve/seed1.csv").open() as file:
        assert [row["timesteps"] for row in csv.DictReader(file)] == ["0", "10", "20"]
    output = run(tmp_path, ROOT / "benchmarks/success_report.py", "results")
    assert output.count("| curve |") == 2
    assert (tmp_path / "results/success.png").exists() and (tmp_path / "results/table.md").exists()


def test_links_of_the_documentation_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
