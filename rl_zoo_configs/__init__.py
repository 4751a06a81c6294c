"""Tuned hyper-parameters in RL Zoo's format, one YAML file an algorithm."""

from pathlib import Path


def config_path(algo: str) -> Path:
    """Path of the configuration of an algorithm, by its RL Zoo id; the file may not exist."""
    return Path(__file__).parent / f"{algo}.yml"
