from sb3_ext.redq.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, TruncatedNormalPolicy
from sb3_ext.redq.redq import REDQ

__all__ = ["REDQ", "CnnPolicy", "MlpPolicy", "MultiInputPolicy", "TruncatedNormalPolicy"]
