"""Writing every format, and round trips equal to the last bit."""

import numpy as np
import pytest
from gymnasium import spaces
from line_envs import SCRIPTED, assert_equal, counted, counted_dataset, make_arrays, rollout

from sb3_ext.datasets import Dataset, DatasetError, load, save, to_replay_buffer
from sb3_ext.datasets.dataset import COLUMNS, Metadata
from sb3_ext.datasets.load import read

pytestmark = [
    pytest.mark.filterwarnings("ignore:`.*` is set to None:UserWarning"),
    pytest.mark.filterwarnings("ignore:env_spec is None:UserWarning"),
]

PLAN = [(3, "terminal"), (1, "timeout"), (4, "none")]


# --- Writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["mine", "a.hdf5", "a.pkl", "folder"])
def test_what_exists_is_replaced_only_if_wanted(target, tmp_path):
    place = target if target == "mine" else tmp_path / target
    first, second = rollout(n_episodes=1), rollout(n_episodes=2, seed=1)
    written = save(first, place)
    assert written.exists()
    with pytest.raises(DatasetError, match=r"exists. Choose another"):
        save(second, place)
    assert len(read(place, trust=True)) == len(first)
    assert save(second, place, overwrite=True) == written
    assert len(read(place, trust=True)) == len(second)
    assert not [path for path in written.parent.iterdir() if path.name.startswith(".")]


def test_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "precious.txt").write_text("thesis")
    with pytest.raises(DatasetError, match="exists and is no dataset"):
        save(rollout(n_episodes=1), tmp_path, format="folder", overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "thesis"


def test_dict_observations_do_not_fit_d4rls_layout(tmp_path):
    with pytest.raises(DatasetError, match="Dict observations, which D4RL's layout cannot hold"):
        save(rollout("DictLineEnv-v0", n_episodes=1), tmp_path / "a.hdf5")
    assert list(tmp_path.iterdir()) == []


def test_unknown_format_and_missing_spaces_are_refused():
    with pytest.raises(DatasetError, match="Unknown format 'zip'; known are minari"):
        save(rollout(n_episodes=1), "mine", format="zip")
    with pytest.raises(DatasetError, match="does not name its spaces, which Minari needs"):
        save(counted_dataset(PLAN), "mine")


# --- Round trips -----------------------------------------------------------------------------------------------------

UNIT = spaces.Box(-1, 1, (2,), np.float32)
WIDE = spaces.Box(-np.inf, np.inf, (2,), np.float32)
EDGES = np.array([0x00000001, 0x80000001, 0x007FFFFF, 0x80000000, 0, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800001], np.uint32)


def random_bits(rng, shape):
    """Finite float32 numbers of any bits, among them denormal ones and -0."""
    bits = rng.integers(0, 1 << 32, shape, dtype=np.uint32)
    bits = np.where(rng.random(shape) < 0.3, rng.choice(EDGES, shape), bits)
    values = bits.astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(-0.0))


def random_dataset(seed, plan=((3, "terminal"), (4, "timeout"), (1, "terminal"), (2, "timeout")), action_space=UNIT):
    rng = np.random.default_rng(seed)
    episodes = counted(plan)
    for episode in episodes:
        n = len(episode.rewards)
        episode.observations, episode.rewards = random_bits(rng, (n + 1, 2)), random_bits(rng, n)
        episode.actions = np.clip(random_bits(rng, (n, 2)), -1, 1)
        episode.infos = {"success": rng.random(n) < 0.5, "goal": random_bits(rng, (n, 2))}
    metadata = Metadata(observation_space=WIDE, action_space=action_space, description="random bits")
    return Dataset.from_episodes(episodes, metadata=metadata)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("target", ["minari", "arrow", "a.hdf5", "a.pkl", "folder"])
def test_round_trip_is_equal_to_the_last_bit(target, seed, tmp_path):
    if target == "arrow":
        pytest.importorskip("pyarrow")
    dataset = random_dataset(seed)
    place = "mine" if target in ("minari", "arrow") else tmp_path / target
    save(dataset, place, "arrow" if target == "arrow" else None)
    for _ in ("from the source", "from the cache"):
        loaded = read(place, trust=True)
        assert_equal(loaded, dataset, (*COLUMNS, "ends"))
        if target != "a.pkl":
            assert loaded.infos.keys() == dataset.infos.keys()
            for key, column in dataset.infos.items():
                assert loaded.infos[key].tobytes() == column.tobytes()


