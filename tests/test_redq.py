import warnings
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algo_checks import CHECKS, assert_same_parameters, learn_and_capture, parameters
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer
from torch.nn.functional import mse_loss
from toy_envs import AimEnv, DiscreteEnv, ReachEnv, aim_demos, reach_demos, reach_env

from sb3_ext import REDQ
from sb3_ext.common.off_policy import unstack
from sb3_ext.datasets import DatasetError

SMALL = {"n_critics": 3, "utd_ratio": 2, "batch_size": 16, "learning_starts": 10, "device": "cpu"}
DEMOS = {"bc_pretrain_steps": 30, "bc_gradient_steps": 1, "demo_ratio": 0.5}


def make(env=None, **kwargs):
    arguments = {**SMALL, "policy": "MlpPolicy", "policy_kwargs": {"net_arch": [16, 16]}, "seed": 0, **kwargs}
    return REDQ(env=reach_env() if env is None else env, **arguments)


def make_with_demos(env=None, **kwargs):
    return make(env, **{"policy": "TruncatedNormalMlpPolicy", "demos": reach_demos(), **DEMOS, **kwargs})


def make_with_scripted_demos(env=None, **kwargs):
    return make_with_demos(gym.make("MetaWorldSparse/reach-v3"), **{"demos": "scripted:1", **kwargs})


def random_batch(model, batch_size=32, seed=0):
    """A batch with terminal and non-terminal transitions, from the model's own buffer."""
    rng = np.random.default_rng(seed)
    buffer = ReplayBuffer(200, model.observation_space, model.action_space, device="cpu")
    for i in range(200):
        obs, next_obs = rng.normal(size=(2, 1, *model.observation_space.shape)).astype(np.float32)
        action = rng.uniform(-1, 1, (1, *model.action_space.shape)).astype(np.float32)
        buffer.add(obs, next_obs, action, rng.normal(size=1), np.array([i % 3 == 0]), [{}])
    np.random.seed(seed)
    return buffer.sample(batch_size)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("build", [make, make_with_demos], ids=["plain", "demos"])
def test_contract(check, build, tmp_path):
    if build is make_with_demos and check.__name__ == "check_learning_goes_on_after_loading":
        pytest.skip("demonstrations in memory are not saved: test_learn_after_load_without_demos")
    check(build, tmp_path)


# --- Reductions ------------------------------------------------------------------------------------------------------


def twin_models():
    """REDQ with both of two critics in its target, and SAC with the same weights."""
    redq = make(n_critics=2, n_target_critics=2, ent_coef=0.3)
    sac = SAC("MlpPolicy", reach_env(), policy_kwargs={"net_arch": [16, 16]}, ent_coef=0.3, device="cpu", seed=1)
    sac.actor.load_state_dict(redq.actor.state_dict())
    for ours, theirs in ((redq.critic, sac.critic), (redq.critic_target, sac.critic_target)):
        layers = [*ours.q_networks.hidden, ours.q_networks.head]
        for i, q_network in enumerate(theirs.q_networks):
            linears = [module for module in q_network if isinstance(module, th.nn.Linear)]
            for layer, linear in zip(layers, linears, strict=True):
                linear.weight.data = layer.weight[i].T.detach().clone()
                linear.bias.data = layer.bias[i, 0].detach().clone()
    # Target critics that differ from the critics, so that mixing them up shows
    with th.no_grad():
        for ours, theirs in ((redq.critic_target.q_networks.head, sac.critic_target.q_networks),):
            ours.bias[0] += 0.5
            theirs[0][-1].bias += 0.5
    return redq, sac


def test_two_critics_have_the_target_of_sac():
    redq, sac = twin_models()
    batch = random_batch(redq)
    th.manual_seed(0)
    target = redq._target(batch, th.randn(32, 2), members=None)
    th.manual_seed(0)
    with th.no_grad():
        next_actions, next_log_prob = sac.actor.action_log_prob(batch.next_observations)
        next_q = th.cat(sac.critic_target(batch.next_observations, next_actions), dim=1).min(dim=1, keepdim=True)[0]
        next_q = next_q - 0.3 * next_log_prob.reshape(-1, 1)
        expected = batch.rewards + (1 - batch.dones) * sac.gamma * next_q
    th.testing.assert_close(target, expected)


def update(model, function, *arguments):
    """Call one of the model's update functions."""
    with model.engine.session():
        return model.engine.run(function, *arguments)


