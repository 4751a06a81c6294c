"""ReBRAC, Cal-QL and EDAC: losses by hand, reductions to TD3+BC, CQL and SAC-N, and learning."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toy_envs import AimEnv, reach_demos, reach_env

from sb3_ext import EDAC, CalQL, ReBRAC
from sb3_ext.common import losses
from sb3_ext.common.buffers import DatasetBuffer, TensorReplayBuffer, returns_to_go
from sb3_ext.datasets import load

SMALL = {"net_arch": [16]}


@pytest.fixture(scope="module")
def demos():
    return reach_demos(8)


def make(algorithm, dataset, env=None, **kwargs):
    arguments = {"policy_kwargs": dict(SMALL), "batch_size": 16, "seed": 0, "device": "cpu", "update_backend": "eager"}
    return algorithm("MlpPolicy", env, dataset=dataset, **{**arguments, **kwargs})


# --- Losses by hand ---


def test_cloned_td3_actor_loss():
    q_values, distances = th.tensor([[-2.0], [6.0]]), th.tensor([[1.0], [3.0]])
    # Mean size of the values is 4
    assert losses.cloned_td3_actor_loss(q_values, distances, 0.5).item() == pytest.approx(0.5 * 2 - 2 / 4)
    assert losses.cloned_td3_actor_loss(q_values, distances, 0.5, normalize_q=False).item() == pytest.approx(1 - 2)


def test_scaled_cloning_loss_is_td3_bcs_times_the_values_size():
    q_values, distances = th.tensor([[-2.0], [6.0]]), th.tensor([[1.0], [3.0]])
    assert losses.scaled_cloning_loss(q_values, distances, 0.5).item() == pytest.approx(0.5 * 4 * 2)
    expected = 4 * losses.cloned_td3_actor_loss(q_values, distances, 0.5)
    th.testing.assert_close(losses.scaled_cloning_loss(q_values, distances, 0.5) - q_values.mean(), expected)


def test_scale_of_the_actors_values_is_a_constant_for_gradients():
    q_values = th.tensor([[2.0], [4.0]], requires_grad=True)
    losses.cloned_td3_actor_loss(q_values, th.zeros(2, 1), 1.0).backward()
    th.testing.assert_close(q_values.grad, th.full((2, 1), -0.5 / 3))


def test_conservative_loss():
    sampled = th.tensor([[[0.0], [math.log(3.0)]]])  # one critic, two actions, one row
    log_densities = th.full((2, 1), math.log(0.5))
    # log(1/2 (1 / 0.5 + 3 / 0.5)) - 1
    assert losses.conservative_loss(sampled, log_densities, th.ones(1, 1)).item() == pytest.approx(math.log(4) - 1)


def test_conservative_loss_estimates_the_integral():
    th.manual_seed(0)
    actions = th.rand(200_000, 1) * 2 - 1
    loss = losses.conservative_loss(actions[None], th.full_like(actions, -math.log(2)), th.zeros(1, 1))
    assert loss.item() == pytest.approx(math.log(math.e - 1 / math.e), abs=0.01)


def test_gradient_similarity():
    same = th.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]).unsqueeze(1)
    assert losses.gradient_similarity(same).item() == pytest.approx(3)
    assert losses.gradient_similarity(th.tensor([[[1.0, 0.0]], [[0.0, 5.0]]])).item() == pytest.approx(0)
    assert losses.gradient_similarity(th.tensor([[[1.0, 0.0]], [[-2.0, 0.0]]])).item() == pytest.approx(-2)
    zero = th.zeros(2, 3, 2, requires_grad=True)
    losses.gradient_similarity(zero).backward()
    assert th.isfinite(zero.grad).all()


# --- Next actions and returns ---


def test_returns_to_go():
    rewards = np.array([1, 2, 3, -1, -1, 5], np.float32)
    ends = np.array([0, 0, 1, 0, 1, 0], bool)
    returns = returns_to_go(rewards, ends, np.array([0, 0, 1, 0, 0, 0], bool), gamma=0.5)
    # One that terminated, one that was cut off with -1 for ever, and one that the data break off
    np.testing.assert_allclose(returns, [1 + 1 + 0.75, 2 + 1.5, 3, -2, -2, 10])


def test_returns_and_next_actions_of_a_dataset(demos):
    buffer = DatasetBuffer(
        demos, demos.metadata.observation_space, demos.metadata.action_space, next_actions=True, returns=True, gamma=0.9
    )
    samples = buffer._get_samples(np.arange(len(demos)))
    has_next = samples.has_next_action.squeeze(1).bool().numpy()
    np.testing.assert_array_equal(has_next, ~demos.ends)
    np.testing.assert_array_equal(samples.next_actions[has_next], samples.actions[1:][has_next[:-1]])
    first, length = demos.starts[0], demos.lengths[0]
    assert demos.terminations[first + length - 1]
    assert samples.returns[first].item() == pytest.approx(0.9 ** (length - 1))
    buffer.gamma = 0.5
    assert buffer._get_samples(np.arange(1)).returns.item() == pytest.approx(0.5 ** (length - 1))


def test_returns_and_next_actions_of_collected_transitions():
    space = gym.spaces.Box(-1, 1, (1,), np.float32)
    buffer = TensorReplayBuffer(6, space, space, "cpu", n_envs=2, gamma=0.5, next_actions=True, returns=True)

    def add(value, dones=(0, 0), truncated=False):
        column = np.full((2, 1), value, np.float32)
        infos = [{"TimeLimit.truncated": truncated}] * 2
        buffer.add(column, column, column, np.array([value, -1.0]), np.array(dones), infos)

    add(1.0)
    add(2.0, (1, 0))
    rows = buffer._get_samples(np.array([0, 0, 1, 1] * 20))
    known = rows.actions.squeeze(1), rows.returns.squeeze(1), rows.has_next_action.squeeze(1)
    pairs = {tuple(x.item() for x in row) for row in zip(*known, strict=True)}
    # The episode of the second environment goes on: no return yet, and the newest transition has no next action
    assert pairs == {(1.0, 2.0, 1.0), (1.0, -math.inf, 1.0), (2.0, 2.0, 0.0), (2.0, -math.inf, 0.0)}
    add(3.0, (0, 1), truncated=True)  # over three rows the oldest is overwritten next
    rows = buffer._gather(th.arange(6), None)
    th.testing.assert_close(rows.returns.squeeze(1), th.tensor([2.0, -2, 2, -2, -math.inf, -2]))
    th.testing.assert_close(rows.next_actions.squeeze(1)[:4], th.tensor([2.0, 2, 3, 3]))


def test_an_episode_that_a_new_learn_breaks_off_leads_nowhere(demos, tmp_path):
    env = make_vec_env(lambda: gym.wrappers.TimeLimit(reach_env().unwrapped, 7))
    model = make(CalQL, demos, env, n_actions=2, n_offline_steps=0, seed=1)
    model.learn(3)
    assert model.replay_buffer.dones[2, 0] == 0
    model.learn(3)
    assert model.replay_buffer.dones[2, 0] == model.replay_buffer.timeouts[2, 0] == 1
    model.replay_buffer.next_actions = True
    rows = model.replay_buffer._gather(th.arange(3), None)
    assert th.isfinite(rows.returns).all() and rows.has_next_action.squeeze(1).tolist() == [1, 1, 0]
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = make(CalQL, demos, env, n_actions=2, n_offline_steps=0)
    loaded.load_replay_buffer(tmp_path / "buffer")
    th.testing.assert_close(loaded.replay_buffer._gather(th.arange(3), None).returns, rows.returns)


def test_returns_have_the_reward_shift_of_the_dataset(demos):
    env = make_vec_env(reach_env, n_envs=2)
    model = make(CalQL, demos, env, n_actions=2, n_offline_steps=0, gamma=0.9, dataset_kwargs={"reward_shift": -1.0})
    model.learn(200)
    model.replay_buffer._fill_returns()
    returns = model.replay_buffer.returns[: model.replay_buffer.size()]
    known = returns[np.isfinite(returns)]
    assert len(known) > 100 and known.max() == 0 and known.min() == pytest.approx(-10, rel=1e-5)


def test_other_buffers_lack_next_actions(demos):
    with pytest.raises(ValueError, match="needs next actions in its batches: leave replay_buffer_class out"):
        make(ReBRAC, demos, replay_buffer_class=ReplayBuffer)


# --- Reductions ---


def linears(sequential):
    return [module for module in sequential if isinstance(module, nn.Linear)]


def reference_critics(critic):
    """The members of an ensemble as networks of PyTorch."""
    networks = []
    for i in range(critic.n_critics):
        layers = []
        for layer in critic.q_networks.hidden:
            layers += [_linear(layer, i), nn.ReLU()]
        networks.append(nn.Sequential(*layers, _linear(critic.q_networks.head, i)))
    return networks


def _linear(layer, i):
    linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[2])
    linear.weight.data.copy_(layer.weight[i].T)
    linear.bias.data.copy_(layer.bias[i, 0])
    return linear


def gradients(model, batch, noise, monkeypatch):
    """Of the losses by optimizer, instead of steps."""
    found = {}

    def minimize(loss, optimizer):
        parameters = optimizer.param_groups[0]["params"]
        found[id(optimizer)] = th.autograd.grad(loss, parameters, allow_unused=True)

    monkeypatch.setattr(model.engine, "minimize", minimize)
    monkeypatch.setattr(model.engine, "polyak", lambda *args: None)
    model._update(batch, noise)
    return found


def assert_gradients_of_critics(found, networks):
    for i, network in enumerate(networks):
        expected = [x for layer in linears(network) for x in (layer.weight.grad.T, layer.bias.grad)]
        # (weights, biases) of the stack in the order hidden, head
        for a, b in zip(found, expected, strict=True):
            th.testing.assert_close(a[i].squeeze(), b.squeeze(), rtol=1e-4, atol=1e-6)


def test_rebrac_with_its_switches_off_is_td3_bc(demos, monkeypatch):
    policy_kwargs = {"net_arch": [16, 16], "layer_norm": False}
    alpha, action_dim = 2.5, 2
    model = make(
        ReBRAC,
        demos,
        gamma=0.9,
        critic_bc_coef=0.0,
        min_q_actor=False,
        actor_bc_coef=1 / (alpha * action_dim),
        policy_kwargs=policy_kwargs,
    )
    th.manual_seed(0)
    for parameter in (*model.critic_target.parameters(), *model.actor_target.parameters()):
        parameter.data.add_(0.1 * th.randn_like(parameter))
    batch, noise = model.dataset_buffer.sample(16), th.randn(1, 16, 2)
    found = gradients(model, batch, noise, monkeypatch)

    critics, targets = reference_critics(model.critic), reference_critics(model.critic_target)
    with th.no_grad():
        smoothing = (noise[0] * 0.2).clamp(-0.5, 0.5)
        next_actions = (model.actor_target(batch.next_observations) + smoothing).clamp(-1, 1)
        rows = th.cat([batch.next_observations, next_actions], dim=1)
        target = batch.rewards + 0.9 * (1 - batch.dones) * th.minimum(targets[0](rows), targets[1](rows))
    rows = th.cat([batch.observations, batch.actions], dim=1)
    sum(0.5 * nn.functional.mse_loss(critic(rows), target) for critic in critics).backward()
    assert_gradients_of_critics(found[id(model.critic.optimizer)], critics)

    actions = model.actor(batch.observations)
    q_values = critics[0](th.cat([batch.observations, actions], dim=1))
    scale = alpha / q_values.abs().mean().detach()
    loss = -scale * q_values.mean() + nn.functional.mse_loss(actions, batch.actions)
    expected = th.autograd.grad(loss, list(model.actor.parameters()))
    for a, b in zip(found[id(model.actor.optimizer)], expected, strict=True):
        th.testing.assert_close(alpha * a, b, rtol=1e-4, atol=1e-6)


def test_rebrac_takes_off_the_distance_but_at_the_end_of_an_episode(demos):
    model = make(ReBRAC, demos, critic_bc_coef=2.0)
    for parameter in (*model.critic_target.parameters(), *model.actor_target.parameters()):
        parameter.data.zero_()
    model.critic_target.q_networks.head.bias.data.fill_(7.0)
    batch = model.dataset_buffer._get_samples(np.arange(len(demos)))
    values = model._next_values(batch, th.zeros(len(demos), 2)).squeeze(1)
    expected = 7 - 2 * batch.has_next_action.squeeze(1) * batch.next_actions.square().sum(dim=1)
    th.testing.assert_close(values, expected)
    assert (values[th.from_numpy(demos.ends)] == 7).all()


def test_rebrac_delays_its_actor_and_targets(demos):
    model = make(ReBRAC, demos, policy_delay=3)
    actor, target = ([p.clone() for p in module.parameters()] for module in (model.actor, model.critic_target))

    def same(before, module):
        return all((a == b).all() for a, b in zip(before, module.parameters(), strict=True))

    model.learn(2)
    assert same(actor, model.actor) and same(target, model.critic_target)
    model.learn(1, reset_num_timesteps=False)
    assert not same(actor, model.actor) and not same(target, model.critic_target)


def sac_n_losses(model, batch, noise, n):
    """By loops over critics, from https://arxiv.org/abs/2110.01548, algorithm 1."""
    critics, targets = reference_critics(model.critic), reference_critics(model.critic_target)
    ent_coef = model.log_ent_coef.detach().exp()
    with th.no_grad():
        next_actions, log_prob = model.actor.action_log_prob(batch.next_observations, noise[0])
        rows = th.cat([batch.next_observations, next_actions], dim=1)
        values = th.stack([target(rows) for target in targets]).min(dim=0).values - ent_coef * log_prob[:, None]
        target = batch.rewards + model.gamma * (1 - batch.dones) * values
    rows = th.cat([batch.observations, batch.actions], dim=1)
    critic_loss = sum(0.5 * nn.functional.mse_loss(critic(rows), target) for critic in critics)
    actions, log_prob = model.actor.action_log_prob(batch.observations, noise[1])
    rows = th.cat([batch.observations, actions], dim=1)
    least = th.stack([critic(rows) for critic in critics]).min(dim=0).values
    return critics, critic_loss, (ent_coef * log_prob[:, None] - least).mean(), log_prob


