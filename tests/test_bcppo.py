"""BCPPO: PPO to the last bit, divergences by hand, the reference, and learning."""

import inspect
import io
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algo_checks import CHECKS, learn_and_capture
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnvWrapper, VecNormalize
from test_pretrain import discrete_demos, discrete_env
from torch import nn
from toy_envs import DiscreteEnv, reach_demos, reach_env

from sb3_ext import BCPPO, REDQ
from sb3_ext.bcppo.policies import TruncatedNormalDistribution, TruncatedNormalMlpPolicy
from sb3_ext.common.losses import (
    bernoulli_kl,
    categorical_kl,
    clipped_surrogate_loss,
    gaussian_kl,
    k3_reverse_kl,
    sampled_reverse_kl,
)
from sb3_ext.common.reference import ANALYTIC, analytic_reverse_kl, has_analytic_kl
from sb3_ext.datasets import DatasetError, save

SMALL = {"n_steps": 64, "batch_size": 32, "n_epochs": 3, "device": "cpu", "seed": 0}


@pytest.fixture(scope="module")
def demos():
    return reach_demos(8)


def envs(n=2, **kwargs):
    return make_vec_env(lambda: reach_env(**kwargs), n_envs=n, seed=0)


def make(env=None, policy="MlpPolicy", **kwargs):
    return BCPPO(policy, env or envs(), **{"update_backend": "eager", **SMALL, **kwargs})


def weights(model):
    return [tensor.detach().clone() for tensor in model.policy.state_dict().values()]


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        th.testing.assert_close(a, b, rtol=0, atol=0)


# --- Losses by hand --------------------------------------------------------------------------------------------------


def test_clipped_surrogate_loss():
    ratio, advantages = th.tensor([1.5, 1.5, 0.5, 0.5]), th.tensor([1.0, -1.0, 1.0, -1.0])
    # min of the two: 1.2, -1.5, 0.5, -0.8
    loss = clipped_surrogate_loss(ratio, advantages, th.tensor(0.8), th.tensor(1.2))
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4)


def test_divergences_by_hand():
    mean, log_std = th.tensor([[1.0, 0.0]]), th.tensor([[0.0, np.log(2.0)]])
    # log(1 / 1) + (1 + 1) / 2 - 1/2, and log(1 / 2) + 4 / 2 - 1/2
    expected = 0.5 + np.log(0.5) + 1.5
    assert gaussian_kl(mean, log_std, th.zeros(1, 2), th.zeros(1, 2)).item() == pytest.approx(expected, rel=1e-5)
    p, r = th.tensor([[0.5, 0.5]]).log(), th.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert categorical_kl(p, r).item() == pytest.approx(expected, rel=1e-5)
    # The same two, as one bit with probabilities 0.5 and 0.25, twice
    assert bernoulli_kl(th.zeros(1, 2), th.full((1, 2), -np.log(3.0))).item() == pytest.approx(2 * expected, rel=1e-5)


@pytest.mark.parametrize("kl", [gaussian_kl, categorical_kl, bernoulli_kl])
def test_divergences_agree_with_pytorchs(kl):
    th.manual_seed(0)
    a, b, c, d = (th.randn(5, 3) for _ in range(4))
    if kl is gaussian_kl:
        p, r = th.distributions.Normal(a, b.exp()), th.distributions.Normal(c, d.exp())
        found, expected = kl(a, b, c, d), th.distributions.kl_divergence(p, r).sum(dim=1)
    elif kl is categorical_kl:
        p, r = th.distributions.Categorical(logits=a), th.distributions.Categorical(logits=b)
        found, expected = kl(p.logits, r.logits), th.distributions.kl_divergence(p, r)
    else:
        p, r = th.distributions.Bernoulli(logits=a), th.distributions.Bernoulli(logits=b)
        found, expected = kl(a, b), th.distributions.kl_divergence(p, r).sum(dim=1)
    th.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", [sampled_reverse_kl, k3_reverse_kl])
def test_estimators_and_their_gradients_are_unbiased(estimator):
    """Against the analytic divergence, over many actions of an older policy."""
    mean, log_std = (th.tensor([x], requires_grad=True) for x in (0.3, -0.2))
    ref_mean, ref_log_std = th.tensor([0.0]), th.tensor([0.1])
    exact = gaussian_kl(mean, log_std, ref_mean, ref_log_std)
    expected = th.autograd.grad(exact, [mean, log_std])
    th.manual_seed(0)
    old = th.distributions.Normal(th.tensor([0.2]), th.tensor([0.9]))
    actions = old.sample((400_000,))
    log_prob = th.distributions.Normal(mean, log_std.exp()).log_prob(actions).squeeze(1)
    ref_log_prob = th.distributions.Normal(ref_mean, ref_log_std.exp()).log_prob(actions).squeeze(1)
    estimate = estimator(log_prob - ref_log_prob, log_prob - old.log_prob(actions).squeeze(1))
    assert estimate.item() == pytest.approx(exact.item(), abs=5e-3)
    for found, right in zip(th.autograd.grad(estimate, [mean, log_std]), expected, strict=True):
        assert found.item() == pytest.approx(right.item(), abs=1e-2)


