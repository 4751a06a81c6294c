"""Scripts of benchmarks/offline: which runs are to do, what a table says of made-up CSVs, what d3rlpy would get."""

import csv
import importlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces

import rl_zoo_configs
from sb3_ext import IQL
from sb3_ext.datasets import Dataset, load

FOLDER = Path(__file__).parents[1] / "benchmarks/offline"
COLUMNS = ["step", "score", "success_rate", "return_mean", "episode_length", "episodes", "training_seconds"]


@pytest.fixture
def script(monkeypatch):
    """Imports a script as if it were run; its name, which may be anyone's, is free again afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(FOLDER.parent):
            del sys.modules[name]


def write_run(path, scores, steps=None, seconds=10.0, is_success=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for i, score in enumerate(scores):
            rest = {"success_rate": score / 100 if is_success else 0.0, "return_mean": 0, "episode_length": 1}
            step = (i + 1) * 10 if steps is None else steps[i]
            writer.writerow({"step": step, "score": score, "episodes": 1, "training_seconds": seconds, **rest})


def cells(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_table_of_last_and_best_evaluations(script, tmp_path):
    report = script("report")
    write_run(tmp_path / "maze/IQL/seed0.csv", [10, 90, 80], seconds=100)
    write_run(tmp_path / "maze/IQL/seed1.csv", [70, 60, 60], seconds=200)
    write_run(tmp_path / "maze/IQL/seed2.csv", [70])  # under way
    write_run(tmp_path / "hop/BC/seed0.csv", [20.5, 30.25], is_success=False)
    text = report.write(tmp_path, {})
    # 80 and 60: a sample standard deviation of 14.14; 90 and 70 likewise
    assert cells(text, "IQL") == ["2", "30", "70.0 ± 14.1", "80.0 ± 14.1", "150"]
    assert cells(text, "BC") == ["1", "20", "30.2", "30.2", "10"]
    assert "Success, % of episodes" in text and "Normalised score" in text
    assert (tmp_path / "table.md").read_text() == text
    assert (tmp_path / "success.png").exists() and not (tmp_path / "online.png").exists()


def test_table_of_dips_online(script, tmp_path):
    report = script("report")
    write_run(tmp_path / "maze-online/IQL/seed0.csv", [50, 90, 60, 95])  # falls by 30 from the second
    write_run(tmp_path / "maze-online/IQL/seed1.csv", [50, 80, 90, 85])  # does not fall
    write_run(tmp_path / "maze-online/AWAC/seed0.csv", [50, 80])  # has not begun to collect
    text = report.write(tmp_path, {"maze-online": 20})
    assert cells(text, "IQL") == ["2", "20", "85.0 ± 7.1", "15.0 ± 21.2", "30.0", "90.0 ± 7.1", "92.5 ± 3.5", "10"]
    assert "| AWAC |" not in text
    assert (tmp_path / "online.png").exists() and not (tmp_path / "success.png").exists()


def test_half_a_line_is_no_row(script, tmp_path):
    report, suite = script("report"), script("suite")
    path = tmp_path / "seed0.csv"
    write_run(path, [10, 20])
    with path.open("a") as file:
        file.write("30,4")
    (run,) = report.read(tmp_path)
    assert run.steps.tolist() == [10, 20] and run.scores.tolist() == [10, 20]
    assert not suite.is_complete(path, 30)
    write_run(path, [10, 20])
    assert suite.is_complete(path, 20)


def test_suite_runs_what_has_no_whole_csv(script, tmp_path):
    suite = script("suite")
    every = suite.to_do([0, 1, 2], [], tmp_path)
    # Six of ours and two of d3rlpy's on three datasets, four of its with our temperature, one more cloned part, one in
    # bf16, eight without a hierarchy, twelve of hierarchies without a part, eight online, half without it; three seeds
    assert len(every) == len(set(every)) == 3 * (3 * 8 + 4 + 2 + 8 + 12 + 8 + 1)
    name = "antmaze-umaze/ReBRAC"
    total = suite.plans()[name].total
    write_run(tmp_path / name / "seed0.csv", [10, 20], steps=[1, total])
    write_run(tmp_path / name / "seed1.csv", [10, 20], steps=[1, total - 1])
    assert suite.to_do([0, 1], [name], tmp_path) == [(name, 1)]
    assert (f"{name}, MlpPolicy", 0) in suite.to_do([0, 1], ["umaze/ReBRAC"], tmp_path)
    with pytest.raises(ValueError, match=r"no curve \['iql'\], but \['antmaze-umaze/BC'"):
        suite.to_do([0], ["iql", "IQL"], tmp_path)
    online = suite.to_do([0], ["-online"], tmp_path)
    names = ("AWAC", "IQL", "ReBRAC", "Cal-QL")
    assert {name for name, _ in online} == {
        f"antmaze-umaze-online/{a}{row}" for a in names for row in ("", ", before symmetry")
    }
    assert "--online" in suite.plans()[online[0][0]].arguments
    # As published, not as the configuration's hierarchy
    assert {"policy=MlpPolicy", "deterministic_actor=false"} <= set(
        suite.plans()["antmaze-umaze/IQL, MlpPolicy"].arguments
    )


def test_rows_without_a_hierarchy_and_those_that_go_on_online(script):
    suite = script("suite")
    plans = suite.plans()
    of_hierarchies = ("low_level_net_arch", "subgoal_quantile", "memory_radius", "symmetry")
    for name in suite.FLAT:
        _, _, changes = " ".join(plans[f"{name}, MlpPolicy"].arguments).partition("--set ")
        assert changes.startswith("policy=MlpPolicy") and "n_steps=" in changes
        config = yaml.safe_load(rl_zoo_configs.config_path(suite.ALGORITHMS[name.split("/")[1]]).read_text())
        entry = config[suite.ENVIRONMENTS[name.split("/")[0]]]
        assert entry["policy"] == "HierarchicalPolicy"
        is_left = any(argument in entry.get("policy_kwargs", {}) for argument in of_hierarchies)
        assert not is_left or "policy_kwargs=" in changes
        assert not any(argument in changes for argument in of_hierarchies)
    online = {name.split("/")[1]: plan.arguments for name, plan in plans.items() if "-online/" in name}
    without = {name for name in online if name.endswith(", before symmetry")}
    assert len(without) == 4
    for row, names in {"": set(online) - without, ", before symmetry": without}.items():
        noisy = {name for name in names if "--action-noise" in online[name]}
        assert noisy == {f"AWAC{row}", f"ReBRAC{row}"}
        assert {name for name in names if "truncates: true" in str(online[name])} == names - {f"IQL{row}"}


def test_rows_of_hierarchies_without_a_part(script):
    suite = script("suite")
    plans = suite.plans()
    for name, algo in suite.ALGORITHMS.items():
        if name in ("BC", "EDAC"):
            continue
        config = yaml.safe_load(rl_zoo_configs.config_path(algo).read_text())
        for dataset, left_out in {
            "antmaze-umaze/{}, before symmetry": {"symmetry", "subgoal_quantile"},
            "antmaze-umaze/{}, before symmetry, no memory": {"symmetry", "subgoal_quantile", "memory_radius"},
            "antmaze-umaze-online/{}, before symmetry": {"symmetry", "subgoal_quantile"},
            "antmaze-medium-diverse/{}, before symmetry": {"symmetry", "memory_radius"},
        }.items():
            arguments = plans[dataset.format(name)].arguments
            (change,) = [argument for argument in arguments if argument.startswith("policy_kwargs=")]
            kept = yaml.safe_load(change.removeprefix("policy_kwargs="))
            whole = config[suite.ENVIRONMENTS[dataset.split("/")[0].removesuffix("-online")]]["policy_kwargs"]
            assert left_out <= set(whole)
            expected = {key: value for key, value in whole.items() if key not in left_out}
            if "medium" in dataset:
                expected["low_level_net_arch"] = [256, 256, 256]
                if name == "IQL":
                    expected["subgoal_quantile"] = None
            assert kept == expected


def test_runs_that_the_suite_has_not_finished_are_in_no_table(script, tmp_path):
    report, suite = script("report"), script("suite")
    name = "antmaze-umaze/IQL"
    total = suite.plans()[name].total
    write_run(tmp_path / name / "seed0.csv", [10, 20], steps=[1, total - 1])
    assert report.read_all(tmp_path) == {}
    write_run(tmp_path / name / "seed1.csv", [10, 20], steps=[1, total])
    assert [run.seed for run in report.read_all(tmp_path)["antmaze-umaze"]["IQL"]] == [1]


def episodes():
    """Two episodes of two steps, the first ends in a terminal state, the second is cut off."""
    observations = np.arange(8, dtype=np.float32).reshape(4, 2)
    following = np.concatenate([observations[1:2], [[90, 91]], observations[3:], [[92, 93]]]).astype(np.float32)
    return Dataset.from_arrays(
        {
            "observations": observations,
            "next_observations": following,
            "actions": np.linspace(-1, 1, 4, dtype=np.float32).reshape(4, 1),
            "rewards": np.arange(4, dtype=np.float32),
            "terminations": np.array([False, True, False, False]),
            "truncations": np.array([False, False, False, True]),
        }
    )


def test_d3rlpy_gets_a_row_after_what_was_cut_off(script):
    columns = script("peer_d3rlpy").columns(episodes())
    assert columns["observations"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [92, 93]]
    assert columns["terminals"].tolist() == [0, 1, 0, 0, 0]
    assert columns["timeouts"].tolist() == [0, 0, 0, 0, 1]
    assert columns["rewards"].tolist() == [0, 1, 2, 3, 0]
    assert len(columns["actions"]) == 5


def test_plain_critic_loss_is_ours(script):
    """The speed benchmark compares the same work: both compute the critics' loss of one batch."""
    plain, losses = script("plain"), importlib.import_module("sb3_ext.common.losses")
    data = script("speed_workers").random_data()
    del data["truncations"]
    data["next_actions"] = np.roll(data["actions"], -1, axis=0)
    for algorithm in plain.PLAIN.values():
        model = algorithm(data, hidden=8, batch_size=32)
        batch, next_values = model.sample(), th.randn(32, 1)
        q_values = th.stack([q(batch["observations"], batch["actions"]) for q in model.critics])
        y = losses.td_target(batch["rewards"], batch["terminations"], plain.GAMMA, next_values)
        model.update_critics(batch, next_values)
        assert model.losses["critic_loss"] == pytest.approx(losses.ensemble_mse(q_values, y).item(), rel=1e-5)
        model.step(), model.step()
        assert all(np.isfinite(loss) for loss in model.losses.values()) and "actor_loss" in model.losses