def noise(model, batch_size=32):
    return th.randn(2, batch_size, *model.action_space.shape)


def test_two_critics_make_the_step_of_sac():
    """One whole critic update of both, through their own ``train``: the same loss, weights and target weights."""
    redq, sac = twin_models()
    redq.policy_delay = 2  # no actor step in between
    redq.utd_ratio = 1
    batch = random_batch(redq)
    for model in (redq, sac):
        model.replay_buffer.sample = lambda *args, **kwargs: batch
        model.set_logger(configure(None, []))
    fixed, ours, theirs = noise(redq)[0], redq.actor.action_log_prob, sac.actor.action_log_prob

    def with_fixed_noise(observations):
        # SAC draws noise for its actor's loss first; both targets get the same
        with mock.patch.object(th.distributions.normal, "_standard_normal", lambda *args, **kwargs: fixed):
            return theirs(observations)

    redq.actor.action_log_prob = lambda observations, noise: ours(observations, fixed)
    sac.actor.action_log_prob = with_fixed_noise
    redq.train(gradient_steps=1, batch_size=32)
    sac.train(gradient_steps=1, batch_size=32)
    losses = [model.logger.name_to_value["train/critic_loss"] for model in (redq, sac)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for ours, theirs in ((redq.critic, sac.critic), (redq.critic_target, sac.critic_target)):
        for i, q_network in enumerate(theirs.q_networks):
            th.testing.assert_close(ours.q_networks.head.weight[i].T, q_network[-1].weight, rtol=1e-4, atol=1e-6)
            th.testing.assert_close(ours.q_networks.hidden[0].weight[i].T, q_network[0].weight, rtol=1e-4, atol=1e-6)


def test_actor_loss_differs_from_sac_only_by_mean_against_minimum():
    redq, sac = twin_models()
    batch = random_batch(redq)
    fixed = noise(redq)
    actor_loss = update(redq, redq._update_actor, batch, fixed)["actor_loss"]
    redq, sac = twin_models()
    with mock.patch.object(th.distributions.normal, "_standard_normal", lambda *args, **kwargs: fixed[1]):
        actions, log_prob = sac.actor.action_log_prob(batch.observations)
    q_values = th.cat(sac.critic(batch.observations, actions), dim=1)
    by_mean = (0.3 * log_prob.reshape(-1, 1) - q_values.mean(dim=1, keepdim=True)).mean()
    by_minimum = (0.3 * log_prob.reshape(-1, 1) - q_values.min(dim=1, keepdim=True)[0]).mean()
    assert actor_loss.item() == pytest.approx(by_mean.item(), rel=1e-5)
    assert by_mean.item() < by_minimum.item()


def test_actor_step_leaves_critics_alone_and_they_learn_afterwards():
    model = make()
    batch = random_batch(model)
    before = [p.detach().clone() for p in model.critic.parameters()]
    update(model, model._update_actor, batch, noise(model))
    assert all((a == b).all() for a, b in zip(before, model.critic.parameters(), strict=True))
    update(model, model._update_critic, batch, noise(model), None)
    assert all((a != b).any() for a, b in zip(before, model.critic.parameters(), strict=True))


# --- Counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("utd_ratio", [1, 3, 0.5])
@pytest.mark.parametrize("train_freq", [1, 2])
def test_utd_ratio_counts_updates_per_transition(n_envs, utd_ratio, train_freq):
    env = make_vec_env(reach_env, n_envs=n_envs)
    model = make(env, utd_ratio=utd_ratio, train_freq=train_freq, learning_starts=0)
    seen = learn_and_capture(model, 80)
    assert model._n_updates == int(80 * utd_ratio)
    assert seen["train/utd"] == pytest.approx(utd_ratio, abs=0.1 if utd_ratio < 1 else 0)


def test_actor_steps_once_per_transition_by_default_and_every_policy_delay_otherwise(monkeypatch):
    calls = []
    original = REDQ._update_actor
    monkeypatch.setattr(REDQ, "_update_actor", lambda self, *args: (calls.append(1), original(self, *args))[1])
    make(learning_starts=0, utd_ratio=4).learn(30)
    assert len(calls) == 30
    calls.clear()
    make(learning_starts=0, utd_ratio=4, policy_delay=3).learn(30)
    assert len(calls) == 30 * 4 // 3


def test_a_fresh_subset_of_target_critics_for_each_update(monkeypatch):
    subsets = []
    original = REDQ._target
    monkeypatch.setattr(
        REDQ, "_target", lambda self, b, n, m: (subsets.append(tuple(m.tolist())), original(self, b, n, m))[1]
    )
    make(n_critics=5, n_target_critics=2, learning_starts=0).learn(60)
    assert all(len(set(subset)) == 2 for subset in subsets)
    pairs = {tuple(sorted(subset)) for subset in subsets}
    assert len(pairs) == 10  # all pairs out of five occur in 120 draws


def test_target_networks_move_at_every_critic_update():
    model = make(tau=0.25)
    batch = random_batch(model)
    before = [p.detach().clone() for p in model.critic_target.parameters()]
    update(model, model._update_critic, batch, noise(model), None)
    for old, online, target in zip(before, model.critic.parameters(), model.critic_target.parameters(), strict=True):
        th.testing.assert_close(target, 0.75 * old + 0.25 * online)


def test_truncation_bootstraps_and_termination_does_not():
    model = make(n_critics=2, n_target_critics=2, ent_coef=0.0)
    with th.no_grad():  # target critics that are 7 everywhere
        model.critic_target.q_networks.head.weight.zero_()
        model.critic_target.q_networks.head.bias.fill_(7.0)
    obs = np.zeros((1, 3), np.float32)
    for done, info in ((True, {"TimeLimit.truncated": True}), (True, {}), (False, {})):
        model.replay_buffer.reset()
        model.replay_buffer.add(obs, obs, np.zeros((1, 2)), np.array([1.0]), np.array([done]), [info])
        target = model._target(model.replay_buffer.sample(4), noise(model, 4)[0], None)
        bootstraps = not done or bool(info)
        assert target.tolist() == [[pytest.approx(1 + 0.99 * 7 * bootstraps)]] * 4


# --- Demonstrations --------------------------------------------------------------------------------------------------


def test_demo_ratio_is_the_share_of_each_batch():
    demos = reach_demos()
    model = make_with_demos(demos=demos, demo_ratio=0.25, learning_starts=0).learn(20)
    demo_rows = {tuple(row) for row in demos.observations.round(5).tolist()}
    marker = 123.0
    model.replay_buffer.observations[:] = marker
    for batch in unstack(model._sample_mixed_batches(6, 16, model.demo_ratio)):
        from_replay = (batch.observations == marker).all(dim=1)
        assert from_replay.sum() == 12
        rows = batch.observations[~from_replay].numpy().round(5).tolist()
        assert {tuple(row) for row in rows} <= demo_rows


def test_demos_are_scaled_and_never_overwritten():
    demos = reach_demos()
    model = make_with_demos(demos=demos, buffer_size=50)
    stored = model.dataset_buffer._rows["actions"].numpy().copy()
    np.testing.assert_allclose(stored, model.policy.scale_action(demos.actions), rtol=1e-6)
    assert np.abs(stored).max() <= 1 and demos.actions.max() <= 1
    model.learn(120)
    assert (model.dataset_buffer._rows["actions"].numpy() == stored).all()
    assert model.dataset_buffer.size() == len(demos)


def test_cloning_brings_the_actor_to_the_demonstrations():
    demos = reach_demos(20)
    for policy in ("MlpPolicy", "TruncatedNormalMlpPolicy"):
        model = make_with_demos(policy=policy, demos=demos, bc_pretrain_steps=1500, learning_rate=1e-3)
        error = np.abs(model.predict(demos.observations, deterministic=True)[0] - demos.actions).mean()
        model.learn(0)
        cloned = np.abs(model.predict(demos.observations, deterministic=True)[0] - demos.actions).mean()
        assert cloned < 0.1 < error, policy


@pytest.mark.parametrize("policy", ["MlpPolicy", "TruncatedNormalMlpPolicy"])
def test_cloning_actions_on_the_border_stays_finite(policy):
    demos = reach_demos()
    low, high = np.array([-2, -2], np.float32), np.array([1, 1], np.float32)
    actions = np.where(np.arange(len(demos))[:, None] % 2 == 0, low, high)
    demos = {name: getattr(demos, name) for name in
             ("observations", "rewards", "next_observations", "terminations", "truncations")}  # fmt: skip
    model = make_with_demos(policy=policy, demos={**demos, "actions": actions}, bc_pretrain_steps=1000)
    model.learn(0)
    batch = model.dataset_buffer.sample(64)
    assert set(batch.actions.unique().tolist()) == {-1.0, 1.0}
    log_prob = model.actor.log_prob(batch.observations, batch.actions)
    log_prob.mean().backward()
    assert th.isfinite(log_prob).all()
    assert all(th.isfinite(p).all() and th.isfinite(p.grad).all() for p in model.actor.parameters())


def test_bc_pretraining_happens_once_and_is_remembered(tmp_path):
    model = make_with_scripted_demos()
    model.learn(0)
    assert model._bc_pretrain_steps_done == 30
    before = parameters(model)
    model.learn(0)
    assert all((a == b).all() for a, b in zip(before, parameters(model), strict=True))
    model.save(tmp_path / "model")
    loaded = REDQ.load(tmp_path / "model", env=gym.make("MetaWorldSparse/reach-v3"))
    loaded.learn(0)
    assert_same_parameters(model, loaded)


def test_bc_steps_per_transition_and_schedule(monkeypatch):
    coefficients = []
    original = REDQ._update_by_cloning

    def spy(self, batch, coef):
        coefficients.append(coef.item())
        return original(self, batch, coef)

    monkeypatch.setattr(REDQ, "_update_by_cloning", spy)
    make_with_demos(bc_pretrain_steps=0, bc_gradient_steps=2, bc_coef="lin_0.8", learning_starts=0).learn(40)
    # SB3 tells the progress after each step: 39/40 remain at the first update, nothing at the last
    expected = [0.8 * (1 - t / 40) for t in range(1, 40) for _ in range(2)]
    assert coefficients == pytest.approx(expected)


def test_bc_coef_scales_the_gradient_of_the_cloning_loss():
    grads = []
    for coef in (1.0, 0.25):
        model = make_with_demos(policy_kwargs={"net_arch": [16], "optimizer_class": th.optim.SGD})
        th.manual_seed(0)
        batch = model.dataset_buffer.sample(16)
        before = parameters(model)
        update(model, model._update_by_cloning, batch, th.tensor(coef))
        grads.append([b - a for a, b in zip(before, parameters(model), strict=True)])
    for full, quarter in zip(*grads, strict=True):
        th.testing.assert_close(0.25 * full, quarter, rtol=1e-2, atol=1e-6)


def test_no_random_actions_after_cloning():
    model = make_with_demos(learning_starts=1000, bc_pretrain_steps=1500, demos=reach_demos(20), learning_rate=1e-3)
    seen = learn_and_capture(model, 150)
    assert seen["rollout/success_rate"] > 0.7
    untrained = learn_and_capture(make(learning_starts=1000), 150)
    assert untrained["rollout/success_rate"] < 0.7


def test_fresh_normalisation_starts_with_the_demonstrations():
    env = VecNormalize(make_vec_env(reach_env))
    model = make_with_demos(env, learning_starts=1000)
    model.learn(0)
    demo_obs = model.dataset_buffer.frames.numpy()
    # Up to the single observation of the environment's own reset, and VecNormalize's first guess
    np.testing.assert_allclose(env.obs_rms.mean, demo_obs.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.sqrt(env.obs_rms.var), demo_obs.std(axis=0), rtol=0.2)


# --- Policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "TruncatedNormal"])
@pytest.mark.parametrize("kind", ["Mlp", "MultiInput", "Cnn"])
def test_policies_and_observations(prefix, kind, tmp_path):
    env_kwargs = {"Mlp": {}, "MultiInput": {"dict_obs": True}, "Cnn": {"image": True}}[kind]
    demos = reach_demos(3, **env_kwargs)
    model = make(
        reach_env(**env_kwargs),
        policy=f"{prefix}{kind}Policy",
        demos=demos,
        **DEMOS,
        learning_starts=5,
        buffer_size=200,
    )
    model.learn(25)
    model.save(tmp_path / "model")
    loaded = REDQ.load(tmp_path / "model")
    obs, _ = reach_env(**env_kwargs).reset(seed=0)
    assert (model.predict(obs, deterministic=True)[0] == loaded.predict(obs, deterministic=True)[0]).all()
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy")
    assert (model.predict(obs, deterministic=True)[0] == policy.predict(obs, deterministic=True)[0]).all()


def test_shared_features_extractor_learns_from_the_actor_only():
    env = reach_env(image=True)
    model = make(env, policy="CnnPolicy", policy_kwargs={"share_features_extractor": True}, buffer_size=100)
    assert model.critic.features_extractor is model.actor.features_extractor
    model.learn(20)
    batch = model.replay_buffer.sample(8)
    before = [p.detach().clone() for p in model.actor.features_extractor.parameters()]
    update(model, model._update_critic, batch, noise(model, 8), None)
    assert all((a == b).all() for a, b in zip(before, model.actor.features_extractor.parameters(), strict=True))
    update(model, model._update_actor, batch, noise(model, 8))
    assert any((a != b).any() for a, b in zip(before, model.actor.features_extractor.parameters(), strict=True))


def test_dropout_acts_in_training_and_not_in_evaluation():
    model = make(policy_kwargs={"net_arch": [16], "dropout": 0.5, "layer_norm": True})
    obs, actions = th.zeros(4, 3), th.zeros(4, 2)
    for critic in (model.critic, model.critic_target):
        model.policy.set_training_mode(False)
        th.testing.assert_close(critic(obs, actions), critic(obs, actions), rtol=0, atol=0)
        model.policy.set_training_mode(True)
        assert (critic(obs, actions) != critic(obs, actions)).any()


def test_truncated_normal_acts_with_its_std_and_clips_noise_in_losses():
    model = make(
        policy="TruncatedNormalMlpPolicy", policy_kwargs={"net_arch": [16], "action_std": 0.2, "noise_clip": 0.1}
    )
    obs = th.zeros(4000, 3)
    with th.no_grad():
        mean = model.actor(obs, deterministic=True)
        acting = model.actor(obs) - mean
        in_losses = model.actor.action_log_prob(obs, noise(model, 4000)[0])[0] - mean
    assert acting.std().item() == pytest.approx(0.2, rel=0.05)
    assert in_losses.abs().max().item() == pytest.approx(0.1, rel=1e-3)
    assert model.ent_coef == 0.0


# --- Further arguments -----------------------------------------------------------------------------------------------


def test_n_step_returns_reach_replay_and_demos():
    demos = reach_demos()
    model = make_with_demos(demos=demos, n_steps=3, learning_starts=0)
    batch = model.dataset_buffer.sample(64)
    assert batch.discounts is not None
    n_steps = np.log(batch.discounts.numpy().flatten()) / np.log(0.99)
    assert set(n_steps.round(3)) <= {1.0, 2.0, 3.0} and len(set(n_steps.round(3))) > 1
    model.learn(30)


class GoalEnv(ReachEnv):
    def __init__(self):
        super().__init__()
        box = spaces.Box(-10, 10, (1,), np.float32)
        self.observation_space = spaces.Dict({"observation": box, "achieved_goal": box, "desired_goal": box})

    def _obs(self):
        x, goal = np.array([self.x], np.float32), np.array([self.goal], np.float32)
        return {"observation": x, "achieved_goal": x, "desired_goal": goal}

    def compute_reward(self, achieved, desired, info):
        return (np.abs(achieved - desired) < 0.1).astype(np.float32).reshape(-1)


def test_her_batches_each_have_their_share_of_relabelled_goals():
    env = gym.wrappers.TimeLimit(GoalEnv(), 15)
    model = make(env, policy="MultiInputPolicy", replay_buffer_class=HerReplayBuffer, learning_starts=30)
    model.learn(120)
    assert all(th.isfinite(p).all() for p in model.policy.parameters())
    goals = set(model.replay_buffer.observations["desired_goal"].flatten().tolist())
    for batch in unstack(model._sample_batches(model.replay_buffer, 10, batch_size=40)):
        relabelled = sum(goal not in goals for goal in batch.observations["desired_goal"].flatten().tolist())
        assert 25 <= relabelled <= 32  # four of five, less those whose goal was reached anyway


def test_n_step_replay_buffer_of_the_user_sets_the_length_of_demos_too():
    kwargs = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 2, "gamma": 0.9}}
    model = make_with_demos(**kwargs, learning_starts=5)
    assert model.dataset_buffer.n_steps == 2 and model.dataset_buffer.gamma == 0.9
    model.learn(20)
    with pytest.raises(ValueError, match="leave replay_buffer_class out"):
        make_with_demos(replay_buffer_class=ReplayBuffer, n_steps=3)


