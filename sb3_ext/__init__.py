"""Learning from demonstrations and offline data for Stable-Baselines3. Importing it registers the environments."""

import sb3_ext_envs
from sb3_ext.awac import AWAC
from sb3_ext.bc import BC
from sb3_ext.bcppo import BCPPO
from sb3_ext.calql import CalQL
from sb3_ext.common.symmetry import RotationalSymmetry
from sb3_ext.edac import EDAC
from sb3_ext.iql import IQL
from sb3_ext.rebrac import ReBRAC
from sb3_ext.redq import REDQ
from sb3_ext.version import __version__

__all__ = [
    "AWAC",
    "BC",
    "BCPPO",
    "EDAC",
    "IQL",
    "REDQ",
    "CalQL",
    "ReBRAC",
    "RotationalSymmetry",
    "__version__",
    "sb3_ext_envs",
]
