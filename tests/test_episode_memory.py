"""EpisodeMemory: what a hierarchical policy does differently because of the episode so far."""

import numpy as np
import pytest
import torch as th

from sb3_ext.common.episode_memory import N_PLACES, EpisodeMemory, within_limits

RADIUS = 0.1
# Four corners and the middle
PLACES = th.tensor([[0.0, 0.0], [0.5, 0.5], [0.5, -0.5], [-0.5, 0.5], [-0.5, -0.5]])
NORTH = th.tensor([[0.0, 0.3]])


def make(places=PLACES, n_steps=4):
    memory = EpisodeMemory(2, RADIUS)
    memory.take_sizes(th.tensor(0.4), n_steps)
    memory.take_goals(places)
    return memory


def play(memory, positions, subgoal=NORTH, state=None):
    """Subgoals along a way of one environment, ``(n, 2)``, and the state after it."""
    asked = []
    for position in positions:
        subgoals, state = memory(subgoal, th.tensor([position], dtype=th.float32), state)
        asked.append(subgoals[0])
    return th.stack(asked), state


def far_apart(n, start=3.0):
    """Positions that are no rewarded places, each far from the one before."""
    return [(start + i, 0.0) for i in range(n)]


def test_what_the_data_say():
    memory = make()
    assert memory.stride == pytest.approx(0.4)
    assert memory.n_steps == 4
    assert memory.places.shape == (N_PLACES, 2)
    np.testing.assert_array_equal(memory.places.unique(dim=0), PLACES.unique(dim=0))
    # Of more places than there is room for, those that are spread over the data
    many = th.stack([th.arange(1000.0), th.zeros(1000)], dim=1)
    kept = make(many).places[:, 0]
    assert kept[0] == 0 and kept[-1] == 999
    assert set(kept.diff().tolist()) == {3.0, 4.0}


def test_without_rewarded_places_behind_it_subgoals_are_the_policys_own():
    asked, state = play(make(), far_apart(9))
    np.testing.assert_array_equal(asked, NORTH.expand(9, 2))
    assert state.steps == 9 and not state.visited.any() and not state.is_stuck.any()
    # Nor before anything is known
    asked, _ = play(EpisodeMemory(2, RADIUS), [(0.0, 0.0)] * 3)
    np.testing.assert_array_equal(asked, NORTH.expand(3, 2))


def test_places_are_searched_the_nearest_first():
    memory = make()
    asked, state = play(memory, [(0.05, 0.0), (0.2, 0.3), (1.0, -0.9)])
    # It has no effect on the step in which it comes there
    np.testing.assert_array_equal(asked[0], NORTH[0])
    length = 0.4
    np.testing.assert_allclose(asked[1], length * np.array([0.3, 0.2]) / np.hypot(0.3, 0.2), rtol=1e-5)
    np.testing.assert_allclose(asked[2], length * np.array([-0.5, 0.4]) / np.hypot(0.5, 0.4), rtol=1e-5)
    # As near as the radius is there
    asked, state = play(memory, [(0.5, 0.5 + RADIUS * 1.01)], state=state)
    before = state.visited.sum()
    diagonal = 0.5 + RADIUS * 0.7
    asked, state = play(memory, [(diagonal, diagonal), (0.45, 0.3)], state=state)
    assert state.visited.sum() > before
    np.testing.assert_allclose(asked[1], length * np.array([0.05, -0.8]) / np.hypot(0.05, 0.8), rtol=1e-5)


def test_one_that_has_been_everywhere_begins_again():
    memory = make()
    asked, _ = play(memory, [*PLACES.tolist(), (3.0, 0.0), *PLACES[1:2].tolist(), (0.4, -0.3)])
    assert (asked[1:5] != NORTH).any(dim=1).all()
    np.testing.assert_array_equal(asked[5:7], NORTH.expand(2, 2))
    np.testing.assert_allclose(asked[7], 0.4 * np.array([0.1, -0.2]) / np.hypot(0.1, 0.2), rtol=1e-4)
    # A single place has no others beside it
    asked, _ = play(make(PLACES[:1]), [(0.0, 0.0)] * 3)
    np.testing.assert_array_equal(asked, NORTH.expand(3, 2))


