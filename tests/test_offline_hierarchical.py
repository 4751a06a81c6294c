"""HierarchicalPolicy: where to be n steps later, and how to get there."""

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algo_checks import CHECKS
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_envs import reach_demos, reach_env

from sb3_ext import AWAC, BC, EDAC, IQL, CalQL, ReBRAC
from sb3_ext.bc import pretrain
from sb3_ext.common.buffers import TensorReplayBuffer
from sb3_ext.datasets import load, save
from sb3_ext.datasets.collect import model_expert, rollout_episodes
from sb3_ext.iql import HierarchicalPolicy

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


# What each needs besides
ALGORITHMS = {
    AWAC: {},
    IQL: {"action_values": False},
    ReBRAC: {"critic_bc_coef": 0.0},
    CalQL: {"n_actions": 2},
    EDAC: {"n_critics": 2},
}
EVERY = pytest.mark.parametrize("algorithm", ALGORITHMS)


def make(demos, env=None, algorithm=IQL, policy_kwargs=None, **kwargs):
    model = algorithm(
        kwargs.pop("policy", "HierarchicalPolicy"),
        env,
        demos,
        **{
            **ALGORITHMS[algorithm],
            "n_steps": 3,
            "gamma": 0.9,
            "policy_kwargs": {"net_arch": [16], **(policy_kwargs or {})},
            "batch_size": 16,
            "seed": 0,
            "device": "cpu",
            "update_backend": "eager",
            **kwargs,
        },
    )
    if model._is_hierarchical:
        model._take_subgoal_sizes()  # as the first update does
        if model._memory is not None:
            model._take_goals(model._memory)
    return model


def draw(model, size):
    """One batch, ``(1, size, ...)``, and noise."""
    return model._sample_batches(model.dataset_buffer, 1, size), model._noise(1, size)


def steps_of(batch):
    """As discounts of 0.9 say."""
    return sum(k * (batch.discounts - 0.9**k).abs().lt(1e-4).float() for k in (1, 2, 3))


@pytest.mark.parametrize("standardize", [False, True])
def test_loss_by_hand(walks, standardize):
    model = make(walks, weight_temp=0.5, max_weight=2.0, expectile=0.8, standardize_observations=standardize)
    batches, _ = draw(model, 64)
    batch = batches._replace(**{name: x[0] for name, x in batches._asdict().items() if x is not None})
    mean, std = walks.observations.mean(axis=0), walks.observations.std(axis=0) + 1e-3
    now, later = (
        th.tensor((obs.numpy() - mean) / std, dtype=th.float32) if standardize else obs
        for obs in (batch.observations, batch.next_observations)
    )
    # Ways of fewer than 3 steps count as much more
    taken = steps_of(batch)
    assert set(taken.flatten().tolist()) == {1.0, 2.0, 3.0}
    subgoals = ((later - now)[:, :2] * 3 / taken / model.policy.subgoal_scale).clamp(-1, 1)
    with th.no_grad():
        values, next_values = model.value.v_network(now[:, :2]), model.value.v_network(later[:, :2])
        advantages = batch.rewards + batch.discounts * (1 - batch.dones) * next_values - values
        weights = (0.5 * advantages).exp().clamp(max=2.0)
        where_to = th.distributions.Normal(th.tanh(model.actor.mlp(now[:, :2])), 1.0).log_prob(subgoals).sum(dim=1)
        means = th.tanh(model.low_level.mlp(th.cat([now, subgoals], dim=1)))
        log_probs = th.distributions.Normal(means, 1.0).log_prob(batch.actions).sum(dim=1)
        value_loss = (th.where(advantages < 0, 0.2, 0.8) * advantages**2).mean()
    metrics = model._run_updates(batches, None).means()
    assert metrics["actor_loss"] == pytest.approx(-(weights.squeeze(1) * where_to).mean().item(), rel=1e-4)
    assert metrics["low_level_loss"] == pytest.approx(-log_probs.mean().item(), rel=1e-4)
    assert metrics["value_loss"] == pytest.approx(value_loss.item(), rel=1e-4)
    assert metrics["weight_mean"] == pytest.approx(weights.mean().item(), rel=1e-4)