def test_k3_is_never_negative_and_both_are_0_at_the_reference():
    th.manual_seed(0)
    log_ratio, old = th.randn(100), th.randn(100)
    assert all(k3_reverse_kl(x[None], y[None]) >= 0 for x, y in zip(log_ratio, old, strict=True))
    assert any(sampled_reverse_kl(x[None], y[None]) < 0 for x, y in zip(log_ratio, old, strict=True))
    for estimator in (k3_reverse_kl, sampled_reverse_kl):
        assert estimator(th.zeros(5), old[:5]).item() == 0


def test_k3_stays_finite_far_from_the_reference():
    log_ratio = th.tensor([-300.0, 0.0], requires_grad=True)
    loss = k3_reverse_kl(log_ratio, th.tensor([-300.0, 0.0]))
    # rho r = 1 in the first
    assert loss.item() == pytest.approx(0.5)
    loss.backward()
    assert th.isfinite(log_ratio.grad).all()
    for x in (-10.001, -9.999):
        expected = np.exp(-x) - 1 + x
        assert k3_reverse_kl(th.tensor([x]), th.zeros(1)).item() == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_is_not_finite_is_told():
    model = make(learning_rate=1e10, max_grad_norm=1e10)
    with pytest.raises(ValueError, match="no longer finite"):
        model.learn(1024)


# --- Reduction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"clip_range_vf": 0.1, "ent_coef": 0.01, "normalize_advantage": False},
        {"target_kl": 0.003, "n_epochs": 10},
        {"use_sde": True, "sde_sample_freq": 4},
        {"learning_rate": lambda progress: 1e-3 * progress, "clip_range": lambda progress: 0.3 * progress},
        {"policy_kwargs": {"share_features_extractor": False}, "batch_size": 30},
        {"target_kl": 0.003, "n_epochs": 10, "batch_size": 30, "max_grad_norm": 0.1},
    ],
)
def test_without_demonstrations_it_is_sb3s_ppo_to_the_last_bit(kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = make(**kwargs).learn(512)
        theirs = PPO("MlpPolicy", envs(), **{**SMALL, **kwargs}).learn(512)
    assert_equal(weights(ours), weights(theirs))
    assert ours._n_updates == theirs._n_updates


@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)])
def test_other_actions_to_the_last_bit_too(space):
    class Env(DiscreteEnv):
        def __init__(self):
            super().__init__()
            self.action_space = space

        def step(self, action):
            return super().step(np.asarray(action, np.float32).reshape(-1) - 0.5)

    env = lambda: gym.wrappers.TimeLimit(Env(), 15)  # noqa: E731
    ours = make(make_vec_env(env, seed=0)).learn(256)
    theirs = PPO("MlpPolicy", make_vec_env(env, seed=0), **SMALL).learn(256)
    assert_equal(weights(ours), weights(theirs))


def test_images_and_processes_to_the_last_bit_too():
    small = {**SMALL, "n_steps": 16, "batch_size": 16}
    for policy, env in (
        ("CnnPolicy", lambda: envs(image=True)),
        ("MultiInputPolicy", lambda: make_vec_env(lambda: reach_env(dict_obs=True), 2, 0, vec_env_cls=SubprocVecEnv)),
    ):
        ours = BCPPO(policy, env(), update_backend="eager", **small).learn(64)
        theirs = PPO(policy, env(), **small).learn(64)
        assert_equal(weights(ours), weights(theirs))


def test_advantages_against_a_sum_by_brute_force():
    """Terminations, and time limits, where the value of the state that was cut off takes the place of what follows."""
    recorded = []

    class Recorder(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            obs, rewards, dones, infos = self.venv.step_wait()
            recorded.append((rewards.copy(), infos))
            return obs, rewards, dones, infos

    model = make(Recorder(envs(3)), n_steps=100, batch_size=100, gamma=0.9, gae_lambda=0.8)
    _, callback = model._setup_learn(300)
    buffer = model.rollout_buffer
    model.collect_rollouts(model.env, callback, buffer, 100)
    values, starts = buffer.values, buffer.episode_starts
    rewards = np.array([each for each, _ in recorded])
    cut_off = [(t, i) for t, (_, infos) in enumerate(recorded) for i in range(3) if infos[i]["TimeLimit.truncated"]]
    assert 2 < len(cut_off) < starts[1:].sum()  # and some terminate
    with th.no_grad():
        for t, i in cut_off:
            terminal = th.as_tensor(recorded[t][1][i]["terminal_observation"])[None]
            rewards[t, i] += 0.9 * model.policy.predict_values(terminal).item()
        last = model.policy.predict_values(th.as_tensor(model._last_obs)).numpy().flatten()
    dones = model._last_episode_starts
    assert starts[1:].sum() > 5
    ends, next_values = np.vstack([starts[1:], dones]), np.vstack([values[1:], last])
    deltas = rewards + 0.9 * (1 - ends) * next_values - values
    for env in range(3):
        for t in range(100):
            advantage, factor = 0.0, 1.0
            for k in range(t, 100):
                advantage += factor * deltas[k, env]
                factor *= 0.9 * 0.8 * (1 - ends[k, env])
            assert buffer.advantages[t, env] == pytest.approx(advantage, abs=1e-5)


@pytest.mark.parametrize(
    ("policy", "kwargs", "env_kwargs"),
    [
        ("MlpPolicy", {}, {}),
        ("MlpPolicy", {"use_sde": True}, {}),
        ("TruncatedNormalMlpPolicy", {}, {}),
        ("MultiInputPolicy", {}, {"dict_obs": True}),
        ("CnnPolicy", {}, {"image": True}),
    ],
)
def test_rollouts_with_a_reference_are_those_of_sb3(policy, kwargs, env_kwargs):
    """Values and log-probabilities of all states at once are those of one at a time, with their advantages."""
    rollouts = []
    for reference in (
        None,
        PPO(TruncatedNormalMlpPolicy if "Trunc" in policy else policy, envs(**env_kwargs), **SMALL),
    ):
        model = make(envs(3, **env_kwargs), policy=policy, reference=reference, batch_size=48, n_steps=40, **kwargs)
        th.manual_seed(1)
        _, callback = model._setup_learn(120)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 40)
        assert "forward" not in vars(model.policy)
        rollouts.append(model.rollout_buffer)
    ours, theirs = rollouts
    np.testing.assert_array_equal(ours.actions, theirs.actions)
    for name in ("values", "log_probs", "rewards", "advantages", "returns"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-5)
    assert np.abs(theirs.values).max() > 0


