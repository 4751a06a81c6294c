from sb3_ext.awac.awac import AWAC
from sb3_ext.common.hierarchical_policy import HierarchicalWeightedCloningPolicy as HierarchicalPolicy
from sb3_ext.common.offline_policies import (
    WeightedCloningCnnPolicy,
    WeightedCloningMultiInputPolicy,
    WeightedCloningPolicy,
)

CnnPolicy, MlpPolicy, MultiInputPolicy = (
    WeightedCloningCnnPolicy,
    WeightedCloningPolicy,
    WeightedCloningMultiInputPolicy,
)

__all__ = ["AWAC", "CnnPolicy", "HierarchicalPolicy", "MlpPolicy", "MultiInputPolicy"]
