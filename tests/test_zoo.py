import argparse
import csv
import inspect
import math
import os
import subprocess
import sys
from importlib.metadata import entry_points

import gymnasium as gym
import numpy as np
import optuna
import pytest
import rl_zoo3.enjoy
import rl_zoo3.train
import yaml
from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3 import PPO

import sb3_ext
from rl_zoo_configs import config_path
from sb3_ext.common.offline_algorithm import OfflineAlgorithm
from sb3_ext.datasets import load_demonstrations, rollout_episodes, save
from sb3_ext.datasets.collect import waypoint_expert
from sb3_ext.datasets.d4rl import FILES
from sb3_ext.datasets.demo import DEMO_DATASETS
from sb3_ext.iql import IQL
from sb3_ext.zoo import ALGORITHMS, register
from sb3_ext.zoo.cli import main
from sb3_ext.zoo.registration import ExperimentManager
from sb3_ext_envs import METAWORLD_TASKS

HAMMER = "MetaWorldSparse/hammer-v3"
POINTMAZE = "PointMazeFlat/UMaze-v3"
# Enough for hammer's scripted expert, who takes 60 to 70
EPISODE_STEPS = 100
# RL Zoo's own keys of a configuration
ZOO_KEYS = {"n_timesteps", "n_envs", "normalize", "env_wrapper", "env_kwargs", "callback", "noise_type", "noise_std"}

OFFLINE = [algo for algo, entry in ALGORITHMS.items() if issubclass(entry.algorithm, OfflineAlgorithm)]
# What is run by RL Zoo from end to end, which takes seconds each
RUN = ["redq", "bcppo", "iql", "rebrac"]
# What makes a run of 30 steps cheap, beside one demonstration and small batches
CLONES = ["demos:'scripted:1'", "bc_pretrain_steps:20"]
CHEAP = {
    "redq": [*CLONES, "batch_size:32"],
    "bcppo": [*CLONES, "batch_size:10", "n_steps:10", "value_warmup_steps:10"],
}
CHEAP_SEARCH = {**CHEAP, "redq": [*CHEAP["redq"], "learning_starts:25"]}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Constant.s. may be too high:UserWarning"),
    pytest.mark.filterwarnings("ignore:`.*` is set to None:UserWarning"),
]
for_each_algorithm = pytest.mark.parametrize("algo", ALGORITHMS)
for_each_offline_algorithm = pytest.mark.parametrize("algo", OFFLINE)


@pytest.fixture(autouse=True)
def unchanged_argv(monkeypatch):
    """The commands hand their arguments to RL Zoo in ``sys.argv``."""
    monkeypatch.setattr(sys, "argv", sys.argv)


def run_command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "sb3_ext", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def pointmaze_data(tmp_path_factory):
    """A file with three episodes that start anywhere."""
    env = gym.make(POINTMAZE, start_cell="random")
    path = tmp_path_factory.mktemp("data") / "pointmaze.hdf5"
    save(rollout_episodes(env, waypoint_expert(env), n_episodes=3), path)
    env.close()
    return str(path)


@pytest.fixture
def run_train(tmp_path, pointmaze_data):
    def run(algo, *arguments, hyperparams=()):
        data = [f"dataset:{pointmaze_data!r}", "batch_size:32"] if algo in OFFLINE else []
        result = run_command(
            tmp_path,
            *("train", "--algo", algo, "--env", env_of(algo), "-n", "30", "--seed", "0", "--num-threads", "1"),
            *("--eval-freq", "20", "--eval-episodes", "1", "--env-kwargs", f"max_episode_steps:{EPISODE_STEPS}"),
            *("--hyperparams", *data, *hyperparams),
            *arguments,
        )
        assert result.returncode == 0, result.stderr
        return result

    return run


def env_of(algo):
    return POINTMAZE if algo in OFFLINE else HAMMER


def run_folder(folder, algo, number=1):
    return folder / "logs" / algo / f"{env_of(algo).replace('/', '-')}_{number}"


def load_config(algo):
    return yaml.safe_load(config_path(algo).read_text())


def constructor_arguments(algo):
    return set(inspect.signature(ALGORITHMS[algo].algorithm).parameters)


def policy_arguments(policy):
    """Of a policy class; one that takes ``**kwargs`` hands them to its base class, or a hierarchy's high level."""
    own = set().union(*(inspect.signature(cls).parameters for cls in policy.__mro__ if cls is not object))
    return own | (policy_arguments(policy.high_level_class) if hasattr(policy, "high_level_class") else set())


# Registration