def test_discrete_rollouts_with_a_reference(demos):
    env = make_vec_env(discrete_env, n_envs=2, seed=0)
    model = make(env, reference=PPO("MlpPolicy", discrete_env(), device="cpu"), target_kl=1e9)
    logged = learn_and_capture(model, 128)
    assert logged["train/approx_kl"] < 0.1  # ratios are 1 before the first step


# --- The reference ---------------------------------------------------------------------------------------------------


def reference_bytes(model):
    stream = io.BytesIO()
    th.save(model.reference.state_dict(), stream)
    return stream.getvalue()


def test_reference_is_the_clone_and_stays_so(demos, tmp_path):
    model = make(demos=demos, bc_pretrain_steps=50, kl_coef=0.1)
    model.learn(0)
    assert_equal(model.reference.state_dict().values(), model.policy.state_dict().values())
    before = reference_bytes(model)
    model.learn(512, reset_num_timesteps=False)
    assert reference_bytes(model) == before
    assert any((a != b).any() for a, b in zip(weights(model), model.reference.state_dict().values(), strict=True))
    assert not model.reference.training and not any(p.requires_grad for p in model.reference.parameters())
    optimized = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in model.reference.parameters()}

    model.save(tmp_path / "model")
    loaded = BCPPO.load(tmp_path / "model", env=envs())
    assert reference_bytes(loaded) == before
    loaded.learn(128, reset_num_timesteps=False)  # without its demonstrations, which it no longer needs
    assert reference_bytes(loaded) == before


@pytest.mark.parametrize("policy", ["MlpPolicy", "TruncatedNormalMlpPolicy"])
@pytest.mark.parametrize("estimator", ["auto", "importance", "k3"])
def test_divergence_is_0_before_the_first_update(policy, estimator, demos):
    model = make(policy=policy, demos=demos, bc_pretrain_steps=50, kl_estimator=estimator, n_epochs=1, batch_size=128)
    logged = learn_and_capture(model, 128)  # one minibatch: its metrics are those before the step
    assert logged["train/reverse_kl"] == (0 if estimator == "auto" else pytest.approx(0, abs=1e-6))
    assert logged["train/kl_coef"] == pytest.approx(0.1)


def test_a_larger_coefficient_stays_nearer(demos):
    found, reference = [], make(demos=demos, bc_pretrain_steps=50, kl_coef=0.1).learn(0).reference
    for kl_coef in (0.0, 1.0, 100.0):
        model = make(demos=demos, bc_pretrain_steps=50, kl_coef=kl_coef, learning_rate=3e-3).learn(640)
        with th.no_grad():
            obs = th.as_tensor(demos.observations)
            kl = analytic_reverse_kl(model.policy.get_distribution(obs), reference.get_distribution(obs))
        found.append(kl.mean().item())
    assert found[0] > found[1] > found[2]


def test_target_adapts_the_coefficient(demos):
    far = make(demos=demos, bc_pretrain_steps=50, target_reverse_kl=1e-6, learning_rate=3e-3).learn(640)
    near = make(demos=demos, bc_pretrain_steps=50, target_reverse_kl=1e3).learn(640)
    # Five rollouts of 128 steps
    assert far._kl_factor == pytest.approx(1.5**5) and near._kl_factor == pytest.approx(1.5**-5)
    assert far._scalars()["kl_coef"].item() == pytest.approx(0.1 * far._kl_factor)