def test_loading_with_other_n_steps_and_gamma_reaches_both_buffers(tmp_path):
    make_with_demos(n_steps=3).learn(30).save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = REDQ.load(tmp_path / "model", env=reach_env(), demos=reach_demos(), n_steps=1)
        same = REDQ.load(tmp_path / "model", env=reach_env(), demos=reach_demos(), gamma=0.9)
    other.learn(30, reset_num_timesteps=False)
    same.learn(30, reset_num_timesteps=False)
    assert not isinstance(other.replay_buffer, NStepReplayBuffer)
    assert (same.replay_buffer.gamma, same.dataset_buffer.gamma, same.dataset_buffer.n_steps) == (0.9, 0.9, 3)


def test_scripted_demos_go_through_the_wrappers_of_the_environment():
    env = gym.wrappers.TimeAwareObservation(gym.make("MetaWorldSparse/reach-v3"))
    model = make_with_demos(env, demos="scripted:1")
    time = model.dataset_buffer.frames[:, -1].numpy()
    assert len(time) > 2 and (np.diff(time) > 0).all()


def test_demos_given_to_load_without_a_use_are_refused(tmp_path):
    make().save(tmp_path / "model")
    loaded = REDQ.load(tmp_path / "model", env=reach_env(), demos=reach_demos())
    with pytest.raises(ValueError, match="unused"):
        loaded.learn(10)