@pytest.mark.parametrize(
    ("algorithm", "arguments", "constants"),
    [
        (
            ReBRAC,
            {"actor_bc_coef": "lin_4.0", "critic_bc_coef": lambda progress: progress},
            {"actor_bc_coef": 4.0, "critic_bc_coef": 1.0},
        ),
        (CalQL, {"n_actions": 1, "actor_bc_coef": "lin_4.0"}, {"n_actions": 1, "actor_bc_coef": 4.0}),
    ],
)
def test_coefficients_of_cloning_follow_their_schedules_in_compiled_updates_too(algorithm, arguments, constants, demos):
    weights = []
    for backend in ("eager", "compiled"):
        model = make(algorithm, demos, update_backend=backend, **arguments)
        model.learn(200)  # drawn 50 at a time, with the progress at the start of each
        expected = {name: constants[name] * 0.25 for name in model.bc_coef_names}
        assert {name: coef.item() for name, coef in model._bc_coefs.items()} == pytest.approx(expected)
        weights.append(th.cat([parameter.flatten() for parameter in model.policy.parameters()]))
    th.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
    for others in (constants, {**constants, "actor_bc_coef": 0.0}):
        model = make(algorithm, demos, **others).learn(200)
        other = th.cat([parameter.flatten() for parameter in model.policy.parameters()])
        assert (other - weights[0]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (EDAC, {"eta": 0.0, "n_critics": 4}),
        (CalQL, {"cql_alpha": 0.0, "backup_entropy": True}),
        (CalQL, {"cql_alpha": 0.0, "backup_entropy": True, "actor_bc_coef": 0.5}),
    ],
)
def test_without_their_penalty_they_are_sac_n_and_clone_as_asked(algorithm, arguments, demos, monkeypatch):
    model = make(algorithm, demos, gamma=0.9, **arguments)
    th.manual_seed(0)
    batch, noise = model.dataset_buffer.sample(16), th.randn(model.n_noise, 16, 2)
    found = gradients(model, batch, noise, monkeypatch)
    critics, critic_loss, actor_loss, log_prob = sac_n_losses(model, batch, noise, model.n_critics)
    if model.actor_bc_coef > 0:
        rows = th.cat([batch.observations, model.actor.action_log_prob(batch.observations, noise[1])[0]], dim=1)
        size = th.stack([critic(rows) for critic in critics]).min(dim=0).values.abs().mean().detach()
        misses = (model.actor(batch.observations, deterministic=True) - batch.actions).square().sum(dim=1)
        actor_loss = actor_loss + model.actor_bc_coef * size * misses.mean()
    critic_loss.backward()
    assert_gradients_of_critics(found[id(model.critic.optimizer)], critics)
    expected = th.autograd.grad(actor_loss, list(model.actor.parameters()))
    for a, b in zip(found[id(model.actor.optimizer)], expected, strict=True):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    (gradient,) = found[id(model.ent_coef_optimizer)]
    th.testing.assert_close(gradient, -(log_prob + model.target_entropy).detach().mean().reshape(1))


