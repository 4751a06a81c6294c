from sb3_ext.common.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_ext.redq.policies import TruncatedNormalPolicy
from sb3_ext.redq.redq import REDQ

__all__ = ["REDQ", "CnnPolicy", "MlpPolicy", "MultiInputPolicy", "TruncatedNormalPolicy"]