def test_path_of_demos_is_kept_in_the_zip(tmp_path):
    demos = reach_demos()
    columns = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
    np.savez(tmp_path / "demos.npz", **{name: getattr(demos, name) for name in columns})
    make_with_demos(demos=tmp_path / "demos.npz").learn(20).save(tmp_path / "model")
    REDQ.load(tmp_path / "model", env=reach_env()).learn(20, reset_num_timesteps=False)
    (tmp_path / "demos.npz").unlink()
    with pytest.raises(DatasetError, match=r"There is no file .*demos\.npz.*demos=None, demo_ratio=0"):
        REDQ.load(tmp_path / "model", env=reach_env()).learn(20, reset_num_timesteps=False)


def test_linear_learning_rate_also_at_loading(tmp_path):
    make(learning_rate="lin_0.01").save(tmp_path / "model")
    for model in (make(learning_rate="lin_0.01"), REDQ.load(tmp_path / "model", learning_rate="lin_0.01")):
        assert model.lr_schedule(0.5) == pytest.approx(0.005)


def test_train_without_learn():
    model = make()
    model.replay_buffer.observations[:] = 0.5
    model.replay_buffer.full = True
    model.train(gradient_steps=2, batch_size=16)
    assert model._n_updates == 4


def test_learning_rate_schedule_and_entropy_coefficient():
    model = make(learning_rate=LinearSchedule(1e-3, 0.0, 1.0), ent_coef="auto_0.5", target_entropy=-1.5)
    assert model._ent_coef().item() == pytest.approx(0.5)
    model.learn(50)
    assert model.critic.optimizer.param_groups[0]["lr"] < 1e-4
    assert model._ent_coef().item() != pytest.approx(0.5)
    assert model.target_entropy == -1.5


