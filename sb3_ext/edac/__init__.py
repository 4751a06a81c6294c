from sb3_ext.common.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_ext.edac.edac import EDAC

__all__ = ["EDAC", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
