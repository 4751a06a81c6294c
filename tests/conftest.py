import itertools
import random

import numpy as np
import pytest
import torch as th
from gymnasium.utils import seeding

import sb3_ext  # noqa: F401 (registers the environments)


@pytest.fixture(autouse=True)
def minari_folder(tmp_path_factory, monkeypatch):
    """Each test has a folder of its own for Minari datasets, its subprocesses too; the user's home stays untouched."""
    folder = tmp_path_factory.mktemp("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    return folder


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    """Likewise for the cache of columns and for downloads."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SB3_EXT_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def repeatable_draws(monkeypatch):
    """A test draws the same at every run, in spaces and environments that nobody seeds too; not fixtures of modules."""
    seeds, seeded = itertools.count(), seeding.np_random
    monkeypatch.setattr(seeding, "np_random", lambda seed=None: seeded(next(seeds) if seed is None else seed))
    random.seed(0)
    np.random.seed(0)
    th.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    th.set_num_threads(1)
