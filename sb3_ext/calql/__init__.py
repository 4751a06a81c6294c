from sb3_ext.calql.calql import CalQL
from sb3_ext.common.hierarchical_policy import HierarchicalEnsemblePolicy as HierarchicalPolicy
from sb3_ext.common.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CalQL", "CnnPolicy", "HierarchicalPolicy", "MlpPolicy", "MultiInputPolicy"]
