"""Discrete actions in BC, AWAC and IQL."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algo_checks import parameters
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from toy_envs import DiscreteEnv

from sb3_ext import AWAC, BC, IQL, ReBRAC
from sb3_ext.common.distributions import OneHotCategorical
from sb3_ext.datasets import load

ALGORITHMS = [AWAC, IQL, BC]


class TurnEnv(DiscreteEnv):
    """Action 1 steps up, action 0 steps down; reward 1 at the goal."""

    def step(self, action):
        return super(DiscreteEnv, self).step(np.full(2, 0.2 if int(action) == 1 else -0.2, np.float32))


def turn_env() -> gym.Env:
    return gym.wrappers.TimeLimit(TurnEnv(), 30)


def play(n_episodes, choose):
    """Episodes as columns."""
    env = turn_env()
    columns = {name: [] for name in ("observations", "next_observations", "actions", "rewards", "terminations", "ends")}
    for seed in range(n_episodes):
        obs, _ = env.reset(seed=seed)
        over = False
        while not over:
            action = choose(obs)
            next_obs, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            for name, value in zip(columns, (obs, next_obs, action, reward, terminated, truncated), strict=True):
                columns[name].append(value)
            obs = next_obs
    data = {name: np.array(values) for name, values in columns.items()}
    data["truncations"] = data.pop("ends")
    metadata = {"observation_space": env.observation_space, "action_space": env.action_space}
    return load(data).with_metadata(**metadata)


@pytest.fixture(scope="module")
def demos():
    return play(20, lambda obs: int(obs[2] > 0))


@pytest.fixture(scope="module")
def random_play():
    rng = np.random.default_rng(0)
    return play(200, lambda obs: int(rng.random() < 0.5))


def make(algorithm, dataset, env=None, **kwargs):
    arguments = {
        "policy_kwargs": {"net_arch": [32]},
        "batch_size": 64,
        "seed": 0,
        "device": "cpu",
        "update_backend": "eager",
    }
    return algorithm("MlpPolicy", env, dataset=dataset, **{**arguments, **kwargs})


def test_one_hot_categorical():
    distribution = OneHotCategorical(th.tensor([[0.0, np.log(3.0), -5.0]]))
    actions = th.eye(3)
    expected = th.distributions.Categorical(logits=th.tensor([0.0, np.log(3.0), -5.0])).log_prob(th.arange(3))
    th.testing.assert_close(distribution.log_prob(actions), expected)
    assert distribution.mode.tolist() == [[0, 1, 0]]


def test_samples_of_the_categorical_have_its_probabilities():
    th.manual_seed(0)
    probabilities = th.tensor([0.1, 0.6, 0.3])
    distribution = OneHotCategorical(probabilities.log().expand(100_000, 3))
    th.testing.assert_close(distribution.rsample().mean(dim=0), probabilities, atol=0.01, rtol=0)
    extreme = OneHotCategorical(th.zeros(2, 2)).rsample(th.tensor([[9.0, -9.0], [-9.0, 9.0]]))
    assert extreme.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_clones_of_an_expert_solve_the_task(algorithm, demos):
    model = make(algorithm, demos, learning_rate=3e-3).learn(600)
    rewards, _ = evaluate_policy(model, turn_env(), n_eval_episodes=20, warn=False)
    assert rewards > 0.7  # 0.9 to 1 over seeds
    action, _ = model.predict(demos.observations[0])
    assert np.issubdtype(np.asarray(action).dtype, np.integer)


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (AWAC, {"awac_lambda": 0.1}),
        (IQL, {"weight_temp": 10.0}),
        (IQL, {"weight_temp": 10.0, "action_values": False}),
    ],
)
def test_they_learn_more_than_random_play_shows(algorithm, arguments, random_play):
    env = turn_env()
    arguments = {"learning_rate": 3e-3, "gamma": 0.9, "dataset_kwargs": {"reward_shift": -0.1}, **arguments}
    model = make(algorithm, random_play, **arguments).learn(1_500)
    cloned = make(BC, random_play, learning_rate=3e-3).learn(500)
    score, clones_score = (evaluate_policy(m, env, n_eval_episodes=50, warn=False)[0] for m in (model, cloned))
    assert score > 0.8 and score > clones_score + 0.2


@pytest.mark.filterwarnings("error:Compiling the update failed")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_compiled_updates_give_the_same_numbers(algorithm, demos):
    eager, compiled = (make(algorithm, demos, update_backend=backend).learn(20) for backend in ("eager", "compiled"))
    for a, b in zip(parameters(eager), parameters(compiled), strict=True):
        th.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("algorithm", [AWAC, IQL])
def test_learning_goes_on_online_with_several_environments(algorithm, demos, tmp_path):
    env = make_vec_env(turn_env, n_envs=3)
    model = make(algorithm, demos, env, n_offline_steps=30, learning_starts=10).learn(120)
    assert model.replay_buffer.size() * 3 == 90
    assert set(np.unique(model.replay_buffer.actions[:30])) <= {0, 1}
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env)
    observations = demos.observations[:20]
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )


def test_regression_to_classes_and_continuous_algorithms_are_refused(demos):
    with pytest.raises(ValueError, match="discrete ones are classes"):
        make(BC, demos, deterministic_actor=True)
    with pytest.raises(ValueError, match="discrete ones are classes"):
        make(IQL, demos, deterministic_actor=True)
    with pytest.raises(ValueError, match="ReBRAC takes Box actions"):
        make(ReBRAC, demos)