def test_speed_table(script, tmp_path):
    speed = script("speed")
    rows = [
        {"compiled": 2.0, speed.PLAIN: 4.0, speed.UPDATE: 10.0},
        {"compiled": 4.0, speed.PLAIN: 4.0, speed.UPDATE: 8.0},
    ]
    speed.write_csv(tmp_path / "IQL.csv", rows)
    text = speed.table(tmp_path)
    assert "| IQL | compiled | 3.00 | 333 | 1.00 / **1.50** / 2.00 | 2.00 / **3.50** / 5.00 |" in text
    assert f"| IQL | {speed.PLAIN} | 4.00 | 250 |  | 2.00 / **2.25** / 2.50 |" in text


def test_worker_answers_turn_by_turn(script, monkeypatch):
    workers, answers = script("speed_workers"), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n3\n"))
    turns = workers.Turns(answers)
    for _ in range(workers.WARM_UP_STEPS + 2 + 2):
        turns()
    ready, seconds = answers.getvalue().split()
    assert ready == "ready" and float(seconds) >= 0
    with pytest.raises(SystemExit):  # after the third step of the last turn nobody asks for more
        turns()
    assert len(answers.getvalue().split()) == 3


class Lasting(gym.Env):
    """Ends after as many steps as it is told to, with a success where those are even; shows how many it has had."""

    def __init__(self, n_steps):
        self.n_steps = n_steps

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1), {}

    def step(self, action):
        self.steps += 1
        info = {"success": self.steps == self.n_steps and self.n_steps % 2 == 0}
        return np.array([float(self.steps)]), 1.0, self.steps == self.n_steps, False, info


