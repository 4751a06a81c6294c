from sb3_ext.datasets.collect import Behaviour, collect, rollout_episodes
from sb3_ext.datasets.dataset import Dataset, Metadata
from sb3_ext.datasets.environments import make_eval_env, make_training_env
from sb3_ext.datasets.errors import DatasetError
from sb3_ext.datasets.fill import fill
from sb3_ext.datasets.load import DatasetLike, load, load_demonstrations
from sb3_ext.datasets.replay_buffer import to_replay_buffer
from sb3_ext.datasets.save import save
from sb3_ext.datasets.summary import plot, summarize, validate

__all__ = [
    "Behaviour",
    "Dataset",
    "DatasetError",
    "DatasetLike",
    "Metadata",
    "collect",
    "fill",
    "load",
    "load_demonstrations",
    "make_eval_env",
    "make_training_env",
    "plot",
    "rollout_episodes",
    "save",
    "summarize",
    "to_replay_buffer",
    "validate",
]