def test_round_trip_through_all_formats(tmp_path):
    buffer = to_replay_buffer(random_dataset(7), device="cpu")
    chain = read(buffer)
    for step in ("one", tmp_path / "two.hdf5", tmp_path / "three", "four", tmp_path / "five.hdf5"):
        save(chain, step)
        chain = read(step)
    again = to_replay_buffer(chain, device="cpu")
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert getattr(again, name).tobytes() == getattr(buffer, name).tobytes(), name
    assert again.observation_space == buffer.observation_space and again.action_space == buffer.action_space


@pytest.mark.parametrize("env_id", [SCRIPTED, "DictLineEnv-v0", "DiscreteLineEnv-v0"])
@pytest.mark.parametrize("target", ["minari", "arrow", "folder", "a.hdf5", "a.pkl"])
def test_round_trip_of_other_spaces(env_id, target, tmp_path):
    if target == "arrow":
        pytest.importorskip("pyarrow")
    if (env_id, target) == ("DictLineEnv-v0", "a.hdf5"):
        pytest.skip("D4RL's layout cannot hold Dict observations")
    dataset = rollout(env_id)
    place = "mine" if target in ("minari", "arrow") else tmp_path / target
    save(dataset, place, "arrow" if target == "arrow" else None)
    loaded = read(place, trust=True)
    if target == "a.pkl" and env_id != "DiscreteLineEnv-v0":  # bounds that are not -1 and 1: up to the last bits
        np.testing.assert_allclose(loaded.actions, dataset.actions, rtol=1e-6)
        assert_equal(loaded, dataset, [name for name in COLUMNS if name != "actions"])
    else:
        assert_equal(loaded, dataset)
    if target != "a.pkl":
        assert loaded.env_id == env_id
        assert loaded.metadata.observation_space == dataset.metadata.observation_space


@pytest.mark.parametrize("target", ["minari", "arrow", "a.hdf5", "a.pkl", "folder"])
@pytest.mark.parametrize("n", [1, 4])
def test_round_trip_of_discrete_observations(n, target, tmp_path):
    if target == "arrow":
        pytest.importorskip("pyarrow")
    arrays = make_arrays(n, observations=np.arange(n), next_observations=np.arange(1, n + 1), actions=np.arange(n) % 3)
    dataset = Dataset.from_arrays(arrays).with_metadata(
        observation_space=spaces.Discrete(5), action_space=spaces.Discrete(3)
    )
    place = "mine" if target in ("minari", "arrow") else tmp_path / target
    save(dataset, place, "arrow" if target == "arrow" else None)
    assert_equal(read(place, trust=True), dataset)


def test_what_the_formats_cannot_hold(tmp_path):
    """Just as the docstring of `save` lists it."""
    dataset = random_dataset(0, plan=[(2, "none"), (2, "both"), (2, "none")])
    for target in ("a.hdf5", "a.pkl", "folder"):
        save(dataset, tmp_path / target)
    save(dataset, "mine")
    assert_equal(read(tmp_path / "folder"), dataset)
    assert_equal(read("mine"), dataset)
    stopped = [False, True, False, False, False, True]
    d4rl, sb3 = read(tmp_path / "a.hdf5"), read(tmp_path / "a.pkl", trust=True)
    np.testing.assert_array_equal(d4rl.truncations, dataset.truncations | stopped)
    np.testing.assert_array_equal(d4rl.terminations, dataset.terminations)
    np.testing.assert_array_equal(sb3.truncations, stopped)
    np.testing.assert_array_equal(sb3.terminations, dataset.terminations)
    assert not sb3.infos and sb3.metadata.description is None
    for loaded in (d4rl, sb3):
        assert_equal(loaded, dataset, ("observations", "next_observations", "actions", "rewards", "ends"))


@pytest.mark.parametrize("target", ["mine", "a.hdf5", "folder"])
def test_dataset_can_replace_its_own_source(target, tmp_path):
    place = target if target == "mine" else tmp_path / target
    save(rollout(), place)
    read(place)
    dataset = read(place)  # mapped from the cache or from the folder itself
    save(dataset, place, overwrite=True)
    assert_equal(read(place), rollout())


def test_transforms_are_kept_but_in_minari(tmp_path):
    dataset = load(random_dataset(0), reward_shift=-1)
    for place in (tmp_path / "folder", tmp_path / "a.hdf5"):
        save(dataset, place)
        assert len(read(place).metadata.transforms) == 1
    with pytest.raises(DatasetError, match=r"Minari cannot hold what was done .*reward_shift"):
        save(dataset, "mine")