def test_each_evaluation_episode_keeps_its_state(script, monkeypatch):
    train = script("train")
    lasting = iter([3, 1, 2])
    monkeypatch.setattr(train, "make_eval_env", lambda dataset: Lasting(next(lasting)))
    evaluation = train.Evaluation(SimpleNamespace(successes=True), 3)
    seen = []

    def predict(observations, state):
        numbers = np.arange(3) if state is None else state[0]
        seen.append((numbers.tolist(), observations[:, 0].tolist()))
        return np.zeros((len(observations), 1)), (numbers, numbers)

    row = evaluation(predict)
    assert seen == [([0, 1, 2], [0, 0, 0]), ([0, 2], [1, 1]), ([0], [2])]
    assert (row["score"], row["return_mean"], row["episode_length"]) == (33.33, 2.0, 2.0)
    # Without a state
    assert evaluation(lambda observations, state: (np.zeros((len(observations), 1)), None)) == row


def test_subgoals_that_are_overruled(script):
    ceiling = script("ceiling")
    rng = np.random.default_rng(0)
    # Twice as far along x as along y
    walk = np.cumsum(rng.normal(size=(301, 3)) * [2, 1, 1], axis=0).astype(np.float32)
    columns = {"observations": walk[:-1], "next_observations": walk[1:], "actions": rng.uniform(-1, 1, (300, 2))}
    ends = {"terminations": np.zeros(300, bool), "truncations": np.arange(1, 301) % 50 == 0}
    dataset = load({**columns, **ends, "rewards": rng.normal(size=300)}).with_metadata(
        observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float32),
        action_space=spaces.Box(-1, 1, (2,), np.float32),
    )
    model = IQL(
        "HierarchicalPolicy",
        None,
        dataset,
        action_values=False,
        n_steps=5,
        standardize_observations=True,
        policy_kwargs={"net_arch": [8]},
        device="cpu",
        seed=0,
    ).learn(5)
    evaluation = SimpleNamespace(playing=np.array([3, 1]))
    observations = dataset.observations[:2]
    own = ceiling.Guided(model.policy, evaluation, lambda position, i: None)
    np.testing.assert_allclose(
        own(observations, None)[0], model.predict(observations, deterministic=True)[0], rtol=1e-5
    )
    asked, subgoal = [], th.tensor([0.9, -0.9])
    model.policy.subgoals = lambda ways: asked.append(ways.numpy()) or subgoal
    way = np.array([3, 4])
    guided = ceiling.Guided(model.policy, evaluation, lambda position, i: position + way if i == 3 else None)
    actions, unsteered = guided(observations, None)[0], own(observations, None)[0]
    # As features are: in standard deviations of the data
    std = dataset.observations[:, :2].std(axis=0)
    np.testing.assert_allclose(asked, [ceiling.SUBGOAL_LENGTH * np.array([0.6, 0.8]) / std], rtol=1e-3)
    with th.no_grad():
        features = model.policy.features(th.as_tensor(observations[:1]))
        steered = model.policy.low_level(th.cat([features, subgoal[None]], dim=1), True)
    np.testing.assert_allclose(actions[:1], steered.clamp(-1, 1), rtol=1e-5)
    np.testing.assert_allclose(actions[1], unsteered[1], rtol=1e-5)
    assert not np.allclose(actions[0], unsteered[0])