@EVERY
def test_the_high_level_is_the_algorithm_itself_on_subgoals(walks, algorithm):
    model = make(walks, algorithm=algorithm, standardize_observations=True)
    of_subgoals = walks.with_metadata(observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float32))
    of_subgoals = replace(of_subgoals, frames=walks.frames[:, :2])
    flat = make(of_subgoals, algorithm=algorithm, policy="MlpPolicy")
    flat.policy.load_state_dict(model.policy.high_level.state_dict())
    for _ in range(2):  # ReBRAC's actor learns at each second update
        batches, noise = draw(model, 32)
        now, later = model.policy.features(batches.observations), model.policy.features(batches.next_observations)
        ways = (later - now)[..., :2] * 3 / steps_of(batches)
        replaced = {"observations": now[..., :2], "next_observations": later[..., :2]}
        if algorithm is ReBRAC:
            nothing = th.zeros_like(ways)
            batches_of_flat = flat._sample_batches(flat.dataset_buffer, 1, 32)
            replaced |= {"next_actions": nothing, "has_next_action": nothing[..., :1]}
            same = {name: getattr(batches, name) for name in ("dones", "rewards", "discounts")}
            its = batches_of_flat._replace(actions=model.policy.subgoals(ways), **same, **replaced)
        else:
            its = batches._replace(actions=model.policy.subgoals(ways), **replaced)
        flat._run_updates(its, noise)
        model._run_updates(batches, noise)
    learnt = model.policy.high_level.state_dict()
    for name, weights in flat.policy.state_dict().items():
        th.testing.assert_close(learnt[name], weights, rtol=1e-5, atol=1e-6)


@EVERY
def test_actions_that_ignore_the_subgoal_are_cloned(walks, algorithm):
    model = make(walks, algorithm=algorithm)
    clone = BC("MlpPolicy", None, walks, policy_kwargs={"net_arch": [16]}, seed=1, device="cpu", update_backend="eager")
    assert model.low_level.is_deterministic == (algorithm is ReBRAC)
    clone.actor.is_deterministic = clone.deterministic_actor = model.low_level.is_deterministic
    first, *others = model.low_level.mlp.state_dict().values()
    with th.no_grad():
        first[:, 3:] = 0
        weights = [first[:, :3], *others]
        for mine, its in zip(weights, clone.actor.mlp.state_dict().values(), strict=True):
            its.copy_(mine)
    batches, noise = draw(model, 32)
    cloned = clone._run_updates(batches, None).means()["bc_loss"]
    assert model._run_updates(batches, noise).means()["low_level_loss"] == pytest.approx(cloned, rel=1e-5)
    for mine, its in zip(others, list(clone.actor.mlp.state_dict().values())[1:], strict=True):
        th.testing.assert_close(mine, its)


@pytest.mark.parametrize("policy", ["HierarchicalPolicy", "MlpPolicy"])
def test_regresses_where_the_actor_does(walks, policy, tmp_path):
    model = make(walks, deterministic_actor=True, policy=policy)
    if policy == "HierarchicalPolicy":
        assert model.low_level.is_deterministic and not make(walks).low_level.is_deterministic
    model.policy.save(tmp_path / "policy")
    loaded = type(model.policy).load(tmp_path / "policy")
    obs = np.ones((5, 3), np.float32)
    assert (loaded.predict(obs)[0] == loaded.predict(obs)[0][0]).all()


def test_a_way_of_fewer_steps_is_as_much_longer(walks):
    model = make(walks)
    batches, _ = draw(model, 200)
    # One metre a step, however many steps there were
    later = batches.observations.clone()
    later[..., :2] += steps_of(batches)
    assert set(steps_of(batches).flatten().tolist()) == {1.0, 2.0, 3.0}
    _, _, ways = model._ways(batches._replace(next_observations=later))
    th.testing.assert_close(ways, th.full((1, 200, 2), 3.0))


@pytest.mark.parametrize("standardize", [False, True])
def test_nearly_all_ways_are_within_the_limits(walks, standardize):
    model = make(walks, standardize_observations=standardize)
    batches, _ = draw(model, 20_000)
    _, _, ways = model._ways(batches)
    outside = (ways.abs() > model.policy.subgoal_scale).float().mean(dim=1)
    assert (outside < 0.004).all()
    # and not by far
    assert (ways.abs().quantile(0.99, dim=1) > 0.8 * model.policy.subgoal_scale).all()
    assert model.policy.subgoals(ways * 100).abs().max() == 1


