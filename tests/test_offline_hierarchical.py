"""HierarchicalPolicy of IQL: where to be n steps later, and how to get there."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from algo_checks import CHECKS
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from toy_envs import reach_demos

from sb3_ext import AWAC, BC, IQL, CalQL, ReBRAC
from sb3_ext.bc import pretrain
from sb3_ext.common.offline_policies import HierarchicalPolicy
from sb3_ext.datasets import load, save

GOAL = np.array([0.7, 0.7])
SPEED = 0.1


class Learnt(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 3)


@pytest.fixture(scope="module")
def walks():
    """
    Straight ways of a point in the plane, [-1, 1] wide, from anywhere to anywhere, past a goal now and then; a third
    entry of the observation is noise.
    """
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(400):
        position, target = rng.uniform(-1, 1, (2, 2))
        noise = rng.normal()
        while np.linalg.norm(target - position) > SPEED:
            way = target - position
            action = np.clip(way / np.linalg.norm(way) + rng.normal(0, 0.2, 2), -1, 1)
            before = [*position, noise]
            position, noise = position + SPEED * action, rng.normal()
            success = np.linalg.norm(position - GOAL) < 0.15
            rows.append([*before, *position, noise, *action, success, success, False])
            if success:
                break
        else:
            if rows:
                rows[-1][-1] = not rows[-1][-2]
    table = np.array(rows, np.float32)
    names = {"observations": slice(0, 3), "next_observations": slice(3, 6), "actions": slice(6, 8)}
    columns = {name: table[:, part] for name, part in names.items()}
    flags = {"rewards": table[:, 8] - 1, "terminations": table[:, 9] > 0, "truncations": table[:, 10] > 0}
    box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    return load({**columns, **flags}).with_metadata(observation_space=box, action_space=action_space)


def make(demos, env=None, policy_kwargs=None, **kwargs):
    return IQL(
        "HierarchicalPolicy",
        env,
        demos,
        **{
            "action_values": False,
            "n_steps": 3,
            "gamma": 0.9,
            "policy_kwargs": {"net_arch": [16], "subgoal_entries": 2, **(policy_kwargs or {})},
            "batch_size": 16,
            "seed": 0,
            "device": "cpu",
            "update_backend": "eager",
            **kwargs,
        },
    )


@pytest.mark.parametrize("standardize", [False, True])
def test_loss_by_hand(walks, standardize):
    model = make(walks, weight_temp=0.5, max_weight=2.0, expectile=0.8, standardize_observations=standardize)
    batch = model.dataset_buffer.sample(64)
    mean, std = walks.observations.mean(axis=0), walks.observations.std(axis=0) + 1e-3
    now, later = (
        th.tensor((obs.numpy() - mean) / std, dtype=th.float32) if standardize else obs
        for obs in (batch.observations, batch.next_observations)
    )
    # As the discount says; ways of fewer than 3 steps count as much more
    taken = sum(k * (batch.discounts - 0.9**k).abs().lt(1e-4).float() for k in (1, 2, 3))
    assert set(taken.flatten().tolist()) == {1.0, 2.0, 3.0}
    ways = (later - now)[:, :2] * 3 / taken
    with th.no_grad():
        values, next_values = model.value.v_network(now[:, :2]), model.value.v_network(later[:, :2])
        advantages = batch.rewards + batch.discounts * (1 - batch.dones) * next_values - values
        weights = (0.5 * advantages).exp().clamp(max=2.0)
        errors = (model.actor.subgoal_mlp(now[:, :2]) - ways).square().sum(dim=1)
        means = th.tanh(model.actor.mlp(th.cat([now, ways], dim=1)))
        log_probs = th.distributions.Normal(means, 1.0).log_prob(batch.actions).sum(dim=1)
        value_loss = (th.where(advantages < 0, 0.2, 0.8) * advantages**2).mean()
    with model.engine.session():
        metrics = model._update_without_critics(batch, None)
    assert metrics["subgoal_loss"].item() == pytest.approx((weights.squeeze(1) * errors).mean().item(), rel=1e-4)
    assert metrics["actor_loss"].item() == pytest.approx(-log_probs.mean().item(), rel=1e-4)
    assert metrics["value_loss"].item() == pytest.approx(value_loss.item(), rel=1e-4)
    assert metrics["weight_mean"].item() == pytest.approx(weights.mean().item(), rel=1e-4)


def test_a_way_of_fewer_steps_is_as_much_longer(walks):
    model = make(walks)
    taken = {}
    model.actor.subgoals = lambda obs: taken.setdefault("predicted", th.zeros(len(obs), 2))
    towards = model.actor.distribution_towards
    model.actor.distribution_towards = lambda obs, ways: taken.setdefault("ways", ways) is None or towards(obs, ways)
    batch = model.dataset_buffer.sample(200)
    # One metre a step, however many steps there were
    steps = (batch.discounts.log() / math.log(0.9)).round()
    later = batch.observations.clone()
    later[:, :2] += steps
    model._hierarchical_loss(batch._replace(next_observations=later), th.ones(200))
    assert set(steps.flatten().tolist()) == {1.0, 2.0, 3.0}
    th.testing.assert_close(taken["ways"], th.full((200, 2), 3.0))


def test_one_step_is_a_way_too(walks):
    with pytest.warns(UserWarning, match="n_steps=1 judge single actions"):
        model = make(walks, n_steps=1)
    batch = model.dataset_buffer.sample(200)
    assert batch.discounts is None
    several = make(walks)
    several.policy.load_state_dict(model.policy.state_dict())
    several.n_steps = 1
    as_discounted = batch._replace(discounts=th.full((200, 1), 0.9))
    losses = [m._hierarchical_loss(b, th.ones(200))[0] for m, b in ((model, batch), (several, as_discounted))]
    th.testing.assert_close(*losses)


def test_values_and_subgoals_see_the_first_entries_alone(walks):
    model = make(walks)
    obs = th.randn(5, 3)
    other = obs.clone()
    other[:, 2:] += 1
    for network in (model.value, model.actor.subgoals):
        assert (network(obs) == network(other)).all()
        assert (network(obs) != network(obs + 1)).all()
    assert (model.actor(obs, deterministic=True) != model.actor(other, deterministic=True)).any()


def test_actions_lead_to_the_subgoal_that_the_policy_has(walks):
    model = make(walks)
    obs = th.randn(5, 3)
    expected = model.actor.distribution_towards(obs, model.actor.subgoals(obs)).mode
    assert (model.actor(obs, deterministic=True) == expected).all()
    assert (model.actor.distribution_towards(obs, model.actor.subgoals(obs) + 1).mode != expected).any()


@pytest.mark.parametrize("deterministic_actor", [False, True])
def test_actions_that_ignore_the_subgoal_are_cloned(walks, deterministic_actor):
    model = make(walks, deterministic_actor=deterministic_actor)
    clone = BC("MlpPolicy", None, walks, policy_kwargs={"net_arch": [16]}, seed=1, device="cpu", update_backend="eager")
    clone.actor.is_deterministic = model.actor.is_deterministic
    clone.deterministic_actor = deterministic_actor
    first, *others = model.actor.mlp.state_dict().values()
    with th.no_grad():
        first[:, 3:] = 0
        weights = [first[:, :3], *others]
        for mine, its in zip(weights, clone.actor.mlp.state_dict().values(), strict=True):
            its.copy_(mine)
    batch = model.dataset_buffer.sample(32)
    with clone.engine.session():
        cloned = clone._update(batch, None)["bc_loss"]
    _, metrics = model._hierarchical_loss(batch, th.ones(32))
    assert metrics["actor_loss"].item() == pytest.approx(cloned.item(), rel=1e-5)


def test_each_network_learns_from_its_part_of_the_loss(walks):
    policy_kwargs = {"optimizer_class": th.optim.SGD}
    model = make(walks, policy_kwargs=policy_kwargs, learning_rate=0.1, weight_temp=0.0)
    batch = model.dataset_buffer.sample(64)
    networks = {"subgoal": model.actor.subgoal_mlp, "actor": model.actor.mlp}
    before = {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}
    steps = (batch.discounts.log() / math.log(0.9)).round()
    ways = (batch.next_observations - batch.observations)[:, :2] * 3 / steps
    losses = {
        "subgoal": (model.actor.subgoals(batch.observations) - ways).square().sum(dim=1).mean(),
        "actor": -model.actor.distribution_towards(batch.observations, ways).log_prob(batch.actions).mean(),
    }
    gradients = {name: th.autograd.grad(losses[name], list(network.parameters())) for name, network in networks.items()}
    with model.engine.session():
        model._update_without_critics(batch, None)
    for name, network in networks.items():
        for start, gradient, now in zip(before[name], gradients[name], network.parameters(), strict=True):
            th.testing.assert_close(now, start - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_networks_are_those_asked_for_and_saved(walks, tmp_path):
    model = make(walks, policy_kwargs={"subgoal_entries": 1, "activation_fn": th.nn.Tanh, "net_arch": [8, 9]})
    layers = [type(layer) for layer in model.actor.subgoal_mlp]
    assert layers == [th.nn.Linear, th.nn.Tanh, th.nn.Linear, th.nn.Tanh, th.nn.Linear]
    assert [len(p) for p in model.actor.subgoal_mlp.parameters()] == [8, 8, 9, 9, 1, 1]
    model.policy.save(tmp_path / "policy")
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    loaded = HierarchicalPolicy.load(tmp_path / "policy")
    assert (loaded.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]).all()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_is_an_algorithm_like_all(check, tmp_path):
    save(reach_demos(8), tmp_path / "demos.hdf5")

    def make_online(env, **kwargs):
        return make(str(tmp_path / "demos.hdf5"), env, n_offline_steps=0, learning_starts=10, **kwargs)

    check(make_online, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.0}, r"gamma=1.0 must be in \(0, 1\)"),
        ({"gamma": 0.0}, r"gamma=0.0 must be in \(0, 1\)"),
        ({"gamma": 1 - 1e-8}, "is neither 1 nor 0"),
        ({"gamma": 0.01, "n_steps": 25}, "n_steps=25 is neither 1 nor 0"),
        ({"replay_buffer_class": NStepReplayBuffer}, "leave replay_buffer_class out"),
        ({"policy_kwargs": {"features_extractor_class": Learnt}}, "standardize_observations=True or VecNormalize"),
        ({"policy_kwargs": {"subgoal_entries": 2.0}}, "must be a whole number"),
        ({"policy_kwargs": {"subgoal_entries": True}}, "must be a whole number"),
        ({"policy_kwargs": {"subgoal_entries": 4}}, r"whole number in \[1, 3\]"),
        ({"policy_kwargs": {"subgoal_entries": 0}}, r"whole number in \[1, 3\]"),
    ],
)
def test_what_it_cannot_do_is_refused(walks, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(walks, **arguments)


def test_critics_are_warned_of_and_judge_all_the_same(walks):
    with pytest.warns(UserWarning, match="action_values=False, with n_steps of") as caught:
        model = make(walks, action_values=True)
    assert caught[0].filename == __file__
    critics = [parameter.clone() for parameter in model.critic.parameters()]
    model.learn(5)
    assert all((a != b).any() for a, b in zip(critics, model.critic.parameters(), strict=True))


def test_observations_and_actions_that_it_cannot_do_are_refused():
    with pytest.raises(ValueError, match="entries of vector observations"):
        make(reach_demos(2, dict_obs=True))
    demos = reach_demos(2)
    discrete = replace(demos, actions=np.zeros(len(demos), np.int64)).with_metadata(action_space=spaces.Discrete(2))
    with pytest.raises(ValueError, match="continuous actions"):
        make(discrete)


def test_no_other_algorithm_trains_it(walks):
    for algorithm in (AWAC, BC, ReBRAC, CalQL):
        with pytest.raises(ValueError, match=f"{algorithm.__name__} learns no subgoals"):
            algorithm(HierarchicalPolicy, None, walks, device="cpu")
    with pytest.raises(ValueError, match="learns from where the data went"):
        pretrain(make(walks), walks, steps=1)


def share_that_arrives(model):
    starts = np.random.default_rng(1).uniform(-1, 1, (100, 2))
    states = np.concatenate([starts, np.zeros((100, 1))], axis=1).astype(np.float32)
    arrived = np.zeros(100, bool)
    for _ in range(60):
        states[:, :2] += SPEED * model.predict(states, deterministic=True)[0]
        arrived |= np.linalg.norm(states[:, :2] - GOAL, axis=1) < 0.15
    return arrived.mean()


def test_learns_to_get_somewhere_from_ways_to_anywhere(walks):
    learning = {"learning_rate": "cos_3e-3", "batch_size": 128, "n_steps": 5, "gamma": 0.97, "expectile": 0.9}
    policy_kwargs = {"net_arch": [32, 32]}
    weighted, cloned = (
        make(walks, policy_kwargs=policy_kwargs, weight_temp=weight_temp, **learning).learn(2000)
        for weight_temp in (1.0, 0.0)
    )
    assert share_that_arrives(weighted) > 0.9
    assert share_that_arrives(cloned) < 0.6  # the mean of all ways
