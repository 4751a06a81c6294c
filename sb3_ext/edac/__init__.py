from sb3_ext.edac.edac import EDAC
from sb3_ext.redq.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["EDAC", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
