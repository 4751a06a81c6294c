"""The in-memory form: columns, episodes, checks, and the buffers that it fills."""

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from line_envs import (
    ACTIONS,
    BOX,
    EPISODES,
    HIGH,
    LOW,
    MIDDLE,
    SCRIPTED,
    DictLineEnv,
    assert_consistent,
    assert_equal,
    counted_dataset,
    expert_of,
    make_arrays,
    make_episode,
    rollout,
    with_entry,
)
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from sb3_ext.datasets import Dataset, DatasetError, load, rollout_episodes
from sb3_ext.datasets.checks import check_spaces, find_jumps
from sb3_ext.datasets.dataset import COLUMNS, Metadata
from sb3_ext.datasets.replay_buffer import fill_buffer


def test_arrays_are_kept_as_they_are():
    arrays = make_arrays()
    transitions = Dataset.from_arrays(arrays)
    assert len(transitions) == 6
    for name in COLUMNS:
        np.testing.assert_array_equal(
            getattr(transitions, name), np.asarray(arrays[name], getattr(transitions, name).dtype)
        )
    assert transitions.rewards.dtype == np.float32


def test_jumps_between_rows_are_the_ends_of_truncated_episodes():
    arrays = make_arrays()
    arrays["next_observations"] = with_entry(arrays["next_observations"], 2, 7.0)
    arrays["terminations"] = np.array([False] * 4 + [True, False])
    with pytest.warns(UserWarning, match="1 rows lead elsewhere"):
        transitions = Dataset.from_arrays(arrays)
    assert transitions.ends.tolist() == [False, False, True, False, True, True]


def test_missing_truncations_mean_no_time_limit():
    arrays = make_arrays()
    del arrays["truncations"]
    np.testing.assert_array_equal(Dataset.from_arrays(arrays).truncations, np.zeros(6, bool))


def test_flags_and_rewards_may_be_numbers_in_columns():
    arrays = make_arrays(
        rewards=[[0], [1]] * 3, terminations=np.ones((6, 1)), truncations=[0, 1, 0, 1, 0, 0], actions=[[1.0, 5.0]] * 6
    )
    transitions = Dataset.from_arrays(arrays)
    np.testing.assert_array_equal(transitions.rewards, [0, 1] * 3)
    np.testing.assert_array_equal(transitions.terminations, [True] * 6)
    np.testing.assert_array_equal(transitions.truncations, [False, True, False, True, False, False])


def test_missing_column_is_named():
    arrays = make_arrays()
    del arrays["next_observations"]
    with pytest.raises(DatasetError, match=r"here: missing columns \['next_observations'\], unknown columns \[\]"):
        Dataset.from_arrays(arrays, source="here")


def test_unknown_column_is_named():
    with pytest.raises(DatasetError, match=r"missing columns \[\], unknown columns \['dones'\]; .* need the columns"):
        Dataset.from_arrays(make_arrays(dones=np.zeros(6)))


@pytest.mark.parametrize("name", COLUMNS)
def test_column_of_another_length_is_refused(name):
    with pytest.raises(DatasetError, match=rf"columns differ in length: .*'{name}': \{{5\}}"):
        Dataset.from_arrays(make_arrays(**{name: make_arrays()[name][:5]}))


def test_dict_observations_of_unequal_lengths_are_refused():
    observations = {"a": np.zeros((6, 1)), "b": np.zeros((5, 1))}
    with pytest.raises(DatasetError, match=r"columns differ in length: \{'observations': \{5, 6\}"):
        Dataset.from_arrays(make_arrays(observations=observations, next_observations=observations))


def test_arrays_without_rows_are_refused():
    with pytest.raises(DatasetError, match="arrays in memory holds no transitions"):
        Dataset.from_arrays(make_arrays(n=0))


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=12).filter(any))
def test_next_observations_are_exact_and_cross_no_episode(lengths):
    episodes = [make_episode(length, start=100 * i) for i, length in enumerate(lengths)]
    transitions = Dataset.from_episodes(episodes, source="test")
    assert len(transitions) == sum(lengths)
    ends = np.cumsum([length for length in lengths if length > 0]) - 1
    np.testing.assert_array_equal(np.flatnonzero(transitions.terminations), ends)
    counts, next_counts = transitions.observations[:, 0], transitions.next_observations[:, 0]
    np.testing.assert_array_equal(next_counts, counts + 1)
    inner = np.setdiff1d(np.arange(len(transitions) - 1), ends)
    np.testing.assert_array_equal(transitions.next_observations[inner], transitions.observations[inner + 1])