def test_edac_penalty_is_the_similarity_of_its_critics_gradients(demos):
    model = make(EDAC, demos, n_critics=3, eta=2.0)
    batch = model.dataset_buffer.sample(16)
    penalty, _ = model._penalty(batch, model.critic(batch.observations, batch.actions), th.zeros(2, 16, 2))
    units = []
    for critic in reference_critics(model.critic):
        actions = batch.actions.clone().requires_grad_(True)
        critic(th.cat([batch.observations, actions], dim=1)).sum().backward()
        units.append(nn.functional.normalize(actions.grad, dim=1))
    pairs = [(units[i] * units[j]).sum(dim=1).mean() for i in range(3) for j in range(3) if i != j]
    assert penalty.item() == pytest.approx(0.5 * 2.0 * sum(pairs).item() / 2, rel=1e-4)


def test_diversified_critics_agree_less(demos):
    alike, diverse = (make(EDAC, demos, n_critics=4, eta=eta, learning_rate=1e-3).learn(200) for eta in (0.0, 5.0))
    batch = alike.dataset_buffer.sample(64)

    def similarity(model):
        actions = batch.actions.expand(4, *batch.actions.shape).clone().requires_grad_(True)
        values = model.critic.each(batch.observations, actions)
        return losses.gradient_similarity(th.autograd.grad(values.sum(), actions)[0]).item()

    assert similarity(diverse) < similarity(alike) - 0.5