def test_subgoals_are_of_the_same_size_ever_after(walks, tmp_path):
    model = make(walks)
    model.learn(1)
    scale = model.policy.subgoal_scale.clone()
    model.save(tmp_path / "model")
    larger = replace(walks, frames=walks.frames * 3)
    loaded = IQL.load(tmp_path / "model", dataset=larger)
    loaded.learn(2)
    th.testing.assert_close(loaded.policy.subgoal_scale, scale)
    assert (make(larger).policy.subgoal_scale > 2 * scale).all()
    # but for other steps
    farther = IQL.load(tmp_path / "model", dataset=walks, n_steps=9)
    farther.learn(2)
    assert (farther.policy.subgoal_scale > 1.5 * scale).all()


def test_the_first_update_takes_the_scale(walks):
    model = make(walks)
    scale = model.policy.subgoal_scale.clone()
    model.policy.subgoal_scale.fill_(1)
    model._sized_for = None
    model.learn(1)
    th.testing.assert_close(model.policy.subgoal_scale, scale, rtol=0.05, atol=0)


@pytest.mark.parametrize("is_set_later", [False, True])
def test_subgoals_are_of_normalised_observations(is_set_later):
    demos = reach_demos(20)
    env = VecNormalize(DummyVecEnv([reach_env]), norm_reward=False)
    raw = make(demos).policy.subgoal_scale
    model = IQL("HierarchicalPolicy", None if is_set_later else env, demos, n_steps=3, seed=0, device="cpu")
    if is_set_later:
        model.set_env(env)
    normalised = model.learn(1).policy.subgoal_scale
    assert not 0.9 < env.obs_rms.var[0] < 1.1
    # The second entry, the goal, never changes
    assert normalised[0].item() == pytest.approx(raw[0].item() / env.obs_rms.var[0] ** 0.5, rel=1e-3)
    assert normalised[1] == 1


def test_the_low_level_gets_subgoals_that_the_high_level_can_have(walks):
    model = make(walks)
    model.policy.subgoal_scale *= 0.1
    seen = []
    distribution = model.low_level.distribution
    model.low_level.distribution = lambda inputs: seen.append(inputs) or distribution(inputs)
    model._run_updates(*draw(model, 50))
    assert seen[0].shape == (50, 5)
    assert seen[0][:, 3:].abs().max() == 1


def test_the_low_levels_optimizer_is_saved(walks, tmp_path):
    model = make(walks).learn(3)
    model.save(tmp_path / "model")
    saved, loaded = model.low_level.optimizer, IQL.load(tmp_path / "model").low_level.optimizer
    for mine, its in zip(saved.state.values(), loaded.state.values(), strict=True):
        th.testing.assert_close(mine["exp_avg"], its["exp_avg"])
    assert len(saved.state) == 5


def test_steps_are_counted_by_the_discount(walks):
    model = make(walks, gamma=0.97)
    batches, _ = draw(model, 100)
    later = batches.observations.clone()
    later[..., :2] += (batches.discounts.log() / math.log(0.97)).round()
    _, _, ways = model._ways(batches._replace(next_observations=later))
    th.testing.assert_close(ways, th.full((1, 100, 2), 3.0))


def test_the_high_level_sees_the_first_entries_alone(walks):
    model = make(walks)
    obs = th.randn(5, 3)
    other = obs.clone()
    other[:, 2:] += 1
    policy = model.policy
    assert (policy.where(policy.features(obs)) == policy.where(policy.features(other))).all()
    assert (policy(obs, deterministic=True) != policy(other, deterministic=True)).any()


@pytest.mark.parametrize("deterministic", [True, False])
def test_actions_lead_to_the_subgoal_that_the_policy_has(walks, deterministic):
    model = make(walks, standardize_observations=True)
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    features = model.policy.features(th.tensor(obs))
    with th.no_grad():
        subgoals = model.actor(features[:, :2], deterministic=True)
        th.manual_seed(0)
        expected = model.low_level(th.cat([features, subgoals], dim=1), deterministic).clamp(-1, 1)
        other = model.low_level(th.cat([features, -subgoals], dim=1), deterministic=True)
    th.manual_seed(0)
    actions = model.predict(obs, deterministic=deterministic)[0]
    np.testing.assert_allclose(actions, expected, rtol=1e-6)
    assert (actions != other.numpy()).any()


