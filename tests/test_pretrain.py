"""``sb3_ext.bc.pretrain``: demonstrations into models of SB3's algorithms and ours, in place."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import DiscreteEnv, reach_demos, reach_env

import sb3_ext
from sb3_ext.bc import pretrain
from sb3_ext.common.densities import action_log_prob, from_buffer, to_buffer
from sb3_ext.common.losses import large_margin_loss
from sb3_ext.datasets import DatasetError, load

ON_POLICY = [sb3.PPO, sb3.A2C, sb3_contrib.TRPO]
OFF_POLICY = [sb3.SAC, sb3_contrib.TQC, sb3.TD3, sb3.DDPG, sb3_ext.REDQ]
OFFLINE = [sb3_ext.AWAC, sb3_ext.IQL, sb3_ext.BC, sb3_ext.ReBRAC, sb3_ext.CalQL, sb3_ext.EDAC]
OF_VALUES = [sb3.DQN, sb3_contrib.QRDQN]


def test_demonstrations_of_another_range_of_actions_are_refused(demos):
    model = sb3.PPO("MlpPolicy", reach_env(low=-3.0), device="cpu")
    recorded = demos.with_metadata(action_space=reach_env().action_space)
    with pytest.raises(DatasetError, match=r"were recorded between \[-2"):
        pretrain(model, recorded.with_metadata(env_id=None), steps=3)
    pretrain(model, recorded.with_metadata(env_id=None, action_space=model.action_space), steps=3)


def test_what_is_no_model_and_no_number_of_steps_is_refused(demos):
    model = sb3.PPO("MlpPolicy", reach_env(), device="cpu")
    for wrong in (model.policy, sb3.PPO):
        with pytest.raises(TypeError, match="takes a model"):
            pretrain(wrong, demos, steps=1)
    with pytest.raises(ValueError, match=r"steps=2\.5"):
        pretrain(model, demos, steps=2.5)
    assert len(pretrain(model, demos, steps=2e0)) == 2


def test_a_cloned_model_can_be_copied(demos):
    model = sb3.PPO("MlpPolicy", reach_env(), device="cpu")
    pretrain(model, demos, steps=3)
    copy.deepcopy(model.policy)


@pytest.fixture(scope="module")
def demos():
    return reach_demos(30)


class DiscreteReach(DiscreteEnv):
    """Steps of 0.1 to the left or to the right."""

    def step(self, action):
        return super().step(np.full(2, (-0.2, 0.2)[int(action)], np.float32))


def discrete_env():
    return gym.wrappers.TimeLimit(DiscreteReach(), 20)


def discrete_demos():
    env = discrete_env()
    rows = {name: [] for name in ("observations", "next_observations", "actions", "rewards", "terminations")}
    for seed in range(30):
        obs, _ = env.reset(seed=seed)
        terminated = False
        while not terminated:
            action = int(obs[2] > 0)
            next_obs, reward, terminated, _, _ = env.step(action)
            for name, value in zip(rows, (obs, next_obs, action, reward, terminated), strict=True):
                rows[name].append(value)
            obs = next_obs
    columns = {name: np.array(values) for name, values in rows.items()}
    return load(columns).with_metadata(observation_space=env.observation_space, action_space=env.action_space)


def make(algorithm, env=None, **kwargs):
    if algorithm in OFFLINE:
        kwargs["dataset"] = reach_demos(3)
    return algorithm("MlpPolicy", env or reach_env(), seed=0, device="cpu", **kwargs)


def success(model, env):
    returns, _ = evaluate_policy(model, env, n_eval_episodes=20, return_episode_rewards=True, warn=False)
    return np.mean(np.array(returns) > 0)


def test_large_margin_loss():
    q_values = th.tensor([[1.0, 0.5, 0.0], [1.0, 3.0, 0.0]])
    # 0: the next is 0.5 below, 0.3 too little. 1: 3 + 0.8 - 1
    loss = large_margin_loss(q_values, th.tensor([[0], [0]]), 0.8)
    assert loss.item() == pytest.approx((0.3 + 2.8) / 2)
    assert large_margin_loss(q_values, th.tensor([[0], [1]]), 0.5).item() == 0


@pytest.mark.parametrize("algorithm", [*ON_POLICY, *OFF_POLICY, *OFFLINE])
def test_clones_solve_the_task_and_learning_goes_on(algorithm, demos, tmp_path):
    model = make(algorithm)
    before = success(model, reach_env())
    losses = pretrain(model, demos, steps=400, batch_size=64, learning_rate="lin_1e-2")
    assert losses.shape == (400,) and losses[-50:].mean() < losses[:50].mean()
    after = success(model, reach_env())
    assert after >= 0.9 > before
    if algorithm not in OFFLINE:
        model.save(tmp_path / "clone")
        loaded = algorithm.load(tmp_path / "clone", env=make_vec_env(reach_env))
        assert success(loaded, reach_env()) == after
        loaded.learn(60)


@pytest.mark.parametrize("algorithm", [*OF_VALUES, sb3.PPO])
def test_discrete_actions(algorithm):
    model = algorithm("MlpPolicy", discrete_env(), seed=0, device="cpu")
    pretrain(model, discrete_demos(), steps=300, batch_size=64, learning_rate=3e-3)
    assert success(model, discrete_env()) >= 0.9
    for online, target in (("q_net", "q_net_target"), ("quantile_net", "quantile_net_target")):
        if hasattr(model.policy, target):
            networks = (getattr(model.policy, name).parameters() for name in (online, target))
            assert all((a == b).all() for a, b in zip(*networks, strict=True))


def everything(model):
    """All numbers of a model that cloning might touch."""
    found = {f"policy.{name}": value.clone() for name, value in model.policy.state_dict().items()}
    for name, state in model.get_parameters().items():
        if "optimizer" in name:
            found |= {f"{name}.{i}.{key}": value.clone() for i, s in state["state"].items() for key, value in s.items()}
    return found


@pytest.mark.parametrize("algorithm", [sb3.PPO, sb3.SAC, sb3.TD3])
def test_only_the_actor_changes_and_with_no_steps_nothing(algorithm, demos):
    env = VecNormalize(make_vec_env(reach_env), norm_reward=False)
    model = make(algorithm, env).learn(200)
    before, mean, random = everything(model), env.obs_rms.mean.copy(), th.get_rng_state()
    assert len(pretrain(model, demos, steps=0)) == 0
    assert all((value == before[name]).all() for name, value in everything(model).items())
    assert (env.obs_rms.mean == mean).all() and (th.get_rng_state() == random).all()

    pretrain(model, demos, steps=20)
    changed = {name for name, value in everything(model).items() if (value != before[name]).any()}
    assert changed
    parts = ("action_net", "policy_net", "log_std", "actor.", "actor_target.")
    assert all(name.startswith("policy.") and any(part in name for part in parts) for name in changed)


def test_td3_target_follows_its_actor(demos):
    model = make(sb3.TD3)
    pretrain(model, demos, steps=20)
    for a, b in zip(model.actor.parameters(), model.actor_target.parameters(), strict=True):
        assert (a == b).all()


def test_normalisation_takes_up_the_demonstrations_and_clones_see_what_agents_see(demos):
    env = VecNormalize(make_vec_env(reach_env), norm_reward=False)
    model = make(sb3.PPO, env)
    pretrain(model, demos, steps=400, batch_size=64, learning_rate=3e-3)
    np.testing.assert_allclose(env.obs_rms.mean, demos.frames.mean(axis=0), atol=1e-3)
    env.training = False
    assert success(model, env) >= 0.9
    untouched = VecNormalize(make_vec_env(reach_env), norm_reward=False)
    pretrain(make(sb3.PPO, untouched), demos, steps=1, init_normalization=False)
    assert (untouched.obs_rms.mean == 0).all()


def test_dict_observations():
    model = sb3.PPO("MultiInputPolicy", reach_env(dict_obs=True), seed=0, device="cpu")
    pretrain(model, reach_demos(30, dict_obs=True), steps=400, batch_size=64, learning_rate=3e-3)
    assert success(model, reach_env(dict_obs=True)) >= 0.9


def test_gsde_and_actions_at_the_bounds_stay_finite():
    rng = np.random.default_rng(0)
    columns = {
        "observations": rng.normal(size=(100, 3)).astype(np.float32),
        "next_observations": rng.normal(size=(100, 3)).astype(np.float32),
        "actions": rng.choice([-2.0, 1.0], size=(100, 2)).astype(np.float32),
        "rewards": np.zeros(100),
        "terminations": np.ones(100, bool),
    }
    for algorithm, kwargs in ((sb3.PPO, {"use_sde": True}), (sb3.SAC, {"use_sde": True}), (sb3.SAC, {})):
        model = make(algorithm, **kwargs)
        losses = pretrain(model, columns, steps=100, learning_rate=1e-2)
        assert np.isfinite(losses).all()
        assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


def test_standard_deviation_stays_above_its_bound():
    columns = {
        "observations": np.zeros((10, 3), np.float32),
        "next_observations": np.zeros((10, 3), np.float32),
        "actions": np.zeros((10, 2), np.float32),
        "rewards": np.zeros(10),
        "terminations": np.ones(10, bool),
    }
    model = make(sb3.PPO)
    pretrain(model, columns, steps=800, learning_rate=3e-2, batch_size=8)
    assert model.policy.log_std.min().item() == pytest.approx(-5.0)


def test_densities_of_all_kinds_are_of_scaled_actions():
    env = reach_env(low=-2.0, high=1.0)
    obs, actions = th.zeros(4, 3), th.rand(4, 2) * 1.8 - 0.9
    ppo, squashed = make(sb3.PPO, env), make(sb3.SAC, env)
    th.testing.assert_close(to_buffer(ppo.policy, from_buffer(ppo.policy, actions)), actions)
    own = ppo.policy.get_distribution(obs).log_prob(actions * 1.5 - 0.5)
    # The widths are 3: each unit of a scaled action is 1.5 of its own
    th.testing.assert_close(action_log_prob(ppo.policy, obs, actions), own + 2 * np.log(1.5))
    mean, log_std, _ = squashed.actor.get_action_dist_params(obs)
    expected = squashed.actor.action_dist.proba_distribution(mean, log_std).log_prob(actions)
    th.testing.assert_close(action_log_prob(squashed.actor, obs, actions), expected, rtol=1e-4, atol=1e-4)


def test_bad_arguments_are_refused(demos):
    model = make(sb3.PPO)
    with pytest.raises(ValueError, match="steps=-1"):
        pretrain(model, demos, steps=-1)
    with pytest.raises(ValueError, match="batch_size=0"):
        pretrain(model, demos, steps=1, batch_size=0)
    with pytest.raises(ValueError, match="lin_<start>"):
        pretrain(model, demos, steps=1, learning_rate="fast")
    with pytest.raises(DatasetError):
        pretrain(model, "missing.hdf5", steps=1)
    with pytest.raises(DatasetError):
        pretrain(model, discrete_demos(), steps=1)
    recurrent = sb3_contrib.RecurrentPPO("MlpLstmPolicy", reach_env(), device="cpu")
    with pytest.raises(TypeError, match="memory"):
        pretrain(recurrent, demos, steps=1)


def test_a_model_without_an_environment_clones(demos, tmp_path):
    make(sb3.PPO).save(tmp_path / "model")
    model = sb3.PPO.load(tmp_path / "model", device="cpu")
    pretrain(model, demos, steps=400, batch_size=64, learning_rate=3e-3)
    assert success(model, reach_env()) >= 0.9


def test_action_spaces_of_ppo():
    for space, action in ((spaces.MultiDiscrete([2, 3]), [1, 2]), (spaces.MultiBinary(3), [1, 0, 1])):
        env = DiscreteEnv()
        env.action_space = space
        columns = {
            "observations": np.zeros((10, 3), np.float32),
            "next_observations": np.zeros((10, 3), np.float32),
            "actions": np.array([action] * 10),
            "rewards": np.zeros(10),
            "terminations": np.ones(10, bool),
        }
        model = sb3.PPO("MlpPolicy", env, seed=0, device="cpu")
        pretrain(model, columns, steps=200, learning_rate=3e-3)
        assert model.predict(np.zeros(3, np.float32), deterministic=True)[0].tolist() == action