@for_each_algorithm
def test_algorithm_is_registered_however_often(algo):
    register()
    before = [dict(registry) for registry in (ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER)]
    register()
    assert [ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER] == before
    entry = ALGORITHMS[algo]
    assert ALGOS[algo] is entry.algorithm
    assert HYPERPARAMS_SAMPLER[algo] is entry.sampler
    assert HYPERPARAMS_CONVERTER[algo] is entry.converter


def test_registering_keeps_the_stock_algorithms():
    register()
    assert ALGOS["ppo"] is PPO
    assert set(ALGORITHMS).isdisjoint({"a2c", "ddpg", "dqn", "ppo", "sac", "td3", "tqc", "crossq"})


@for_each_algorithm
def test_our_configuration_is_the_default_and_can_be_replaced(algo, tmp_path):
    register()
    assert rl_zoo3.train.ExperimentManager is rl_zoo3.enjoy.ExperimentManager is ExperimentManager
    assert ExperimentManager(None, algo, HAMMER, str(tmp_path)).config == str(config_path(algo))
    assert ExperimentManager(None, algo, HAMMER, str(tmp_path), config="mine.yml").config == "mine.yml"


def test_stock_algorithms_keep_their_configuration(tmp_path):
    config = ExperimentManager(None, "ppo", "CartPole-v1", str(tmp_path)).config
    assert config.endswith("rl_zoo3/hyperparams/ppo.yml")


# Configurations


def test_configuration_has_one_recipe_for_all_sparse_tasks():
    config = load_config("redq")
    assert {f"MetaWorldSparse/{task}" for task in METAWORLD_TASKS} | {"default"} <= set(config)
    assert all(config[f"MetaWorldSparse/{task}"] == config[HAMMER] for task in METAWORLD_TASKS)


@for_each_algorithm
def test_configurations_hold_constructor_arguments(algo):
    policies = ALGORITHMS[algo].algorithm.policy_aliases
    for env_id, values in load_config(algo).items():
        assert values["n_timesteps"] > 0, env_id
        assert set(values) - ZOO_KEYS <= constructor_arguments(algo), env_id
        assert set(values.get("policy_kwargs", {})) <= policy_arguments(policies[values["policy"]]), env_id


@for_each_offline_algorithm
def test_offline_configurations_name_datasets(algo):
    config = load_config(algo)
    assert {"default", *DEMO_DATASETS.values()} <= set(config)
    for env_id, values in config.items():
        if env_id == "default":
            assert "dataset" not in values
        elif values["dataset"] in DEMO_DATASETS:
            assert DEMO_DATASETS[values["dataset"]] == env_id
        else:
            assert values["dataset"] in FILES


# Search spaces


def sample_params(algo, trial):
    return ALGORITHMS[algo].sampler(trial, 4, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})


@for_each_algorithm
def test_samples_are_constructor_arguments_and_converted_again_the_same(algo):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    samples = []
    for _ in range(20):
        trial = study.ask()
        sample = sample_params(algo, trial)
        assert sample.keys() <= constructor_arguments(algo)
        assert all(sample[name] == value for name, value in trial.user_attrs.items())
        raw = dict(trial.params)
        assert ALGORITHMS[algo].converter(raw) == sample
        assert raw == trial.params
        samples.append(str(sample))
    assert len(set(samples)) == 20


@for_each_algorithm
def test_sampled_policy_arguments_exist(algo):
    sample = sample_params(algo, optuna.create_study().ask())
    policy = ALGORITHMS[algo].algorithm.policy_aliases[load_config(algo)[env_of(algo)]["policy"]]
    assert set(sample["policy_kwargs"]) <= policy_arguments(policy)


@for_each_offline_algorithm
def test_samples_make_models(algo, pointmaze_data):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(3):
        sample = sample_params(algo, study.ask())
        model = ALGORITHMS[algo].algorithm("MlpPolicy", None, dataset=pointmaze_data, device="cpu", **sample)
        assert {name: getattr(model, name) for name in sample if name != "policy_kwargs"} == {
            name: value for name, value in sample.items() if name != "policy_kwargs"
        }
        assert sample["policy_kwargs"].items() <= model.policy_kwargs.items()


# Training, playing and searching from the command line


@pytest.mark.parametrize("algo", RUN)
def test_trained_agent_is_played(algo, run_train, tmp_path):
    result = run_train(algo, hyperparams=CHEAP.get(algo, []))
    assert f"Loading hyperparameters from: {config_path(algo)}" in result.stdout
    folder = run_folder(tmp_path, algo)
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [20]
    assert ALGORITHMS[algo].algorithm.load(folder / "best_model.zip", device="cpu").num_timesteps == 20

    arguments = ("--no-render", "-n", "60", "--env-kwargs", "max_episode_steps:20")
    result = run_command(tmp_path, "enjoy", "--algo", algo, "--env", env_of(algo), *arguments)
    assert result.returncode == 0, result.stderr
    name = env_of(algo).replace("/", "-")
    assert f"Loading logs/{algo}/{name}_1/{name}.zip" in result.stdout
    assert "Success rate: " in result.stdout
    assert "3 Episodes" in result.stdout


