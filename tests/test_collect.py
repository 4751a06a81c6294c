"""Episodes of experts, planners, models and random agents, and where they are written."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from line_envs import (
    ACTIONS,
    BOX,
    COLUMNS,
    HIGH,
    LOW,
    MIDDLE,
    NO_EXPERT,
    SCRIPTED,
    LineEnv,
    assert_consistent,
    assert_equal,
    expert_of,
    rollout,
)
from stable_baselines3 import SAC

from sb3_ext.datasets import Behaviour, DatasetError, collect, load_demonstrations, rollout_episodes
from sb3_ext.datasets.load import read

pytestmark = [
    pytest.mark.filterwarnings("ignore:`.*` is set to None:UserWarning"),
    pytest.mark.filterwarnings("ignore:env_spec is None:UserWarning"),
]
POINT = "PointMazeFlat/UMaze-v3"


@pytest.fixture(scope="module")
def sac(tmp_path_factory):
    model = SAC("MlpPolicy", LineEnv(), policy_kwargs={"net_arch": [8]}, buffer_size=10, seed=0, device="cpu")
    path = tmp_path_factory.mktemp("model") / "sac.zip"
    model.save(path)
    return SimpleNamespace(model=model, path=str(path))


def test_a_wrapped_environment_is_played_with_its_wrappers():
    env = gym.wrappers.RescaleAction(gym.make(SCRIPTED), -0.5, 0.5)
    with pytest.raises(DatasetError, match="wrappers"):
        load_demonstrations("scripted:1", type("MyWrapper", (gym.Wrapper,), {})(env).spec)
    assert len(load_demonstrations("scripted:1", gym.make(SCRIPTED).spec)) > 0


def test_episodes_hold_what_was_played():
    env = gym.make(SCRIPTED, success_rate=0.5)
    dataset = rollout_episodes(env, expert_of(env), 5, only_successful=False)
    assert dataset.n_episodes == 5 and len(set(dataset.lengths)) > 1
    np.testing.assert_array_equal(dataset.actions, env.unwrapped.played)
    steps = np.concatenate([np.arange(length) for length in dataset.lengths])
    np.testing.assert_array_equal(dataset.observations[:, 0], steps)
    np.testing.assert_array_equal(dataset.next_observations[:, 0], steps + 1)
    assert len(dataset.frames) == len(dataset) + 5
    success = dataset.rewards == 1
    assert set(success[dataset.ends]) == {True, False}
    np.testing.assert_array_equal(dataset.terminations, success)
    np.testing.assert_array_equal(dataset.truncations, dataset.ends & ~success)
    np.testing.assert_array_equal(dataset.infos["success"], success)


def test_only_successful_episodes_are_kept():
    rewards = rollout(n_episodes=10, env_kwargs={"success_rate": 0.5}).rewards
    assert rewards.sum() == 10
    unfiltered = rollout(n_episodes=10, env_kwargs={"success_rate": 0.5}, only_successful=False)
    assert 0 < unfiltered.rewards.sum() < 10
    assert (unfiltered.terminations | unfiltered.truncations).sum() == 10


def test_environment_that_reports_no_success_keeps_all_episodes():
    assert rollout("QuietLineEnv-v0", env_kwargs={"success_rate": 0.0}).truncations.sum() == 4


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_seed_decides_the_episodes(noise):
    first = rollout(noise=noise, seed=1)
    assert_equal(rollout(noise=noise, seed=1), first)
    assert not np.array_equal(rollout(noise=noise, seed=2).observations[:3], first.observations[:3])


def test_noise_has_the_given_share_of_the_range_and_is_played_as_recorded():
    env = gym.make(SCRIPTED)
    env.reset(seed=0)
    actions = rollout_episodes(env, lambda _obs: MIDDLE, 200, noise=0.1).actions
    np.testing.assert_array_equal(actions, env.unwrapped.played)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions.mean(axis=0), MIDDLE, atol=0.03 * (HIGH - LOW).max())
    np.testing.assert_allclose(actions.std(axis=0), 0.1 * (HIGH - LOW) / 2, rtol=0.1)


def test_noisy_actions_stay_within_the_bounds():
    actions = rollout(n_episodes=50, noise=2.0).actions
    np.testing.assert_array_equal(actions.min(axis=0), LOW)
    np.testing.assert_array_equal(actions.max(axis=0), HIGH)
    assert np.mean((actions > LOW) & (actions < HIGH)) > 0.2


@pytest.mark.parametrize("n_episodes", [0, -1])
def test_no_episodes_are_refused(n_episodes):
    with pytest.raises(DatasetError, match=f"number of episodes must be at least 1, not {n_episodes}"):
        rollout(n_episodes=n_episodes)


def test_negative_noise_is_refused():
    with pytest.raises(DatasetError, match=r"noise=-0.1 must be at least 0"):
        rollout(noise=-0.1)


def test_noise_on_discrete_actions_is_refused():
    with pytest.raises(DatasetError, match=r"noise=0.1 must be .* 0 where actions are not a Box \(Discrete\(3\)\)"):
        rollout("DiscreteLineEnv-v0", noise=0.1)


def test_expert_that_always_fails_is_given_up():
    env = gym.make(SCRIPTED, success_rate=0.0)
    with pytest.raises(DatasetError, match=r"Only 0 of 30 episodes succeeded, 3 were asked for.*--keep-failures"):
        rollout_episodes(env, expert_of(env), 3)
    assert 30 * 3 <= len(env.unwrapped.played) <= 30 * 6


@pytest.mark.parametrize("env_id", [SCRIPTED, "DictLineEnv-v0", "DiscreteLineEnv-v0", "ImageLineEnv-v0"])
def test_collected_dataset_loads_bit_equal(env_id):
    collect(env_id, "line", n_episodes=3, seed=4)
    assert_equal(load_demonstrations("line"), rollout(env_id, n_episodes=3, seed=4))


def test_dataset_loads_by_name_by_versioned_name_and_by_folder(minari_folder):
    collect(SCRIPTED, "line", n_episodes=2)
    expected = load_demonstrations("line")
    assert (expected.env_id, expected.metadata.dataset_id) == (SCRIPTED, "line-v0")
    for demos in ("line-v0", str(minari_folder / "line-v0"), minari_folder / "line-v0", minari_folder / "line-v0/data"):
        assert_equal(load_demonstrations(demos), expected)


def test_versions_and_namespaces_are_datasets_of_their_own():
    for i, name in enumerate(("line", "line-v1", "mine/line")):
        collect(SCRIPTED, name, n_episodes=i + 1)
    counts = [load_demonstrations(name).rewards.sum() for name in ("line-v0", "line-v1", "mine/line-v0")]
    assert counts == [1, 2, 3]


def test_collected_dataset_is_described():
    collect(SCRIPTED, "line", n_episodes=2, noise=0.1, seed=3)
    described = load_demonstrations("line").metadata.description
    assert described == f"2 episodes of {SCRIPTED}, played by scripted (1, noise 0.1), seed 3."


def test_environment_arguments_and_failures_reach_the_dataset():
    kwargs = {"env_kwargs": {"success_rate": 0.0}, "n_episodes": 3}
    collect(SCRIPTED, "line", only_successful=False, **kwargs)
    assert load_demonstrations("line").rewards.sum() == 0
    with pytest.raises(DatasetError, match="Only 0 of 30 episodes succeeded"):
        collect(SCRIPTED, "other", **kwargs)


def test_existing_dataset_is_kept_without_overwrite():
    collect(SCRIPTED, "line", n_episodes=1)
    with pytest.raises(DatasetError, match=r"dataset 'line-v0' exists. Choose another --output or add --overwrite"):
        collect(SCRIPTED, "line-v0", n_episodes=2)
    assert load_demonstrations("line").rewards.sum() == 1


def test_overwrite_replaces_a_dataset():
    collect(SCRIPTED, "line", n_episodes=1)
    collect(SCRIPTED, "line", n_episodes=2, overwrite=True)
    assert load_demonstrations("line").rewards.sum() == 2


def test_failed_overwrite_keeps_the_old_dataset():
    collect(SCRIPTED, "line", n_episodes=1)
    with pytest.raises(DatasetError, match="Only 0 of 10"):
        collect(SCRIPTED, "line", n_episodes=1, env_kwargs={"success_rate": 0.0}, overwrite=True)
    assert load_demonstrations("line").rewards.sum() == 1


@pytest.mark.parametrize(("output", "named"), [("two words", "'two words"), ("line!", "'line!"), ("", "'(-v0)?'")])
def test_malformed_output_is_refused_and_leaves_nothing(output, named, minari_folder):
    with pytest.raises(DatasetError, match=named):
        collect(SCRIPTED, output, n_episodes=1)
    assert list(minari_folder.iterdir()) == []
    collect(SCRIPTED, "line", n_episodes=1)


def test_environment_without_expert_is_named():
    with pytest.raises(DatasetError, match=rf"{NO_EXPERT} has no scripted expert. Use a trained model"):
        collect(NO_EXPERT, "line")


def test_model_without_algorithm_is_refused(sac):
    with pytest.raises(DatasetError, match=r"Which algorithm trained '.*sac.zip'\? Add --algo"):
        collect(NO_EXPERT, "line", expert=sac.path)


def test_unknown_algorithm_is_refused(sac):
    with pytest.raises(DatasetError, match=r"Unknown algorithm 'sca'; known are .*redq.*sac"):
        collect(NO_EXPERT, "line", expert=sac.path, algo="sca")


def test_missing_model_is_named():
    with pytest.raises(DatasetError, match=r"There is no model nowhere.zip"):
        collect(NO_EXPERT, "line", expert="nowhere.zip", algo="sac")


def test_model_of_another_algorithm_is_refused(sac):
    with pytest.raises(DatasetError, match=r"sac\.zip"):
        collect(NO_EXPERT, "line", expert=sac.path, algo="ppo")


def test_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.zip"
    path.write_bytes(b"no zip archive")
    with pytest.raises(DatasetError, match=r"model\.zip"):
        collect(NO_EXPERT, "line", expert=str(path), algo="sac")


@pytest.mark.parametrize("env_id", ["DictLineEnv-v0", "DiscreteLineEnv-v0"])
def test_model_of_other_spaces_is_refused(sac, env_id):
    with pytest.raises(DatasetError, match=r"sac.zip cannot be loaded as 'sac' into this environment"):
        collect(env_id, "line", expert=sac.path, algo="sac")


def test_model_is_the_expert(sac):
    transitions = collect(NO_EXPERT, "line", expert=sac.path, algo="sac", n_episodes=3)
    assert_equal(load_demonstrations("line"), transitions)
    for obs, action in zip(transitions.observations, transitions.actions, strict=True):
        np.testing.assert_array_equal(sac.model.predict(obs, deterministic=True)[0], action)


# --- Experts, mixtures and formats -----------------------------------------------------------------------------------


def test_waypoint_planner_solves_the_maze():
    dataset = collect(POINT, "point", expert="waypoint", n_episodes=3, seed=1)
    assert dataset.n_episodes == 3 and dataset.terminations.sum() == 3
    assert np.maximum.reduceat(dataset.successes, dataset.starts).all()
    assert dataset.goals.shape == (len(dataset), 2)
    assert_equal(read("point"), dataset)
    assert_consistent(dataset)


def test_waypoint_planner_is_for_point_mazes():
    with pytest.raises(DatasetError, match=f"waypoint planner steers PointMazeFlat/UMaze-v3.*not {SCRIPTED}"):
        collect(SCRIPTED, "point", expert="waypoint")


def test_random_actions_fill_the_space_and_follow_the_seed():
    first = collect(NO_EXPERT, "first", expert="random", n_episodes=60, seed=1)
    np.testing.assert_allclose(first.actions.mean(0), MIDDLE, atol=0.06 * (HIGH - LOW).max())
    np.testing.assert_allclose(first.actions.std(0), (HIGH - LOW) / np.sqrt(12), rtol=0.1)
    assert_equal(collect(NO_EXPERT, "second", expert="random", n_episodes=60, seed=1), first)
    assert not np.array_equal(
        collect(NO_EXPERT, "third", expert="random", n_episodes=60, seed=2).actions[:3], first.actions[:3]
    )


@pytest.mark.parametrize("n_transitions", [1, 20])
def test_whole_episodes_are_played_until_there_are_enough_transitions(n_transitions):
    dataset = collect(SCRIPTED, "line", n_transitions=n_transitions)
    assert len(dataset) - dataset.lengths[-1] < n_transitions <= len(dataset)
    assert dataset.terminations.sum() == dataset.n_episodes


def test_expert_that_always_fails_is_given_up_by_transitions_too():
    with pytest.raises(DatasetError, match=r"Only 0 of \d+ episodes succeeded, 20 steps were asked for"):
        collect(SCRIPTED, "line", n_transitions=20, env_kwargs={"success_rate": 0.0})


def constant(value):
    return lambda _obs: np.full(2, value, np.float32)


def test_mixture_plays_whole_episodes_in_its_shares():
    env = gym.make(SCRIPTED)
    dataset = rollout_episodes(env, [Behaviour(constant(2.0), 1.0), Behaviour(constant(3.0), 3.0)], 400)
    players = np.split(dataset.actions[:, 0], dataset.starts[1:])
    assert all(len(set(actions)) == 1 for actions in players)
    share = np.mean([actions[0] == 3 for actions in players])
    assert 0.67 < share < 0.83  # 0.75 and a standard deviation of 0.022


def test_each_behaviour_has_its_own_noise():
    env = gym.make(SCRIPTED)
    dataset = rollout_episodes(env, [Behaviour(constant(2.0)), Behaviour(lambda _obs: MIDDLE, noise=0.1)], 200)
    players = np.split(dataset.actions, dataset.starts[1:])
    quiet = [actions for actions in players if (actions == 2).all()]
    noisy = np.concatenate([actions for actions in players if not (actions == 2).all()])
    assert 60 < len(quiet) < 140
    np.testing.assert_allclose(noisy.std(0), 0.1 * (HIGH - LOW) / 2, rtol=0.15)


def test_collect_mixes_experts(sac):
    dataset = collect(
        SCRIPTED,
        "mix",
        expert=["scripted", "random", sac.path],
        algo="sac",
        shares=[1, 2, 3],
        noise=[0, 0, 0.5],
        n_episodes=30,
    )
    scripted = [
        np.allclose(a, MIDDLE + 0.1 * np.arange(len(a))[:, None]) for a in np.split(dataset.actions, dataset.starts[1:])
    ]
    assert 0 < sum(scripted) < 15
    played = read("mix").metadata.description
    experts = f"scripted (1, noise 0), random (2, noise 0), {sac.path} (3, noise 0.5)"
    assert played == f"30 episodes of {SCRIPTED}, played by {experts}, seed 0."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expert": ["scripted", "random"], "shares": [1]}, "2 experts need as many shares and noises, not 1 and 2"),
        (
            {"expert": ["scripted", "random"], "noise": [0, 0, 0]},
            "2 experts need as many shares and noises, not 2 and 3",
        ),
        ({"expert": ["scripted", "random"], "shares": [1, 0]}, "shares must be above 0"),
        ({"expert": []}, "At least one behaviour"),
        ({"n_episodes": 2, "n_transitions": 2}, "either the number of episodes or the number of transitions"),
        ({"n_transitions": 0}, "number of transitions must be at least 1, not 0"),
        ({"noise": [0.1, -0.1], "expert": ["scripted", "scripted"]}, "noise=-0.1 must be at least 0"),
        ({"format": "zip"}, "Unknown format 'zip'"),
    ],
)
def test_requests_without_meaning_are_refused(arguments, message):
    with pytest.raises(DatasetError, match=message):
        collect(SCRIPTED, "line", **arguments)


@pytest.mark.parametrize(
    ("output", "format", "written"),
    [
        ("line", None, "line-v0/data/main_data.hdf5"),
        ("line", "arrow", "line-v0/data/0"),
        ("{tmp}/a.hdf5", None, "a.hdf5"),
        ("{tmp}/a.pkl", None, "a.pkl"),
        ("{tmp}/folder", None, "folder/dataset.json"),
        ("{tmp}/other", "d4rl", "other"),
    ],
)
def test_every_format_can_be_collected(output, format, written, tmp_path, minari_folder):
    if format == "arrow":
        pytest.importorskip("pyarrow")
    output = output.format(tmp=tmp_path)
    dataset = collect(SCRIPTED, output, n_episodes=2, format=format)
    assert ((tmp_path if str(tmp_path) in output else minari_folder) / written).exists()
    if format != "d4rl":  # without its ending nobody knows what the file is
        loaded = read(output, trust=True)
        assert_equal(loaded, dataset, [name for name in COLUMNS if name != "actions"])
        np.testing.assert_allclose(loaded.actions, dataset.actions, rtol=1e-6)


def test_output_may_be_a_path(tmp_path):
    dataset = collect(SCRIPTED, tmp_path / "a.hdf5", n_episodes=1)
    assert_equal(read(tmp_path / "a.hdf5"), dataset)


def test_existing_output_is_noticed_before_anything_is_played(tmp_path):
    (tmp_path / "a.hdf5").write_text("precious")
    with pytest.raises(DatasetError, match=r"a\.hdf5 exists. Choose another target or add --overwrite"):
        collect(SCRIPTED, str(tmp_path / "a.hdf5"), env_kwargs={"nonsense": 1})
    assert (tmp_path / "a.hdf5").read_text() == "precious"


def test_success_and_goal_become_columns():
    dataset = collect(
        POINT, "point", expert="random", n_transitions=10, only_successful=False, env_kwargs={"max_episode_steps": 5}
    )
    assert set(dataset.infos) == {"success", "goal"}
    assert dataset.lengths.tolist() == [5, 5] and dataset.truncations.sum() == 2
    np.testing.assert_array_equal(read("point").goals, dataset.goals)


def test_environment_and_spaces_are_named():
    metadata = collect(SCRIPTED, "line", n_episodes=1, env_kwargs={"success_rate": 1.0}).metadata
    assert (metadata.env_id, metadata.observation_space, metadata.action_space) == (SCRIPTED, BOX, ACTIONS)
    assert gym.make(gym.envs.registration.EnvSpec.from_json(metadata.env_spec)).unwrapped.success_rate == 1