def test_one_that_stands_gets_noise_for_as_long_as_a_subgoal_takes():
    memory = make()
    standing = [(3.0 + 0.02 * i, 0.0) for i in range(5)]
    asked, state = play(memory, standing)
    # After four steps, and not before
    np.testing.assert_array_equal(asked[:4], NORTH.expand(4, 2))
    assert state.is_stuck.all()
    more, state = play(memory, far_apart(4, start=4.0), state=state)
    np.testing.assert_allclose(th.cat([asked[4:], more[:3]]), (NORTH + memory.noise[4:8]).clamp(-1, 1), rtol=1e-6)
    np.testing.assert_array_equal(more[3], NORTH[0])
    assert not state.is_stuck.any()
    # One that walked far first, and one that comes back in the end
    _, state = play(memory, [*far_apart(8), *[(10.0, 0.0)] * 5])
    assert state.is_stuck.all()
    _, state = play(memory, [(3.0, 0.0), *far_apart(4, start=4.0), *far_apart(4, start=9.0), (3.0, 0.0)])
    assert not state.is_stuck.any()
    # What moves more than the radius in so many steps does not stand
    _, state = play(memory, [(3.0 + 0.026 * i, 0.0) for i in range(5)])
    assert not state.is_stuck.any()


def test_noise_is_the_same_every_time_and_nobodys():
    th.manual_seed(0)
    expected = th.randn(3)
    th.manual_seed(0)
    one, other = make(), make()
    play(one, [(3.0, 0.0)] * 10)
    assert (th.randn(3) == expected).all()
    assert (one.noise == other.noise).all()
    assert one.noise.std() == pytest.approx(1, abs=0.05)
    assert "noise" not in one.state_dict()
    # Long episodes go through it again
    _, state = play(one, [(3.0, 0.0)] * 8)
    long = state._replace(steps=state.steps + one.noise.shape[0])
    np.testing.assert_array_equal(play(one, [(3.0, 0.0)], state=state)[0], play(one, [(3.0, 0.0)], state=long)[0])


def test_environments_are_at_steps_and_places_of_their_own():
    memory = make()
    subgoals, positions = NORTH.expand(2, 2), th.tensor([PLACES[4].tolist(), [3.0, 0.0]])
    # One has been everywhere with this step, the other at the first place alone
    been = np.stack([(memory.places != PLACES[4]).any(dim=1), (memory.places == PLACES[0]).all(dim=1)])
    _, after = memory(subgoals, positions, (np.array([4, 9]), positions.numpy(), np.zeros(2, bool), been))
    np.testing.assert_array_equal(after.visited, [np.zeros(N_PLACES, bool), been[1]])
    # Noise is that of each one's step
    stuck = (np.array([5, 9]), positions.numpy(), np.ones(2, bool), np.zeros((2, N_PLACES), bool))
    asked, _ = memory(subgoals, positions, stuck)
    np.testing.assert_allclose(asked, (NORTH + memory.noise[[5, 9]]).clamp(-1, 1), rtol=1e-6)


def test_environments_are_apart_and_episodes_forgotten_where_they_end():
    memory = make()
    ways = np.stack([np.full((8, 2), 3.0), [*[(0.0, 0.0)] * 4, *far_apart(4)]], axis=1)
    alone = [play(memory, way.tolist())[0] for way in ways.swapaxes(0, 1)]
    state, asked = None, []
    for positions in ways:
        subgoals, state = memory(NORTH.expand(2, 2), th.tensor(positions, dtype=th.float32), state)
        asked.append(subgoals)
    th.testing.assert_close(th.stack(asked, dim=1), th.stack(alone))
    assert (alone[0][5:] != NORTH).any() and (alone[1][5:] != NORTH).any()

    position = th.tensor(ways[-1], dtype=th.float32)
    new, after = memory(NORTH.expand(2, 2), position, state, np.array([True, False]))
    np.testing.assert_array_equal(new[0], NORTH[0])
    np.testing.assert_array_equal(new[1], memory(NORTH.expand(2, 2), position, state)[0][1])
    assert after.steps.tolist() == [1, 9]
    np.testing.assert_array_equal(after.anchor[0], position[0])
    # A flag for all, as for a single environment
    both, _ = memory(NORTH.expand(2, 2), position, state, True)
    np.testing.assert_array_equal(both, NORTH.expand(2, 2))
    for wrong in (state, (np.zeros((1, 3, 8)), np.zeros((1, 3, 8))), np.zeros(3), ()):
        with pytest.raises(ValueError, match=r"pass what `predict` returned for the same 3 environment"):
            memory(NORTH.expand(3, 2), th.zeros(3, 2), wrong)
    with pytest.raises(ValueError, match="episode_start has 3 entries, the observations are of 2"):
        memory(NORTH.expand(2, 2), position, state, np.ones(3, bool))


def test_states_that_were_handed_out_stay_as_they_are():
    memory = make()
    _, state = play(memory, [(0.0, 0.0)] * 6)
    kept = [column.copy() for column in state]
    play(memory, [(0.5, 0.5)] * 6, state=state)
    for column, before in zip(state, kept, strict=True):
        np.testing.assert_array_equal(column, before)


def test_directions_stay_within_the_limits():
    directions = th.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(within_limits(directions, th.tensor(0.5)), [[0.3, 0.4], [0.5, 0], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(within_limits(directions, th.tensor(1.3))[0], [0.75, 1], rtol=1e-6)