def test_dict_observations_of_episodes_are_stacked_by_key():
    env = gym.make("DictLineEnv-v0")
    dataset = rollout_episodes(env, expert_of(env), 2)
    counts = [np.arange(length) for length in dataset.lengths]
    np.testing.assert_array_equal(dataset.observations["count"][:, 0], np.concatenate(counts))
    np.testing.assert_array_equal(dataset.next_observations["count"][:, 0], np.concatenate(counts) + 1)
    np.testing.assert_array_equal(dataset.observations["line"][:, 0], np.concatenate(counts))
    assert dataset.observations["count"].dtype == np.uint8
    assert {len(frames) for frames in dataset.frames.values()} == {len(dataset) + 2}


@pytest.mark.parametrize("episodes", [[], [make_episode(0)]])
def test_no_steps_in_episodes_are_refused(episodes):
    with pytest.raises(DatasetError, match=r"mine holds no transitions. Collect some: sb3-ext collect --help"):
        Dataset.from_episodes(episodes, source="mine")


def test_episode_without_its_last_observation_is_refused():
    short = SimpleNamespace(**{**vars(make_episode(3)), "observations": np.zeros((3, 2))})
    with pytest.raises(DatasetError, match=r"episode 1 has 3 rewards and \[3\] observations; T steps need T \+ 1"):
        Dataset.from_episodes([make_episode(2), short], source="mine")


def test_episode_without_its_last_action_is_refused():
    short = SimpleNamespace(**{**vars(make_episode(3)), "actions": np.zeros((2, 2))})
    with pytest.raises(DatasetError, match=r"columns differ in length: .*'actions': 2"):
        Dataset.from_episodes([short], source="mine")


def test_data_of_the_environment_passes():
    check_spaces(Dataset.from_arrays(make_arrays()), BOX, ACTIONS)
    check_spaces(rollout("DictLineEnv-v0"), DictLineEnv.observation_space, ACTIONS)
    check_spaces(rollout("DiscreteLineEnv-v0"), BOX, spaces.Discrete(3))


def test_wider_floats_and_integers_pass_as_floats():
    arrays = make_arrays(observations=np.zeros((6, 2), np.int64), actions=make_arrays()["actions"].astype(np.float64))
    check_spaces(Dataset.from_arrays(arrays, warn=False), BOX, ACTIONS)


DICT = spaces.Dict({"a": BOX, "b": BOX})
PAIR = np.zeros((6, 2), np.float32)


def both(observations):
    return {"observations": observations, "next_observations": observations}


@pytest.mark.parametrize(
    ("changes", "observation_space", "action_space", "message"),
    [
        (both(np.zeros((6, 3))), BOX, ACTIONS, r"observations have the shape \(3,\), .*'s \(2,\)"),
        ({"actions": np.ones((6, 1))}, BOX, ACTIONS, r"actions have the shape \(1,\), .*'s \(2,\)"),
        ({}, BOX, spaces.Discrete(3), r"actions have the shape \(2,\), the environment's \(\)"),
        ({"actions": np.ones((6, 1), np.int64)}, BOX, spaces.Discrete(3), r"actions .*Leave the last axis out"),
        ({"actions": np.ones(6)}, BOX, spaces.Discrete(3), "actions have the dtype float32, the environment's int64"),
        ({}, spaces.Box(0, 255, (2,), np.uint8), ACTIONS, "observations have the dtype float32, .*'s uint8"),
        ({}, DICT, ACTIONS, r"observations have the keys None, the environment's have \['a', 'b'\]"),
        (
            both({"a": PAIR, "c": PAIR}),
            DICT,
            ACTIONS,
            r"observations have the keys \['a', 'c'\], the environment's have \['a', 'b'\]",
        ),
        (both({"a": PAIR, "b": PAIR[:, :1]}), DICT, ACTIONS, r"observations\['b'\] have the shape \(1,\)"),
        (both({"a": PAIR, "b": PAIR * np.nan}), DICT, ACTIONS, r"observations\['b'\] hold NaN .* rows"),
        (both({"a": PAIR}), BOX, ACTIONS, "observations are a dict, the environment's are not"),
    ],
)
def test_data_of_another_environment_is_refused(changes, observation_space, action_space, message):
    transitions = Dataset.from_arrays(make_arrays(**changes), source="mine", warn=False)
    with pytest.raises(DatasetError, match=f"mine: {message}"):
        check_spaces(transitions, observation_space, action_space)