def test_replay_buffer_is_saved_and_loaded(tmp_path):
    model = make().learn(40)
    model.save_replay_buffer(tmp_path / "buffer")
    model.save(tmp_path / "model")
    loaded = REDQ.load(tmp_path / "model", env=reach_env())
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == 40
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.replay_buffer.size() == 60


def test_saved_model_holds_no_demonstrations(tmp_path):
    small = make_with_demos(demos=reach_demos(2))
    large = make_with_demos(demos=reach_demos(400))
    sizes = []
    for model in (small, large):
        model.save(tmp_path / "model.zip")
        sizes.append((tmp_path / "model.zip").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 2_000


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_target_critics": 4}, r"n_target_critics=4 .* between 1 and 3"),
        ({"n_target_critics": 0}, r"n_target_critics=0"),
        ({"utd_ratio": 0}, r"utd_ratio=0"),
        ({"utd_ratio": -1}, r"utd_ratio=-1"),
        ({"policy_delay": 0}, r"policy_delay=0"),
        ({"demo_ratio": -0.1}, r"demo_ratio=-0.1 .* \[0, 1\]"),
        ({"demo_ratio": 1.5}, r"demo_ratio=1.5 .* \[0, 1\]"),
        ({"bc_pretrain_steps": -1}, r"bc_pretrain_steps=-1"),
        ({"bc_gradient_steps": -1}, r"bc_gradient_steps=-1"),
        ({"bc_coef": -1.0}, r"bc_coef=-1.0 must be a finite number that is not negative"),
        ({"bc_coef": float("nan")}, r"bc_coef=nan"),
        ({"policy_delay": 2.5}, r"policy_delay=2.5 must be an integer"),
        ({"n_critics": 0}, r"n_critics=0 must be at least 1"),
        ({"demo_ratio": 0.01, "demos": reach_demos(1)}, r"less than one row"),
        ({"bc_coef": "cosine_1"}, r"lin_<start>"),
        ({"demo_ratio": 0.5}, r"need demonstrations: pass demos="),
        ({"policy_kwargs": {"n_critics": 5}}, r"REDQ's argument n_critics alone"),
        ({"policy_kwargs": {"dropout": 1.0}}, r"dropout=1.0"),
        ({"policy": "TruncatedNormalMlpPolicy", "ent_coef": 0.2}, r"Leave ent_coef out"),
        ({"policy": "TruncatedNormalMlpPolicy", "policy_kwargs": {"action_std": 0.0}}, r"action_std=0.0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match=r"continuous \(Box\) action space.*DQN"):
        make(DiscreteEnv())


def test_demos_without_a_use_are_refused():
    with pytest.raises(ValueError, match="leave them unused: set one"):
        make(demos=reach_demos())


def test_demos_of_another_environment_are_refused():
    with pytest.raises(DatasetError, match=r"actions span .* the action space"):
        make_with_demos(reach_env(low=-0.5, high=0.5))
    with pytest.raises(DatasetError, match=r"observations have the shape \(3,\), the environment's \(39,\)"):
        make_with_demos(gym.make("MetaWorldSparse/hammer-v3"))


def test_learn_after_load_without_demos(tmp_path):
    model = make_with_demos().learn(30)
    model.save(tmp_path / "model")
    loaded = REDQ.load(tmp_path / "model", env=reach_env())
    obs, _ = reach_env().reset(seed=0)
    assert (model.predict(obs, deterministic=True)[0] == loaded.predict(obs, deterministic=True)[0]).all()
    with pytest.raises(DatasetError, match=r"trained with demonstrations .* gone.*demos=\.\.\..*demo_ratio=0"):
        loaded.learn(10)
    again = REDQ.load(tmp_path / "model", env=reach_env(), demos=reach_demos())
    again.learn(30, reset_num_timesteps=False)
    without = REDQ.load(tmp_path / "model", env=reach_env(), demo_ratio=0, bc_gradient_steps=0)
    without.learn(30, reset_num_timesteps=False)
    assert again.num_timesteps == without.num_timesteps == 60


# --- Learning --------------------------------------------------------------------------------------------------------


def miss(model) -> float:
    """Mean distance to the target."""
    targets = np.linspace(-0.5, 0.5, 41, dtype=np.float32).reshape(-1, 1)
    return float(np.abs(model.predict(targets, deterministic=True)[0] - targets).mean())


LEARNER = {"policy_kwargs": {"net_arch": [64, 64]}, "batch_size": 64, "learning_rate": 1e-3}


@pytest.mark.parametrize("policy", ["MlpPolicy", "TruncatedNormalMlpPolicy"])
def test_learns_without_demonstrations(policy):
    """Three seeds; a random actor misses by 0.55, the actors before training by 0.25."""
    for seed in range(3):
        model = make(AimEnv(), policy=policy, seed=seed, learning_starts=100, **LEARNER)
        before = miss(model)
        assert miss(model.learn(600)) < 0.15 < before, seed


def test_learning_corrects_demonstrations_that_are_off():
    """Three seeds: the clone misses by as much as the demonstrations do, REDQ on top of it does not."""
    for seed in range(3):
        model = make_with_demos(
            AimEnv(), demos=aim_demos(50, offset=0.3), seed=seed, **LEARNER, bc_pretrain_steps=300, bc_coef=0.001
        )
        assert 0.25 < miss(model.learn(0)) < 0.35, seed
        assert miss(model.learn(600)) < 0.12, seed


def test_critic_loss_equals_a_loop_over_critics():
    model = make(policy_kwargs={"net_arch": [16, 16], "layer_norm": True})
    batch = random_batch(model)
    target = th.randn(32, 1)
    q_values = model.critic(batch.observations, batch.actions)
    from sb3_ext.common.losses import ensemble_mse

    expected = 0.5 * sum(mse_loss(q_values[k], target) for k in range(3))
    th.testing.assert_close(ensemble_mse(q_values, target), expected)
