from sb3_ext.redq.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_ext.redq.redq import REDQ

__all__ = ["REDQ", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