@pytest.mark.parametrize(
    "changes", [{"actions": 3}, {"rewards": 3.0}, both(1.0), both({}), {"observations": [[1, 2], [3]] * 3}]
)
def test_what_has_no_rows_is_refused(changes):
    with pytest.raises(DatasetError):
        load(make_arrays(**changes))


def test_texts_are_no_observations():
    with pytest.raises(DatasetError, match=r"observations have the shape .* and the dtype <U32; numbers are needed"):
        Dataset.from_arrays(make_arrays(**both(PAIR.astype(str))), warn=False)


@pytest.mark.parametrize("next_observations", [np.zeros(6), {"a": PAIR}, PAIR[:, :1]])
def test_successors_of_another_shape_are_refused(next_observations):
    with pytest.raises(DatasetError, match=r"observations have the shapes .*, next_observations .*the same"):
        Dataset.from_arrays(make_arrays(next_observations=next_observations))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["observations", "next_observations", "actions"])
def test_values_that_are_not_finite_are_refused_and_located(name, value):
    arrays = make_arrays()
    arrays[name] = with_entry(with_entry(arrays[name], (2, 1), value), (4, slice(None)), value)
    where = "2 rows, first row 2" if name != "next_observations" else "2 rows, first row"
    with pytest.raises(DatasetError, match=f" {name.removeprefix('next_')} hold NaN or infinite values in {where}"):
        check_spaces(Dataset.from_arrays(arrays, warn=False), BOX, ACTIONS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rewards_that_are_not_finite_are_refused(value):
    arrays = make_arrays(rewards=with_entry(make_arrays()["rewards"], 3, value))
    with pytest.raises(DatasetError, match="rewards hold NaN or infinite values"):
        check_spaces(Dataset.from_arrays(arrays), BOX, ACTIONS)


@pytest.mark.parametrize(("row", "column", "value"), [(0, 0, -1.001), (3, 1, 10.001), (5, 1, 1.9)])
def test_box_actions_out_of_range_are_refused(row, column, value):
    arrays = make_arrays(actions=with_entry(make_arrays()["actions"], (row, column), value))
    with pytest.raises(DatasetError, match=r"actions span \[.*\] to \[.*\], the action space \[-1.  ?2.\] to \[ 3. 10"):
        check_spaces(Dataset.from_arrays(arrays), BOX, ACTIONS)


@pytest.mark.parametrize("value", [-1, 3])
def test_discrete_actions_out_of_range_are_refused(value):
    transitions = Dataset.from_arrays(make_arrays(actions=np.array([0, 1, 2, value, 0, 1])))
    with pytest.raises(DatasetError, match="actions"):
        check_spaces(transitions, BOX, spaces.Discrete(3))


def fill(transitions, buffer_class=ReplayBuffer, observation_space=BOX, action_space=ACTIONS, **kwargs):
    buffer = buffer_class(len(transitions), observation_space, action_space, device="cpu", n_envs=1, **kwargs)
    fill_buffer(transitions, buffer)
    return buffer._get_samples(np.arange(len(transitions))), buffer


def test_filled_buffer_holds_every_row_in_order():
    arrays = make_arrays()
    samples, buffer = fill(Dataset.from_arrays(arrays))
    assert buffer.size() == 6
    scaled = {**arrays, "actions": 2 * (arrays["actions"] - LOW) / (HIGH - LOW) - 1}
    for name in ("observations", "actions", "next_observations"):
        np.testing.assert_allclose(getattr(samples, name), scaled[name], rtol=1e-6)
    np.testing.assert_allclose(samples.rewards[:, 0], arrays["rewards"], rtol=1e-6)


def test_only_terminations_stop_bootstrapping():
    flags = {"terminations": [0, 1, 0, 1, 0, 0], "truncations": [0, 0, 1, 1, 0, 1]}
    samples, _ = fill(Dataset.from_arrays(make_arrays(**flags)))
    np.testing.assert_array_equal(samples.dones[:, 0], [0, 1, 0, 1, 0, 0])


def test_actions_are_scaled_from_asymmetric_bounds():
    actions = np.stack([LOW, HIGH, MIDDLE, [-1, 10], LOW + (HIGH - LOW) / 4, MIDDLE]).astype(np.float32)
    samples, _ = fill(Dataset.from_arrays(make_arrays(actions=actions)))
    expected = [[-1, -1], [1, 1], [0, 0], [-1, 1], [-0.5, -0.5], [0, 0]]
    np.testing.assert_allclose(samples.actions, expected, atol=1e-6)


def test_actions_that_rounding_moved_past_a_bound_are_clipped():
    actions = make_arrays()["actions"].astype(np.float64)
    actions[0], actions[1] = LOW - 5e-6, HIGH + 5e-6
    transitions = Dataset.from_arrays(make_arrays(actions=actions))
    check_spaces(transitions, BOX, ACTIONS)
    samples, _ = fill(transitions)
    np.testing.assert_array_equal(samples.actions[:2], [[-1, -1], [1, 1]])
    assert samples.actions.abs().max() == 1


def test_dict_observations_fill_a_dict_buffer():
    transitions = rollout("DictLineEnv-v0")
    samples, _ = fill(transitions, DictReplayBuffer, DictLineEnv.observation_space)
    for key in ("line", "count"):
        np.testing.assert_array_equal(samples.observations[key], transitions.observations[key])
        np.testing.assert_array_equal(samples.next_observations[key], transitions.next_observations[key])


def test_discrete_actions_fill_a_buffer():
    transitions = rollout("DiscreteLineEnv-v0")
    samples, _ = fill(transitions, action_space=spaces.Discrete(3))
    np.testing.assert_array_equal(samples.actions[:, 0], transitions.actions)


def test_discrete_observations_fill_a_buffer():
    observations = np.arange(6)
    transitions = Dataset.from_arrays(make_arrays(observations=observations, next_observations=observations + 1))
    check_spaces(transitions, spaces.Discrete(7), ACTIONS)
    samples, _ = fill(transitions, observation_space=spaces.Discrete(7))
    np.testing.assert_array_equal(samples.observations[:, 0], observations)
    np.testing.assert_array_equal(samples.next_observations[:, 0], observations + 1)


@pytest.mark.parametrize("first_ends", ["terminated", "truncated", "without a flag"])
def test_n_step_returns_stay_inside_the_episode(first_ends):
    flags = {"terminated": first_ends == "terminated", "truncated": first_ends == "truncated"}
    episodes = [make_episode(2, **flags), make_episode(4, start=100, terminated=False, truncated=True)]
    transitions = Dataset.from_episodes(episodes, source="test")
    samples, _ = fill(transitions, NStepReplayBuffer, n_steps=3, gamma=0.5)
    np.testing.assert_array_equal(samples.next_observations[:, 0], [2, 2, 103, 104, 104, 104])
    np.testing.assert_array_equal(samples.rewards[:, 0], [1.5, 1, 1.75, 1.75, 1.5, 1])
    np.testing.assert_array_equal(samples.discounts[:, 0], [0.25, 0.5, 0.125, 0.125, 0.25, 0.5])
    np.testing.assert_array_equal(samples.dones[:, 0], [first_ends == "terminated"] * 2 + [False] * 4)


# --- Episode logic ---------------------------------------------------------------------------------------------------


def plan_ends(plan):
    return np.cumsum([length for length, _ in plan]) - 1


@settings(deadline=None, max_examples=60)
@given(EPISODES)
def test_episodes_keep_every_transition_with_its_own_successor(plan):
    dataset = counted_dataset(plan)
    assert_consistent(dataset)
    np.testing.assert_array_equal(np.flatnonzero(dataset.ends), plan_ends(plan))
    np.testing.assert_array_equal(dataset.lengths, [length for length, _ in plan])
    np.testing.assert_array_equal(dataset.next_observations, dataset.observations + np.float32([1, -1]))
    assert dataset.terminations.sum() == sum(end in ("terminal", "both") for _, end in plan)
    assert dataset.truncations.sum() == sum(end in ("timeout", "both") for _, end in plan)
    assert len(dataset.frames) == len(dataset) + len(plan)


@settings(deadline=None, max_examples=60)
@given(EPISODES)
def test_arrays_have_the_episodes_that_they_were_made_of(plan):
    expected = counted_dataset(plan)
    dataset = Dataset.from_arrays({name: getattr(expected, name) for name in COLUMNS}, warn=False)
    assert_equal(dataset, expected, (*COLUMNS, "ends", "starts", "lengths", "returns"))
    assert_consistent(dataset)
    assert len(dataset.frames) == len(expected.frames)


@settings(deadline=None, max_examples=60)
@given(EPISODES, st.data())
def test_selection_keeps_exactly_its_transitions_and_joins_none(plan, data):
    dataset = counted_dataset(plan)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(dataset), max_size=len(dataset)).filter(any)))
    for chosen in (keep, np.flatnonzero(keep)):
        kept = dataset.select(chosen)
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(kept, name), getattr(dataset, name)[keep])
        assert_consistent(kept)
        # The last of an episode, or what followed was left out
        np.testing.assert_array_equal(kept.ends, (dataset.ends | ~np.append(keep[1:], False))[keep])
        assert len(kept.frames) == len(np.unique(np.concatenate([dataset.rows[keep], dataset.next_rows[keep]])))