@pytest.mark.parametrize("algo", RUN)
def test_search_completes_its_trials(algo, run_train, tmp_path):
    arguments = ("-optimize", "--n-trials", "2", "--n-evaluations", "1", "--no-optim-plots")
    run_train(algo, *arguments, hyperparams=CHEAP_SEARCH.get(algo, []))
    (report,) = (tmp_path / "logs" / algo).glob("report_*.csv")
    with report.open() as file:
        assert [trial["state"] for trial in csv.DictReader(file)] == ["COMPLETE", "COMPLETE"]


def test_offline_training_goes_on_and_then_collects(run_train, tmp_path):
    run_train("iql", "-tb", str(tmp_path / "tensorboard"), hyperparams=["learning_rate:'cos_1e-3'"])
    first = run_folder(tmp_path, "iql") / "PointMazeFlat-UMaze-v3.zip"
    model = IQL.load(first, device="cpu")
    # RL Zoo's own schedule would be a straight line
    assert model.lr_schedule(0.25) == pytest.approx(1e-3 * (1 + math.cos(0.75 * math.pi)) / 2)
    assert list((tmp_path / "tensorboard/PointMazeFlat-UMaze-v3").glob("IQL_1/events*"))

    split = ["n_offline_steps:40", "n_envs:2", "learning_starts:4"]
    result = run_train("iql", "-i", str(first), "--save-replay-buffer", hyperparams=split)
    assert "Loading pretrained agent" in result.stdout
    second = IQL.load(run_folder(tmp_path, "iql", 2) / "PointMazeFlat-UMaze-v3.zip", device="cpu")
    # 30 gradient steps, 10 more, then 20 transitions of two environments, with updates after the first four
    assert (second._n_offline_done, second.num_timesteps, second._n_updates) == (40, 30, 30 + 10 + 8)
    second.load_replay_buffer(run_folder(tmp_path, "iql", 2) / "replay_buffer.pkl")
    assert second.replay_buffer.n_envs == 2 and second.replay_buffer.size() == 10


# The environment of the data


def read_hyperparameters(folder, data, env_id=POINTMAZE, dataset_kwargs=None, **arguments):
    args = argparse.Namespace(env_kwargs=arguments.get("env_kwargs"))
    hyperparams = {"dataset": data, "dataset_kwargs": dataset_kwargs or {}}
    manager = ExperimentManager(args, "iql", env_id, str(folder), hyperparams=hyperparams, **arguments)
    _, saved = manager.read_hyperparameters()
    assert saved["env_kwargs"] == manager.env_kwargs
    return manager


def test_environment_is_the_one_of_the_recording(pointmaze_data, tmp_path):
    manager = read_hyperparameters(tmp_path, pointmaze_data)
    assert manager.env_kwargs == manager.eval_env_kwargs == {"start_cell": "random"}


def test_given_environment_arguments_come_first(pointmaze_data, tmp_path):
    manager = read_hyperparameters(
        tmp_path, pointmaze_data, env_kwargs={"start_cell": (1, 1)}, eval_env_kwargs={"width": 64}
    )
    assert manager.env_kwargs == manager.args.env_kwargs == {"start_cell": (1, 1)}
    assert manager.eval_env_kwargs == {"start_cell": (1, 1), "width": 64}


def test_other_environment_is_warned_about(pointmaze_data, tmp_path):
    with pytest.warns(UserWarning, match="PointMazeFlat/Medium-v3 may not be .* recorded in PointMazeFlat/UMaze-v3"):
        manager = read_hyperparameters(tmp_path, pointmaze_data, "PointMazeFlat/Medium-v3")
    assert manager.env_kwargs == {}


def test_data_with_other_observations_are_warned_about(pointmaze_data, tmp_path):
    with pytest.warns(UserWarning, match="went through standardize_observations, which the environment does not"):
        dataset_kwargs = {"transforms": ["standardize_observations"], "reward_shift": -1}
        read_hyperparameters(tmp_path, pointmaze_data, dataset_kwargs=dataset_kwargs)


@for_each_offline_algorithm
def test_training_without_a_dataset_asks_for_one(algo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"sb3-ext train: error: {algo} learns from a dataset: --hyperparams dataset:"):
        main(["train", "--algo", algo, "--env", "Pendulum-v1"])


