"""Files from strangers: nothing that they name is run."""

import json

import gymnasium as gym
import h5py
import numpy as np
import pytest
from line_envs import SCRIPTED, counted_dataset, rollout

from sb3_ext.datasets import DatasetError, load, make_eval_env, save, validate

PLAN = [(5, "terminated"), (5, "truncated")]


def hostile(tmp_path, **spec):
    """A dataset whose environment's spec calls a function that leaves a file."""
    trace = tmp_path / "trace"
    evil = {
        "id": "Evil-v0",
        "entry_point": "os:mkdir",
        "kwargs": {"path": str(trace)},
        "additional_wrappers": [],
        **spec,
    }
    return rollout(SCRIPTED).with_metadata(env_id=evil["id"], env_spec=json.dumps(evil)), trace


@pytest.mark.parametrize("suffix", ["a.hdf5", "folder"])
def test_entry_points_of_a_file_are_not_called(tmp_path, suffix):
    dataset, trace = hostile(tmp_path)
    save(dataset, tmp_path / suffix)
    loaded = load(tmp_path / suffix)
    with pytest.raises(DatasetError, match=r"Evil-v0 cannot be made. Install and import"):
        make_eval_env(loaded)
    validate(str(tmp_path / suffix))
    with pytest.warns(UserWarning, match="does not name its environment"):
        save(loaded, "evil")
    assert not trace.exists() and "Evil-v0" not in gym.registry


def test_entry_points_of_a_known_id_are_those_that_are_registered(tmp_path):
    dataset, trace = hostile(tmp_path, id=SCRIPTED, kwargs={})
    make_eval_env(dataset).close()
    assert not trace.exists()


@pytest.mark.parametrize("entry_point", ["os:mkdir", "gymnasium.wrappersx:Evil"])
def test_foreign_wrappers_are_refused(tmp_path, entry_point):
    wrapper = {"name": "Evil", "entry_point": entry_point, "kwargs": {}}
    dataset, _ = hostile(tmp_path, id=SCRIPTED, kwargs={}, additional_wrappers=[wrapper])
    with pytest.raises(DatasetError, match=r"wrappers \['Evil'\], which are not Gymnasium's"):
        make_eval_env(dataset)


def test_ids_that_import_a_module_are_refused(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"] = np.arange(20, dtype=np.float32).reshape(10, 2)
        file["actions"] = np.zeros((10, 2), np.float32)
        file["rewards"] = np.arange(10, dtype=np.float32)
        file["terminals"] = np.arange(10) == 9
        file.attrs["env_id"] = "evil_module:Foo-v0"
    errors, _ = validate(str(tmp_path / "a.hdf5"))
    assert any("ids that import a module are not taken" in error for error in errors)


@pytest.mark.parametrize(
    "spec", ["{", "[]", "3", '{"kwargs": {}}', json.dumps({"id": SCRIPTED, "max_episode_steps": "many"})]
)
def test_broken_specs_are_named(spec):
    with pytest.raises(DatasetError, match="spec cannot be read"):
        make_eval_env(rollout(SCRIPTED).with_metadata(env_spec=spec))


@pytest.mark.parametrize("values", [{"env_id": 5}, {"ref_max_score": "x"}, {"description": []}, {"source": None}])
def test_metadata_of_other_types_are_refused(values, tmp_path):
    save(counted_dataset(PLAN), tmp_path / "folder")
    index = tmp_path / "folder/dataset.json"
    content = json.loads(index.read_text())
    content["metadata"].update(values)
    index.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="metadata of a dataset are broken"):
        load(tmp_path / "folder")


def test_booleans_are_0_or_1(tmp_path):
    save(counted_dataset(PLAN), tmp_path / "folder")
    file = tmp_path / "folder/terminations.npy"
    content = bytearray(file.read_bytes())
    content[-1] = 2
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"terminations.* malformed"):
        load(tmp_path / "folder")