def test_all_subgoals_that_are_played_are_of_a_length_that_data_have(walks, tmp_path):
    model = make(walks, policy_kwargs={"subgoal_quantile": 0.75})
    policy = model.policy
    lengths = policy.subgoals(model._ways(draw(model, 20_000)[0])[2]).norm(dim=-1)
    assert (lengths < policy.subgoal_length).float().mean().item() == pytest.approx(0.75, abs=0.02)
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    features = policy.features(th.tensor(obs))
    with th.no_grad():
        learnt = policy.high_level(features[:, :2], deterministic=True)
        played = learnt / learnt.norm(dim=1, keepdim=True) * policy.subgoal_length
        played = played / played.abs().max(dim=1, keepdim=True).values.clamp(min=1)
        expected = model.low_level(th.cat([features, played], dim=1), deterministic=True).clamp(-1, 1)
    assert learnt.norm(dim=1).std() > 0.01
    actions = model.predict(obs, deterministic=True)[0]
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model")
    assert (IQL.load(tmp_path / "model").predict(obs, deterministic=True)[0] == actions).all()
    policy.save(tmp_path / "policy")
    assert (HierarchicalPolicy.load(tmp_path / "policy").predict(obs, deterministic=True)[0] == actions).all()
    # The longest of all have the same direction within the limits
    policy.subgoal_length.fill_(2**0.5)
    longest = policy.chosen_subgoals(features[:, :2])
    np.testing.assert_allclose(longest.abs().max(dim=1).values.detach(), 1, rtol=1e-6)
    np.testing.assert_allclose(th.cosine_similarity(longest, learnt).detach(), 1, rtol=1e-5)


def test_another_quantile_is_another_length(walks):
    model = make(walks, policy_kwargs={"subgoal_quantile": 0.5})
    length = model.policy.subgoal_length.clone()
    model.policy.subgoal_quantile = 0.9
    model.learn(1)
    assert model.policy.subgoal_length > 1.05 * length


def test_lengths_of_subgoals_are_for_playing_alone(walks):
    losses = []
    for quantile in (None, 0.9):
        model = make(walks, policy_kwargs={"subgoal_quantile": quantile})
        losses.append(model._run_updates(*draw(model, 64)).means())
    assert losses[0] == losses[1]


def test_a_subgoal_of_no_length_stays_one(walks):
    policy = make(walks, policy_kwargs={"subgoal_quantile": 0.5}).policy
    with th.no_grad():
        for parameter in policy.high_level.actor.mlp[-1].parameters():
            parameter.zero_()
    assert (policy.chosen_subgoals(th.zeros(3, 2)) == 0).all()


def test_training_mode_reaches_both_levels(walks):
    model = make(walks)
    for mode in (True, False, True):
        model.policy.set_training_mode(mode)
        assert all(module.training == mode for module in (model.policy, model.low_level, model.actor, model.critic))


def test_networks_are_those_asked_for_and_saved(walks, tmp_path):
    model = make(
        walks,
        policy_kwargs={
            "subgoal_entries": 1,
            "activation_fn": th.nn.Tanh,
            "net_arch": [8, 9],
            "low_level_net_arch": [7],
            "n_critics": 3,
            "optimizer_class": th.optim.SGD,
        },
    )
    for network in (model.actor.mlp, model.value.v_network):
        assert [type(layer) for layer in network] == [th.nn.Linear, th.nn.Tanh, th.nn.Linear, th.nn.Tanh, th.nn.Linear]
        assert [len(p) for p in network.parameters()] == [8, 8, 9, 9, 1, 1]
    assert [len(p) for p in model.low_level.mlp.parameters()] == [7, 7, 2, 2]
    assert model.critic.n_critics == 3
    assert isinstance(model.low_level.optimizer, th.optim.SGD)
    model.policy.save(tmp_path / "policy")
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    loaded = HierarchicalPolicy.load(tmp_path / "policy")
    assert (loaded.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]).all()
    # as large as the high level's actor
    assert [len(p) for p in make(walks).low_level.mlp.parameters()] == [16, 16, 2, 2]
    arch = {"net_arch": {"pi": [4], "qf": [5]}}
    assert [len(p) for p in make(walks, policy_kwargs=arch, algorithm=AWAC).low_level.mlp.parameters()] == [4, 4, 2, 2]


def test_all_of_it_learns_at_the_actors_rate(walks):
    model = make(walks, actor_learning_rate="lin_1e-2", learning_rate=1e-3)
    model.learn(2)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in (model.low_level.optimizer, model.actor.optimizer)]
    assert rates == [1e-2, 1e-2]
    assert model.value.optimizer.param_groups[0]["lr"] == 1e-3