def cql_penalty(model, batch, noise):
    """By loops: 3 n actions a row, critic by critic."""
    n, total = model.n_actions, 0.0
    uniform = th.distributions.Normal(0.0, 1.0).cdf(noise[2 : 2 + n]) * 2 - 1
    for critic in reference_critics(model.critic):
        terms = []
        for j in range(n):
            terms.append((uniform[j], th.full((16,), -2 * math.log(2))))
            terms.append(model.actor.action_log_prob(batch.observations, noise[2 + n + j]))
            terms.append(model.actor.action_log_prob(batch.next_observations, noise[2 + 2 * n + j]))
        scores = [
            critic(th.cat([batch.observations, actions], dim=1)).squeeze(1) - log_density
            for actions, log_density in terms
        ]
        data = critic(th.cat([batch.observations, batch.actions], dim=1)).squeeze(1)
        total = total + (th.logsumexp(th.stack(scores), dim=0) - math.log(3 * n) - data).mean()
    return total


def test_cal_ql_without_calibration_is_cql(demos):
    model = make(CalQL, demos, n_actions=3, calibrate=False, cql_alpha=4.0)
    batch, noise = model.dataset_buffer.sample(16), th.randn(model.n_noise, 16, 2)
    penalty, _ = model._penalty(batch, model.critic(batch.observations, batch.actions), noise)
    assert penalty.item() == pytest.approx(0.5 * 4.0 * cql_penalty(model, batch, noise).item(), rel=1e-4)