@settings(deadline=None, max_examples=60)
@given(EPISODES, st.data())
@pytest.mark.parametrize("bad_episodes", ["drop", "repair", "raise"])
@pytest.mark.parametrize("column", ["frames", "actions", "rewards"])
@pytest.mark.filterwarnings("ignore:.*(dropped|shortened) episodes")
def test_sound_episodes_or_beginnings_remain(bad_episodes, column, plan, data):
    dataset = counted_dataset(plan)
    array = getattr(dataset, column)
    bad_rows = data.draw(st.sets(st.integers(0, len(array) - 1), max_size=3))
    array[list(bad_rows)] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    touched = {int(row) for row in bad_rows}
    is_bad = np.array(
        [
            bool(touched & ({i} if column != "frames" else {int(dataset.rows[i]), int(dataset.next_rows[i])}))
            for i in range(len(dataset))
        ]
    )
    episode = np.repeat(np.arange(len(plan)), dataset.lengths)
    bad_episode_ids = set(episode[is_bad])
    if bad_episodes == "drop":
        keep = [e not in bad_episode_ids for e in episode]
    else:
        keep = [not is_bad[(episode == e) & (np.arange(len(dataset)) <= i)].any() for i, e in enumerate(episode)]
    if not is_bad.any():
        assert load(dataset, bad_episodes=bad_episodes, allow_constant_rewards=True) is dataset
    elif bad_episodes == "raise" or not any(keep):
        with pytest.raises(DatasetError, match="NaN or infinite"):
            load(dataset, bad_episodes=bad_episodes)
    else:
        kept = load(dataset, bad_episodes=bad_episodes, allow_constant_rewards=True)
        assert_equal(kept, dataset.select(np.array(keep)), (*COLUMNS, "ends"))
        assert list(kept.metadata.counts.values()) == [len(bad_episode_ids)]


