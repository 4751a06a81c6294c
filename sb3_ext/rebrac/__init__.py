from sb3_ext.rebrac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_ext.rebrac.rebrac import ReBRAC

__all__ = ["CnnPolicy", "MlpPolicy", "MultiInputPolicy", "ReBRAC"]
