from sb3_ext.rebrac.policies import CnnPolicy, HierarchicalPolicy, MlpPolicy, MultiInputPolicy
from sb3_ext.rebrac.rebrac import ReBRAC

__all__ = ["CnnPolicy", "HierarchicalPolicy", "MlpPolicy", "MultiInputPolicy", "ReBRAC"]
