"""Robots whose legs are alike: frames, and hierarchical policies that see by them."""

import json
import math
from dataclasses import asdict, replace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_ext import AWAC, BC, IQL, CalQL, ReBRAC
from sb3_ext.awac import HierarchicalPolicy
from sb3_ext.common.symmetry import ANT, BodyFrame, RotationalSymmetry, as_symmetry
from sb3_ext.datasets import load

SPEED = 0.1
# x, y; w, x, y, z; velocity; angular velocity; what each of four legs did last; something else
CRAB = RotationalSymmetry(
    quaternion=(2, 3, 4, 5),
    velocity=(6, 7, 8),
    angular_velocity=(9, 10, 11),
    joints=((12,), (13,), (14,), (15,)),
    actions=((1,), (2,), (3,), (0,)),
    joint_signs=((1,), (-1,), (1,), (-1,)),
    action_signs=((1,), (1,), (-1,), (1,)),
)
# Its legs are 60 degrees apart, two joints and an action each
HEXAPOD = RotationalSymmetry(
    quaternion=(3, 4, 5, 6),
    velocity=(7, 8, 9),
    angular_velocity=(10, 11, 12),
    joints=tuple((13 + i, 19 + i) for i in range(6)),
    actions=tuple((5 - i,) for i in range(6)),
    action_signs=tuple(((-1) ** i,) for i in range(6)),
)
# Nothing is alike; it knows no compass all the same
HUMANOID = RotationalSymmetry(
    quaternion=(3, 4, 5, 6), velocity=(7, 8, 9), angular_velocity=(10, 11, 12), joints=((13, 14),), actions=((0, 1),)
)


def quaternion_product(a, b):
    (w, *v), (s, *u) = a, b
    return np.array([w * s - np.dot(v, u), *(w * np.array(u) + s * np.array(v) + np.cross(v, u))])


def about_z(angle):
    return np.array([math.cos(angle / 2), 0, 0, math.sin(angle / 2)])


def rotation(angle):
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def relabelled(obs, action, symmetry, turns):
    """The same robot in the same state, counting legs from another one."""
    n = len(symmetry.joints)
    angle = 2 * math.pi * turns / n
    seen, acted = obs.copy(), action.copy()
    seen[list(symmetry.quaternion)] = quaternion_product(obs[list(symmetry.quaternion)], about_z(angle))
    spin = list(symmetry.angular_velocity)
    seen[spin[:2]] = rotation(-angle) @ obs[spin[:2]]
    for old, new, legs, signs in (
        (obs, seen, symmetry.joints, symmetry.joint_signs),
        (action, acted, symmetry.actions, symmetry.action_signs),
    ):
        for leg in range(n):
            other = (leg + turns) % n
            for mine, its, sign, its_sign in zip(legs[leg], legs[other], signs[leg], signs[other], strict=True):
                new[mine] = old[its] * sign * its_sign
    return seen, acted


def turned_world(obs, angle, symmetry):
    """The same robot in a world that is turned about the origin."""
    seen = obs.copy()
    seen[:2] = rotation(angle) @ obs[:2]
    at = list(symmetry.quaternion)
    seen[at] = quaternion_product(about_z(angle), obs[at])
    at = list(symmetry.velocity)
    seen[at[:2]] = rotation(angle) @ obs[at[:2]]
    return seen


def draw(symmetry, n_entries, n_actions, n, seed=0):
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(n, n_entries))
    at = list(symmetry.quaternion)
    observations[:, at] /= np.linalg.norm(observations[:, at], axis=1, keepdims=True)
    return observations, rng.uniform(-1, 1, (n, n_actions)), rng.normal(size=(n, 2))