def test_calibration_lifts_the_policys_values_to_the_returns(demos):
    model = make(CalQL, demos, n_actions=2, cql_alpha=2.0)
    batch, noise = model.dataset_buffer.sample(16), th.randn(model.n_noise, 16, 2)
    q_values = model.critic(batch.observations, batch.actions)
    low, high = (batch._replace(returns=th.full((16, 1), value)) for value in (-math.inf, 1e3))
    penalty, metrics = model._penalty(low, q_values, noise)
    assert penalty.item() == pytest.approx(cql_penalty(model, batch, noise).item(), rel=1e-4)
    assert metrics["calibrated_share"] == 0
    # Far below the returns nothing pushes the policy's values down
    found = th.autograd.grad(model._penalty(high, q_values, noise)[0], list(model.critic.parameters()))
    q_values = model.critic(batch.observations, batch.actions)
    alone = th.autograd.grad(-q_values.mean(dim=(1, 2)).sum(), list(model.critic.parameters()))
    for a, b in zip(found, alone, strict=True):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_max_target_backup_takes_the_best_of_several_actions(demos):
    model = make(CalQL, demos, n_actions=3, max_target_backup=True, backup_entropy=False)
    batch, noise = model.dataset_buffer.sample(16), th.randn(model.n_noise, 16, 2)
    each = []
    for j in range(3):
        actions, _ = model.actor.action_log_prob(batch.next_observations, noise[2 + 2 * 3 + j])
        each.append(model.critic_target(batch.next_observations, actions).amin(dim=0))
    th.testing.assert_close(model._next_values(batch, noise), th.stack(each).amax(dim=0))


