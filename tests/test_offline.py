"""AWAC, IQL and BC: losses by hand and reductions; what all offline algorithms share with those of SB3."""

import copy
import math
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algo_checks import CHECKS, assert_same_parameters, learn_and_capture, parameters
from gymnasium import spaces
from rl_zoo3.callbacks import RawStatisticsCallback
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_envs import reach_demos, reach_env

from sb3_ext.awac import AWAC
from sb3_ext.bc import BC
from sb3_ext.calql import CalQL
from sb3_ext.common import losses
from sb3_ext.common.distributions import ClampedNormal
from sb3_ext.datasets import DatasetError, load, make_eval_env, make_training_env, rollout_episodes, save
from sb3_ext.datasets.transforms import MovingSteps
from sb3_ext.edac import EDAC
from sb3_ext.iql import IQL
from sb3_ext.rebrac import ReBRAC

ACTOR_CRITICS = [AWAC, IQL, ReBRAC, CalQL, EDAC]
ALGORITHMS = [*ACTOR_CRITICS, BC]
SMALL = {"net_arch": [16]}
# Fewer of what is slow
QUICK = {CalQL: {"n_actions": 2}, EDAC: {"n_critics": 3}}


@pytest.fixture(scope="module")
def demos():
    return reach_demos(8)


@pytest.fixture(scope="module")
def demos_file(demos, tmp_path_factory):
    path = tmp_path_factory.mktemp("demos") / "demos.hdf5"
    save(demos, path)
    return str(path)


def make(algorithm, demos, env=None, **kwargs):
    arguments = {"policy_kwargs": dict(SMALL), "batch_size": 16, "seed": 0, "device": "cpu", "update_backend": "eager"}
    return algorithm("MlpPolicy", env, dataset=demos, **{**arguments, **QUICK.get(algorithm, {}), **kwargs})


# --- Losses by hand ---


def test_expectile_loss():
    diff = th.tensor([2.0, -1.0, 0.0])
    assert losses.expectile_loss(diff, 0.9).item() == pytest.approx((0.9 * 4 + 0.1 * 1) / 3)
    assert losses.expectile_loss(diff, 0.5).item() == pytest.approx(0.5 * (4 + 1) / 3)


def test_expectile_is_what_the_loss_is_smallest_at():
    targets = th.tensor([0.0, 1.0])
    values = th.linspace(0, 1, 101)
    best = min(values, key=lambda value: losses.expectile_loss(targets - value, 0.8).item())
    assert best.item() == pytest.approx(0.8)


def test_exponential_weights_are_clamped_and_never_overflow():
    weights = losses.exponential_weights(th.tensor([0.0, 1.0, -2.0, 1e9]), temperature=0.5, max_weight=20.0)
    th.testing.assert_close(weights, th.tensor([1.0, math.exp(2), math.exp(-4), 20.0]))


def test_softmax_weights_have_a_mean_of_one_and_no_level():
    advantages = th.tensor([0.0, math.log(3.0)])
    th.testing.assert_close(losses.softmax_weights(advantages, 1.0), th.tensor([0.5, 1.5]))
    th.testing.assert_close(losses.softmax_weights(advantages + 100, 1.0), th.tensor([0.5, 1.5]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        ([1.0, 1, 1, 1], 1),
        ([1.0, 0, 0, 0], 0.25),
        ([3.0, 1.0], 16 / 20),
        # Squares of these leave the range of float32
        ([1e-30, 1e-30], 1),
        ([1e-30, 0, 0, 0], 0.25),
        ([1e30, 1e30], 1),
        ([0.0, 0.0], 0),
    ],
)
def test_effective_sample_size(weights, share):
    assert losses.effective_sample_size(th.tensor(weights)).item() == pytest.approx(share)


def test_weighted_cloning_loss():
    log_prob = th.tensor([-1.0, -3.0])
    assert losses.weighted_cloning_loss(log_prob, th.tensor([2.0, 1.0])).item() == pytest.approx(2.5)
    assert losses.weighted_cloning_loss(log_prob, th.ones(2)) == losses.behaviour_cloning_loss(log_prob)


def test_clamped_normal_is_a_normal_before_the_clamp():
    loc, log_scale = th.tensor([[0.5, -1.0]]), th.tensor([math.log(0.5), math.log(2.0)])
    distribution = ClampedNormal(loc, log_scale)
    expected = th.distributions.Normal(loc, log_scale.exp()).log_prob(th.tensor([[1.0, -1.0]])).sum(-1)
    th.testing.assert_close(distribution.log_prob(th.tensor([[1.0, -1.0]])), expected)
    th.testing.assert_close(distribution.rsample(th.tensor([[4.0, 0.25]])), th.tensor([[1.0, -0.5]]))


# --- Targets, weights and reductions ---


def batch_of(model, n=16):
    return model.dataset_buffer.sample(n)


def constant(module, value):
    for parameter in module.parameters():
        parameter.data.zero_()
    [parameter for parameter in module.parameters() if parameter.shape[-1] == 1][-1].data.fill_(value)