def test_nan_does_not_split_an_episode_of_arrays():
    arrays = make_arrays()
    arrays["observations"] = with_entry(arrays["observations"], 3, np.nan)
    arrays["next_observations"] = with_entry(arrays["next_observations"], 2, np.nan)
    with pytest.warns(UserWarning, match="1 shortened episodes; 2 transitions are left"):
        kept = load(arrays, bad_episodes="repair")
    np.testing.assert_array_equal(kept.actions, arrays["actions"][:2])


def test_sign_of_zero_survives_between_episodes():
    zeros = np.zeros((2, 2), np.float32)
    arrays = make_arrays(2, observations=np.stack([zeros[0], -zeros[0]]), next_observations=zeros)
    dataset = Dataset.from_arrays(arrays, warn=False)
    assert np.signbit(dataset.observations).tolist() == [[False] * 2, [True] * 2]
    assert not np.signbit(dataset.next_observations).any()


def test_both_flags_mean_terminal_in_buffers():
    samples, buffer = fill(
        Dataset.from_arrays(make_arrays(terminations=[1, 0, 0, 0, 0, 1], truncations=[1, 0, 1, 0, 0, 0]))
    )
    np.testing.assert_array_equal(samples.dones[:, 0], [1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(buffer.dones[:, 0], [1, 0, 1, 0, 0, 1])


def test_successes_come_from_infos_or_from_two_valued_rewards():
    dataset = counted_dataset([(3, "none")])
    assert dataset.successes is None  # rewards 0, 1, 2
    for key in ("success", "is_success"):
        flags = Dataset.from_arrays(make_arrays(), infos={key: [[0], [1], [0], [0], [1], [1]]}).successes
        assert flags.tolist() == [False, True, False, False, True, True]
    two = Dataset.from_arrays(make_arrays(rewards=[-1, 0, -1, -1, 0, -1])).successes
    assert two.tolist() == [False, True, False, False, True, False]


def test_goals_are_those_of_infos_or_of_the_dict():
    goals = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert Dataset.from_arrays(make_arrays()).goals is None
    np.testing.assert_array_equal(Dataset.from_arrays(make_arrays(), infos={"goal": goals}).goals, goals)
    observations = {"desired_goal": goals, "observation": goals}
    dataset = Dataset.from_arrays(make_arrays(observations=observations, next_observations=observations), warn=False)
    np.testing.assert_array_equal(dataset.goals, goals)


def test_normalized_score():
    dataset = counted_dataset([(2, "none")], ref_min_score=10.0, ref_max_score=30.0)
    np.testing.assert_array_equal(dataset.normalized_score(np.array([10, 20, 30])), [0, 50, 100])
    for scores in ({"ref_min_score": None}, {"ref_max_score": 10.0}):
        with pytest.raises(DatasetError, match="no reference scores"):
            dataset.with_metadata(**scores).normalized_score(1.0)


def test_metadata_survive_json():
    metadata = Metadata(
        "here", "line-v0", SCRIPTED, None, DictLineEnv.observation_space, ACTIONS, 0.0, 1.0, "text", counts={"a": 1}
    )
    assert Metadata.from_dict(json.loads(json.dumps(metadata.to_dict()))) == metadata


@pytest.mark.parametrize(
    "values",
    [
        {"counts": None},
        {"source": "a", "unknown": 1},
        {"action_space": "{}"},
        {"transforms": [{"name": "x"}]},
        {"transforms": 3},
    ],
)
def test_broken_metadata_are_refused(values):
    with pytest.raises(DatasetError):
        Metadata.from_dict(values).to_dict()


def drifting_arrays(n=2000, jump_at=None):
    position = np.cumsum(np.random.default_rng(0).uniform(-0.1, 0.12, (n + 1, 2)), axis=0)
    if jump_at is not None:
        position[jump_at + 1 :] -= 30
    position = position.astype(np.float32)
    arrays = make_arrays(n, observations=position[:-1], next_observations=position[1:], terminations=np.zeros(n, bool))
    return Dataset.from_arrays(arrays)


def test_jumps_inside_episodes_are_found():
    assert len(find_jumps(drifting_arrays())) == 0
    assert find_jumps(drifting_arrays(jump_at=700)).tolist() == [700]


@pytest.mark.parametrize("end", ["terminal", "timeout"])
def test_ends_of_episodes_are_no_jumps(end):
    assert len(find_jumps(counted_dataset([(60, end)] * 5))) == 0