@pytest.mark.parametrize("algorithm", [PPO, SAC, REDQ])
def test_other_models_as_reference(algorithm, tmp_path):
    kwargs = {"utd_ratio": 1, "n_critics": 2} if algorithm is REDQ else {}
    other = algorithm("MlpPolicy", reach_env(), seed=1, device="cpu", **kwargs).learn(150)
    model = make(reference=other, kl_coef=0.5)
    logged = learn_and_capture(model, 256)
    assert np.isfinite(logged["train/reverse_kl"]) and logged["train/reverse_kl"] > 0
    model.save(tmp_path / "model")
    loaded = BCPPO.load(tmp_path / "model", env=envs())
    assert reference_bytes(loaded) == reference_bytes(model)
    loaded.learn(128)


def test_references_that_do_not_fit_are_refused(demos):
    with pytest.raises(TypeError, match="no action distribution"):
        make(reference=TD3("MlpPolicy", reach_env(), device="cpu"))
    with pytest.raises(TypeError, match="must be a model"):
        make(reference="model.zip")
    with pytest.raises(ValueError, match="action_space"):
        make(reference=PPO("MlpPolicy", discrete_env(), device="cpu"))
    with pytest.raises(ValueError, match="leaves reference unused"):
        make(reference=PPO("MlpPolicy", reach_env(), device="cpu"), kl_coef=0)


def test_every_analytic_divergence_of_a_policy_from_itself_is_0():
    th.manual_seed(0)
    for kind in ANALYTIC:
        distribution = kind([2, 3]) if kind.__name__.startswith("Multi") else kind(5)
        parameters = (th.randn(4, 5), th.zeros(5))[: 2 if "Normal" in kind.__name__ or "Diag" in kind.__name__ else 1]
        if kind is StateDependentNoiseDistribution:
            distribution.proba_distribution_net(7, 7)
            parameters = (th.randn(4, 5), th.zeros(7, 5), th.randn(4, 7))
        distribution.proba_distribution(*parameters)
        assert analytic_reverse_kl(distribution, distribution).tolist() == [0] * 4


# --- Arguments -------------------------------------------------------------------------------------------------------


def test_value_warmup_moves_the_value_function_alone(demos):
    model = make(demos=demos, bc_pretrain_steps=50, value_warmup_steps=256).learn(0)
    before = dict(model.policy.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in before.items()}
    model.learn(256, reset_num_timesteps=False)
    changed = {name for name, p in model.policy.named_parameters() if (p != before[name]).any()}
    assert changed == {name for name in before if "value" in name}
    model.learn(128, reset_num_timesteps=False)
    assert any((p != before[name]).any() for name, p in model.policy.named_parameters() if "action_net" in name)


@pytest.mark.parametrize(("batch_size", "max_grad_norm"), [(32, 10.0), (48, 10.0), (48, 1e-4)])
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_an_accumulated_epoch_is_one_step_on_the_whole_rollout(batch_size, max_grad_norm, demos):
    arguments = {"demos": demos, "bc_pretrain_steps": 20, "max_grad_norm": max_grad_norm}
    sliced = make(accumulate_epoch=True, batch_size=batch_size, **arguments).learn(256)
    whole = make(accumulate_epoch=False, batch_size=128, **arguments).learn(256)
    for a, b in zip(weights(sliced), weights(whole), strict=True):
        th.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    steps = [next(iter(model.policy.optimizer.state.values()))["step"] for model in (sliced, whole)]
    assert steps == [6, 6]


def test_cloning_goes_on_during_learning(demos):
    found = []
    for bc_coef in (0.0, 1.0):
        model = make(demos=demos, bc_pretrain_steps=20, kl_coef=0, bc_coef=bc_coef, learning_rate=1e-3)
        logged = learn_and_capture(model, 640)
        obs, actions = th.as_tensor(demos.observations), th.as_tensor(demos.actions)
        found.append(model.policy.get_distribution(obs).log_prob(actions).mean().item())
        assert ("train/bc_coef" in logged) == (bc_coef > 0)
    assert found[1] > found[0] + 0.1


def test_schedules_of_coefficients(demos):
    model = make(demos=demos, bc_pretrain_steps=10, kl_coef="lin_0.4", bc_coef="lin_0.2")
    logged = learn_and_capture(model, 512)
    # Four rollouts; SB3 takes the progress after each
    assert logged["train/kl_coef"] == pytest.approx(0.0, abs=1e-6)
    assert model._scalars()["bc_coef"].item() == pytest.approx(0.0, abs=1e-6)
    model._current_progress_remaining = 0.5
    assert model._scalars()["kl_coef"].item() == pytest.approx(0.2)
    rising = make(demos=demos, bc_pretrain_steps=10, kl_coef=lambda progress: 1 - progress)
    assert learn_and_capture(rising, 256)["train/kl_coef"] == pytest.approx(1.0)


def test_metrics_are_written_with_the_update_that_they_describe(demos):
    model = make(demos=demos, bc_pretrain_steps=10, bc_coef=0.1)
    logged = learn_and_capture(model, 128)  # a single rollout: SB3's PPO would write none
    names = "reverse_kl kl_coef bc_loss approx_kl clip_fraction explained_variance std".split()
    assert {f"train/{name}" for name in names} <= set(logged)
    assert logged["train/n_updates"] == 3 and logged["time/total_timesteps"] == 128
    assert "rollout/success_rate" in logged


