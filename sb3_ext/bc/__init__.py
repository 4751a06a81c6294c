from sb3_ext.bc.bc import BC
from sb3_ext.bc.pretraining import pretrain
from sb3_ext.common.offline_policies import CloningCnnPolicy, CloningMultiInputPolicy, CloningPolicy

CnnPolicy, MlpPolicy, MultiInputPolicy = CloningCnnPolicy, CloningPolicy, CloningMultiInputPolicy

__all__ = ["BC", "CnnPolicy", "MlpPolicy", "MultiInputPolicy", "pretrain"]
