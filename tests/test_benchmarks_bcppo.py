"""The benchmarks of BCPPO run, with small numbers."""

import csv

import pytest
from test_examples import ROOT, run


@pytest.mark.parametrize("algo", ["bcppo", "ppo", "ppo-pretrained"])
def test_success_curve(algo, tmp_path):
    small = ["n_steps=20", "batch_size=10"]
    if algo != "ppo":
        small += ["demos=scripted:1", "bc_pretrain_steps=20", "value_warmup_steps=0"]
    arguments = ["--algo", algo, "--timesteps", 20, "--eval-freq", 10, "--eval-episodes", 1, "--set", *small]
    run(tmp_path, ROOT / "benchmarks/success.py", *arguments, "--seed", 0, "--output", tmp_path / algo)
    with (tmp_path / algo / "seed0.csv").open() as file:
        assert [row["timesteps"] for row in csv.DictReader(file)] == ["0", "10", "20"]


def test_speed(tmp_path):
    arguments = ["--settings", "defaults", "--n-envs", 2, "--rounds", 1, "--output", tmp_path]
    run(tmp_path, ROOT / "benchmarks/bcppo/speed.py", *arguments)
    with (tmp_path / "speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows][:3] == ["SB3 PPO", "BCPPO, eager", "BCPPO, compiled"] and len(rows) == 5
    assert all(float(row[part]) > 0 for row in rows for part in ("total", "simulator", "rollout", "update"))
    assert "| defaults | 2 | BCPPO, compiled |" in (tmp_path / "table.md").read_text()