@pytest.mark.parametrize("algorithm", [AWAC, IQL])
def test_target_bootstraps_but_at_terminations(algorithm, demos):
    model = make(algorithm, demos, gamma=0.9)
    batch = batch_of(model)._replace(rewards=th.full((16, 1), 2.0), dones=th.tensor([[0.0], [1.0]] * 8))
    if algorithm is IQL:
        constant(model.value, 7.0)
        next_values = model.value(batch.next_observations)
    else:
        constant(model.critic_target.q_networks, 7.0)
        next_values = model._next_values(batch, th.zeros(16, 2))
    th.testing.assert_close(next_values, th.full((16, 1), 7.0))
    q_values = th.zeros(2, 16, 1)
    loss, _ = model._bellman_loss(batch, q_values, next_values)
    # Two critics, half of the targets 2 + 0.9 * 7 and half 2
    assert loss.item() == pytest.approx(2 * 0.5 * (8.3**2 + 2**2) / 2)


def actor_after_one_step(algorithm, demos, **kwargs):
    policy_kwargs = {**SMALL, "optimizer_class": th.optim.SGD}
    model = make(algorithm, demos, policy_kwargs=policy_kwargs, learning_rate=0.1, **kwargs)
    th.manual_seed(1)
    for parameter in model.actor.parameters():
        parameter.data.copy_(th.randn(parameter.shape) * 0.1)
    th.manual_seed(2)
    batch = batch_of(model)
    noise = None if model.n_noise == 0 else th.zeros(model.n_noise, 16, 2)
    with model.engine.session():
        getattr(model, model._update_name(1))(batch, noise)
    return [parameter.detach() for parameter in model.actor.parameters()]


@pytest.mark.parametrize("deterministic_actor", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [(AWAC, {"awac_lambda": 1e9}), (AWAC, {"awac_lambda": 1e9, "weighting": "softmax"}), (IQL, {"weight_temp": 0.0})],
)
def test_flat_weights_are_behaviour_cloning(algorithm, arguments, deterministic_actor, demos):
    arguments = {**arguments, "deterministic_actor": deterministic_actor}
    cloned = actor_after_one_step(BC, demos, deterministic_actor=deterministic_actor)
    for a, b in zip(actor_after_one_step(algorithm, demos, **arguments), cloned, strict=True):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_iql_judges_no_action_outside_the_data(demos):
    model = make(IQL, demos)
    seen = []
    model.critic.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1]))
    batch = batch_of(model)
    with model.engine.session():
        model._update(batch, None)
    assert len(seen) == 1 and seen[0] is batch.actions


def test_iql_without_critics_learns_from_the_returns_of_the_data(demos):
    model = make(IQL, demos, action_values=False, gamma=0.9, expectile=0.8, weight_temp=0.5, max_weight=1.5)
    constant(model.value, 7.0)
    batch = batch_of(model)._replace(rewards=th.full((16, 1), 2.0), dones=th.tensor([[0.0], [1.0]] * 8))
    critics = [parameter.clone() for parameter in model.critic.parameters()]
    log_prob = model.actor.distribution(batch.observations).log_prob(batch.actions).detach()
    with model.engine.session():
        metrics = model._update_without_critics(batch, None)
    # Advantages 2 + 0.9 * 7 - 7 and 2 - 7
    assert metrics["advantage_mean"].item() == pytest.approx((1.3 - 5) / 2)
    assert metrics["value_loss"].item() == pytest.approx((0.8 * 1.3**2 + 0.2 * 25) / 2)
    weights = th.tensor([1.5, math.exp(-2.5)] * 8)
    assert metrics["actor_loss"].item() == pytest.approx(-(weights * log_prob).mean().item(), rel=1e-5)
    for before, after in zip(critics, model.critic.parameters(), strict=True):
        assert (before == after).all()


