from sb3_ext.common.hierarchical_policy import HierarchicalEnsemblePolicy as HierarchicalPolicy
from sb3_ext.common.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_ext.edac.edac import EDAC

__all__ = ["EDAC", "CnnPolicy", "HierarchicalPolicy", "MlpPolicy", "MultiInputPolicy"]