def test_entropy_coefficient_survives_saving(demos, tmp_path):
    model = make(CalQL, demos, n_actions=2, learning_rate=1e-2).learn(20)
    model.save(tmp_path / "model")
    loaded = CalQL.load(tmp_path / "model", dataset=demos, device="cpu")
    assert loaded.log_ent_coef.item() == model.log_ent_coef.item() != 0
    assert loaded.ent_coef_optimizer.state_dict()["state"][0]["step"] == 20
    fixed = make(EDAC, demos, n_critics=2, ent_coef=0.3)
    assert fixed.ent_coef_optimizer is None and fixed._ent_coef().item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("algorithm", "arguments", "message"),
    [
        (ReBRAC, {"actor_bc_coef": -1.0}, "not negative"),
        (ReBRAC, {"critic_bc_coef": "lin_a"}, "lin_<start>"),
        (ReBRAC, {"policy_delay": 0}, "at least 1"),
        (CalQL, {"n_actions": 0}, "at least 1"),
        (CalQL, {"cql_alpha": -1.0}, "at least 0"),
        (CalQL, {"actor_bc_coef": -1.0}, "not negative"),
        (CalQL, {"ent_coef": "automatic"}, "write a number"),
        (EDAC, {"eta": -1.0}, "at least 0"),
        (EDAC, {"n_critics": 1}, "agrees with itself"),
        (EDAC, {"ent_coef": -0.1}, "not negative"),
    ],
)
def test_bad_arguments_are_refused(algorithm, arguments, message, demos):
    with pytest.raises(ValueError, match=message):
        make(algorithm, demos, **arguments)


# --- Learning ---


def test_cal_ql_that_clones_stays_with_the_data(demos):
    misses = []
    for coef in (0.0, 10.0):
        model = make(CalQL, demos, n_actions=2, actor_bc_coef=coef, learning_rate=1e-3).learn(300)
        actions, _ = model.predict(demos.observations, deterministic=True)
        misses.append(np.square(actions - demos.actions).mean())
    assert misses[1] < 0.5 * misses[0]


def aim_at_random(n=2_000):
    """Actions without a plan; only their rewards tell the good ones."""
    rng = np.random.default_rng(0)
    targets = rng.uniform(-0.5, 0.5, (n, 1)).astype(np.float32)
    actions = rng.uniform(-1, 1, (n, 1)).astype(np.float32)
    columns = {
        "observations": targets,
        "next_observations": targets,
        "actions": actions,
        "rewards": -((actions - targets)[:, 0] ** 2),
        "terminations": np.ones(n, bool),
    }
    spaces = {"observation_space": AimEnv.observation_space, "action_space": AimEnv.action_space}
    return load(columns).with_metadata(**spaces)


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (ReBRAC, {"actor_bc_coef": 0.01}),
        (CalQL, {"n_actions": 4, "cql_alpha": 0.01}),
        (EDAC, {"n_critics": 4, "eta": 0.1}),
    ],
)
def test_they_find_actions_that_are_better_than_the_datas(algorithm, arguments):
    model = make(
        algorithm, aim_at_random(), learning_rate=3e-3, batch_size=64, policy_kwargs={"net_arch": [32]}, **arguments
    )
    model.learn(800)
    targets = np.linspace(-0.5, 0.5, 21, dtype=np.float32)[:, None]
    error = np.abs(model.predict(targets, deterministic=True)[0] - targets).mean()
    assert error < 0.15  # the data's mean action misses by 0.25