def test_stock_algorithm_trains_through_our_command(tmp_path):
    result = run_command(tmp_path, "train", "--algo", "ppo", "--env", "CartPole-v1", "-n", "300", "--num-threads", "1")
    assert result.returncode == 0, result.stderr
    assert PPO.load(tmp_path / "logs/ppo/CartPole-v1_1/CartPole-v1.zip", device="cpu").num_timesteps >= 300


def test_training_on_an_unknown_environment_names_the_closest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"you maybe meant {HAMMER}"):
        main(["train", "--algo", next(iter(ALGORITHMS)), "--env", "MetaWorldSparse/hamer-v3"])


@pytest.mark.parametrize("command", ["train", "enjoy"])
def test_unknown_algorithm_is_named_beside_the_known(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--algo", "nope"])
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert f"sb3-ext {command}: error: argument --algo: invalid choice: 'nope'" in message
    assert all(f"'{algo}'" in message for algo in ALGORITHMS)


def test_unknown_command_fails_with_the_usage(tmp_path):
    result = run_command(tmp_path, "frobnicate")
    assert result.returncode == 1
    assert "usage: sb3-ext [-h] [--version] {train,enjoy,collect,dataset}" in result.stderr
    assert "sb3-ext: error: unknown command 'frobnicate'" in result.stderr


def test_version_is_printed(tmp_path):
    result = run_command(tmp_path, "--version")
    assert (result.returncode, result.stdout) == (0, f"sb3-ext {sb3_ext.__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_the_commands(arguments, capsys):
    main(arguments)
    output = capsys.readouterr().out
    assert all(f"\n  {command} " in output for command in ("train", "enjoy", "collect", "dataset"))


def test_console_script_is_our_main():
    (script,) = entry_points(group="console_scripts", name="sb3-ext")
    assert script.load() is main


# Collecting from the command line


def test_collect_records_and_refuses_to_overwrite(tmp_path, minari_folder, capsys):
    arguments = ("collect", "--env", HAMMER, "--output", "hammer-2", "--episodes", "2")
    result = run_command(tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    transitions = load_demonstrations("hammer-2")
    assert result.stdout == f"hammer-2: 2 episodes, {len(transitions)} steps\n"
    assert transitions.rewards.sum() == 2
    assert transitions.env_id == HAMMER
    assert (minari_folder / "hammer-2-v0/data/main_data.hdf5").is_file()

    with pytest.raises(SystemExit) as exit_info:
        main(list(arguments))
    assert exit_info.value.code == (
        "sb3-ext collect: error: The Minari dataset 'hammer-2-v0' exists. Choose another --output or add --overwrite."
    )
    main([*arguments, "--overwrite", "--seed", "1"])
    assert "hammer-2: 2 episodes" in capsys.readouterr().out
    assert not np.array_equal(load_demonstrations("hammer-2").observations[0], transitions.observations[0])


def test_collect_passes_noise_failures_and_environment_arguments_on(capsys):
    arguments = ["collect", "--env", HAMMER, "--output", "short", "--episodes", "1", "--env-kwargs"]
    arguments += ["max_episode_steps:5", "goal_observable:False"]
    with pytest.raises(SystemExit, match=r"sb3-ext collect: error: Only 0 of 10 episodes succeeded.*--keep-failures"):
        main(arguments)
    main([*arguments, "--keep-failures"])
    assert "short: 1 episodes, 5 steps" in capsys.readouterr().out
    clean = load_demonstrations("short")
    assert (clean.observations[:, 36:] == 0).all()
    main([*arguments, "--keep-failures", "--overwrite", "--noise", "0.1"])
    noisy = load_demonstrations("short")
    np.testing.assert_array_equal(noisy.observations[0], clean.observations[0])
    assert not np.array_equal(noisy.actions, clean.actions)


def test_collect_with_a_missing_model_fails_with_a_message():
    arguments = ["collect", "--env", HAMMER, "--output", "mine", "--expert", "nowhere.zip"]
    with pytest.raises(SystemExit, match=r"sb3-ext collect: error: Which algorithm trained 'nowhere\.zip'"):
        main(arguments)
    with pytest.raises(SystemExit, match=r"sb3-ext collect: error: There is no model nowhere\.zip"):
        main([*arguments, "--algo", "sac"])


@pytest.mark.parametrize("missing", ["--env", "--output"])
def test_collect_needs_an_environment_and_a_name(missing, capsys):
    arguments = {"--env": HAMMER, "--output": "mine"}
    del arguments[missing]
    with pytest.raises(SystemExit):
        main(["collect", *(part for pair in arguments.items() for part in pair)])
    assert f"the following arguments are required: {missing}" in capsys.readouterr().err