def test_iql_without_critics_sees_n_steps_ahead(demos):
    # Every step costs 1, and V is 4
    terminations = demos.terminations & (np.arange(len(demos)) < len(demos) // 2)  # the other episodes are cut off
    data = replace(
        demos,
        rewards=np.full(len(demos), -1.0, np.float32),
        terminations=terminations,
        truncations=demos.ends & ~terminations,
    )
    model = make(IQL, data, action_values=False, gamma=0.5, n_steps=2)
    constant(model.value, 4.0)
    batch = model.dataset_buffer.sample(200)
    assert set(batch.discounts.unique().tolist()) == {0.5, 0.25}  # one step at the end of an episode
    with model.engine.session():
        metrics = model._update_without_critics(batch, None)
    rewards = th.where(batch.discounts == 0.25, -1.5, -1.0)
    expected = rewards + batch.discounts * (1 - batch.dones) * 4 - 4
    assert 0 < batch.dones.mean() < 1
    assert metrics["advantage_mean"].item() == pytest.approx(expected.mean().item())


def test_iql_without_critics_takes_its_next_value_for_a_constant(demos):
    sgd = {**SMALL, "optimizer_class": th.optim.SGD}
    model = make(IQL, demos, action_values=False, expectile=0.5, policy_kwargs=sgd, learning_rate=0.1)
    batch = batch_of(model)
    value = copy.deepcopy(model.value)
    with th.no_grad():
        targets = batch.rewards + 0.99 * (1 - batch.dones) * value(batch.next_observations)
    loss = 0.5 * (targets - value(batch.observations)).square().mean()
    gradients = th.autograd.grad(loss, list(value.parameters()))
    with model.engine.session():
        metrics = model._update_without_critics(batch, None)
    assert metrics["value_loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for before, gradient, after in zip(value.parameters(), gradients, model.value.parameters(), strict=True):
        th.testing.assert_close(after, before - 0.1 * gradient)


@pytest.mark.filterwarnings("error:Compiling the update failed")
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_iqls_critics_learn_where_they_are_asked(backend, demos):
    model = make(IQL, demos, action_values=False, update_backend=backend)
    networks = ("actor", "value", "critic", "critic_target")

    def changed_networks():
        before = {name: [p.clone() for p in getattr(model, name).parameters()] for name in networks}
        seen = learn_and_capture(model, 10)
        return {
            name
            for name, weights in before.items()
            if any((a != b).any() for a, b in zip(weights, getattr(model, name).parameters(), strict=True))
        }, "train/critic_loss" in seen

    assert changed_networks() == ({"actor", "value"}, False)
    model.action_values = True
    assert changed_networks() == (set(networks), True)
    model.action_values = False
    assert changed_networks() == ({"actor", "value"}, False)


def test_iql_without_critics_is_cloning_where_weights_are_flat(demos):
    without = {"action_values": False, "weight_temp": 0.0}
    cloned = actor_after_one_step(BC, demos)
    for a, b in zip(actor_after_one_step(IQL, demos, **without), cloned, strict=True):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_iql_without_critics_is_an_algorithm_like_all(check, demos_file, tmp_path):
    def make_online(env, **kwargs):
        return make(IQL, demos_file, env, action_values=False, n_offline_steps=0, learning_starts=10, **kwargs)

    check(make_online, tmp_path)


def test_awac_value_is_the_mean_over_samples(demos):
    model = make(AWAC, demos, n_value_samples=3)
    batch = batch_of(model)
    noise = th.randn(3, 16, 2)
    each = [model._values(batch, noise[i : i + 1]) for i in range(3)]
    th.testing.assert_close(model._values(batch, noise), th.stack(each).mean(dim=0))


# --- One object, offline and online ---


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("algorithm", ACTOR_CRITICS)
def test_online_it_is_an_algorithm_like_all(algorithm, check, demos_file, tmp_path):
    def make_online(env, **kwargs):
        return make(algorithm, demos_file, env, n_offline_steps=0, learning_starts=10, **kwargs)

    check(make_online, tmp_path)


# What needs no episodes of the model's own
OFFLINE_CHECKS = [check for check in CHECKS if "success_rates" not in check.__name__]


@pytest.mark.parametrize("check", OFFLINE_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_offline_it_is_one_too(algorithm, check, demos_file, tmp_path):
    def make_offline(env, **kwargs):
        return make(algorithm, demos_file, env, **kwargs)

    check(make_offline, tmp_path)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learning_needs_no_environment(algorithm, demos, tmp_path):
    model = make(algorithm, demos)
    before = parameters(model)
    evaluation = EvalCallback(make_vec_env(reach_env), eval_freq=20, n_eval_episodes=2, verbose=0)
    checkpoints = CheckpointCallback(save_freq=25, save_path=str(tmp_path))
    seen = learn_and_capture(model, 60, callback=[evaluation, checkpoints])
    assert model.env is None and model.replay_buffer is None
    assert model.num_timesteps == model._n_updates == 60
    assert "eval/mean_reward" in seen and len(list(tmp_path.glob("*.zip"))) == 2
    assert any((a != b).any() for a, b in zip(before, parameters(model), strict=True))
    rewards, _ = evaluate_policy(model, reach_env(), n_eval_episodes=2, return_episode_rewards=True, warn=False)
    assert len(rewards) == 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_same_seed_same_result(algorithm, demos):
    assert_same_parameters(make(algorithm, demos).learn(30), make(algorithm, demos).learn(30))
    other = make(algorithm, demos, seed=1)
    assert any((a != b).any() for a, b in zip(parameters(other), parameters(make(algorithm, demos)), strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_saved_model_predicts_without_its_dataset_and_asks_for_it_to_learn(algorithm, demos, tmp_path):
    model = make(algorithm, demos, standardize_observations=True).learn(30)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    assert_same_parameters(model, loaded)
    observations = demos.observations[:10]
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    with pytest.raises(DatasetError, match=r"learns from a dataset: pass dataset="):
        loaded.learn(10)
    assert algorithm.load(tmp_path / "model", dataset=demos, device="cpu").learn(10, reset_num_timesteps=False)


def test_dataset_of_a_name_is_found_again(demos, tmp_path):
    save(demos, tmp_path / "demos.hdf5")
    model = make(IQL, str(tmp_path / "demos.hdf5"), dataset_kwargs={"reward_shift": -1}).learn(20)
    model.save(tmp_path / "model")
    loaded = IQL.load(tmp_path / "model", device="cpu").learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 40 and len(loaded.dataset_buffer._rows["rewards"]) == len(demos)
    assert loaded.dataset_metadata["transforms"] == [{"name": "reward_shift", "shift": -1.0}]
    th.testing.assert_close(loaded.dataset_buffer._rows["rewards"].numpy(), demos.rewards - 1)


@pytest.mark.parametrize("algorithm", ACTOR_CRITICS)
def test_budget_is_split_between_dataset_and_several_environments(algorithm, demos):
    env = make_vec_env(reach_env, n_envs=4)
    model = make(algorithm, demos, env, n_offline_steps=40, offline_ratio=0.25, gradient_steps=2)
    actions = []

    class Watch(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 40:
                actions.append(self.model.predict(demos.observations[:5], deterministic=True)[0])
            if self.num_timesteps == 44:
                actions.append(self.model.predict(demos.observations[:5], deterministic=True)[0])
            return True

    model.learn(120, callback=Watch())
    assert model.num_timesteps == 120 and model.replay_buffer.size() * 4 == 80
    assert model._n_updates == 40 + 2 * 20
    np.testing.assert_array_equal(*actions)  # the first collected action comes from the last offline policy
    model.replay_buffer.observations[:] = 123.0
    batch = model._sample_mixed_batches(3, 16, model.offline_ratio)
    assert (batch.observations == 123.0).all(dim=-1).sum(dim=1).tolist() == [12, 12, 12]


def test_environment_may_come_later(demos):
    model = make(AWAC, demos).learn(20)
    model.n_offline_steps = 20
    with pytest.raises(ValueError, match=r"leaves 30 of 30 steps for an environment, and there is none"):
        model.learn(30)
    model.set_env(make_vec_env(reach_env, n_envs=3))
    model.learn(30, reset_num_timesteps=False)
    assert model.num_timesteps == 50 and model.replay_buffer.size() * 3 == 30


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_environment_that_comes_later_may_have_other_bounds_and_floats(dtype, demos, tmp_path):
    unbounded = demos.with_metadata(observation_space=gym.spaces.Box(-np.inf, np.inf, (3,), np.float32))
    model = make(AWAC, unbounded, n_offline_steps=20).learn(20)
    space = gym.spaces.Box(-100.0, 100.0, (3,), dtype)
    model.set_env(gym.wrappers.TransformObservation(reach_env(), lambda obs: obs.astype(dtype), space))
    first = model.predict(demos.observations[0], deterministic=True)[0]
    model.learn(30, reset_num_timesteps=False)
    assert model.num_timesteps == 50 and model.replay_buffer.observations.any()
    assert not np.array_equal(model.predict(demos.observations[0], deterministic=True)[0], first)
    model.save(tmp_path / "model")
    loaded = AWAC.load(tmp_path / "model", dataset=unbounded, device="cpu")
    loaded.set_env(gym.wrappers.TransformObservation(reach_env(), lambda obs: obs.astype(dtype), space))
    loaded.learn(10, reset_num_timesteps=False)
    # Loaded with environments, which may be others; those of evaluation are wrapped alike
    env, eval_env = (
        VecNormalize(
            make_vec_env(
                lambda: gym.wrappers.TransformObservation(reach_env(), lambda obs: obs.astype(dtype), space), n_envs=n
            ),
            norm_reward=False,
        )
        for n in (2, 1)
    )
    loaded = AWAC.load(tmp_path / "model", env=env, dataset=unbounded, device="cpu")
    loaded.learn(20, EvalCallback(eval_env, eval_freq=5, n_eval_episodes=1), reset_num_timesteps=False)
    assert loaded.replay_buffer.n_envs == 2 and loaded.replay_buffer.size() == 10
    for load_or_set in (model.set_env, lambda env: AWAC.load(tmp_path / "model", env=env, device="cpu")):
        with pytest.raises(ValueError, match="Observation spaces do not match"):
            load_or_set(gym.make("MountainCarContinuous-v0"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_updates_by_hand_take_the_dataset_where_nothing_is_collected(algorithm, demos):
    by_hand = make(algorithm, demos)
    by_hand.train(gradient_steps=5, batch_size=16)
    assert by_hand._n_updates == 5
    assert_same_parameters(by_hand, make(algorithm, demos).learn(5))


def test_one_step_returns_of_an_n_step_buffer_are_mixed(demos):
    kwargs = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 1, "gamma": 0.9}}
    model = make(AWAC, demos, make_vec_env(reach_env), n_offline_steps=5, gamma=0.9, **kwargs).learn(40)
    batch = model._sample_mixed_batches(1, 16, 0.5)
    assert batch.discounts.shape == batch.rewards.shape
    assert (batch.discounts == 0.9).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_actors_are_saved_alone(algorithm, demos, tmp_path):
    actor = make(algorithm, demos).learn(2).policy.actor
    actor.save(tmp_path / "actor")
    loaded = type(actor).load(tmp_path / "actor", device="cpu")
    observations = th.as_tensor(demos.observations[:5])
    th.testing.assert_close(loaded(observations, deterministic=True), actor(observations, deterministic=True))
    assert all(value.is_floating_point() for value in actor.state_dict().values())


def test_progress_bar_counts_what_is_asked_for(demos):
    model = make(BC, demos).learn(30)
    for n in (30, 10):
        bar = ProgressBarCallback()
        model.learn(n, bar, reset_num_timesteps=False)
        assert bar.pbar.total == bar.pbar.n == n


def test_arguments_changed_on_a_model_are_checked(demos):
    model = make(IQL, demos, make_vec_env(reach_env))
    model.n_offline_steps = 10.0
    assert model.learn(20).replay_buffer.size() == 10
    model.offline_ratio = 2
    with pytest.raises(ValueError, match="offline_ratio=2"):
        model.learn(10)


def test_rewards_of_the_environment_are_shifted_like_the_datasets(demos):
    transforms = [{"name": "reward_scale", "scale": 2.0}]
    arguments = {"dataset_kwargs": {"transforms": transforms, "reward_shift": -1.0}, "n_offline_steps": 0}
    model = make(IQL, demos, VecNormalize(make_vec_env(reach_env), norm_reward=False), **arguments).learn(40)
    plain = make(IQL, demos, make_vec_env(reach_env), n_offline_steps=0).learn(40)
    raw = np.unique(plain.replay_buffer.rewards[: plain.replay_buffer.size()])
    shifted = model.replay_buffer.rewards[: model.replay_buffer.size()]
    assert set(np.unique(shifted)) <= set(np.float32([-1.0, 1.0])) and set(raw) <= {0.0, 1.0}


def collected_rewards(model):
    return set(np.unique(model.replay_buffer.rewards[: model.replay_buffer.size()]).tolist())


def test_an_environment_that_shifts_rewards_itself_is_believed(tmp_path):
    data = load("demo/pointmaze-umaze", reward_shift=-1)
    env = make_training_env(data)
    small = {"policy_kwargs": dict(SMALL), "batch_size": 16, "device": "cpu", "update_backend": "eager"}
    model = IQL("MlpPolicy", env, dataset=data, n_offline_steps=0, **small).learn(50)
    assert collected_rewards(model) <= {-1.0, 0.0}
    raw = IQL("MlpPolicy", make_eval_env(data), dataset=data, n_offline_steps=0, **small).learn(50)
    assert collected_rewards(raw) <= {-1.0, 0.0}
    later = IQL("MlpPolicy", None, dataset=data, **small).learn(5)
    later.set_env(env)
    later.n_offline_steps = 0
    assert collected_rewards(later.learn(50, reset_num_timesteps=False)) <= {-1.0, 0.0}
    later.save(tmp_path / "model")
    loaded = IQL.load(tmp_path / "model", env=env, dataset=data, device="cpu").learn(50)
    assert collected_rewards(loaded) <= {-1.0, 0.0}


def test_an_environment_that_does_not_end_where_a_robot_stands_is_warned_of():
    standing = MovingSteps(distance=0.01, horizon=5, truncates=True)
    data = load("demo/pointmaze-umaze", reward_shift=-1, transforms=[standing])
    small = {"policy_kwargs": dict(SMALL), "batch_size": 16, "device": "cpu", "update_backend": "eager"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        IQL("MlpPolicy", make_training_env(data), dataset=data, n_offline_steps=0, **small).learn(5)
        model = IQL("MlpPolicy", make_eval_env(data), dataset=data, n_offline_steps=5, **small).learn(5)
    with pytest.warns(UserWarning, match="go on where a robot stands") as record:
        model.learn(5, reset_num_timesteps=False)
    assert record[0].filename == __file__


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_environment_that_a_callback_sets_is_the_one_to_go_on_in(number):
    data = load("demo/pointmaze-umaze", reward_shift=-1)
    shifted = make_vec_env(lambda: make_training_env(data), n_envs=number)

    class SetEnv(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 20:
                self.model.set_env(shifted)
            return True

    raw = make_vec_env(lambda: make_eval_env(data), n_envs=2)
    model = make(IQL, data, raw, n_offline_steps=30).learn(90, callback=SetEnv())
    assert model.env is shifted and model.num_timesteps == 90
    assert model.replay_buffer.n_envs == number and model.replay_buffer.size() * number == 60
    # Shifted once, by the environment
    assert collected_rewards(model) <= {-1.0, 0.0}


def test_numbers_of_steps_may_be_floats(demos):
    model = make(IQL, demos, make_vec_env(reach_env), n_offline_steps=1e2)
    assert model.learn(1.2e2).num_timesteps == 120 and model.replay_buffer.size() == 20
    assert make(IQL, demos, batch_size=1e1).learn(2e2).num_timesteps == 200


@pytest.mark.parametrize("algorithm", ACTOR_CRITICS)
def test_a_loaded_model_goes_on_online_with_its_dataset(algorithm, demos, demos_file, tmp_path):
    make(algorithm, demos_file, make_vec_env(reach_env), n_offline_steps=10).learn(30).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=make_vec_env(reach_env), device="cpu")
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.dataset_buffer is not None and loaded.replay_buffer.size() == 10
    make(algorithm, demos, make_vec_env(reach_env), n_offline_steps=10).learn(30).save(tmp_path / "memory")
    with pytest.raises(DatasetError, match="offline_ratio=0"):
        algorithm.load(tmp_path / "memory", env=make_vec_env(reach_env), device="cpu").learn(10)
    alone = algorithm.load(tmp_path / "memory", env=make_vec_env(reach_env), device="cpu", offline_ratio=0.0)
    assert alone.learn(10).dataset_buffer is None


@pytest.mark.parametrize("algorithm", [AWAC, IQL, BC])
def test_an_actor_that_regresses_acts_by_its_mean(algorithm, demos):
    model = make(algorithm, demos, deterministic_actor=True).learn(20)
    observations = demos.observations
    acted = [model.predict(observations, deterministic=deterministic)[0] for deterministic in (False, True)]
    np.testing.assert_array_equal(*acted)
    if algorithm is AWAC:
        batch, noise = model.dataset_buffer.sample(16), th.randn(2, 16, 2)
        th.testing.assert_close(model._next_values(batch, noise[0]), model._next_values(batch, noise[1]))
        th.testing.assert_close(model._values(batch, noise[:1]), model._values(batch, noise[1:]))


def test_callbacks_that_look_at_episodes_run_offline_too(demos, tmp_path):
    callbacks = [StopTrainingOnMaxEpisodes(3), RawStatisticsCallback()]
    model = make(IQL, demos, make_vec_env(reach_env), n_offline_steps=20, tensorboard_log=str(tmp_path))
    model.learn(500, callback=callbacks)
    assert 20 < model.num_timesteps < 500


def test_models_with_datasets_are_copied(demos):
    model = make(IQL, demos, standardize_observations=True).learn(20)
    other = copy.deepcopy(model)
    assert_same_parameters(model, other.learn(0))
    before = parameters(model)
    other.learn(20)
    for a, b in zip(before, parameters(model), strict=True):
        th.testing.assert_close(a, b, rtol=0, atol=0)


def test_environments_of_another_kind_are_refused_before_collection(demos):
    def env(**attributes):
        made = reach_env()
        for name, value in attributes.items():
            setattr(made.unwrapped, name, value)
        return made

    other = demos.with_metadata(env_id="Other-v0")
    named = env()
    named.unwrapped.spec = gym.envs.registration.EnvSpec("Reach-v0")
    with pytest.raises(DatasetError, match="was recorded in Other-v0"):
        make(IQL, other, named, n_offline_steps=0).learn(10)
    make(IQL, other, named).learn(10)  # it only evaluates there
    standardized = {"transforms": ["standardize_observations"]}
    model = make(
        IQL, demos.with_metadata(observation_space=None), env(), dataset_kwargs=standardized, n_offline_steps=0
    )
    with pytest.raises(DatasetError, match="the environment did not"):
        model.learn(10)
    normalized = VecNormalize(make_vec_env(reach_env))
    model = make(IQL, demos, normalized, dataset_kwargs={"reward_shift": -1}, n_offline_steps=0)
    with pytest.raises(ValueError, match="norm_reward=False"):
        model.learn(10)


def test_rewards_that_vecnormalize_scales_start_from_the_datasets(demos):
    env = VecNormalize(make_vec_env(reach_env))
    make(IQL, demos, env, n_offline_steps=10).learn(10)
    assert env.ret_rms.count > len(demos) - 1 and env.ret_rms.mean > 0


def test_learning_starts_counts_over_calls(demos):
    model = make(IQL, demos, make_vec_env(reach_env), n_offline_steps=0, learning_starts=30)
    for _ in range(5):
        model.learn(20, reset_num_timesteps=False)
    assert model._n_updates == 70


def test_number_of_environments_may_change_until_one_collects(demos):
    model = make(AWAC, demos, make_vec_env(reach_env), n_offline_steps=10).learn(10)
    model.set_env(make_vec_env(reach_env, n_envs=4))
    model.learn(40, reset_num_timesteps=False)
    assert model.replay_buffer.n_envs == 4 and model.num_timesteps == 50

    class SetEnv(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 5:
                self.model.set_env(make_vec_env(reach_env))
            return True

    model = make(AWAC, demos).learn(10, callback=SetEnv())
    assert model.env is not None
    model.n_offline_steps = 10
    assert model.learn(10, reset_num_timesteps=False).replay_buffer.size() == 10


def test_a_loaded_model_takes_no_data_of_another_kind(demos, tmp_path):
    make(IQL, load(demos, reward_shift=-1)).learn(10).save(tmp_path / "model")
    with pytest.raises(DatasetError, match="went through"):
        IQL.load(tmp_path / "model", dataset=demos, device="cpu").learn(10)
    IQL.load(tmp_path / "model", dataset=load(demos, reward_shift=-1), device="cpu").learn(10)
    with pytest.warns(UserWarning, match="is of Other-v0"):
        data = load(demos, reward_shift=-1).with_metadata(env_id="Other-v0")
        IQL.load(tmp_path / "model", dataset=data, device="cpu").learn(10)


def test_the_last_steps_are_logged_and_log_interval_may_be_none(demos):
    assert "train/critic_loss" in learn_and_capture(make(IQL, demos), 30)
    model = make(IQL, demos)
    model.learn(30, log_interval=None)
    assert model.num_timesteps == 30


def test_bc_does_not_go_online(demos, tmp_path):
    make(BC, demos).learn(5).save(tmp_path / "model")
    loaded = BC.load(tmp_path / "model", env=make_vec_env(reach_env), dataset=demos, n_offline_steps=0, device="cpu")
    with pytest.raises(ValueError, match="BC learns from its dataset alone"):
        loaded.learn(5)


def test_callback_that_stops_offline_learning_stops_it_at_once(demos):
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 7

    model = make(BC, demos).learn(100, callback=Stop())
    assert model.num_timesteps == model._n_updates == 7


def test_weights_are_logged_and_their_collapse_is_told(demos, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = learn_and_capture(make(AWAC, demos), 250)
    assert {"train/weight_mean", "train/weight_max", "train/effective_sample_size", "train/n_updates"} <= set(seen)
    spread = replace(demos, rewards=demos.rewards + np.linspace(0, 1000, len(demos), dtype=np.float32))
    model = make(AWAC, spread, weighting="softmax", awac_lambda=1e-6, batch_size=256)
    with pytest.warns(UserWarning, match="weights have collapsed"):
        model.learn(60)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="weights have collapsed"):
        AWAC.load(tmp_path / "model", dataset=spread, device="cpu").learn(60)


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [(AWAC, {}), (IQL, {}), (IQL, {"action_values": False}), (BC, {}), (ReBRAC, {"actor_bc_coef": 10.0})],
)
def test_cloning_learns_the_demonstrated_actions(algorithm, arguments, demos):
    model = make(algorithm, demos, learning_rate=3e-3, policy_kwargs={"net_arch": [64]}, **arguments)
    error = np.abs(model.predict(demos.observations, deterministic=True)[0] - demos.actions).mean()
    model.learn(600)
    assert np.abs(model.predict(demos.observations, deterministic=True)[0] - demos.actions).mean() < 0.4 * error


def test_top_percent_clones_the_best_episodes(demos):
    model = make(BC, demos, top_percent=25)
    assert model.dataset_buffer.buffer_size < len(demos)
    assert model.dataset_metadata["transforms"] == [{"name": "top_episodes", "percent": 25.0}]


def test_a_rate_of_the_actor_that_turns_negative_stops(demos):
    model = make(AWAC, demos, actor_learning_rate=lambda progress: progress - 0.6)
    with pytest.raises(ValueError, match=r"actor_learning_rate is -0\..* must not be negative"):
        model.learn(100)


@pytest.mark.parametrize("algorithm", ACTOR_CRITICS)
def test_cosine_of_the_actors_learning_rate(demos, algorithm):
    model = make(algorithm, demos, actor_learning_rate="cos_1e-3", learning_rate=5e-4).learn(100)
    assert model.critic.optimizer.param_groups[0]["lr"] == 5e-4
    # Rates are set per chunk of 50 updates: the last one was half way
    assert model.actor.optimizer.param_groups[0]["lr"] == pytest.approx(0.5e-3)


@pytest.mark.parametrize(
    ("algorithm", "arguments", "message"),
    [
        (AWAC, {"awac_lambda": 0.0}, "must be above 0"),
        (AWAC, {"weighting": "hard"}, "must be one of"),
        (AWAC, {"n_value_samples": 0}, "at least 1"),
        (AWAC, {"actor_learning_rate": -1e-3}, "actor_learning_rate"),
        (AWAC, {"actor_learning_rate": "cos"}, "actor_learning_rate"),
        (IQL, {"expectile": 1.0}, r"must be in \(0, 1\)"),
        (IQL, {"weight_temp": -1.0}, "at least 0"),
        (IQL, {"action_values": None}, "must be True or False"),
        (IQL, {"offline_ratio": 1.5}, "share of each batch"),
        (IQL, {"n_steps": 0}, "at least 1"),
        (IQL, {"n_steps": 1.5}, "n_steps=1.5 must be a whole number"),
        (IQL, {"n_offline_steps": -1}, "at least 0, or None"),
        (IQL, {"n_offline_steps": 1.5}, "n_offline_steps=1.5 must be a whole number of at least 0, or None"),
        (IQL, {"n_offline_steps": "10"}, "n_offline_steps='10' must be a whole number"),
        (IQL, {"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        (IQL, {"buffer_size": 0}, "buffer_size=0 must be a whole number of at least 1"),
        (IQL, {"gamma": 1.5}, r"gamma=1.5 must be in \[0, 1\]"),
        (IQL, {"tau": 0.0}, r"tau=0.0 in \(0, 1\]"),
        (AWAC, {"n_value_samples": 1.5}, "n_value_samples=1.5 must be a whole number"),
        (CalQL, {"n_actions": 2.5}, "n_actions=2.5 must be a whole number"),
        (EDAC, {"n_critics": 2.5}, "n_critics=2.5 must be a whole number"),
        (ReBRAC, {"policy_delay": 1.5}, "policy_delay=1.5 must be a whole number"),
        (IQL, {"update_backend": "cudagraph"}, "needs device=.cuda."),
        (BC, {"top_percent": 0}, r"must be in \(0, 100\]"),
        (BC, {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [8]}}}, "net_arch is a list"),
        (BC, {"update_backend": "fast"}, "update_backend"),
    ],
)
def test_bad_arguments_are_refused(algorithm, arguments, message, demos):
    with pytest.raises(ValueError, match=message):
        make(algorithm, demos, **arguments)


def test_data_of_another_environment_and_none_at_all_are_refused(demos):
    with pytest.raises(DatasetError, match="the environment's"):
        make(IQL, demos, gym.make("Pendulum-v1"))
    with pytest.raises(DatasetError, match="pass dataset="):
        make(IQL, None)
    with pytest.raises(DatasetError, match="does not name its spaces"):
        make(IQL, demos.with_metadata(observation_space=None))
    assert len(load(demos)) == len(demos)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dict_observations(algorithm):
    data = reach_demos(3, dict_obs=True)
    model = algorithm("MultiInputPolicy", None, dataset=data, policy_kwargs=dict(SMALL), batch_size=16, device="cpu")
    model.learn(10)
    with pytest.raises(ValueError, match="policy='MultiInputPolicy', not 'MlpPolicy'"):
        algorithm("MlpPolicy", None, dataset=data, device="cpu")
    rewards, _ = evaluate_policy(
        model, reach_env(dict_obs=True), n_eval_episodes=2, return_episode_rewards=True, warn=False
    )
    assert len(rewards) == 2


@pytest.mark.filterwarnings("error:Compiling the update failed")
@pytest.mark.parametrize(
    ("algorithm", "arguments"), [*((algorithm, {}) for algorithm in ALGORITHMS), (IQL, {"action_values": False})]
)
def test_compiled_updates_give_the_same_numbers(algorithm, arguments, demos):
    eager, compiled = (
        make(algorithm, demos, update_backend=backend, **arguments).learn(20) for backend in ("eager", "compiled")
    )
    for a, b in zip(parameters(eager), parameters(compiled), strict=True):
        th.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_n_step_returns_of_the_dataset(demos):
    model = make(IQL, demos, n_steps=2, gamma=0.5)
    samples = model.dataset_buffer._get_samples(np.arange(len(demos)))
    first = demos.starts[demos.lengths >= 2][0]
    expected = demos.rewards[first] + 0.5 * demos.rewards[first + 1]
    assert samples.rewards[first].item() == pytest.approx(expected)
    assert samples.discounts[first].item() == pytest.approx(0.25)
    model.learn(10)


class ImageEnv(gym.Env):
    """Images that count steps, channels last, alone or in a Dict."""

    def __init__(self, in_dict=False):
        image = spaces.Box(0, 255, (40, 36, 3), np.uint8)
        self.in_dict = in_dict
        self.observation_space = spaces.Dict({"image": image, "vector": spaces.Box(-1, 1, (2,))}) if in_dict else image
        self.action_space = spaces.Box(-1, 1, (2,))

    def _observe(self):
        image = np.zeros((40, 36, 3), np.uint8)
        image[self.n_steps, :, 1] = 200
        return {"image": image, "vector": np.full(2, self.n_steps / 10, np.float32)} if self.in_dict else image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return self._observe(), {}

    def step(self, action):
        self.n_steps += 1
        return self._observe(), float(action[0]), False, self.n_steps >= 8, {}


@pytest.mark.parametrize(("policy", "in_dict"), [("CnnPolicy", False), ("MultiInputPolicy", True)])
def test_images_without_an_environment_are_those_with_one(policy, in_dict, tmp_path):
    env = ImageEnv(in_dict)
    env.action_space.seed(0)
    data = rollout_episodes(env, lambda obs: env.action_space.sample(), n_episodes=6, seed=0)
    small = {"batch_size": 8, "buffer_size": 100, "seed": 0, "device": "cpu", "update_backend": "eager"}
    small["policy_kwargs"] = {"net_arch": [8]}
    alone = IQL(policy, None, dataset=data, **small).learn(4)
    beside = IQL(policy, ImageEnv(in_dict), dataset=data, **small).learn(4)
    assert alone.observation_space == beside.observation_space
    observation, _ = env.reset()
    actions = [model.predict(observation, deterministic=True)[0] for model in (alone, beside)]
    np.testing.assert_array_equal(*actions)
    alone.save(tmp_path / "model")
    loaded = IQL.load(tmp_path / "model", dataset=data, device="cpu").learn(4, reset_num_timesteps=False)
    loaded.set_env(DummyVecEnv([lambda: ImageEnv(in_dict)] * 2))
    loaded.n_offline_steps = 0
    assert loaded.learn(8, reset_num_timesteps=False).replay_buffer.size() == 4
