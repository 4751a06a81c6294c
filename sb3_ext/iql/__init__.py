from sb3_ext.common.hierarchical_policy import HierarchicalValuePolicy as HierarchicalPolicy
from sb3_ext.common.offline_policies import ValueCnnPolicy, ValueMultiInputPolicy, ValuePolicy
from sb3_ext.iql.iql import IQL

CnnPolicy, MlpPolicy, MultiInputPolicy = ValueCnnPolicy, ValuePolicy, ValueMultiInputPolicy

__all__ = ["IQL", "CnnPolicy", "HierarchicalPolicy", "MlpPolicy", "MultiInputPolicy"]