def test_target_kl_stops_early():
    model = make(target_kl=1e-8, n_epochs=5, learning_rate=1e-2).learn(128)
    assert model._n_updates == 1
    accumulated = make(target_kl=1e-8, n_epochs=5, learning_rate=1e-2, accumulate_epoch=True).learn(128)
    assert accumulated._n_updates == 2


def test_normalisation_starts_from_the_demonstrations_and_is_frozen(demos):
    env = VecNormalize(envs())
    model = make(env, demos=demos, bc_pretrain_steps=20, freeze_normalization=True).learn(256)
    np.testing.assert_allclose(env.obs_rms.mean, demos.frames.mean(axis=0), atol=1e-3)
    assert not env.training and model.reference is not None
    moving = VecNormalize(envs())
    make(moving, demos=demos, bc_pretrain_steps=20).learn(256)
    assert moving.training and moving.obs_rms.count > len(demos)


def test_standardized_observations_and_the_reference_share_statistics(demos):
    model = make(demos=demos, bc_pretrain_steps=20, standardize_observations=True).learn(128)
    for policy in (model.policy, model.reference):
        np.testing.assert_allclose(policy.features_extractor.mean, demos.observations.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bc_pretrain_steps": 10}, "no demonstrations for bc_pretrain_steps"),
        ({"bc_coef": 0.1}, "no demonstrations for bc_coef"),
        ({"kl_coef": 0.1}, "need a policy to stay near to"),
        ({"target_reverse_kl": 0.1}, "need a policy to stay near to"),
        ({"kl_estimator": "k2"}, "must be one of"),
        ({"bc_batch_size": 0}, "at least 1"),
        ({"value_warmup_steps": -1}, "at least 0"),
        ({"target_reverse_kl": 0.0}, "must be positive"),
        ({"kl_coef": -1.0}, "not negative"),
        ({"update_backend": "fast"}, "must be one of"),
        ({"update_backend": "cudagraph"}, "not for PPO"),
        ({"bc_pretrain_steps": 2.5}, "must be an integer"),
        ({"kl_coef": float("inf")}, "finite"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_unused_and_missing_demonstrations_are_told(demos, tmp_path):
    with pytest.raises(ValueError, match="nothing uses them"):
        make(demos=demos)
    with pytest.raises(ValueError, match="there is none"):
        make(demos=demos, bc_pretrain_steps=1, freeze_normalization=True)
    with pytest.raises(ValueError, match="leaves target_reverse_kl unused"):
        make(demos=demos, bc_pretrain_steps=1, kl_coef=0, target_reverse_kl=0.1)
    model = make(demos=demos, bc_pretrain_steps=10, bc_coef=0.1)
    model.save(tmp_path / "model")
    loaded = BCPPO.load(tmp_path / "model", env=envs())
    with pytest.raises(DatasetError, match="were in memory"):
        loaded.learn(128)
    BCPPO.load(tmp_path / "model", env=envs(), demos=demos).learn(128)
    with pytest.raises(ValueError, match="Box actions"):
        make(discrete_env(), policy="TruncatedNormalMlpPolicy")


# --- What arguments change -------------------------------------------------------------------------------------------


def test_every_argument_of_cloning_changes_the_clone(demos):
    base = {"demos": demos, "bc_pretrain_steps": 20, "policy": "TruncatedNormalMlpPolicy"}
    changes = [{}, {"bc_batch_size": 16}, {"bc_learning_rate": 1e-2}, {"bc_learning_rate": "lin_1e-3"}]
    clones = [th.cat([w.flatten() for w in weights(make(**base, **change).learn(0))]) for change in changes]
    for i, first in enumerate(clones):
        assert all(not th.equal(first, second) for second in clones[:i])


def test_every_estimator_leads_elsewhere(demos):
    found = [
        th.cat([w.flatten() for w in weights(make(demos=demos, bc_pretrain_steps=20, kl_estimator=name).learn(256))])
        for name in ("auto", "importance", "k3")
    ]
    assert not any(th.equal(a, b) for a, b in ((found[0], found[1]), (found[1], found[2]), (found[0], found[2])))


def test_demonstrations_in_the_loss_are_as_many_and_as_normalised_as_asked_for(demos):
    env = VecNormalize(envs())
    model = make(env, demos=demos, bc_coef=0.1, bc_batch_size=24, kl_coef=0).learn(128)
    obs, actions = model._draw_demos()
    assert len(obs) == len(actions) == 24
    normalized = env.normalize_obs(demos.observations)
    distances = np.abs(obs.numpy()[:, None] - normalized[None]).max(axis=2).min(axis=1)
    assert distances.max() < 1e-4
    assert np.abs(obs.numpy()[:, None] - demos.observations[None]).max(axis=2).min(axis=1).max() > 1e-2


def test_log_std_min():
    policy = make(policy="TruncatedNormalMlpPolicy", policy_kwargs={"log_std_min": -1.0}).policy
    with th.no_grad():
        assert (policy.get_distribution(th.zeros(1, 3)).distribution.log_scale == -1).all()


def test_actions_are_clamped_for_the_environment_alone():
    taken = []

    class Watched(gym.Wrapper):
        def step(self, action):
            taken.append(np.array(action))
            return self.env.step(action)

    env = make_vec_env(lambda: Watched(reach_env()), n_envs=2, seed=0)
    model = make(env, policy="TruncatedNormalMlpPolicy", policy_kwargs={"log_std_init": 0.0}).learn(128)
    low, high = env.action_space.low[0], env.action_space.high[0]
    assert np.min(taken) == low and np.max(taken) == high and np.abs(model.rollout_buffer.actions).max() > 1.5
    actions, _ = model.predict(np.zeros((50, 3), np.float32), deterministic=False)
    assert actions.min() == low and actions.max() == high


def test_metrics_against_their_definitions(demos):
    arguments = {"demos": demos, "bc_pretrain_steps": 20, "policy": "TruncatedNormalMlpPolicy", "batch_size": 128}
    model = make(**arguments, n_epochs=1)
    logged = learn_and_capture(model, 128)  # one minibatch: metrics are those of the clone
    buffer = model.rollout_buffer
    expected = 1 - np.var(buffer.returns - buffer.values) / np.var(buffer.returns)
    assert logged["train/explained_variance"] == pytest.approx(expected, rel=1e-4)
    assert logged["train/clip_fraction"] == 0
    with th.no_grad():
        obs = th.as_tensor(buffer.observations.reshape(-1, 3))
        std = model.reference.get_distribution(obs).distribution.log_scale.exp().mean()
    assert logged["train/std"] == pytest.approx(std.item(), rel=1e-4)
    far = learn_and_capture(make(**arguments, n_epochs=10, learning_rate=1e-2, target_kl=None), 128)
    assert 0 < far["train/clip_fraction"] <= 1


# --- References of all kinds, and what a loaded model is asked for ---------------------------------------------------


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("estimator", ["auto", "k3", "importance"])
def test_gsde_has_a_reference_too(squash, estimator, demos, tmp_path):
    policy_kwargs = {"squash_output": squash, "log_std_init": -1.0}
    arguments = {"use_sde": True, "policy_kwargs": policy_kwargs, "kl_estimator": estimator}
    model = make(demos=demos, bc_pretrain_steps=10, **arguments)
    assert np.isfinite(learn_and_capture(model, 256)["train/reverse_kl"])
    model.save(tmp_path / "model")
    loaded = BCPPO.load(tmp_path / "model", env=envs())
    assert reference_bytes(loaded) == reference_bytes(model)
    anchored = make(reference=loaded, kl_coef=1.0, **arguments)
    logged = learn_and_capture(anchored, 128)["train/reverse_kl"]
    assert logged != 0 if estimator == "importance" else logged > 0  # which may come out negative


def test_a_squashed_gaussian_is_not_compared_by_formula_with_one_that_is_not():
    plain, squashed = (make(use_sde=True, policy_kwargs={"squash_output": squash}).policy for squash in (False, True))
    assert has_analytic_kl(plain, plain) and has_analytic_kl(squashed, squashed)
    assert not has_analytic_kl(plain, squashed)


def test_buffers_of_a_reference_that_are_not_saved_are_there_again(demos, tmp_path):
    model = make(demos=demos, bc_pretrain_steps=5, policy_kwargs={"features_extractor_class": WithUnsavedBuffer})
    model.learn(0)
    model.save(tmp_path / "model")
    reference = BCPPO.load(tmp_path / "model").reference
    assert reference.features_extractor.factor.tolist() == [3.0, 3.0, 3.0]


class WithUnsavedBuffer(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.register_buffer("factor", th.full((3,), 3.0), persistent=False)

    def forward(self, observations):
        return super().forward(observations) * self.factor


def test_references_that_see_other_observations_are_refused(demos):
    normalized = PPO("MlpPolicy", VecNormalize(envs()), **SMALL).learn(128)
    with pytest.raises(ValueError, match="normalised in another way"):
        make(reference=normalized, kl_coef=0.1)
    with pytest.raises(ValueError, match="normalised in another way"):
        make(VecNormalize(envs()), reference=normalized, kl_coef=0.1)
    same = VecNormalize(envs(), training=False)
    same.obs_rms = normalized.get_vec_normalize_env().obs_rms
    make(same, reference=normalized, kl_coef=0.1).learn(128)
    with pytest.raises(TypeError, match="has a memory"):
        make(reference=RecurrentPPO("MlpLstmPolicy", reach_env(), device="cpu"))


def test_a_loaded_model_can_be_given_another_reference(demos, tmp_path):
    other = PPO("MlpPolicy", envs(), **SMALL)
    make(demos=demos, bc_pretrain_steps=5).learn(0).save(tmp_path / "anchored")
    make().learn(128).save(tmp_path / "free")
    for name in ("anchored", "free"):
        loaded = BCPPO.load(tmp_path / name, env=envs(), reference=other, kl_coef=0.5)
        assert_equal(loaded.reference.state_dict().values(), weights(other))
        assert learn_and_capture(loaded, 128)["train/kl_coef"] == 0.5
    with pytest.raises(TypeError, match="must be a model"):
        BCPPO.load(tmp_path / "free", env=envs(), reference="model.zip")


def test_what_a_loaded_model_is_asked_for_is_checked(demos, tmp_path):
    make(demos=demos, bc_pretrain_steps=5, kl_coef=0).learn(0).save(tmp_path / "model")
    for changes, message in (
        ({"kl_coef": 0.5}, "need a policy to stay near to"),
        ({"target_reverse_kl": 0.5, "kl_coef": None}, "need a policy to stay near to"),
        ({"kl_estimator": "nonsense"}, "must be one of"),
        ({"freeze_normalization": True}, "there is none"),
    ):
        with pytest.raises(ValueError, match=message):
            BCPPO.load(tmp_path / "model", env=envs(), **changes).learn(64)
    more = BCPPO.load(tmp_path / "model", env=envs(), bc_pretrain_steps=8, demos=demos)
    before = weights(more)
    more.learn(0)
    assert more._bc_pretrain_steps_done == 8
    assert any((a != b).any() for a, b in zip(before, weights(more), strict=True))


def test_frozen_statistics_after_loading(demos, tmp_path):
    env = VecNormalize(envs())
    model = make(env, demos=demos, bc_pretrain_steps=5, freeze_normalization=True).learn(128)
    model.save(tmp_path / "model")
    with pytest.raises(DatasetError, match="were in memory"):
        BCPPO.load(tmp_path / "model", env=VecNormalize(envs())).learn(64)
    fresh = VecNormalize(envs())
    BCPPO.load(tmp_path / "model", env=fresh, demos=demos).learn(64)
    np.testing.assert_allclose(fresh.obs_rms.mean, env.obs_rms.mean, atol=1e-4)
    env.save(tmp_path / "statistics.pkl")
    BCPPO.load(tmp_path / "model", env=VecNormalize.load(tmp_path / "statistics.pkl", envs())).learn(64)


def test_demonstrations_by_a_path_are_found_again(demos, tmp_path):
    save(demos, tmp_path / "demos.hdf5")
    model = make(demos=tmp_path / "demos.hdf5", bc_pretrain_steps=5, bc_coef=0.1).learn(64)
    model.save(tmp_path / "model")
    BCPPO.load(tmp_path / "model", env=envs()).learn(64)


def test_schedules_as_text_for_a_loaded_model(tmp_path):
    make().learn(64).save(tmp_path / "model")
    changes = {"learning_rate": "1e-4", "clip_range": "lin_0.3", "clip_range_vf": "0.2"}  # as RL Zoo resumes
    loaded = BCPPO.load(tmp_path / "model", env=envs(), **changes).learn(64)
    assert loaded.lr_schedule(0.5) == 1e-4 and loaded.clip_range(0.5) == pytest.approx(0.15)


def test_what_would_surprise_is_told(demos, capsys):
    with pytest.warns(UserWarning, match="freeze_normalization=True"):
        make(VecNormalize(envs()), demos=demos, bc_pretrain_steps=5).learn(64)
    model = make(demos=demos, bc_pretrain_steps=5, value_warmup_steps=256, verbose=1)
    with pytest.warns(UserWarning, match="leave no step"):
        model.learn(128)
    assert "learns alone for 256 steps" in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.learn(256, reset_num_timesteps=False)


def test_it_is_called_like_ppo(tmp_path):
    model = BCPPO("MlpPolicy", envs(), 1e-3, tensorboard_log=str(tmp_path), **SMALL).learn(64)
    assert model.learning_rate(1.0) == 1e-3 and [path.name for path in tmp_path.iterdir()] == ["BCPPO_1"]
    parameters = list(inspect.signature(BCPPO).parameters.values())
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position == ["policy", "env", "learning_rate"]
    assert {"n_steps", "target_kl", "demos"} <= {p.name for p in parameters}


# --- Where a rollout goes wrong --------------------------------------------------------------------------------------


def test_the_first_minibatch_may_be_too_far_already():
    class Noisy(FlattenExtractor):
        def forward(self, observations):
            return nn.functional.dropout(super().forward(observations), 0.5, self.training)

    arguments = {"target_kl": 1e-9, "policy_kwargs": {"features_extractor_class": Noisy}}
    model = make(**arguments)
    before = weights(model)
    logged = learn_and_capture(model, 128)
    assert logged["train/approx_kl"] > 1e-9 and "train/loss" not in logged
    assert_equal(before, weights(model))


def test_observations_that_are_nan_are_told():
    class Broken(gym.ObservationWrapper):
        def observation(self, observation):
            return observation * np.nan

    model = make(make_vec_env(lambda: Broken(reach_env()), seed=0))
    with pytest.raises(ValueError, match="VecCheckNan"):
        model.learn(128)


def test_schedules_as_rl_zoo_writes_them():
    model = make(clip_range_vf="lin_0.2", clip_range="lin_0.3")
    logged = learn_and_capture(model, 256)
    assert logged["train/clip_range_vf"] == pytest.approx(0.0) and model.clip_range_vf(0.5) == pytest.approx(0.1)


# --- Policies, environments, backends --------------------------------------------------------------------------------


def test_truncated_normal_by_hand():
    distribution = TruncatedNormalDistribution(2)
    distribution.proba_distribution(th.zeros(1, 2), th.full((1, 2), -1.0))
    log_prob = distribution.log_prob(th.tensor([[0.5, -1.0]]))
    expected = sum(-0.5 * (x * np.e) ** 2 + 1 - 0.5 * np.log(2 * np.pi) for x in (0.5, -1.0))
    assert log_prob.item() == pytest.approx(expected, rel=1e-5)
    assert distribution.entropy().item() == pytest.approx(2 * (0.5 * np.log(2 * np.pi * np.e) - 1), rel=1e-5)
    th.manual_seed(0)
    distribution.proba_distribution(th.full((1000, 2), 3.0), th.zeros(1000, 2))
    # Before clamping, as log-densities are: the mean score is 0, and with it the bias of probability ratios
    samples = distribution.sample()
    assert (samples > 1).float().mean() > 0.3
    scores = (samples - distribution.mode()) / distribution.distribution.log_scale.exp()
    assert abs(scores.mean().item()) < 0.1
    th.testing.assert_close(distribution.mode(), th.tanh(th.full((1000, 2), 3.0)))


def test_sb3s_ppo_trains_the_truncated_normal_policy_too(tmp_path):
    model = PPO(TruncatedNormalMlpPolicy, envs(), **SMALL).learn(128)
    model.save(tmp_path / "model")
    assert_equal(weights(model), weights(PPO.load(tmp_path / "model", env=envs()).learn(0)))


def test_truncated_normal_policy_has_the_networks_of_the_recipe():
    policy = make(policy="TruncatedNormalMlpPolicy").policy
    norms = [type(layer).__name__ for layer in policy.mlp_extractor.value_net]
    assert norms.count("LayerNorm") == 2
    assert "LayerNorm" not in [type(layer).__name__ for layer in policy.mlp_extractor.policy_net]
    with th.no_grad():
        std = policy.get_distribution(th.zeros(1, 3)).distribution.log_scale.exp()
    th.testing.assert_close(std, th.full((1, 2), float(np.exp(-2))), rtol=0.05, atol=0)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("policy", ["MlpPolicy", "TruncatedNormalMlpPolicy"])
def test_it_is_an_algorithm_like_all(policy, check, demos, tmp_path):
    def make_model(env, seed=0):
        arguments = {"n_steps": 15, "batch_size": 15, "n_epochs": 2, "device": "cpu", "bc_coef": 0.1}
        return Lenient(policy, env, seed=seed, demos=demos, bc_pretrain_steps=10, update_backend="eager", **arguments)

    class Lenient(BCPPO):
        """Takes the demonstrations from here where it is loaded without."""

        def _reload_demos(self):
            self.demos = demos
            super()._reload_demos()

    check(make_model, tmp_path)


def test_dict_observations_and_discrete_actions():
    model = make(
        envs(dict_obs=True), policy="MultiInputPolicy", demos=reach_demos(5, dict_obs=True), bc_pretrain_steps=9
    )
    assert learn_and_capture(model, 128)["train/reverse_kl"] >= 0
    model = make(make_vec_env(discrete_env, seed=0), demos=discrete_demos(), bc_pretrain_steps=9, bc_coef=0.1)
    assert learn_and_capture(model, 64)["train/reverse_kl"] >= 0


@pytest.mark.filterwarnings("error:Compiling the update failed")
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"policy": "TruncatedNormalMlpPolicy", "value_warmup_steps": 128, "bc_coef": 0.1, "target_kl": 1.0},
        {"accumulate_epoch": True, "clip_range_vf": 0.2, "kl_estimator": "importance", "target_kl": 1.0},
    ],
)
def test_compiled_updates_give_the_same_numbers(arguments, demos):
    eager, compiled = (
        make(demos=demos, bc_pretrain_steps=20, update_backend=backend, **arguments).learn(256)
        for backend in ("eager", "compiled")
    )
    for a, b in zip(weights(eager), weights(compiled), strict=True):
        th.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


# --- Learning --------------------------------------------------------------------------------------------------------


def test_it_keeps_what_it_has_cloned_and_improves_on_it():
    env = envs(4)
    model = make(env, demos=reach_demos(3), bc_pretrain_steps=150, value_warmup_steps=512, n_steps=128, batch_size=64)
    model.learn(0)
    cloned = success(model)
    model.learn(512 + 512, reset_num_timesteps=False)  # the first update
    assert success(model) >= 0.9 * cloned
    model.learn(6000, reset_num_timesteps=False)
    assert success(model) >= max(cloned, 0.9)


def success(model):
    """The share of 200 episodes from the same starts: which starts are drawn is no part of what is compared."""
    rewards, _ = evaluate_policy(model, envs(4), n_eval_episodes=200, return_episode_rewards=True, warn=False)
    return np.mean(np.array(rewards) > 0)
