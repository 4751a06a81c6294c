from sb3_ext.datasets.collect import collect, rollout_episodes
from sb3_ext.datasets.load import DatasetError, DemosLike, load_demonstrations
from sb3_ext.datasets.transitions import Transitions

__all__ = ["DatasetError", "DemosLike", "Transitions", "collect", "load_demonstrations", "rollout_episodes"]
