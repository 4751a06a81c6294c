from sb3_ext.bcppo.bcppo import BCPPO
from sb3_ext.bcppo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, TruncatedNormalMlpPolicy

__all__ = ["BCPPO", "CnnPolicy", "MlpPolicy", "MultiInputPolicy", "TruncatedNormalMlpPolicy"]