def as_tensor(rows):
    return th.as_tensor(np.array(rows), dtype=th.float32)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_an_ant_moves_the_same_whichever_leg_is_the_first(turns):
    with_position = {"exclude_current_positions_from_observation": False, "include_cfrc_ext_in_observation": False}
    env = gym.make("Ant-v5", **with_position)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(10):  # in contact with the ground
        obs, *_ = env.step(rng.uniform(-1, 1, 8))

    def after(obs, action):
        env.reset(seed=0)
        env.unwrapped.set_state(obs[:15], obs[15:])
        for _ in range(3):
            following, *_ = env.step(action)
        return following

    action = rng.uniform(-1, 1, 8)
    seen, acted = relabelled(obs, action, ANT, turns)
    assert turns == 0 or np.abs(seen - obs).max() > 0.1
    expected, _ = relabelled(after(obs, action), action, ANT, turns)
    np.testing.assert_allclose(after(seen, acted), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("symmetry", "n_entries", "n_actions"), [(ANT, 29, 8), (CRAB, 17, 4), (HEXAPOD, 25, 6), (HUMANOID, 17, 2)]
)
def test_a_frame_is_the_same_in_all_directions(symmetry, n_entries, n_actions):
    frame = BodyFrame(symmetry, n_entries)
    observations, actions, ways = draw(symmetry, n_entries, n_actions, 50)
    frame.take_statistics(as_tensor(observations), as_tensor(ways))
    inputs, turns = frame(as_tensor(observations), as_tensor(ways))
    n_legs = len(symmetry.joints)
    assert inputs.shape == (50, frame.n_inputs) and set(turns.tolist()) == set(range(n_legs))
    done = frame.turn_actions(as_tensor(actions), turns)
    for k in range(n_legs):
        others = [relabelled(obs, action, symmetry, k) for obs, action in zip(observations, actions, strict=True)]
        its, its_turns = frame(as_tensor([obs for obs, _ in others]), as_tensor(ways))
        th.testing.assert_close(its, inputs, rtol=1e-4, atol=1e-4)
        assert ((its_turns + k - turns) % n_legs == 0).all()
        th.testing.assert_close(frame.turn_actions(as_tensor([action for _, action in others]), its_turns), done)
    for angle in (0.3, 2.0):
        elsewhere = [turned_world(obs, angle, symmetry) for obs in observations]
        its, its_turns = frame(as_tensor(elsewhere), as_tensor(ways @ rotation(angle).T))
        th.testing.assert_close(its, inputs, rtol=1e-4, atol=1e-4)
        assert (its_turns == turns).all()


@pytest.mark.parametrize(
    ("symmetry", "n_entries", "n_actions"), [(ANT, 29, 8), (CRAB, 17, 4), (HEXAPOD, 25, 6), (HUMANOID, 17, 2)]
)
def test_users_can_relabel_too(symmetry, n_entries, n_actions):
    (obs,), (action,), _ = draw(symmetry, n_entries, n_actions, 1)
    for turns in range(-1, len(symmetry.joints) + 1):
        seen, acted = symmetry.relabel(obs, action, turns)
        expected_obs, expected_action = relabelled(obs, action, symmetry, turns)
        np.testing.assert_allclose(seen, expected_obs)
        np.testing.assert_allclose(acted, expected_action)


def test_a_frame_by_hand():
    frame = BodyFrame(CRAB, 17)
    upright = [5, 6, *about_z(math.pi / 2), 1, 2, 3, 4, 5, 6, 8, 8.5, 9, 9.5, 7]
    # The first leg points north, and so does the way: nothing is turned
    inputs, turns = frame(as_tensor([upright]), as_tensor([[0, 2]]))
    expected = [7, 8, 8.5, 9, 9.5, 0, 0, 1, 4, 5, 6, 2, -1, 3, 2, 0]
    np.testing.assert_allclose(inputs[0], expected, atol=1e-5)
    assert turns.tolist() == [0]
    # To the west the second leg goes first
    inputs, turns = frame(as_tensor([upright]), as_tensor([[-2, 0]]))
    expected = [7, -8.5, -9, -9.5, -8, 0, 0, 1, 5, -4, 6, -1, -2, 3, 2, 0]
    np.testing.assert_allclose(inputs[0], expected, atol=1e-5)
    assert turns.tolist() == [1]
    # Actions of the legs are the second to the fourth entry, and the first; the third leg's is the other way round
    done = frame.turn_actions(as_tensor([[0.4, 0.1, 0.2, 0.3]]), turns)
    th.testing.assert_close(done, as_tensor([[0.1, 0.2, -0.3, -0.4]]))
    th.testing.assert_close(frame.turn_actions(done, -turns), as_tensor([[0.4, 0.1, 0.2, 0.3]]))
    # One on its side sees where up is
    inputs, _ = frame(as_tensor([[0, 0, math.sqrt(0.5), math.sqrt(0.5), *[0.0] * 13]]), as_tensor([[2, 0]]))
    np.testing.assert_allclose(inputs[0, 5:8], [0, 1, 0], atol=1e-6)
    # Far out is as far as 10
    inputs, _ = frame(as_tensor([upright]) * 2, as_tensor([[0, 20]]))
    assert inputs.max() == 10