def test_entropy_aims_at_the_subgoals_dimensions():
    model = make(reach_demos(4), algorithm=CalQL, policy_kwargs={"subgoal_entries": 1})
    assert model.target_entropy == -1


@EVERY
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_is_an_algorithm_like_all(check, algorithm, tmp_path):
    save(reach_demos(8), tmp_path / "demos.hdf5")

    def make_online(env, **kwargs):
        where = {"n_offline_steps": 0, "learning_starts": 10, "algorithm": algorithm}
        return make(str(tmp_path / "demos.hdf5"), env, **where, **kwargs)

    check(make_online, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.0}, r"gamma=1.0 must be in \(0, 1\)"),
        ({"gamma": 0.0}, r"gamma=0.0 must be in \(0, 1\)"),
        ({"gamma": 1 - 1e-8}, "is neither 1 nor 0"),
        ({"gamma": 0.01, "n_steps": 25}, "counts n_steps=25 by discounts"),
        ({"n_steps": 1}, "20 to 50"),
        ({"n_steps": 2.5}, "must be a whole number of at least 1"),
        ({"policy_kwargs": {"subgoal_dim": 2}}, r"no arguments \['subgoal_dim'\], but .*'subgoal_entries'"),
        ({"replay_buffer_class": NStepReplayBuffer}, "leave replay_buffer_class=NStepReplayBuffer out"),
        ({"replay_buffer_class": TensorReplayBuffer}, "leave replay_buffer_class=TensorReplayBuffer out"),
        ({"policy_kwargs": {"low_level_net_arch": {"pi": [4]}}}, "must be a list of sizes"),
        ({"policy_kwargs": {"features_extractor_class": Learnt}}, "standardize_observations=True or VecNormalize"),
        ({"policy_kwargs": {"subgoal_entries": 2.0}}, "must be a whole number"),
        ({"policy_kwargs": {"subgoal_entries": True}}, "must be a whole number"),
        ({"policy_kwargs": {"subgoal_entries": 4}}, r"whole number in \[1, 3\]"),
        ({"policy_kwargs": {"subgoal_entries": 0}}, r"whole number in \[1, 3\]"),
        ({"policy_kwargs": {"subgoal_quantile": 0.0}}, r"subgoal_quantile=0.0 must be in \(0, 1\]"),
        ({"policy_kwargs": {"subgoal_quantile": True}}, r"subgoal_quantile=True must be in \(0, 1\]"),
        ({"policy_kwargs": {"subgoal_quantile": "0.8"}}, r"subgoal_quantile='0.8' must be in \(0, 1\]"),
        ({"policy_kwargs": {"subgoal_quantile": 85}}, r"subgoal_quantile=85 must be in \(0, 1\]"),
        ({"policy_kwargs": {"memory_radius": 0}}, r"memory_radius=0 must be a number in \(0, 1\)"),
        ({"policy_kwargs": {"memory_radius": math.nan}}, "memory_radius=nan must be a number"),
        ({"policy_kwargs": {"memory_radius": True}}, "memory_radius=True must be a number"),
        ({"policy_kwargs": {"memory_radius": "0.1"}}, "memory_radius='0.1' must be a number"),
        ({"policy_kwargs": {"memory_radius": 1}}, "a share of the longest subgoals"),
        ({"algorithm": ReBRAC, "critic_bc_coef": 0.01}, "critic_bc_coef=0 with HierarchicalPolicy"),
    ],
)
def test_what_it_cannot_do_is_refused(walks, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(walks, **arguments)


def test_what_is_changed_on_the_model_is_checked_too(walks):
    model = make(walks)
    model.gamma = 1.0
    with pytest.raises(ValueError, match=r"gamma=1\.0 must be in"):
        model.learn(1)


def test_entries_that_never_change_are_no_subgoals(walks):
    with pytest.raises(ValueError, match="those hardly ever change"):
        make(replace(walks, frames=walks.frames * np.float32([0, 0, 1])))
    model = make(replace(walks, frames=walks.frames * np.float32([1, 0, 1])))
    assert model.policy.subgoal_scale[1] == 1
    assert np.isfinite(model.learn(2).predict(np.zeros((1, 3), np.float32))[0]).all()


def test_critics_of_iql_judge_subgoals(walks):
    model = make(walks, action_values=True)
    critics = [parameter.clone() for parameter in model.critic.parameters()]
    model.learn(5)
    assert all((a != b).any() for a, b in zip(critics, model.critic.parameters(), strict=True))


def test_observations_and_actions_that_it_cannot_do_are_refused():
    with pytest.raises(ValueError, match="MultiInputPolicy for Dicts"):
        make(reach_demos(2, dict_obs=True))
    demos = reach_demos(2)
    discrete = replace(demos, actions=np.zeros(len(demos), np.int64)).with_metadata(action_space=spaces.Discrete(2))
    with pytest.raises(ValueError, match="continuous actions"):
        make(discrete)


def test_no_other_algorithm_trains_it(walks):
    for algorithm in (AWAC, BC, ReBRAC, CalQL):
        with pytest.raises(ValueError, match=f"{algorithm.__name__} does not learn with that HierarchicalPolicy"):
            algorithm(HierarchicalPolicy, None, walks, device="cpu")
    with pytest.raises(ValueError, match="BC has no HierarchicalPolicy, but MlpPolicy, CnnPolicy"):
        BC("HierarchicalPolicy", None, walks, device="cpu")
    with pytest.raises(TypeError, match="learns from where the data went"):
        pretrain(make(walks), walks, steps=1)


def share_that_arrives(model):
    starts = np.random.default_rng(1).uniform(-1, 1, (100, 2))
    states = np.concatenate([starts, np.zeros((100, 1))], axis=1).astype(np.float32)
    arrived = np.zeros(100, bool)
    for _ in range(60):
        states[:, :2] += SPEED * model.predict(states, deterministic=True)[0]
        arrived |= np.linalg.norm(states[:, :2] - GOAL, axis=1) < 0.15
    return arrived.mean()


# With rewards at the goal alone: values start at 0, and where there are no data that had better not be too much
LEARNING = {
    AWAC: {"awac_lambda": 0.1},
    IQL: {"weight_temp": 10.0, "expectile": 0.9},
    ReBRAC: {"actor_bc_coef": 0.1},
    CalQL: {"cql_alpha": 0.2, "n_actions": 4},
}


@pytest.mark.parametrize("algorithm", LEARNING)
def test_learns_to_get_somewhere_from_ways_to_anywhere(walks, algorithm):
    learning = {"learning_rate": "cos_3e-3", "batch_size": 128, "n_steps": 5, "gamma": 0.97, "tau": 0.02}
    at_the_goal = replace(walks, rewards=walks.rewards + 1)
    policy_kwargs = {"net_arch": [32, 32]}
    model = make(at_the_goal, algorithm=algorithm, policy_kwargs=policy_kwargs, **learning, **LEARNING[algorithm])
    assert share_that_arrives(model.learn(5000)) > 0.8


def test_the_mean_of_all_ways_leads_nowhere(walks):
    learning = {"learning_rate": "cos_3e-3", "batch_size": 128, "n_steps": 5, "gamma": 0.97, "weight_temp": 0.0}
    model = make(walks, policy_kwargs={"net_arch": [32, 32]}, **learning)
    assert share_that_arrives(model.learn(2000)) < 0.6


# --- Memory ---------------------------------------------------------------------------------------------------------


def with_memory(demos, **kwargs):
    return make(demos, policy_kwargs={"memory_radius": 0.2}, **kwargs)


def test_a_memory_knows_where_the_data_were_rewarded(walks):
    model = with_memory(walks, standardize_observations=True)
    memory = model.policy.memory
    mean, std = walks.observations[:, :2].mean(axis=0), walks.observations[:, :2].std(axis=0) + 1e-3
    rewarded = (walks.next_observations[walks.rewards == 0, :2] - mean) / std / model.policy.subgoal_scale.numpy()
    assert set(map(tuple, memory.places.numpy().round(3))) <= set(map(tuple, rewarded.round(3)))
    ways = model.policy.subgoals(model._ways(draw(model, 20_000)[0])[2])
    assert memory.stride.item() == pytest.approx(ways.norm(dim=-1).median().item(), rel=0.05)
    assert memory.n_steps == 3
    # For as many steps as the model has
    model.n_steps = 5
    model.learn(1)
    assert memory.n_steps == 5


def test_rewarded_places_are_normalised_as_observations_are():
    demos = reach_demos(20)
    env = VecNormalize(DummyVecEnv([reach_env]), norm_reward=False)
    model = IQL(
        "HierarchicalPolicy",
        env,
        demos,
        n_steps=3,
        policy_kwargs={"memory_radius": 0.2, "subgoal_entries": 1},
        seed=0,
        device="cpu",
    )
    model.learn(1)
    before = check_goals(model, env, demos)
    # And as they are when statistics have moved
    model.n_offline_steps, model.learning_starts = 1, 10
    model.learn(400, reset_num_timesteps=False)
    assert abs(check_goals(model, env, demos) - before) > 0.1
    # Not from other steps of the environment: those of evaluation leave statistics alone
    env.training = False
    places = model.policy.memory.places.clone()
    model.learn(20, reset_num_timesteps=False)
    assert (model.policy.memory.places == places).all()


def check_goals(model, env, demos):
    rewarded = env.normalize_obs(demos.next_observations[demos.rewards == 1])[:, 0]
    places = model.policy.memory.places * model.policy.subgoal_scale
    # Statistics of the last step are newer than those of the last update
    assert places.min().item() == pytest.approx(rewarded.min(), abs=0.02)
    assert places.max().item() == pytest.approx(rewarded.max(), abs=0.02)
    return rewarded.mean()


def test_a_loaded_model_takes_the_goals_of_other_data(walks, tmp_path):
    model = with_memory(walks).learn(1)
    model.save(tmp_path / "model")
    moved = replace(walks, frames=walks.frames + np.float32([5, 0, 0]))
    loaded = IQL.load(tmp_path / "model", dataset=moved)
    assert (loaded.policy.memory.places == model.policy.memory.places).all()
    loaded.learn(1)
    assert (loaded.policy.subgoal_scale == model.policy.subgoal_scale).all()
    shift = (loaded.policy.memory.places - model.policy.memory.places) * model.policy.subgoal_scale
    th.testing.assert_close(shift, th.tensor([5.0, 0.0]).expand_as(shift), rtol=1e-4, atol=1e-4)


def test_a_search_has_the_length_of_all_subgoals_that_are_played(walks):
    model = make(walks, policy_kwargs={"memory_radius": 0.2, "subgoal_quantile": 0.9})
    assert model.policy.memory.stride == model.policy.subgoal_length


@EVERY
def test_a_memory_changes_no_update_and_no_first_step(walks, algorithm):
    one, other = make(walks, algorithm=algorithm).learn(20), with_memory(walks, algorithm=algorithm).learn(20)
    for mine, its in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        th.testing.assert_close(mine, its)
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    actions, state = other.predict(obs, deterministic=True)
    np.testing.assert_allclose(one.predict(obs, deterministic=True)[0], actions, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other.policy(th.tensor(obs), deterministic=True).detach(), actions, rtol=1e-5)
    assert one.predict(obs, state=None)[1] is None
    assert [len(column) for column in state] == [5] * 4


def test_predictions_take_and_return_what_is_remembered(walks, tmp_path):
    model = with_memory(walks, standardize_observations=True).learn(30)
    policy = model.policy
    # At the goal, and then beside it
    way = np.array([[*GOAL, 0], [*(GOAL + 0.3), 0], [*(GOAL - 0.3), 0]], np.float32)
    state, played = None, []
    for obs in way:
        actions, state = model.predict(obs, state=state, episode_start=np.zeros(1, bool), deterministic=True)
        assert actions.shape == (2,)
        played.append(actions)
    features = policy.features(th.tensor(way))
    with th.no_grad():
        where = policy.where(features)
        subgoals, _ = policy.memory(policy.chosen_subgoals(where[:1]), where[:1] / policy.subgoal_scale)
        expected = model.low_level(th.cat([features[:1], subgoals], dim=1), deterministic=True)
    np.testing.assert_allclose(played[0], expected[0], rtol=1e-5)
    own = model.predict(way, deterministic=True)[0]
    np.testing.assert_allclose(played[0], own[0], rtol=1e-5)
    assert (np.abs(np.array(played) - own).max(axis=1)[1:] > 1e-3).all()
    # Forgotten where an episode starts
    again, _ = model.predict(way[2], state=state, episode_start=np.ones(1, bool), deterministic=True)
    np.testing.assert_allclose(again, own[2], rtol=1e-5)

    model.save(tmp_path / "model")
    policy.save(tmp_path / "policy")
    for loaded in (IQL.load(tmp_path / "model"), HierarchicalPolicy.load(tmp_path / "policy")):
        expected, _ = model.predict(way[1], state=state, deterministic=True)
        np.testing.assert_array_equal(loaded.predict(way[1], state=state, deterministic=True)[0], expected)


def test_draws_with_a_memory_are_those_of_the_low_level(walks):
    model = with_memory(walks).learn(3)
    obs = np.zeros((4000, 3), np.float32)
    drawn, _ = model.predict(obs, deterministic=False)
    mean, _ = model.predict(obs, deterministic=True)
    assert drawn.std(axis=0).min() > 0.1
    np.testing.assert_allclose(np.median(drawn, axis=0), mean[0], atol=0.1)


def test_actions_are_the_environments_with_a_memory(walks):
    space = spaces.Box(-3, 3, (2,), np.float32)
    model = with_memory(replace(walks, actions=3 * walks.actions).with_metadata(action_space=space))
    obs = np.zeros((2, 3), np.float32)
    with th.no_grad():
        scaled = model.policy(th.tensor(obs), deterministic=True)
    np.testing.assert_allclose(model.predict(obs, deterministic=True)[0], 3 * scaled, rtol=1e-5)


def test_data_without_goals_are_refused(walks):
    dense = np.arange(len(walks), dtype=np.float32)
    is_success = walks.rewards == 0
    alive = (~is_success).astype(np.float32)
    goes_on = replace(walks, truncations=walks.truncations | is_success, terminations=np.zeros(len(walks), bool))
    for demos in (replace(walks, rewards=dense), replace(walks, rewards=alive), goes_on):
        with pytest.raises(ValueError, match=r"episodes that end with the higher one.*leave memory_radius out"):
            IQL("HierarchicalPolicy", None, demos, n_steps=3, policy_kwargs={"memory_radius": 0.2}, device="cpu")
        make(demos)


def test_the_radius_can_be_changed(walks, tmp_path):
    model = with_memory(walks).learn(1)
    model.policy.memory.radius = 0.3
    assert model.policy.memory_radius == 0.3
    model.policy.save(tmp_path / "policy")
    assert HierarchicalPolicy.load(tmp_path / "policy").memory.radius == 0.3
    assert make(walks).policy.memory_radius is None


def test_predictions_with_a_memory_are_not_in_training_mode(walks):
    model = with_memory(walks)
    model.policy.set_training_mode(True)
    model.predict(np.zeros(3, np.float32))
    assert not model.policy.training


def test_a_tuple_is_no_observation(walks):
    for model in (make(walks), with_memory(walks)):
        with pytest.raises(ValueError, match="mixing Gym API with SB3 VecEnv API"):
            model.predict((np.zeros(3, np.float32), {}))


def test_an_expert_remembers_its_episodes(walks, tmp_path):
    model = with_memory(walks).learn(1)
    model.save(tmp_path / "model")
    env = HiddenGoal()
    expert = model_expert(str(tmp_path / "model.zip"), "iql", env)
    data = rollout_episodes(env, expert, n_episodes=2, only_successful=False)
    state = None
    for obs, action, ends in zip(data.observations, data.actions, data.ends, strict=True):
        expected, state = model.predict(obs, state, deterministic=True)
        np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-6)
        state = None if ends else state
    assert (model.predict(data.observations, deterministic=True)[0] != data.actions).any()


class HiddenGoal(gym.Env):
    """The point of `walks`, 60 steps long, with a goal near where the data's was that no observation tells."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.goal, self.steps = np.zeros(2), GOAL + self.np_random.uniform(-0.2, 0.2, 2), 0
        return self._observation(), {}

    def _observation(self):
        return np.array([*self.position, 0], np.float32)

    def step(self, action):
        self.position, self.steps = self.position + SPEED * action, self.steps + 1
        success = bool(np.linalg.norm(self.position - self.goal) < 0.07)
        return self._observation(), float(success), success, self.steps == 60, {}


def test_a_hidden_goal_is_found_by_one_that_remembers(walks):
    env = make_vec_env(HiddenGoal, n_envs=4, seed=0)
    learning = {"learning_rate": "cos_3e-3", "batch_size": 128, "n_steps": 5, "gamma": 0.97, **LEARNING[IQL]}
    arrived = {}
    for radius in (None, 0.2):
        model = make(walks, policy_kwargs={"net_arch": [32, 32], "memory_radius": radius}, **learning).learn(3000)
        arrived[radius], _ = evaluate_policy(model, env, n_eval_episodes=60, deterministic=True)
    print(arrived)
    assert arrived[0.2] > arrived[None] + 0.2