def test_a_frame_takes_any_number_of_batches():
    frame = BodyFrame(ANT, 29)
    observations, actions, ways = (as_tensor(rows) for rows in draw(ANT, 29, 8, 12))
    inputs, turns = frame(observations, ways)
    its, its_turns = frame(observations.view(3, 4, 29), ways.view(3, 4, 2))
    assert (its.view(12, -1) == inputs).all() and (its_turns.view(12) == turns).all()
    done = frame.turn_actions(actions.view(3, 4, 8), its_turns)
    assert (done.view(12, 8) == frame.turn_actions(actions, turns)).all()


def test_heading_and_scale_are_the_datas():
    frame = BodyFrame(CRAB, 17)
    observations, _, _ = draw(CRAB, 17, 4, 500)
    rng = np.random.default_rng(1)
    yaw = rng.uniform(-math.pi, math.pi, 500)
    observations[:, 2:6] = [about_z(angle) for angle in yaw]
    # A leg, whichever, is 0.6 to the right of the way; those that hardly move head anywhere
    heading = yaw + 0.6 + rng.integers(4, size=500) * math.pi / 2 + rng.normal(0, 0.05, 500)
    lengths = np.ones(500)
    heading[::2], lengths[::2] = yaw[::2], 1e-4
    ways = lengths[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    frame.take_statistics(as_tensor(observations), as_tensor(ways))
    assert frame.heading.item() == pytest.approx(0.6, abs=0.02)
    inputs, _ = frame(as_tensor(observations), as_tensor(ways))
    np.testing.assert_allclose(inputs.mean(dim=0), 0, atol=1e-2)
    # The world's vertical axis is always the robot's
    np.testing.assert_allclose(np.delete(inputs.std(dim=0), [5, 6, 7]), 1, atol=0.02)


# --- Policies -------------------------------------------------------------------------------------------------------


def crab_step(obs, action, rng):
    """Each leg pulls its own way; the robot turns a little by itself."""
    yaw = 2 * math.atan2(obs[5], obs[2])
    pulls = [np.clip(sign * action[at], 0, 1) for ((at,), (sign,)) in zip(CRAB.actions, CRAB.action_signs, strict=True)]
    way = sum(pull * rotation(yaw + leg * math.pi / 2)[:, 0] for leg, pull in enumerate(pulls))
    position = obs[:2] + SPEED * way
    quaternion = about_z(yaw + rng.normal(0, 0.02))
    joints = [sign * pull for pull, (sign,) in zip(pulls, CRAB.joint_signs, strict=True)]
    return np.array([*position, *quaternion, *(SPEED * way), 0, 0, 0, 0, *joints, rng.normal()], np.float32)


@pytest.fixture(scope="module")
def walks_to_the_east():
    """With the first leg ahead, up to 45 degrees to either side."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(150):
        yaw = rng.uniform(-0.7, 0.7)
        obs = np.zeros(17, np.float32)
        obs[:2], obs[2:6] = rng.uniform(-1, 1, 2), about_z(yaw)
        pull = rng.uniform(0.7, 1)
        for step in range(20):
            action = np.clip([rng.normal(0, 0.05), pull, rng.normal(0, 0.05), rng.normal(0, 0.05)], -1, 1)
            following = crab_step(obs, action, rng)
            rows.append([*obs, *following, *action, step == 19])
            obs = following
    table = np.array(rows, np.float32)
    data = load(
        {
            "observations": table[:, :17],
            "next_observations": table[:, 17:34],
            "actions": table[:, 34:38],
            "rewards": table[:, 17],
            "terminations": np.zeros(len(table), bool),
            "truncations": table[:, 38] > 0,
        }
    )
    observation_space = spaces.Box(-np.inf, np.inf, (17,), np.float32)
    return data.with_metadata(observation_space=observation_space, action_space=spaces.Box(-1, 1, (4,), np.float32))


def walks_with_goals(walks):
    is_goal = walks.next_observations[:, 0] > 1.5
    assert 0 < is_goal.sum() < len(walks)
    return replace(
        walks, rewards=is_goal.astype(np.float32), terminations=is_goal, truncations=walks.truncations & ~is_goal
    )


def make(demos, env=None, algorithm=AWAC, symmetry=CRAB, **kwargs):
    policy_kwargs = {"net_arch": [32, 32], "symmetry": symmetry, **kwargs.pop("policy_kwargs", {})}
    defaults = {"n_steps": 3, "gamma": 0.9, "batch_size": 64, "seed": 0, "device": "cpu", "update_backend": "eager"}
    return algorithm("HierarchicalPolicy", env, demos, policy_kwargs=policy_kwargs, **{**defaults, **kwargs})


def share_of_the_way(model):
    """How far crabs of all orientations come in the directions they are asked for, 1 being as far as in the data."""
    rng = np.random.default_rng(1)
    angles, yaws = rng.uniform(-math.pi, math.pi, (2, 100))
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    observations = np.zeros((100, 17), np.float32)
    observations[:, 2:6] = [about_z(yaw) for yaw in yaws]
    policy = model.policy
    for _ in range(10):
        features = policy.features(th.tensor(observations))
        asked = as_tensor(directions) * 0.85 * 3 * SPEED
        per_metre = policy.where(policy.features(th.eye(17)[:2]) - policy.features(th.zeros(1, 17))).diagonal()
        with th.no_grad():
            subgoals = policy.subgoals(asked * per_metre)
            actions = policy.towards(subgoals, th.tensor(observations), features, deterministic=True).numpy()
        observations = np.array([crab_step(*pair, rng) for pair in zip(observations, actions, strict=True)])
    return (observations[:, :2] * directions).sum(axis=1) / (10 * 0.85 * SPEED)


@pytest.mark.parametrize("standardize", [False, True])
def test_walks_to_one_side_teach_all_directions(walks_to_the_east, standardize):
    learning = {"deterministic_actor": True, "learning_rate": "cos_3e-3", "standardize_observations": standardize}
    with_symmetry = share_of_the_way(make(walks_to_the_east, **learning).learn(500))
    without = share_of_the_way(make(walks_to_the_east, symmetry=None, **learning).learn(500))
    assert with_symmetry.mean() > 0.75 and with_symmetry.min() > 0.5
    assert without.mean() < 0.4


@pytest.mark.parametrize("algorithm", [AWAC, IQL, ReBRAC, CalQL])
@pytest.mark.parametrize("memory", [{}, {"memory_radius": 0.1, "subgoal_quantile": 0.8}])
def test_actions_are_the_same_whichever_leg_is_the_first(walks_to_the_east, algorithm, memory):
    demos = walks_with_goals(walks_to_the_east)
    special = {"critic_bc_coef": 0.0} if algorithm is ReBRAC else {}
    settings = {"standardize_observations": True, "policy_kwargs": memory, **special}
    model = make(demos, algorithm=algorithm, **settings).learn(3)
    assert (model.policy.memory is None) == (memory == {})
    observations, _, _ = draw(CRAB, 17, 4, 20)
    observations[:, :2] = 0.3
    expected = model.predict(observations.astype(np.float32), deterministic=True)[0]
    assert np.abs(expected).max() > 0.01
    for k in range(1, 4):
        others = [relabelled(obs, action, CRAB, k) for obs, action in zip(observations, expected, strict=True)]
        seen = np.array([obs for obs, _ in others], np.float32)
        np.testing.assert_allclose(
            model.predict(seen, deterministic=True)[0], [action for _, action in others], atol=1e-4
        )


@pytest.mark.parametrize("standardize", [False, True])
def test_what_is_cloned_by_hand(walks_to_the_east, standardize):
    model = make(walks_to_the_east, deterministic_actor=True, standardize_observations=standardize).learn(1)
    policy = model.policy
    batches = model._sample_batches(model.dataset_buffer, 1, 64)
    # Ways of three steps, within the limits, in metres
    steps = (batches.discounts.log() / math.log(0.9)).round()
    ways = (batches.next_observations - batches.observations)[0, :, :2] * 3 / steps[0]
    std = walks_to_the_east.observations[:, :2].std(axis=0) + 1e-3 if standardize else np.ones(2)
    limits = policy.subgoal_scale.numpy() * std
    ways = th.maximum(th.minimum(ways, as_tensor(limits)), as_tensor(-limits))
    inputs, turns = policy.body(batches.observations[0], ways)
    actions = policy.body.turn_actions(batches.actions[0], turns)
    with th.no_grad():
        expected = (th.tanh(model.low_level.mlp(inputs)) - actions).square().sum(dim=1).mean().item()
    noise = model._noise(1, 64)
    assert model._run_updates(batches, noise).means()["low_level_loss"] == pytest.approx(expected, rel=1e-3)


def test_ways_are_in_metres(walks_to_the_east):
    raw, standardized = (make(walks_to_the_east, standardize_observations=s).learn(1) for s in (False, True))
    assert standardized.policy.features_extractor.scale[0] > 1.3
    for name in ("mean", "scale"):
        its, mine = (getattr(model.policy.body, name)[-2:] for model in (raw, standardized))
        th.testing.assert_close(its, mine, rtol=0.1, atol=0.01)


def test_observations_of_any_precision(walks_to_the_east):
    box = spaces.Box(-np.inf, np.inf, (17,), np.float64)
    model = make(walks_to_the_east.with_metadata(observation_space=box)).learn(2)
    obs = draw(CRAB, 17, 4, 5)[0]
    np.testing.assert_allclose(
        model.predict(obs, deterministic=True)[0],
        model.predict(obs.astype(np.float32), deterministic=True)[0],
        atol=1e-5,
    )


def test_a_compiled_update_is_the_same(walks_to_the_east):
    eager, compiled = (make(walks_to_the_east, update_backend=backend).learn(5) for backend in ("eager", "compiled"))
    assert (eager.policy.body.heading == compiled.policy.body.heading).all()
    for mine, its in zip(eager.low_level.parameters(), compiled.low_level.parameters(), strict=True):
        th.testing.assert_close(mine, its, rtol=1e-3, atol=1e-5)


def test_what_a_frame_knows_is_saved(walks_to_the_east, tmp_path):
    model = make(walks_to_the_east, standardize_observations=True).learn(3)
    assert model.policy.body.heading != 0 and (model.policy.body.scale != 1).all()
    obs = draw(CRAB, 17, 4, 20)[0].astype(np.float32)
    expected = model.predict(obs, deterministic=True)[0]
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    loaded = AWAC.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)
    policy = HierarchicalPolicy.load(tmp_path / "policy")
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], expected)
    loaded = AWAC.load(tmp_path / "model", dataset=walks_to_the_east)
    heading = model.policy.body.heading.clone()
    assert loaded.learn(1).policy.body.heading == heading


def test_a_symmetry_is_a_name_or_arguments():
    assert as_symmetry("ant") is ANT and as_symmetry(CRAB) is CRAB
    plain = yaml.safe_load(json.dumps(asdict(CRAB)))
    assert plain["joints"] == [[12], [13], [14], [15]]
    assert as_symmetry(plain) == CRAB
    del plain["joint_signs"]
    assert as_symmetry(plain).joint_signs == ((1,),) * 4


@pytest.mark.parametrize(
    ("symmetry", "message"),
    [
        ("dog", r"symmetry='dog' must be one of \['ant'\]"),
        (3, "symmetry=3 must be one of"),
        ({"quaternion": [2, 3, 4, 5]}, r"lacks \['actions', 'angular_velocity', 'joints', 'velocity'\]"),
        ({**asdict(CRAB), "joint_sign": 4}, r"has unknown \['joint_sign'\]: its arguments are .*'joint_signs'"),
        ({**asdict(CRAB), "quaternion": (2.0, 3.0, 4.0, 5.0)}, "quaternion=.* must be 4 entries"),
        ({**asdict(CRAB), "velocity": ("6", "7", "8")}, "velocity=.* must be 3 entries"),
        ({**asdict(CRAB), "velocity": ((6, 7), 8, 9)}, "velocity=.* must be 3 entries"),
        ({**asdict(CRAB), "quaternion": (2, 3, 4)}, "quaternion=.* must be 4 entries"),
        ({**asdict(CRAB), "velocity": 6}, "velocity=6 must be 3 entries"),
        ({**asdict(CRAB), "joints": ((12,), (13, 14), (15,), (16,))}, "a list of whole numbers for each leg"),
        ({**asdict(CRAB), "joints": ((12.5,), (13,), (14,), (15,))}, "a list of whole numbers for each leg"),
        ({**asdict(CRAB), "joint_signs": ((1,), (2,), (1,), (1,))}, "joint_signs must be 1 or -1"),
        ({**asdict(CRAB), "action_signs": ((1,), (1,))}, "action_signs must be 1 or -1"),
        ({**asdict(CRAB), "joints": ((12,), (13,)), "joint_signs": None}, "joints are of 2 legs, actions of 4"),
        (replace(CRAB, joints=((12,), (13,), (14,), (17,))), r"different ones in \[2, 16\]"),
        (replace(CRAB, joints=((12,), (13,), (14,), (14,))), "entries of the observation must be different"),
        (replace(CRAB, velocity=(0, 1, 6)), "x and y come first"),
        (replace(CRAB, actions=((0,), (1,), (2,), (4,))), "each of the 4 entries of the action must be one leg's"),
        ("ant", "of 29 entries, these have 17"),
    ],
)
def test_what_is_no_symmetry_of_these_spaces(walks_to_the_east, symmetry, message):
    with pytest.raises(ValueError, match=message):
        make(walks_to_the_east, symmetry=symmetry)


def test_what_it_does_not_go_with(walks_to_the_east):
    demos = walks_to_the_east
    with pytest.raises(ValueError, match="subgoals have 3 entries: subgoal_entries=2"):
        make(demos, policy_kwargs={"subgoal_entries": 3})
    with pytest.raises(ValueError, match="HierarchicalPolicy, symmetry: policy='HierarchicalPolicy'"):
        AWAC("MlpPolicy", None, demos, policy_kwargs={"symmetry": CRAB}, device="cpu")
    with pytest.raises(ValueError, match="HierarchicalPolicy, symmetry: all offline algorithms but BC have one"):
        BC("MlpPolicy", None, demos, policy_kwargs={"symmetry": CRAB}, device="cpu")
    with pytest.raises(ValueError, match=r"are no unit quaternions.*standardize_observations=True"):
        make(demos, dataset_kwargs={"transforms": ["standardize_observations"]})
    env = DummyVecEnv([Crab])
    model = make(demos, n_offline_steps=1).learn(1)
    with pytest.raises(ValueError, match=r"VecNormalize\(\.\.\., norm_obs=False\)"):
        make(demos, VecNormalize(env))
    with pytest.raises(ValueError, match=r"VecNormalize\(\.\.\., norm_obs=False\)"):
        model.set_env(VecNormalize(env))
    assert model.env is None
    model.set_env(VecNormalize(env, norm_obs=False))
    model.learn(30, reset_num_timesteps=False)


def test_bounds_of_legs_that_are_alike_are_the_same():
    observations = spaces.Box(-np.inf, np.inf, (17,))
    # The third leg, the fourth entry, is the other way round
    CRAB.check(observations, spaces.Box(np.float32([0, 0, 0, -1]), np.float32([1, 1, 1, 0])))
    CRAB.check(observations, spaces.Box(-2, 2, (4,)))
    for low, high in (([-1] * 4, [1, 1, 1, 0.5]), ([0] * 4, [1] * 4), ([-1, -0.5, -1, -1], [1, 0.5, 1, 1])):
        with pytest.raises(ValueError, match="have the same bounds, the other way round"):
            CRAB.check(observations, spaces.Box(np.float32(low), np.float32(high)))


def test_ants_with_other_entries_are_refused():
    with_forces = gym.make("Ant-v5", exclude_current_positions_from_observation=False)
    with pytest.raises(ValueError, match=r"of 29 entries, these have 107.*include_cfrc_ext_in_observation=False"):
        ANT.check(with_forces.observation_space, with_forces.action_space)


def test_gymnasiums_ants_start_with_a_noisy_quaternion():
    with_position = {"exclude_current_positions_from_observation": False, "include_cfrc_ext_in_observation": False}
    env = gym.make("Ant-v5", **with_position)
    rows = []
    for seed in range(3):
        obs, _ = env.reset(seed=seed)
        norm = np.linalg.norm(obs[3:7])
        rows.append(obs)
        rows += [env.step(np.zeros(8))[0] for _ in range(5)]
    frame = BodyFrame(ANT, 29)
    frame.check_observations(np.array(rows))
    assert abs(norm - 1) > 0.02
    unit = obs.copy()
    unit[3:7] /= norm
    ways = as_tensor([[1, 0], [1, 0]])
    inputs, _ = frame(as_tensor([obs, unit]), ways)
    th.testing.assert_close(inputs[0], inputs[1])


class Crab(gym.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (17,), np.float32)
    action_space = spaces.Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs, self.steps = np.zeros(17, np.float32), 0
        self.obs[2] = 1
        return self.obs, {}

    def step(self, action):
        self.obs, self.steps = crab_step(self.obs, action, self.np_random), self.steps + 1
        return self.obs, 0.0, False, self.steps == 20, {}
